//! Tensors that are spread over several files.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Entry, SafetensorsError, Spec, read_header};
use crate::read_at::ReadAt;

/// The name of a shard, counted from 1: `model-00001-of-00003.safetensors`.
pub fn shard_name(stem: &str, shard: usize, shards: usize) -> String {
    format!("{stem}-{shard:05}-of-{shards:05}.safetensors")
}

/// The tensors of each shard: in order, as many as fit into `max_bytes` of numbers, but at least one. Without tensors
/// there is one empty shard.
///
/// # Errors
/// [`SafetensorsError::Overflow`].
pub fn split(specs: &[Spec], max_bytes: u64) -> Result<Vec<Range<usize>>, SafetensorsError> {
    let sizes = specs.iter().map(Spec::bytes).collect::<Result<Vec<u64>, _>>()?;
    Ok(split_sizes(sizes, max_bytes))
}

/// As [`split`], for tensors of these sizes.
pub(crate) fn split_sizes(sizes: impl IntoIterator<Item = u64>, max_bytes: u64) -> Vec<Range<usize>> {
    let mut shards = Vec::new();
    let (mut begin, mut end, mut sum) = (0, 0, 0u64);
    for bytes in sizes {
        let more = sum.checked_add(bytes);
        if end > begin && more.is_none_or(|more| more > max_bytes) {
            shards.push(begin..end);
            (begin, sum) = (end, bytes);
        } else {
            sum = more.unwrap_or(u64::MAX);
        }
        end += 1;
    }
    shards.push(begin..end);
    shards
}

/// Open files, and the tensors in them by name.
#[derive(Debug)]
pub struct Shards {
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, (usize, Entry)>,
    metadata: BTreeMap<String, String>,
}

/// Why tensors cannot be read from their files.
#[derive(Debug, thiserror::Error)]
pub enum ShardsError {
    /// A file cannot be opened.
    #[error("{}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not a safetensors file.
    #[error("{}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SafetensorsError,
    },
    /// A tensor cannot be read.
    #[error("{}: tensor {tensor:?}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the system said.
        source: io::Error,
    },
    /// Two files with a tensor of the same name.
    #[error("tensor {tensor:?} is in {} and in {}; remove the file that does not belong here", first.display(), second.display())]
    Twice {
        /// The tensor.
        tensor: String,
        /// The file it is in.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A tensor that none of the files has.
    #[error("none of the files has the tensor {tensor:?}")]
    NoTensor {
        /// The tensor.
        tensor: String,
    },
    /// Bytes beyond the end of a tensor.
    #[error("tensor {tensor:?}: {length} bytes from {offset} on exceed its {bytes} bytes")]
    Range {
        /// The tensor.
        tensor: String,
        /// The first requested byte.
        offset: u64,
        /// The number of requested bytes.
        length: usize,
        /// The size of the tensor in bytes.
        bytes: u64,
    },
}

impl Shards {
    /// Opens files and reads their headers.
    ///
    /// # Errors
    /// [`ShardsError`] with the file.
    pub fn open(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self, ShardsError> {
        let mut shards = Self { files: Vec::new(), tensors: BTreeMap::new(), metadata: BTreeMap::new() };
        for path in paths {
            let path = path.as_ref();
            let file = File::open(path).map_err(|source| ShardsError::Open { path: path.into(), source })?;
            let header = read_header(&file).map_err(|source| ShardsError::Format { path: path.into(), source })?;
            for entry in header.entries {
                match shards.tensors.entry(entry.name.clone()) {
                    Slot::Vacant(slot) => drop(slot.insert((shards.files.len(), entry))),
                    Slot::Occupied(slot) => {
                        let first =
                            shards.files.get(slot.get().0).map_or_else(|| path.into(), |(path, _)| path.clone());
                        return Err(ShardsError::Twice { tensor: entry.name, first, second: path.into() });
                    }
                }
            }
            shards.metadata.extend(header.metadata);
            shards.files.push((path.into(), file));
        }
        Ok(shards)
    }

    /// All tensors, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.tensors.values().map(|(_, entry)| entry)
    }

    /// The tensor of a name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name).map(|(_, entry)| entry)
    }

    /// The metadata of all files; where several have a key, the last one counts.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads the bytes of a tensor from its byte `offset` on, to the end of `buf`.
    ///
    /// # Errors
    /// [`ShardsError`].
    pub fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> Result<(), ShardsError> {
        let missing = || ShardsError::NoTensor { tensor: name.into() };
        let (file, entry) = self.tensors.get(name).ok_or_else(missing)?;
        let (path, file) = self.files.get(*file).ok_or_else(missing)?;
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > entry.bytes) {
            let (tensor, length, bytes) = (name.into(), buf.len(), entry.bytes);
            return Err(ShardsError::Range { tensor, offset, length, bytes });
        }
        let read = ReadAt::read_at(file, entry.offset + offset, buf);
        read.map_err(|source| ShardsError::Read { path: path.clone(), tensor: name.into(), source })
    }
}
