//! Where the data of evaluation comes from.
//!
//! [`Roots`] are folders, wheels and zip files; [`Roots::rows`] finds a data set by its name in any of the layouts that it
//! is published in, [`Roots::file`] a file by its path. Nothing is downloaded: what is missing is named with where to get
//! it.

mod arrow;
mod error;
mod file;
mod roots;
mod sets;

pub use error::SourceError;
pub use file::{DataFile, FileHash, RowIter, Rows};
pub use roots::Roots;

/// A row: its columns by name.
pub type Row = serde_json::Map<String, serde_json::Value>;
