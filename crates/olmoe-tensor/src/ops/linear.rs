//! `y = x·Wᵀ + b`, dense and for groups of weights.
//!
//! Shapes: `x [T, in]`, `W [out, in]`, `b [out]`, `y [T, out]`. Backward: `dx = dy·W`, `dW += dyᵀ·x`, `db += Σ_t dy`.
//! The factors arrive packed, because one packed `x` serves several weights (query, key, value), and one packed weight
//! serves every call until the next update.

use std::ops::Range;

use crate::gemm::{Left, Operand, PANEL_COLS, Right, Source, Store, gemm};
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel};

/// One weight `[out, in]`, or `groups` of them (the experts), packed for the products it takes part in.
pub struct PackedWeight {
    groups: usize,
    forward: Right,
    backward: Option<Right>,
}

impl PackedWeight {
    /// Room for `groups` weights `[out, in]`; `trainable` ones are packed for `dx = dy·W` too. [`PackedWeight::pack`]
    /// fills it.
    pub fn new(groups: usize, out: usize, input: usize, operand: Operand, trainable: bool) -> PackedWeight {
        PackedWeight {
            groups,
            forward: Right::scratch(groups, out, input, operand),
            backward: trainable.then(|| Right::scratch(groups, input, out, operand)),
        }
    }

    /// Packs the weights `[groups · out, in]`, in place of what was there.
    pub fn pack(&mut self, w: &[f32]) {
        self.pack_strips(w.len(), |range| &w[range]);
    }

    /// Changes the weights `[groups · out, in]` and packs them, a strip of 32 rows after the other, so that each is read
    /// once. `change` gets a range of `w` and the numbers there.
    pub fn update(&mut self, w: &mut [f32], change: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        let len = w.len();
        let w = Shared::new(w);
        self.pack_strips(len, |range| {
            // SAFETY: each strip is another range.
            let strip = unsafe { w.range(range.clone()) };
            change(range, strip);
            strip
        });
    }

    fn pack_strips<'w>(&mut self, len: usize, strip: impl Fn(Range<usize>) -> &'w [f32] + Sync) {
        let (out, input) = (self.forward.rows(), self.forward.k());
        assert_eq!(len, self.groups * out * input, "a weight is [groups, out, in]");
        let (forward, forward_shape) = self.forward.shared();
        let backward = self.backward.as_mut().map(Right::shared);
        let strips = out.div_ceil(PANEL_COLS);
        parallel(self.groups * strips, |task| {
            let (group, p) = (task / strips, task % strips);
            let rows = p * PANEL_COLS..((p + 1) * PANEL_COLS).min(out);
            let strip = strip((group * out + rows.start) * input..(group * out + rows.end) * input);
            // SAFETY: each task packs another strip.
            unsafe {
                forward_shape.pack_panel(&forward, group, p, strip);
                if let Some((backward, shape)) = &backward {
                    shape.pack_part(backward, group, rows.start, strip);
                }
            }
        });
    }

    /// Panels for `y = x·Wᵀ`.
    pub fn forward(&self) -> &Right {
        &self.forward
    }

    /// Panels for `dx = dy·W`.
    ///
    /// # Panics
    /// When the weight is not trainable.
    pub fn backward(&self) -> &Right {
        self.backward.as_ref().expect("a backward pass runs only over a model made for training")
    }

    /// The precision of the packed numbers.
    pub fn operand(&self) -> Operand {
        self.forward.operand()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.forward.bytes() + self.backward.as_ref().map_or(0, Right::bytes)
    }
}

/// Packs `x [T, in]` as the left factor of [`forward`].
pub fn pack_input(x_ti: &Tensor, operand: Operand) -> Left {
    Left::from_rows(Source::new(x_ti, x_ti.cols()), x_ti.rows(), x_ti.cols(), operand)
}

/// `y [T, out] = x·Wᵀ`.
pub fn forward(x: &Left, w: &PackedWeight) -> Tensor {
    let mut y = Tensor::scratch(&[x.rows(), w.forward.rows()]);
    gemm(x, &w.forward, &mut y, Store::Overwrite);
    y
}

/// `dx [T, in] (+)= dy·W`.
pub fn backward_input(dy_to: &Tensor, w: &PackedWeight, dx_ti: &mut Tensor, store: Store) {
    gemm(&pack_input(dy_to, w.operand()), w.backward(), dx_ti, store);
}

/// Packs `x [T, in]` as the right factor of [`backward_weight`].
pub fn pack_saved(x_ti: &Tensor, operand: Operand) -> Right {
    Right::from_columns(Source::new(x_ti, x_ti.cols()), x_ti.cols(), x_ti.rows(), operand)
}

/// `dW [out, in] += dyᵀ·x`.
pub fn backward_weight(dy_to: &Tensor, x: &Right, dw_oi: &mut [f32]) {
    let left = Left::from_columns(Source::new(dy_to, dy_to.cols()), dy_to.cols(), dy_to.rows(), x.operand());
    gemm(&left, x, dw_oi, Store::Accumulate);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{finite_differences, numbers, on_every_isa, relative_error, wide};

    fn naive(x: &[f64], w: &[f64], t: usize, o: usize, i: usize) -> Vec<f64> {
        (0..t * o).map(|at| (0..i).map(|l| x[at / o * i + l] * w[at % o * i + l]).sum()).collect()
    }

    #[test]
    fn all_three_roles_match_finite_differences() {
        for (t, o, i) in [(1, 1, 1), (3, 5, 7), (17, 33, 19)] {
            let (x, w, dy) = (numbers(1, t * i), numbers(2, o * i), numbers(3, t * o));
            let got = on_every_isa(|| {
                let mut packed = PackedWeight::new(1, o, i, Operand::F32, true);
                packed.pack(&w);
                let (x, dy) = (Tensor::new(&x, &[t, i]), Tensor::new(&dy, &[t, o]));
                let y = forward(&pack_input(&x, Operand::F32), &packed);
                let mut dx = Tensor::scratch(&[t, i]);
                backward_input(&dy, &packed, &mut dx, Store::Overwrite);
                let mut dw = vec![0.0; o * i];
                backward_weight(&dy, &pack_saved(&x, Operand::F32), &mut dw);
                [&y[..], &dx[..], &dw[..]].concat()
            });
            let (x, w, dy) = (wide(&x), wide(&w), wide(&dy));
            let loss = |y: Vec<f64>| y.iter().zip(&dy).map(|(a, b)| a * b).sum();
            let dx = finite_differences(&x, |x| loss(naive(x, &w, t, o, i)));
            let dw = finite_differences(&w, |w| loss(naive(&x, w, t, o, i)));
            assert!(relative_error(&got[..t * o], &naive(&x, &w, t, o, i)) < 1e-6);
            assert!(relative_error(&got[t * o..t * o + t * i], &dx) < 1e-6);
            assert!(relative_error(&got[t * o + t * i..], &dw) < 1e-6);
        }
    }
}
