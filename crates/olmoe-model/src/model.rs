//! The model: parameters, forward pass, backward pass.
//!
//! T tokens, D model width, L layers, V vocabulary, E experts, K choices. `h` is the residual stream `[T, D]`:
//! `h = embed(ids)`, then in every layer `h += attention(norm(h))` and `h += feed_forward(norm(h))` (`residual`),
//! then the final norm, from which the head makes logits.
//!
//! This file holds the model and its passes (`embed`, each `block`, `finish`, and the way back); what they are made of:
//!
//! | file | what it holds |
//! |---|---|
//! | `block` | one block, from its parts `residual`, `attention` and `feed_forward` |
//! | `weights` | the store of the parameters, each in the `forms` that the passes need |
//! | `activations`, `kv_cache`, `gradients` | what passes leave behind |
//!
//! One forward pass serves training, evaluation and generation. What it keeps for the backward pass is [`Keep`]'s choice;
//! what the routers decided is always in the [`RoutingRecord`].

mod activations;
mod attention;
mod block;
mod error;
mod failure;
mod feed_forward;
mod footprint;
mod forms;
mod gradients;
mod held;
mod kv_cache;
mod precision;
mod residual;
mod weights;

use std::convert::Infallible;
use std::ops::Range;

use olmoe_tensor::dtype::Element;
use olmoe_tensor::encoding::Encoding;
use olmoe_tensor::ops::attention::CacheType;
use olmoe_tensor::ops::cross_entropy::{self, IGNORE, LogProbs};
use olmoe_tensor::ops::router::Assignment;
use olmoe_tensor::ops::{embedding, norm};
use olmoe_tensor::tensor::Tensor;

use self::block::BlockPass;
use self::feed_forward::RouterGradients;
use self::held::Stage;
use self::residual::norm_backward;
use self::weights::Weights;
use crate::auxiliary::{self, AuxiliaryLosses};
use crate::batch::Batch;
use crate::config::ModelConfig;
use crate::modules::Modules;
use crate::parameters::{ParameterSpec, registry};

pub use activations::Activations;
pub use block::Keep;
pub use error::ModelError;
pub use gradients::Gradients;
pub use held::Held;
pub use kv_cache::KvCache;
pub use precision::Precision;

pub use crate::modules::ParameterId;
pub use crate::routing::RoutingRecord;

/// A model: its parameters, and where each module finds its own.
///
/// A trained parameter is held as f32 numbers, and as a matrix packed as well. One that is frozen or for inference is held
/// only packed, or in the blocks of a file; the embedding, whose rows are looked up, as numbers or as the bytes of a file, and
/// packed besides where it is the head, too.
pub struct Model {
    weights: Weights,
    modules: Modules,
}

/// What to learn from a batch.
#[derive(Clone, Copy, Debug)]
pub struct Objective<'a> {
    /// The token to predict at each place, [`IGNORE`] for none, `[T]`.
    pub targets: &'a [u32],
    /// Gradient of the loss by each target's log-probability, `[T]`; cross-entropy over `N` targets has −1/N.
    pub dlogp_t: &'a [f32],
    /// Weight of a z-loss on the logits: the loss has `z/2 · Σ_t lse_t²`; 0 for none.
    pub z: f32,
    /// Factor on the auxiliary losses: the share of this batch in a step; 0 turns them off.
    pub auxiliary: f64,
}

/// What it is made of.
impl Model {
    /// A model whose parameters, all held alike, are still arbitrary, to be filled by [`Model::set`], [`Model::fill`] or
    /// [`Model::initialize`].
    ///
    /// # Errors
    /// [`ModelError::Config`].
    pub fn new(config: ModelConfig, precision: Precision, held: Held) -> Result<Model, ModelError> {
        Self::build(config, precision, |count| vec![held; count], &[])
    }

    /// A model made for inference that holds parameters as they are encoded in a file.
    ///
    /// # Errors
    /// [`ModelError::Config`].
    pub fn for_inference(
        config: ModelConfig,
        precision: Precision,
        encodings: &[Option<Encoding>],
    ) -> Result<Model, ModelError> {
        Self::build(config, precision, |count| vec![Held::Inference; count], encodings)
    }

    /// A model that holds each parameter for a purpose of its own, in canonical order; [`Held::for_training`] finds what the
    /// training of some of them needs. Of those that are not trained it holds as they are encoded in a file the ones that have
    /// an encoding in `encodings`, if they are matrices in blocks that take part in products (of the matrices of an MLP all or
    /// none), or the embedding in any encoding; rows have to be whole blocks. [`Model::encoding`] tells which. They are filled
    /// by [`Model::fill_encoded`].
    ///
    /// # Errors
    /// [`ModelError::Config`]; [`ModelError::HeldCount`] unless there is a purpose for each parameter;
    /// [`ModelError::NoWayBack`] when the gradient of a trained parameter would have to pass through one that is held for
    /// inference.
    pub fn with(
        config: ModelConfig,
        precision: Precision,
        held: Vec<Held>,
        encodings: &[Option<Encoding>],
    ) -> Result<Model, ModelError> {
        Self::build(config, precision, |_| held, encodings)
    }

    fn build(
        config: ModelConfig,
        precision: Precision,
        held: impl FnOnce(usize) -> Vec<Held>,
        encodings: &[Option<Encoding>],
    ) -> Result<Model, ModelError> {
        // Before anything is made for each of its layers.
        config.validate()?;
        let (specs, modules) = registry(&config);
        let held = held(specs.len());
        if held.len() != specs.len() {
            return Err(ModelError::HeldCount { found: held.len(), expected: specs.len() });
        }
        let all = || specs.iter().zip(&held);
        let trained = all().filter(|(_, held)| **held == Held::Trained).map(|(spec, _)| spec);
        if let Some(lowest) = trained.min_by_key(|spec| Stage::of(spec, &config)) {
            let stage = Stage::of(lowest, &config);
            let blocks = |(spec, held): &(&ParameterSpec, &Held)| {
                **held == Held::Inference && stage <= Stage::highest(spec, &config)
            };
            if let Some((spec, _)) = all().find(blocks) {
                return Err(ModelError::NoWayBack { name: spec.name.clone(), trained: lowest.name.clone() });
            }
        }
        let weights = Weights::new(config, precision, specs, modules.embedding, held, encodings);
        Ok(Model { weights, modules })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.weights.config
    }

    /// The precision of its products.
    pub fn precision(&self) -> Precision {
        self.weights.precision
    }

    /// The registry, in canonical order: the index of an entry is its [`ParameterId`].
    pub fn parameters(&self) -> &[ParameterSpec] {
        &self.weights.specs
    }

    /// What a parameter is held for.
    pub fn held(&self, id: ParameterId) -> Held {
        self.weights.held[id]
    }

    /// Zeros for the gradient of each trained parameter.
    pub fn gradients(&self) -> Gradients {
        Gradients::zeros(&self.weights.specs, &self.weights.held)
    }

    /// The parameter of that canonical name.
    ///
    /// # Errors
    /// [`ModelError::UnknownParameter`].
    pub fn find(&self, name: &str) -> Result<ParameterId, ModelError> {
        let found = self.parameters().iter().position(|spec| spec.name == name);
        found.ok_or_else(|| ModelError::UnknownParameter { name: name.to_owned() })
    }

    /// The f32 numbers of one parameter; `None` for what is held only packed or encoded, as may be what is not trained.
    pub fn value(&self, id: ParameterId) -> Option<&Tensor> {
        self.weights.value(id)
    }

    /// Fills a parameter from numbers of any format; `shape` is that of `data`.
    ///
    /// # Errors
    /// [`ModelError::UnknownParameter`], [`ModelError::Shape`].
    pub fn set<T: Element>(&mut self, name: &str, shape: &[usize], data: &[T]) -> Result<(), ModelError> {
        let id = self.find(name)?;
        let spec = &self.parameters()[id];
        if shape != spec.shape || data.len() != spec.num_elements() {
            let expected = spec.shape.clone();
            return Err(ModelError::Shape { name: name.to_owned(), found: shape.to_vec(), expected });
        }
        let Ok(()) = self.fill(id, |range, out| {
            T::widen(&data[range], out);
            Ok::<(), Infallible>(())
        });
        Ok(())
    }

    /// Fills a parameter on all threads, a strip of at most 32 whole rows at a time (a vector comes whole). `read` gets
    /// a range of the parameter's numbers, in canonical order, and where to write them; the ranges cover all of them.
    ///
    /// # Errors
    /// That of `read` for the first strip, in canonical order, for which it failed. It is then called for no strip that
    /// has not begun, and the parameter is arbitrary.
    pub fn fill<E: Send>(
        &mut self,
        id: ParameterId,
        read: impl Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        self.weights.fill(id, read)
    }

    /// How a parameter is encoded that [`Model::fill_encoded`] fills.
    pub fn encoding(&self, id: ParameterId) -> Option<Encoding> {
        self.weights.encoding(id)
    }

    /// Whether a parameter has a form that [`Model::fill`] fills; a tied embedding may have one of either kind.
    pub fn takes_numbers(&self, id: ParameterId) -> bool {
        self.weights.takes_numbers(id)
    }

    /// Fills what is held encoded of a parameter, on all threads. `read` gets a range of its numbers, whole rows, and where
    /// to write their bytes in [`Model::encoding`]; the ranges cover all of them, those of a tied embedding twice.
    ///
    /// # Errors
    /// As [`Model::fill`].
    ///
    /// # Panics
    /// When nothing of the parameter is held encoded.
    pub fn fill_encoded<E: Send>(
        &mut self,
        id: ParameterId,
        read: impl Fn(Range<usize>, &mut [u8]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        self.weights.fill_encoded(id, read)
    }

    /// All bytes that a parameter is held in, one piece a form, to be kept as they are and put back into a model made in the
    /// same way.
    pub fn held_mut(&mut self, id: ParameterId) -> impl Iterator<Item = &mut [u8]> {
        self.weights.held_mut(id)
    }

    /// Draws every parameter afresh, as the configuration's `init` says.
    pub fn initialize(&mut self, seed: u64) {
        self.weights.initialize(seed);
    }

    /// Changes the numbers of a parameter on all threads and packs them anew. `change` gets a range of the parameter's
    /// numbers, in canonical order, and the numbers there; the ranges cover all of them.
    ///
    /// # Panics
    /// When the parameter is held only packed, as may be what is not trained: [`Model::fill`] writes those.
    pub fn update(&mut self, id: ParameterId, change: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        self.weights.update(id, change);
    }

    /// Bytes in parameters, encoded or not, packed factors and tables of the rotary embedding.
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Bytes of the weights that a pass reads in which tokens reach so many different experts of each layer.
    pub fn bytes_read(&self, experts: impl Fn(usize) -> usize) -> u64 {
        self.weights.bytes_read(experts)
    }
}

/// Its passes: `embed`, each `block`, `finish`, and the way back through the same three.
impl Model {
    /// Runs a batch through all blocks and the final norm; the result is in `activations`.
    ///
    /// # Errors
    /// [`ModelError::TokenId`], [`ModelError::TooLong`].
    pub fn forward(&self, batch: &Batch, activations: &mut Activations) -> Result<(), ModelError> {
        self.check(batch)?;
        self.run(batch, None, activations);
        Ok(())
    }

    /// Runs tokens that continue the sequences in `caches`, one cache a sequence of the batch, positions to match; adds
    /// their keys and values. The hidden states are in `activations`, with the same bits as [`Model::forward`] gives them
    /// if the caches are of the type of [`KvCache::new`]. Nothing is kept for a backward pass.
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
        self.check(batch)?;
        check_caches(batch, caches)?;
        self.run(batch, Some(caches), activations);
        Ok(())
    }

    fn run(&self, batch: &Batch, mut caches: Option<&mut [KvCache]>, activations: &mut Activations) {
        activations.begin(batch.tokens());
        let keep = if caches.is_some() { Keep::Nothing } else { activations.keep };
        let mut h_td = self.embed(batch, keep, activations);
        for layer in 0..self.modules.blocks.len() {
            h_td = self.block(layer, h_td, batch, caches.as_deref_mut(), keep, activations);
        }
        self.finish(h_td, keep, activations);
    }

    /// The residual stream before the first block.
    fn embed(&self, batch: &Batch, keep: Keep, activations: &mut Activations) -> Tensor {
        let h_td = embedding::forward(self.weights.embedding(), &batch.ids);
        let Some(module) = &self.modules.embedding_norm else { return h_td };
        let (normed, saved) = norm::forward(&h_td, &self.weights.norm(module));
        let kept = keep != Keep::Nothing && self.weights.reaches(Stage::EMBEDDING);
        activations.embedding = kept.then_some((h_td, saved));
        normed
    }

    /// The residual stream after a block, from that before it.
    fn block(
        &self,
        layer: usize,
        h_td: Tensor,
        batch: &Batch,
        caches: Option<&mut [KvCache]>,
        keep: Keep,
        activations: &mut Activations,
    ) -> Tensor {
        let Activations { blocks, routing, dense, .. } = activations;
        let (h_td, kept) = self.pass(layer, batch, dense).forward(h_td, caches, keep, &mut routing.layers);
        blocks.extend(kept);
        h_td
    }

    fn pass<'a>(&'a self, layer: usize, batch: &'a Batch, dense: &'a Option<Assignment>) -> BlockPass<'a> {
        let dense = dense.as_ref().expect("a pass begins with `Activations::begin`");
        BlockPass { weights: &self.weights, module: &self.modules.blocks[layer], layer, batch, dense }
    }

    /// The hidden states, from the residual stream after the last block.
    fn finish(&self, h_td: Tensor, keep: Keep, activations: &mut Activations) {
        let (hidden, saved) = norm::forward(&h_td, &self.weights.norm(&self.modules.norm));
        activations.hidden = Some(hidden);
        let kept = keep != Keep::Nothing && self.weights.reaches(Stage::head(self.config()));
        activations.last = kept.then_some((h_td, saved));
    }

    /// Logits of every token, `[T, V]`, without keeping anything.
    ///
    /// # Errors
    /// [`ModelError::TokenId`], [`ModelError::TooLong`].
    pub fn logits(&self, batch: &Batch, activations: &mut Activations) -> Result<Tensor, ModelError> {
        self.forward(batch, activations)?;
        Ok(self.logits_of(activations.hidden()))
    }

    /// Logits of hidden states, `[T, V]` of `[T, D]`.
    pub fn logits_of(&self, hidden_td: &Tensor) -> Tensor {
        cross_entropy::logits(hidden_td, self.weights.head(&self.modules.head))
    }

    /// Log-probabilities of `targets [T]` after a forward pass; those of [`IGNORE`] are 0 and cost the head nothing.
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for a target outside the vocabulary.
    pub fn log_probs(&self, activations: &Activations, targets: &[u32]) -> Result<LogProbs, ModelError> {
        self.check_targets(targets)?;
        Ok(cross_entropy::forward(activations.hidden(), self.weights.head(&self.modules.head), targets))
    }

    /// Log-probabilities of `targets [R]` after the tokens `rows [R]` of a forward pass. The head computes nothing for the
    /// others.
    ///
    /// # Errors
    /// [`ModelError::Row`] for a row that the pass has not; [`ModelError::TokenId`] for a target outside the vocabulary.
    ///
    /// # Panics
    /// Unless there is a target a row.
    pub fn log_probs_at(
        &self,
        activations: &Activations,
        rows: &[u32],
        targets: &[u32],
    ) -> Result<LogProbs, ModelError> {
        let hidden_td = activations.hidden();
        let tokens = hidden_td.rows();
        if let Some(row) = rows.iter().find(|row| **row as usize >= tokens) {
            return Err(ModelError::Row { row: *row, tokens });
        }
        self.check_targets(targets)?;
        Ok(cross_entropy::forward_at(hidden_td, rows, self.weights.head(&self.modules.head), targets))
    }

    /// Backward pass after a forward pass that kept what it needs: adds the gradients of the objective by the trained
    /// parameters, and returns the targets' log-probabilities and the auxiliary losses. It ends at the lowest layer that has
    /// a trained parameter; what is frozen costs no product for a gradient of its own.
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for a target outside the vocabulary.
    ///
    /// # Panics
    /// When the gradients are of another model, or the forward pass kept nothing.
    pub fn backward(
        &self,
        batch: &Batch,
        activations: &mut Activations,
        objective: &Objective<'_>,
        gradients: &mut Gradients,
    ) -> Result<(LogProbs, AuxiliaryLosses), ModelError> {
        self.check_targets(objective.targets)?;
        assert_eq!(gradients.len(), self.parameters().len(), "gradients are those of this model");
        let (log_probs, dh_td) = self.finish_backward(activations, objective, gradients);
        let config = &self.config().auxiliary;
        let (losses, auxiliary) = auxiliary::losses(&activations.routing, batch, config, objective.auxiliary);
        let Some(mut dh_td) = dh_td else { return Ok((log_probs, losses)) };
        let reached = |layer: &usize| self.weights.reaches(Stage::feed_forward(*layer));
        for layer in (0..self.modules.blocks.len()).rev().take_while(reached) {
            let dprobs = activations.routing.position(layer).and_then(|at| auxiliary.layer(at));
            let router = RouterGradients { dprobs, z: auxiliary.z };
            self.block_backward(layer, batch, activations, router, &mut dh_td, gradients);
        }
        if self.weights.reaches(Stage::EMBEDDING) {
            self.embed_backward(batch, activations, &dh_td, gradients);
        }
        Ok((log_probs, losses))
    }

    /// From the objective to the gradient of the residual stream after the last block, if a parameter below is trained.
    fn finish_backward(
        &self,
        activations: &mut Activations,
        objective: &Objective<'_>,
        gradients: &mut Gradients,
    ) -> (LogProbs, Option<Tensor>) {
        let (head, norm) = (&self.modules.head, &self.modules.norm);
        let passes = self.weights.passes(Stage::head(self.config()));
        let input = passes || gradients.wants_any([norm.weight, norm.bias]);
        let [dweight, dbias] = gradients.several([Some(head.weight), head.bias]);
        let into = cross_entropy::Gradients { dlogp_t: objective.dlogp_t, z: objective.z, dweight, dbias, input };
        let head = self.weights.head(head);
        let (log_probs, dhidden_td) =
            cross_entropy::forward_backward(activations.hidden(), head, objective.targets, into);
        let dh_td = dhidden_td.map(|dhidden_td| {
            let (h_td, saved) =
                activations.last.take().expect("a backward pass follows a forward pass that keeps something");
            norm_backward(&self.weights, norm, &h_td, &saved, &dhidden_td, gradients)
        });
        (log_probs, dh_td.filter(|_| passes))
    }

    /// Backward of the last block not yet taken; `dh` becomes the gradient of its input.
    fn block_backward(
        &self,
        layer: usize,
        batch: &Batch,
        activations: &mut Activations,
        router: RouterGradients<'_>,
        dh_td: &mut Tensor,
        gradients: &mut Gradients,
    ) {
        let Activations { blocks, routing, dense, .. } = activations;
        let kept = blocks.pop().expect("every block that a gradient comes to keeps its input");
        let known = routing.position(layer).and_then(|at| routing.layers.get(at));
        self.pass(layer, batch, dense).backward(kept, known, router, dh_td, gradients);
    }

    /// From the gradient of the residual stream before the first block to that of the embedding.
    fn embed_backward(&self, batch: &Batch, activations: &mut Activations, dh_td: &Tensor, gradients: &mut Gradients) {
        let normed = self.modules.embedding_norm.as_ref().zip(activations.embedding.take());
        let before =
            normed.map(|(module, (x, saved))| norm_backward(&self.weights, module, &x, &saved, dh_td, gradients));
        if let Some(dw) = gradients.get_mut(self.modules.embedding) {
            embedding::backward(before.as_ref().unwrap_or(dh_td), &batch.ids, dw);
        }
    }

    /// Checks that all ids are rows of the embedding and all positions in the rotary tables.
    fn check(&self, batch: &Batch) -> Result<(), ModelError> {
        let config = self.config();
        let (ids, rows, limit) = (&batch.ids, config.embedding_size, config.max_sequence_length);
        if let Some(at) = ids.iter().position(|id| *id as usize >= rows) {
            return Err(ModelError::TokenId { at, id: ids[at], rows });
        }
        let length = batch.positions.iter().max().map_or(0, |p| *p as usize + 1);
        if length > limit {
            return Err(ModelError::TooLong { length, limit });
        }
        Ok(())
    }

    fn check_targets(&self, targets: &[u32]) -> Result<(), ModelError> {
        let rows = self.config().embedding_size;
        match targets.iter().position(|id| *id != IGNORE && *id as usize >= rows) {
            Some(at) => Err(ModelError::TokenId { at, id: targets[at], rows }),
            None => Ok(()),
        }
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

impl KvCache {
    /// Room for `capacity` tokens, of the type in which they give the bits of [`Model::forward`].
    pub fn new(model: &Model, capacity: usize) -> KvCache {
        KvCache::of_type(model, capacity, KvCache::default_type(model.precision()))
    }

    /// Room for `capacity` tokens, kept as `kind`.
    pub fn of_type(model: &Model, capacity: usize, kind: CacheType) -> KvCache {
        KvCache::with_room(model.config(), capacity, kind)
    }
}
