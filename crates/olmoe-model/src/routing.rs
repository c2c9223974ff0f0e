//! The routing of one forward pass.

use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::router::Routing;

/// The routing of one layer.
#[derive(Clone, Debug)]
pub struct LayerRouting {
    /// The layer of the model, counted from 0.
    pub layer: usize,
    /// Probabilities of all experts, the chosen experts, their weights, and the log-sum-exp of the logits.
    pub routing: Routing,
    /// The number of (token, choice) pairs that chose each expert, `[E]`, including those dropped for lack of capacity.
    pub load_e: Buffer<u32>,
}

/// The routing of every mixture-of-experts layer. Training metrics, auxiliary losses, analysis and tests all read this
/// record. It is empty for a dense model.
#[derive(Clone, Debug, Default)]
pub struct RoutingRecord {
    /// One entry for each mixture-of-experts layer, in ascending order.
    pub layers: Vec<LayerRouting>,
}

impl RoutingRecord {
    /// The index in `layers` of a layer of the model; `None` if that layer is dense.
    pub fn position(&self, layer: usize) -> Option<usize> {
        self.layers.binary_search_by_key(&layer, |routing| routing.layer).ok()
    }
}
