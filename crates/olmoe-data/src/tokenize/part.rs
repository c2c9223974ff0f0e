//! A token file and the list of its documents, while they are written.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::error::TokenizeError;

const BUFFER: usize = 1 << 20;

/// A document's row in the list.
pub(super) struct DocumentEntry<'a> {
    pub(super) id: &'a str,
    pub(super) source: &'a str,
    pub(super) line: u64,
    pub(super) tokens: u64,
}

/// `STEM.npy` and `STEM.csv.gz`.
pub(super) struct TokenFilePart {
    numbers: (PathBuf, BufWriter<File>),
    list: (PathBuf, GzEncoder<BufWriter<File>>),
    tokens: u64,
    row: Vec<u8>,
}

impl TokenFilePart {
    pub(super) fn create(folder: &Path, stem: &str) -> Result<TokenFilePart, TokenizeError> {
        let create = |ending: &str| {
            let path = folder.join(format!("{stem}{ending}"));
            let file = File::create_new(&path).map_err(TokenizeError::write("make", &path))?;
            Ok((path, BufWriter::with_capacity(BUFFER, file)))
        };
        let (path, list) = create(".csv.gz")?;
        // The list is long and repetitive, so a higher compression level gains little.
        let list = (path, GzEncoder::new(list, Compression::fast()));
        Ok(TokenFilePart { numbers: create(".npy")?, list, tokens: 0, row: Vec::new() })
    }

    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Adds a document: its row, and its ids as the numbers of the token file.
    pub(super) fn add(&mut self, entry: &DocumentEntry, numbers: &[u8]) -> Result<(), TokenizeError> {
        let (path, file) = &mut self.numbers;
        file.write_all(numbers).map_err(TokenizeError::write("write", path))?;
        let end = self.tokens + entry.tokens;
        self.row.clear();
        let row = &mut self.row;
        // Writing into memory does not fail.
        let _ = write!(row, "{},{end},", self.tokens);
        for text in [entry.id, entry.source] {
            field(row, text);
            row.push(b',');
        }
        let _ = write!(row, "{}\r\n", entry.line);
        let (path, list) = &mut self.list;
        list.write_all(row).map_err(TokenizeError::write("write", path))?;
        self.tokens = end;
        Ok(())
    }

    /// Syncs both files to disk.
    pub(super) fn finish(self) -> Result<(), TokenizeError> {
        let (path, list) = self.list;
        let list = list.finish().map_err(TokenizeError::write("write", &path))?;
        for (path, file) in [(path, list), self.numbers] {
            let synced =
                file.into_inner().map_err(std::io::IntoInnerError::into_error).and_then(|file| file.sync_all());
            synced.map_err(TokenizeError::write("write", &path))?;
        }
        Ok(())
    }
}

/// A field of a row, in quotes where necessary, as Python's `csv` writes it.
fn field(row: &mut Vec<u8>, text: &str) {
    if text.bytes().any(|byte| matches!(byte, b',' | b'"' | b'\r' | b'\n')) {
        row.push(b'"');
        for byte in text.bytes() {
            row.extend(std::iter::repeat_n(byte, 1 + usize::from(byte == b'"')));
        }
        row.push(b'"');
    } else {
        row.extend_from_slice(text.as_bytes());
    }
}
