//! What can be wrong with training data, one variant per cause.

use std::path::PathBuf;

use thiserror::Error;

use crate::token_file::{TokenFileError, TokenType};

/// Why there is no training data, or no further batch.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file of tokens.
    #[error(transparent)]
    TokenFile(#[from] TokenFileError),
    /// A number out of its range.
    #[error("`{key}` is {value}; it has to be {expected}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// Lists of which each entry belongs to one of the other.
    #[error("`{key}` has {found} entries, and there are {expected} paths; give one for each path, in the same order")]
    Entries {
        /// The setting.
        key: &'static str,
        /// Its entries.
        found: usize,
        /// Entries it should have.
        expected: usize,
    },
    /// A mask of another length than its tokens.
    #[error(
        "the label mask {} has {found} entries, and {} has {expected} tokens; a mask is one byte, 0 or 1, for each token",
        mask.display(), path.display()
    )]
    MaskLength {
        /// The mask.
        mask: PathBuf,
        /// Its entries.
        found: u64,
        /// The file of tokens.
        path: PathBuf,
        /// Its tokens.
        expected: u64,
    },
    /// Token files none of which has a whole instance.
    #[error("the {files} token files hold no whole instance of {length} tokens; take others or a shorter length")]
    Empty {
        /// Files.
        files: usize,
        /// Tokens of an instance.
        length: usize,
    },
    /// More instances than an index counts.
    #[error("there are {instances} instances, and an order holds fewer than 4294967295; use fewer files")]
    TooMany {
        /// Instances.
        instances: u128,
    },
    /// An instance that does not exist.
    #[error("instance {index} is asked for, and there are {instances}; make the order again from these token files")]
    NoSuchInstance {
        /// The instance.
        index: u32,
        /// Instances that there are.
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
    #[error("{} has {bytes} bytes, which is no multiple of the 4 of {}; it is cut off", path.display(), TokenType::U32)]
    OrderSize {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
    },
    /// The thread that reads could not be started, or ended without a word.
    #[error("the thread that reads batches {what}; begin again from the last checkpoint")]
    Thread {
        /// What happened to it.
        what: String,
    },
}

impl DataError {
    /// Whether a setting is at fault, and not a file of tokens.
    pub fn is_setting(&self) -> bool {
        matches!(self, DataError::Setting { .. } | DataError::Entries { .. } | DataError::Empty { .. })
    }
}
