//! The results of a forward pass.

use olmoe_tensor::ops::norm;
use olmoe_tensor::ops::router::Assignment;
use olmoe_tensor::tensor::Tensor;

use super::block::{Keep, KeptBlock};
use crate::batch::{Batch, TokenNoise};
use crate::routing::RoutingRecord;

/// The results of a forward pass, and what it keeps for the backward pass. Reuse one value for all steps, so that its
/// lists are allocated once.
pub struct Activations {
    pub(super) keep: Keep,
    /// The rows of the embedding before their norm, if there is one.
    pub(super) embedding: Option<(Tensor, norm::NormSaved)>,
    /// From the first block to the last.
    pub(super) blocks: Vec<KeptBlock>,
    /// The residual stream before the final norm.
    pub(super) last: Option<(Tensor, norm::NormSaved)>,
    pub(super) hidden: Option<Tensor>,
    pub(super) dense: Option<Assignment>,
    /// The randomness of the pass.
    pub(super) noise: Option<TokenNoise>,
    /// The routing of every mixture-of-experts layer.
    pub routing: RoutingRecord,
}

impl Activations {
    /// Activations for forward passes that keep `keep`.
    pub fn new(keep: Keep) -> Activations {
        let routing = RoutingRecord::default();
        Activations {
            keep,
            embedding: None,
            blocks: Vec::new(),
            last: None,
            hidden: None,
            dense: None,
            noise: None,
            routing,
        }
    }

    /// The hidden states after the final norm, `[T, D]`.
    ///
    /// # Panics
    /// Before a forward pass.
    pub fn hidden(&self) -> &Tensor {
        self.hidden.as_ref().expect("a forward pass sets the hidden states")
    }

    /// Prepares for a pass over a batch.
    pub(super) fn begin(&mut self, batch: &Batch) {
        self.embedding = None;
        self.blocks.clear();
        self.last = None;
        self.hidden = None;
        self.dense = Some(Assignment::dense(batch.tokens()));
        self.noise.clone_from(&batch.noise);
        self.routing.layers.clear();
    }
}
