//! What is asked of loading a checkpoint into a model for inference.

use std::path::PathBuf;

use olmoe_model::model::Precision;

/// How a checkpoint is to be loaded.
#[derive(Clone, Debug)]
pub struct Loading {
    /// The precision of the matrix products.
    pub precision: Precision,
    /// Quantised matrices stay quantised, and products with them round the other factor to eight bits; otherwise they become
    /// the numbers that they stand for.
    pub keep_blocks: bool,
    /// Bytes that the caller needs beside the weights, for caches and activations: loading is refused unless there is room
    /// for these, too.
    pub beside: u64,
    /// A file that keeps the packed weights: read if it belongs to this checkpoint, else written.
    pub packed_cache: Option<PathBuf>,
}

impl Loading {
    /// Loading without a file of packed weights, for a caller that needs nothing beside.
    pub fn new(precision: Precision, keep_blocks: bool) -> Loading {
        Loading { precision, keep_blocks, beside: 0, packed_cache: None }
    }
}
