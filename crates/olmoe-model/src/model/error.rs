//! The errors of a model.

use crate::adapter::AdapterError;
use crate::config::ConfigError;
use crate::intervention::InterventionError;

/// Why a model cannot be made, or a pass cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An adapter cannot be one of this model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// An expert cannot be switched off.
    #[error(transparent)]
    Intervention(#[from] InterventionError),
    /// A name that is not the name of a precision.
    #[error("precision: found {found:?}, expected fp32 or amp_bf16")]
    UnknownPrecision {
        /// The name given.
        found: String,
    },
    /// A name that is not the name of a parameter.
    #[error(
        "parameter {name:?}: this model has no parameter of that name; the names are those of `parameters(config)`"
    )]
    UnknownParameter {
        /// The name given.
        name: String,
    },
    /// The number of purposes is not the number of parameters.
    #[error("found {found} purposes, expected {expected}, one for each parameter in the order of `parameters(config)`")]
    HeldCount {
        /// Purposes given.
        found: usize,
        /// Parameters of the model.
        expected: usize,
    },
    /// A gradient would have to pass through a parameter that is held for inference.
    #[error(
        "parameter {name} is held for inference, but the gradient of {trained} passes through it; hold it frozen, or use the purposes that `Held::for_training` returns"
    )]
    NoWayBack {
        /// The parameter in the way.
        name: String,
        /// The lowest trained parameter.
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
    /// A row outside the pass.
    #[error("row {row}: the pass had {tokens} tokens; rows are counted from 0, over all sequences of the batch")]
    Row {
        /// The row given.
        row: u32,
        /// Tokens of the pass.
        tokens: usize,
    },
    /// The number of caches is not the number of sequences.
    #[error("caches: found {found}, expected {expected}, one for each sequence of the batch")]
    CacheCount {
        /// Caches given.
        found: usize,
        /// Sequences of the batch.
        expected: usize,
    },
    /// The tokens of a sequence do not continue its cache.
    #[error(
        "sequence {sequence}: its first token, or that of a part of a walk, is at position {found}, but there are {held} tokens before it; give its batch that number in `continued_from`, or the walk a part that goes on from a token of the path"
    )]
    CachePosition {
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Position of its first token.
        found: usize,
        /// Tokens in the cache.
        held: usize,
    },
    /// The tokens do not fit the cache.
    #[error(
        "sequence {sequence}: {length} tokens do not fit its cache of {capacity}; make the cache larger or truncate it"
    )]
    CacheFull {
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Tokens that the cache would have.
        length: usize,
        /// Tokens that the cache has room for.
        capacity: usize,
    },
    /// A sequence longer than the tables of the rotary embedding.
    #[error("sequence of {length} tokens: the model's max_sequence_length is {limit}; shorten it or raise the limit")]
    TooLong {
        /// Tokens, those in the cache included.
        length: usize,
        /// `max_sequence_length`.
        limit: usize,
    },
}
