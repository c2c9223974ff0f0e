//! What a model refuses.

use crate::config::ConfigError;

/// Why a model cannot be made or used as asked.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Bad configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No such precision.
    #[error("precision: found {found:?}, expected fp32 or amp_bf16")]
    UnknownPrecision {
        /// What was given.
        found: String,
    },
    /// No such parameter.
    #[error("parameter {name:?}: this model has none of that name; its names are those of `parameters(config)`")]
    UnknownParameter {
        /// What was given.
        name: String,
    },
    /// Not one purpose for each parameter.
    #[error("found {found} purposes, expected {expected}, one for each parameter in the order of `parameters(config)`")]
    HeldCount {
        /// Purposes given.
        found: usize,
        /// Parameters of the model.
        expected: usize,
    },
    /// A gradient cannot come to where it is wanted.
    #[error(
        "parameter {name} is held for inference, but the gradient of {trained} passes through it; hold it frozen, or take what `Held::for_training` finds"
    )]
    NoWayBack {
        /// The parameter in the way.
        name: String,
        /// The lowest trained one.
        trained: String,
    },
    /// A tensor does not fit its parameter.
    #[error("parameter {name}: found shape {found:?}, expected {expected:?}")]
    Shape {
        /// The parameter.
        name: String,
        /// The shape given.
        found: Vec<usize>,
        /// The shape of the configuration.
        expected: Vec<usize>,
    },
    /// A token id outside the embedding.
    #[error("token {at}: id {id} is outside the embedding of {rows} rows; check that the tokenizer is the model's")]
    TokenId {
        /// Place in the batch.
        at: usize,
        /// The id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A row that a pass has not.
    #[error("row {row}: the pass had {tokens} tokens; rows are counted from 0, over all sequences of the batch")]
    Row {
        /// The row asked for.
        row: u32,
        /// Tokens of the pass.
        tokens: usize,
    },
    /// Not one cache for each sequence.
    #[error("caches: found {found}, expected {expected}, one for each sequence of the batch")]
    CacheCount {
        /// Caches given.
        found: usize,
        /// Sequences of the batch.
        expected: usize,
    },
    /// The tokens do not follow those in the cache.
    #[error(
        "sequence {sequence}: its first token is at position {found}, but its cache holds {held} tokens; give its batch that number in `continued_from`"
    )]
    CachePosition {
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Position of its first token.
        found: usize,
        /// Tokens in the cache.
        held: usize,
    },
    /// No room in the cache.
    #[error(
        "sequence {sequence}: {length} tokens do not fit its cache of {capacity}; make the cache larger or truncate it"
    )]
    CacheFull {
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Tokens it would hold.
        length: usize,
        /// Tokens it has room for.
        capacity: usize,
    },
    /// A sequence longer than the rotary tables.
    #[error("sequence of {length} tokens: the model's max_sequence_length is {limit}; shorten it or raise the limit")]
    TooLong {
        /// Tokens, those in the cache included.
        length: usize,
        /// `max_sequence_length`.
        limit: usize,
    },
}
