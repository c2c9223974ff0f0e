//! Feed-forward layers, dense and by experts.
//!
//! T tokens, S slots (token–expert pairs sorted by expert, see [`Assignment`]), D model width, I expert width. For the
//! slot `s` of token `t` on expert `e` with weight `w_s`:
//!
//! `g = Wg_e·x_t`, `u = Wu_e·x_t`, `a = silu(g) ⊙ u`, `o_s = Wd_e·a`, and `y_t = Σ_s w_s·o_s` in the order of the choices;
//! without a gate `a = f(u)`. Backward, with `a' = Wdᵀ·dy_t`: `dw_s = a'·a`, `da = w_s·a'`, so no output is kept;
//! `dWd += dy_t ⊗ w_s·a`, `dWg += dg ⊗ x_t`, `dWu += du ⊗ x_t`, `dx_t = Σ_s (Wgᵀ·dg + Wuᵀ·du)`.
//!
//! A task takes a block of one expert's slots through all of it while the block is in the cache. A dense layer is the
//! case of one expert that takes every token with weight one.

use std::cmp::Reverse;
use std::ops::Range;

use crate::gemm::{Left, Source, Store, gemm_here};
use crate::memory::Buffer;
use crate::ops::activation::{Activation, activate, activate_backward, swiglu, swiglu_backward};
use crate::ops::add::{add_assign, scale};
use crate::ops::grouped_linear::{BLOCK_ROWS, Contraction, Product, blocks};
use crate::ops::lanes::lanes;
use crate::ops::linear::Weight;
use crate::ops::router::{Assignment, DROPPED};
use crate::quant::product::{Factor, QuantizedInput, QuantizedWeight, Rows, products};
use crate::simd::kernel;
use crate::tensor::Tensor;
use crate::threads::{Shared, num_threads, parallel, parallel_ranges};

/// Blocks of slots for each thread from which on a thread takes whole blocks through quantised weights. Fewer would leave
/// threads without work at the end.
const BLOCKS_PER_THREAD: usize = 16;

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

/// Room for `len` numbers of a block's rows, `width` in each.
fn block_scratch(len: usize, width: usize) -> Buffer<f32> {
    let mut scratch = Buffer::scratch(BLOCK_ROWS * width);
    scratch.truncate(len);
    scratch
}

fn add_bias(rows: &mut [f32], bias: Option<&[f32]>) {
    if let Some(bias) = bias {
        rows.chunks_exact_mut(bias.len()).for_each(|row| add_assign(row, bias));
    }
}

/// `y [T, D]` from `x [T, D]`.
pub fn forward(x_td: &Tensor, mlp: &Mlp<'_>, assignment: &Assignment) -> (Tensor, Saved) {
    if let (Weight::Quantized(up), Weight::Quantized(down)) = (mlp.up, mlp.down) {
        return forward_quantized(x_td, mlp, (up, down), assignment);
    }
    let (d, width, slots) = (x_td.cols(), mlp.up.strips().out, assignment.slots());
    let operand = mlp.up.packed().operand();
    let mut saved =
        Saved { gate_si: mlp.gate.map(|_| Tensor::scratch(&[slots, width])), up_si: Tensor::scratch(&[slots, width]) };
    let mut out_sd = Tensor::scratch(&[slots, d]);
    {
        let gate_si = saved.gate_si.as_deref_mut().map(Shared::new);
        let up_si = Shared::new(&mut saved.up_si);
        let out_sd = Shared::new(&mut out_sd);
        let blocks = blocks(&assignment.offsets_e);
        parallel(blocks.len(), |b| {
            let (e, slots) = (blocks[b].group(), blocks[b].rows());
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
    (combine(out_sd, assignment, Some(&assignment.weight_s)), saved)
}

/// The same with quantised weights.
fn forward_quantized(
    x_td: &Tensor,
    mlp: &Mlp<'_>,
    (up, down): (&QuantizedWeight, &QuantizedWeight),
    assignment: &Assignment,
) -> (Tensor, Saved) {
    let (d, slots) = (x_td.cols(), assignment.slots());
    let gate = mlp.gate.map(|gate| match gate {
        Weight::Quantized(gate) => gate,
        Weight::Packed(_) => panic!("the weights of a layer are quantised all or none"),
    });
    let x = QuantizedInput::pack(x_td, d, up.format());
    let other = gate.filter(|gate| gate.format().block_len() != up.format().block_len());
    let x_gate = other.map(|gate| QuantizedInput::pack(x_td, d, gate.format()));
    let experts = QuantizedMlp { gate, up, down, x: &x, x_gate: x_gate.as_ref(), mlp };
    let mut out_sd = Tensor::scratch(&[slots, d]);
    let mut blocks = blocks(&assignment.offsets_e);
    if blocks.len() < BLOCKS_PER_THREAD * num_threads() {
        let rows = Rows { index: Some(&assignment.token_s), offsets: &assignment.offsets_e, first: 0 };
        experts.run(rows, &mut out_sd);
    } else {
        // The largest first, so that nobody waits long for the last one.
        blocks.sort_unstable_by_key(|block| Reverse(block.rows().len()));
        let out = Shared::new(&mut out_sd);
        parallel(blocks.len(), |b| {
            let slots = blocks[b].rows();
            let (offsets, index) = ([0, slots.len() as u32], &assignment.token_s[slots.clone()]);
            // SAFETY: each block is another range of slots.
            let out = unsafe { out.range(slots.start * d..slots.end * d) };
            experts.run(Rows { index: Some(index), offsets: &offsets, first: blocks[b].group() }, out);
        });
    }
    // Nothing is kept: quantised weights have no way back.
    let saved = Saved { gate_si: None, up_si: Tensor::scratch(&[0, up.strips().out]) };
    (combine(out_sd, assignment, Some(&assignment.weight_s)), saved)
}

/// A layer with quantised weights, and its input.
struct QuantizedMlp<'a> {
    gate: Option<&'a QuantizedWeight>,
    up: &'a QuantizedWeight,
    down: &'a QuantizedWeight,
    x: &'a QuantizedInput,
    /// The input for the gate, where its format needs another.
    x_gate: Option<&'a QuantizedInput>,
    mlp: &'a Mlp<'a>,
}

impl QuantizedMlp<'_> {
    /// Writes the outputs of some slots: on all threads, or on this one in a task. Each product is of all experts at once,
    /// so that a single token keeps all threads busy.
    fn run(&self, rows: Rows<'_>, out: &mut [f32]) {
        let (width, slots) = (self.up.strips().out, rows.offsets.last().map_or(0, |slots| *slots as usize));
        let biases = &self.mlp.biases;
        let mut up_si = Tensor::scratch(&[slots, width]);
        let mut act_si = Tensor::scratch(&[slots, width]);
        let up = Factor { weight: self.up, y: &mut up_si };
        if let Some(gate) = self.gate {
            let mut gate_si = Tensor::scratch(&[slots, width]);
            let gate = Factor { weight: gate, y: &mut gate_si };
            match self.x_gate {
                None => products(self.x, rows, [gate, up], Store::Overwrite),
                Some(x_gate) => {
                    products(x_gate, rows, [gate], Store::Overwrite);
                    products(self.x, rows, [up], Store::Overwrite);
                }
            }
            add_bias(&mut gate_si, biases.gate);
            add_bias(&mut up_si, biases.up);
            each_slot(&mut act_si, |range, act| swiglu(&gate_si[range.clone()], &up_si[range], act));
        } else {
            products(self.x, rows, [up], Store::Overwrite);
            add_bias(&mut up_si, biases.up);
            each_slot(&mut act_si, |range, act| activate(self.mlp.activation, &up_si[range], act));
        }
        let act = QuantizedInput::pack(&act_si, width, self.down.format());
        products(&act, Rows { index: None, ..rows }, [Factor { weight: self.down, y: out }], Store::Overwrite);
        add_bias(out, biases.down);
    }
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
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::gemm::Operand;
    use crate::ops::linear::PackedWeight;
    use crate::ops::router;
    use crate::quant::{BlockFormat, quantize};
    use crate::testing::{finite_differences, numbers, on_every_isa, on_every_isa_and_threads, relative_error, wide};

    /// A layer of E experts and the numbers of its case.
    struct Case {
        tokens: usize,
        d: usize,
        width: usize,
        experts: usize,
        gated: bool,
        activation: Activation,
        /// Which expert each (token, choice) goes to.
        routing: router::Routing,
    }

    impl Case {
        /// Tokens choose by the logits, `[T, E]`.
        fn new(logits: &[f32], experts: usize, top_k: usize, d: usize, width: usize, gated: bool) -> Case {
            let tokens = logits.len() / experts;
            let routing = router::forward(Tensor::new(logits, &[tokens, experts]), top_k, false);
            Case { tokens, d, width, experts, gated, activation: Activation::Silu, routing }
        }

        fn weights(&self) -> [Vec<f32>; 3] {
            let len = self.experts * self.width * self.d;
            [numbers(1, if self.gated { len } else { 0 }), numbers(2, len), numbers(3, len)]
        }

        /// `y` and, of `dy`, the gradients of x, the slots' weights, and the three weights, one after the other.
        fn run(&self, x: &[f32], dy: &[f32], operand: Operand) -> Vec<f32> {
            let (e, d, i) = (self.experts, self.d, self.width);
            let [wg, wu, wd] = self.weights();
            let pack = |w: &[f32], out, input| {
                let mut packed = PackedWeight::new(e, out, input, operand, true);
                packed.pack(w);
                packed
            };
            let (up, down) = (pack(&wu, i, d), pack(&wd, d, i));
            let gate = self.gated.then(|| pack(&wg, i, d));
            let mlp = Mlp {
                gate: gate.as_ref().map(Weight::Packed),
                up: Weight::Packed(&up),
                down: Weight::Packed(&down),
                activation: self.activation,
                biases: Biases::default(),
            };
            let assignment = router::assign(&self.routing, None);
            let x = Tensor::new(x, &[self.tokens, d]);
            let (y, saved) = forward(&x, &mlp, &assignment);
            let (mut dg, mut du, mut dd) = (vec![0.0; wg.len()], vec![0.0; wu.len()], vec![0.0; wd.len()]);
            let gradients = Gradients {
                gate: self.gated.then_some(&mut dg[..]),
                up: &mut du,
                down: &mut dd,
                biases: Biases::default(),
            };
            let dy = Tensor::new(dy, &[self.tokens, d]);
            let (dx, dweight_s) = backward(&x, &mlp, &assignment, &saved, &dy, gradients);
            let dweights: Vec<f32> = assignment.slot_tk.iter().map(|slot| dweight_s[*slot as usize]).collect();
            [&y[..], &dx, &dweights, &dg, &du, &dd].concat()
        }

        fn naive(&self, x: &[f64], weights_tk: &[f64], wg: &[f64], wu: &[f64], wd: &[f64]) -> Vec<f64> {
            let (d, i, k) = (self.d, self.width, self.routing.ids_tk.cols());
            let mut y = vec![0.0; self.tokens * d];
            let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
            for (at, e) in self.routing.ids_tk.iter().enumerate() {
                let (t, e) = (at / k, *e as usize);
                let x = &x[t * d..(t + 1) * d];
                let project =
                    |w: &[f64], row: usize| -> f64 { x.iter().zip(&w[(e * i + row) * d..]).map(|(x, w)| x * w).sum() };
                let act: Vec<f64> = (0..i)
                    .map(|row| {
                        let u = project(wu, row);
                        match (self.gated, self.activation) {
                            (true, _) => {
                                let g = project(wg, row);
                                g * sigma(g) * u
                            }
                            (false, Activation::Relu) => u.max(0.0),
                            (false, _) => u * sigma(u),
                        }
                    })
                    .collect();
                for row in 0..d {
                    let o: f64 = act.iter().zip(&wd[(e * d + row) * i..]).map(|(a, w)| a * w).sum();
                    y[t * d + row] += weights_tk[at] * o;
                }
            }
            y
        }

        fn check(&self) {
            let (t, d, k) = (self.tokens, self.d, self.routing.ids_tk.cols());
            let (x, dy) = (numbers(4, t * d), numbers(5, t * d));
            let got = on_every_isa(|| self.run(&x, &dy, Operand::F32));
            let [wg, wu, wd] = self.weights().map(|w| wide(&w));
            let (x, dy, w) = (wide(&x), wide(&dy), wide(&self.routing.weights_tk));
            let loss = |y: Vec<f64>| y.iter().zip(&dy).map(|(a, b)| a * b).sum();
            let mut rest = &got[..];
            for (what, expected) in [
                ("y", self.naive(&x, &w, &wg, &wu, &wd)),
                ("dx", finite_differences(&x, |x| loss(self.naive(x, &w, &wg, &wu, &wd)))),
                ("dweights", finite_differences(&w, |w| loss(self.naive(&x, w, &wg, &wu, &wd)))),
                ("dWg", finite_differences(&wg, |wg| loss(self.naive(&x, &w, wg, &wu, &wd)))),
                ("dWu", finite_differences(&wu, |wu| loss(self.naive(&x, &w, &wg, wu, &wd)))),
                ("dWd", finite_differences(&wd, |wd| loss(self.naive(&x, &w, &wg, &wu, wd)))),
            ] {
                let error = relative_error(&rest[..expected.len()], &expected);
                assert!(
                    error < 1e-6,
                    "{what} of {t} tokens, {} experts, top {k}, gate {}: {error}",
                    self.experts,
                    self.gated
                );
                rest = &rest[expected.len()..];
            }
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        // One token; an odd everything; all tokens on one expert and none on another; no token at all.
        Case::new(&numbers(9, 4), 4, 2, 3, 5, true).check();
        Case::new(&numbers(8, 7 * 3), 3, 2, 5, 7, true).check();
        Case::new(&[0.0, 9.0, 1.0].repeat(19), 3, 1, 4, 3, true).check();
        Case::new(&[], 3, 1, 4, 3, true).check();
        let mut plain = Case::new(&numbers(7, 5 * 4), 4, 3, 4, 6, false);
        plain.check();
        plain.activation = Activation::Relu;
        plain.check();
    }

    #[test]
    fn many_slots_many_blocks_and_any_batch() {
        let (experts, top_k, d, width, tokens) = (5, 2, 40, 36, 300);
        let logits = numbers(1, tokens * experts);
        let (x, dy) = (numbers(4, tokens * d), numbers(5, tokens * d));
        for operand in [Operand::F32, Operand::Bf16] {
            let run = |range: Range<usize>| {
                let logits = &logits[range.start * experts..range.end * experts];
                let case = Case::new(logits, experts, top_k, d, width, true);
                case.run(&x[range.start * d..range.end * d], &dy[range.start * d..range.end * d], operand)
            };
            let all = on_every_isa(|| run(0..tokens));
            for range in [0..1, 17..29, 150..300] {
                let some = run(range.clone());
                let (n, own) = (range.len() * d, range.start * d..range.end * d);
                assert_eq!(some[..n], all[own.clone()], "outputs of tokens {range:?}");
                assert_eq!(some[n..2 * n], all[tokens * d..][own], "input gradients of tokens {range:?}");
            }
        }
    }

    #[test]
    fn a_dropped_choice_adds_nothing() {
        let case = Case::new(&[0.0, 5.0].repeat(4), 2, 1, 3, 4, true);
        let [wg, wu, wd] = case.weights();
        let pack = |w: &[f32], out, input| {
            let mut packed = PackedWeight::new(2, out, input, Operand::F32, false);
            packed.pack(w);
            packed
        };
        let (gate, up, down) = (pack(&wg, 4, 3), pack(&wu, 4, 3), pack(&wd, 3, 4));
        let biases = Biases::default();
        let mlp = Mlp {
            gate: Some(Weight::Packed(&gate)),
            up: Weight::Packed(&up),
            down: Weight::Packed(&down),
            activation: Activation::Silu,
            biases,
        };
        let x = Tensor::new(&numbers(4, 12), &[4, 3]);
        let (all, _) = forward(&x, &mlp, &router::assign(&case.routing, None));
        let (some, _) = forward(&x, &mlp, &router::assign(&case.routing, Some(3)));
        assert_eq!(some[..9], all[..9]);
        assert_eq!(some[9..], [0.0; 3]);
    }

    /// Many experts with rows, so that threads take whole blocks, and few, so that they share every product: the same bits.
    #[test]
    fn quantised_tokens_alone_are_tokens_together() {
        let (experts, d, width, tokens) = (40, 64, 96, 50);
        let pack = |seed: usize, out: usize, input: usize, format: BlockFormat| {
            let mut blocks = vec![0; format.bytes(experts * out * input).unwrap()];
            quantize(format, &numbers(seed, experts * out * input), &mut blocks);
            let mut weight = QuantizedWeight::new(format, experts, out, input);
            weight.pack(0..weight.strips().count(), &blocks);
            weight
        };
        let gate = pack(1, width, d, BlockFormat::Q5_1);
        let (up, down) = (pack(2, width, d, BlockFormat::Q8_0), pack(3, d, width, BlockFormat::Q4_0));
        let (x, logits) = (numbers(4, tokens * d), numbers(5, tokens * experts));
        for gate in [Some(&gate), None] {
            let run = |tokens: Range<usize>| {
                let logits = &logits[tokens.start * experts..tokens.end * experts];
                let routing = router::forward(Tensor::new(logits, &[tokens.len(), experts]), 3, false);
                let mlp = Mlp {
                    gate: gate.map(Weight::Quantized),
                    up: Weight::Quantized(&up),
                    down: Weight::Quantized(&down),
                    activation: Activation::Silu,
                    biases: Biases::default(),
                };
                let x = Tensor::new(&x[tokens.start * d..tokens.end * d], &[tokens.len(), d]);
                forward(&x, &mlp, &router::assign(&routing, None)).0.to_vec()
            };
            let together = on_every_isa_and_threads(|| run(0..tokens));
            let alone: Vec<f32> = (0..tokens).flat_map(|token| run(token..token + 1)).collect();
            assert_eq!(together, alone);
        }
    }
}
