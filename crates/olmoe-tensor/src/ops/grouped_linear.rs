//! `y_s = W_e·x_s` for rows that are sorted by group: each group `e` has a weight of its own.
//!
//! Shapes: `x [S, in]`, `W [E, out, in]`, `y [S, out]`; `offsets_e [E + 1]` says where the rows of each group begin; a
//! group may be empty. Backward: `dx_s = W_eᵀ·dy_s`, `dW_e += Σ_s dy_s ⊗ x_s` over the rows of the group in order. The
//! experts of a mixture-of-experts layer run through [`mlp`](super::mlp), which does more with a block of rows while
//! the block is in the cache; this file has the product alone.

use std::ops::Range;

use crate::gemm::{
    Form, Left, Operand, PANEL_COLS, PANEL_ROWS, Panels, RightFactor, Source, Store, block, pack_columns, panel_count,
    panel_start, products,
};
use crate::memory::Buffer;
use crate::ops::linear::{LinearInput, Weight};
use crate::quant::product;
use crate::tensor::Tensor;
use crate::threads::{Shared, num_threads, parallel};

/// Most left panels, and most rows, of a block of rows.
const BLOCK_PANELS: usize = 8;
pub(super) const BLOCK_ROWS: usize = BLOCK_PANELS * PANEL_ROWS;

/// Consecutive rows of one group.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C)]
pub(super) struct RowBlock {
    group: u32,
    start: u32,
    end: u32,
}

impl RowBlock {
    pub(super) fn group(&self) -> usize {
        self.group as usize
    }

    pub(super) fn rows(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// Divides the rows of each group into even blocks; each block begins an even number of rows after the start of its
/// group.
pub(super) fn blocks(offsets_e: &[u32]) -> Buffer<RowBlock> {
    let rows = offsets_e.last().map_or(0, |rows| *rows as usize);
    // Room for the worst distribution of the rows, so that the size of the buffer does not depend on the distribution.
    let mut all = Buffer::<RowBlock>::scratch(rows / BLOCK_ROWS + 2 * offsets_e.len());
    let mut next = 0;
    for (group, pair) in offsets_e.windows(2).enumerate() {
        let (start, len) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
        let count = panel_count(len).div_ceil(BLOCK_PANELS);
        for b in 0..count {
            let at = |b| (start + panel_start(len, count, b)) as u32;
            all[next] = RowBlock { group: group as u32, start: at(b), end: at(b + 1) };
            next += 1;
        }
    }
    all.truncate(next);
    all
}

fn check(x_si: &Tensor, offsets_e: &[u32]) {
    let covered = offsets_e.last().map_or(0, |rows| *rows as usize);
    assert_eq!(x_si.rows(), covered, "the groups' offsets end at the number of rows");
}

/// `y [S, out]` of `x [S, in]`.
pub fn forward(x_si: &Tensor, offsets_e: &[u32], w: Weight<'_>) -> Tensor {
    check(x_si, offsets_e);
    LinearInput::grouped(x_si, None, offsets_e).times(w)
}

/// `dx [S, in]` of `dy [S, out]`.
pub fn backward_input(dy_so: &Tensor, offsets_e: &[u32], w: Weight<'_>) -> Tensor {
    check(dy_so, offsets_e);
    let mut dx_si = Tensor::scratch(&[dy_so.rows(), w.strips().input]);
    let left = Left::from_groups(Source::new(dy_so, dy_so.cols()), offsets_e, dy_so.cols(), w.operand());
    match w {
        Weight::Packed(w) => {
            products(&left, offsets_e, [RightFactor { weight: w.backward(), y: &mut dx_si }], Store::Overwrite);
        }
        Weight::Quantized(w, _) => product::backward::backward(&left, offsets_e, w, &mut dx_si, Store::Overwrite),
    }
    dx_si
}

/// Left factors `[rows, group]`, whose contraction runs over the rows of a group, packed block by block.
pub(super) struct LeftFactors {
    data: Buffer<f32>,
    rows: usize,
}

/// Right factors, packed in the same way.
pub(super) struct RightFactors {
    data: Buffer<f32>,
    rows: usize,
}

/// How the rows of the groups lie in the contraction of [`LeftFactors`] and [`RightFactors`].
pub(super) struct Contraction<'a> {
    offsets_e: &'a [u32],
    /// Units before each group.
    units_e: Buffer<u32>,
    operand: Operand,
    /// The form of left factors.
    left: Form,
}

impl<'a> Contraction<'a> {
    pub(super) fn new(offsets_e: &'a [u32], operand: Operand) -> Contraction<'a> {
        let mut units_e = Buffer::<u32>::zeroed(offsets_e.len());
        for (e, pair) in offsets_e.windows(2).enumerate() {
            units_e[e + 1] = units_e[e] + operand.units((pair[1] - pair[0]) as usize) as u32;
        }
        Contraction { offsets_e, units_e, operand, left: operand.left() }
    }

    /// The most units that all groups can have together, for any distribution of the rows.
    fn units(&self) -> usize {
        self.operand.units(self.offsets_e.last().map_or(0, |rows| *rows as usize)) + self.offsets_e.len()
    }

    pub(super) fn left(&self, rows: usize) -> LeftFactors {
        LeftFactors { data: Buffer::scratch(rows * self.units() * self.left.unit_words()), rows }
    }

    pub(super) fn right(&self, rows: usize) -> RightFactors {
        RightFactors { data: Buffer::scratch(rows.next_multiple_of(PANEL_COLS) * self.units()), rows }
    }

    /// Units before the group, of the group, of the group before the block, and of the block.
    fn place(&self, at: &RowBlock) -> (usize, usize, usize, usize) {
        let (before, end) = (self.units_e[at.group()] as usize, self.units_e[at.group() + 1] as usize);
        let first = self.operand.units(at.rows().start - self.offsets_e[at.group()] as usize);
        (before, end - before, first, self.operand.units(at.rows().len()))
    }

    /// Packs the columns of the source of a block as its section of left factors.
    ///
    /// # Safety
    /// No other task packs this block.
    pub(super) unsafe fn pack_left(&self, out: &Shared<'_, f32>, rows: usize, source: Source<'_>, at: &RowBlock) {
        let (before, units, first, some) = self.place(at);
        let (count, unit) = (panel_count(rows), self.left.unit_words());
        for p in 0..count {
            let panel = panel_start(rows, count, p)..panel_start(rows, count, p + 1);
            let from = (rows * before + panel.start * units + first * panel.len()) * unit;
            // SAFETY: by the caller's promise.
            let out = unsafe { out.range(from..from + some * unit * panel.len()) };
            pack_columns(source, panel.clone(), at.rows().len(), self.left, panel.len(), None, out);
        }
    }

    /// Packs the columns of the source of a block, row `i` times `scale[i]`, as its section of right factors.
    ///
    /// # Safety
    /// No other task packs this block.
    pub(super) unsafe fn pack_right(
        &self,
        out: &Shared<'_, f32>,
        rows: usize,
        source: Source<'_>,
        scale: Option<&[f32]>,
        at: &RowBlock,
    ) {
        let (before, units, first, some) = self.place(at);
        for p in 0..rows.div_ceil(PANEL_COLS) {
            let from = rows.next_multiple_of(PANEL_COLS) * before + (p * units + first) * PANEL_COLS;
            // SAFETY: by the caller's promise.
            let out = unsafe { out.range(from..from + some * PANEL_COLS) };
            let columns = p * PANEL_COLS..((p + 1) * PANEL_COLS).min(rows);
            pack_columns(source, columns, at.rows().len(), self.operand.right(), PANEL_COLS, scale, out);
        }
    }

    /// `dW_e += left_e·right_eᵀ` for each group that has rows, for several weights at once; those that are `None` are
    /// left out.
    pub(super) fn accumulate(&self, products: &[Option<WeightGradient<'_>>]) {
        let groups = self.offsets_e.len() - 1;
        // A few tasks for each thread even when there are few groups.
        let parts = (4 * num_threads()).div_ceil((groups * products.len()).max(1));
        parallel(groups * products.len() * parts, |task| {
            let (e, part) = (task / parts / products.len(), task % parts);
            let Some(WeightGradient { left, right, dw }) = &products[task / parts % products.len()] else { return };
            let k = (self.offsets_e[e + 1] - self.offsets_e[e]) as usize;
            if k == 0 {
                return;
            }
            let (rows, cols) = (left.rows, right.rows);
            let padded = cols.next_multiple_of(PANEL_COLS);
            let units = self.units_e[e] as usize..self.units_e[e + 1] as usize;
            let panels = panel_count(rows);
            let unit = self.left.unit_words();
            let a = &left.data[rows * units.start * unit..rows * units.end * unit];
            let a = Panels::new(a, rows, k, self.operand, self.left);
            let b = &right.data[padded * units.start..padded * units.end];
            let b = Panels::new(b, cols, k, self.operand, self.operand.right());
            let own = panels * part / parts..panels * (part + 1) / parts;
            // SAFETY: each task writes rows of its own of one group's matrix.
            unsafe {
                let c = dw.range(e * rows * cols..(e + 1) * rows * cols).as_mut_ptr();
                block(a, own, b, 0..padded / PANEL_COLS, c, cols, Store::Accumulate);
            }
        });
    }
}

/// The gradient of one weight: its factors, and where it is accumulated.
pub(super) struct WeightGradient<'a> {
    pub(super) left: &'a LeftFactors,
    pub(super) right: &'a RightFactors,
    pub(super) dw: Shared<'a, f32>,
}

impl LeftFactors {
    /// Rows of the gradient that they are a factor of.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn shared(&mut self) -> Shared<'_, f32> {
        Shared::new(&mut self.data)
    }
}

impl RightFactors {
    /// Columns of the gradient that they are a factor of.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn shared(&mut self) -> Shared<'_, f32> {
        Shared::new(&mut self.data)
    }
}

/// `dW [E, out, in] += dyᵀ·x` of each group, from `dy [S, out]` and `x [S, in]`.
pub fn backward_weight(dy_so: &Tensor, x_si: &Tensor, offsets_e: &[u32], operand: Operand, dw_eoi: &mut [f32]) {
    check(dy_so, offsets_e);
    check(x_si, offsets_e);
    let (out, input) = (dy_so.cols(), x_si.cols());
    assert_eq!(dw_eoi.len(), (offsets_e.len() - 1) * out * input, "dW is [E, out, in]");
    let contraction = Contraction::new(offsets_e, operand);
    let (mut left, mut right) = (contraction.left(out), contraction.right(input));
    {
        let (left, right, blocks) = (left.shared(), right.shared(), blocks(offsets_e));
        parallel(blocks.len(), |b| {
            let rows = blocks[b].rows();
            let (dy, x) = (Source::new(dy_so.row_range(rows.clone()), out), Source::new(x_si.row_range(rows), input));
            // SAFETY: each task packs another block.
            unsafe {
                contraction.pack_left(&left, out, dy, &blocks[b]);
                contraction.pack_right(&right, input, x, None, &blocks[b]);
            }
        });
    }
    contraction.accumulate(&[Some(WeightGradient { left: &left, right: &right, dw: Shared::new(dw_eoi) })]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::linear::PackedWeight;
    use crate::testing::{finite_differences, numbers, on_every_isa, relative_error, wide};

    fn naive(x: &[f64], w: &[f64], offsets: &[u32], out: usize, input: usize) -> Vec<f64> {
        let mut y = Vec::new();
        for (e, pair) in offsets.windows(2).enumerate() {
            for s in pair[0] as usize..pair[1] as usize {
                for o in 0..out {
                    let row = &w[(e * out + o) * input..(e * out + o + 1) * input];
                    y.push(row.iter().zip(&x[s * input..]).map(|(w, x)| w * x).sum());
                }
            }
        }
        y
    }

    #[test]
    fn all_three_roles_match_finite_differences() {
        // Empty groups first, between and last; one row; an odd number; everything in one group.
        for offsets in [&[0, 0, 1, 1, 6, 6][..], &[0, 19, 19], &[0, 0, 0]] {
            let (experts, out, input) = (offsets.len() - 1, 5, 7);
            let rows = offsets[experts] as usize;
            let (x, w, dy) = (numbers(1, rows * input), numbers(2, experts * out * input), numbers(3, rows * out));
            let got = on_every_isa(|| {
                let mut packed = PackedWeight::new(experts, out, input, Operand::F32, true);
                packed.pack(&w);
                let (x, dy) = (Tensor::new(&x, &[rows, input]), Tensor::new(&dy, &[rows, out]));
                let mut dw = vec![0.0; w.len()];
                backward_weight(&dy, &x, offsets, Operand::F32, &mut dw);
                let w = Weight::Packed(&packed);
                let (y, dx) = (forward(&x, offsets, w), backward_input(&dy, offsets, w));
                [&y[..], &dx, &dw].concat()
            });
            let (x, w, dy) = (wide(&x), wide(&w), wide(&dy));
            let loss = |y: Vec<f64>| y.iter().zip(&dy).map(|(a, b)| a * b).sum();
            let mut rest = &got[..];
            for expected in [
                naive(&x, &w, offsets, out, input),
                finite_differences(&x, |x| loss(naive(x, &w, offsets, out, input))),
                finite_differences(&w, |w| loss(naive(&x, w, offsets, out, input))),
            ] {
                assert!(relative_error(&rest[..expected.len()], &expected) < 1e-6);
                rest = &rest[expected.len()..];
            }
        }
    }

    #[test]
    fn a_large_group_is_cut_without_a_trace() {
        let (rows, out, input) = (501, 33, 65);
        let (x, w) = (numbers(1, rows * input), numbers(2, 2 * out * input));
        for operand in [Operand::F32, Operand::Bf16] {
            let mut packed = PackedWeight::new(2, out, input, operand, false);
            packed.pack(&w);
            let packed = Weight::Packed(&packed);
            let all = forward(&Tensor::new(&x, &[rows, input]), &[0, 1, rows as u32], packed);
            let one = Tensor::new(&x[300 * input..301 * input], &[1, input]);
            assert_eq!(forward(&one, &[0, 0, 1], packed)[..], *all.row(300));
        }
    }
}
