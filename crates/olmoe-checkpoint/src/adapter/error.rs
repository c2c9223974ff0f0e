//! Why an adapter cannot be read, combined or written.

use olmoe_model::adapter::paths::PatternError;

/// Why an adapter cannot be read, combined or written. The file is named by
/// [`CheckpointError::Adapter`](crate::CheckpointError::Adapter).
#[derive(Debug, thiserror::Error)]
pub enum AdapterFileError {
    /// Another kind of file or folder.
    #[error(
        "no adapter here ({found}); expected a folder with adapter_config.json and adapter_model.safetensors (or .bin), \
         or a GGUF adapter"
    )]
    Unrecognised {
        /// What is there.
        found: String,
    },
    /// The configuration is no JSON.
    #[error("adapter_config.json: {0}; the file is damaged, copy or download it again")]
    Json(serde_json::Error),
    /// A setting of another type.
    #[error("{key} is {found}, expected {expected}")]
    Value {
        /// The setting.
        key: String,
        /// Its value.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A setting with which the adapter means something that is not computed here.
    #[error("{key} is {found}: {reason}")]
    Refused {
        /// The setting.
        key: String,
        /// Its value.
        found: String,
        /// Why it is refused, and what to do.
        reason: String,
    },
    /// A pattern that cannot be used.
    #[error("{key}: {source}")]
    Pattern {
        /// The setting.
        key: &'static str,
        /// What is wrong.
        source: PatternError,
    },
    /// A tensor that has no place in the adapter of this model, or another shape.
    #[error("tensor {tensor:?}: {problem}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Settings and tensors that contradict each other.
    #[error("adapter_config.json and the tensors disagree: {0}")]
    Disagree(String),
    /// Adapters that have no sum.
    #[error("{0}")]
    NoSum(String),
    /// An adapter that the format cannot express.
    #[error("{format} cannot express this adapter: {reason}")]
    Inexpressible {
        /// The format.
        format: &'static str,
        /// Why, and what to do.
        reason: String,
    },
}

impl AdapterFileError {
    pub(crate) fn tensor(tensor: &str, problem: impl Into<String>) -> AdapterFileError {
        AdapterFileError::Tensor { tensor: tensor.to_owned(), problem: problem.into() }
    }
}
