//! Feed-forward layers, dense and by experts.
//!
//! T tokens, S slots (token–expert pairs sorted by expert, see [`Assignment`]), D model width, I expert width. For the
//! slot `s` of token `t` on expert `e` with weight `w_s`:
//!
//! `g = Wg_e·x_t`, `u = Wu_e·x_t`, `a = silu(g) ⊙ u`, `o_s = Wd_e·a`, and `y_t = Σ_s w_s·o_s` in the order of the choices;
//! without a gate `a = f(u)`. Backward, with `a' = Wdᵀ·dy_t`: `dw_s = a'·a`, `da = w_s·a'`, so no output is kept;
//! `dWd += dy_t ⊗ w_s·a`, `dWg += dg ⊗ x_t`, `dWu += du ⊗ x_t`, `dx_t = Σ_s (Wgᵀ·dg + Wuᵀ·du)`.
//!
//! Where experts have many rows, a task takes a block of one expert's slots through all of it while the block is in the
//! cache; where they have few, each product takes all experts at once, so that weights stream and a single token keeps all
//! threads busy. A dense layer is the case of one expert that takes every token with weight one.

use std::cmp::Reverse;
use std::ops::Range;

use crate::gemm::{Left, Source, Store, gemm_here};
use crate::memory::Buffer;
use crate::ops::activation::{Activation, activate, activate_backward, swiglu, swiglu_backward};
use crate::ops::add::{add_assign, scale};
use crate::ops::grouped_linear::{BLOCK_ROWS, Contraction, Product, blocks};
use crate::ops::lanes::lanes;
use crate::ops::linear::{Input, Weight};
use crate::ops::router::{Assignment, DROPPED};
use crate::quant::product::{self, Factor, QuantizedInput, Rows};
use crate::simd::kernel;
use crate::tensor::Tensor;
use crate::threads::{Shared, num_threads, parallel, parallel_ranges};

/// The weights of the layer, one of each for every expert.
#[derive(Clone, Copy)]
pub struct Mlp<'a> {
    /// `[E, I, D]`; none for a layer without a gate.
    pub gate: Option<Weight<'a>>,
    /// `[E, I, D]`
    pub up: Weight<'a>,
    /// `[E, D, I]`
    pub down: Weight<'a>,
    /// The function `f`; SiLU on the gate when there is one.
    pub activation: Activation,
    /// Biases of a dense layer.
    pub biases: Biases<&'a [f32]>,
}

/// Something for each bias that the layer has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Biases<T> {
    /// `[I]`
    pub gate: Option<T>,
    /// `[I]`
    pub up: Option<T>,
    /// `[D]`
    pub down: Option<T>,
}

/// Where the weights' gradients are added.
pub struct Gradients<'a> {
    /// `[E, I, D]`
    pub gate: Option<&'a mut [f32]>,
    /// `[E, I, D]`
    pub up: &'a mut [f32],
    /// `[E, D, I]`
    pub down: &'a mut [f32],
    /// Biases of a dense layer.
    pub biases: Biases<&'a mut [f32]>,
}

/// What the backward pass needs: the inputs of the activation.
pub struct Saved {
    gate_si: Option<Tensor>,
    up_si: Tensor,
}

/// Rows of a chosen expert, on the mean, from which on the layer goes block by block.
const MANY_ROWS: usize = 32;
/// Blocks for each thread, at least, for the same: a slow thread then keeps nobody waiting for long.
const BLOCKS_PER_THREAD: usize = 4;

fn add_bias(rows: &mut [f32], bias: Option<&[f32]>) {
    if let Some(bias) = bias {
        rows.chunks_exact_mut(bias.len()).for_each(|row| add_assign(row, bias));
    }
}

/// Room for `len` numbers of a block's rows, `width` in each.
fn block_scratch(len: usize, width: usize) -> Buffer<f32> {
    let mut scratch = Buffer::scratch(BLOCK_ROWS * width);
    scratch.truncate(len);
    scratch
}

/// `y [T, D]` from `x [T, D]`.
pub fn forward(x_td: &Tensor, mlp: &Mlp<'_>, assignment: &Assignment) -> (Tensor, Saved) {
    let (out_sd, saved) = match mlp.up {
        Weight::Packed(_) if fills_blocks(&assignment.offsets_e) => by_blocks(x_td, mlp, assignment),
        Weight::Quantized(_) if fills_blocks(&assignment.offsets_e) => quantized_by_blocks(x_td, mlp, assignment),
        _ => by_products(x_td, mlp, assignment),
    };
    (combine(out_sd, assignment, Some(&assignment.weight_s)), saved)
}

/// Whether experts have so many rows that multiplying takes longer than reading the weights, and all threads a few blocks.
/// The results do not depend on it.
fn fills_blocks(offsets_e: &[u32]) -> bool {
    let (mut chosen, mut count) = (0, 0);
    for pair in offsets_e.windows(2) {
        let rows = (pair[1] - pair[0]) as usize;
        chosen += usize::from(rows > 0);
        count += rows.div_ceil(BLOCK_ROWS);
    }
    let rows = offsets_e.last().map_or(0, |rows| *rows as usize);
    rows >= MANY_ROWS * chosen && count >= BLOCKS_PER_THREAD * num_threads()
}

/// The slots' outputs, block by block: what lies between the products stays in the cache.
fn by_blocks(x_td: &Tensor, mlp: &Mlp<'_>, assignment: &Assignment) -> (Tensor, Saved) {
    let (d, width, slots) = (x_td.cols(), mlp.up.strips().out, assignment.slots());
    let operand = mlp.up.packed().operand();
    let mut saved =
        Saved { gate_si: mlp.gate.map(|_| Tensor::scratch(&[slots, width])), up_si: Tensor::scratch(&[slots, width]) };
    let mut out_sd = Tensor::scratch(&[slots, d]);
    {
        let gate_si = saved.gate_si.as_deref_mut().map(Shared::new);
        let up_si = Shared::new(&mut saved.up_si);
        let out_sd = Shared::new(&mut out_sd);
        for_blocks(assignment, |e, slots| {
            let mut left = Left::scratch_of(BLOCK_ROWS, slots.len(), d, operand);
            left.repack_rows(Source::gather(x_td, d, &assignment.token_s[slots.clone()]));
            let inner = slots.start * width..slots.end * width;
            // SAFETY: each block is another range of slots.
            let up = unsafe { up_si.range(inner.clone()) };
            gemm_here(left.panels(), mlp.up.packed().forward().group(e), up, Store::Overwrite);
            add_bias(up, mlp.biases.up);
            let mut act = block_scratch(inner.len(), width);
            match (mlp.gate, &gate_si) {
                (Some(weight), Some(gate_si)) => {
                    // SAFETY: as above.
                    let gate = unsafe { gate_si.range(inner) };
                    gemm_here(left.panels(), weight.packed().forward().group(e), gate, Store::Overwrite);
                    add_bias(gate, mlp.biases.gate);
                    swiglu(gate, up, &mut act);
                }
                _ => activate(mlp.activation, up, &mut act),
            }
            let mut left = Left::scratch_of(BLOCK_ROWS, slots.len(), width, operand);
            left.repack_rows(Source::new(&act, width));
            // SAFETY: as above.
            let out = unsafe { out_sd.range(slots.start * d..slots.end * d) };
            gemm_here(left.panels(), mlp.down.packed().forward().group(e), out, Store::Overwrite);
            add_bias(out, mlp.biases.down);
        });
    }
    (out_sd, saved)
}

/// The slots' outputs, each product of all experts at once: weights stream, and a single token keeps all threads busy.
fn by_products(x_td: &Tensor, mlp: &Mlp<'_>, assignment: &Assignment) -> (Tensor, Saved) {
    let x = Input::grouped(x_td, Some(&assignment.token_s), &assignment.offsets_e);
    let (mut gate_si, mut up_si) = match mlp.gate {
        Some(gate) => {
            let [gate_si, up_si] = x.times_each([gate, mlp.up]);
            (Some(gate_si), up_si)
        }
        None => (None, x.times(mlp.up)),
    };
    add_bias(&mut up_si, mlp.biases.up);
    let mut act_si = Tensor::scratch(up_si.shape());
    match &mut gate_si {
        Some(gate_si) => {
            add_bias(gate_si, mlp.biases.gate);
            each_slot(&mut act_si, |range, act| swiglu(&gate_si[range.clone()], &up_si[range], act));
        }
        None => each_slot(&mut act_si, |range, act| activate(mlp.activation, &up_si[range], act)),
    }
    let mut out_sd = Input::grouped(&act_si, None, &assignment.offsets_e).times(mlp.down);
    add_bias(&mut out_sd, mlp.biases.down);
    (out_sd, Saved { gate_si, up_si })
}

/// [`by_blocks`] with quantised weights.
fn quantized_by_blocks(x_td: &Tensor, mlp: &Mlp<'_>, assignment: &Assignment) -> (Tensor, Saved) {
    let (d, width, slots) = (x_td.cols(), mlp.up.strips().out, assignment.slots());
    let (up, down) = (mlp.up.quantized(), mlp.down.quantized());
    let gate = mlp.gate.map(Weight::quantized);
    let x = QuantizedInput::pack(x_td, d, up.format());
    let other = gate.filter(|gate| gate.format().block_len() != up.format().block_len());
    let x_gate = other.map(|gate| QuantizedInput::pack(x_td, d, gate.format()));
    let mut out_sd = Tensor::scratch(&[slots, d]);
    let out_shared = Shared::new(&mut out_sd);
    for_blocks(assignment, |e, slots| {
        let count = slots.len();
        let (offsets, index) = ([0, count as u32], &assignment.token_s[slots.clone()]);
        let rows = Rows { index: Some(index), offsets: &offsets, first: e };
        let [mut up_si, mut act_si] = [(); 2].map(|()| block_scratch(count * width, width));
        product::products(&x, rows, [Factor { weight: up, y: &mut up_si }], Store::Overwrite);
        add_bias(&mut up_si, mlp.biases.up);
        match gate {
            Some(gate) => {
                let mut gate_si = block_scratch(count * width, width);
                let factor = Factor { weight: gate, y: &mut gate_si };
                product::products(x_gate.as_ref().unwrap_or(&x), rows, [factor], Store::Overwrite);
                add_bias(&mut gate_si, mlp.biases.gate);
                swiglu(&gate_si, &up_si, &mut act_si);
            }
            None => activate(mlp.activation, &up_si, &mut act_si),
        }
        let act = QuantizedInput::pack(&act_si, width, down.format());
        // SAFETY: each block is another range of slots.
        let out = unsafe { out_shared.range(slots.start * d..slots.end * d) };
        let rows = Rows { index: None, offsets: &offsets, first: e };
        product::products(&act, rows, [Factor { weight: down, y: &mut *out }], Store::Overwrite);
        add_bias(out, mlp.biases.down);
    });
    // Nothing is kept: quantised weights have no way back.
    (out_sd, Saved { gate_si: None, up_si: Tensor::scratch(&[0, width]) })
}

/// Runs over the blocks (expert, slots) on all threads, the largest first, so that nobody waits long for the last one.
fn for_blocks(assignment: &Assignment, run: impl Fn(usize, Range<usize>) + Sync) {
    let mut blocks = blocks(&assignment.offsets_e);
    blocks.sort_unstable_by_key(|block| Reverse(block.rows().len()));
    parallel(blocks.len(), |b| run(blocks[b].group(), blocks[b].rows()));
}

/// Runs over the rows of `y` on all threads, with the range of its numbers.
fn each_slot(y: &mut Tensor, run: impl Fn(Range<usize>, &mut [f32]) + Sync) {
    let (rows, width) = (y.rows(), y.cols());
    let shared = Shared::new(y);
    parallel_ranges(rows, 8, |rows| {
        let range = rows.start * width..rows.end * width;
        // SAFETY: the ranges of a parallel loop are disjoint.
        run(range.clone(), unsafe { shared.range(range) });
    });
}

/// `y_t = Σ_k w_s·out_s` over the slots `s` of token `t` in the order of its choices; without weights, their sum.
fn combine(out_sd: Tensor, assignment: &Assignment, weight_s: Option<&[f32]>) -> Tensor {
    let (tokens, d, choices) = (assignment.slot_tk.rows(), out_sd.cols(), assignment.slot_tk.cols());
    if choices == 1 && assignment.experts() == 1 {
        // A dense layer: slot t is token t, its weight one.
        return out_sd;
    }
    let mut y_td = Tensor::scratch(&[tokens, d]);
    let y = Shared::new(&mut y_td);
    parallel_ranges(tokens, 8, |range| {
        for t in range {
            // SAFETY: each token is another row.
            let y = unsafe { y.range(t * d..(t + 1) * d) };
            y.fill(0.0);
            for slot in assignment.slot_tk.row(t).iter().filter(|slot| **slot != DROPPED) {
                let slot = *slot as usize;
                add_scaled(y, out_sd.row(slot), weight_s.map_or(1.0, |w| w[slot]));
            }
        }
    });
    y_td
}

kernel! {
    /// `y += c·x`
    fn add_scaled[s: S](y: &mut [f32], x: &[f32], c: f32) {
        let c = s.splat(c);
        lanes!(s; read [x]; update [y]; write []; { [s.fma(c, x, y)] });
    }
}

kernel! {
    /// `Σ x·y`
    fn dot[s: S](x: &[f32], y: &[f32]) -> f32 {
        let mut sum = s.zero();
        lanes!(s; read [x, y]; { sum = s.fma(x, y, sum); });
        s.reduce_add(sum)
    }
}

/// Gradients of the input, `[T, D]`, and of the slots' weights, `[S]`.
pub fn backward(
    x_td: &Tensor,
    mlp: &Mlp<'_>,
    assignment: &Assignment,
    saved: &Saved,
    dy_td: &Tensor,
    gradients: Gradients<'_>,
) -> (Tensor, Buffer<f32>) {
    let (d, width, slots, operand) = (x_td.cols(), mlp.up.strips().out, assignment.slots(), mlp.up.packed().operand());
    // The factors of the weights' gradients, packed block by block.
    let contraction = Contraction::new(&assignment.offsets_e, operand);
    let mut dgate_factors = mlp.gate.map(|_| contraction.left(width));
    let (mut dup_factors, mut dy_factors) = (contraction.left(width), contraction.left(d));
    let (mut x_factors, mut act_factors) = (contraction.right(d), contraction.right(width));
    let mut dx_sd = Tensor::scratch(&[slots, d]);
    let mut dweight_s = Buffer::scratch(slots);
    let blocks = blocks(&assignment.offsets_e);
    // Column sums of a dense layer's blocks, for its biases.
    let mut sums = Tensor::zeros(&[blocks.len() * usize::from(gradients.biases.up.is_some()), 2 * width]);
    {
        let packed_dgate = dgate_factors.as_mut().map(|factors| factors.shared());
        let (packed_dup, packed_dy) = (dup_factors.shared(), dy_factors.shared());
        let (packed_x, packed_act) = (x_factors.shared(), act_factors.shared());
        let dx_sd = Shared::new(&mut dx_sd);
        let dweight_s = Shared::new(&mut dweight_s);
        let sums = Shared::new(&mut sums);
        parallel(blocks.len(), |b| {
            let (e, slots) = (blocks[b].group(), blocks[b].rows());
            let (count, inner) = (slots.len(), slots.len() * width);
            let tokens = &assignment.token_s[slots.clone()];
            let weights = &assignment.weight_s[slots.clone()];
            let dy = Source::gather(dy_td, d, tokens);

            let mut left = Left::scratch_of(BLOCK_ROWS, count, d, operand);
            left.repack_rows(dy);
            let mut dact = block_scratch(inner, width);
            gemm_here(left.panels(), mlp.down.packed().backward().group(e), &mut dact, Store::Overwrite);

            // SAFETY: each block is another range of slots.
            let dweight = unsafe { dweight_s.range(slots.clone()) };
            let up = saved.up_si.row_range(slots.clone());
            let [mut dgate, mut dup, mut act] = [(); 3].map(|()| block_scratch(inner, width));
            for i in 0..count {
                let row = i * width..(i + 1) * width;
                let (dup, act) = (&mut dup[row.clone()], &mut act[row.clone()]);
                let (up, dact) = (&up[row.clone()], &mut dact[row.clone()]);
                dweight[i] = match &saved.gate_si {
                    Some(gate) => {
                        let gate = gate.row(slots.start + i);
                        swiglu_backward(gate, up, dact, weights[i], &mut dgate[row], dup, act)
                    }
                    None => {
                        activate(mlp.activation, up, act);
                        let dweight = dot(dact, act);
                        scale(dact, weights[i]);
                        activate_backward(mlp.activation, up, dact, dup);
                        dweight
                    }
                };
            }

            // SAFETY: as above.
            let dx = unsafe { dx_sd.range(slots.start * d..slots.end * d) };
            let mut left = Left::scratch_of(BLOCK_ROWS, count, width, operand);
            left.repack_rows(Source::new(&dup, width));
            gemm_here(left.panels(), mlp.up.packed().backward().group(e), dx, Store::Overwrite);
            if let Some(gate) = mlp.gate {
                left.repack_rows(Source::new(&dgate, width));
                gemm_here(left.panels(), gate.packed().backward().group(e), dx, Store::Accumulate);
            }

            // SAFETY: each task packs another block.
            unsafe {
                if let Some(out) = &packed_dgate {
                    contraction.pack_left(out, width, Source::new(&dgate, width), &blocks[b]);
                }
                contraction.pack_left(&packed_dup, width, Source::new(&dup, width), &blocks[b]);
                contraction.pack_left(&packed_dy, d, dy, &blocks[b]);
                contraction.pack_right(&packed_x, d, Source::gather(x_td, d, tokens), None, &blocks[b]);
                contraction.pack_right(&packed_act, width, Source::new(&act, width), Some(weights), &blocks[b]);
            }
            if mlp.biases.up.is_some() {
                // SAFETY: each block is another row.
                let (gate_sum, up_sum) = unsafe { sums.range(b * 2 * width..(b + 1) * 2 * width) }.split_at_mut(width);
                dup.chunks_exact(width).for_each(|row| add_assign(up_sum, row));
                if mlp.gate.is_some() {
                    dgate.chunks_exact(width).for_each(|row| add_assign(gate_sum, row));
                }
            }
        });
    }
    bias_gradients(gradients.biases, &sums, dy_td);
    let up = Product { left: &dup_factors, right: &x_factors, dw: Shared::new(gradients.up) };
    let down = Product { left: &dy_factors, right: &act_factors, dw: Shared::new(gradients.down) };
    match (&dgate_factors, gradients.gate) {
        (Some(left), Some(dw)) => {
            let gate = Product { left, right: &x_factors, dw: Shared::new(dw) };
            contraction.accumulate(&[gate, up, down]);
        }
        _ => contraction.accumulate(&[up, down]),
    }
    (combine(dx_sd, assignment, None), dweight_s)
}

fn bias_gradients(biases: Biases<&mut [f32]>, sums: &Tensor, dy_td: &Tensor) {
    let width = sums.cols() / 2;
    if let Some(gate) = biases.gate {
        (0..sums.rows()).for_each(|b| add_assign(gate, &sums.row(b)[..width]));
    }
    if let Some(up) = biases.up {
        (0..sums.rows()).for_each(|b| add_assign(up, &sums.row(b)[width..]));
    }
    if let Some(down) = biases.down {
        crate::ops::add::bias_backward(dy_td, down);
    }
}

#[cfg(test)]
mod tests;
