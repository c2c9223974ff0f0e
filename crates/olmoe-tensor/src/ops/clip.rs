//! `y = min(max(x, −limit), limit)`, in place.
//!
//! Backward: `dx = dy` where `|x| < limit`, else 0. The output tells which those are, so nothing else is kept.

use crate::simd::{LANES, kernel};
use crate::threads::{Shared, parallel_ranges};

/// Numbers in a task, at least.
const GRAIN: usize = 1 << 14;

kernel! {
    fn clip[s: S](x: &mut [f32], limit: f32) {
        let (low, high) = (s.splat(-limit), s.splat(limit));
        for x in x.chunks_mut(LANES) {
            // In this order a NaN stays one.
            let y = s.max(low, s.min(high, s.load_partial(x)));
            s.store_partial(y, x);
        }
    }
}

kernel! {
    fn mask[s: S](y: &[f32], limit: f32, d: &mut [f32]) {
        let (low, high) = (s.splat(-limit), s.splat(limit));
        for (y, d) in y.chunks(LANES).zip(d.chunks_mut(LANES)) {
            let (v, dv) = (s.load_partial(y), s.load_partial(d));
            let below = s.select_lt(v, high, dv, s.zero());
            s.store_partial(s.select_lt(low, v, below, s.zero()), d);
        }
    }
}

/// Clips `x` to `[−limit, limit]`.
pub fn forward(x: &mut [f32], limit: f32) {
    let len = x.len();
    let shared = Shared::new(x);
    // SAFETY: the ranges of a parallel loop are disjoint.
    parallel_ranges(len, GRAIN, |range| clip(unsafe { shared.range(range) }, limit));
}

/// `dy` of the clipped `y` becomes `dx`.
pub fn backward(y: &[f32], limit: f32, d: &mut [f32]) {
    assert_eq!(y.len(), d.len());
    let shared = Shared::new(d);
    // SAFETY: the ranges of a parallel loop are disjoint.
    parallel_ranges(y.len(), GRAIN, |range| mask(&y[range.clone()], limit, unsafe { shared.range(range) }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, on_every_isa};

    #[test]
    fn clips_and_masks() {
        for n in [0, 1, 17, 40_000] {
            let (x, dy) = (numbers(1, n), numbers(2, n));
            let got = on_every_isa(|| {
                let (mut y, mut d) = (x.clone(), dy.clone());
                forward(&mut y, 0.5);
                backward(&y, 0.5, &mut d);
                [y, d].concat()
            });
            for i in 0..n {
                assert_eq!(got[i], x[i].clamp(-0.5, 0.5));
                assert_eq!(got[n + i], if x[i].abs() < 0.5 { dy[i] } else { 0.0 });
            }
        }
        let mut nan = [f32::NAN];
        forward(&mut nan, 1.0);
        assert!(nan[0].is_nan());
    }
}
