//! What can be wrong with fine-tuning data, one variant per cause.

use std::path::PathBuf;

use thiserror::Error;

use super::conversation::Place;
use crate::{ChatTemplateError, TokenizerError};

/// Why fine-tuning data, or a further row of it, cannot be read.
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
    /// A file of an unsupported type.
    #[error("{} is of no supported type; expected a name ending in {expected}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// The supported endings.
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
    /// A row that is not valid JSON, or does not fit the columns of its table.
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
        "{place}: the columns [{columns}] belong to no known format; name the format, or map the columns to its fields; formats are: {formats}"
    )]
    Unrecognised {
        /// The row.
        place: Place,
        /// Its columns.
        columns: String,
        /// The formats and their columns.
        formats: String,
    },
    /// A file with rows of several formats.
    #[error(
        "{place}: the row has the format {found}, and the rows before it {expected}; put each format into a file of its own, or name the format"
    )]
    Mixed {
        /// The row.
        place: Place,
        /// The format of the first row.
        expected: String,
        /// The format of this one.
        found: String,
    },
    /// A column that the settings name and the row does not have.
    #[error("{place}: there is no column {column:?} for the field {field:?}; the columns are [{columns}]")]
    NoColumn {
        /// The row.
        place: Place,
        /// The name of the field.
        field: String,
        /// The column it is mapped to.
        column: String,
        /// The columns of the row.
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
        /// The path of the field.
        field: String,
        /// The expected type.
        expected: &'static str,
        /// What was found.
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
    /// A text that cannot be tokenized.
    #[error("{place}: {source}")]
    Tokens {
        /// The row.
        place: Place,
        /// What the tokenizer said.
        source: TokenizerError,
    },
    /// A row that is too long, where such rows are refused.
    #[error(
        "{place}: the row has {tokens} tokens, more than the limit of {limit}; raise the limit, or truncate or drop such rows"
    )]
    Overlong {
        /// The row.
        place: Place,
        /// The number of tokens of the row.
        tokens: usize,
        /// The limit.
        limit: usize,
    },
    /// A setting that is out of range or contradicts another.
    #[error("`{key}` is {value}; it has to be {expected}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// The values that it may have.
        expected: String,
    },
    /// A cache of encoded rows that cannot be read or written.
    #[error("cannot {action} {}: {message}; remove the file to have it made again", path.display())]
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
