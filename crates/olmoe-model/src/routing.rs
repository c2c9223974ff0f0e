//! What the routers decided in one forward pass.

use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::router::Routing;

/// The decisions of one layer's router.
#[derive(Clone, Debug)]
pub struct LayerRouting {
    /// Which layer of the model, counted from 0.
    pub layer: usize,
    /// Probabilities of all experts, the chosen experts, their weights, and the log-sum-exp of the logits.
    pub routing: Routing,
    /// How many (token, choice) pairs chose each expert, `[E]`; those an expert had no room for included.
    pub load_e: Buffer<u32>,
}

/// The routing of every layer that is a mixture: training metrics, auxiliary losses, analysis and tests all read this one
/// record. Empty for a dense model.
#[derive(Clone, Debug, Default)]
pub struct RoutingRecord {
    /// From the first mixture to the last.
    pub layers: Vec<LayerRouting>,
}

impl RoutingRecord {
    /// Where in `layers` a layer of the model is; none if it is dense.
    pub fn position(&self, layer: usize) -> Option<usize> {
        self.layers.binary_search_by_key(&layer, |routing| routing.layer).ok()
    }
}
