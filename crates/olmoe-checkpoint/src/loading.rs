//! The options of loading a checkpoint into a model for inference.

use std::path::PathBuf;

use olmoe_model::model::Precision;

use crate::adapter::AdapterWeights;

/// How a checkpoint is to be loaded.
#[derive(Clone, Debug)]
pub struct Loading {
    /// The precision of the matrix products.
    pub precision: Precision,
    /// Whether quantised matrices stay quantised, in which case products quantise the other factor to eight bits;
    /// otherwise the matrices are dequantised.
    pub keep_blocks: bool,
    /// Bytes that the caller needs for caches and activations; loading is refused unless these and the weights fit the
    /// available memory.
    pub beside: u64,
    /// A file with the packed weights, which is read if it belongs to this checkpoint, and written otherwise.
    pub packed_cache: Option<PathBuf>,
    /// An adapter that was read for the configuration of the checkpoint; it is not merged into the weights.
    pub adapter: Option<AdapterWeights>,
}

impl Loading {
    /// Options without a file of packed weights, without an adapter and without additional memory.
    pub fn new(precision: Precision, keep_blocks: bool) -> Loading {
        Loading { precision, keep_blocks, beside: 0, packed_cache: None, adapter: None }
    }
}
