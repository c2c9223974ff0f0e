//! The limits of an engine, and why they are rejected.

use olmoe_model::model::Model;
use olmoe_tensor::ops::attention::CacheType;

/// The limits of an engine. Only `cache_type` affects results.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Most samples that run at once (16).
    pub max_running: usize,
    /// Most tokens in a step, at least `max_running` (512): one of each sample that is generating, the rest from
    /// prompts. With fewer, tokens are generated more evenly while prompts are read; with more, prompts are read
    /// faster.
    pub step_tokens: usize,
    /// Most samples that wait (1024).
    pub queue: usize,
    /// The total capacity in tokens of the caches of running samples (32768). A sample begins when there is room for
    /// its prompt and all tokens that it may generate. See
    /// [`Engine::cache_bytes_per_token`](crate::Engine::cache_bytes_per_token).
    pub cache_tokens: usize,
    /// The total capacity in tokens of the caches of finished samples that are kept in addition (8192); 0 keeps none.
    pub kept_tokens: usize,
    /// The type of keys and values in caches; `None` for that of the model's precision.
    pub cache_type: Option<CacheType>,
    /// Tokens that end a text, unless the request sets `ignore_eos`.
    pub ends: Vec<u32>,
    /// Determines the seeds of requests without one (0).
    pub seed: u64,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            max_running: 16,
            step_tokens: 512,
            queue: 1024,
            cache_tokens: 32768,
            kept_tokens: 8192,
            cache_type: None,
            ends: Vec::new(),
            seed: 0,
        }
    }
}

/// Checks that the results of a model do not depend on what else is in a batch.
pub(crate) fn check_batches(model: &Model) -> Result<(), EngineError> {
    // A factor of 0 means no limit.
    let factor = model.config().moe().and_then(|moe| moe.capacity_factor).filter(|factor| *factor > 0.0);
    factor.map_or(Ok(()), |factor| Err(EngineError::Capacity { factor }))
}

/// Why an engine or a scorer cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// No sample could run.
    #[error("max_running is 0; let at least one sample run")]
    NothingRuns,
    /// A step has fewer tokens than samples.
    #[error(
        "step_tokens is {step_tokens}, below max_running, {max_running}: every running sample takes a token of a step; raise it"
    )]
    StepTooSmall {
        /// `step_tokens`.
        step_tokens: usize,
        /// `max_running`.
        max_running: usize,
    },
    /// No token could be read.
    #[error("{limit} is 0; allow at least one token")]
    NoTokens {
        /// The limit.
        limit: &'static str,
    },
    /// A token outside the vocabulary.
    #[error(
        "the end-of-text id {id} is outside the model's vocabulary of {rows}; check that the tokenizer is the model's"
    )]
    EndId {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// Experts with a capacity, which drop tokens.
    #[error(
        "this model's experts have a capacity factor of {factor}: which tokens they drop depends on all tokens of a batch, so the same request would give different results; remove the factor from its configuration"
    )]
    Capacity {
        /// The factor.
        factor: f32,
    },
}
