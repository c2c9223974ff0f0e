//! Whoever answers requests.

pub mod local;
pub mod server;

use std::sync::atomic::AtomicBool;

use olmoe_analysis::ExpertCounts;
use serde_json::Value;

use crate::answer::Answer;
use crate::encoding::Encoding;
use crate::task::Request;

/// Answers requests: the program's own model, or a server.
pub trait Backend {
    /// What determines the answers beside the request: the weights, adapters, precision, tokenizer, template. Answers
    /// are only reused if it is the same.
    fn identity(&self) -> Value;

    /// Answers all requests; `answered` gets the index of a request and its answer, in any order, as soon as it is
    /// there. Returns early, without an error, once `interrupt` is set, or when `answered` returns an error, which is
    /// returned.
    ///
    /// # Errors
    /// [`BackendError`].
    fn answer(
        &mut self,
        requests: &[(&Request, Encoding)],
        interrupt: &AtomicBool,
        answered: &mut dyn FnMut(usize, Answer) -> Result<(), BackendError>,
    ) -> Result<(), BackendError>;

    /// How often each expert was chosen for the answers since the last call: of a continuation, for every token that is
    /// read of its context and of itself, as if it were scored alone; of a generation, for every token generated. None
    /// where that is not known or was not asked for.
    fn take_expert_counts(&mut self) -> Option<ExpertCounts> {
        None
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The model refused a request, or the server did.
    #[error("request {index}: {reason}")]
    Refused {
        /// The request.
        index: usize,
        /// Why, and what to do.
        reason: String,
    },
    /// The model failed, and no single request is the reason.
    #[error("the model gave no answers: {0}")]
    Failed(String),
    /// Answers could not be written.
    #[error("answers could not be kept: {0}")]
    Kept(std::io::Error),
}
