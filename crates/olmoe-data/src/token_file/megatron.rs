//! Megatron's indexed data set: `NAME.bin` holds the numbers; `NAME.idx` gives their type, where sequences begin, and
//! which of them make up a document.
//!
//! The index, little-endian throughout: `MMIDIDX` and two zeros; version 1 (u64); the type (u8: 1 uint8, 2 int8, 3 int16,
//! 4 int32, 5 int64, 6 float64, 7 float32, 8 uint16); S sequences (u64); D document bounds (u64); lengths of the
//! sequences (S × i32); their first bytes (S × i64); the bounds (D × i64), the first 0 and the last S; and, in data of
//! (S × i64); the bounds (D × i64), the first 0 and the last S; and, in multimodal data, a mode for each sequence (S ×
//! i8).

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{TokenFile, TokenFileError, TokenType};

const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
const VERSION: u64 = 1;
/// Magic, version, type and the two counts.
const HEADER: usize = 34;
/// The largest index: some 800 million sequences.
const MAX_INDEX_BYTES: u64 = 1 << 34;
const BUFFER: usize = 1 << 20;

/// The types and their codes.
const CODES: [(u8, TokenType); 6] = [
    (1, TokenType::U8),
    (2, TokenType::I8),
    (3, TokenType::I16),
    (4, TokenType::I32),
    (5, TokenType::I64),
    (8, TokenType::U16),
];

/// A Megatron data set, open for reading.
#[derive(Clone, Debug)]
pub struct Megatron {
    tokens: TokenFile,
    /// The first token and the length of each sequence.
    sequences: Vec<(u64, u32)>,
    documents: Vec<u64>,
    modes: Option<Vec<i8>>,
}

/// `NAME.bin` and `NAME.idx` for a path that is either of them, or NAME.
fn pair(path: &Path) -> (PathBuf, PathBuf) {
    let mut name = path.as_os_str().to_owned();
    if path.extension().is_some_and(|end| end == "bin" || end == "idx") {
        name = path.with_extension("").into_os_string();
    }
    let with = |ending: &str| {
        let mut name = name.clone();
        name.push(ending);
        PathBuf::from(name)
    };
    (with(".bin"), with(".idx"))
}

impl Megatron {
    /// Opens a data set; `path` is that of either file, or of both without the ending.
    ///
    /// # Errors
    /// Files that are missing, or an invalid index.
    pub fn open(path: &Path) -> Result<Megatron, TokenFileError> {
        let (numbers, index) = pair(path);
        let unreadable = |source| TokenFileError::Unreadable { path: index.clone(), source };
        let wrong = |reason: String| TokenFileError::Index { path: index.clone(), reason };
        let size = fs::metadata(&index).map_err(unreadable)?.len();
        if size > MAX_INDEX_BYTES {
            return Err(wrong(format!("it has {size} bytes, and at most {MAX_INDEX_BYTES} are read")));
        }
        let bytes = fs::read(&index).map_err(unreadable)?;
        let header = Header::read(&bytes).map_err(wrong)?;
        let tokens = TokenFile::plain(&numbers, header.dtype)?;
        header.check(&bytes, tokens.byte_len()).map_err(wrong)?;
        let Header { dtype, sequences, bounds } = header;
        let (lengths, rest) = bytes[HEADER..].split_at(sequences * 4);
        let (starts, rest) = rest.split_at(sequences * 8);
        let (documents, modes) = rest.split_at(bounds * 8);
        let each = dtype.bytes() as u64;
        let sequences = lengths.as_chunks().0.iter().zip(starts.as_chunks().0).map(|(length, start)| {
            let (length, start) = (i32::from_le_bytes(*length), i64::from_le_bytes(*start));
            (start as u64 / each, length as u32)
        });
        let documents = documents.as_chunks().0.iter().map(|bound| i64::from_le_bytes(*bound) as u64);
        let modes = (!modes.is_empty()).then(|| modes.iter().map(|mode| *mode as i8).collect());
        Ok(Megatron { sequences: sequences.collect(), documents: documents.collect(), modes, tokens })
    }

    /// All ids, one after the other, without regard to sequences.
    pub fn tokens(&self) -> &TokenFile {
        &self.tokens
    }

    /// The number of sequences.
    pub fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// The number of documents.
    pub fn num_documents(&self) -> usize {
        self.documents.len().saturating_sub(1)
    }

    /// The sequences that a document is made of.
    pub fn document(&self, document: usize) -> Option<Range<usize>> {
        let (start, end) = (self.documents.get(document)?, self.documents.get(document.checked_add(1)?)?);
        Some(*start as usize..*end as usize)
    }

    /// The length of a sequence.
    pub fn length(&self, sequence: usize) -> Option<usize> {
        self.sequences.get(sequence).map(|(_, length)| *length as usize)
    }

    /// The mode of a sequence, in multimodal data.
    pub fn mode(&self, sequence: usize) -> Option<i8> {
        self.modes.as_ref()?.get(sequence).copied()
    }

    /// The ids of a sequence, each below `vocabulary`; None if there is no such sequence.
    ///
    /// # Errors
    /// As [`TokenFile::read`].
    pub fn sequence(&self, sequence: usize, vocabulary: u32) -> Result<Option<Vec<u32>>, TokenFileError> {
        let Some((start, length)) = self.sequences.get(sequence) else { return Ok(None) };
        let mut ids = vec![0; *length as usize];
        self.tokens.read(*start, &mut ids, vocabulary, &mut Vec::new())?;
        Ok(Some(ids))
    }
}

/// The fixed part of an index.
struct Header {
    dtype: TokenType,
    sequences: usize,
    bounds: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Header, String> {
        let Some((head, rest)) = bytes.split_at_checked(HEADER) else {
            return Err(format!("it has {} bytes, and its header alone has {HEADER}", bytes.len()));
        };
        if !head.starts_with(MAGIC) {
            return Err(format!("it begins with {:?}, not with {MAGIC:?}", &head[..MAGIC.len()]));
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        if word(9) != VERSION {
            return Err(format!("its version is {}, not {VERSION}", word(9)));
        }
        let code = head[17];
        let Some((_, dtype)) = CODES.iter().find(|(known, _)| *known == code) else {
            return Err(format!("its type has the code {code}, and whole numbers have 1 to 5 and 8"));
        };
        let (sequences, bounds) = (word(18), word(26));
        let modes = |wide: u128| wide + u128::from(sequences);
        let needed = u128::from(sequences) * 12 + u128::from(bounds) * 8;
        let found = rest.len() as u128;
        if found != needed && found != modes(needed) {
            let expected = needed + HEADER as u128;
            return Err(format!(
                "it has {} bytes, and {sequences} sequences with {bounds} document bounds take {expected}",
                bytes.len()
            ));
        }
        // Both counts are below the file's size in bytes.
        Ok(Header { dtype: *dtype, sequences: sequences as usize, bounds: bounds as usize })
    }

    /// Checks the tables, whose size [`Header::read`] has checked, against the size of the numbers.
    fn check(&self, bytes: &[u8], number_bytes: u64) -> Result<(), String> {
        let (lengths, rest) = bytes[HEADER..].split_at(self.sequences * 4);
        let (starts, rest) = rest.split_at(self.sequences * 8);
        let each = self.dtype.bytes() as i64;
        for (i, (length, start)) in lengths.as_chunks().0.iter().zip(starts.as_chunks().0).enumerate() {
            let (length, start) = (i32::from_le_bytes(*length), i64::from_le_bytes(*start));
            let end = i64::from(length).checked_mul(each).and_then(|bytes| bytes.checked_add(start));
            let inside = end.is_some_and(|end| end as u64 <= number_bytes);
            if length < 0 || start < 0 || start % each != 0 || !inside {
                return Err(format!(
                    "sequence {i} has {length} numbers of {each} bytes from byte {start} on, and there are {number_bytes} bytes"
                ));
            }
        }
        let mut last = 0;
        for (i, bound) in rest[..self.bounds * 8].as_chunks().0.iter().enumerate() {
            let bound = i64::from_le_bytes(*bound);
            if bound < last || i == 0 && bound != 0 {
                return Err(format!("document bound {i} is {bound}; they begin with 0 and never fall"));
            }
            last = bound;
        }
        if last as u64 != self.sequences as u64 {
            return Err(format!("the documents end with sequence {last}, and there are {}", self.sequences));
        }
        Ok(())
    }
}

/// A Megatron data set being written. Both files get their names in [`MegatronWriter::finish`], the index last.
pub struct MegatronWriter {
    dtype: TokenType,
    code: u8,
    numbers: (PathBuf, BufWriter<File>),
    index: PathBuf,
    lengths: Vec<i32>,
    documents: Vec<i64>,
    bytes: Vec<u8>,
}

impl MegatronWriter {
    /// The type that Megatron uses for a vocabulary of this size.
    pub fn dtype_for(vocabulary: usize) -> TokenType {
        if vocabulary < 65_500 { TokenType::U16 } else { TokenType::I32 }
    }

    /// Begins `path` with the endings `.bin` and `.idx`.
    ///
    /// # Errors
    /// A type that the format does not have, or errors of the system.
    pub fn create(path: &Path, dtype: TokenType) -> Result<MegatronWriter, TokenFileError> {
        let (numbers, index) = pair(path);
        let Some((code, _)) = CODES.iter().find(|(_, known)| *known == dtype) else {
            let reason = format!("the format does not have {dtype}; use uint16 or int32");
            return Err(TokenFileError::Unwritable { path: index, reason });
        };
        let temporary = temporary(&numbers);
        let file = File::create(&temporary).map_err(write_error("make", &temporary))?;
        Ok(MegatronWriter {
            dtype,
            code: *code,
            numbers: (numbers, BufWriter::with_capacity(BUFFER, file)),
            index,
            lengths: Vec::new(),
            documents: vec![0],
            bytes: Vec::new(),
        })
    }

    /// Adds a sequence to the present document.
    ///
    /// # Errors
    /// An id that the type does not hold, a sequence of 2^31 ids or more, or errors of the system.
    pub fn sequence(&mut self, ids: &[u32]) -> Result<(), TokenFileError> {
        let path = &self.numbers.0;
        let unwritable = |reason| TokenFileError::Unwritable { path: path.clone(), reason };
        let length = i32::try_from(ids.len()).map_err(|_| unwritable("a sequence has 2^31 tokens or more".into()))?;
        if let Some(id) = ids.iter().find(|id| u64::from(**id) > self.dtype.max()) {
            return Err(unwritable(format!("{} does not hold the id {id}; use a wider type", self.dtype)));
        }
        self.bytes.clear();
        self.dtype.write(ids, &mut self.bytes);
        self.numbers.1.write_all(&self.bytes).map_err(write_error("write", path))?;
        self.lengths.push(length);
        Ok(())
    }

    /// Ends the document: the sequences since the last end are its own.
    pub fn end_document(&mut self) {
        self.documents.push(self.lengths.len() as i64);
    }

    /// Writes the index, syncs both files to disk and gives them their names. Sequences after the last end of a
    /// document form a document, too.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn finish(mut self) -> Result<(), TokenFileError> {
        if self.documents.last() != Some(&(self.lengths.len() as i64)) {
            self.end_document();
        }
        let index = temporary(&self.index);
        let file = File::create(&index).map_err(write_error("make", &index))?;
        let mut out = BufWriter::with_capacity(BUFFER, file);
        self.write_index(&mut out).map_err(write_error("write", &index))?;
        for (path, file) in [(temporary(&self.numbers.0), self.numbers.1), (index, out)] {
            let synced =
                file.into_inner().map_err(std::io::IntoInnerError::into_error).and_then(|file| file.sync_all());
            synced.map_err(write_error("write", &path))?;
        }
        // An old index must never stand beside new numbers, so it is removed first.
        match fs::remove_file(&self.index) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(write_error("replace", &self.index)(error));
            }
            _ => {}
        }
        for path in [&self.numbers.0, &self.index] {
            fs::rename(temporary(path), path).map_err(write_error("name", path))?;
        }
        Ok(())
    }

    fn write_index(&self, out: &mut impl Write) -> std::io::Result<()> {
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&[self.code])?;
        out.write_all(&(self.lengths.len() as u64).to_le_bytes())?;
        out.write_all(&(self.documents.len() as u64).to_le_bytes())?;
        self.lengths.iter().try_for_each(|length| out.write_all(&length.to_le_bytes()))?;
        let mut start = 0i64;
        for length in &self.lengths {
            out.write_all(&start.to_le_bytes())?;
            start += i64::from(*length) * self.dtype.bytes() as i64;
        }
        self.documents.iter().try_for_each(|bound| out.write_all(&bound.to_le_bytes()))
    }
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

fn write_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> TokenFileError + 'a {
    move |source| TokenFileError::Write { action, path: path.to_owned(), source }
}
