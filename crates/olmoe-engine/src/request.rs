//! The requests of an engine, and why they are refused.

use olmoe_model::config::ModelConfig;

use crate::config::EngineConfig;
use crate::sampling::{Sampling, SamplingError};

/// Most stop strings of a request.
pub const MAX_STOPS: usize = 64;
/// Most bytes of a stop string.
pub const MAX_STOP_BYTES: usize = 4096;

/// The identifier of a request in its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A prompt, and how to generate from it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids, which are used unchanged; at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; `None`, and any larger number, means as many as the context of the model has room for.
    pub max_tokens: Option<usize>,
    /// Before so many tokens neither a stop token nor a stop string ends a sample, and stop tokens are not chosen.
    pub min_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed of the draws. Without one it is made of the engine's seed and the number of the request.
    pub seed: Option<u64>,
    /// Samples to generate from the prompt, each with independent draws.
    pub samples: usize,
    /// Texts that end a sample, also across the boundaries of tokens; they are not part of its text. The one that ends
    /// first counts; of two that end at the same place, the longer one.
    pub stop: Vec<String>,
    /// Tokens that end a sample, in addition to those of the engine.
    pub stop_ids: Vec<u32>,
    /// Whether the tokens of [`EngineConfig::ends`] do not end a sample.
    pub ignore_eos: bool,
    /// `Some(n)`: return the log-probability of each token, and those of the `n` most likely alternatives. They are
    /// those of the distribution of the model, before bias, penalties, filters and temperature.
    pub logprobs: Option<usize>,
    /// Whether to return the experts of each token: those that each mixture-of-experts layer chose in the pass from
    /// which the token was drawn, which read the token before it.
    pub experts: bool,
    /// Whether the text includes the texts of special tokens.
    pub special: bool,
}

impl Request {
    /// A request for one sample from the distribution of the model, until an end-of-text token or the end of the
    /// context.
    pub fn new(prompt: Vec<u32>) -> Request {
        Request {
            prompt,
            max_tokens: None,
            min_tokens: 0,
            sampling: Sampling::default(),
            seed: None,
            samples: 1,
            stop: Vec::new(),
            stop_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            experts: false,
            special: false,
        }
    }

    /// Checks that the model can run the request; returns the most tokens that a sample may generate.
    pub(crate) fn check(
        &self,
        model: &ModelConfig,
        engine: &EngineConfig,
        has_text: bool,
    ) -> Result<usize, SubmitError> {
        let (context, rows) = (model.max_sequence_length, model.embedding_size);
        if self.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if self.prompt.len() >= context {
            return Err(SubmitError::PromptTooLong { tokens: self.prompt.len(), context });
        }
        let outside = |ids: &[u32]| ids.iter().position(|id| *id as usize >= rows);
        if let Some(at) = outside(&self.prompt) {
            return Err(SubmitError::PromptId { at, id: self.prompt[at], rows });
        }
        if let Some(at) = outside(&self.stop_ids) {
            return Err(SubmitError::StopId { id: self.stop_ids[at], rows });
        }
        let room = context - self.prompt.len();
        let tokens = match self.max_tokens {
            Some(0) => return Err(SubmitError::NoTokens),
            Some(tokens) => tokens.min(room),
            None => room,
        };
        if self.max_tokens.is_some_and(|most| self.min_tokens > most) {
            return Err(SubmitError::MinAboveMax { min: self.min_tokens, max: tokens });
        }
        if self.samples == 0 {
            return Err(SubmitError::NoSamples);
        }
        self.sampling.check(rows)?;
        if self.stop.len() > MAX_STOPS {
            return Err(SubmitError::TooManyStops { found: self.stop.len() });
        }
        if let Some(stop) = self.stop.iter().find(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            return Err(SubmitError::StopLength { bytes: stop.len() });
        }
        if !self.stop.is_empty() && !has_text {
            return Err(SubmitError::NoText);
        }
        if self.experts && model.moe().is_none() {
            return Err(SubmitError::NoExperts);
        }
        let needed = self.prompt.len() + tokens;
        if needed > engine.cache_tokens {
            return Err(SubmitError::CacheTooSmall { needed, room: engine.cache_tokens });
        }
        Ok(tokens)
    }
}

/// Why a request is refused. The engine is then unchanged.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// No prompt.
    #[error("the prompt has no tokens; give at least one, such as the token that begins or ends a text")]
    EmptyPrompt,
    /// No room for the prompt and a token.
    #[error(
        "the prompt has {tokens} tokens, but the model's context is {context} for the prompt and the text after it; shorten the prompt to at most {}",
        context - 1
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// `max_sequence_length`.
        context: usize,
    },
    /// An id outside the vocabulary.
    #[error(
        "prompt token {at}: id {id} is outside the model's vocabulary of {rows}; check that the tokenizer is the model's"
    )]
    PromptId {
        /// Place in the prompt.
        at: usize,
        /// The id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A stop id outside the vocabulary.
    #[error("stop id {id} is outside the model's vocabulary of {rows}; it would never be generated, so leave it out")]
    StopId {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// Nothing to generate.
    #[error("max_tokens is 0; ask for at least one token")]
    NoTokens,
    /// More tokens required than allowed.
    #[error("min_tokens is {min}, above max_tokens, {max}; lower min_tokens or raise max_tokens")]
    MinAboveMax {
        /// `min_tokens`.
        min: usize,
        /// `max_tokens`.
        max: usize,
    },
    /// No sample.
    #[error("samples is 0; ask for at least one")]
    NoSamples,
    /// A setting of the sampling.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Too many stop strings.
    #[error("{found} stop strings, expected at most {MAX_STOPS}")]
    TooManyStops {
        /// The number found.
        found: usize,
    },
    /// A stop string that is empty or too long.
    #[error("a stop string has {bytes} bytes, expected 1 to {MAX_STOP_BYTES}")]
    StopLength {
        /// The length of the stop string in bytes.
        bytes: usize,
    },
    /// Stop strings without text.
    #[error("stop strings need text, and this engine has no tokenizer; use stop_ids")]
    NoText,
    /// Experts of a dense model.
    #[error("the experts were requested, but this model is dense: it has no router")]
    NoExperts,
    /// A sample that would never have room.
    #[error(
        "prompt and text may have {needed} tokens, but the engine's caches have room for {room}; lower max_tokens or raise cache_tokens"
    )]
    CacheTooSmall {
        /// The most tokens of a sample.
        needed: usize,
        /// `cache_tokens`.
        room: usize,
    },
    /// The queue is full.
    #[error(
        "the queue is full: {waiting} samples are waiting, and {asked} more exceed its limit of {room}; try again later"
    )]
    QueueFull {
        /// Samples that are waiting.
        waiting: usize,
        /// Samples of the request.
        asked: usize,
        /// `queue`.
        room: usize,
    },
}
