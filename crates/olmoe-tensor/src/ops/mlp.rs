//! Feed-forward layers, dense and by experts.
//!
//! T tokens, S slots (token–expert pairs sorted by expert, see [`Assignment`]), D model width, I expert width. For the
//! slot `s` of token `t` on expert `e` with weight `w_s`:
//!
//! `g = Wg_e·x_t`, `u = Wu_e·x_t`, `a = silu(g) ⊙ u`, `o_s = Wd_e·a`, and `y_t = Σ_s w_s·o_s` in the order of the
//! choices; without a gate `a = f(u)`. Backward, with `a' = Wdᵀ·dy_t`: `dw_s = a'·a`, `da = w_s·a'`, so no output is
//! kept; `dWd += dy_t ⊗ w_s·a`, `dWg += dg ⊗ x_t`, `dWu += du ⊗ x_t`, `dx_t = Σ_s (Wgᵀ·dg + Wuᵀ·du)`.
//!
//! The layer has three steps, so that the experts may be on another rank: [`dispatch`] names the rows of `x` that the
//! slots read, [`experts`] computes the output of each slot from these rows or from copies of them, and [`combine`]
//! sums the outputs of each token. The backward pass has the same steps: [`combine_backward`], [`experts_backward`],
//! [`dispatch_backward`].
//!
//! Where experts have many rows, a task takes a block of slots of one expert through the whole layer while the block is
//! in the cache. Where they have few, each product runs over all experts at once, so that weights stream from memory
//! and even a single token keeps all threads busy. A dense layer is the case of one expert that takes every token with
//! weight one.

use std::cmp::Reverse;
use std::ops::Range;

use crate::gemm::{Left, Source, Store, gemm_here};
use crate::memory::Buffer;
use crate::ops::activation::{Nonlinearity, activate, activate_backward, swiglu, swiglu_backward};
use crate::ops::add::{add_assign, scale};
use crate::ops::grouped_linear::{BLOCK_ROWS, Contraction, LeftFactors, RightFactors, WeightGradient, blocks};
use crate::ops::lanes::lanes;
use crate::ops::linear::{LinearInput, Weight};
use crate::ops::router::{Assignment, DROPPED};
use crate::quant::product::{self, GroupedRows, QuantizedFactor, QuantizedInput};
use crate::simd::kernel;
use crate::tensor::Tensor;
use crate::threads::{Shared, num_threads, parallel, parallel_ranges};

/// The weights of a feed-forward layer, one of each kind for every expert.
#[derive(Clone, Copy)]
pub struct MlpWeights<'a> {
    /// `[E, I, D]`; `None` for a layer without a gate.
    pub gate: Option<Weight<'a>>,
    /// `[E, I, D]`
    pub up: Weight<'a>,
    /// `[E, D, I]`
    pub down: Weight<'a>,
    /// The activation function `f`; always SiLU in a layer with a gate.
    pub activation: Nonlinearity,
    /// Biases of a dense layer.
    pub biases: Biases<&'a [f32]>,
}

/// One value for each bias of the layer; `None` for a bias that it does not have.
#[derive(Clone, Copy, Debug, Default)]
pub struct Biases<T> {
    /// `[I]`
    pub gate: Option<T>,
    /// `[I]`
    pub up: Option<T>,
    /// `[D]`
    pub down: Option<T>,
}

/// The rows that the slots read, expert after expert.
#[derive(Clone, Copy)]
pub struct Slots<'a> {
    /// `[N, D]`
    pub rows: &'a Tensor,
    /// The row that each slot reads, `[S]`; without an index, slot `s` reads row `s`.
    pub index: Option<&'a [u32]>,
    /// Where the slots of each expert begin, and where those of the last one end, `[E + 1]`.
    pub offsets_e: &'a [u32],
}

impl<'a> Slots<'a> {
    fn count(self) -> usize {
        self.offsets_e.last().map_or(0, |count| *count as usize)
    }

    /// The rows of some slots.
    fn source(self, some: Range<usize>) -> Source<'a> {
        match self.index {
            Some(index) => Source::gather(self.rows, self.rows.cols(), &index[some]),
            None => Source::new(self.rows.row_range(some), self.rows.cols()),
        }
    }
}

/// The gradients of the outputs of the slots: for each slot the gradient of its token, times the weight of the slot.
#[derive(Clone, Copy)]
pub struct OutputGradients<'a> {
    /// The gradients of the tokens.
    pub dy: Slots<'a>,
    /// The weights of the slots, `[S]`.
    pub weight_s: &'a [f32],
}

/// Where the gradients of the weights are accumulated; `None` for frozen weights.
pub struct MlpGradients<'a> {
    /// `[E, I, D]`
    pub gate: Option<&'a mut [f32]>,
    /// `[E, I, D]`
    pub up: Option<&'a mut [f32]>,
    /// `[E, D, I]`
    pub down: Option<&'a mut [f32]>,
    /// Biases of a dense layer.
    pub biases: Biases<&'a mut [f32]>,
}

/// What the backward pass needs: the inputs of the activation function.
pub struct MlpSaved {
    gate_si: Option<Tensor>,
    up_si: Tensor,
}

impl MlpSaved {
    fn scratch(slots: usize, mlp: &MlpWeights<'_>) -> MlpSaved {
        let room = || Tensor::scratch(&[slots, mlp.up.strips().out]);
        MlpSaved { gate_si: mlp.gate.map(|_| room()), up_si: room() }
    }

    /// Both inputs for tasks that fill them: that of the gate, where there is one, and the other.
    fn shared(&mut self) -> (Option<Shared<'_, f32>>, Shared<'_, f32>) {
        (self.gate_si.as_deref_mut().map(Shared::new), Shared::new(&mut self.up_si))
    }
}

/// The least mean number of rows of a chosen expert for which the layer is computed block by block.
const MANY_ROWS: usize = 32;
/// The least number of blocks for each thread for which the layer is computed block by block: with fewer, the other
/// threads would wait for the slowest one.
const BLOCKS_PER_THREAD: usize = 4;

fn add_bias(rows: &mut [f32], bias: Option<&[f32]>) {
    if let Some(bias) = bias {
        rows.chunks_exact_mut(bias.len()).for_each(|row| add_assign(row, bias));
    }
}

/// A scratch buffer for `len` numbers of the rows of a block, each of `width` numbers.
fn block_scratch(len: usize, width: usize) -> Buffer<f32> {
    let mut scratch = Buffer::scratch(BLOCK_ROWS * width);
    scratch.truncate(len);
    scratch
}

/// Names the rows of `x [T, D]` that the slots read. Nothing is copied.
pub fn dispatch<'a>(x_td: &'a Tensor, assignment: &'a Assignment) -> Slots<'a> {
    Slots { rows: x_td, index: Some(&assignment.token_s), offsets_e: &assignment.offsets_e }
}

/// The outputs of the slots, `[S, D]`, and with `keep` what the backward pass needs.
pub fn experts(slots: Slots<'_>, mlp: &MlpWeights<'_>, keep: bool) -> (Tensor, Option<MlpSaved>) {
    match mlp.up {
        Weight::Packed(_) if fills_blocks(slots.offsets_e) => by_blocks(slots, mlp, keep),
        Weight::Quantized(..) if fills_blocks(slots.offsets_e) => quantized_by_blocks(slots, mlp, keep),
        _ => by_products(slots, mlp, keep),
    }
}

/// `y [T, D]`: for each token the weighted sum of the outputs of its slots.
pub fn combine(out_sd: Tensor, assignment: &Assignment) -> Tensor {
    sum_slots(out_sd, assignment, Some(&assignment.weight_s))
}

/// Whether the layer is computed block by block: whether experts have so many rows that multiplying takes longer than
/// reading the weights, and there are a few blocks for each thread. The results do not depend on this choice.
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

/// Where a block writes the inputs of the activation function: to `range` of what is kept, or else to a buffer of its
/// own.
///
/// # Safety
/// No other block uses this range.
unsafe fn place<'a>(
    kept: Option<&'a Shared<'_, f32>>,
    range: Range<usize>,
    width: usize,
    own: &'a mut Buffer<f32>,
) -> &'a mut [f32] {
    match kept {
        // SAFETY: by the caller's promise.
        Some(kept) => unsafe { kept.range(range) },
        None => {
            *own = block_scratch(range.len(), width);
            own
        }
    }
}

/// The outputs of the slots, block by block: intermediate results stay in the cache.
fn by_blocks(slots: Slots<'_>, mlp: &MlpWeights<'_>, keep: bool) -> (Tensor, Option<MlpSaved>) {
    let (d, width) = (slots.rows.cols(), mlp.up.strips().out);
    let operand = mlp.up.operand();
    let mut saved = keep.then(|| MlpSaved::scratch(slots.count(), mlp));
    let mut out_sd = Tensor::scratch(&[slots.count(), d]);
    {
        let (kept_gate, kept_up) = saved.as_mut().map(MlpSaved::shared).unzip();
        let kept_gate = kept_gate.flatten();
        let out_sd = Shared::new(&mut out_sd);
        for_blocks(slots.offsets_e, |e, some| {
            let mut left = Left::scratch_of(BLOCK_ROWS, some.len(), d, operand);
            left.repack_rows(slots.source(some.clone()));
            let inner = some.start * width..some.end * width;
            let [mut own_gate, mut own_up] = [(); 2].map(|()| Buffer::scratch(0));
            // SAFETY: each block is another range of slots.
            let up = unsafe { place(kept_up.as_ref(), inner.clone(), width, &mut own_up) };
            gemm_here(left.panels(), mlp.up.packed().forward().group(e), up, Store::Overwrite);
            add_bias(up, mlp.biases.up);
            let mut act = block_scratch(inner.len(), width);
            match mlp.gate {
                Some(weight) => {
                    // SAFETY: as above.
                    let gate = unsafe { place(kept_gate.as_ref(), inner, width, &mut own_gate) };
                    gemm_here(left.panels(), weight.packed().forward().group(e), gate, Store::Overwrite);
                    add_bias(gate, mlp.biases.gate);
                    swiglu(gate, up, &mut act);
                }
                None => activate(mlp.activation, up, &mut act),
            }
            let mut left = Left::scratch_of(BLOCK_ROWS, some.len(), width, operand);
            left.repack_rows(Source::new(&act, width));
            // SAFETY: as above.
            let out = unsafe { out_sd.range(some.start * d..some.end * d) };
            gemm_here(left.panels(), mlp.down.packed().forward().group(e), out, Store::Overwrite);
            add_bias(out, mlp.biases.down);
        });
    }
    (out_sd, saved)
}

/// The outputs of the slots, each product for all experts at once: weights stream from memory, and even a single token
/// keeps all threads busy.
fn by_products(slots: Slots<'_>, mlp: &MlpWeights<'_>, keep: bool) -> (Tensor, Option<MlpSaved>) {
    let x = LinearInput::grouped(slots.rows, slots.index, slots.offsets_e);
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
    let mut out_sd = LinearInput::grouped(&act_si, None, slots.offsets_e).times(mlp.down);
    add_bias(&mut out_sd, mlp.biases.down);
    (out_sd, keep.then_some(MlpSaved { gate_si, up_si }))
}

/// [`by_blocks`] with quantised weights.
fn quantized_by_blocks(slots: Slots<'_>, mlp: &MlpWeights<'_>, keep: bool) -> (Tensor, Option<MlpSaved>) {
    let (d, width) = (slots.rows.cols(), mlp.up.strips().out);
    let (up, down) = (mlp.up.quantized(), mlp.down.quantized());
    let gate = mlp.gate.map(Weight::quantized);
    let x = QuantizedInput::pack(slots.rows, d, up.format());
    let other = gate.filter(|gate| gate.format().block_len() != up.format().block_len());
    let x_gate = other.map(|gate| QuantizedInput::pack(slots.rows, d, gate.format()));
    let mut saved = keep.then(|| MlpSaved::scratch(slots.count(), mlp));
    let mut out_sd = Tensor::scratch(&[slots.count(), d]);
    {
        let (kept_gate, kept_up) = saved.as_mut().map(MlpSaved::shared).unzip();
        let kept_gate = kept_gate.flatten();
        let out_shared = Shared::new(&mut out_sd);
        for_blocks(slots.offsets_e, |e, some| {
            let count = some.len();
            let mut own_index: Buffer<u32>;
            let index = match slots.index {
                Some(index) => &index[some.clone()],
                None => {
                    own_index = Buffer::scratch(BLOCK_ROWS);
                    own_index.truncate(count);
                    own_index.iter_mut().zip(some.clone()).for_each(|(at, slot)| *at = slot as u32);
                    &own_index[..]
                }
            };
            let offsets = [0, count as u32];
            let rows = GroupedRows { index: Some(index), offsets: &offsets, first: e };
            let inner = some.start * width..some.end * width;
            let [mut own_gate, mut own_up] = [(); 2].map(|()| Buffer::scratch(0));
            let mut act_si = block_scratch(inner.len(), width);
            // SAFETY: each block is another range of slots.
            let up_si = unsafe { place(kept_up.as_ref(), inner.clone(), width, &mut own_up) };
            product::products(&x, rows, [QuantizedFactor { weight: up, y: &mut *up_si }], Store::Overwrite);
            add_bias(up_si, mlp.biases.up);
            match gate {
                Some(gate) => {
                    // SAFETY: as above.
                    let gate_si = unsafe { place(kept_gate.as_ref(), inner, width, &mut own_gate) };
                    let factor = QuantizedFactor { weight: gate, y: &mut *gate_si };
                    product::products(x_gate.as_ref().unwrap_or(&x), rows, [factor], Store::Overwrite);
                    add_bias(gate_si, mlp.biases.gate);
                    swiglu(gate_si, up_si, &mut act_si);
                }
                None => activate(mlp.activation, up_si, &mut act_si),
            }
            let act = QuantizedInput::pack(&act_si, width, down.format());
            // SAFETY: as above.
            let out = unsafe { out_shared.range(some.start * d..some.end * d) };
            let rows = GroupedRows { index: None, offsets: &offsets, first: e };
            product::products(&act, rows, [QuantizedFactor { weight: down, y: &mut *out }], Store::Overwrite);
            add_bias(out, mlp.biases.down);
        });
    }
    (out_sd, saved)
}

/// Runs over the blocks (expert, slots) on all threads, the largest ones first, so that the last one is short.
fn for_blocks(offsets_e: &[u32], run: impl Fn(usize, Range<usize>) + Sync) {
    let mut blocks = blocks(offsets_e);
    blocks.sort_unstable_by_key(|block| Reverse(block.rows().len()));
    parallel(blocks.len(), |b| run(blocks[b].group(), blocks[b].rows()));
}

/// Runs over ranges of rows of `y` on all threads; `run` gets the rows and their numbers.
fn each_slot(y: &mut Tensor, run: impl Fn(Range<usize>, &mut [f32]) + Sync) {
    let (rows, width) = (y.rows(), y.cols());
    let shared = Shared::new(y);
    parallel_ranges(rows, 8, |rows| {
        let range = rows.start * width..rows.end * width;
        // SAFETY: the ranges of a parallel loop are disjoint.
        run(range.clone(), unsafe { shared.range(range) });
    });
}

/// `y_t = Σ_k w_s·out_s` over the slots `s` of token `t` in the order of its choices; the plain sum without weights.
fn sum_slots(out_sd: Tensor, assignment: &Assignment, weight_s: Option<&[f32]>) -> Tensor {
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

/// The gradient of a weight as a product, if there is a buffer for it.
fn weight_product<'a>(
    left: &'a Option<LeftFactors>,
    right: &'a Option<RightFactors>,
    dw: Option<&'a mut [f32]>,
) -> Option<WeightGradient<'a>> {
    Some(WeightGradient { left: left.as_ref()?, right: right.as_ref()?, dw: Shared::new(dw?) })
}

/// The gradients of the outputs of the slots, from `dy [T, D]`. Nothing is copied.
pub fn combine_backward<'a>(dy_td: &'a Tensor, assignment: &'a Assignment) -> OutputGradients<'a> {
    OutputGradients { dy: dispatch(dy_td, assignment), weight_s: &assignment.weight_s }
}

/// `dx [T, D]`: for each token the sum of the gradients of the rows of its slots.
pub fn dispatch_backward(dx_sd: Tensor, assignment: &Assignment) -> Tensor {
    sum_slots(dx_sd, assignment, None)
}

/// The gradients of the rows of the slots, `[S, D]`, with `input`, and of the weights of the slots, `[S]`. Accumulates
/// the gradients of the layer's weights.
pub fn experts_backward(
    slots: Slots<'_>,
    mlp: &MlpWeights<'_>,
    saved: &MlpSaved,
    output: OutputGradients<'_>,
    gradients: MlpGradients<'_>,
    input: bool,
) -> (Option<Tensor>, Buffer<f32>) {
    let (d, width, operand) = (slots.rows.cols(), mlp.up.strips().out, mlp.up.operand());
    let OutputGradients { dy, weight_s } = output;
    // The factors of the gradients of the weights, packed block by block.
    let contraction = Contraction::new(slots.offsets_e, operand);
    let mut dgate_factors = gradients.gate.is_some().then(|| contraction.left(width));
    let mut dup_factors = gradients.up.is_some().then(|| contraction.left(width));
    let mut x_factors = (gradients.gate.is_some() || gradients.up.is_some()).then(|| contraction.right(d));
    let mut dy_factors = gradients.down.is_some().then(|| contraction.left(d));
    let mut act_factors = gradients.down.is_some().then(|| contraction.right(width));
    let mut dx_sd = input.then(|| Tensor::scratch(&[slots.count(), d]));
    let mut dweight_s = Buffer::scratch(slots.count());
    let blocks = blocks(slots.offsets_e);
    // Column sums of the blocks of a dense layer, for the gradients of its biases.
    let summed = gradients.biases.gate.is_some() || gradients.biases.up.is_some();
    let mut sums = Tensor::zeros(&[blocks.len() * usize::from(summed), 2 * width]);
    {
        let packed_dgate = dgate_factors.as_mut().map(LeftFactors::shared);
        let packed_dup = dup_factors.as_mut().map(LeftFactors::shared);
        let packed_x = x_factors.as_mut().map(RightFactors::shared);
        let packed_dy = dy_factors.as_mut().map(LeftFactors::shared);
        let packed_act = act_factors.as_mut().map(RightFactors::shared);
        let dx_sd = dx_sd.as_deref_mut().map(Shared::new);
        let dweight_s = Shared::new(&mut dweight_s);
        let sums = Shared::new(&mut sums);
        parallel(blocks.len(), |b| {
            let (e, some) = (blocks[b].group(), blocks[b].rows());
            let (count, inner) = (some.len(), some.len() * width);
            let weights = &weight_s[some.clone()];
            let (x, dy) = (slots.source(some.clone()), dy.source(some.clone()));

            let mut left = Left::scratch_of(BLOCK_ROWS, count, d, operand);
            left.repack_rows(dy);
            let mut dact = block_scratch(inner, width);
            mlp.down.backward_here(left.panels(), e, 0..d, &mut dact, Store::Overwrite);

            // SAFETY: each block is another range of slots.
            let dweight = unsafe { dweight_s.range(some.clone()) };
            let up = saved.up_si.row_range(some.clone());
            let [mut dgate, mut dup, mut act] = [(); 3].map(|()| block_scratch(inner, width));
            for i in 0..count {
                let row = i * width..(i + 1) * width;
                let (dup, act) = (&mut dup[row.clone()], &mut act[row.clone()]);
                let (up, dact) = (&up[row.clone()], &mut dact[row.clone()]);
                dweight[i] = match &saved.gate_si {
                    Some(gate) => {
                        let gate = gate.row(some.start + i);
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

            if let Some(dx_sd) = &dx_sd {
                // SAFETY: as above.
                let dx = unsafe { dx_sd.range(some.start * d..some.end * d) };
                let mut left = Left::scratch_of(BLOCK_ROWS, count, width, operand);
                left.repack_rows(Source::new(&dup, width));
                mlp.up.backward_here(left.panels(), e, 0..width, dx, Store::Overwrite);
                if let Some(gate) = mlp.gate {
                    left.repack_rows(Source::new(&dgate, width));
                    gate.backward_here(left.panels(), e, 0..width, dx, Store::Accumulate);
                }
            }

            // SAFETY: each task packs another block.
            unsafe {
                if let Some(out) = &packed_dgate {
                    contraction.pack_left(out, width, Source::new(&dgate, width), &blocks[b]);
                }
                if let Some(out) = &packed_dup {
                    contraction.pack_left(out, width, Source::new(&dup, width), &blocks[b]);
                }
                if let Some(out) = &packed_dy {
                    contraction.pack_left(out, d, dy, &blocks[b]);
                }
                if let Some(out) = &packed_x {
                    contraction.pack_right(out, d, x, None, &blocks[b]);
                }
                if let Some(out) = &packed_act {
                    contraction.pack_right(out, width, Source::new(&act, width), Some(weights), &blocks[b]);
                }
            }
            if summed {
                // SAFETY: each block is another row.
                let (gate_sum, up_sum) = unsafe { sums.range(b * 2 * width..(b + 1) * 2 * width) }.split_at_mut(width);
                dup.chunks_exact(width).for_each(|row| add_assign(up_sum, row));
                if mlp.gate.is_some() {
                    dgate.chunks_exact(width).for_each(|row| add_assign(gate_sum, row));
                }
            }
        });
    }
    bias_gradients(gradients.biases, &sums, dy.rows);
    contraction.accumulate(&[
        weight_product(&dgate_factors, &x_factors, gradients.gate),
        weight_product(&dup_factors, &x_factors, gradients.up),
        weight_product(&dy_factors, &act_factors, gradients.down),
    ]);
    (dx_sd, dweight_s)
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
