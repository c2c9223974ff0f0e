//! State dicts in the files of `torch.save`: the place of each tensor, found without executing the pickle.
//!
//! Such a file is a zip archive with one folder:
//!
//! ```text
//! data.pkl     a pickle of the state dict; tensors refer to a storage, with an offset, sizes and strides
//! data/<key>   a storage: the numbers, stored as they are
//! byteorder    "little" or "big"; older files have none and are little-endian
//! ```
//!
//! Only `data.pkl` is loaded; the numbers stay in the file. Several tensors may share a storage. The checksums of the
//! archive are not verified. After the checks, every tensor lies inside its storage, and every storage inside the file.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::pickle::{self, Id, Pickle, PickleError, PickleValue, shortened};
use crate::read_at::ReadAt;
use crate::safetensors::SafeType;
use crate::zip::{self, ZipEntry, ZipError};

/// The largest number of tensors and other values of a state dict.
pub const MAX_ENTRIES: usize = 1 << 14;
/// The deepest nesting of dicts.
pub const MAX_NESTING: usize = 32;
/// The longest name in bytes, including the dots between nested keys.
pub const MAX_NAME: usize = 1024;
/// The largest number of axes of a tensor.
pub const MAX_AXES: usize = 16;

/// The type of a storage's numbers, by the name of its class.
fn of_storage(name: &str) -> Option<SafeType> {
    Some(match name {
        "DoubleStorage" => SafeType::F64,
        "FloatStorage" => SafeType::F32,
        "HalfStorage" => SafeType::F16,
        "BFloat16Storage" => SafeType::BF16,
        "LongStorage" => SafeType::I64,
        "IntStorage" => SafeType::I32,
        "ShortStorage" => SafeType::I16,
        "CharStorage" => SafeType::I8,
        "ByteStorage" => SafeType::U8,
        "BoolStorage" => SafeType::BOOL,
        _ => return None,
    })
}

/// A tensor: little-endian, row-major, without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorchTensor {
    /// The key of the tensor; the keys of nested dicts are joined by dots.
    pub name: String,
    /// The type of its numbers.
    pub dtype: SafeType,
    /// The shape, outermost axis first.
    pub shape: Vec<usize>,
    /// The offset of its first byte in the file, which need not be a multiple of the type's size.
    pub offset: u64,
    /// The size of the tensor in bytes.
    pub bytes: u64,
}

/// A value of the state dict that is not a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The key of the value; the keys of nested dicts are joined by dots.
    pub name: String,
    /// The kind of the value, in words. Tensors inside a list or tuple are skipped with it.
    pub kind: &'static str,
}

/// A state dict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateDict {
    /// The tensors, in the order of the file.
    pub tensors: Vec<TorchTensor>,
    /// The other values, in the order of the file.
    pub skipped: Vec<Skipped>,
}

/// Why a state dict cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TorchError {
    /// An error with the path of its file.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<TorchError>,
    },
    /// The file cannot be read.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// A file in the format of torch before 1.6.
    #[error(
        "a file in the format that torch had before 1.6; save it again with a current torch: torch.save(torch.load(path, map_location=\"cpu\"), new_path)"
    )]
    Legacy,
    /// The archive is damaged or of another kind.
    #[error(transparent)]
    Zip(#[from] ZipError),
    /// An archive with no `data.pkl`, or with several.
    #[error("a zip archive with {found} entries <folder>/data.pkl, expected one; it is not a file of torch.save")]
    NoPickle {
        /// The number of `data.pkl` entries.
        found: usize,
    },
    /// A pickle that is too long.
    #[error("data.pkl has {found} bytes, more than the {limit} that are read; save plain tensors, few other values")]
    PickleTooLong {
        /// The size of the pickle.
        found: u64,
        /// [`pickle::MAX_BYTES`].
        limit: usize,
    },
    /// A file that was written on a big-endian machine.
    #[error("byte order `{found}`, expected `little`; save the file again on a little-endian machine")]
    ByteOrder {
        /// The byte order in the file.
        found: String,
    },
    /// The pickle is damaged or holds more than data.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// A file that holds something other than a dict.
    #[error("the file holds {found}, not a dict of tensors; save model.state_dict()")]
    NotADict {
        /// The saved value.
        found: &'static str,
    },
    /// A key that cannot be part of a name.
    #[error("a key in `{dict}` is {found}, expected a string or an int; save a dict whose keys are names")]
    Key {
        /// The dict; empty for the outermost.
        dict: String,
        /// The type of the key.
        found: &'static str,
    },
    /// A name longer than [`MAX_NAME`].
    #[error(
        "a name of {found} bytes that begins with `{start}`, more than the {MAX_NAME} of a name; save shorter keys"
    )]
    NameTooLong {
        /// The beginning of the name.
        start: String,
        /// The length of the name.
        found: usize,
    },
    /// Two values with the same name.
    #[error("two values are named `{name}`; rename one of them")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// More values than [`MAX_ENTRIES`].
    #[error("more than {MAX_ENTRIES} values; save fewer in one file")]
    TooMany,
    /// More nesting than [`MAX_NESTING`].
    #[error("`{name}` lies in more than {MAX_NESTING} dicts; save a flatter dict")]
    TooDeep {
        /// The name.
        name: String,
    },
    /// A dict that contains itself, or that occurs twice.
    #[error("the dict `{name}` contains itself or occurs twice in the file; save a dict whose parts are distinct")]
    Shared {
        /// The name of its second occurrence.
        name: String,
    },
    /// A tensor whose description differs from torch's.
    #[error("tensor `{name}`: expected {expected}, found {found}; the file is damaged")]
    Tensor {
        /// The tensor.
        name: String,
        /// The expected content.
        expected: &'static str,
        /// The content found.
        found: String,
    },
    /// Sizes whose product overflows.
    #[error("tensor `{name}`: the size of shape {shape:?} overflows; the file is damaged")]
    TooLarge {
        /// The tensor.
        name: String,
        /// Its sizes.
        shape: Vec<usize>,
    },
    /// A view whose numbers are not in row-major order.
    #[error(
        "tensor `{name}` is a view of shape {shape:?} with strides {strides:?}, not row-major; save tensor.contiguous() in its place"
    )]
    NotContiguous {
        /// The tensor.
        name: String,
        /// Its sizes.
        shape: Vec<usize>,
        /// Its strides.
        strides: Vec<usize>,
    },
    /// A storage that is missing.
    #[error("tensor `{name}`: the archive has no entry `{entry}`; the file is incomplete, copy or save it again")]
    NoStorage {
        /// The tensor.
        name: String,
        /// The entry of its storage.
        entry: String,
    },
    /// A storage with fewer bytes than its elements need.
    #[error(
        "tensor `{name}`: its storage should have {elements} elements of {size} bytes, but `{entry}` has {found} bytes; the file is damaged"
    )]
    StorageTooSmall {
        /// The tensor.
        name: String,
        /// The entry of its storage.
        entry: String,
        /// The number of elements in the description.
        elements: u64,
        /// The size of an element in bytes.
        size: usize,
        /// The size of the entry in bytes.
        found: u64,
    },
    /// A tensor that exceeds its storage.
    #[error(
        "tensor `{name}`: shape {shape:?} from element {first} on does not fit its storage of {elements}; the file is damaged"
    )]
    OutsideStorage {
        /// The tensor.
        name: String,
        /// Its sizes.
        shape: Vec<usize>,
        /// Its first element in the storage.
        first: u64,
        /// The number of elements of the storage.
        elements: u64,
    },
}

type Result<T> = std::result::Result<T, TorchError>;

/// Reads the state dict of a file; errors name the file.
pub fn read(path: &Path) -> Result<StateDict> {
    let dict = File::open(path).map_err(TorchError::Io).and_then(|file| read_from(&file));
    dict.map_err(|source| TorchError::InFile { path: path.into(), source: source.into() })
}

/// Reads the state dict from an open file or from memory.
pub fn read_from<R: ReadAt + ?Sized>(source: &R) -> Result<StateDict> {
    let entries = match zip::read(source) {
        Ok(entries) => entries,
        Err(_) if is_legacy(source)? => return Err(TorchError::Legacy),
        Err(error) => return Err(error.into()),
    };
    let (folder, ZipEntry { offset, bytes }) = folder(&entries)?;
    if let Some(entry) = entries.get(&format!("{folder}/byteorder")) {
        check_byte_order(source, *entry)?;
    }
    if bytes > pickle::MAX_BYTES as u64 {
        return Err(TorchError::PickleTooLong { found: bytes, limit: pickle::MAX_BYTES });
    }
    // The size fits: the pickle lies inside the file and has at most MAX_BYTES.
    let mut buffer = vec![0; bytes as usize];
    source.read_at(offset, &mut buffer)?;
    let pickle = pickle::parse(&buffer)?;
    let mut reader = StateDictReader {
        pickle: &pickle,
        entries: &entries,
        folder,
        names: HashSet::new(),
        dicts: HashSet::new(),
        found: StateDict::default(),
    };
    match pickle.value(pickle.root()) {
        PickleValue::Dict(_) => reader.dict("", pickle.root(), 1)?,
        other => return Err(TorchError::NotADict { found: other.kind() }),
    }
    Ok(reader.found)
}

/// Whether the file has a format from before the zip archive: consecutive pickles that begin with a magic number, or
/// tar.
fn is_legacy<R: ReadAt + ?Sized>(source: &R) -> io::Result<bool> {
    let begins = |offset: u64, expected: &[u8]| {
        let mut found = [0; 14];
        let found = &mut found[..expected.len()];
        if source.len()? < offset + expected.len() as u64 {
            return Ok(false);
        }
        source.read_at(offset, found)?;
        Ok::<_, io::Error>(found == expected)
    };
    // The magic number, a ten-byte integer, follows the protocol number, which the writer could choose.
    let magic = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    Ok(begins(0, b"\x80")? && (begins(2, magic)? || begins(11, magic)?) || begins(257, b"ustar")?)
}

/// The only folder of the archive with a `data.pkl`, and that entry.
fn folder(entries: &HashMap<String, ZipEntry>) -> Result<(&str, ZipEntry)> {
    let mut found = entries.iter().filter_map(|(name, entry)| {
        let folder = name.strip_suffix("/data.pkl").filter(|folder| !folder.contains('/'))?;
        Some((folder, *entry))
    });
    match (found.next(), found.count()) {
        (Some(only), 0) => Ok(only),
        (first, more) => Err(TorchError::NoPickle { found: more + usize::from(first.is_some()) }),
    }
}

fn check_byte_order<R: ReadAt + ?Sized>(source: &R, entry: ZipEntry) -> Result<()> {
    let mut order = [0; 16];
    let order = &mut order[..entry.bytes.min(16) as usize];
    source.read_at(entry.offset, order)?;
    if order != b"little" {
        return Err(TorchError::ByteOrder { found: shortened(&String::from_utf8_lossy(order)) });
    }
    Ok(())
}

struct StateDictReader<'p> {
    pickle: &'p Pickle<'p>,
    entries: &'p HashMap<String, ZipEntry>,
    folder: &'p str,
    /// The number of values so far, including dicts.
    names: HashSet<String>,
    /// The dicts entered so far. Each is entered only once, which keeps the work linear however they refer to each
    /// other.
    dicts: HashSet<Id>,
    found: StateDict,
}

impl StateDictReader<'_> {
    /// Reads the values of a dict whose keys follow `prefix`.
    fn dict(&mut self, prefix: &str, dict: Id, depth: usize) -> Result<()> {
        let pickle = self.pickle;
        let name_of_dict = || shortened(prefix.strip_suffix('.').unwrap_or(prefix));
        if depth > MAX_NESTING {
            return Err(TorchError::TooDeep { name: name_of_dict() });
        }
        if !self.dicts.insert(dict) {
            return Err(TorchError::Shared { name: name_of_dict() });
        }
        let PickleValue::Dict(pairs) = pickle.value(dict) else { return Ok(()) };
        for &(key, id) in pairs {
            let number;
            let key = match pickle.value(key) {
                PickleValue::Str(text) => text,
                PickleValue::Int(value) => {
                    number = value.to_string();
                    number.as_str()
                }
                other => return Err(TorchError::Key { dict: name_of_dict(), found: other.kind() }),
            };
            let length = prefix.len() + key.len();
            if length > MAX_NAME {
                let start = if prefix.is_empty() { key } else { prefix };
                return Err(TorchError::NameTooLong { start: shortened(start), found: length });
            }
            let name = format!("{prefix}{key}");
            if self.names.len() == MAX_ENTRIES {
                return Err(TorchError::TooMany);
            }
            if !self.names.insert(name.clone()) {
                return Err(TorchError::Duplicate { name: shortened(&name) });
            }
            match pickle.value(id) {
                PickleValue::Dict(_) => self.dict(&format!("{name}."), id, depth + 1)?,
                PickleValue::Reduce { function, arguments } if function.name != "Size" => {
                    let tensor = self.parameter(name, function.name, *arguments)?;
                    self.found.tensors.push(tensor);
                }
                other => self.found.skipped.push(Skipped { name, kind: other.kind() }),
            }
        }
        Ok(())
    }

    /// A tensor, or the tensor inside a parameter.
    fn parameter(&self, name: String, function: &str, arguments: Id) -> Result<TorchTensor> {
        const EXPECTED: &str = "a parameter made of a tensor";
        if function == "_rebuild_tensor_v2" {
            return self.tensor(name, arguments);
        }
        let data = match self.tuple(&name, arguments, EXPECTED)? {
            [data, _requires_grad, _hooks] => self.pickle.value(*data),
            other => return Err(wrong(&name, EXPECTED, format!("{} arguments", other.len()))),
        };
        match data {
            PickleValue::Reduce { function, arguments } if function.name == "_rebuild_tensor_v2" => {
                self.tensor(name, *arguments)
            }
            other => Err(wrong(&name, EXPECTED, other.kind())),
        }
    }

    fn tensor(&self, name: String, arguments: Id) -> Result<TorchTensor> {
        const EXPECTED: &str = "six or seven arguments";
        let (storage, first, shape, strides) = match self.tuple(&name, arguments, EXPECTED)? {
            // Further arguments are whether it needs a gradient, hooks, and possibly metadata.
            &[storage, first, shape, strides, _, _] | &[storage, first, shape, strides, _, _, _] => {
                (storage, first, shape, strides)
            }
            other => return Err(wrong(&name, EXPECTED, other.len().to_string())),
        };
        let (dtype, elements, entry) = self.storage(&name, storage)?;
        let first = self.count(&name, first, "a storage offset of 0 or more")?;
        let shape = self.counts(&name, shape, "a tuple of sizes of 0 or more")?;
        let strides = self.counts(&name, strides, "a tuple of strides of 0 or more")?;
        if shape.len() != strides.len() {
            return Err(wrong(&name, "one stride for each size", format!("{shape:?} and {strides:?}")));
        }
        // The stride of an axis is the product of the following extents; an extent of 0 counts as 1.
        let mut stride = 1usize;
        let mut is_contiguous = true;
        for (&extent, &found) in shape.iter().zip(&strides).rev() {
            is_contiguous &= extent == 1 || found == stride;
            let next = stride.checked_mul(extent.max(1));
            let Some(next) = next else { return Err(TorchError::TooLarge { name: shortened(&name), shape }) };
            stride = next;
        }
        let is_empty = shape.contains(&0);
        if !is_contiguous && !is_empty {
            return Err(TorchError::NotContiguous { name: shortened(&name), shape, strides });
        }
        let count = if is_empty { 0 } else { stride as u64 };
        let first = first as u64;
        if first.checked_add(count).is_none_or(|end| end > elements) {
            return Err(TorchError::OutsideStorage { name: shortened(&name), shape, first, elements });
        }
        // This cannot overflow, since the storage lies inside the file.
        let size = dtype.size() as u64;
        Ok(TorchTensor { name, dtype, shape, offset: entry.offset + first * size, bytes: count * size })
    }

    /// The type of a storage, its number of elements, and its bytes, which are enough for the elements.
    fn storage(&self, name: &str, id: Id) -> Result<(SafeType, u64, ZipEntry)> {
        const EXPECTED: &str = "a storage (\"storage\", type, key, location, elements)";
        let wrong_storage = |found: &PickleValue| wrong(name, EXPECTED, found.kind());
        let PickleValue::Persistent(id) = *self.pickle.value(id) else {
            return Err(wrong_storage(self.pickle.value(id)));
        };
        let &[tag, storage, key, _location, elements] = self.tuple(name, id, EXPECTED)? else {
            return Err(wrong_storage(self.pickle.value(id)));
        };
        if *self.pickle.value(tag) != PickleValue::Str("storage") {
            return Err(wrong_storage(self.pickle.value(tag)));
        }
        let dtype = match self.pickle.value(storage) {
            PickleValue::Global(global) => of_storage(global.name),
            _ => None,
        };
        let dtype = dtype.ok_or_else(|| wrong_storage(self.pickle.value(storage)))?;
        let PickleValue::Str(key) = self.pickle.value(key) else { return Err(wrong_storage(self.pickle.value(key))) };
        let elements = self.count(name, elements, "a storage of 0 or more elements")? as u64;
        let size = dtype.size();

        let path = || format!("{}/data/{}", shortened(self.folder), shortened(key));
        // A key longer than that of any entry names no entry, and is not copied.
        let entry = match key.len() <= usize::from(u16::MAX) {
            true => self.entries.get(&format!("{}/data/{key}", self.folder)),
            false => None,
        };
        let entry = *entry.ok_or_else(|| TorchError::NoStorage { name: shortened(name), entry: path() })?;
        if elements.checked_mul(size as u64).is_none_or(|bytes| bytes > entry.bytes) {
            let (name, entry, found) = (shortened(name), path(), entry.bytes);
            return Err(TorchError::StorageTooSmall { name, entry, elements, size, found });
        }
        Ok((dtype, elements, entry))
    }

    fn tuple(&self, name: &str, id: Id, expected: &'static str) -> Result<&[Id]> {
        match self.pickle.value(id) {
            PickleValue::Tuple(items) => Ok(items),
            other => Err(wrong(name, expected, other.kind())),
        }
    }

    fn count(&self, name: &str, id: Id, expected: &'static str) -> Result<usize> {
        match self.pickle.value(id) {
            PickleValue::Int(value) => usize::try_from(*value).map_err(|_| wrong(name, expected, value.to_string())),
            other => Err(wrong(name, expected, other.kind())),
        }
    }

    fn counts(&self, name: &str, id: Id, expected: &'static str) -> Result<Vec<usize>> {
        let items = self.tuple(name, id, expected)?;
        if items.len() > MAX_AXES {
            return Err(wrong(name, "at most 16 axes", items.len().to_string()));
        }
        items.iter().map(|&item| self.count(name, item, expected)).collect()
    }
}

fn wrong(name: &str, expected: &'static str, found: impl Into<String>) -> TorchError {
    TorchError::Tensor { name: shortened(name), expected, found: found.into() }
}
