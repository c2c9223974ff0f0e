//! The product of a tile of rows with one panel, which all of attention uses.

use crate::gemm::micro::{self, Ahead};
use crate::gemm::{Form, PANEL_COLS};
use crate::simd::LANES;

/// `C (+)= A·B` for a left panel of `rows` rows and a right panel, over `units` units; writes whole panels of C.
pub(super) fn multiply(
    form: Form,
    units: usize,
    left: &[f32],
    rows: usize,
    right: &[f32],
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    assert!(
        left.len() >= units * form.unit_words() * rows && right.len() >= units * PANEL_COLS,
        "panels of {units} units"
    );
    assert!(rows > 0 && c.len() >= (rows - 1) * ldc + PANEL_COLS && ldc >= PANEL_COLS, "a tile of {rows} rows");
    // SAFETY: the panels and the tile are inside their slices; a kernel exists for 1..=12 rows.
    unsafe {
        let (left, right) = (left.as_ptr().cast(), right.as_ptr().cast());
        let kernel = micro::kernels(form).of(rows);
        kernel(units, left, rows, right, c.as_mut_ptr(), ldc, PANEL_COLS, accumulate, Ahead::nothing(left));
    }
}

/// The index of each lane.
pub(super) const LANE: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
