//! Files of token ids.
//!
//! | type | what it is |
//! |---|---|
//! | [`TokenFile`] | ids of either kind of file, read at any position |
//! | [`TokenType`] | how an id is stored |
//! | [`Megatron`], [`MegatronWriter`] | an indexed data set of Megatron: `.bin` and `.idx` |
//!
//! A `.npy` file of OLMo holds nothing but little-endian numbers: in spite of the name, it has no NumPy header. A
//! `.bin` file holds the same; the `.idx` file beside it gives the type of the numbers.
//!
//! Files are read at positions, not memory-mapped, so a file that shrinks during training is an error and not a crash.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

mod error;
mod kind;
mod megatron;

pub use error::TokenFileError;
pub use megatron::{Megatron, MegatronWriter};

/// The first bytes of a NumPy file.
const NUMPY_MAGIC: &[u8] = b"\x93NUMPY";
/// How many bytes at the beginning of a file are read to identify its number type and to hash it.
const HEAD_BYTES: u64 = 64 << 10;

/// How a token id is stored: as a little-endian unsigned or signed integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum TokenType {
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
}

impl TokenType {
    /// NumPy's name of each type.
    const NAMES: [(TokenType, &'static str); 8] = [
        (TokenType::U8, "uint8"),
        (TokenType::U16, "uint16"),
        (TokenType::U32, "uint32"),
        (TokenType::U64, "uint64"),
        (TokenType::I8, "int8"),
        (TokenType::I16, "int16"),
        (TokenType::I32, "int32"),
        (TokenType::I64, "int64"),
    ];

    /// The type with a NumPy name, such as `uint16`.
    pub fn from_name(name: &str) -> Option<TokenType> {
        TokenType::NAMES.iter().find(|(_, known)| *known == name).map(|(dtype, _)| *dtype)
    }

    /// NumPy's name of the type.
    pub fn name(self) -> &'static str {
        TokenType::NAMES.iter().find(|(dtype, _)| *dtype == self).map_or("", |(_, name)| name)
    }

    /// The size of a number in bytes.
    pub fn bytes(self) -> usize {
        match self {
            TokenType::U8 | TokenType::I8 => 1,
            TokenType::U16 | TokenType::I16 => 2,
            TokenType::U32 | TokenType::I32 => 4,
            TokenType::U64 | TokenType::I64 => 8,
        }
    }

    /// The largest number.
    pub fn max(self) -> u64 {
        let bits = self.bytes() as u32 * 8;
        match self {
            TokenType::U8 | TokenType::U16 | TokenType::U32 | TokenType::U64 => u64::MAX >> (64 - bits),
            _ => u64::MAX >> (65 - bits),
        }
    }

    /// Appends ids as numbers. Each must be at most [`TokenType::max`]; of larger ids only the low bits are written.
    pub fn write(self, ids: &[u32], out: &mut Vec<u8>) {
        fn each<const N: usize>(ids: &[u32], out: &mut Vec<u8>, number: impl Fn(u32) -> [u8; N]) {
            let start = out.len();
            out.resize(start + ids.len() * N, 0);
            let (numbers, _) = out[start..].as_chunks_mut::<N>();
            numbers.iter_mut().zip(ids).for_each(|(to, id)| *to = number(*id));
        }
        match self.bytes() {
            1 => each(ids, out, |id| [id as u8]),
            2 => each(ids, out, |id| (id as u16).to_le_bytes()),
            4 => each(ids, out, u32::to_le_bytes),
            _ => each(ids, out, |id| u64::from(id).to_le_bytes()),
        }
    }

    /// Reads numbers into `ids`, one for each. Numbers that cannot be ids become [`u32::MAX`], which is in no
    /// vocabulary.
    ///
    /// # Panics
    /// If `bytes` does not hold exactly as many numbers as `ids`.
    pub fn read(self, bytes: &[u8], ids: &mut [u32]) {
        assert_eq!(bytes.len(), ids.len() * self.bytes(), "bytes of the numbers");
        fn each<const N: usize>(bytes: &[u8], ids: &mut [u32], id: impl Fn([u8; N]) -> u32) {
            let (numbers, _) = bytes.as_chunks::<N>();
            ids.iter_mut().zip(numbers).for_each(|(to, number)| *to = id(*number));
        }
        fn checked(number: impl TryInto<u32>) -> u32 {
            number.try_into().unwrap_or(u32::MAX)
        }
        match self {
            TokenType::U8 => each(bytes, ids, |[byte]| byte.into()),
            TokenType::U16 => each(bytes, ids, |number| u16::from_le_bytes(number).into()),
            TokenType::U32 => each(bytes, ids, u32::from_le_bytes),
            TokenType::U64 => each(bytes, ids, |number| checked(u64::from_le_bytes(number))),
            TokenType::I8 => each(bytes, ids, |number| checked(i8::from_le_bytes(number))),
            TokenType::I16 => each(bytes, ids, |number| checked(i16::from_le_bytes(number))),
            TokenType::I32 => each(bytes, ids, |number| checked(i32::from_le_bytes(number))),
            TokenType::I64 => each(bytes, ids, |number| checked(i64::from_le_bytes(number))),
        }
    }
}

impl fmt::Display for TokenType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The ids of a file, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFile {
    path: PathBuf,
    dtype: TokenType,
    tokens: u64,
}

impl TokenFile {
    /// Opens a file. A `.bin` or `.idx` file belongs to a Megatron data set, whose index gives the type; any other file
    /// is headerless and of the given type.
    ///
    /// # Errors
    /// A file that is missing, has a fraction of a number at its end, is a real NumPy file, or has a wrong index.
    pub fn open(path: &Path, dtype: TokenType) -> Result<TokenFile, TokenFileError> {
        if is_megatron(path) {
            let megatron = Megatron::open(path)?;
            return Ok(megatron.tokens().clone());
        }
        // Read as ids, a NumPy header would be some forty wrong tokens.
        if head(path)?.starts_with(NUMPY_MAGIC) {
            return Err(TokenFileError::Header { path: path.to_owned() });
        }
        TokenFile::plain(path, dtype)
    }

    /// As [`open`](Self::open), for a file whose ids are below `vocabulary`. A file is refused if its beginning, its
    /// length or the list of documents beside it shows that its numbers are of another type.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`TokenFileError::OtherType`].
    pub fn open_for(path: &Path, dtype: TokenType, vocabulary: u32) -> Result<TokenFile, TokenFileError> {
        let opened = TokenFile::open(path, dtype);
        let bytes = match &opened {
            // A Megatron index gives the type.
            _ if is_megatron(path) => return opened,
            Ok(file) => file.byte_len(),
            Err(TokenFileError::Size { bytes, .. }) => *bytes,
            _ => return opened,
        };
        match kind::other_type(path, bytes, &head(path)?, dtype, vocabulary) {
            Some((fits, why)) => Err(TokenFileError::OtherType { path: path.to_owned(), dtype, fits, why }),
            None => opened,
        }
    }

    /// Opens a headerless file.
    fn plain(path: &Path, dtype: TokenType) -> Result<TokenFile, TokenFileError> {
        let unreadable = |source| TokenFileError::Unreadable { path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(TokenFileError::NotAFile { path: path.to_owned() });
        }
        let (bytes, each) = (metadata.len(), dtype.bytes() as u64);
        if !bytes.is_multiple_of(each) {
            return Err(TokenFileError::Size { path: path.to_owned(), bytes, dtype });
        }
        Ok(TokenFile { path: path.to_owned(), dtype, tokens: bytes / each })
    }

    /// The file that holds the numbers.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The type of its numbers.
    pub fn dtype(&self) -> TokenType {
        self.dtype
    }

    /// The number of its ids.
    pub fn len(&self) -> u64 {
        self.tokens
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// The number of bytes of its ids.
    pub fn byte_len(&self) -> u64 {
        self.tokens * self.dtype.bytes() as u64
    }

    /// The SHA-256 of the file's beginning, in hexadecimal digits. It tells files apart without reading them whole.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn head_hash(&self) -> Result<String, TokenFileError> {
        Ok(Sha256::digest(head(&self.path)?).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Reads `ids.len()` ids from `start` on; each has to be below `vocabulary`. `bytes` is a scratch buffer.
    ///
    /// # Errors
    /// Ids beyond the end, a file that cannot be read, or an id that is not below `vocabulary`.
    pub fn read(
        &self,
        start: u64,
        ids: &mut [u32],
        vocabulary: u32,
        bytes: &mut Vec<u8>,
    ) -> Result<(), TokenFileError> {
        let end = start.checked_add(ids.len() as u64);
        if end.is_none_or(|end| end > self.tokens) {
            let (path, count) = (self.path.clone(), ids.len() as u64);
            return Err(TokenFileError::Beyond { path, start, count, tokens: self.tokens });
        }
        let unreadable = |source| TokenFileError::Unreadable { path: self.path.clone(), source };
        bytes.resize(ids.len() * self.dtype.bytes(), 0);
        let file = File::open(&self.path).map_err(unreadable)?;
        read_at(&file, start * self.dtype.bytes() as u64, bytes).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => TokenFileError::Shrunk { path: self.path.clone() },
            _ => unreadable(source),
        })?;
        self.dtype.read(bytes, ids);
        match ids.iter().position(|id| *id >= vocabulary) {
            None => Ok(()),
            Some(at) => {
                let position = start + at as u64;
                let each = self.dtype.bytes();
                let number = number(self.dtype, &bytes[at * each..(at + 1) * each]);
                Err(TokenFileError::Id { path: self.path.clone(), position, number, vocabulary })
            }
        }
    }
}

/// Whether a path is that of a Megatron data set.
fn is_megatron(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "bin" || end == "idx")
}

/// The beginning of a file, at most [`HEAD_BYTES`].
fn head(path: &Path) -> Result<Vec<u8>, TokenFileError> {
    let unreadable = |source| TokenFileError::Unreadable { path: path.to_owned(), source };
    // Opening a pipe would block until its other end is opened.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(TokenFileError::NotAFile { path: path.to_owned() });
    }
    let mut head = Vec::new();
    File::open(path).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head)).map_err(unreadable)?;
    Ok(head)
}

/// A number at its full width, for a message.
fn number(dtype: TokenType, bytes: &[u8]) -> i128 {
    let negative = matches!(dtype, TokenType::I8 | TokenType::I16 | TokenType::I32 | TokenType::I64)
        && bytes.last().is_some_and(|byte| *byte >= 128);
    bytes.iter().rev().fold(if negative { -1 } else { 0 }, |number, byte| number << 8 | i128::from(*byte))
}

/// Fills `bytes` from a position of a file.
pub(crate) fn read_at(file: &File, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset);
    #[cfg(not(unix))]
    {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(bytes)
    }
}
