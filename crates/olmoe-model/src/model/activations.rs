//! What a forward pass leaves behind.

use olmoe_tensor::ops::norm;
use olmoe_tensor::ops::router::Assignment;
use olmoe_tensor::tensor::Tensor;

use super::block::{Keep, KeptBlock};
use crate::routing::RoutingRecord;

/// What a forward pass leaves. Reuse one over the steps: its lists are then allocated once.
pub struct Activations {
    pub(super) keep: Keep,
    /// The embedding's rows before their norm, if there is one.
    pub(super) embedding: Option<(Tensor, norm::Saved)>,
    /// From the first block to the last.
    pub(super) blocks: Vec<KeptBlock>,
    /// The residual stream before the final norm.
    pub(super) last: Option<(Tensor, norm::Saved)>,
    pub(super) hidden: Option<Tensor>,
    pub(super) dense: Option<Assignment>,
    /// The routing of every mixture.
    pub routing: RoutingRecord,
}

impl Activations {
    /// For passes that keep so much.
    pub fn new(keep: Keep) -> Activations {
        let routing = RoutingRecord::default();
        Activations { keep, embedding: None, blocks: Vec::new(), last: None, hidden: None, dense: None, routing }
    }

    /// The hidden states after the final norm, `[T, D]`.
    ///
    /// # Panics
    /// Before a forward pass.
    pub fn hidden(&self) -> &Tensor {
        self.hidden.as_ref().expect("a forward pass leaves hidden states")
    }

    /// Makes ready for a pass over so many tokens.
    pub(super) fn begin(&mut self, tokens: usize) {
        self.embedding = None;
        self.blocks.clear();
        self.last = None;
        self.hidden = None;
        self.dense = Some(Assignment::dense(tokens));
        self.routing.layers.clear();
    }
}
