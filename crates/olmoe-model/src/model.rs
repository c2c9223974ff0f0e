//! The model: parameters, forward pass, backward pass.
//!
//! T tokens, D model width, L layers, V vocabulary, E experts, K choices. `h` is the residual stream `[T, D]`:
//! `h = embed(ids)`, then in every layer `h += attention(norm(h))` and `h += feed_forward(norm(h))` (`residual`),
//! then the final norm, from which the head makes logits.
//!
//! This file has the model and its passes: forward through `embed`, each `block` and `finish`, and backward through the
//! same. The other files:
//!
//! | file | contents |
//! |---|---|
//! | `block` | one block, made of `residual`, `attention` and `feed_forward` |
//! | `head` | logits and log-probabilities from hidden states |
//! | `weights` | the store of the parameters, each in the `forms` that the passes need |
//! | `activations`, `kv_cache`, `gradients` | the results of passes |
//!
//! One forward pass serves training, evaluation and generation. [`Keep`] chooses what it keeps for the backward pass;
//! the choices of the routers are always in the [`RoutingRecord`].

mod activations;
mod adapters;
mod attention;
mod block;
mod error;
mod failure;
mod feed_forward;
mod footprint;
mod forms;
mod gradients;
mod head;
mod held;
mod kv_cache;
mod linear;
mod low_rank;
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
use olmoe_tensor::ops::{embedding, noise, norm};
use olmoe_tensor::tensor::Tensor;

use self::adapters::AdapterSet;
use self::block::BlockPass;
use self::feed_forward::RouterGradients;
use self::held::Stage;
use self::residual::norm_backward;
use self::weights::Weights;
use crate::adapter::{Adapter, AdapterIds};
use crate::auxiliary::{self, AuxiliaryLosses};
use crate::batch::Batch;
use crate::config::ModelConfig;
use crate::intervention::Intervention;
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

/// A model: its parameters, and the parameters of each module.
///
/// A trained parameter is held as f32 numbers; a trained matrix is also packed for products. A matrix that is frozen or
/// for inference is only packed, from numbers or from quantised blocks. The embedding, whose rows are looked up, is
/// held as numbers or in the encoding of a file, and also packed where it is tied to the head.
pub struct Model {
    weights: Weights,
    modules: Modules,
}

/// The objective of a backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Objective<'a> {
    /// The token to predict after each token, or [`IGNORE`] for none, `[T]`.
    pub targets: &'a [u32],
    /// Gradient of the loss by the log-probability of each target, `[T]`; cross-entropy over `N` targets has −1/N.
    pub dlogp_t: &'a [f32],
    /// Weight of a z-loss on the logits: the loss has `z/2 · Σ_t lse_t²`; 0 for none.
    pub z: f32,
    /// Factor on the auxiliary losses: the share of this batch in a step; 0 turns them off.
    pub auxiliary: f64,
    /// Whether the statistics of the distributions are computed ([`LogProbs::statistics`]).
    pub statistics: bool,
}

/// Construction and parameters.
impl Model {
    /// A model whose parameters are all held for the same purpose. Their values are arbitrary until [`Model::set`],
    /// [`Model::fill`] or [`Model::initialize`] fills them.
    ///
    /// # Errors
    /// [`ModelError::Config`].
    pub fn new(config: ModelConfig, precision: Precision, held: Held) -> Result<Model, ModelError> {
        Self::build(config, precision, |count| vec![held; count], &[], &[])
    }

    /// A model for inference that holds parameters in their encodings in a file; see [`Model::with`].
    ///
    /// # Errors
    /// [`ModelError::Config`].
    pub fn for_inference(
        config: ModelConfig,
        precision: Precision,
        encodings: &[Option<Encoding>],
    ) -> Result<Model, ModelError> {
        Self::build(config, precision, |count| vec![Held::Inference; count], encodings, &[])
    }

    /// A model that holds each parameter for the purpose in `held`, in canonical order; [`Held::for_training`] returns
    /// the purposes for training some of the parameters.
    ///
    /// `encodings` are the encodings of the parameters in a file, in canonical order; missing ones count as `None`. A
    /// parameter that is not trained is held in its encoding in two cases: if it is a matrix in quantised blocks,
    /// provided that all matrices of its MLP are; or if it is the embedding, in any encoding. Its rows have to be whole
    /// blocks. [`Model::encoding`] returns the encoding in which a parameter is held, and [`Model::fill_encoded`] fills
    /// such parameters.
    ///
    /// # Errors
    /// [`ModelError::Config`]; [`ModelError::HeldCount`] unless there is one purpose for each parameter;
    /// [`ModelError::NoWayBack`] when the gradient of a trained parameter would have to pass through one that is held
    /// for inference.
    pub fn with(
        config: ModelConfig,
        precision: Precision,
        held: Vec<Held>,
        encodings: &[Option<Encoding>],
    ) -> Result<Model, ModelError> {
        Self::build(config, precision, |_| held, encodings, &[])
    }

    /// A model with adapters, whose parameters follow the canonical ones; `held` has a purpose for each of
    /// [`parameters_with`](crate::adapter::parameters_with), which [`Held::of`] returns.
    ///
    /// The values of the adapters are arbitrary until they are set or [`Model::initialize_adapters`] draws them.
    ///
    /// # Errors
    /// As [`Model::with`]; [`ModelError::Adapter`].
    pub fn with_adapters(
        config: ModelConfig,
        precision: Precision,
        held: Vec<Held>,
        encodings: &[Option<Encoding>],
        adapters: &[Adapter],
    ) -> Result<Model, ModelError> {
        Self::build(config, precision, |_| held, encodings, adapters)
    }

    fn build(
        config: ModelConfig,
        precision: Precision,
        held: impl FnOnce(usize) -> Vec<Held>,
        encodings: &[Option<Encoding>],
        adapters: &[Adapter],
    ) -> Result<Model, ModelError> {
        // Validated before anything is allocated for each layer.
        config.validate()?;
        let (mut specs, modules) = registry(&config);
        let adapters = AdapterSet::new(&config, adapters, &mut specs)?;
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
        let weights = Weights::new(config, precision, specs, modules.embedding, held, encodings, adapters);
        Ok(Model { weights, modules })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.weights.config
    }

    /// The precision of the matrix products.
    pub fn precision(&self) -> Precision {
        self.weights.precision
    }

    /// The adapters, in the order of their parameters.
    pub fn adapters(&self) -> &[Adapter] {
        self.weights.adapters.all()
    }

    /// The ids of the parameters of each adapter.
    pub fn adapter_ids(&self) -> &[AdapterIds] {
        self.weights.adapters.ids()
    }

    /// Switches all adapters on, as they are at first, or off: then the model is the one without adapters, bit for bit.
    pub fn set_adapters_enabled(&mut self, enabled: bool) {
        self.weights.adapters.enabled = enabled;
    }

    /// Switches experts off, and those on again that were off before; none for the model as it is.
    ///
    /// # Errors
    /// [`ModelError::Intervention`] for an expert that the model does not have, and where a router would be left with fewer
    /// experts than it chooses.
    pub fn set_interventions(&mut self, interventions: &[Intervention]) -> Result<(), ModelError> {
        crate::intervention::check(self.config(), interventions)?;
        self.weights.interventions = interventions.to_vec();
        Ok(())
    }

    /// The experts that are switched off.
    pub fn interventions(&self) -> &[Intervention] {
        &self.weights.interventions
    }

    /// The canonical parameters, without those of adapters.
    pub fn base_parameters(&self) -> &[ParameterSpec] {
        let all = self.parameters();
        &all[..self.adapter_ids().first().map_or(all.len(), |ids| ids.a)]
    }

    /// The registry, in canonical order, then the parameters of adapters: the index of an entry is its [`ParameterId`].
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

    /// The f32 numbers of one parameter; `None` for a parameter that is held only packed or encoded, as one that is not
    /// trained may be.
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

    /// Fills a parameter on all threads, a strip of at most 32 rows at a time (a vector as a whole). `read` is called
    /// with a range of the numbers of the parameter and a buffer for them; the ranges cover all of the numbers.
    ///
    /// # Errors
    /// The error of `read` for the first strip, in canonical order, for which it failed. No further strips are begun
    /// after a failure, and the values of the parameter are then arbitrary.
    pub fn fill<E: Send>(
        &mut self,
        id: ParameterId,
        read: impl Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        self.weights.fill(id, read)
    }

    /// The encoding in which a parameter is held, to be filled by [`Model::fill_encoded`]; `None` for one that is not.
    pub fn encoding(&self, id: ParameterId) -> Option<Encoding> {
        self.weights.encoding(id)
    }

    /// Whether a parameter has a form that [`Model::fill`] fills. A tied embedding may have both an encoded form and
    /// such a one.
    pub fn takes_numbers(&self, id: ParameterId) -> bool {
        self.weights.takes_numbers(id)
    }

    /// Fills the encoded forms of a parameter, on all threads. `read` is called with a range of its numbers, whole
    /// rows, and a buffer for their bytes in [`Model::encoding`]; the ranges cover all of the numbers, those of a tied
    /// embedding twice.
    ///
    /// # Errors
    /// As [`Model::fill`].
    ///
    /// # Panics
    /// When the parameter has no encoded form.
    pub fn fill_encoded<E: Send>(
        &mut self,
        id: ParameterId,
        read: impl Fn(Range<usize>, &mut [u8]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        self.weights.fill_encoded(id, read)
    }

    /// The bytes of a parameter, one slice for each of its forms. They can be stored and later written back to a model
    /// that was made in the same way.
    pub fn held_mut(&mut self, id: ParameterId) -> impl Iterator<Item = &mut [u8]> {
        self.weights.held_mut(id)
    }

    /// Draws the initial values of every parameter by the `init` of the configuration, and those of adapters.
    pub fn initialize(&mut self, seed: u64) {
        self.weights.initialize(0..self.base_parameters().len(), seed);
        self.initialize_adapters(seed);
    }

    /// Draws the initial values of the adapters: A as its `init` says, B zeros, and the magnitudes of DoRA the norms of
    /// the rows of the adapted matrices, which have to be there.
    pub fn initialize_adapters(&mut self, seed: u64) {
        self.weights.initialize(self.base_parameters().len()..self.parameters().len(), seed);
        self.weights.set_magnitudes();
    }

    /// Changes the numbers of a parameter on all threads and packs them again. `change` is called with a range of the
    /// numbers of the parameter and the numbers themselves; the ranges cover all of them.
    ///
    /// # Panics
    /// When the parameter is not held as f32 numbers, as one that is not trained may be; [`Model::fill`] fills those.
    pub fn update(&mut self, id: ParameterId, change: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        self.weights.update(id, change);
    }

    /// Bytes of the parameters in all of their forms, and of the tables of the rotary embedding.
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Bytes of the weights that a pass reads whose tokens are routed to `experts(layer)` different experts in each
    /// layer.
    pub fn bytes_read(&self, experts: impl Fn(usize) -> usize) -> u64 {
        self.weights.bytes_read(experts)
    }
}

/// The passes: forward through `embed`, each `block` and `finish`, and backward through the same three.
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

    /// Runs tokens that continue the sequences in `caches`, with one cache for each sequence of the batch and matching
    /// positions, and appends their keys and values to the caches. A cache of a [`Batch::walk`] is left with the path of
    /// its last part; one whose walk panicked is of no further use. The hidden states are in `activations`; where the
    /// caches have the type of [`KvCache::new`], their bits are those of [`Model::forward`]. Nothing is kept for a
    /// backward pass.
    ///
    /// # Errors
    /// [`ModelError::TokenId`], [`ModelError::TooLong`], [`ModelError::CacheCount`], [`ModelError::CachePosition`],
    /// [`ModelError::CacheFull`]; the caches are then unchanged.
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
        activations.begin(batch);
        let keep = if caches.is_some() { Keep::Nothing } else { activations.keep };
        let mut h_td = self.embed(batch, keep, activations);
        for layer in 0..self.modules.blocks.len() {
            h_td = self.block(layer, h_td, batch, caches.as_deref_mut(), keep, activations);
        }
        self.finish(h_td, keep, activations);
    }

    /// The residual stream before the first block.
    fn embed(&self, batch: &Batch, keep: Keep, activations: &mut Activations) -> Tensor {
        let h_td = self.embedded(batch);
        let Some(module) = &self.modules.embedding_norm else { return h_td };
        let (normed, saved) = norm::forward(&h_td, &self.weights.norm(module));
        let kept = keep != Keep::Nothing && self.weights.reaches(Stage::EMBEDDING);
        activations.embedding = kept.then_some((h_td, saved));
        normed
    }

    /// The rows of the embedding.
    fn embedded(&self, batch: &Batch) -> Tensor {
        let mut h_td = embedding::forward(self.weights.embedding(), &batch.ids);
        if let Some(adapter) = self.weights.embedding_adapter() {
            adapter.add(&batch.ids, &mut h_td);
        }
        if let Some(noise) = batch.noise.as_ref().filter(|noise| noise.embedding != 0.0) {
            noise::add_uniform(&mut h_td, &noise.keys_t, noise.embedding);
        }
        h_td
    }

    /// The residual stream after a block, from the stream before it.
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

    /// Logits of every token, `[T, V]`. Nothing is kept for a backward pass.
    ///
    /// # Errors
    /// [`ModelError::TokenId`], [`ModelError::TooLong`].
    pub fn logits(&self, batch: &Batch, activations: &mut Activations) -> Result<Tensor, ModelError> {
        self.forward(batch, activations)?;
        Ok(self.logits_of(activations.hidden()))
    }

    /// Backward pass after a forward pass that kept what it needs. Accumulates the gradients of the objective by the
    /// trained parameters, and returns the log-probabilities of the targets and the auxiliary losses. The pass ends at
    /// the lowest layer with a trained parameter; no gradients of frozen parameters are computed.
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for a target outside the vocabulary.
    ///
    /// # Panics
    /// When the gradients belong to another model, or the forward pass kept nothing.
    pub fn backward(
        &self,
        batch: &Batch,
        activations: &mut Activations,
        objective: &Objective<'_>,
        gradients: &mut Gradients,
    ) -> Result<(LogProbs, AuxiliaryLosses), ModelError> {
        self.check_targets(objective.targets)?;
        assert_eq!(gradients.len(), self.parameters().len(), "the gradients belong to this model");
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

    /// The gradient of the residual stream after the last block, if a parameter below is trained; and the losses.
    fn finish_backward(
        &self,
        activations: &mut Activations,
        objective: &Objective<'_>,
        gradients: &mut Gradients,
    ) -> (LogProbs, Option<Tensor>) {
        let (head, norm) = (&self.modules.head, &self.modules.norm);
        let passes = self.weights.passes(Stage::head(self.config()));
        let input = passes || gradients.wants_any([norm.weight, norm.bias]);
        let [a, b, magnitude] = match self.config().tie_embeddings {
            true => [None; 3],
            false => self.weights.adapter_parameters(head.weight),
        };
        let [dweight, dbias, a, b, magnitude] = gradients.several([Some(head.weight), head.bias, a, b, magnitude]);
        let into = cross_entropy::HeadGradients {
            dlogp_t: objective.dlogp_t,
            z: objective.z,
            dweight,
            dbias,
            adapter: linear::low_rank_gradients([a, b, magnitude]),
            statistics: objective.statistics,
            input,
        };
        let noise = activations.noise.as_ref();
        let head = self.weights.head(head, noise);
        let (log_probs, dhidden_td) =
            cross_entropy::forward_backward(activations.hidden(), head, objective.targets, into);
        let dh_td = dhidden_td.map(|dhidden_td| {
            let (h_td, saved) =
                activations.last.take().expect("a backward pass follows a forward pass that keeps something");
            norm_backward(&self.weights, norm, &h_td, &saved, &dhidden_td, gradients)
        });
        (log_probs, dh_td.filter(|_| passes))
    }

    /// Backward of the last block that is still in `activations`; `dh` becomes the gradient of its input.
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
        let kept = blocks.pop().expect("every block that a gradient reaches keeps its input");
        let known = routing.position(layer).and_then(|at| routing.layers.get(at));
        self.pass(layer, batch, dense).backward(kept, known, router, dh_td, gradients);
    }

    /// Accumulates the gradient of the embedding from the gradient of the residual stream before the first block.
    fn embed_backward(&self, batch: &Batch, activations: &mut Activations, dh_td: &Tensor, gradients: &mut Gradients) {
        let normed = self.modules.embedding_norm.as_ref().zip(activations.embedding.take());
        let before =
            normed.map(|(module, (x, saved))| norm_backward(&self.weights, module, &x, &saved, dh_td, gradients));
        let dh_td = before.as_ref().unwrap_or(dh_td);
        if let Some(dw) = gradients.get_mut(self.modules.embedding) {
            embedding::backward(dh_td, &batch.ids, dw);
        }
        if let Some(adapter) = self.weights.embedding_adapter() {
            adapter.backward(&batch.ids, dh_td, gradients);
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

/// Checks that each sequence of the batch continues its cache and fits it.
fn check_caches(batch: &Batch, caches: &[KvCache]) -> Result<(), ModelError> {
    if caches.len() != batch.num_sequences() {
        return Err(ModelError::CacheCount { found: caches.len(), expected: batch.num_sequences() });
    }
    for (sequence, cache) in caches.iter().enumerate() {
        let (mut held, capacity) = (cache.len(), cache.capacity());
        for (part, rows) in batch.segments_of(sequence).enumerate() {
            let found = batch.positions[rows.start] as usize;
            // The first part goes on from the cache, the others from any token of the path before them.
            if found > held || part == 0 && found != held {
                return Err(ModelError::CachePosition { sequence, found, held });
            }
            held = found + rows.len();
            if held > capacity {
                return Err(ModelError::CacheFull { sequence, length: held, capacity });
            }
        }
    }
    Ok(())
}

impl KvCache {
    /// An empty cache with room for `capacity` tokens, of the type that gives the bits of [`Model::forward`].
    pub fn new(model: &Model, capacity: usize) -> KvCache {
        KvCache::of_type(model, capacity, KvCache::default_type(model.precision()))
    }

    /// An empty cache with room for `capacity` tokens, whose keys and values have the type `kind`.
    pub fn of_type(model: &Model, capacity: usize, kind: CacheType) -> KvCache {
        KvCache::with_room(model.config(), capacity, kind)
    }
}
