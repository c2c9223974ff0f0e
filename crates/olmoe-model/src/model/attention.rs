//! Self-attention: projections, clip, query and key norm, rotary embedding, attention, output projection.

use olmoe_tensor::gemm::Store;
use olmoe_tensor::ops::attention::{self, Cache, CacheType, Heads};
use olmoe_tensor::ops::linear::{self, Input, pack_saved};
use olmoe_tensor::ops::norm;
use olmoe_tensor::ops::{add, clip};
use olmoe_tensor::tensor::Tensor;

use super::gradients::Gradients;
use super::residual::norm_backward;
use super::weights::{Model, Precision};
use crate::batch::Batch;
use crate::config::{ClipOrder, ModelConfig};
use crate::modules::{AttentionModule, Linear, NormModule};

/// Keys and values of one sequence in all layers.
pub struct KvCache {
    layers: Vec<Cache>,
}

impl KvCache {
    /// Memory is for a multiple of so many tokens.
    pub const GRAIN: usize = Cache::GRAIN;

    /// Room for `capacity` tokens, of the type in which they give the bits of [`Model::forward`].
    pub fn new(model: &Model, capacity: usize) -> KvCache {
        KvCache::of_type(model, capacity, KvCache::default_type(model.precision))
    }

    /// Room for `capacity` tokens, kept as `kind`.
    pub fn of_type(model: &Model, capacity: usize, kind: CacheType) -> KvCache {
        KvCache {
            layers: (0..model.config.n_layers).map(|_| Cache::new(heads(&model.config), capacity, kind)).collect(),
        }
    }

    /// The type that keeps keys and values as a precision has them.
    pub fn default_type(precision: Precision) -> CacheType {
        precision.operand().into()
    }

    /// Bytes of a cache with room for `capacity` tokens, kept as `kind`; exact, and the same for each token of a multiple of
    /// [`KvCache::GRAIN`].
    pub fn bytes_of(config: &ModelConfig, capacity: usize, kind: CacheType) -> u64 {
        let grain = Cache::bytes_of(heads(config), KvCache::GRAIN, kind) as u64;
        (config.n_layers as u64).saturating_mul(grain).saturating_mul(capacity.div_ceil(KvCache::GRAIN) as u64)
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, Cache::len)
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens there is room for.
    pub fn capacity(&self) -> usize {
        self.layers.first().map_or(0, Cache::capacity)
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|cache| cache.truncate(len));
    }

    /// A cache with room for `capacity` tokens that holds the first `len` of this one: its keys and values serve every
    /// sequence that begins with the same tokens.
    ///
    /// # Panics
    /// When this one holds fewer than `len`, or `capacity` is below it.
    pub fn prefix(&self, len: usize, capacity: usize) -> KvCache {
        KvCache { layers: self.layers.iter().map(|cache| cache.prefix(len, capacity)).collect() }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(Cache::bytes).sum()
    }
}

/// A projection's norm: what it read and what it saved.
struct Normed {
    x: Tensor,
    saved: norm::Saved,
}

/// What the projections leave behind for the backward pass.
struct Projected {
    q_norm: Option<Normed>,
    k_norm: Option<Normed>,
    /// Queries and keys right after the clip, when there is one: it cut those that are at its limit.
    clipped: Option<[Tensor; 2]>,
}

/// What the backward pass needs beside the input.
pub(super) struct Saved {
    projected: Projected,
    /// As attention reads them.
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    attention: attention::Saved,
}

fn heads(config: &ModelConfig) -> Heads {
    Heads { query: config.n_heads, key_value: config.n_kv_heads, dim: config.head_dim }
}

/// The projections of `x`, all at once.
fn project<const N: usize>(model: &Model, x: &Tensor, linears: [Linear; N]) -> [Tensor; N] {
    let mut all = Input::new(x).times_each(linears.map(|linear| model.weight(linear.weight)));
    for (y, linear) in all.iter_mut().zip(linears) {
        if let Some(bias) = model.optional(linear.bias) {
            add::add_bias(y, bias);
        }
    }
    all
}

/// The clip of this order, if the model has one.
fn clip_limit(model: &Model, order: ClipOrder) -> Option<f32> {
    model.config.clip_qkv.filter(|clip| clip.order == order).map(|clip| clip.limit)
}

fn normed(model: &Model, module: Option<NormModule>, x: Tensor) -> (Tensor, Option<Normed>) {
    match module {
        Some(module) => {
            let (y, saved) = norm::forward(&x, &model.norm(&module));
            (y, Some(Normed { x, saved }))
        }
        None => (x, None),
    }
}

/// Clips queries, keys and values if this is the place for it; keeps what the backward pass needs to know.
fn clip_all(model: &Model, order: ClipOrder, [q, k, v]: [&mut Tensor; 3]) -> Option<[Tensor; 2]> {
    let limit = clip_limit(model, order)?;
    clip::forward(q, limit);
    clip::forward(k, limit);
    clip::forward(v, limit);
    Some([q.clone(), k.clone()])
}

/// Queries, keys and values as attention reads them.
fn qkv(model: &Model, module: &AttentionModule, x_td: &Tensor, batch: &Batch) -> ([Tensor; 3], Projected) {
    let [mut q, mut k, mut v] = project(model, x_td, [module.q, module.k, module.v]);
    let before = clip_all(model, ClipOrder::BeforeNorm, [&mut q, &mut k, &mut v]);
    let (mut q, q_norm) = normed(model, module.q_norm, q);
    let (mut k, k_norm) = normed(model, module.k_norm, k);
    let after = clip_all(model, ClipOrder::AfterNorm, [&mut q, &mut k, &mut v]);
    model.rope.apply(&mut q, model.config.n_heads, &batch.positions);
    model.rope.apply(&mut k, model.config.n_kv_heads, &batch.positions);
    ([q, k, v], Projected { q_norm, k_norm, clipped: before.or(after) })
}

fn output(model: &Model, module: &AttentionModule, o_td: &Tensor) -> Tensor {
    let [y_td] = project(model, o_td, [module.o]);
    y_td
}

/// `y [T, D]` of `x [T, D]`.
pub(super) fn forward(model: &Model, module: &AttentionModule, x_td: &Tensor, batch: &Batch) -> (Tensor, Saved) {
    let ([q, k, v], projected) = qkv(model, module, x_td, batch);
    let operand = model.precision.operand();
    let (o, attention) = attention::forward(&q, &k, &v, heads(&model.config), &batch.segments, operand);
    let y_td = output(model, module, &o);
    (y_td, Saved { projected, q, k, v, o, attention })
}

/// The same for tokens that continue the sequences in `caches`, one cache a sequence of the batch.
pub(super) fn forward_cached(
    model: &Model,
    module: &AttentionModule,
    layer: usize,
    x_td: &Tensor,
    batch: &Batch,
    caches: &mut [KvCache],
) -> Tensor {
    let ([q, k, v], _) = qkv(model, module, x_td, batch);
    let mut o = Tensor::scratch(q.shape());
    for (cache, bounds) in caches.iter_mut().zip(batch.sequences.windows(2)) {
        let rows = bounds[0] as usize..bounds[1] as usize;
        let cache = &mut cache.layers[layer];
        cache.append(&k, &v, rows.clone());
        attention::forward_cached(&q, rows, cache, heads(&model.config), &mut o);
    }
    output(model, module, &o)
}

/// Gradients of one linear layer's parameters.
fn linear_gradients(dy: &Tensor, x: &olmoe_tensor::gemm::Right, linear: &Linear, gradients: &mut Gradients) {
    linear::backward_weight(dy, x, gradients.get_mut(linear.weight));
    if let Some(bias) = linear.bias {
        add::bias_backward(dy, gradients.get_mut(bias));
    }
}

/// The gradient of `x`.
pub(super) fn backward(
    model: &Model,
    module: &AttentionModule,
    x_td: &Tensor,
    saved: Saved,
    dy_td: &Tensor,
    batch: &Batch,
    gradients: &mut Gradients,
) -> Tensor {
    let operand = model.precision.operand();
    let Saved { projected, q, k, v, o, attention } = saved;
    let Projected { q_norm, k_norm, clipped } = projected;
    let mut d_o = Tensor::scratch(o.shape());
    linear::backward_input(dy_td, model.packed(module.o.weight), &mut d_o, Store::Overwrite);
    linear_gradients(dy_td, &pack_saved(&o, operand), &module.o, gradients);

    let (mut dq, mut dk, mut dv) =
        attention::backward(&q, &k, &v, &o, &attention, &d_o, heads(&model.config), &batch.segments, operand);
    model.rope.apply_inverse(&mut dq, model.config.n_heads, &batch.positions);
    model.rope.apply_inverse(&mut dk, model.config.n_kv_heads, &batch.positions);
    let clip_back = |order: ClipOrder, [dq, dk, dv]: [&mut Tensor; 3]| {
        if let (Some(limit), Some([q, k])) = (clip_limit(model, order), &clipped) {
            clip::backward(q, limit, dq);
            clip::backward(k, limit, dk);
            clip::backward(&v, limit, dv);
        }
    };
    clip_back(ClipOrder::AfterNorm, [&mut dq, &mut dk, &mut dv]);
    let mut norm_back = |normed: Option<Normed>, module: Option<NormModule>, d: Tensor| match (normed, module) {
        (Some(normed), Some(module)) => norm_backward(model, &module, &normed.x, &normed.saved, &d, gradients),
        _ => d,
    };
    let mut dq = norm_back(q_norm, module.q_norm, dq);
    let mut dk = norm_back(k_norm, module.k_norm, dk);
    clip_back(ClipOrder::BeforeNorm, [&mut dq, &mut dk, &mut dv]);

    let x = pack_saved(x_td, operand);
    let mut dx_td = Tensor::scratch(x_td.shape());
    for (i, (d, linear)) in [(&dq, module.q), (&dk, module.k), (&dv, module.v)].into_iter().enumerate() {
        linear_gradients(d, &x, &linear, gradients);
        let store = if i == 0 { Store::Overwrite } else { Store::Accumulate };
        linear::backward_input(d, model.packed(linear.weight), &mut dx_td, store);
    }
    dx_td
}
