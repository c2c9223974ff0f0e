//! What can be wrong with the data of fine-tuning, one variant per cause.

use std::path::PathBuf;

use thiserror::Error;

use super::conversation::Place;
use crate::{ChatTemplateError, TokenizerError};

/// Why there is no data, or no further row.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InstructError {
    /// A file could not be opened or read.
    #[error("cannot read {}: {source}; check that the path is right and the file whole", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system or a decoder said.
        source: std::io::Error,
    },
    /// A file of a kind that is not read.
    #[error("{} is of no kind that is read here; expected a name ending in {expected}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// The endings.
        expected: &'static str,
    },
    /// A file that is too long to be read as a whole.
    #[error(
        "{} holds more than {limit} bytes, and an array of JSON is read as a whole; write a row a line \
         (.jsonl)",
        path.display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Most bytes.
        limit: u64,
    },
    /// A row that is no JSON, or no row of its table.
    #[error("{place}: {message}; correct or remove the row")]
    Syntax {
        /// The row.
        place: Place,
        /// What the parser said.
        message: String,
    },
    /// A Parquet file that cannot be read.
    #[error(
        "{} cannot be read as Parquet: {message}; write it again, packed with Snappy, gzip, Zstandard or not at \
         all",
        path.display()
    )]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        message: String,
    },
    /// A row of no known format.
    #[error(
        "{place}: the columns [{columns}] are of no known format; name the format, or say which column is which; formats are: {formats}"
    )]
    Unrecognised {
        /// The row.
        place: Place,
        /// Its columns.
        columns: String,
        /// The formats and their columns.
        formats: String,
    },
    /// Rows of several formats in a file.
    #[error(
        "{place}: the row is of the format {found}, and those before it are {expected}; put them into files of their own, or name the format"
    )]
    Mixed {
        /// The row.
        place: Place,
        /// The format of the first row.
        expected: String,
        /// The format of this one.
        found: String,
    },
    /// A column that was named and is not there.
    #[error("{place}: there is no column {column:?} for {field:?}; there are [{columns}]")]
    NoColumn {
        /// The row.
        place: Place,
        /// The name of the field.
        field: String,
        /// The column it was to be in.
        column: String,
        /// Those that there are.
        columns: String,
    },
    /// A row that a purpose has no use for.
    #[error("{place}: the row is {found}, expected {expected}; use the command for such rows, or other data")]
    Purpose {
        /// The row.
        place: Place,
        /// What it is.
        found: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A field that is missing or of another type.
    #[error("{place}: the field {field} is {found}, expected {expected}")]
    Field {
        /// The row.
        place: Place,
        /// The field, with the way to it.
        field: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A conversation that the template refuses or fails on.
    #[error("{place}: {source}; correct the row, or use another template")]
    Template {
        /// The row.
        place: Place,
        /// What the template said.
        source: ChatTemplateError,
    },
    /// A text without tokens.
    #[error("{place}: {source}")]
    Tokens {
        /// The row.
        place: Place,
        /// What the tokenizer said.
        source: TokenizerError,
    },
    /// A row that is too long, where that is refused.
    #[error(
        "{place}: the row has {tokens} tokens, more than the {limit} of the longest sequence; raise the length, or truncate or drop such rows"
    )]
    Overlong {
        /// The row.
        place: Place,
        /// Its tokens.
        tokens: usize,
        /// Most tokens.
        limit: usize,
    },
    /// A setting out of its range, or one that does not go with another.
    #[error("`{key}` is {value}; it has to be {expected}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// Encoded rows on disk that cannot be read or written.
    #[error("cannot {action} {}: {message}; remove the file, and it is made again", path.display())]
    Cache {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

impl InstructError {
    pub(super) fn unreadable(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> InstructError {
        let path = path.to_owned();
        move |source| InstructError::Unreadable { path, source }
    }
}
