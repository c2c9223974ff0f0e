//! One block on the residual stream: attention, then the feed-forward layer; forward, again, and back.

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

/// What a forward pass keeps for a backward pass; what is not kept is computed again, to the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: no backward pass follows.
    Nothing,
    /// All intermediate results: the fastest.
    Everything,
    /// The experts' results; norms and attention are computed again (OLMo's `fine_grained`).
    FeedForward,
    /// The input of each block; the rest is computed again (OLMo's `whole_layer`): the smallest.
    BlockInputs,
}

/// What attention saves; nothing where the tokens continue caches.
type AttentionSaved = residual::Saved<Option<attention::Saved>>;

/// What one block keeps.
pub(super) struct KeptBlock {
    h_td: Tensor,
    attention: Option<AttentionSaved>,
    /// The residual stream between attention and the feed-forward layer.
    middle: Option<Tensor>,
    feed_forward: Option<residual::Kept<feed_forward::Saved>>,
}

/// A block and the tokens that pass through it.
#[derive(Clone, Copy)]
pub(super) struct BlockPass<'a> {
    pub(super) weights: &'a Weights,
    pub(super) module: &'a BlockModule,
    pub(super) layer: usize,
    pub(super) batch: &'a Batch,
    /// Every token to one expert: what a dense MLP takes for a routing.
    pub(super) dense: &'a Assignment,
}

impl BlockPass<'_> {
    /// The residual stream after the block, and what is kept of it. The tokens continue the sequences in `caches` if there
    /// are any; nothing is kept then. The routing of a mixture is added to `record`.
    pub(super) fn forward(
        self,
        h_td: Tensor,
        caches: Option<&mut [KvCache]>,
        keep: Keep,
        record: &mut Vec<LayerRouting>,
    ) -> (Tensor, Option<KeptBlock>) {
        // Where no gradient comes to, nothing has to be kept for it.
        let reached = self.weights.reaches(Stage::feed_forward(self.layer));
        let keep = if reached && caches.is_none() { keep } else { Keep::Nothing };
        let (middle, attention) = self.attend(&h_td, caches);
        // What is not kept goes back to the pool before the experts ask for room.
        let attended = keep == Keep::Everything && self.weights.reaches(Stage::attention(self.layer));
        let attention = attended.then_some(attention);
        let kept = matches!(keep, Keep::Everything | Keep::FeedForward);
        let (out, feed_forward) = self.feed(&middle, Routed::Anew(record), kept);
        let (middle, feed_forward) = match keep {
            Keep::Nothing => return (out, None),
            Keep::BlockInputs => (None, None),
            Keep::FeedForward => (None, Some(feed_forward.keep_inner(self.weights))),
            Keep::Everything => (Some(middle), Some(feed_forward.keep_all())),
        };
        (out, Some(KeptBlock { h_td, attention, middle, feed_forward }))
    }

    /// The stream after attention.
    fn attend(self, h_td: &Tensor, caches: Option<&mut [KvCache]>) -> (Tensor, AttentionSaved) {
        let BlockPass { weights, module, layer, batch, .. } = self;
        residual::forward(weights, &module.attention_norm, h_td, |x| match caches {
            None => {
                let (y_td, saved) = attention::forward(weights, &module.attention, x, batch);
                (y_td, Some(saved))
            }
            Some(caches) => (attention::forward_cached(weights, &module.attention, layer, x, batch, caches), None),
        })
    }

    /// The stream after the feed-forward layer.
    fn feed(
        self,
        middle_td: &Tensor,
        routed: Routed<'_>,
        keep: bool,
    ) -> (Tensor, residual::Saved<feed_forward::Saved>) {
        let BlockPass { weights, module, layer, dense, .. } = self;
        residual::forward(weights, &module.mlp_norm, middle_td, |x| {
            feed_forward::forward(weights, layer, &module.feed_forward, x, dense, routed, keep)
        })
    }

    /// `dh`, the gradient of the block's output, becomes that of its input, if anything below the block is trained. `known` is
    /// the routing of the forward pass.
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
            None => self.feed(&middle, Routed::Before(known), true).1,
        };
        let input = weights.passes(Stage::feed_forward(layer));
        let back = |x: &Tensor, saved, dy: &Tensor, input, gradients: &mut Gradients| {
            let module = &module.feed_forward;
            feed_forward::backward(weights, module, x, dense, saved, known, router, dy, input, gradients)
        };
        residual::backward(weights, &module.mlp_norm, &middle, saved, dh_td, input, gradients, back);
        if !weights.reaches(Stage::attention(layer)) {
            return;
        }
        let saved = attention.expect("what attention saves is kept where a gradient comes to it");
        let input = weights.passes(Stage::attention(layer));
        let back = |x: &Tensor, saved: Option<attention::Saved>, dy: &Tensor, input, gradients: &mut Gradients| {
            let saved = saved.expect("a backward pass follows a forward pass without caches");
            attention::backward(weights, &module.attention, x, saved, dy, batch, input, gradients)
        };
        residual::backward(weights, &module.attention_norm, &h_td, saved, dh_td, input, gradients, back);
    }
}
