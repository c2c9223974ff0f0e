//! What the routers decided in one forward pass.

use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::router::Routing;

/// The decisions of one layer's router.
#[derive(Clone, Debug)]
pub struct LayerRouting {
    /// Probabilities of all experts, the chosen experts, their weights, and the log-sum-exp of the logits.
    pub routing: Routing,
    /// How many (token, choice) pairs chose each expert, `[E]`; those an expert had no room for included.
    pub load_e: Buffer<u32>,
}

/// The routing of every layer: training metrics, auxiliary losses, analysis and tests all read this one record. Empty for
/// a dense model.
#[derive(Clone, Debug, Default)]
pub struct RoutingRecord {
    /// From the first layer to the last.
    pub layers: Vec<LayerRouting>,
}

impl RoutingRecord {
    /// The percentage of a layer's (token, choice) pairs that went to each expert; they sum to 100.
    pub fn load_percent(&self, layer: usize) -> impl Iterator<Item = f64> + '_ {
        let load = &self.layers[layer].load_e;
        let total: u64 = load.iter().map(|n| u64::from(*n)).sum();
        load.iter().map(move |n| 100.0 * f64::from(*n) / (total.max(1)) as f64)
    }
}
