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
use crate::ops::activation::{Nonlinearity, activate, swiglu};
use crate::ops::add::add_assign;
use crate::ops::grouped_linear::{BLOCK_ROWS, blocks};
use crate::ops::lanes::lanes;
use crate::ops::linear::{LinearInput, Weight};
use crate::ops::low_rank::{LowRank, LowRankGradients, Tokens};
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
    /// Biases of a dense layer: `[I]`, `[I]`, `[D]`.
    pub biases: PerMatrix<&'a [f32]>,
    /// Low-rank adapters.
    pub adapters: PerMatrix<LowRank<'a>>,
}

/// A value for each matrix of the layer; `None` where it has none.
#[derive(Clone, Copy, Debug)]
pub struct PerMatrix<T> {
    /// Of the gate.
    pub gate: Option<T>,
    /// Of the other input projection.
    pub up: Option<T>,
    /// Of the output projection.
    pub down: Option<T>,
}

impl<T> Default for PerMatrix<T> {
    fn default() -> Self {
        PerMatrix { gate: None, up: None, down: None }
    }
}

impl<T> PerMatrix<T> {
    /// The values of each matrix, mapped.
    fn map<U>(self, mut to: impl FnMut(T) -> U) -> PerMatrix<U> {
        PerMatrix { gate: self.gate.map(&mut to), up: self.up.map(&mut to), down: self.down.map(&mut to) }
    }

    fn as_ref(&self) -> PerMatrix<&T> {
        PerMatrix { gate: self.gate.as_ref(), up: self.up.as_ref(), down: self.down.as_ref() }
    }

    fn as_mut(&mut self) -> PerMatrix<&mut T> {
        PerMatrix { gate: self.gate.as_mut(), up: self.up.as_mut(), down: self.down.as_mut() }
    }
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
    /// The tokens of some slots.
    fn tokens(self, some: Range<usize>) -> Tokens<'a> {
        Tokens { index: self.index.map(|index| &index[some.clone()]), first: some.start }
    }

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
    pub biases: PerMatrix<&'a mut [f32]>,
    /// Adapters.
    pub adapters: PerMatrix<LowRankGradients<'a>>,
}

/// What the backward pass needs: the inputs of the activation function, and `t = s·A·x [S, r]` of each adapter.
pub struct MlpSaved {
    gate_si: Option<Tensor>,
    up_si: Tensor,
    low_rank: PerMatrix<Tensor>,
}

impl MlpSaved {
    fn scratch(slots: usize, mlp: &MlpWeights<'_>) -> MlpSaved {
        let room = || Tensor::scratch(&[slots, mlp.up.strips().out]);
        let low_rank = mlp.adapters.map(|adapter| Tensor::scratch(&[slots, adapter.rank()]));
        MlpSaved { gate_si: mlp.gate.map(|_| room()), up_si: room(), low_rank }
    }

    /// For tasks that fill it.
    fn shared(&mut self) -> SharedSaved<'_> {
        SharedSaved {
            gate: self.gate_si.as_deref_mut().map(Shared::new),
            up: Some(Shared::new(&mut self.up_si)),
            low_rank: self.low_rank.as_mut().map(|t| Shared::new(t)),
        }
    }
}

/// What is kept, for tasks that fill it; nothing where nothing is kept.
#[derive(Default)]
struct SharedSaved<'a> {
    gate: Option<Shared<'a, f32>>,
    up: Option<Shared<'a, f32>>,
    low_rank: PerMatrix<Shared<'a, f32>>,
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

/// Adds an adapter to the rows of a block, which `source` are the inputs of, and multiplies by the factors of DoRA. Writes
/// `t` to its rows of what is kept.
///
/// # Safety
/// No other block has the slots `some`.
unsafe fn adapt_here(
    adapter: Option<LowRank<'_>>,
    e: usize,
    source: Source<'_>,
    slots: Slots<'_>,
    some: Range<usize>,
    y: &mut [f32],
    kept: Option<&Shared<'_, f32>>,
) {
    let Some(adapter) = adapter else { return };
    let rank = adapter.rank();
    let mut own = Buffer::scratch(0);
    // SAFETY: by the caller's promise.
    let t = unsafe { place(kept, some.start * rank..some.end * rank, rank, &mut own) };
    adapter.add_here(e, source, slots.tokens(some), y, t);
    if let Some(rows) = adapter.rows {
        rows.scale_here(e, adapter.out(), y);
    }
}

/// The outputs of the slots, block by block: intermediate results stay in the cache.
fn by_blocks(slots: Slots<'_>, mlp: &MlpWeights<'_>, keep: bool) -> (Tensor, Option<MlpSaved>) {
    let (d, width) = (slots.rows.cols(), mlp.up.strips().out);
    let operand = mlp.up.operand();
    let mut saved = keep.then(|| MlpSaved::scratch(slots.count(), mlp));
    let mut out_sd = Tensor::scratch(&[slots.count(), d]);
    {
        let kept = saved.as_mut().map_or_else(SharedSaved::default, MlpSaved::shared);
        let out_sd = Shared::new(&mut out_sd);
        for_blocks(slots.offsets_e, |e, some| {
            let mut left = Left::scratch_of(BLOCK_ROWS, some.len(), d, operand);
            left.repack_rows(slots.source(some.clone()));
            let inner = some.start * width..some.end * width;
            let [mut own_gate, mut own_up] = [(); 2].map(|()| Buffer::scratch(0));
            // SAFETY: each block is another range of slots.
            let up = unsafe { place(kept.up.as_ref(), inner.clone(), width, &mut own_up) };
            gemm_here(left.panels(), mlp.up.packed().forward().group(e), up, Store::Overwrite);
            let x = slots.source(some.clone());
            // SAFETY: as above.
            unsafe { adapt_here(mlp.adapters.up, e, x, slots, some.clone(), up, kept.low_rank.up.as_ref()) };
            add_bias(up, mlp.biases.up);
            let mut act = block_scratch(inner.len(), width);
            match mlp.gate {
                Some(weight) => {
                    // SAFETY: as above.
                    let gate = unsafe { place(kept.gate.as_ref(), inner, width, &mut own_gate) };
                    gemm_here(left.panels(), weight.packed().forward().group(e), gate, Store::Overwrite);
                    // SAFETY: as above.
                    unsafe {
                        adapt_here(mlp.adapters.gate, e, x, slots, some.clone(), gate, kept.low_rank.gate.as_ref())
                    };
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
            let act = Source::new(&act, width);
            // SAFETY: as above.
            unsafe { adapt_here(mlp.adapters.down, e, act, slots, some, out, kept.low_rank.down.as_ref()) };
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
    let all = x.ungrouped();
    let every = 0..slots.count();
    let adapt = |adapter: Option<LowRank<'_>>, rows: Source<'_>, inputs: [&LinearInput<'_>; 2], y: &mut Tensor| {
        let adapter = adapter?;
        let Some(own) = adapter.dropped_slots(rows, slots.offsets_e, slots.tokens(every.clone())) else {
            return Some(adapter.apply(inputs, slots.offsets_e, y));
        };
        let own = LinearInput::grouped(&own, None, slots.offsets_e);
        Some(adapter.apply([&own, &own.ungrouped()], slots.offsets_e, y))
    };
    let rows = slots.source(every.clone());
    let mut low_rank = PerMatrix {
        gate: gate_si.as_mut().and_then(|gate_si| adapt(mlp.adapters.gate, rows, [&x, &all], gate_si)),
        up: adapt(mlp.adapters.up, rows, [&x, &all], &mut up_si),
        down: None,
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
    let act = LinearInput::grouped(&act_si, None, slots.offsets_e);
    let mut out_sd = act.times(mlp.down);
    let rows = Source::new(&act_si, act_si.cols());
    low_rank.down = adapt(mlp.adapters.down, rows, [&act, &act.ungrouped()], &mut out_sd);
    add_bias(&mut out_sd, mlp.biases.down);
    (out_sd, keep.then_some(MlpSaved { gate_si, up_si, low_rank }))
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
        let kept = saved.as_mut().map_or_else(SharedSaved::default, MlpSaved::shared);
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
            let up_si = unsafe { place(kept.up.as_ref(), inner.clone(), width, &mut own_up) };
            product::products(&x, rows, [QuantizedFactor { weight: up, y: &mut *up_si }], Store::Overwrite);
            let source = slots.source(some.clone());
            // SAFETY: as above.
            unsafe { adapt_here(mlp.adapters.up, e, source, slots, some.clone(), up_si, kept.low_rank.up.as_ref()) };
            add_bias(up_si, mlp.biases.up);
            match gate {
                Some(gate) => {
                    // SAFETY: as above.
                    let gate_si = unsafe { place(kept.gate.as_ref(), inner, width, &mut own_gate) };
                    let factor = QuantizedFactor { weight: gate, y: &mut *gate_si };
                    product::products(x_gate.as_ref().unwrap_or(&x), rows, [factor], Store::Overwrite);
                    let kept = kept.low_rank.gate.as_ref();
                    // SAFETY: as above.
                    unsafe { adapt_here(mlp.adapters.gate, e, source, slots, some.clone(), gate_si, kept) };
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
            let source = Source::new(&act_si, width);
            // SAFETY: as above.
            unsafe { adapt_here(mlp.adapters.down, e, source, slots, some, out, kept.low_rank.down.as_ref()) };
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

/// The gradients of the outputs of the slots, from `dy [T, D]`. Nothing is copied.
pub fn combine_backward<'a>(dy_td: &'a Tensor, assignment: &'a Assignment) -> OutputGradients<'a> {
    OutputGradients { dy: dispatch(dy_td, assignment), weight_s: &assignment.weight_s }
}

/// `dx [T, D]`: for each token the sum of the gradients of the rows of its slots.
pub fn dispatch_backward(dx_sd: Tensor, assignment: &Assignment) -> Tensor {
    sum_slots(dx_sd, assignment, None)
}

mod backward;
#[cfg(test)]
mod tests;

pub use backward::experts_backward;
