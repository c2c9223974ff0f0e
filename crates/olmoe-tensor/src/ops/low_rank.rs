//! Low-rank adapters of matrices: `y = W·x + s·B·(A·x)`, with DoRA `y = c ⊙ (W·x + s·B·(A·x))`, for one matrix and for
//! the matrices of experts.
//!
//! Shapes: `x [S, in]`, `W [E, out, in]`, `A [E, r, in]`, `B [E, out, r]`, `c [E, out]`, `y [S, out]`; a side of an
//! adapter that all experts share is the only one of its kind. With `t = s·A·x` and `z = W·x + B·t`, the backward pass
//! has `dz = c ⊙ dy`, `u = s·Bᵀ·dz`, `dB += dz ⊗ t`, `dA += u ⊗ x`, `dx = Wᵀ·dz + Aᵀ·u`, and for the magnitude `m`, of
//! which `c = m/n` with norms n that count as constants, `dm += Σ dy ⊙ z/n`.

use crate::gemm::{Left, Source, Store, gemm_here};
use crate::memory::Buffer;
use crate::ops::add::{add_assign, scale};
use crate::ops::grouped_linear::BLOCK_ROWS;
use crate::ops::linear::{LinearInput, PackedWeight, Weight, backward_input, backward_weight, pack_saved};
use crate::ops::noise::{GOLDEN, mix};
use crate::simd::kernel;
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel, parallel_ranges};

/// An adapter of a matrix, or of the matrices of experts.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    /// `[E, r, in]`, or one for all experts.
    pub a: &'a PackedWeight,
    /// `[E, out, r]`, or one for all experts.
    pub b: &'a PackedWeight,
    /// The constant s.
    pub scale: f32,
    /// What the rows are multiplied by, with DoRA.
    pub rows: Option<RowFactors<'a>>,
    /// In training, which inputs of A are left out.
    pub dropout: Option<Dropout<'a>>,
}

/// The inputs of A that are left out. The choice depends on the key of the token, the seed, the expert and the column
/// alone, so that it is the same in every pass, for any batch and on any number of threads.
#[derive(Clone, Copy)]
pub struct Dropout<'a> {
    /// The probability with which an input is left out; the others are divided by one minus it.
    pub probability: f32,
    /// That of the matrix.
    pub seed: u64,
    /// A key for each token, `[T]`.
    pub keys_t: &'a [u64],
}

impl Dropout<'_> {
    /// Multiplies the inputs of a token, or their gradients, by 0 or by `1/(1 − p)`.
    fn apply(&self, token: usize, expert: usize, row: &mut [f32]) {
        let state = mix(self.keys_t[token] ^ mix(self.seed ^ mix(expert as u64 + 1)));
        let (threshold, kept) =
            ((f64::from(self.probability) * 4_294_967_296.0) as u64, 1.0 / (1.0 - self.probability));
        for (pair, numbers) in row.chunks_mut(2).enumerate() {
            let bits = mix(state.wrapping_add((pair as u64).wrapping_mul(GOLDEN)));
            for (x, bits) in numbers.iter_mut().zip([bits & 0xffff_ffff, bits >> 32]) {
                *x *= if bits < threshold { 0.0 } else { kept };
            }
        }
    }
}

/// The token of each row.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a> {
    /// Where present, row i is of token `index[i]`, otherwise of token `first + i`.
    pub(super) index: Option<&'a [u32]>,
    pub(super) first: usize,
}

impl Tokens<'_> {
    /// Row i is of token i.
    pub(super) const ALL: Tokens<'static> = Tokens { index: None, first: 0 };

    fn of(&self, row: usize) -> usize {
        self.index.map_or(self.first + row, |index| index[row] as usize)
    }
}

/// What DoRA multiplies the rows of a matrix by.
#[derive(Clone, Copy)]
pub struct RowFactors<'a> {
    /// The magnitude of each row divided by its norm, `[E, out]`.
    pub factors: &'a [f32],
    /// The norms, `[E, out]`.
    pub norms: &'a [f32],
}

/// Where the gradients of an adapter are accumulated; `None` for those that are not wanted.
#[derive(Default)]
pub struct LowRankGradients<'a> {
    /// Of A, in its shape.
    pub a: Option<&'a mut [f32]>,
    /// Of B, in its shape.
    pub b: Option<&'a mut [f32]>,
    /// Of the magnitude, `[E, out]`.
    pub magnitude: Option<&'a mut [f32]>,
}

impl LowRankGradients<'_> {
    /// Whether no gradient is wanted.
    pub fn is_empty(&self) -> bool {
        self.a.is_none() && self.b.is_none() && self.magnitude.is_none()
    }
}

/// The number of a group's matrix, where there may be one for all groups.
fn group_of(weight: &PackedWeight, group: usize) -> usize {
    if weight.strips().groups == 1 { 0 } else { group }
}

kernel! {
    /// `y_rd *= c_d` for each row.
    fn scale_columns[s: S](y: &mut [f32], c: &[f32]) {
        for y in y.chunks_exact_mut(c.len()) {
            crate::ops::lanes::lanes!(s; read [c]; update [y]; write []; { [s.mul(y, c)] })
        }
    }
}

kernel! {
    /// `sum_d += w·y_d·z_d/n_d`
    fn add_magnitude_gradient[s: S](y: &[f32], z: &[f32], n: &[f32], w: f32, sum: &mut [f32]) {
        let w = s.splat(w);
        crate::ops::lanes::lanes!(s; read [y, z, n]; update [sum]; write []; { [s.fma(s.mul(w, y), s.div(z, n), sum)] })
    }
}

impl<'a> RowFactors<'a> {
    fn of(slice: &'a [f32], group: usize, out: usize) -> &'a [f32] {
        &slice[group * out..(group + 1) * out]
    }

    /// Multiplies rows of a group, `[rows, out]`, on the calling thread.
    pub(super) fn scale_here(&self, group: usize, out: usize, y: &mut [f32]) {
        if out > 0 {
            scale_columns(y, RowFactors::of(self.factors, group, out));
        }
    }

    /// Takes the bias and the factors away again: rows of a group before both.
    pub(super) fn divide_here(&self, group: usize, out: usize, bias: Option<&[f32]>, y: &mut [f32]) {
        let factors = RowFactors::of(self.factors, group, out);
        for row in y.chunks_exact_mut(out.max(1)) {
            for (o, y) in row.iter_mut().enumerate() {
                let without = *y - bias.map_or(0.0, |bias| bias[o]);
                // Where the factor is 0 the result tells nothing; the magnitude then has no gradient.
                *y = if factors[o] == 0.0 { 0.0 } else { without / factors[o] };
            }
        }
    }

    /// Adds the gradient of the magnitude from rows of a group: `dy`, and `z` before the factors.
    pub(super) fn gradient_here(
        &self,
        group: usize,
        dy: &[f32],
        z: &[f32],
        weights: Option<&[f32]>,
        dmagnitude: &mut [f32],
    ) {
        let out = dmagnitude.len();
        let norms = RowFactors::of(self.norms, group, out);
        for (i, (dy, z)) in dy.chunks_exact(out.max(1)).zip(z.chunks_exact(out.max(1))).enumerate() {
            add_magnitude_gradient(dy, z, norms, weights.map_or(1.0, |weights| weights[i]), dmagnitude);
        }
    }
}

impl LowRank<'_> {
    /// Rank r.
    pub fn rank(&self) -> usize {
        self.a.strips().out
    }

    /// The columns of the input.
    pub(super) fn input(&self) -> usize {
        self.a.strips().input
    }

    /// The rows of the result.
    pub fn out(&self) -> usize {
        self.b.strips().out
    }

    /// Adds the adapter to `y = W·x [S, out]` of rows in groups, and multiplies by the factors of DoRA. `inputs` are the
    /// same rows, for a matrix of each group and for one that all share. Returns `t = s·A·x [S, r]`.
    pub(super) fn apply(&self, inputs: [&LinearInput<'_>; 2], offsets: &[u32], y: &mut Tensor) -> Tensor {
        let t = self.add(inputs, offsets, y);
        if let Some(rows) = self.rows {
            let out = y.cols();
            let y = Shared::new(y);
            for (group, pair) in offsets.windows(2).enumerate() {
                let first = pair[0] as usize;
                parallel_ranges((pair[1] - pair[0]) as usize, 32, |some| {
                    // SAFETY: the ranges of a parallel loop are disjoint.
                    let y = unsafe { y.range((first + some.start) * out..(first + some.end) * out) };
                    rows.scale_here(group, out, y);
                });
            }
        }
        t
    }

    /// Adds `B·t` to `y [S, out]`; returns `t = s·A·x [S, r]`.
    fn add(&self, [grouped, shared]: [&LinearInput<'_>; 2], offsets: &[u32], y: &mut Tensor) -> Tensor {
        let experts = offsets.len() - 1;
        let own = |weight: &PackedWeight| weight.strips().groups == experts;
        let mut t = if own(self.a) { grouped } else { shared }.times(Weight::Packed(self.a));
        scale(&mut t, self.scale);
        let input = match own(self.b) {
            true => LinearInput::grouped(&t, None, offsets),
            false => LinearInput::new(&t),
        };
        input.add_to(Weight::Packed(self.b), y);
        t
    }

    /// The adapter of one matrix with the input `x [T, in]`: adds to `y = W·x [T, out]`, and multiplies by the factors of
    /// DoRA.
    pub fn forward(&self, x: &LinearInput<'_>, y: &mut Tensor) {
        let offsets = [0, y.rows() as u32];
        let dropped = self.dropped(x.rows(), Tokens::ALL);
        let own = dropped.as_ref().map(LinearInput::new);
        let x = own.as_ref().unwrap_or(x);
        self.apply([x, x], &offsets, y);
    }

    /// The rows of `x`, which are of these tokens, without the inputs that are left out; none where none are.
    pub(super) fn dropped(&self, x: &Tensor, tokens: Tokens<'_>) -> Option<Tensor> {
        self.dropped_slots(Source::new(x, x.cols()), &[0, x.rows() as u32], tokens)
    }

    /// The same for the rows of experts.
    pub(super) fn dropped_slots(&self, source: Source<'_>, offsets_e: &[u32], tokens: Tokens<'_>) -> Option<Tensor> {
        let (dropout, input) = (self.dropout?, self.input());
        let rows = offsets_e.last().map_or(0, |rows| *rows as usize);
        let mut x = Tensor::scratch(&[rows, input]);
        let shared = Shared::new(&mut x);
        parallel_ranges(rows, 8, |some| {
            for row in some {
                let expert = offsets_e.partition_point(|first| *first as usize <= row) - 1;
                // SAFETY: each row is another one.
                let out = unsafe { shared.range(row * input..(row + 1) * input) };
                out.copy_from_slice(source.row(row, 0..input));
                dropout.apply(tokens.of(row), expert, out);
            }
        });
        Some(x)
    }

    /// The rows of a block of an expert without the inputs that are left out, on the calling thread.
    pub(super) fn dropped_here(
        &self,
        expert: usize,
        source: Source<'_>,
        rows: usize,
        tokens: Tokens<'_>,
    ) -> Option<Buffer<f32>> {
        let (dropout, input) = (self.dropout?, self.input());
        let mut x = Buffer::scratch(BLOCK_ROWS * input);
        x.truncate(rows * input);
        for (i, out) in x.chunks_exact_mut(input.max(1)).enumerate() {
            out.copy_from_slice(source.row(i, 0..input));
            dropout.apply(tokens.of(i), expert, out);
        }
        Some(x)
    }

    /// `t = s·A·x [T, r]` of the inputs that are not left out.
    pub(super) fn inner(&self, x: &Tensor) -> Tensor {
        let mut t = LinearInput::new(x).times(Weight::Packed(self.a));
        scale(&mut t, self.scale);
        t
    }

    /// The gradient of the result of [`LowRank::forward`] before the factors of DoRA, from the gradient `dy [T, out]` with
    /// them; none without DoRA, where it is the same. Accumulates the gradient of the magnitude.
    pub fn before_factors(
        &self,
        base: Weight<'_>,
        x: &Tensor,
        dy: &Tensor,
        dmagnitude: Option<&mut [f32]>,
    ) -> Option<Tensor> {
        let rows = self.rows?;
        if let Some(dmagnitude) = dmagnitude {
            let input = LinearInput::new(x);
            let mut z = input.times(base);
            self.add([&input, &input], &[0, dy.rows() as u32], &mut z);
            magnitude_gradient(rows, dy, &z, dmagnitude);
        }
        let mut dz = dy.clone();
        rows_times(&mut dz, rows.factors);
        Some(dz)
    }

    /// Backward of [`LowRank::forward`] of `x [T, in]` from `dz`, the gradient before the factors of DoRA: accumulates the
    /// gradients of A and B; with `input`, returns `u [T, r]`, of which [`LowRank::backward_input`] makes the gradient
    /// of `x`.
    pub fn backward(&self, x: &Tensor, dz: &Tensor, gradients: LowRankGradients<'_>, input: bool) -> Option<Tensor> {
        let operand = self.a.operand();
        let dropped = self.dropped(x, Tokens::ALL);
        let x = dropped.as_ref().unwrap_or(x);
        if let Some(db) = gradients.b {
            backward_weight(dz, &pack_saved(&self.inner(x), operand), db);
        }
        if !input && gradients.a.is_none() {
            return None;
        }
        let mut u = Tensor::scratch(&[dz.rows(), self.rank()]);
        backward_input(dz, Weight::Packed(self.b), &mut u, Store::Overwrite);
        scale(&mut u, self.scale);
        if let Some(da) = gradients.a {
            backward_weight(&u, &pack_saved(x, operand), da);
        }
        Some(u)
    }

    /// `dx [T, in] += Aᵀ·u`.
    pub fn backward_input(&self, u: &Tensor, dx: &mut Tensor) {
        if self.dropout.is_none() {
            return backward_input(u, Weight::Packed(self.a), dx, Store::Accumulate);
        }
        add_assign(dx, &self.input_gradient(u, Tokens::ALL));
    }

    /// `Aᵀ·u [T, in]` of the inputs that are not left out.
    pub(super) fn input_gradient(&self, u: &Tensor, tokens: Tokens<'_>) -> Tensor {
        let mut own = Tensor::scratch(&[u.rows(), self.input()]);
        backward_input(u, Weight::Packed(self.a), &mut own, Store::Overwrite);
        self.dropped(&own, tokens).unwrap_or(own)
    }

    /// Adds the adapter to the rows of a block, `y [rows, out]` of `source [rows, in]` of a group, on the calling thread,
    /// and writes `t [rows, r]`. The factors of DoRA are left to the caller.
    pub(super) fn add_here(&self, group: usize, source: Source<'_>, tokens: Tokens<'_>, y: &mut [f32], t: &mut [f32]) {
        let (r, out, operand) = (self.rank(), self.out(), self.a.operand());
        let rows = y.len() / out.max(1);
        let dropped = self.dropped_here(group, source, rows, tokens);
        let source = dropped.as_ref().map_or(source, |x| Source::new(x, self.input()));
        let mut left = Left::scratch_of(BLOCK_ROWS, rows, self.input(), operand);
        left.repack_rows(source);
        gemm_here(left.panels(), self.a.forward().group(group_of(self.a, group)), t, Store::Overwrite);
        scale(t, self.scale);
        let mut left = Left::scratch_of(BLOCK_ROWS, rows, r, operand);
        left.repack_rows(Source::new(t, r));
        gemm_here(left.panels(), self.b.forward().group(group_of(self.b, group)), y, Store::Accumulate);
    }

    /// `u = s·Bᵀ·dz [rows, r]` of `dz [rows, out]` of a group, and `dx [rows, in] += Aᵀ·u`, on the calling thread.
    pub(super) fn backward_here(
        &self,
        group: usize,
        dz: Source<'_>,
        tokens: Tokens<'_>,
        u: &mut [f32],
        dx: Option<&mut [f32]>,
    ) {
        let (r, out, operand) = (self.rank(), self.out(), self.a.operand());
        let rows = u.len() / r.max(1);
        let mut left = Left::scratch_of(BLOCK_ROWS, rows, out, operand);
        left.repack_rows(dz);
        gemm_here(left.panels(), self.b.backward().group(group_of(self.b, group)), u, Store::Overwrite);
        scale(u, self.scale);
        if let Some(dx) = dx {
            let mut left = Left::scratch_of(BLOCK_ROWS, rows, r, operand);
            left.repack_rows(Source::new(u, r));
            let a = self.a.backward().group(group_of(self.a, group));
            if self.dropout.is_none() {
                return gemm_here(left.panels(), a, dx, Store::Accumulate);
            }
            let mut own = Buffer::scratch(BLOCK_ROWS * self.input());
            own.truncate(dx.len());
            gemm_here(left.panels(), a, &mut own, Store::Overwrite);
            if let Some(own) = self.dropped_here(group, Source::new(&own, self.input()), rows, tokens) {
                add_assign(dx, &own);
            }
        }
    }
}

/// Rows whose gradients of the magnitude are summed first, so that the sums do not depend on the threads.
const SUMMED_ROWS: usize = 64;

fn magnitude_gradient(rows: RowFactors<'_>, dy: &Tensor, z: &Tensor, dmagnitude: &mut [f32]) {
    let (count, out) = (dy.rows().div_ceil(SUMMED_ROWS), dy.cols());
    let mut sums = Tensor::zeros(&[count, out]);
    let shared = Shared::new(&mut sums);
    parallel(count, |task| {
        let some = task * SUMMED_ROWS..((task + 1) * SUMMED_ROWS).min(dy.rows());
        // SAFETY: each task has a row of its own.
        let sum = unsafe { shared.range(task * out..(task + 1) * out) };
        rows.gradient_here(0, dy.row_range(some.clone()), z.row_range(some), None, sum);
    });
    (0..count).for_each(|row| add_assign(dmagnitude, sums.row(row)));
}

/// Multiplies each row by the factors of its columns.
fn rows_times(y: &mut Tensor, factors: &[f32]) {
    let out = y.cols();
    let (rows, y) = (y.rows(), Shared::new(y));
    parallel_ranges(rows, 32, |some| {
        // SAFETY: the ranges of a parallel loop are disjoint.
        let y = unsafe { y.range(some.start * out..some.end * out) };
        if out > 0 {
            scale_columns(y, factors);
        }
    });
}

/// `‖W + s·B·A‖` of each row, `[E, out]`, infinity for a row of zeros, for a matrix that is also packed for the backward product, or quantised; `a`
/// and `b` are the numbers of A and B.
///
/// `‖w + s·bA‖² = ‖w‖² + 2s·b·(A·w) + s²·b·(A·Aᵀ)·b`, where `A·w` of all rows is the product of the matrix with the rows
/// of A as inputs, so that the norm belongs to the matrix as the forward pass multiplies it.
pub fn row_norms(w: Weight<'_>, a: &[f32], b: &[f32], rank: usize, s: f32) -> Buffer<f32> {
    let shape = w.strips();
    let (experts, out, input) = (shape.groups, shape.out, shape.input);
    let own_a = a.len() == experts * rank * input;
    let own_b = b.len() == experts * out * rank;
    let a = Tensor::new(a, &[a.len() / input.max(1), input]);
    let offsets: Vec<u32> = (0..=experts).map(|e| (e * rank) as u32).collect();
    let index: Vec<u32> = (0..experts * rank).map(|at| if own_a { at } else { at % rank } as u32).collect();
    let crossed = LinearInput::grouped(&a, Some(&index), &offsets).times(w);
    let mut norms = Buffer::scratch(experts * out);
    let shared = Shared::new(&mut norms);
    parallel(shape.count(), |strip| {
        let (group, rows) = shape.rows(strip);
        let count = rows.len();
        // The rows of the strip are its product with the identity.
        let mut identity = Buffer::<f32>::zeroed(count * count);
        (0..count).for_each(|i| identity[i * count + i] = 1.0);
        let mut left = Left::scratch(count, count, w.operand());
        left.repack_rows(Source::new(&identity, count));
        let mut own = Buffer::<f32>::scratch(count * input);
        w.backward_here(left.panels(), group, rows.clone(), &mut own, Store::Overwrite);
        let first_a = if own_a { group * rank } else { 0 };
        let products: Vec<f64> =
            (0..rank * rank).map(|at| dot64(a.row(first_a + at / rank), a.row(first_a + at % rank))).collect();
        // SAFETY: each strip has rows of its own.
        let out_rows = unsafe { shared.range(group * out + rows.start..group * out + rows.end) };
        for (i, norm) in out_rows.iter_mut().enumerate() {
            let row = rows.start + i;
            let b = &b[(if own_b { group * out } else { 0 } + row) * rank..][..rank];
            let mut square = dot64(&own[i * input..(i + 1) * input], &own[i * input..(i + 1) * input]);
            for (k, bk) in b.iter().enumerate() {
                let bk = f64::from(s) * f64::from(*bk);
                square += 2.0 * bk * f64::from(crossed[(group * rank + k) * out + row]);
                let inner: f64 = b.iter().zip(&products[k * rank..]).map(|(b, p)| f64::from(*b) * p).sum();
                square += bk * f64::from(s) * inner;
            }
            // A row of zeros stays one: its factor is 0, and so is its gradient.
            *norm = if square > 0.0 { square.sqrt() as f32 } else { f32::INFINITY };
        }
    });
    norms
}

fn dot64(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_inputs_are_left_out_as_are_asked_for() {
        let (tokens, width) = (64, 501);
        let keys: Vec<u64> = (0..tokens as u64).collect();
        let dropout = Dropout { probability: 0.3, seed: 5, keys_t: &keys };
        let rows = |expert: usize| {
            let mut x = Tensor::new(&vec![1.0; tokens * width], &[tokens, width]);
            (0..tokens).for_each(|t| dropout.apply(t, expert, x.row_mut(t)));
            x
        };
        let x = rows(0);
        let left_out = x.iter().filter(|x| **x == 0.0).count() as f64 / x.len() as f64;
        assert!((left_out - 0.3).abs() < 0.01, "{left_out}");
        assert!(x.iter().all(|x| *x == 0.0 || (*x - 1.0 / 0.7).abs() < 1e-6));
        let same = x.iter().zip(rows(1).iter()).filter(|(a, b)| a == b).count() as f64 / x.len() as f64;
        assert!((same - 0.58).abs() < 0.02, "another expert leaves out others: {same}");
    }
}
