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
//! Each element of C is one chain of sums in the order of the contraction; its bits depend neither on the number of
//! rows, nor on the division into panels and sections, nor on the number of threads.

pub(crate) mod micro;
pub(crate) mod pack;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use pack::{Left, Right, Source};
pub(crate) use pack::{Panels, pack_columns, pack_rows, panel_count, panel_start};

use crate::memory::Buffer;
use crate::simd::Isa;
use crate::threads::Shared;
use crate::work::{GroupedWork, WorkPiece};
use micro::Ahead;

/// Most rows of a left panel: 12 × 2 sums, 2 vectors of B and one of A fit the 32 registers of AVX-512, and half of
/// that the 16 of AVX2.
pub const PANEL_ROWS: usize = 12;
/// Rows of a right panel: two vectors.
pub const PANEL_COLS: usize = 32;

/// Most units of a section: so many units of one panel are multiplied before the next panel. With long sections C is
/// written seldom, and the panels stream through the second-level cache, each fetched while the one before it is used.
const SECTION_UNITS: usize = 2048;
/// The same where a right panel of bf16 pairs is widened to f32 once for all left panels: 64 KiB, near the first-level
/// cache.
const WIDENED_UNITS: usize = 256;
/// The least number of left panels for which widening is faster.
const WIDEN_FROM: usize = 5;
/// Most left panels of a piece: 108 rows, so that a right panel is used often enough once it is in the cache.
const PIECE_LEFT: usize = 9;
/// Most right panels of a piece with more than one left panel.
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
    /// Units in a contraction of length `k`, of 32 bits each.
    pub fn units(self, k: usize) -> usize {
        match self {
            Operand::F32 => k,
            Operand::Bf16 => k.div_ceil(2),
        }
    }

    /// Bytes of a number of a packed left factor; they depend on the instruction set.
    pub fn left_bytes(self) -> usize {
        match self.left() {
            Form::F32 | Form::Bf16Halves => 4,
            Form::Bf16Pairs => 2,
        }
    }

    /// The form of left panels.
    pub(crate) fn left(self) -> Form {
        match self {
            Operand::F32 => Form::F32,
            Operand::Bf16 if Isa::current().multiplies_bf16_pairs() => Form::Bf16Pairs,
            Operand::Bf16 => Form::Bf16Halves,
        }
    }

    /// The form of right panels, the same on every instruction set.
    pub(crate) fn right(self) -> Form {
        match self {
            Operand::F32 => Form::F32,
            Operand::Bf16 => Form::Bf16Pairs,
        }
    }
}

/// How a panel holds the numbers of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// One f32 for each step of the contraction.
    F32,
    /// One word for two steps: a pair of bf16, the even one in the low half.
    Bf16Pairs,
    /// One f32, rounded to bf16, for each step of the contraction; of two steps the odd one comes first. An odd number
    /// of steps is padded with a zero.
    Bf16Halves,
}

impl Form {
    /// 32-bit words of a row with a contraction of length `k`.
    pub(crate) fn words(self, k: usize) -> usize {
        match self {
            Form::F32 => k,
            Form::Bf16Pairs => k.div_ceil(2),
            Form::Bf16Halves => k.next_multiple_of(2),
        }
    }

    /// Words of a unit of the contraction.
    pub(crate) fn unit_words(self) -> usize {
        match self {
            Form::F32 | Form::Bf16Pairs => 1,
            Form::Bf16Halves => 2,
        }
    }
}

/// What happens to the previous contents of C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// The product replaces them.
    Overwrite,
    /// The product is added to them, from the first term on.
    Accumulate,
}

/// A right factor of a product, one matrix for each group of rows, and where the product is written.
pub struct RightFactor<'a> {
    /// One matrix for each group of rows.
    pub weight: &'a Right,
    /// `[rows, out]`
    pub y: &'a mut [f32],
}

/// `C (+)= A·Bᵀ` on all threads; `c` is row-major `[A.rows, B.rows]`.
pub fn gemm(a: &Left, b: &Right, c: &mut [f32], into: Store) {
    products(a, &[0, a.rows() as u32], [RightFactor { weight: b, y: c }], into);
}

/// `y_s (+)= W_e·x_s` for the rows `s` of every group `e` and for each of the factors, on all threads; `x` was packed
/// with the same offsets.
///
/// All threads take part even where there is a single row.
///
/// # Panics
/// When shapes, groups, rows or operands do not fit each other.
pub fn products<const N: usize>(x: &Left, offsets: &[u32], factors: [RightFactor<'_>; N], into: Store) {
    let groups = offsets.len().saturating_sub(1);
    assert!(offsets.is_sorted() && offsets.last() == Some(&(x.rows() as u32)), "groups cover the rows");
    let panels = factors.each_ref().map(|factor| factor.weight.rows().div_ceil(PANEL_COLS));
    let factors = factors.map(|factor| {
        let out = factor.weight.rows();
        assert_eq!(factor.weight.groups(), groups, "groups of a factor");
        assert_eq!(factor.y.len(), x.rows() * out, "y is [{}, {out}]", x.rows());
        (factor.weight, out, Shared::new(factor.y))
    });
    let work = GroupedWork {
        offsets,
        panels: &panels,
        tiles: panel_count,
        piece_tiles: PIECE_LEFT,
        piece_panels: PIECE_RIGHT,
    };
    work.run(|WorkPiece { factor, group, tiles, panels }| {
        let (weight, out, y) = &factors[factor];
        let rows = offsets[group] as usize..offsets[group + 1] as usize;
        let y = y.pointer(rows.start * out, rows.len() * out);
        // SAFETY: each piece is another tile of `y`; only rows of that tile are touched.
        unsafe { block(x.group(rows), tiles, weight.group(group), panels, y, *out, into) }
    });
}

/// `C (+)= A·Bᵀ` on the calling thread; `c` is row-major `[A.rows, B.rows]`.
pub(crate) fn gemm_here(a: Panels<'_>, b: Panels<'_>, c: &mut [f32], into: Store) {
    assert_eq!(c.len(), a.rows * b.rows, "C is [{}, {}]", a.rows, b.rows);
    let (panels_a, panels_b) = (panel_count(a.rows), b.rows.div_ceil(PANEL_COLS));
    // SAFETY: C is borrowed mutably and has the size just checked.
    unsafe { block(a, 0..panels_a, b, 0..panels_b, c.as_mut_ptr(), b.rows, into) }
}

/// The product of some panels of A with some of B, on the calling thread.
///
/// # Safety
/// `c` is `[a.rows, ldc]` with at least `b.rows` columns, and no other task touches the rows and columns of these
/// panels.
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
    // The widened factors are those of an f32 product with two steps for each unit.
    let widen = a.form == Form::Bf16Halves && panels_a.len() >= WIDEN_FROM && micro::widening_pays();
    let kernels = micro::kernels(if widen { Form::F32 } else { a.form });
    let mut widened = Buffer::<f32>::scratch(if widen { 2 * WIDENED_UNITS * PANEL_COLS } else { 0 });
    let steps = if widen { 2 } else { 1 };
    let units = a.operand.units(a.k);
    let count = panel_count(a.rows);
    // Words of a row of a left panel: one or two for each unit.
    let a_pitch = a.pitch * a.form.unit_words();
    assert!(a.data.len() >= a.rows * a_pitch && b.data.len() >= b.rows.next_multiple_of(PANEL_COLS) * b.pitch);
    assert!(a.first + units <= a.pitch && b.first + units <= b.pitch);
    let (a_data, b_data) = (a.data.as_ptr().cast::<u32>(), b.data.as_ptr().cast::<u32>());
    let most = match panels_a.len() {
        _ if widen => WIDENED_UNITS,
        // A single left panel is read again for every right one in any case, so it runs through each to its end.
        1 => units,
        _ => SECTION_UNITS,
    };
    let mut start = 0;
    // At least one iteration, so that an empty contraction gives zeros.
    loop {
        let length = most.min(units - start);
        let accumulate = start > 0 || into == Store::Accumulate;
        for j in panels_b.clone() {
            let cols = PANEL_COLS.min(b.rows - j * PANEL_COLS);
            let from = (j * b.pitch + b.first + start) * PANEL_COLS;
            let mut right = b_data.wrapping_add(from);
            // After the last panel comes the next section of the first one.
            let next_right = if j + 1 < panels_b.end {
                right.wrapping_add(b.pitch * PANEL_COLS)
            } else {
                b_data.wrapping_add((panels_b.start * b.pitch + b.first + start + length) * PANEL_COLS)
            };
            if widen {
                pack::widen(&b.data[from..from + length * PANEL_COLS], &mut widened);
                right = widened.as_ptr().cast();
            }
            for i in panels_a.clone() {
                let row = panel_start(a.rows, count, i);
                let rows = panel_start(a.rows, count, i + 1) - row;
                // SAFETY: panel `i` has `rows` rows from unit `row * pitch` on, panel `j` 32; the tile is the caller's.
                unsafe {
                    let left = a_data.add(row * a_pitch + (a.first + start) * a.form.unit_words() * rows);
                    let tile = c.add(row * ldc + j * PANEL_COLS);
                    // What is needed next is fetched during this product: the next right panel, the next tile of C and,
                    // in the first round, the next left panel. After the last panel the fetch has no effect.
                    let next = left.wrapping_add(a_pitch * rows);
                    let mut ahead = if panels_a.len() == 1 {
                        Ahead::within(right)
                    } else {
                        Ahead::right(next_right, length, steps, i - panels_a.start, panels_a.len())
                    };
                    if j == panels_b.start && panels_a.len() > 1 {
                        ahead = ahead.and_left(next, rows * a.form.unit_words() / steps);
                    }
                    if accumulate {
                        micro::fetch_tile(tile.wrapping_add(rows * ldc), rows, ldc);
                    }
                    kernels.of(rows)(steps * length, left, rows, right, tile, ldc, cols, accumulate, ahead);
                }
            }
        }
        start += length;
        if start >= units {
            break;
        }
    }
}
