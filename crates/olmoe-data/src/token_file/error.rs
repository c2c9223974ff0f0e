//! What can be wrong with a file of tokens, one variant per cause.

use std::path::PathBuf;

use thiserror::Error;

use super::TokenType;

/// Why ids could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenFileError {
    /// A file could not be opened or read.
    #[error("cannot read the token file {}: {source}; check that the path is right and readable", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A path that is no file.
    #[error("{} is no file; give the token files themselves", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// No whole number of numbers.
    #[error(
        "{} has {bytes} bytes, which is no multiple of the {} of {dtype}; it is cut off, or of another type",
        path.display(), dtype.bytes()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// The type it was to have.
        dtype: TokenType,
    },
    /// Numbers of another type.
    #[error(
        "{} holds numbers of type {fits}, not {dtype}: {why}; set `memmap_dtype: {fits}` where the file is listed, or give \
         files of {dtype}",
        path.display()
    )]
    OtherType {
        /// The file.
        path: PathBuf,
        /// The type it was to have.
        dtype: TokenType,
        /// The type that fits.
        fits: TokenType,
        /// What tells it.
        why: String,
    },
    /// A file that `numpy.save` wrote.
    #[error("{} has a NumPy header, and token files have none; write it with `array.tofile(path)`", path.display())]
    Header {
        /// The file.
        path: PathBuf,
    },
    /// Ids beyond the end.
    #[error("{} has {tokens} tokens, so there are no {count} from {start} on; read below its end", path.display())]
    Beyond {
        /// The file.
        path: PathBuf,
        /// First id wanted.
        start: u64,
        /// Ids wanted.
        count: u64,
        /// Ids that there are.
        tokens: u64,
    },
    /// A file that became shorter.
    #[error("{} has become shorter since it was opened; restore it and begin again", path.display())]
    Shrunk {
        /// The file.
        path: PathBuf,
    },
    /// An id that the model does not have.
    #[error(
        "token {position} of {} is {number}, but ids are below {vocabulary}; it was made with another tokenizer, or its \
         numbers are of another type",
        path.display()
    )]
    Id {
        /// The file.
        path: PathBuf,
        /// Which token of the file, from 0.
        position: u64,
        /// The number there.
        number: i128,
        /// Ids are below it.
        vocabulary: u32,
    },
    /// An index that is none, or does not belong to its numbers.
    #[error("{} is no index of Megatron: {reason}; make it again from the documents", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An index or its numbers could not be written.
    #[error("cannot {action} {}: {source}; check the space and the permissions there", path.display())]
    Write {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What the format cannot hold.
    #[error("cannot write {}: {reason}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}
