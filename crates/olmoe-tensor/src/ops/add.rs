//! Sums and multiples: `y + x`, `y_td + b_d`, `a·y`.
//!
//! T tokens, D width. The gradient of a sum is the gradient of each term; that of a bias is `db_d += Σ_t dy_td`.

use super::lanes::{GRAIN, lanes, row_grain, same_length, split, split_numbers};
use crate::memory::Buffer;
use crate::simd::kernel;
use crate::tensor::Tensor;

/// Rows whose gradients are summed first; the sums are then added in order. The number is fixed, so that the result
/// does not depend on the number of threads.
pub(super) const SUMMED_ROWS: usize = 32;

kernel! {
    /// `y += x`, on the calling thread.
    pub(super) fn add_slice[s: S](y: &mut [f32], x: &[f32]) {
        lanes!(s; read [x]; update [y]; write []; { [s.add(y, x)] })
    }
}

kernel! {
    fn sum_slices[s: S](a: &[f32], b: &[f32], y: &mut [f32]) {
        lanes!(s; read [a, b]; update []; write [y]; { [s.add(a, b)] })
    }
}

kernel! {
    fn scale_slice[s: S](y: &mut [f32], by: f32) {
        let by = s.splat(by);
        lanes!(s; read []; update [y]; write []; { [s.mul(y, by)] })
    }
}

kernel! {
    /// `y_rd += x_d` for each row.
    fn add_to_rows[s: S](y: &mut [f32], x: &[f32]) {
        for y in y.chunks_exact_mut(x.len()) {
            lanes!(s; read [x]; update [y]; write []; { [s.add(y, x)] })
        }
    }
}

kernel! {
    /// `y_d += Σ_r x_rd`, the rows in order; `x` begins at the first of the columns, and its rows are `stride` numbers
    /// apart.
    fn add_rows[s: S](x: &[f32], stride: usize, y: &mut [f32]) {
        for x in x.chunks(stride) {
            let x = &x[..y.len()];
            lanes!(s; read [x]; update [y]; write []; { [s.add(y, x)] })
        }
    }
}

/// `y += x`
///
/// # Panics
/// When the lengths differ, as all functions of this file do.
pub fn add_assign(y: &mut [f32], x: &[f32]) {
    same_length([y.len(), x.len()]);
    split_numbers([y], |range, [y]| add_slice(y, &x[range]));
}

/// `a + b`
pub fn add(a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!(a.shape(), b.shape(), "a sum of tensors of one shape");
    let mut y = Tensor::scratch(a.shape());
    split_numbers([&mut y], |range, [y]| sum_slices(&a[range.clone()], &b[range], y));
    y
}

/// `y *= by`
pub fn scale(y: &mut [f32], by: f32) {
    split_numbers([y], |_, [y]| scale_slice(y, by));
}

/// `y_td += b_d`
pub fn add_bias(y: &mut Tensor, bias: &[f32]) {
    let (rows, width) = (y.rows(), y.cols());
    assert_eq!(bias.len(), width, "a bias for each column");
    if width > 0 {
        split(rows, row_grain(width), [(&mut *y, width)], |_, [y]| add_to_rows(y, bias));
    }
}

/// `db_d += Σ_t dy_td`
pub fn bias_backward(dy: &Tensor, dbias: &mut [f32]) {
    let (rows, width) = (dy.rows(), dy.cols());
    assert_eq!(dbias.len(), width, "a gradient for each column");
    if width == 0 {
        return;
    }
    let blocks = rows.div_ceil(SUMMED_ROWS);
    let mut sums_bd = Buffer::<f32>::zeroed(blocks * width);
    split(blocks, 1, [(&mut sums_bd, width)], |range, [sums]| {
        for (block, sum) in range.zip(sums.chunks_exact_mut(width)) {
            add_rows(dy.row_range(block * SUMMED_ROWS..(block * SUMMED_ROWS + SUMMED_ROWS).min(rows)), width, sum);
        }
    });
    accumulate_rows(&mut sums_bd, dbias);
}

/// `y_d += Σ_b x_bd`, the rows in order; leaves the sum in the first row of `x`.
pub(super) fn accumulate_rows(x: &mut [f32], y: &mut [f32]) {
    let width = y.len();
    if x.is_empty() {
        return;
    }
    let (first, rest) = x.split_at_mut(width);
    // Columns of a task: whole vectors, and enough numbers in all.
    let columns = (GRAIN * width / (rest.len() + width)).next_multiple_of(64);
    split(width, columns, [(first, 1), (y, 1)], |range, [sum, y]| {
        if !rest.is_empty() {
            add_rows(&rest[range.start..], width, sum);
        }
        add_slice(y, sum);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, on_every_isa, on_every_isa_and_threads, relative_error, wide};

    #[test]
    fn sums_and_multiples() {
        for n in [0, 1, 17, 1000, 3 * GRAIN + 5] {
            let (a, b) = (numbers(1, n), numbers(2, n));
            let got = on_every_isa(|| {
                let mut y = add(&Tensor::new(&a, &[n]), &Tensor::new(&b, &[n]));
                add_assign(&mut y, &b);
                scale(&mut y, 0.3);
                y.to_vec()
            });
            assert!((0..n).all(|i| got[i] == (a[i] + b[i] + b[i]) * 0.3), "{n}");
        }
    }

    #[test]
    fn biases() {
        for (rows, width) in [(0, 3), (1, 1), (3, 0), (5, 33), (1, 700), (2 * SUMMED_ROWS + 1, 1000), (1000, 64)] {
            let (y, dy, bias) = (numbers(3, rows * width), numbers(4, rows * width), numbers(5, width));
            let run = || {
                let mut y = Tensor::new(&y, &[rows, width]);
                add_bias(&mut y, &bias);
                let mut out = y.to_vec();
                let mut dbias = bias.clone();
                bias_backward(&Tensor::new(&dy, &[rows, width]), &mut dbias);
                out.extend(dbias);
                out
            };
            let got = on_every_isa_and_threads(run);
            let (y_got, dbias) = got.split_at(rows * width);
            assert!((0..rows * width).all(|i| y_got[i] == y[i] + bias[i % width]));
            // The gradient of Σ dy·(y + b) is linear in b: its coefficients are the answer.
            let mut expected = wide(&bias);
            (0..rows * width).for_each(|i| expected[i % width] += f64::from(dy[i]));
            assert!(relative_error(dbias, &expected) < 1e-6, "{rows} × {width}");
        }
    }
}
