//! Why a description does not become a task.

use crate::source::SourceError;

/// Why there is no task.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// A text that is not a description.
    #[error("{file}: {reason}")]
    Syntax {
        /// The file.
        file: String,
        /// What is wrong, where, and what is expected.
        reason: String,
    },
    /// A setting that no task can have.
    #[error("task {task}: `{key}` is {found}, expected {expected}")]
    Setting {
        /// The task.
        task: String,
        /// The key of the setting.
        key: String,
        /// Its value.
        found: String,
        /// What it can be.
        expected: String,
    },
    /// A template or expression that is not one, or fails for a row.
    #[error("task {task}, {row}: `{key}` cannot be rendered: {reason}")]
    Template {
        /// The task.
        task: String,
        /// The row, or where the template is.
        row: String,
        /// The key of the template.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A row that is not a question.
    #[error(
        "task {task}, {row}: `{key}` gives {found}, expected {expected}; correct the row, or leave it out with `filter`"
    )]
    Row {
        /// The task.
        task: String,
        /// The row.
        row: String,
        /// The key of what gives it.
        key: String,
        /// What is there.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// Data that cannot be had.
    #[error("task {task}: {source}")]
    Source {
        /// The task.
        task: String,
        /// Why.
        source: SourceError,
    },
}
