//! Files of data, and their rows.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use olmoe_data::instruct;
use serde_json::Value;
use tempfile::TempDir;

use super::Row;
use super::arrow::arrow_rows;
use super::error::SourceError;

/// The rows of a file as they are read.
pub type RowIter = Box<dyn Iterator<Item = Result<Row, SourceError>>>;

/// A file with what it holds.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FileHash {
    /// The path inside of its root.
    pub file: String,
    /// The blake3 hash of its bytes, in hexadecimal digits.
    pub blake3: String,
}

/// The rows of a data set's split.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// The rows in their order.
    pub rows: Vec<Row>,
    /// The files that they were read from.
    pub files: Vec<FileHash>,
}

/// A file of a root; one of an archive is unpacked to a temporary folder as long as this lives.
#[derive(Debug)]
pub struct DataFile {
    name: String,
    shown: String,
    path: PathBuf,
    /// The folder of an unpacked file goes with its last reader.
    _unpacked: Option<TempDir>,
}

impl DataFile {
    /// A file by its path, outside of any root.
    pub fn at(path: &Path) -> DataFile {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        DataFile::in_folder(name, path.to_owned())
    }

    /// A file of a folder, with its path inside of the root.
    pub(super) fn in_folder(name: String, path: PathBuf) -> DataFile {
        DataFile { name, shown: path.display().to_string(), path, _unpacked: None }
    }

    /// A file that was unpacked.
    pub(super) fn unpacked(name: String, archive: &Path, path: PathBuf, folder: TempDir) -> DataFile {
        let shown = format!("{} in {}", name, archive.display());
        DataFile { name, shown, path, _unpacked: Some(folder) }
    }

    /// The path inside of its root.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What messages call it.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Where it can be read, as long as this value lives.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn unreadable(&self, source: io::Error) -> SourceError {
        SourceError::Unreadable { file: self.shown.clone(), source }
    }

    /// The file with the hash of its bytes.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn hash(&self) -> Result<FileHash, SourceError> {
        let mut hasher = blake3::Hasher::new();
        let file = File::open(&self.path).map_err(|source| self.unreadable(source))?;
        hasher.update_reader(file).map_err(|source| self.unreadable(source))?;
        Ok(FileHash { file: self.name.clone(), blake3: hasher.finalize().to_hex().to_string() })
    }

    /// The content as text.
    ///
    /// # Errors
    /// If the file cannot be read or is not UTF-8.
    pub fn text(&self) -> Result<String, SourceError> {
        std::fs::read_to_string(&self.path).map_err(|source| self.unreadable(source))
    }

    /// The rows; the ending of the name tells the format: JSON, JSON lines and CSV, plain or packed with gzip or zstd,
    /// Parquet, and Arrow as a stream or a file.
    ///
    /// # Errors
    /// If the file cannot be opened or is of an unsupported type; further errors come with the rows.
    pub fn rows(self) -> Result<RowIter, SourceError> {
        if self.name.ends_with(".arrow") {
            let file = File::open(&self.path).map_err(|source| self.unreadable(source))?;
            return Ok(Box::new(arrow_rows(&self.shown, BufReader::new(file))?));
        }
        let wrong = |file: &str, source| SourceError::Rows { file: file.to_owned(), source: Box::new(source) };
        let rows = instruct::Rows::open(&self.path).map_err(|source| wrong(&self.shown, source))?;
        Ok(Box::new(rows.map(move |row| {
            // The closure keeps the unpacked file.
            let file = &self;
            let (_, row) = row.map_err(|source| wrong(&file.shown, source))?;
            match Value::from(row) {
                Value::Object(row) => Ok(row),
                other => Err(SourceError::Content {
                    file: file.shown.clone(),
                    expected: "rows that are objects".into(),
                    found: other.to_string(),
                }),
            }
        })))
    }

    /// All rows, with the hash of the file.
    ///
    /// # Errors
    /// As [`DataFile::rows`], and those of the rows.
    pub fn read(self) -> Result<Rows, SourceError> {
        let files = vec![self.hash()?];
        Ok(Rows { rows: self.rows()?.collect::<Result<_, _>>()?, files })
    }
}
