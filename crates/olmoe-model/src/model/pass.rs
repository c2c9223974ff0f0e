//! The forward pass through the blocks, what it keeps, and the way back.

use olmoe_tensor::ops::router::Assignment;
use olmoe_tensor::ops::{embedding, norm};
use olmoe_tensor::tensor::Tensor;

use super::attention::{self, KvCache};
use super::feed_forward::{self, RouterGradients};
use super::gradients::Gradients;
use super::residual::{self, norm_backward};
use super::weights::{Model, ModelError};
use crate::batch::Batch;
use crate::routing::RoutingRecord;

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

/// What one block keeps.
struct Block {
    h_td: Tensor,
    attention: Option<(residual::Saved<attention::Saved>, Tensor)>,
    feed_forward: Option<residual::Kept<feed_forward::Saved>>,
}

/// What a forward pass leaves. Reuse one over the steps: its lists are then allocated once.
pub struct Activations {
    keep: Keep,
    embedding: Option<(Tensor, norm::Saved)>,
    blocks: Vec<Block>,
    last: Option<(Tensor, norm::Saved)>,
    hidden: Option<Tensor>,
    dense: Option<Assignment>,
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

    fn clear(&mut self) {
        self.embedding = None;
        self.blocks.clear();
        self.last = None;
        self.hidden = None;
        self.routing.layers.clear();
    }
}

/// Whether each sequence of the batch continues its cache and fits it.
fn check_caches(batch: &Batch, caches: &[KvCache]) -> Result<(), ModelError> {
    if caches.len() != batch.num_sequences() {
        return Err(ModelError::CacheCount { found: caches.len(), expected: batch.num_sequences() });
    }
    for (sequence, (cache, bounds)) in caches.iter().zip(batch.sequences.windows(2)).enumerate() {
        let (held, found) = (cache.len(), batch.positions[bounds[0] as usize] as usize);
        if found != held {
            return Err(ModelError::CachePosition { sequence, found, held });
        }
        let (length, capacity) = (held + (bounds[1] - bounds[0]) as usize, cache.capacity());
        if length > capacity {
            return Err(ModelError::CacheFull { sequence, length, capacity });
        }
    }
    Ok(())
}

impl Model {
    /// Runs a batch through all blocks and the final norm; the result is in `activations`.
    ///
    /// # Errors
    /// [`ModelError::TokenId`], [`ModelError::TooLong`].
    pub fn forward(&self, batch: &Batch, activations: &mut Activations) -> Result<(), ModelError> {
        self.check(&batch.ids, &batch.positions)?;
        activations.clear();
        let mut h_td = self.embed(batch, activations);
        let dense = Assignment::dense(batch.tokens());
        for (layer, module) in self.modules.blocks.iter().enumerate() {
            let (middle, attention) = residual::forward(self, &module.attention_norm, &h_td, |x| {
                attention::forward(self, &module.attention, x, batch)
            });
            let record = &mut activations.routing.layers;
            let (out, feed_forward) = residual::forward(self, &module.mlp_norm, &middle, |x| {
                feed_forward::forward(self, layer, &module.feed_forward, x, &dense, record)
            });
            let h_td = std::mem::replace(&mut h_td, out);
            match activations.keep {
                Keep::Nothing => {}
                Keep::Everything => activations.blocks.push(Block {
                    h_td,
                    attention: Some((attention, middle)),
                    feed_forward: Some(feed_forward.keep_all()),
                }),
                Keep::FeedForward => activations.blocks.push(Block {
                    h_td,
                    attention: None,
                    feed_forward: Some(feed_forward.keep_inner(self)),
                }),
                Keep::BlockInputs => {
                    activations.blocks.push(Block { h_td, attention: None, feed_forward: None });
                }
            }
        }
        let (hidden, saved) = norm::forward(&h_td, &self.norm(&self.modules.norm));
        activations.hidden = Some(hidden);
        activations.last = (activations.keep != Keep::Nothing).then_some((h_td, saved));
        activations.dense = Some(dense);
        Ok(())
    }

    /// Runs tokens that continue the sequences in `caches`, one cache a sequence of the batch, positions to match; adds
    /// their keys and values. The hidden states are in `activations`, with the same bits as [`Model::forward`] gives them
    /// if the caches are of the type of [`KvCache::new`].
    ///
    /// # Errors
    /// [`ModelError::TokenId`], [`ModelError::TooLong`], [`ModelError::CacheCount`], [`ModelError::CachePosition`],
    /// [`ModelError::CacheFull`]; the caches are then as before.
    pub fn forward_cached(
        &self,
        batch: &Batch,
        caches: &mut [KvCache],
        activations: &mut Activations,
    ) -> Result<(), ModelError> {
        self.check(&batch.ids, &batch.positions)?;
        check_caches(batch, caches)?;
        activations.clear();
        let mut h_td = self.embed(batch, activations);
        let dense = Assignment::dense(batch.tokens());
        for (layer, module) in self.modules.blocks.iter().enumerate() {
            let (middle, _) = residual::forward(self, &module.attention_norm, &h_td, |x| {
                (attention::forward_cached(self, &module.attention, layer, x, batch, caches), ())
            });
            let record = &mut activations.routing.layers;
            (h_td, _) = residual::forward(self, &module.mlp_norm, &middle, |x| {
                feed_forward::forward(self, layer, &module.feed_forward, x, &dense, record)
            });
        }
        activations.hidden = Some(norm::forward(&h_td, &self.norm(&self.modules.norm)).0);
        Ok(())
    }

    fn embed(&self, batch: &Batch, activations: &mut Activations) -> Tensor {
        let h_td = embedding::forward(self.embedding(), &batch.ids);
        match &self.modules.embedding_norm {
            Some(module) => {
                let (normed, saved) = norm::forward(&h_td, &self.norm(module));
                if activations.keep != Keep::Nothing {
                    activations.embedding = Some((h_td, saved));
                }
                normed
            }
            None => h_td,
        }
    }

    pub(super) fn embedding_backward(
        &self,
        batch: &Batch,
        activations: &mut Activations,
        dh_td: &Tensor,
        gradients: &mut Gradients,
    ) {
        let normed = self.modules.embedding_norm.zip(activations.embedding.take());
        let before = normed.map(|(module, (x, saved))| norm_backward(self, &module, &x, &saved, dh_td, gradients));
        let dh_td = before.as_ref().unwrap_or(dh_td);
        embedding::backward(dh_td, &batch.ids, gradients.get_mut(self.modules.embedding));
    }

    pub(super) fn final_norm_backward(
        &self,
        activations: &mut Activations,
        dhidden_td: &Tensor,
        gradients: &mut Gradients,
    ) -> Tensor {
        let (h_td, saved) =
            activations.last.take().expect("a backward pass follows a forward pass that keeps something");
        norm_backward(self, &self.modules.norm, &h_td, &saved, dhidden_td, gradients)
    }

    /// Backward of the last block not yet taken; `dh` becomes the gradient of its input.
    pub(super) fn block_backward(
        &self,
        layer: usize,
        batch: &Batch,
        activations: &mut Activations,
        router: RouterGradients<'_>,
        dh_td: &mut Tensor,
        gradients: &mut Gradients,
    ) {
        let module = &self.modules.blocks[layer];
        let block = activations.blocks.pop().expect("every block keeps its input");
        let dense = activations.dense.as_ref().expect("a forward pass leaves it");
        let routing = &activations.routing;
        let known = routing.position(layer).and_then(|at| routing.layers.get(at));

        let (attention, middle) = block.attention.unwrap_or_else(|| {
            let (middle, saved) = residual::forward(self, &module.attention_norm, &block.h_td, |x| {
                attention::forward(self, &module.attention, x, batch)
            });
            (saved, middle)
        });
        let feed_forward = match block.feed_forward {
            Some(kept) => kept.restore(self, &module.mlp_norm, &middle),
            None => {
                let again =
                    |x: &Tensor| feed_forward::forward_again(self, layer, &module.feed_forward, x, dense, known);
                residual::forward(self, &module.mlp_norm, &middle, again).1
            }
        };
        residual::backward(
            self,
            &module.mlp_norm,
            &middle,
            feed_forward,
            dh_td,
            gradients,
            |x, saved, dy, gradients| {
                feed_forward::backward(self, &module.feed_forward, x, dense, saved, known, router, dy, gradients)
            },
        );
        residual::backward(
            self,
            &module.attention_norm,
            &block.h_td,
            attention,
            dh_td,
            gradients,
            |x, saved, dy, gradients| attention::backward(self, &module.attention, x, saved, dy, batch, gradients),
        );
    }
}
