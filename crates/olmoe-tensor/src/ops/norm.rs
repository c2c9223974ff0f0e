//! Normalisation of each token's vector.
//!
//! - RMS: `y = x·r·w + b`, `r = 1/√(mean(x²) + ε)` (Zhang and Sennrich, arXiv 1910.07467; transformers'
//!   `OlmoeRMSNorm`).
//! - LayerNorm: `y = (x − m)·r·w + b`, `m = mean(x)`, `r = 1/√(mean((x − m)²) + ε)` (Ba et al., arXiv 1607.06450;
//!   `torch.nn.LayerNorm`).
//!
//! A missing weight counts as 1, a missing bias as 0. T tokens, D width: x_td, y_td, w_d, b_d. The mean runs over the
//! whole row; to normalise queries over all heads at once, a row holds all heads.

use super::add::{SUMMED_ROWS, accumulate_rows};
use super::lanes::{lanes, row_grain, split, sum_of_squares};
use crate::memory::Buffer;
use crate::simd::{Simd, kernel};
use crate::tensor::Tensor;

/// The statistics by which a norm divides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormFormula {
    /// The root of the mean square.
    Rms,
    /// The standard deviation, after the mean is subtracted.
    LayerNorm,
}

/// The formula and the parameters of a norm.
#[derive(Clone, Copy, Debug)]
pub struct NormParameters<'a> {
    /// The formula.
    pub kind: NormFormula,
    /// w_d
    pub weight: Option<&'a [f32]>,
    /// b_d
    pub bias: Option<&'a [f32]>,
    /// ε, added to the mean square.
    pub eps: f32,
}

/// What the backward pass needs beside the input.
#[derive(Clone, Debug)]
pub struct NormSaved {
    /// m_t, of a LayerNorm.
    mean: Option<Buffer<f32>>,
    /// r_t
    rstd: Buffer<f32>,
}

kernel! {
    fn forward_rows[s: S](x: &[f32], norm: &NormParameters, y: &mut [f32], means: &mut [f32], rstds: &mut [f32]) {
        let width = x.len() / rstds.len();
        for (i, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
            let mut mean = 0.0;
            let squares = match norm.kind {
                NormFormula::Rms => sum_of_squares(s, x),
                NormFormula::LayerNorm => {
                    mean = sum(s, x) / width as f32;
                    means[i] = mean;
                    // The row is centred first, so that the zeros that pad its last vector add nothing to the squares.
                    let mean = s.splat(mean);
                    lanes!(s; read [x]; update []; write [y]; { [s.sub(x, mean)] });
                    sum_of_squares(s, y)
                }
            };
            let rstd = 1.0 / (squares / width as f32 + norm.eps).sqrt();
            rstds[i] = rstd;
            let (m, r) = (s.splat(mean), s.splat(rstd));
            match (norm.weight, norm.bias) {
                (Some(w), None) => lanes!(s; read [x, w]; update []; write [y]; { [s.mul(s.mul(s.sub(x, m), r), w)] }),
                (Some(w), Some(b)) => {
                    lanes!(s; read [x, w, b]; update []; write [y]; { [s.fma(s.mul(s.sub(x, m), r), w, b)] });
                }
                (None, None) => lanes!(s; read [x]; update []; write [y]; { [s.mul(s.sub(x, m), r)] }),
                (None, Some(b)) => lanes!(s; read [x, b]; update []; write [y]; { [s.fma(s.sub(x, m), r, b)] }),
            }
        }
    }
}

#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut sum = s.zero();
    lanes!(s; read [x]; { sum = s.add(sum, x); });
    s.reduce_add(sum)
}

/// `y_td` of `x_td`, and what the backward pass needs.
///
/// # Panics
/// When weight or bias is not as wide as a row.
pub fn forward(x: &Tensor, norm: &NormParameters) -> (Tensor, NormSaved) {
    let (rows, width) = (x.rows(), x.cols());
    for parameter in [norm.weight, norm.bias].into_iter().flatten() {
        assert_eq!(parameter.len(), width, "parameters of a norm over {width} numbers");
    }
    let mut y = Tensor::scratch(x.shape());
    let mut rstd = Buffer::scratch(rows);
    let mut mean = (norm.kind == NormFormula::LayerNorm).then(|| Buffer::scratch(rows));
    if width > 0 {
        let means: (&mut [f32], usize) = mean.as_mut().map_or((&mut [], 0), |mean| (&mut **mean, 1));
        split(rows, row_grain(width), [(&mut y, width), means, (&mut rstd, 1)], |range, [y, mean, rstd]| {
            forward_rows(x.row_range(range), norm, y, mean, rstd);
        });
    }
    (y, NormSaved { mean, rstd })
}

kernel! {
    /// `dx` of some rows; the gradients of the parameters are accumulated in `dweight` and `dbias`, which are empty
    /// where no
/// gradient is needed.
    fn backward_rows[s: S](
        x: &[f32],
        weight: Option<&[f32]>,
        means: Option<&[f32]>,
        rstds: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        dweight: &mut [f32],
        dbias: &mut [f32],
    ) {
        let width = x.len() / rstds.len();
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
        for (i, ((x, dy), dx)) in rows.enumerate() {
            let (m, r) = (s.splat(means.map_or(0.0, |means| means[i])), s.splat(rstds[i]));
            // g = dy·w, the gradient of x̂ = (x − m)·r, is written to dx first, and g and g·x̂ are summed.
            let mut sums = [s.zero(); 3];
            match weight {
                Some(w) if !dweight.is_empty() => lanes!(s; read [x, dy, w]; update [dweight]; write [dx]; {
                    let (g, x_hat) = (s.mul(dy, w), s.mul(s.sub(x, m), r));
                    add_sums(s, &mut sums, g, x_hat);
                    [s.fma(dy, x_hat, dweight), g]
                }),
                Some(w) => lanes!(s; read [x, dy, w]; update []; write [dx]; {
                    let g = s.mul(dy, w);
                    add_sums(s, &mut sums, g, s.mul(s.sub(x, m), r));
                    [g]
                }),
                None => lanes!(s; read [x, dy]; update []; write [dx]; {
                    add_sums(s, &mut sums, dy, s.mul(s.sub(x, m), r));
                    [dy]
                }),
            }
            if !dbias.is_empty() {
                lanes!(s; read [dy]; update [dbias]; write []; { [s.add(dbias, dy)] });
            }
            let mean_g = if means.is_some() { s.reduce_add(sums[0]) / width as f32 } else { 0.0 };
            let mean_gx = s.reduce_add(s.add(sums[1], sums[2])) / width as f32;
            let (mean_g, minus_mean_gx) = (s.splat(mean_g), s.splat(-mean_gx));
            lanes!(s; read [x]; update [dx]; write []; {
                let centred = s.sub(dx, mean_g);
                [s.mul(r, s.fma(s.mul(s.sub(x, m), r), minus_mean_gx, centred))]
            });
        }
    }
}

/// Adds `g` to the first sum, and `g·x̂` to the other two in turn, so that the additions overlap.
#[inline(always)]
fn add_sums<S: Simd>(s: S, sums: &mut [S::V; 3], g: S::V, x_hat: S::V) {
    let next = s.fma(g, x_hat, sums[1]);
    *sums = [s.add(sums[0], g), sums[2], next];
}

/// `dx_td` of `dy_td`; accumulates the gradients of those parameters for which a slice is given.
///
/// With `g = dy·w` and `x̂ = (x − m)·r`: `dx = r·(g − mean(g) − x̂·mean(g·x̂))`, without `mean(g)` for RMS;
/// `dw += Σ_t dy·x̂`, `db += Σ_t dy`.
///
/// # Panics
/// When the shapes do not fit, or a gradient is given for a parameter that the norm does not have.
pub fn backward(
    x: &Tensor,
    norm: &NormParameters,
    saved: &NormSaved,
    dy: &Tensor,
    dweight: Option<&mut [f32]>,
    dbias: Option<&mut [f32]>,
) -> Tensor {
    let (rows, width) = (x.rows(), x.cols());
    assert_eq!(x.shape(), dy.shape(), "the gradient of a norm's output has the input's shape");
    assert_eq!(saved.rstd.len(), rows, "rows of a norm's backward pass");
    for (parameter, gradient) in [(norm.weight, &dweight), (norm.bias, &dbias)] {
        if let Some(gradient) = gradient {
            assert_eq!(parameter.map(<[f32]>::len), Some(gradient.len()), "a parameter and its gradient");
        }
    }
    let mut dx = Tensor::scratch(x.shape());
    if width == 0 {
        return dx;
    }
    // One sum for each block of rows; the sums are added in order at the end.
    let blocks = rows.div_ceil(SUMMED_ROWS);
    let widths = [dweight.is_some(), dbias.is_some()].map(|wanted| if wanted { width } else { 0 });
    let [mut dweight_bd, mut dbias_bd] = widths.map(|width| Buffer::<f32>::zeroed(blocks * width));
    let outputs = [(&mut *dx, SUMMED_ROWS * width), (&mut *dweight_bd, widths[0]), (&mut *dbias_bd, widths[1])];
    split(blocks, 1, outputs, |range, [dx, dweight, dbias]| {
        let (first, of) = (range.start, |i: usize, width: usize| i * width..(i + 1) * width);
        for (i, dx) in dx.chunks_mut(SUMMED_ROWS * width).enumerate() {
            let rows = (first + i) * SUMMED_ROWS..((first + i + 1) * SUMMED_ROWS).min(rows);
            backward_rows(
                x.row_range(rows.clone()),
                norm.weight,
                saved.mean.as_ref().map(|mean| &mean[rows.clone()]),
                &saved.rstd[rows.clone()],
                dy.row_range(rows),
                dx,
                &mut dweight[of(i, widths[0])],
                &mut dbias[of(i, widths[1])],
            );
        }
    });
    for (sums_bd, gradient) in [(&mut dweight_bd, dweight), (&mut dbias_bd, dbias)] {
        if let Some(gradient) = gradient {
            accumulate_rows(sums_bd, gradient);
        }
    }
    dx
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{finite_differences, numbers, on_every_isa_and_threads, relative_error, wide};

    const EPS: f32 = 1e-5;

    /// The formula, in f64.
    fn naive(kind: NormFormula, x: &[f64], width: usize, w: Option<&[f64]>, b: Option<&[f64]>) -> Vec<f64> {
        let mut y = Vec::new();
        for x in x.chunks(width) {
            let mean = if kind == NormFormula::Rms { 0.0 } else { x.iter().sum::<f64>() / width as f64 };
            let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
            let std = (square + f64::from(EPS)).sqrt();
            y.extend((0..width).map(|i| (x[i] - mean) / std * w.map_or(1.0, |w| w[i]) + b.map_or(0.0, |b| b[i])));
        }
        y
    }

    /// y, dx, dw, db of some numbers; the gradients of the parameters begin at 1.
    fn run(kind: NormFormula, rows: usize, width: usize, weight: bool, bias: bool) -> [Vec<f32>; 4] {
        let [x, dy] = [1, 2].map(|seed| Tensor::new(&numbers(seed, rows * width), &[rows, width]));
        let (w, b) = (numbers(3, width), numbers(4, width));
        let norm = NormParameters { kind, weight: weight.then_some(&w[..]), bias: bias.then_some(&b[..]), eps: EPS };
        let (y, saved) = forward(&x, &norm);
        let [mut dw, mut db] = [weight, bias].map(|wanted| vec![1.0; if wanted { width } else { 0 }]);
        let dx = backward(&x, &norm, &saved, &dy, weight.then_some(&mut dw[..]), bias.then_some(&mut db[..]));
        [y.to_vec(), dx.to_vec(), dw, db]
    }

    fn variants() -> impl Iterator<Item = (NormFormula, bool, bool)> {
        let kinds = [NormFormula::Rms, NormFormula::LayerNorm].into_iter();
        kinds.flat_map(|kind| (0..4).map(move |bits| (kind, bits & 1 != 0, bits & 2 != 0)))
    }

    #[test]
    fn agrees_with_the_formula_and_its_differences() {
        for (kind, weight, bias) in variants() {
            for (rows, width) in [(1, 5), (3, 7), (2, 83)] {
                let [x, dy] = [1, 2].map(|seed| wide(&numbers(seed, rows * width)));
                let (w, b) = (wide(&numbers(3, width)), wide(&numbers(4, width)));
                let [y, dx, dw, db] = run(kind, rows, width, weight, bias);
                let f = |x: &[f64], w: &[f64], b: &[f64]| naive(kind, x, width, weight.then_some(w), bias.then_some(b));
                assert!(relative_error(&y, &f(&x, &w, &b)) < 1e-6);
                let loss = |y: Vec<f64>| y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
                let expected = finite_differences(&x, |x| loss(f(x, &w, &b)));
                let error = relative_error(&dx, &expected);
                assert!(error < 1e-6, "{kind:?} {rows} × {width}: {error}");
                if weight {
                    let mut expected = finite_differences(&w, |w| loss(f(&x, w, &b)));
                    expected.iter_mut().for_each(|g| *g += 1.0);
                    assert!(relative_error(&dw, &expected) < 1e-6);
                }
                if bias {
                    let mut expected = finite_differences(&b, |b| loss(f(&x, &w, b)));
                    expected.iter_mut().for_each(|g| *g += 1.0);
                    assert!(relative_error(&db, &expected) < 1e-6);
                }
            }
        }
    }

    #[test]
    fn large_rows_agree_with_the_formula() {
        for (kind, weight, bias) in variants() {
            let (rows, width) = (5, 2048);
            let (x, w, b) = (numbers(1, rows * width), numbers(3, width), numbers(4, width));
            let (w, b) = (wide(&w), wide(&b));
            let expected = naive(kind, &wide(&x), width, weight.then_some(&w), bias.then_some(&b));
            assert!(relative_error(&run(kind, rows, width, weight, bias)[0], &expected) < 1e-6);
        }
    }

    #[test]
    fn same_bits_on_every_instruction_set_and_number_of_threads() {
        for (kind, weight, bias) in variants() {
            for (rows, width) in [(0, 5), (4, 0), (1, 1), (3, 33), (2 * SUMMED_ROWS + 3, 1030), (5 * SUMMED_ROWS, 64)] {
                let all = || run(kind, rows, width, weight, bias).concat();
                on_every_isa_and_threads(all);
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch() {
        let (rows, width) = (70, 130);
        let (x, w) = (Tensor::new(&numbers(1, rows * width), &[rows, width]), numbers(3, width));
        let norm = NormParameters { kind: NormFormula::Rms, weight: Some(&w), bias: None, eps: EPS };
        let (y, _) = forward(&x, &norm);
        for row in 0..rows {
            assert_eq!(forward(&Tensor::new(x.row(row), &[1, width]), &norm).0[..], *y.row(row));
        }
    }
}
