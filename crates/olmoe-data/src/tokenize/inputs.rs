//! Finding the files that hold the documents.

use std::path::{Component, Path, PathBuf};

use super::error::TokenizeError;
use crate::expanded;

/// Files found by patterns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// The files in the order of the patterns, those of one pattern by name. A file that two patterns match occurs
    /// twice.
    pub files: Vec<PathBuf>,
    /// Their total size in bytes.
    pub bytes: u64,
    /// Patterns that match nothing.
    pub unmatched: Vec<String>,
}

/// The files of paths ([`expanded`]), folders and patterns with `*`, `?`, `[…]` and `**`. A folder stands for the files
/// directly in it, without hidden ones.
///
/// # Errors
/// An invalid pattern, a path on another machine, or a file whose size cannot be read.
pub fn find(patterns: &[String]) -> Result<Inputs, TokenizeError> {
    let mut inputs = Inputs::default();
    for pattern in patterns {
        if pattern.contains("://") {
            return Err(TokenizeError::Remote { path: pattern.clone() });
        }
        let before = inputs.files.len();
        let pattern = &expanded(Path::new(pattern)).to_string_lossy().into_owned();
        let path = Path::new(pattern);
        // A file, a pipe or standard input.
        if path.exists() && !path.is_dir() {
            inputs.add(path)?;
        } else {
            let wrong = |message: String| TokenizeError::Pattern { pattern: pattern.clone(), message };
            let pattern = match path.is_dir() {
                true => format!("{}/*", glob::Pattern::escape(pattern)),
                false => pattern.clone(),
            };
            let rules = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
            let matches = glob::glob_with(&pattern, rules).map_err(|error| wrong(error.to_string()))?;
            let mut found = matches.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(error.to_string()))?;
            found.retain(|path| path.is_file());
            found.sort();
            found.iter().try_for_each(|path| inputs.add(path))?;
        }
        if inputs.files.len() == before {
            inputs.unmatched.push(pattern.clone());
        }
    }
    Ok(inputs)
}

impl Inputs {
    fn add(&mut self, path: &Path) -> Result<(), TokenizeError> {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden {
            let unreadable = |source| TokenizeError::Unreadable { path: path.to_owned(), line: 0, source };
            self.bytes += path.metadata().map_err(unreadable)?.len();
            self.files.push(path.components().filter(|part| *part != Component::CurDir).collect());
        }
        Ok(())
    }
}
