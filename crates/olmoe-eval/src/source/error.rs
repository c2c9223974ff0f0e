//! Why data cannot be had.

use std::path::PathBuf;

use olmoe_data::instruct::InstructError;

/// Why data for evaluation cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A root that is neither a folder nor an archive.
    #[error("{} cannot be used as data for evaluation: {reason}; give a folder, a wheel or a zip file", path.display())]
    Root {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Data that no root has.
    #[error("{wanted} is not in {searched}; {get}")]
    Missing {
        /// What is missing.
        wanted: String,
        /// The roots.
        searched: String,
        /// Where to get it, and how to give it.
        get: String,
    },
    /// A file that could not be read.
    #[error("cannot read {file}: {source}; check that the file is whole")]
    Unreadable {
        /// The file, with its archive.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file in which a row cannot be read.
    #[error("{file}: {source}")]
    Rows {
        /// The file, with its archive.
        file: String,
        /// Which row, and what is wrong with it.
        source: Box<InstructError>,
    },
    /// An Arrow file that cannot be read.
    #[error("{file} cannot be read as Arrow: {reason}; copy it again, or give the rows as .jsonl or .parquet")]
    Arrow {
        /// The file, with its archive.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Content that is not as expected.
    #[error("{file}: expected {expected}, found {found}")]
    Content {
        /// The file, with its archive, and where in it.
        file: String,
        /// What was expected.
        expected: String,
        /// What is there.
        found: String,
    },
}
