//! What can stop the making of token files, one variant per cause.

use std::path::PathBuf;

use thiserror::Error;

use crate::documents::Malformed;
use crate::token_file::TokenType;

/// Why documents could not be made into token files.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizeError {
    /// A path on another machine.
    #[error("{path} is not a local path; copy the files to this machine")]
    Remote {
        /// The path.
        path: String,
    },
    /// An invalid pattern.
    #[error("the pattern {pattern} of documents is invalid: {message}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        message: String,
    },
    /// No input files.
    #[error("there are no documents to read; give files, folders or patterns that match some")]
    NoInputs,
    /// A setting that must not be 0.
    #[error("`{name}` is 0; it has to be at least 1")]
    Zero {
        /// The setting.
        name: &'static str,
    },
    /// Documents that no token would separate.
    #[error("neither `eos_token_id` nor `bos_token_id` is given, so nothing would separate the documents; give one")]
    NoBoundary,
    /// An id that the tokenizer does not have.
    #[error("`{name}` is {id}, but the ids of the tokenizer go from 0 to {last}; use its end-of-text token")]
    NoSuchToken {
        /// The setting.
        name: &'static str,
        /// The id.
        id: u32,
        /// The highest id.
        last: usize,
    },
    /// Ids that do not fit into the numbers of the token files.
    #[error("the tokenizer has {size} ids, and {dtype} holds them up to {}; choose a wider dtype", dtype.max())]
    TooNarrow {
        /// The type asked for.
        dtype: TokenType,
        /// Ids of the tokenizer.
        size: usize,
    },
    /// The destination is not empty.
    #[error("{} exists and is not empty; choose another destination, or replace it with --force", path.display())]
    Exists {
        /// The destination.
        path: PathBuf,
    },
    /// A folder to be replaced that holds other files than token files.
    #[error("{} holds {found}, which is not a token file, so the folder is not replaced; move it away first", path.display())]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// A file in it that is not a token file.
        found: String,
    },
    /// A file of documents that could not be read to its end.
    #[error("cannot read {} beyond line {line}: {source}; repair the file or leave it out", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The last line that was read.
        line: u64,
        /// What the system or the decoder said.
        source: std::io::Error,
    },
    /// A file or folder that could not be created, written or renamed.
    #[error("cannot {action} {}: {source}; check the space and the permissions there", path.display())]
    Write {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A document that is too long for a token file.
    #[error(
        "the document of {} line {line} has {tokens} tokens, and a token file holds fewer than {max_size}; raise max_size",
        path.display()
    )]
    TooLong {
        /// The file of the document.
        path: PathBuf,
        /// The line of the document.
        line: u64,
        /// The number of tokens of the document.
        tokens: u64,
        /// The limit.
        max_size: u64,
    },
    /// Input files without a single document.
    #[error(
        "the inputs hold no documents{}; check the names of the fields",
        first.as_ref().map(|first| format!(": {malformed} malformed lines, one is {first}")).unwrap_or_default()
    )]
    NoDocuments {
        /// The number of malformed lines.
        malformed: u64,
        /// The first of them.
        first: Option<Malformed>,
    },
}

impl TokenizeError {
    pub(super) fn write<'a>(
        action: &'static str,
        path: &'a std::path::Path,
    ) -> impl Fn(std::io::Error) -> TokenizeError + 'a {
        move |source| TokenizeError::Write { action, path: path.to_owned(), source }
    }
}
