//! Strips of rows: the shape that packed f32, bf16 and quantised weights share.

use std::ops::Range;

use crate::gemm::{Operand, PANEL_COLS};

/// The shape of `groups` weights `[out, in]`, cut into strips of 32 rows; the last strip of a weight may have fewer. A
/// task reads or writes one strip of a weight at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strips {
    /// The number of weights.
    pub groups: usize,
    /// Rows of each weight.
    pub out: usize,
    /// Numbers in a row.
    pub input: usize,
}

impl Strips {
    /// The number of strips.
    pub fn count(self) -> usize {
        self.groups * self.out.div_ceil(PANEL_COLS)
    }

    /// The range of one strip in the numbers of `[groups, out, in]`.
    pub fn numbers(self, strip: usize) -> Range<usize> {
        let (group, rows) = self.rows(strip);
        (group * self.out + rows.start) * self.input..(group * self.out + rows.end) * self.input
    }

    /// The weight of a strip, and the rows of the strip in that weight.
    pub(crate) fn rows(self, strip: usize) -> (usize, Range<usize>) {
        let per_group = self.out.div_ceil(PANEL_COLS);
        let (group, first) = (strip / per_group, strip % per_group * PANEL_COLS);
        (group, first..(first + PANEL_COLS).min(self.out))
    }

    /// Bytes of these weights when packed, the padding of the last strips included; with `way_back` those for the
    /// backward product, too. Saturating.
    pub fn packed_bytes(self, operand: Operand, way_back: bool) -> u64 {
        let panels = |rows: usize, k: usize| {
            let padded = (rows as u64).next_multiple_of(PANEL_COLS as u64);
            let units = (self.groups as u64).saturating_mul(padded).saturating_mul(operand.units(k) as u64);
            units.saturating_mul(size_of::<f32>() as u64)
        };
        let backward = if way_back { panels(self.input, self.out) } else { 0 };
        panels(self.out, self.input).saturating_add(backward)
    }
}
