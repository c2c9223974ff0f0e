//! Functions of one variable, made of the exact operations of [`Simd`]; so they too give the same bits everywhere.

use super::Simd;

/// `e^x`, within 1.5 units in the last place of the f32 result; 0 below −87.3, saturating above 88.3; a NaN stays a NaN.
///
/// Cody–Waite reduction to `r = x − n ln 2`, `|r| ≤ ln 2 / 2`, then a polynomial of degree 6 (the minimax
/// coefficients of Cephes' `expf`).
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let lowest = s.splat(-87.3);
    let clamped = s.max(lowest, s.min(s.splat(88.3), x));
    let n = s.round(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), clamped);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    s.select_lt(x, lowest, s.zero(), s.mul(p, s.exp2_integral(n)))
}

/// `(σ(x), x·σ(x))`: the logistic function and SiLU.
#[inline(always)]
pub fn silu_parts<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let one = s.splat(1.0);
    let sigma = s.div(one, s.add(one, exp(s, s.sub(s.zero(), x))));
    (sigma, s.mul(x, sigma))
}
