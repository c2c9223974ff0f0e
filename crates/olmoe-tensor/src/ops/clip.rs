//! `y = min(max(x, −limit), limit)`, in place.
//!
//! Backward: `dx = dy` where `|x| < limit`, else 0. The output shows which numbers were clipped, so nothing else is
//! kept.

use super::lanes::{lanes, split_numbers};
use crate::simd::kernel;

kernel! {
    fn clip[s: S](x: &mut [f32], limit: f32) {
        let (low, high) = (s.splat(-limit), s.splat(limit));
        // In this order a NaN stays NaN.
        lanes!(s; read []; update [x]; write []; { [s.max(low, s.min(high, x))] });
    }
}

kernel! {
    fn mask[s: S](y: &[f32], limit: f32, d: &mut [f32]) {
        let (low, high) = (s.splat(-limit), s.splat(limit));
        lanes!(s; read [y]; update [d]; write []; {
            let below = s.select_lt(y, high, d, s.zero());
            [s.select_lt(low, y, below, s.zero())]
        });
    }
}

/// Clips `x` to `[−limit, limit]`.
pub fn forward(x: &mut [f32], limit: f32) {
    split_numbers([x], |_, [x]| clip(x, limit));
}

/// Turns `dy` of the clipped `y` into `dx`, in place.
pub fn backward(y: &[f32], limit: f32, d: &mut [f32]) {
    assert_eq!(y.len(), d.len());
    split_numbers([d], |range, [d]| mask(&y[range], limit, d));
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
