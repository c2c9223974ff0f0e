//! The container: magic, version, key-value metadata, tensor descriptions, then the data of each tensor on a boundary.
//!
//! ```text
//! "GGUF"  version u32 (2 or 3)  tensors u64  entries u64
//! entry:  key string, type u32, value           string: length u64, bytes     array: type u32, length u64, values
//! tensor: name string, rank u32, extents u64 (innermost first), type u32, offset u64 (from the start of the data)
//! data:   begins at the next multiple of `general.alignment` (32), and so does each tensor
//! ```

use std::collections::HashSet;
use std::io::{self, Write};

use super::types;
use super::value::{self, Metadata, MetadataValue, ValueType};
use crate::encoding::Encoding;
use crate::read_at::ReadAt;

const MAGIC: &[u8; 4] = b"GGUF";
/// Alignment of the data when the file does not set another.
pub(crate) const ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 16;
/// Most entries of the metadata.
const MAX_ENTRIES: u64 = 1 << 16;
/// Most tensors.
const MAX_TENSORS: u64 = 1 << 20;
/// Longest key or name, in bytes.
const MAX_NAME: u64 = 1 << 10;
/// Longest text, in bytes.
const MAX_TEXT: u64 = 1 << 26;
/// Most elements of all arrays together; in memory each takes several times its bytes.
const MAX_ELEMENTS: u64 = 1 << 22;
/// Longest header, in bytes.
const MAX_HEADER: u64 = 1 << 28;
/// Bytes of the header that are read at once.
const WINDOW: usize = 1 << 16;

/// Why bytes are not a GGUF file.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The system could not read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Another kind of file.
    #[error("not a GGUF file: it begins with {found:?}, expected \"GGUF\"")]
    Magic {
        /// The first bytes.
        found: String,
    },
    /// A version without a reader.
    #[error("GGUF version {found}: only 2 and 3 are read; convert it again with a newer llama.cpp")]
    Version {
        /// The version.
        found: u32,
    },
    /// Written on a big-endian machine.
    #[error("a big-endian GGUF file: only little-endian ones are read; convert it again for this machine")]
    BigEndian,
    /// The file ends too early.
    #[error("byte {at}: the file ends ({length} bytes) inside {what}; it is truncated, so download or copy it again")]
    Truncated {
        /// Where reading began.
        at: u64,
        /// What was being read.
        what: String,
        /// Length of the file.
        length: u64,
    },
    /// A count or length above its limit.
    #[error("byte {at}: {what} is {found}, the limit is {limit}; the file is damaged")]
    Limit {
        /// Where.
        at: u64,
        /// What it counts.
        what: String,
        /// The count.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// Text that is not UTF-8.
    #[error("byte {at}: {what} is not UTF-8")]
    NotUtf8 {
        /// Where the text begins.
        at: u64,
        /// What it is.
        what: String,
    },
    /// An unknown type of a metadata value.
    #[error("byte {at}: {key}: value type {found} is none of GGUF's (0 to 12)")]
    ValueType {
        /// Where.
        at: u64,
        /// The entry.
        key: String,
        /// The type.
        found: u32,
    },
    /// A key or tensor that occurs twice.
    #[error("{what} {name:?} occurs twice")]
    Duplicate {
        /// Key or tensor.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// An invalid alignment.
    #[error("general.alignment is {found}: expected a power of two from 8 to {MAX_ALIGNMENT}")]
    Alignment {
        /// What the file says.
        found: String,
    },
    /// An invalid description of a tensor.
    #[error("tensor {name:?}: {problem}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Row-major, outermost first: the reverse of the file's order.
    pub shape: Vec<usize>,
    /// Its type's number.
    pub kind: u32,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The header of a file.
#[derive(Clone, Debug)]
pub struct GgufHeader {
    /// 2 or 3.
    pub version: u32,
    /// The entries, in the file's order.
    pub metadata: Metadata,
    /// The tensors, in the file's order.
    pub tensors: Vec<TensorInfo>,
}

/// Reads the header and checks that every tensor lies inside the file and on no other.
///
/// # Errors
/// [`GgufError`].
pub fn read(file: &(impl ReadAt + ?Sized)) -> Result<GgufHeader, GgufError> {
    let length = file.len()?;
    let mut cursor = Cursor { file, at: 0, length, window: Vec::new(), window_at: 0, elements: 0 };
    let magic = cursor.take(4, || "the magic number".to_owned())?;
    if magic != MAGIC {
        return Err(GgufError::Magic { found: String::from_utf8_lossy(&magic).into_owned() });
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 1..=3) => return Err(GgufError::BigEndian),
        found => return Err(GgufError::Version { found }),
    }
    let num_tensors = cursor.count(|| "the number of tensors".to_owned(), MAX_TENSORS)?;
    let num_entries = cursor.count(|| "the number of metadata entries".to_owned(), MAX_ENTRIES)?;
    let mut metadata = Metadata::default();
    for _ in 0..num_entries {
        let key = cursor.text("a key", MAX_NAME)?;
        // Limited to what messages show.
        let value = cursor.value(&key.escape_debug().to_string())?;
        if !metadata.insert(key.clone(), value) {
            return Err(GgufError::Duplicate { what: "key", name: key });
        }
    }
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..num_tensors {
        let tensor = cursor.tensor()?;
        if !names.insert(tensor.name.clone()) {
            return Err(GgufError::Duplicate { what: "tensor", name: tensor.name });
        }
        tensors.push(tensor);
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(MetadataValue::U32(found)) if found.is_power_of_two() && (8..=MAX_ALIGNMENT as u32).contains(found) => {
            u64::from(*found)
        }
        Some(other) => return Err(GgufError::Alignment { found: other.to_string() }),
    };
    place(&mut tensors, cursor.at, alignment, length)?;
    Ok(GgufHeader { version, metadata, tensors })
}

/// Turns offsets into places of the file, and checks them.
fn place(tensors: &mut [TensorInfo], header: u64, alignment: u64, length: u64) -> Result<(), GgufError> {
    let data = header.next_multiple_of(alignment);
    for tensor in &mut *tensors {
        let problem = |problem: String| GgufError::Tensor { name: tensor.name.clone(), problem };
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(problem(format!("offset {} is not a multiple of {alignment}", tensor.offset)));
        }
        let start = data.checked_add(tensor.offset);
        match start.and_then(|start| Some((start, start.checked_add(tensor.bytes)?))) {
            Some((start, end)) if end <= length => tensor.offset = start,
            _ => {
                let (offset, bytes) = (tensor.offset, tensor.bytes);
                return Err(problem(format!(
                    "{bytes} bytes at offset {offset} of the data reach beyond the end of the file ({length} bytes); \
                     it is truncated, get it again"
                )));
            }
        }
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().filter(|tensor| tensor.bytes > 0).collect();
    order.sort_by_key(|tensor| tensor.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            let problem = format!("it lies on tensor {:?}", pair[0].name);
            return Err(GgufError::Tensor { name: pair[1].name.clone(), problem });
        }
    }
    Ok(())
}

/// Reads the header through a small window of the file.
struct Cursor<'f, F: ?Sized> {
    file: &'f F,
    at: u64,
    length: u64,
    window: Vec<u8>,
    window_at: u64,
    /// Elements of all arrays so far.
    elements: u64,
}

impl<F: ReadAt + ?Sized> Cursor<'_, F> {
    /// The next bytes. They are checked to lie inside the file, which bounds what is allocated.
    fn take(&mut self, count: u64, what: impl Fn() -> String) -> Result<Vec<u8>, GgufError> {
        let truncated = |at, length| GgufError::Truncated { at, what: what(), length };
        if self.length.saturating_sub(self.at) < count {
            return Err(truncated(self.at, self.length));
        }
        let end = self.at + count;
        if end > MAX_HEADER {
            return Err(GgufError::Limit { at: self.at, what: "the header".to_owned(), found: end, limit: MAX_HEADER });
        }
        let count = count as usize;
        let within = |cursor: &Self| {
            let start = usize::try_from(cursor.at.checked_sub(cursor.window_at)?).ok()?;
            cursor.window.get(start..start.checked_add(count)?).map(<[u8]>::to_vec)
        };
        let bytes = match within(self) {
            Some(bytes) => bytes,
            None if count > WINDOW => {
                let mut bytes = vec![0; count];
                self.file.read_at(self.at, &mut bytes)?;
                bytes
            }
            None => {
                let size = (self.length - self.at).min(WINDOW as u64) as usize;
                self.window.resize(size, 0);
                self.window_at = self.at;
                self.file.read_at(self.at, &mut self.window)?;
                self.window[..count].to_vec()
            }
        };
        self.at += count as u64;
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let bytes = self.take(N as u64, || what.to_owned())?;
        Ok(bytes.try_into().unwrap_or([0; N]))
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.fixed(what)?))
    }

    fn count(&mut self, what: impl Fn() -> String, limit: u64) -> Result<u64, GgufError> {
        let at = self.at;
        let bytes = self.take(8, &what)?;
        let found = u64::from_le_bytes(bytes.try_into().unwrap_or([0; 8]));
        if found > limit {
            return Err(GgufError::Limit { at, what: what(), found, limit });
        }
        Ok(found)
    }

    fn text(&mut self, what: &str, limit: u64) -> Result<String, GgufError> {
        let count = self.count(|| format!("the length of {what}"), limit)?;
        let at = self.at;
        let bytes = self.take(count, || what.to_owned())?;
        String::from_utf8(bytes).map_err(|_| GgufError::NotUtf8 { at, what: what.to_owned() })
    }

    fn kind(&mut self, key: &str) -> Result<ValueType, GgufError> {
        let at = self.at;
        let found = self.u32(key)?;
        ValueType::by_number(found).ok_or_else(|| GgufError::ValueType { at, key: key.to_owned(), found })
    }

    fn value(&mut self, key: &str) -> Result<MetadataValue, GgufError> {
        match self.kind(key)? {
            ValueType::Array => {
                let kind = self.kind(key)?;
                if kind == ValueType::Array {
                    return Err(GgufError::ValueType {
                        at: self.at,
                        key: key.to_owned(),
                        found: ValueType::Array as u32,
                    });
                }
                let at = self.at;
                let count = self.count(|| format!("the length of {key}"), MAX_ELEMENTS)?;
                // Each element takes bytes of the file, so a length beyond it is found before anything is allocated.
                let least = count.saturating_mul(kind.min_bytes());
                if least > self.length.saturating_sub(self.at) {
                    return Err(GgufError::Truncated { at: self.at, what: key.to_owned(), length: self.length });
                }
                self.elements += count;
                if self.elements > MAX_ELEMENTS {
                    let what = "the number of all arrays' elements".to_owned();
                    return Err(GgufError::Limit { at, what, found: self.elements, limit: MAX_ELEMENTS });
                }
                let mut values = Vec::with_capacity(count as usize);
                for _ in 0..count {
                    values.push(self.scalar(kind, key)?);
                }
                Ok(MetadataValue::Array(kind, values))
            }
            kind => self.scalar(kind, key),
        }
    }

    fn scalar(&mut self, kind: ValueType, key: &str) -> Result<MetadataValue, GgufError> {
        Ok(match kind {
            ValueType::U8 => MetadataValue::U8(u8::from_le_bytes(self.fixed(key)?)),
            ValueType::I8 => MetadataValue::I8(i8::from_le_bytes(self.fixed(key)?)),
            ValueType::U16 => MetadataValue::U16(u16::from_le_bytes(self.fixed(key)?)),
            ValueType::I16 => MetadataValue::I16(i16::from_le_bytes(self.fixed(key)?)),
            ValueType::U32 => MetadataValue::U32(u32::from_le_bytes(self.fixed(key)?)),
            ValueType::I32 => MetadataValue::I32(i32::from_le_bytes(self.fixed(key)?)),
            ValueType::F32 => MetadataValue::F32(f32::from_le_bytes(self.fixed(key)?)),
            ValueType::Bool => MetadataValue::Bool(self.fixed::<1>(key)?[0] != 0),
            ValueType::U64 => MetadataValue::U64(u64::from_le_bytes(self.fixed(key)?)),
            ValueType::I64 => MetadataValue::I64(i64::from_le_bytes(self.fixed(key)?)),
            ValueType::F64 => MetadataValue::F64(f64::from_le_bytes(self.fixed(key)?)),
            ValueType::Text | ValueType::Array => MetadataValue::Text(self.text(key, MAX_TEXT)?),
        })
    }

    fn tensor(&mut self) -> Result<TensorInfo, GgufError> {
        let name = self.text("a tensor's name", MAX_NAME)?;
        let problem = |problem: String| GgufError::Tensor { name: name.clone(), problem };
        let shown = name.escape_debug().to_string();
        let rank = self.u32(&shown)?;
        if rank > 4 {
            return Err(problem(format!("it has {rank} dimensions, the limit is 4")));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let extent = u64::from_le_bytes(self.fixed(&shown)?);
            shape.push(usize::try_from(extent).map_err(|_| problem(format!("extent {extent} is too large")))?);
        }
        let kind = self.u32(&shown)?;
        let offset = u64::from_le_bytes(self.fixed(&shown)?);
        let unit = types::unit(kind).ok_or_else(|| problem(format!("type {kind} is unknown; is the file newer?")))?;
        let columns = shape.first().copied().unwrap_or(1) as u64;
        if !columns.is_multiple_of(unit.0) {
            let (name, len) = (types::name(kind), unit.0);
            return Err(problem(format!("rows of {columns} numbers are not a multiple of {len}, the block of {name}")));
        }
        shape.reverse();
        let numbers = shape.iter().try_fold(1u64, |product, &extent| product.checked_mul(extent as u64));
        let bytes = numbers.and_then(|numbers| (numbers / unit.0).checked_mul(unit.1));
        let bytes = bytes.ok_or_else(|| problem(format!("shape {shape:?} has too many numbers")))?;
        Ok(TensorInfo { name, shape, kind, offset, bytes })
    }
}

/// Writes a file from front to back: the header at once, then the tensors in the order they were declared.
pub struct GgufWriter<W: Write> {
    out: W,
    /// Bytes of each tensor.
    sizes: Vec<u64>,
    /// The tensor being written, and bytes of it so far.
    at: (usize, u64),
}

impl<W: Write> GgufWriter<W> {
    /// Writes the header of tensors given by name, shape (outermost first) and encoding.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn new(mut out: W, metadata: &Metadata, tensors: &[(String, Vec<usize>, Encoding)]) -> io::Result<Self> {
        let mut head = Vec::new();
        head.extend(MAGIC);
        head.extend(3u32.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata.iter() {
            value::text(&mut head, key);
            head.extend((value.kind() as u32).to_le_bytes());
            value.write(&mut head);
        }
        let mut offset = 0u64;
        let mut sizes = Vec::new();
        for (name, shape, encoding) in tensors {
            value::text(&mut head, name);
            head.extend((shape.len() as u32).to_le_bytes());
            for &extent in shape.iter().rev() {
                head.extend((extent as u64).to_le_bytes());
            }
            head.extend(types::number(*encoding).to_le_bytes());
            head.extend(offset.to_le_bytes());
            let bytes = encoding.bytes(shape.iter().product()).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{name}: the rows of {shape:?} are not whole {encoding} blocks"),
                )
            })? as u64;
            sizes.push(bytes);
            offset += bytes.next_multiple_of(ALIGNMENT);
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
        out.write_all(&head)?;
        Ok(Self { out, sizes, at: (0, 0) })
    }

    /// Appends to the current tensor; a complete tensor is padded to the alignment.
    ///
    /// # Errors
    /// Errors of the system, and more bytes than were declared.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (tensor, written) = self.at;
        let size = self.sizes.get(tensor).copied().unwrap_or(0);
        let written = written + bytes.len() as u64;
        if written > size {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more bytes than the tensors have"));
        }
        self.out.write_all(bytes)?;
        self.at = (tensor, written);
        if written == size {
            let padding = (size.next_multiple_of(ALIGNMENT) - size) as usize;
            self.out.write_all(&[0; ALIGNMENT as usize][..padding])?;
            self.at = (tensor + 1, 0);
        }
        Ok(())
    }

    /// Returns the stream.
    ///
    /// # Errors
    /// Fewer bytes than were declared.
    pub fn finish(self) -> io::Result<W> {
        // Tensors without numbers need no bytes.
        if self.at.1 != 0 || self.sizes[self.at.0..].iter().any(|size| *size > 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "fewer bytes than the tensors have"));
        }
        Ok(self.out)
    }
}
