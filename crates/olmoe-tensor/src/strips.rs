//! Weights as strips of rows: the shape that packed f32, bf16 and quantised weights share.

use std::ops::Range;

use crate::gemm::{Operand, PANEL_COLS};

/// The shape of `groups` weights `[out, in]`, cut into strips of 32 rows, of which the last of a weight may have fewer.
/// A strip is what one task reads or writes of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strips {
    /// Weights.
    pub groups: usize,
    /// Rows of each.
    pub out: usize,
    /// Numbers in a row.
    pub input: usize,
}

impl Strips {
    /// How many strips there are.
    pub fn count(self) -> usize {
        self.groups * self.out.div_ceil(PANEL_COLS)
    }

    /// The numbers of one strip, as a range of `[groups, out, in]`.
    pub fn numbers(self, strip: usize) -> Range<usize> {
        let (group, rows) = self.rows(strip);
        (group * self.out + rows.start) * self.input..(group * self.out + rows.end) * self.input
    }

    /// The weight that a strip belongs to, and its rows there.
    pub(crate) fn rows(self, strip: usize) -> (usize, Range<usize>) {
        let per_group = self.out.div_ceil(PANEL_COLS);
        let (group, first) = (strip / per_group, strip % per_group * PANEL_COLS);
        (group, first..(first + PANEL_COLS).min(self.out))
    }

    /// Bytes that these weights take when packed, the filling of the last strips included; without overflow.
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
