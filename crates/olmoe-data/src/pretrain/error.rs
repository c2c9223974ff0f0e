//! What can be wrong with training data, one variant per cause.

use std::path::PathBuf;

use thiserror::Error;

use crate::token_file::{TokenFileError, TokenType};

/// Why training data, or a further batch of it, cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file of tokens.
    #[error(transparent)]
    TokenFile(#[from] TokenFileError),
    /// A setting out of its range.
    #[error("`{key}` is {value}; it has to be {expected}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// The values that it may have.
        expected: &'static str,
    },
    /// A list with another number of entries than there are paths.
    #[error("`{key}` has {found} entries, and there are {expected} paths; give one for each path, in the same order")]
    Entries {
        /// The setting.
        key: &'static str,
        /// The number of its entries.
        found: usize,
        /// The number of paths.
        expected: usize,
    },
    /// A mask with another length than its token file.
    #[error(
        "the label mask {} has {found} entries, and {} has {expected} tokens; a mask is one byte, 0 or 1, for each token",
        mask.display(), path.display()
    )]
    MaskLength {
        /// The mask.
        mask: PathBuf,
        /// The number of its entries.
        found: u64,
        /// The file of tokens.
        path: PathBuf,
        /// The number of its tokens.
        expected: u64,
    },
    /// Token files without a single whole instance.
    #[error("the {files} token files hold no whole instance of {length} tokens; use larger files or a shorter length")]
    Empty {
        /// The number of files.
        files: usize,
        /// Tokens of an instance.
        length: usize,
    },
    /// More instances than an index can count.
    #[error("there are {instances} instances, and an order holds fewer than 4294967295; use fewer files")]
    TooMany {
        /// The number of instances.
        instances: u128,
    },
    /// An instance that does not exist.
    #[error(
        "there is no instance {index}, since the token files have {instances}; make the order again from these files"
    )]
    NoSuchInstance {
        /// The instance.
        index: u32,
        /// The number of instances.
        instances: u32,
    },
    /// An order on disk could not be read or written.
    #[error("cannot {action} {}: {source}; check the path, the space and the permissions", path.display())]
    Order {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An order on disk of a wrong size.
    #[error("{} has {bytes} bytes, which is not a multiple of the 4 of {}; it is truncated", path.display(), TokenType::U32)]
    OrderSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The reading thread could not be started, or ended without an error.
    #[error("the thread that reads batches {what}; resume from the last checkpoint")]
    Thread {
        /// What happened to it.
        what: String,
    },
}

impl DataError {
    /// Whether the cause is a setting, not a token file.
    pub fn is_setting(&self) -> bool {
        matches!(self, DataError::Setting { .. } | DataError::Entries { .. } | DataError::Empty { .. })
    }
}
