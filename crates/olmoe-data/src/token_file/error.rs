//! What can be wrong with a token file, one variant per cause.

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
    #[error("{} is not a file; give the paths of token files", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file that does not hold a whole number of ids.
    #[error(
        "{} has {bytes} bytes, which is not a multiple of the {} of {dtype}; it is truncated, or of another type",
        path.display(), dtype.bytes()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// The type it was opened with.
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
        /// The type it was opened with.
        dtype: TokenType,
        /// The type that fits.
        fits: TokenType,
        /// What shows it.
        why: String,
    },
    /// A file that `numpy.save` wrote.
    #[error("{} has a NumPy header, and token files have none; write it with `array.tofile(path)`", path.display())]
    Header {
        /// The file.
        path: PathBuf,
    },
    /// A range of ids beyond the end.
    #[error("{} has {tokens} tokens, so {count} from token {start} on cannot be read; ask for tokens before its end", path.display())]
    Beyond {
        /// The file.
        path: PathBuf,
        /// The first token asked for.
        start: u64,
        /// The number of tokens asked for.
        count: u64,
        /// The number of tokens of the file.
        tokens: u64,
    },
    /// A file that became shorter.
    #[error("{} has become shorter since it was opened; restore it and begin again", path.display())]
    Shrunk {
        /// The file.
        path: PathBuf,
    },
    /// An id beyond the vocabulary of the model.
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
        /// The number found there.
        number: i128,
        /// The size of the vocabulary.
        vocabulary: u32,
    },
    /// An index that is invalid, or does not belong to its numbers.
    #[error("{} is not a valid Megatron index: {reason}; make it again from the documents", path.display())]
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
    /// Content that the format cannot hold.
    #[error("cannot write {}: {reason}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the format cannot hold.
        reason: String,
    },
}
