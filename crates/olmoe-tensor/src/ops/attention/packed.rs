//! The layout of the rows of one sequence and one head for the kernels: right panels that can grow row by row.

use std::ops::Range;

use crate::gemm::pack::{pack_columns, pack_rows};
use crate::gemm::{Operand, PANEL_COLS, Source};
use crate::simd::{LANES, kernel};
use crate::tensor::Tensor;
use crate::threads::Shared;

/// The layout of the rows of a sequence as right panels, of one of two kinds:
/// * *by row*: panels of 32 rows, contraction along the head (keys for the scores);
/// * *by column*: panels of 32 numbers of the head, contraction over the rows (values for the output).
#[derive(Clone, Copy, Debug)]
pub(super) struct PanelLayout {
    /// Numbers in a head.
    pub(super) dim: usize,
    /// The number of rows that the panels have room for, a multiple of 32.
    pub(super) capacity: usize,
    /// The precision.
    pub(super) operand: Operand,
}

impl PanelLayout {
    pub(super) fn new(dim: usize, rows: usize, operand: Operand) -> PanelLayout {
        PanelLayout { dim, capacity: rows.next_multiple_of(PANEL_COLS), operand }
    }

    /// Units of a row.
    pub(super) fn units(self) -> usize {
        self.operand.units(self.dim)
    }

    /// Numbers of a row of results, padded to whole panels.
    pub(super) fn wide(self) -> usize {
        self.dim.next_multiple_of(PANEL_COLS)
    }

    /// Units of a sequence packed by row.
    pub(super) fn len_by_row(self) -> usize {
        self.capacity * self.units()
    }

    /// Units of a sequence packed by column.
    pub(super) fn len_by_column(self) -> usize {
        self.wide() * self.operand.units(self.capacity)
    }

    /// Where the panel of `row`, a multiple of 32, begins in a sequence packed by row.
    pub(super) fn panel_by_row(self, row: usize) -> usize {
        row * self.units()
    }

    /// Where the unit of `row`, an even number, lies in panel `panel` of a sequence packed by column.
    pub(super) fn panel_by_column(self, panel: usize, row: usize) -> usize {
        (panel * self.operand.units(self.capacity) + self.operand.units(row)) * PANEL_COLS
    }

    /// Packs rows `rows` of a source by row, as rows `at…` of the sequence.
    ///
    /// # Safety
    /// As [`Shared::range`]: no other task touches the panels of 32 rows that are written.
    pub(super) unsafe fn pack_by_row(self, to: &Shared<'_, f32>, at: usize, source: Source<'_>, rows: Range<usize>) {
        let (mut at, mut row) = (at, rows.start);
        while row < rows.end {
            let lane = at % PANEL_COLS;
            let count = (PANEL_COLS - lane).min(rows.end - row);
            let start = self.panel_by_row(at - lane);
            // SAFETY: the caller's promise.
            let panel = unsafe { to.range(start..start + PANEL_COLS * self.units()) };
            if lane == 0 {
                pack_rows(source, row..row + count, self.dim, self.operand.right(), PANEL_COLS, panel);
            } else {
                for i in 0..count {
                    put_row(&source.data[(row + i) * source.stride..][..self.dim], self.operand, lane + i, panel);
                }
            }
            at += count;
            row += count;
        }
    }

    /// Packs rows `rows` of a source by column, as rows `at…` of the sequence.
    ///
    /// # Safety
    /// As [`Shared::range`]: no other task touches the rows, nor their neighbours in a bf16 unit.
    pub(super) unsafe fn pack_by_column(self, to: &Shared<'_, f32>, at: usize, source: Source<'_>, rows: Range<usize>) {
        let inside = self.operand == Operand::Bf16 && at % 2 == 1 && !rows.is_empty();
        for panel in 0..self.wide() / PANEL_COLS {
            let columns = panel * PANEL_COLS..((panel + 1) * PANEL_COLS).min(self.dim);
            let (mut at, mut row) = (at, rows.start);
            if inside {
                let start = self.panel_by_column(panel, at - 1);
                // SAFETY: the caller's promise.
                let unit = unsafe { to.range(start..start + PANEL_COLS) };
                put_odd(&source.data[row * source.stride..][columns.clone()], unit);
                at += 1;
                row += 1;
            }
            if row < rows.end {
                let start = self.panel_by_column(panel, at);
                let length = self.operand.units(rows.end - row) * PANEL_COLS;
                // SAFETY: the caller's promise.
                let units = unsafe { to.range(start..start + length) };
                let source = Source::new(&source.data[row * source.stride..], source.stride);
                pack_columns(source, columns, rows.end - row, self.operand.right(), PANEL_COLS, None, units);
            }
        }
    }
}

/// The columns of one head in the rows of `x`, `[T, heads·dim]`, from `first` on.
pub(super) fn head_rows(x: &Tensor, first: usize, head: usize, dim: usize) -> Source<'_> {
    Source::new(&x[first * x.cols() + head * dim..], x.cols())
}

kernel! {
    /// Writes one row into lane `lane` of a panel by row.
    fn put_row[s: S](row: &[f32], operand: Operand, lane: usize, panel: &mut [f32]) {
        match operand {
            Operand::F32 => for (x, unit) in row.iter().zip(panel.chunks_exact_mut(PANEL_COLS)) {
                unit[lane] = *x;
            },
            Operand::Bf16 => for (pairs, units) in row.chunks(2 * LANES).zip(panel.chunks_mut(LANES * PANEL_COLS)) {
                let (lo, hi) = pairs.split_at(pairs.len().min(LANES));
                let mut rounded = [0.0; LANES];
                s.store(s.bf16_pairs(s.load_partial(lo), s.load_partial(hi)), &mut rounded);
                for (x, unit) in rounded.iter().zip(units.chunks_exact_mut(PANEL_COLS)) {
                    unit[lane] = *x;
                }
            },
        }
    }
}

kernel! {
    /// Writes the odd row of a unit of a bf16 panel by column and leaves the even one.
    pub(super) fn put_odd[s: S](row: &[f32], unit: &mut [f32]) {
        for half in 0..PANEL_COLS / LANES {
            let lanes = &mut unit[half * LANES..(half + 1) * LANES];
            let even = s.bf16_even(s.load(lanes));
            let part = &row[(half * LANES).min(row.len())..((half + 1) * LANES).min(row.len())];
            s.store(s.bf16_interleave(even, s.load_partial(part)), lanes);
        }
    }
}
