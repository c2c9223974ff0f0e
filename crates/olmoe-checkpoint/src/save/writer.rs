//! A save, from its first byte to its final name.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::{Checkpoints, FileRecord, MANIFEST_FILE, Manifest, SaveError, folder_name, remove_tree, verify};
use crate::disk::Disk;
use crate::file_name;
use crate::safetensors::{self, SafetensorsError, Spec, file_bytes, shard_name, split};

/// The bytes that must be free beyond those of the tensors, for the small files and the file system itself.
pub const SPACE_RESERVE: u64 = 16 << 20;
const BUFFER: usize = 1 << 20;
/// How many numbers are written at once.
const PIECE: usize = 64 << 10;

/// A checkpoint being written. Dropped before [`CheckpointWriter::commit`], it is removed again.
pub struct CheckpointWriter<'a, D: Disk> {
    checkpoints: &'a Checkpoints<D>,
    step: u64,
    folder: PathBuf,
    files: Vec<FileRecord>,
    groups: BTreeMap<String, Vec<String>>,
    state: Value,
    failed: bool,
    committed: bool,
}

/// A saved checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedCheckpoint {
    /// Its step.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// The size of its files in bytes, without the manifest.
    pub bytes: u64,
    /// Where a damaged checkpoint of the same step was moved, to be shown.
    pub set_aside: Option<PathBuf>,
}

impl<'a, D: Disk> CheckpointWriter<'a, D> {
    pub(super) fn new(checkpoints: &'a Checkpoints<D>, step: u64) -> Result<Self, SaveError> {
        let folder = checkpoints.run_dir.join(format!("{}.tmp", folder_name(step)));
        checkpoints.disk.create_dir(&folder).map_err(SaveError::io("make the folder", &folder))?;
        let (files, groups, state) = (Vec::new(), BTreeMap::new(), Value::Null);
        Ok(Self { checkpoints, step, folder, files, groups, state, failed: false, committed: false })
    }

    /// Checks that this many bytes, and a reserve, can be written. [`CheckpointWriter::tensors`] checks its own bytes;
    /// checking a whole save before its first byte avoids a long write in vain.
    ///
    /// # Errors
    /// [`SaveError::NoSpace`].
    pub fn require_space(&self, bytes: u64) -> Result<(), SaveError> {
        let free = self.checkpoints.disk.free_bytes(&self.folder);
        let free = free.map_err(SaveError::io("find the free space of", &self.folder))?;
        let needed = bytes.saturating_add(SPACE_RESERVE);
        if free < needed {
            return Err(SaveError::NoSpace { path: self.folder.clone(), needed, free });
        }
        Ok(())
    }

    /// Writes a group of tensors as `group-00001-of-0000N.safetensors`, in order, each file with at most
    /// `max_shard_bytes` of numbers or one tensor. `fill` writes the numbers of the tensor with an index,
    /// little-endian, in any number of pieces; none is kept in memory.
    ///
    /// # Errors
    /// Errors of names, space, tensors and the system.
    pub fn tensors(
        &mut self,
        group: &str,
        specs: &[Spec],
        max_shard_bytes: u64,
        mut fill: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), SaveError> {
        let written = self.write_tensors(group, specs, max_shard_bytes, &mut fill);
        self.note(written)
    }

    /// As [`CheckpointWriter::tensors`], for f32 tensors; `values` are their numbers, in the same order.
    ///
    /// # Errors
    /// As [`CheckpointWriter::tensors`].
    pub fn numbers(
        &mut self,
        group: &str,
        specs: &[Spec],
        max_shard_bytes: u64,
        values: &[&[f32]],
    ) -> Result<(), SaveError> {
        let mut bytes = Vec::with_capacity(PIECE * size_of::<f32>());
        self.tensors(group, specs, max_shard_bytes, |index, out| {
            // The numbers are converted to little-endian piece by piece.
            values[index].chunks(PIECE).try_for_each(|piece| {
                bytes.clear();
                bytes.extend(piece.iter().flat_map(|x| x.to_le_bytes()));
                out.write_all(&bytes)
            })
        })
    }

    fn write_tensors(
        &mut self,
        group: &str,
        specs: &[Spec],
        max_shard_bytes: u64,
        fill: &mut dyn FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), SaveError> {
        // Other programs require this entry before they read a model.
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let invalid = |source| SaveError::Tensors { path: self.folder.join(group), source };
        if self.groups.contains_key(group) {
            return Err(SaveError::Twice { path: self.folder.clone(), name: group.into() });
        }
        // Names must be unique over all shards.
        file_bytes(specs, &metadata).map_err(invalid)?;
        let shards = split(specs, max_shard_bytes).map_err(invalid)?;
        let sizes = shards.iter().map(|shard| file_bytes(&specs[shard.clone()], &metadata));
        let needed = sizes.sum::<Result<u64, _>>().map_err(invalid)?;
        self.require_space(needed)?;

        let mut names = Vec::new();
        for (i, shard) in shards.iter().enumerate() {
            let name = shard_name(group, i + 1, shards.len());
            let path = self.folder.join(&name);
            self.file(&name, |out| {
                let invalid = |error| tensor_error(&path, error);
                let mut out = safetensors::Writer::new(out, &specs[shard.clone()], &metadata).map_err(invalid)?;
                for index in shard.clone() {
                    let expected = specs[index].bytes().map_err(invalid)?;
                    let mut tensor = TensorWriter { out: &mut out, found: 0, expected };
                    let filled = fill(index, &mut tensor);
                    let found = tensor.found;
                    if found > expected || filled.is_ok() && found < expected {
                        let tensor = specs[index].name.clone();
                        return Err(SaveError::TensorBytes { path: path.clone(), tensor, found, expected });
                    }
                    filled.map_err(SaveError::io("write", &path))?;
                }
                out.finish().map(drop).map_err(invalid)
            })?;
            names.push(name);
        }
        self.groups.insert(group.into(), names);
        Ok(())
    }

    /// Writes a small file as JSON. Maps must be ordered, so that the same state gives the same bytes.
    ///
    /// # Errors
    /// [`SaveError::Json`], and those of [`CheckpointWriter::bytes`].
    pub fn json(&mut self, name: &str, value: &impl Serialize) -> Result<(), SaveError> {
        let text = serde_json::to_string_pretty(value).map_err(|source| SaveError::Json { name: name.into(), source });
        let text = self.note(text)?;
        self.bytes(name, (text + "\n").as_bytes())
    }

    /// Writes a small file.
    ///
    /// # Errors
    /// Errors of names and the system.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), SaveError> {
        let path = self.folder.join(name);
        let written = self.file(name, |out| out.write_all(bytes).map_err(SaveError::io("write", &path)));
        self.note(written)
    }

    /// Sets the trainer state in the manifest.
    ///
    /// # Errors
    /// [`SaveError::Json`].
    pub fn state(&mut self, state: &impl Serialize) -> Result<(), SaveError> {
        let value = serde_json::to_value(state);
        let value = value.map_err(|source| SaveError::Json { name: MANIFEST_FILE.into(), source });
        self.state = self.note(value)?;
        Ok(())
    }

    /// Writes the manifest, gives the checkpoint its name, and moves `latest`.
    ///
    /// If the step has a checkpoint already: an identical one, as a resumed run writes it, is left alone; a damaged one
    /// is renamed to `step-N.damaged`; another complete one is an error.
    ///
    /// After an error the same save can be tried again, whatever the first try left behind.
    ///
    /// # Errors
    /// [`SaveError::Exists`], [`SaveError::Incomplete`], [`SaveError::Io`].
    pub fn commit(mut self) -> Result<SavedCheckpoint, SaveError> {
        if self.failed {
            return Err(SaveError::Incomplete { path: self.folder.clone() });
        }
        let files = std::mem::take(&mut self.files);
        let bytes = files.iter().map(|record| record.bytes).sum();
        let state = std::mem::take(&mut self.state);
        let manifest = Manifest::new(self.step, state, std::mem::take(&mut self.groups), files);
        let text = manifest.encode().map_err(|source| SaveError::Json { name: MANIFEST_FILE.into(), source })?;

        let (run, path) = (self.checkpoints, self.checkpoints.folder(self.step));
        let mut set_aside = None;
        let exists = std::fs::symlink_metadata(&path).is_ok();
        let same = exists
            && match verify(&path) {
                Ok(_) => {
                    let theirs = std::fs::read(path.join(MANIFEST_FILE)).map_err(SaveError::io("read", &path))?;
                    if theirs != text {
                        return Err(SaveError::Exists { path });
                    }
                    true
                }
                Err(error) if error.is_damage() => {
                    set_aside = Some(free_name(&path));
                    false
                }
                Err(error) => return Err(error),
            };
        if !same {
            let manifest_path = self.folder.join(MANIFEST_FILE);
            self.write(MANIFEST_FILE, |out| out.write_all(&text).map_err(SaveError::io("write", &manifest_path)))?;
            let synced = run.disk.sync_dir(&self.folder);
            synced.map_err(SaveError::io("sync the folder", &self.folder))?;
            if let Some(aside) = &set_aside {
                run.rename(&path, aside)?;
            }
            run.rename(&self.folder, &path)?;
            self.committed = true;
        }
        run.sync_run_dir()?;
        run.move_latest(self.step)?;
        Ok(SavedCheckpoint { step: self.step, path, bytes, set_aside })
    }

    /// Records a failure, so that a checkpoint that lacks a part is never committed, even if the caller continues.
    fn note<T>(&mut self, part: Result<T, SaveError>) -> Result<T, SaveError> {
        self.failed |= part.is_err();
        part
    }

    /// Adds a file to the checkpoint: checks its name, writes it, and records its hash.
    fn file(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut BufWriter<HashedFile<'a, D>>) -> Result<(), SaveError>,
    ) -> Result<(), SaveError> {
        if !file_name::is_plain(name) || name == MANIFEST_FILE {
            return Err(SaveError::FileName { path: self.folder.clone(), name: name.into() });
        }
        if self.files.iter().any(|record| record.name == name) {
            return Err(SaveError::Twice { path: self.folder.clone(), name: name.into() });
        }
        let record = self.write(name, fill)?;
        self.files.push(record);
        Ok(())
    }

    /// Writes and syncs a file.
    fn write(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut BufWriter<HashedFile<'a, D>>) -> Result<(), SaveError>,
    ) -> Result<FileRecord, SaveError> {
        let path = self.folder.join(name);
        let disk = &self.checkpoints.disk;
        let file = disk.create_file(&path).map_err(SaveError::io("make", &path))?;
        let file = HashedFile { disk, file, hasher: blake3::Hasher::new(), bytes: 0 };
        let mut out = BufWriter::with_capacity(BUFFER, file);
        let filled = fill(&mut out).and_then(|()| out.flush().map_err(SaveError::io("write", &path)));
        // The buffer is not dropped with its content, which would write again after an error.
        let (file, _) = out.into_parts();
        filled?;
        disk.sync_file(&file.file).map_err(SaveError::io("sync", &path))?;
        Ok(FileRecord { name: name.into(), bytes: file.bytes, blake3: file.hasher.finalize().to_string() })
    }
}

impl<D: Disk> Drop for CheckpointWriter<'_, D> {
    fn drop(&mut self) {
        if !self.committed {
            // The next save removes what cannot be removed now.
            let _ = remove_tree(&self.checkpoints.disk, &self.folder);
        }
    }
}

/// A file that is hashed while it is written.
struct HashedFile<'a, D: Disk> {
    disk: &'a D,
    file: D::File,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<D: Disk> Write for HashedFile<'_, D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write(&mut self.file, bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer of the numbers of one tensor, which accepts no more than it has.
struct TensorWriter<'a, W> {
    out: &'a mut safetensors::Writer<W>,
    found: u64,
    expected: u64,
}

impl<W: Write> Write for TensorWriter<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.found = self.found.saturating_add(bytes.len() as u64);
        if self.found > self.expected {
            return Err(io::Error::other("more bytes than the tensor has"));
        }
        match self.out.write(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(SafetensorsError::Io(error)) => Err(error),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tensor_error(path: &Path, error: SafetensorsError) -> SaveError {
    match error {
        SafetensorsError::Io(source) => SaveError::io("write", path)(source),
        source => SaveError::Tensors { path: path.into(), source },
    }
}

/// The first of `step-N.damaged`, `step-N.damaged-2` … that does not exist.
fn free_name(path: &Path) -> PathBuf {
    let mut name = path.with_extension("damaged");
    for i in 2u64.. {
        if std::fs::symlink_metadata(&name).is_err() {
            break;
        }
        name = path.with_extension(format!("damaged-{i}"));
    }
    name
}
