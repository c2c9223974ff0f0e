//! Activation functions, elementwise, on slices of the same length.
//!
//! - SiLU: `x·σ(x)`, `σ(x) = 1/(1 + e^−x)` (Hendrycks and Gimpel, arXiv 1606.08415).
//! - GELU: `x·Φ(x)`, `Φ(x) = (1 + erf(x/√2))/2`: the exact form, `torch.nn.GELU(approximate='none')`.
//! - ReLU: `max(x, 0)`; its derivative at 0 is 0.
//! - SwiGLU: `silu(gate)·up` (Shazeer, arXiv 2002.05202).
//!
//! Slices of up to 16 Ki numbers are computed on the calling thread, so that tasks of other operations can call these
//! functions; longer slices use all threads.
//!
//! # Panics
//! All functions panic when the lengths of their slices differ.

use super::lanes::{lanes, same_length, split_numbers};
use crate::simd::{Simd, exp, kernel, silu_parts};

/// An activation function of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonlinearity {
    /// `x·σ(x)`
    Silu,
    /// `x·Φ(x)`
    Gelu,
    /// `max(x, 0)`
    Relu,
}

/// The error function, within 1e-7.
///
/// Below 1 `x + x·p(x²)`, above `1 − e^q(|x|)`; `p` and `q` of degree 6 are minimax fits of `erf(x)/x − 1` and of `ln
/// erfc(x)` on 1..4, the latter weighted with `erfc`, by Lawson's iteration (least squares, reweighted with the error)
/// in f64.
#[inline(always)]
fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    const NEAR: [f32; 7] =
        [0.128_379_16, -0.376_126_26, 0.112_835_854, -0.026_853_813, 5.188_328_7e-3, -8.010_202_4e-4, 7.853_887e-5];
    const FAR: [f32; 7] =
        [-3.537_153_2e-4, -1.127_04, -0.638_225_7, -0.103_037_39, 0.021_805_33, -2.939_609_8e-3, 1.855_742_5e-4];
    let negative = s.sub(s.zero(), x);
    let t = s.max(x, negative);
    let t_far = s.min(s.splat(4.0), t);
    let square = s.mul(x, x);
    let (mut near, mut far) = (s.splat(NEAR[6]), s.splat(FAR[6]));
    for i in (0..6).rev() {
        near = s.fma(near, square, s.splat(NEAR[i]));
        far = s.fma(far, t_far, s.splat(FAR[i]));
    }
    let far = s.sub(s.splat(1.0), exp(s, far));
    let far = s.select_lt(x, s.zero(), s.sub(s.zero(), far), far);
    s.select_lt(t, s.splat(1.0), s.fma(x, near, x), far)
}

/// `(Φ(x), φ(x))`: the standard normal distribution and its density.
#[inline(always)]
fn normal_parts<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let half = s.splat(0.5);
    let cumulative = s.fma(half, erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half);
    // 1/√(2π)
    let density = s.mul(s.splat(0.398_942_3), exp(s, s.mul(s.mul(x, s.splat(-0.5)), x)));
    (cumulative, density)
}

/// SiLU and its derivative `σ·(1 + x·(1 − σ))`.
#[inline(always)]
fn silu_and_slope<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let (sigma, silu) = silu_parts(s, x);
    (silu, s.fma(silu, s.sub(s.splat(1.0), sigma), sigma))
}

kernel! {
    fn forward[s: S](kind: Nonlinearity, x: &[f32], y: &mut [f32]) {
        match kind {
            Nonlinearity::Silu => lanes!(s; read [x]; update []; write [y]; { [silu_parts(s, x).1] }),
            Nonlinearity::Gelu => lanes!(s; read [x]; update []; write [y]; { [s.mul(x, normal_parts(s, x).0)] }),
            // In this order a NaN stays NaN.
            Nonlinearity::Relu => lanes!(s; read [x]; update []; write [y]; { [s.select_lt(x, s.zero(), s.zero(), x)] }),
        }
    }
}

/// `y = f(x)`
pub fn activate(kind: Nonlinearity, x: &[f32], y: &mut [f32]) {
    same_length([x.len(), y.len()]);
    split_numbers([y], |range, [y]| forward(kind, &x[range], y));
}

kernel! {
    fn backward[s: S](kind: Nonlinearity, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        match kind {
            Nonlinearity::Silu => {
                lanes!(s; read [x, dy]; update []; write [dx]; { [s.mul(dy, silu_and_slope(s, x).1)] });
            }
            Nonlinearity::Gelu => lanes!(s; read [x, dy]; update []; write [dx]; {
                let (cumulative, density) = normal_parts(s, x);
                [s.mul(dy, s.fma(x, density, cumulative))]
            }),
            Nonlinearity::Relu => {
                lanes!(s; read [x, dy]; update []; write [dx]; { [s.select_lt(s.zero(), x, dy, s.zero())] });
            }
        }
    }
}

/// `dx = dy·f′(x)`
pub fn activate_backward(kind: Nonlinearity, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    same_length([x.len(), dy.len(), dx.len()]);
    split_numbers([dx], |range, [dx]| backward(kind, &x[range.clone()], &dy[range], dx));
}

kernel! {
    fn swiglu_forward[s: S](gate: &[f32], up: &[f32], y: &mut [f32]) {
        lanes!(s; read [gate, up]; update []; write [y]; { [s.mul(silu_parts(s, gate).1, up)] })
    }
}

/// `y = silu(gate)·up`
pub fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
    same_length([gate.len(), up.len(), y.len()]);
    split_numbers([y], |range, [y]| swiglu_forward(&gate[range.clone()], &up[range], y));
}

kernel! {
    /// Backward of [`swiglu`] where the activation was multiplied by `scale` (the weight of a token for an expert, or
    /// 1). Writes the gradients for `scale·dact` and, recomputed, the activation `act = silu(gate)·up`. Returns `Σ
    /// dact·act`, the gradient of `scale`. Runs on the calling thread.
    pub fn swiglu_backward[s: S](
        gate: &[f32],
        up: &[f32],
        dact: &[f32],
        scale: f32,
        dgate: &mut [f32],
        dup: &mut [f32],
        act: &mut [f32],
    ) -> f32 {
        let scale = s.splat(scale);
        let mut sum = s.zero();
        lanes!(s; read [gate, up, dact]; update []; write [dgate, dup, act]; {
            let (silu, slope) = silu_and_slope(s, gate);
            let act = s.mul(silu, up);
            sum = s.fma(dact, act, sum);
            let dy = s.mul(scale, dact);
            [s.mul(s.mul(dy, up), slope), s.mul(dy, silu), act]
        });
        s.reduce_add(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{finite_differences, numbers, on_every_isa, on_every_isa_and_threads, relative_error, wide};

    const KINDS: [Nonlinearity; 3] = [Nonlinearity::Silu, Nonlinearity::Gelu, Nonlinearity::Relu];

    /// The error function by its Maclaurin series, or the continued fraction of erfc where that converges fast.
    fn erf_f64(x: f64) -> f64 {
        let t = x.abs();
        if t < 3.0 {
            let mut term = t;
            let mut sum = t;
            for n in 1..100 {
                term *= -t * t / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return sum.copysign(x) * 2.0 / std::f64::consts::PI.sqrt();
        }
        let mut fraction = t;
        for n in (1..100).rev() {
            fraction = t + f64::from(n) / 2.0 / fraction;
        }
        (1.0 - (-t * t).exp() / fraction / std::f64::consts::PI.sqrt()).copysign(x)
    }

    fn naive(kind: Nonlinearity, x: f64) -> f64 {
        match kind {
            Nonlinearity::Silu => x / (1.0 + (-x).exp()),
            Nonlinearity::Gelu => x * 0.5 * (1.0 + erf_f64(x / std::f64::consts::SQRT_2)),
            Nonlinearity::Relu => x.max(0.0),
        }
    }

    /// Numbers in −8..8 without 0, where ReLU has no derivative.
    fn inputs(seed: usize, n: usize) -> Vec<f32> {
        numbers(seed, n).iter().map(|x| x * 8.0).map(|x| if x.abs() < 0.01 { 0.5 } else { x }).collect()
    }

    kernel! {
        fn erf_slice[s: S](x: &[f32], y: &mut [f32]) {
            lanes!(s; read [x]; update []; write [y]; { [erf(s, x)] })
        }
    }

    #[test]
    fn the_error_function_is_within_its_bound() {
        let x: Vec<f32> =
            (-60_000..=60_000).map(|i| i as f32 * 1e-4).chain([1e-30, -0.0, 1e30, f32::INFINITY]).collect();
        let y = on_every_isa(|| {
            let mut y = vec![0.0; x.len()];
            erf_slice(&x, &mut y);
            y
        });
        let worst =
            x.iter().zip(&y).map(|(x, y)| (f64::from(*y) - erf_f64(f64::from(x.min(10.0)))).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-7, "{worst}");
    }

    #[test]
    fn activations_agree_with_the_formulas_and_their_differences() {
        for kind in KINDS {
            let (x, dy) = (inputs(1, 531), numbers(2, 531));
            let mut y = vec![0.0; 531];
            activate(kind, &x, &mut y);
            let expected: Vec<f64> = x.iter().map(|x| naive(kind, f64::from(*x))).collect();
            assert!(relative_error(&y, &expected) < 1e-6, "{kind:?}");
            activate_backward(kind, &x, &dy, &mut y);
            let expected = finite_differences(&wide(&x), |x| {
                x.iter().zip(&dy).map(|(x, dy)| naive(kind, *x) * f64::from(*dy)).sum()
            });
            assert!(relative_error(&y, &expected) < 1e-6, "{kind:?}");
        }
    }

    #[test]
    fn special_numbers() {
        let x = [f32::NAN, 0.0, 200.0, -200.0];
        for kind in KINDS {
            let (mut y, mut dx) = ([9.0; 4], [9.0; 4]);
            activate(kind, &x, &mut y);
            activate_backward(kind, &x, &[1.0; 4], &mut dx);
            assert!(y[0].is_nan() && y[1] == 0.0 && y[2] == 200.0 && y[3].abs() < 1e-30, "{kind:?} {y:?}");
            assert!(dx[2] == 1.0 && dx[3].abs() < 1e-30, "{kind:?} {dx:?}");
        }
    }

    #[test]
    fn swiglu_agrees_with_the_formula_and_its_differences() {
        for n in [1, 15, 211] {
            let (gate, up, dy, scale) = (inputs(1, n), numbers(2, n), numbers(3, n), 0.37);
            let mut outs = vec![vec![0.0; n]; 7];
            let [y, dgate, dup, act_plain, dgate_scaled, dup_scaled, act] = &mut outs[..] else { unreachable!() };
            swiglu(&gate, &up, y);
            swiglu_backward(&gate, &up, &dy, 1.0, dgate, dup, act_plain);
            let dot = swiglu_backward(&gate, &up, &dy, scale, dgate_scaled, dup_scaled, act);
            let f = |gate: &[f64], up: &[f64]| -> Vec<f64> {
                gate.iter().zip(up).map(|(g, u)| naive(Nonlinearity::Silu, *g) * u).collect()
            };
            let loss = |y: &[f64]| y.iter().zip(&dy).map(|(y, dy)| y * f64::from(*dy)).sum::<f64>();
            let (gate, up) = (wide(&gate), wide(&up));
            let expected = f(&gate, &up);
            assert!(relative_error(y, &expected) < 1e-6);
            assert_eq!(y, act);
            assert_eq!(y, act_plain);
            assert!((f64::from(dot) - loss(&expected)).abs() < 1e-6 * (1.0 + loss(&expected).abs()));
            let scaled = |x: &[f64]| -> Vec<f64> { x.iter().map(|x| x * f64::from(scale)).collect() };
            let expected = finite_differences(&gate, |gate| loss(&f(gate, &up)));
            assert!(relative_error(dgate, &expected) < 1e-6);
            assert!(relative_error(dgate_scaled, &scaled(&expected)) < 1e-6);
            let expected = finite_differences(&up, |up| loss(&f(&gate, up)));
            assert!(relative_error(dup, &expected) < 1e-6);
            assert!(relative_error(dup_scaled, &scaled(&expected)) < 1e-6);
        }
    }

    #[test]
    fn same_bits_on_every_instruction_set_and_number_of_threads() {
        for n in [0, 1, 33, 1024, 50_001] {
            let (x, up, dy) = (inputs(1, n), numbers(2, n), numbers(3, n));
            let run = || {
                let mut all = Vec::new();
                let [mut a, mut b, mut c] = [(); 3].map(|_| vec![0.0; n]);
                for kind in KINDS {
                    activate(kind, &x, &mut a);
                    activate_backward(kind, &x, &dy, &mut b);
                    all.extend(a.iter().chain(&b));
                }
                swiglu(&x, &up, &mut a);
                all.extend(&a);
                all.push(swiglu_backward(&x, &up, &dy, 0.7, &mut a, &mut b, &mut c));
                all.extend(a.iter().chain(&b).chain(&c));
                all
            };
            on_every_isa_and_threads(run);
        }
    }
}
