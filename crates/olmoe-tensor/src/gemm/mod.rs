//! Matrix products.
//!
//! `C[M, N] (+)= A[M, K] · B[N, K]ᵀ`, contraction last in both, f32 or bf16 operands, f32 sums. Both factors are packed
//! (`pack`) and multiplied by one kernel per instruction set (`micro`). The three roles of a linear layer
//! `y[T, out] = x[T, in] · W[out, in]ᵀ` are three ways to pack:
//!
//! | role | left | right |
//! |---|---|---|
//! | `y = x·Wᵀ` | rows of `x` | rows of `W` |
//! | `dx = dy·W` | rows of `dy` | columns of `W` |
//! | `dW += dyᵀ·x` | columns of `dy` | columns of `x` |
//!
//! A number of C is always summed in the order of the contraction, in one chain; neither the number of rows, nor the
//! blocks, nor the threads change its bits.

pub(crate) mod micro;
pub(crate) mod pack;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use pack::{Left, Right, Source};
pub(crate) use pack::{Panels, pack_columns, pack_rows, panel_count, panel_start};

use crate::threads::Shared;
use crate::work::{Piece, Work};
use micro::Ahead;

/// Most rows of a left panel: 14 × 2 sums, 2 vectors of B and one of A fill the 32 registers of AVX-512.
pub const PANEL_ROWS: usize = 14;
/// Rows of a right panel: two vectors.
pub const PANEL_COLS: usize = 32;

/// Units of the contraction that a block runs through before the next panel, at most. Long runs write C seldom; the
/// panels then stream through the second-level cache, each fetched while the one before it is used.
const BLOCK_UNITS: usize = 2048;
/// Left panels in a piece of the work, at most: 126 rows, so that a right panel is used often enough once it is there.
const PIECE_LEFT: usize = 9;
/// Right panels in a piece, where there are rows for several.
const PIECE_RIGHT: usize = 8;

/// The precision of the factors of a product; sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// 32-bit floating point.
    F32,
    /// bfloat16: 8 bits of exponent, 8 of precision.
    Bf16,
}

impl Operand {
    /// 32-bit units in a contraction of length `k`.
    pub fn units(self, k: usize) -> usize {
        match self {
            Operand::F32 => k,
            Operand::Bf16 => k.div_ceil(2),
        }
    }
}

/// What becomes of C's old contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// They are replaced.
    Overwrite,
    /// The product is added to them, from the first term on.
    Accumulate,
}

/// A right factor of a product, one matrix for each group of rows, and where the product goes.
pub struct Factor<'a> {
    /// As many groups as the rows have.
    pub weight: &'a Right,
    /// `[rows, out]`
    pub y: &'a mut [f32],
}

/// `C (+)= A·Bᵀ` on all threads; `c` is row-major `[A.rows, B.rows]`.
pub fn gemm(a: &Left, b: &Right, c: &mut [f32], into: Store) {
    products(a, &[0, a.rows() as u32], [Factor { weight: b, y: c }], into);
}

/// `y_s (+)= W_e·x_s` for the rows `s` of every group `e` and each of some factors, on all threads; `x` was packed with
/// the same offsets.
///
/// The work of a single row is divided among the threads as that of many is.
///
/// # Panics
/// Unless shapes, groups, rows and operands fit each other.
pub fn products<const N: usize>(x: &Left, offsets: &[u32], factors: [Factor<'_>; N], into: Store) {
    let groups = offsets.len().saturating_sub(1);
    assert!(offsets.is_sorted() && offsets.last() == Some(&(x.rows() as u32)), "groups cover the rows");
    let panels = factors.each_ref().map(|factor| factor.weight.rows().div_ceil(PANEL_COLS));
    let factors = factors.map(|factor| {
        let out = factor.weight.rows();
        assert_eq!(factor.weight.groups(), groups, "groups of a factor");
        assert_eq!(factor.y.len(), x.rows() * out, "y is [{}, {out}]", x.rows());
        (factor.weight, out, Shared::new(factor.y))
    });
    let work =
        Work { offsets, panels: &panels, tiles: panel_count, piece_tiles: PIECE_LEFT, piece_panels: PIECE_RIGHT };
    work.run(|Piece { factor, group, tiles, panels }| {
        let (weight, out, y) = &factors[factor];
        let rows = offsets[group] as usize..offsets[group + 1] as usize;
        let y = y.pointer(rows.start * out, rows.len() * out);
        // SAFETY: each piece is another tile of `y`; only rows of that tile are touched.
        unsafe { block(x.group(rows), tiles, weight.group(group), panels, y, *out, into) }
    });
}

/// `C (+)= A·Bᵀ` on this thread; `c` is row-major `[A.rows, B.rows]`.
pub(crate) fn gemm_here(a: Panels<'_>, b: Panels<'_>, c: &mut [f32], into: Store) {
    assert_eq!(c.len(), a.rows * b.rows, "C is [{}, {}]", a.rows, b.rows);
    let (panels_a, panels_b) = (panel_count(a.rows), b.rows.div_ceil(PANEL_COLS));
    // SAFETY: C is borrowed mutably and has the size just checked.
    unsafe { block(a, 0..panels_a, b, 0..panels_b, c.as_mut_ptr(), b.rows, into) }
}

/// The product of some panels of A with some of B, on this thread.
///
/// # Safety
/// `c` is `[a.rows, ldc]` with at least `b.rows` columns, and nobody else touches the tile.
pub(crate) unsafe fn block(
    a: Panels<'_>,
    panels_a: Range<usize>,
    b: Panels<'_>,
    panels_b: Range<usize>,
    c: *mut f32,
    ldc: usize,
    into: Store,
) {
    assert_eq!((a.k, a.operand), (b.k, b.operand), "contraction and operands of both factors");
    let kernels = micro::kernels(a.operand);
    let units = a.operand.units(a.k);
    let count = panel_count(a.rows);
    assert!(a.data.len() >= a.rows * a.pitch && b.data.len() >= b.rows.next_multiple_of(PANEL_COLS) * b.pitch);
    assert!(a.first + units <= a.pitch && b.first + units <= b.pitch);
    let (a_data, b_data) = (a.data.as_ptr().cast::<u32>(), b.data.as_ptr().cast::<u32>());
    // A single left panel is read again for every right one whatever the block, and runs through each to its end.
    let most = if panels_a.len() == 1 { units } else { BLOCK_UNITS };
    let mut start = 0;
    // At least once, so that an empty contraction gives zeros.
    loop {
        let length = most.min(units - start);
        let accumulate = start > 0 || into == Store::Accumulate;
        for j in panels_b.clone() {
            let cols = PANEL_COLS.min(b.rows - j * PANEL_COLS);
            for i in panels_a.clone() {
                let row = panel_start(a.rows, count, i);
                let rows = panel_start(a.rows, count, i + 1) - row;
                // SAFETY: panel `i` has `rows` rows from unit `row * pitch` on, panel `j` 32; the tile is the caller's.
                unsafe {
                    let left = a_data.add(row * a.pitch + (a.first + start) * rows);
                    let right = b_data.add((j * b.pitch + b.first + start) * PANEL_COLS);
                    let tile = c.add(row * ldc + j * PANEL_COLS);
                    // What comes next arrives while this is computed: the next right panel, in the first round the next
                    // left one too, and the next tile of C. Past the last one that fetches in vain.
                    let next = left.wrapping_add(a.pitch * rows);
                    let mut ahead = if panels_a.len() == 1 {
                        Ahead::within(right)
                    } else {
                        let panel = right.wrapping_add(b.pitch * PANEL_COLS);
                        Ahead::right(panel, length, i - panels_a.start, panels_a.len())
                    };
                    if j == panels_b.start && panels_a.len() > 1 {
                        ahead = ahead.and_left(next, rows);
                    }
                    if accumulate {
                        micro::fetch_tile(tile.wrapping_add(rows * ldc), rows, ldc);
                    }
                    kernels[rows](length, left, rows, right, tile, ldc, cols, accumulate, ahead);
                }
            }
        }
        start += length;
        if start >= units {
            break;
        }
    }
}
