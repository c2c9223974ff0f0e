//! One block on the residual stream, attention and then the feed-forward layer: the forward pass, its recomputation,
//! and the backward pass.

use olmoe_tensor::ops::router::Assignment;
use olmoe_tensor::tensor::Tensor;

use super::attention;
use super::feed_forward::{self, Routed, RouterGradients};
use super::gradients::Gradients;
use super::held::Stage;
use super::kv_cache::KvCache;
use super::residual;
use super::weights::Weights;
use crate::batch::Batch;
use crate::modules::BlockModule;
use crate::routing::LayerRouting;

/// What a forward pass keeps for the backward pass (activation checkpointing). What is not kept is recomputed with the
/// same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: no backward pass follows.
    Nothing,
    /// All intermediate results; the fastest choice.
    Everything,
    /// The results of the experts; norms and attention are recomputed (OLMo's `fine_grained`).
    FeedForward,
    /// The input of each block; the rest is recomputed (OLMo's `whole_layer`). The choice with the least memory.
    BlockInputs,
}

/// What the attention half of a block saves; `None` inside where the tokens continue caches.
type AttentionHalf = residual::ResidualSaved<Option<attention::SelfAttentionSaved>>;

/// What one block keeps for the backward pass.
pub(super) struct KeptBlock {
    h_td: Tensor,
    attention: Option<AttentionHalf>,
    /// The residual stream between attention and the feed-forward layer.
    middle: Option<Tensor>,
    feed_forward: Option<residual::ResidualKept<feed_forward::FeedForwardSaved>>,
}

/// A block and the tokens that pass through it.
#[derive(Clone, Copy)]
pub(super) struct BlockPass<'a> {
    pub(super) weights: &'a Weights,
    pub(super) module: &'a BlockModule,
    pub(super) layer: usize,
    pub(super) batch: &'a Batch,
    /// The assignment of every token to one expert, which stands for the routing of a dense MLP.
    pub(super) dense: &'a Assignment,
}

impl BlockPass<'_> {
    /// The residual stream after the block, and what the block keeps. With `caches`, the tokens continue the sequences
    /// in them and nothing is kept. The routing of a mixture-of-experts layer is added to `record`.
    pub(super) fn forward(
        self,
        h_td: Tensor,
        caches: Option<&mut [KvCache]>,
        keep: Keep,
        record: &mut Vec<LayerRouting>,
    ) -> (Tensor, Option<KeptBlock>) {
        // Where no gradient reaches the block, nothing has to be kept.
        let reached = self.weights.reaches(Stage::feed_forward(self.layer));
        let keep = if reached && caches.is_none() { keep } else { Keep::Nothing };
        let (middle, attention) = self.attend(&h_td, caches);
        // What is not kept returns to the pool before the experts allocate.
        let attended = keep == Keep::Everything && self.weights.reaches(Stage::attention(self.layer));
        let attention = attended.then_some(attention);
        let kept = matches!(keep, Keep::Everything | Keep::FeedForward);
        let (out, feed_forward) = self.feed(&middle, Routed::New(record), kept);
        let (middle, feed_forward) = match keep {
            Keep::Nothing => return (out, None),
            Keep::BlockInputs => (None, None),
            Keep::FeedForward => (None, Some(feed_forward.keep_inner(self.weights))),
            Keep::Everything => (Some(middle), Some(feed_forward.keep_all())),
        };
        (out, Some(KeptBlock { h_td, attention, middle, feed_forward }))
    }

    /// The residual stream after attention.
    fn attend(self, h_td: &Tensor, caches: Option<&mut [KvCache]>) -> (Tensor, AttentionHalf) {
        let BlockPass { weights, module, layer, batch, .. } = self;
        residual::forward(weights, &module.attention_norm, h_td, |x| match caches {
            None => {
                let (y_td, saved) = attention::forward(weights, &module.attention, x, batch);
                (y_td, Some(saved))
            }
            Some(caches) => (attention::forward_cached(weights, &module.attention, layer, x, batch, caches), None),
        })
    }

    /// The residual stream after the feed-forward layer.
    fn feed(
        self,
        middle_td: &Tensor,
        routed: Routed<'_>,
        keep: bool,
    ) -> (Tensor, residual::ResidualSaved<feed_forward::FeedForwardSaved>) {
        let BlockPass { weights, module, layer, batch, dense } = self;
        residual::forward(weights, &module.mlp_norm, middle_td, |x| {
            feed_forward::forward(weights, batch.noise.as_ref(), layer, &module.feed_forward, x, dense, routed, keep)
        })
    }

    /// Turns `dh`, the gradient of the output of the block, into the gradient of its input, if a parameter below the
    /// block is trained. `known` is the routing of the forward pass.
    pub(super) fn backward(
        self,
        kept: KeptBlock,
        known: Option<&LayerRouting>,
        router: RouterGradients<'_>,
        dh_td: &mut Tensor,
        gradients: &mut Gradients,
    ) {
        let BlockPass { weights, module, layer, batch, dense } = self;
        let KeptBlock { h_td, attention, middle, feed_forward } = kept;
        let (middle, attention) = match middle {
            Some(middle) => (middle, attention),
            None => {
                let (middle, saved) = self.attend(&h_td, None);
                (middle, Some(saved))
            }
        };
        let saved = match feed_forward {
            Some(kept) => kept.restore(weights, &module.mlp_norm, &middle),
            None => self.feed(&middle, Routed::Known(known), true).1,
        };
        let input = weights.passes(Stage::feed_forward(layer));
        let back = |x: &Tensor, saved, dy: &Tensor, input, gradients: &mut Gradients| {
            let module = &module.feed_forward;
            let noise = batch.noise.as_ref();
            feed_forward::backward(weights, noise, module, x, dense, saved, known, router, dy, input, gradients)
        };
        residual::backward(weights, &module.mlp_norm, &middle, saved, dh_td, input, gradients, back);
        if !weights.reaches(Stage::attention(layer)) {
            return;
        }
        let saved = attention.expect("what attention saves is kept where a gradient reaches it");
        let input = weights.passes(Stage::attention(layer));
        let back = |x: &Tensor,
                    saved: Option<attention::SelfAttentionSaved>,
                    dy: &Tensor,
                    input,
                    gradients: &mut Gradients| {
            let saved = saved.expect("a backward pass follows a forward pass without caches");
            attention::backward(weights, &module.attention, x, saved, dy, batch, input, gradients)
        };
        residual::backward(weights, &module.attention_norm, &h_td, saved, dh_td, input, gradients, back);
    }
}
