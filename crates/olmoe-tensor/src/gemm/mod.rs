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

use crate::threads::{Shared, num_threads, parallel};
use micro::Ahead;

/// Most rows of a left panel: 14 × 2 sums, 2 vectors of B and one of A fill the 32 registers of AVX-512.
pub const PANEL_ROWS: usize = 14;
/// Rows of a right panel: two vectors.
pub const PANEL_COLS: usize = 32;

/// Units of the contraction that a block runs through before the next panel, at most. Long runs write C seldom; the
/// panels then stream through the second-level cache, each fetched while the one before it is used.
const BLOCK_UNITS: usize = 2048;
/// Left panels in a task, at most: 126 rows, so that a right panel is used often enough once it is there.
const TASK_LEFT: usize = 9;
/// Right panels in a task, at most.
const TASK_RIGHT: usize = 8;
/// Tasks for each thread, at least, where the product is large enough: a slow thread then keeps nobody waiting for long.
const TASKS_PER_THREAD: usize = 8;

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

/// `C (+)= A·Bᵀ` on all threads; `c` is row-major `[A.rows, B.rows]`.
pub fn gemm(a: &Left, b: &Right, c: &mut [f32], into: Store) {
    gemm_panels(a.panels(), b.group(0), c, into);
}

/// [`gemm`] of borrowed panels.
pub(crate) fn gemm_panels(a: Panels<'_>, b: Panels<'_>, c: &mut [f32], into: Store) {
    assert_eq!(c.len(), a.rows * b.rows, "C is [{}, {}]", a.rows, b.rows);
    if a.rows == 0 || b.rows == 0 {
        return;
    }
    let c = Shared::new(c);
    let (panels_a, panels_b) = (panel_count(a.rows), b.rows.div_ceil(PANEL_COLS));
    let (tasks_a, tasks_b) = divide(panels_a, panels_b);
    parallel(tasks_a * tasks_b, |task| {
        // Neighbouring tasks share the right panels, the larger factor as a rule.
        let (i, j) = (task % tasks_a, task / tasks_a);
        let rows = panels_a * i / tasks_a..panels_a * (i + 1) / tasks_a;
        let columns = panels_b * j / tasks_b..panels_b * (j + 1) / tasks_b;
        // SAFETY: each task writes a tile of C of its own; only rows of that tile are touched.
        unsafe { block(a, rows, b, columns, c.range(0..a.rows * b.rows).as_mut_ptr(), b.rows, into) }
    });
}

/// `C (+)= A·Bᵀ` on this thread; `c` is row-major `[A.rows, B.rows]`.
pub(crate) fn gemm_here(a: Panels<'_>, b: Panels<'_>, c: &mut [f32], into: Store) {
    assert_eq!(c.len(), a.rows * b.rows, "C is [{}, {}]", a.rows, b.rows);
    let (panels_a, panels_b) = (panel_count(a.rows), b.rows.div_ceil(PANEL_COLS));
    // SAFETY: C is borrowed mutably and has the size just checked.
    unsafe { block(a, 0..panels_a, b, 0..panels_b, c.as_mut_ptr(), b.rows, into) }
}

/// Into how many tasks to divide the panels of A and of B: enough for all threads, none larger than a block, and as
/// nearly square as that allows, since a task reads its rows of A and of B whole.
pub(crate) fn divide(panels_a: usize, panels_b: usize) -> (usize, usize) {
    let mut tasks_a = panels_a.div_ceil(TASK_LEFT);
    let mut tasks_b = panels_b.div_ceil(TASK_RIGHT);
    let wanted = if num_threads() == 1 { 1 } else { TASKS_PER_THREAD * num_threads() };
    while tasks_a * tasks_b < wanted {
        let (rows, columns) = (panels_a * PANEL_ROWS / tasks_a, panels_b * PANEL_COLS / tasks_b);
        if rows >= columns && tasks_a * 2 <= panels_a {
            tasks_a *= 2;
        } else if tasks_b * 2 <= panels_b {
            tasks_b *= 2;
        } else if tasks_a * 2 <= panels_a {
            tasks_a *= 2;
        } else {
            break;
        }
    }
    (tasks_a, tasks_b)
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
    let mut start = 0;
    // At least once, so that an empty contraction gives zeros.
    loop {
        let length = BLOCK_UNITS.min(units - start);
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
                    let mut ahead = Ahead::right(
                        right.wrapping_add(b.pitch * PANEL_COLS),
                        length,
                        i - panels_a.start,
                        panels_a.len(),
                    );
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
