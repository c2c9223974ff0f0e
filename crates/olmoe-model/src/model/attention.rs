//! Self-attention: projections, clip, query and key norm, rotary embedding, attention, output projection.

use olmoe_tensor::gemm::Store;
use olmoe_tensor::ops::attention;
use olmoe_tensor::ops::linear::pack_saved;
use olmoe_tensor::ops::norm;
use olmoe_tensor::ops::{add, clip};
use olmoe_tensor::tensor::Tensor;

use super::gradients::Gradients;
use super::kv_cache::{KvCache, heads};
use super::linear;
use super::residual::norm_backward;
use super::weights::Weights;
use crate::batch::Batch;
use crate::config::ClipOrder;
use crate::modules::{AttentionModule, NormModule};

/// The norm of a projection: its input, and what it saved.
struct Normed {
    x: Tensor,
    saved: norm::NormSaved,
}

/// What the backward pass needs of the projections.
struct Projected {
    q_norm: Option<Normed>,
    k_norm: Option<Normed>,
    /// Queries and keys right after they were clipped, if they are clipped before their norm; the numbers at the limit
    /// were clipped.
    clipped: Option<[Tensor; 2]>,
}

/// What the backward pass needs in addition to the input.
pub(super) struct SelfAttentionSaved {
    projected: Projected,
    /// Queries, keys and values as attention reads them.
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    attention: attention::AttentionSaved,
}

/// The limit of the clip, if the model clips in this order.
fn clip_limit(weights: &Weights, order: ClipOrder) -> Option<f32> {
    weights.config.clip_qkv.filter(|clip| clip.order == order).map(|clip| clip.limit)
}

fn normed(weights: &Weights, module: Option<NormModule>, x: Tensor) -> (Tensor, Option<Normed>) {
    match module {
        Some(module) => {
            let (y, saved) = norm::forward(&x, &weights.norm(&module));
            (y, Some(Normed { x, saved }))
        }
        None => (x, None),
    }
}

/// Clips queries, keys and values if the model clips in this order; returns what the backward pass needs.
fn clip_all(weights: &Weights, order: ClipOrder, [q, k, v]: [&mut Tensor; 3]) -> Option<[Tensor; 2]> {
    let limit = clip_limit(weights, order)?;
    clip::forward(q, limit);
    clip::forward(k, limit);
    clip::forward(v, limit);
    Some([q.clone(), k.clone()])
}

/// Queries, keys and values as attention reads them.
fn qkv(weights: &Weights, module: &AttentionModule, x_td: &Tensor, batch: &Batch) -> ([Tensor; 3], Projected) {
    let [mut q, mut k, mut v] = linear::forward(weights, batch.noise.as_ref(), x_td, [module.q, module.k, module.v]);
    let before = clip_all(weights, ClipOrder::BeforeNorm, [&mut q, &mut k, &mut v]);
    let (mut q, q_norm) = normed(weights, module.q_norm, q);
    let (mut k, k_norm) = normed(weights, module.k_norm, k);
    let after = clip_all(weights, ClipOrder::AfterNorm, [&mut q, &mut k, &mut v]);
    weights.rope.apply(&mut q, weights.config.n_heads, &batch.positions);
    weights.rope.apply(&mut k, weights.config.n_kv_heads, &batch.positions);
    ([q, k, v], Projected { q_norm, k_norm, clipped: before.or(after) })
}

fn output(weights: &Weights, module: &AttentionModule, o_td: &Tensor, batch: &Batch) -> Tensor {
    let [y_td] = linear::forward(weights, batch.noise.as_ref(), o_td, [module.o]);
    y_td
}

/// The rows that `index` names.
fn rows_of(x: &Tensor, index: &[u32]) -> Tensor {
    let mut rows = Tensor::scratch(&[index.len(), x.cols()]);
    index.iter().enumerate().for_each(|(i, row)| rows.row_mut(i).copy_from_slice(x.row(*row as usize)));
    rows
}

/// For each token, the sum of the rows of its places, in order.
fn sum_of_places(x: &Tensor, tokens: &[u32], count: usize) -> Tensor {
    let mut sums = Tensor::zeros(&[count, x.cols()]);
    tokens.iter().enumerate().for_each(|(place, token)| add::add_assign(sums.row_mut(*token as usize), x.row(place)));
    sums
}

/// `y [T, D]` of `x [T, D]`.
pub(super) fn forward(
    weights: &Weights,
    module: &AttentionModule,
    x_td: &Tensor,
    batch: &Batch,
) -> (Tensor, SelfAttentionSaved) {
    let ([q, k, v], projected) = qkv(weights, module, x_td, batch);
    let operand = weights.precision.operand();
    let (heads, segments, hidden) = (heads(&weights.config), &batch.segments[..], batch.hidden.as_deref());
    let (o, attention) = match &batch.branches {
        None => attention::forward(&q, &k, &v, heads, segments, hidden, operand),
        Some(branches) => {
            let [q, k, v] = [&q, &k, &v].map(|x| rows_of(x, &branches.tokens));
            let (o, attention) = attention::forward(&q, &k, &v, heads, &branches.segments, None, operand);
            (rows_of(&o, &branches.places), attention)
        }
    };
    let y_td = output(weights, module, &o, batch);
    (y_td, SelfAttentionSaved { projected, q, k, v, o, attention })
}

/// The same for tokens that continue the sequences in `caches`, with one cache for each sequence of the batch.
pub(super) fn forward_cached(
    weights: &Weights,
    module: &AttentionModule,
    layer: usize,
    x_td: &Tensor,
    batch: &Batch,
    caches: &mut [KvCache],
) -> Tensor {
    let ([q, k, v], _) = qkv(weights, module, x_td, batch);
    let mut o = Tensor::scratch(q.shape());
    for (sequence, cache) in caches.iter_mut().enumerate() {
        let cache = &mut cache.layers[layer];
        for rows in batch.segments_of(sequence) {
            // The tokens before a part of a walk; otherwise only a pass that panicked has left more.
            cache.truncate(batch.positions[rows.start] as usize);
            cache.append(&k, &v, rows.clone());
            attention::forward_cached(&q, rows, cache, heads(&weights.config), &mut o);
        }
    }
    output(weights, module, &o, batch)
}

/// Accumulates the gradients of the parameters; with `input`, returns the gradient of `x`.
pub(super) fn backward(
    weights: &Weights,
    module: &AttentionModule,
    x_td: &Tensor,
    saved: SelfAttentionSaved,
    dy_td: &Tensor,
    batch: &Batch,
    input: bool,
    gradients: &mut Gradients,
) -> Option<Tensor> {
    let operand = weights.precision.operand();
    let SelfAttentionSaved { projected, q, k, v, o, attention } = saved;
    let Projected { q_norm, k_norm, clipped } = projected;
    let noise = batch.noise.as_ref();
    let projections = [module.q, module.k, module.v];
    let norm = |module: Option<NormModule>| module.map_or([None; 2], |norm| [norm.weight, norm.bias]);
    let below = input
        || projections.into_iter().any(|linear| weights.trains(linear, gradients))
        || gradients.wants_any(norm(module.q_norm))
        || gradients.wants_any(norm(module.k_norm));
    let mut d_o = below.then(|| Tensor::scratch(o.shape()));
    let packed = gradients.wants_any([Some(module.o.weight)]).then(|| pack_saved(&o, operand));
    let into = d_o.as_mut().map(|d_o| (d_o, Store::Overwrite));
    linear::backward(weights, noise, module.o, &o, packed.as_ref(), dy_td, into, gradients);
    drop(packed);
    let d_o = d_o?;

    let (heads, segments) = (heads(&weights.config), &batch.segments[..]);
    let hidden = batch.hidden.as_deref();
    let (mut dq, mut dk, mut dv) = match &batch.branches {
        None => attention::backward(&q, &k, &v, &o, &attention, &d_o, heads, segments, hidden, operand),
        Some(branches) => {
            let [q, k, v, o] = [&q, &k, &v, &o].map(|x| rows_of(x, &branches.tokens));
            // A token has one output, whatever the number of sequences that it is in.
            let mut d_all = Tensor::zeros(o.shape());
            branches.places.iter().enumerate().for_each(|(token, place)| {
                d_all.row_mut(*place as usize).copy_from_slice(d_o.row(token));
            });
            let (dq, dk, dv) =
                attention::backward(&q, &k, &v, &o, &attention, &d_all, heads, &branches.segments, None, operand);
            let [dq, dk, dv] = [dq, dk, dv].map(|d| sum_of_places(&d, &branches.tokens, d_o.rows()));
            (dq, dk, dv)
        }
    };
    weights.rope.apply_inverse(&mut dq, weights.config.n_heads, &batch.positions);
    weights.rope.apply_inverse(&mut dk, weights.config.n_kv_heads, &batch.positions);
    let clip_back = |order: ClipOrder, [dq, dk, dv]: [&mut Tensor; 3]| {
        if let (Some(limit), Some([q, k])) = (clip_limit(weights, order), &clipped) {
            clip::backward(q, limit, dq);
            clip::backward(k, limit, dk);
            clip::backward(&v, limit, dv);
        }
    };
    clip_back(ClipOrder::AfterNorm, [&mut dq, &mut dk, &mut dv]);
    let mut norm_back = |normed: Option<Normed>, module: Option<NormModule>, d: Tensor| match (normed, module) {
        (Some(normed), Some(module)) => norm_backward(weights, &module, &normed.x, &normed.saved, &d, gradients),
        _ => d,
    };
    let mut dq = norm_back(q_norm, module.q_norm, dq);
    let mut dk = norm_back(k_norm, module.k_norm, dk);
    clip_back(ClipOrder::BeforeNorm, [&mut dq, &mut dk, &mut dv]);

    // Packed once for all projections that are trained.
    let trained = gradients.wants_any(projections.map(|linear| Some(linear.weight)));
    let x = trained.then(|| pack_saved(x_td, operand));
    let mut dx_td = input.then(|| Tensor::scratch(x_td.shape()));
    for (i, (d, linear)) in [&dq, &dk, &dv].into_iter().zip(projections).enumerate() {
        let store = if i == 0 { Store::Overwrite } else { Store::Accumulate };
        let into = dx_td.as_mut().map(|dx_td| (dx_td, store));
        linear::backward(weights, noise, linear, x_td, x.as_ref(), d, into, gradients);
    }
    dx_td
}
