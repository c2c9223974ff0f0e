//! The limits of an engine, and why there is none with them.

use olmoe_tensor::ops::attention::CacheType;

/// The limits of an engine. None of them but `cache_type` changes a result.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Most samples that run at once (16).
    pub max_running: usize,
    /// Most tokens in a step, at least `max_running` (512): one of each sample that is generating, the rest from prompts.
    /// Fewer make the tokens come more evenly while prompts are read, more make prompts faster.
    pub step_tokens: usize,
    /// Most samples that wait (1024).
    pub queue: usize,
    /// Tokens that the caches of running samples have room for together (32768). A sample begins when there is room for
    /// its prompt and all that it may generate. See [`Engine::cache_bytes_per_token`](crate::Engine::cache_bytes_per_token).
    pub cache_tokens: usize,
    /// Tokens that caches of finished samples have room for together, beside those (8192); 0 keeps none.
    pub kept_tokens: usize,
    /// How keys and values are kept; none for the type of the model's precision.
    pub cache_type: Option<CacheType>,
    /// Tokens that end a text, unless the request says `ignore_eos`.
    pub ends: Vec<u32>,
    /// Makes the seeds of requests that come without one (0).
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

/// Why there is no engine.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// Nothing could run.
    #[error("max_running is 0; let at least one sample run")]
    NothingRuns,
    /// Not a token for every sample.
    #[error(
        "step_tokens is {step_tokens}, below max_running, {max_running}: every running sample takes a token of a step; raise it"
    )]
    StepTooSmall {
        /// `step_tokens`.
        step_tokens: usize,
        /// `max_running`.
        max_running: usize,
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
    /// Experts that drop tokens.
    #[error(
        "this model's experts have a capacity factor of {factor}: which tokens they drop depends on all tokens of a batch, so no text would be the same twice; take the factor out of its configuration"
    )]
    Capacity {
        /// The factor.
        factor: f32,
    },
}
