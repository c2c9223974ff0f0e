//! What can go wrong when tasks are made.

use crate::source::SourceError;
use crate::task::TaskError;

/// Why there are no tasks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A name that is neither a suite nor a task nor a file.
    #[error("no suite, task or file is called {name:?}{}; `olmoe eval --list` lists all", meant(.suggestion))]
    Name {
        /// The name.
        name: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// A task that cannot be made.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// Data that cannot be had.
    #[error(transparent)]
    Source(#[from] SourceError),
}

fn meant(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map_or_else(String::new, |name| format!("; did you mean {name}?"))
}
