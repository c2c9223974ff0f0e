//! `Σ x²`, the squared norm of a gradient. The root of the sum over all parameters is the global norm, by which
//! gradients are clipped.
//!
//! Squares are summed in f32 lanes over 1,024 numbers, and these sums in f64, in order: a fixed division, so that the
//! result does not depend on the number of threads. A square above the range of f32 counts as infinite, as in torch,
//! whose norm is f32; one below the range counts as 0.

use super::lanes;
use crate::memory::Buffer;
use crate::simd::kernel;
use crate::threads::{Shared, parallel};

/// Numbers of a task.
const TASK_NUMBERS: usize = 64 << 10;
/// Numbers that are summed in f32.
const RUN: usize = 1024;

kernel! {
    fn block[s: S](x: &[f32]) -> f64 {
        let mut sum = 0.0;
        for x in x.chunks(RUN) {
            sum += f64::from(lanes::sum_of_squares(s, x));
        }
        sum
    }
}

/// `Σ x²`, on all threads. It is finite only if every number is: this is also the check for NaN and infinity.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    if x.len() <= TASK_NUMBERS {
        return block(x);
    }
    let mut sums = Buffer::<f64>::scratch(x.len().div_ceil(TASK_NUMBERS));
    let shared = Shared::new(&mut sums);
    parallel(x.len().div_ceil(TASK_NUMBERS), |i| {
        // SAFETY: each task has its own place, and the buffer outlives the loop.
        let sum = unsafe { shared.range(i..i + 1) };
        sum[0] = block(&x[i * TASK_NUMBERS..(i * TASK_NUMBERS + TASK_NUMBERS).min(x.len())]);
    });
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, on_every_isa};
    use crate::threads::set_num_threads;

    #[test]
    fn agrees_with_f64_on_every_instruction_set_and_number_of_threads() {
        for n in [0, 1, 79, 1025, 3 * TASK_NUMBERS + 77] {
            let x = numbers(1, n);
            let expected: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            let got = sum_of_squares(&x);
            assert!((got - expected).abs() <= 1e-7 * expected, "{n}: {got}, not {expected}");
            for threads in [1, 2, 3] {
                set_num_threads(threads);
                assert_eq!(sum_of_squares(&x), got);
            }
            let halves = |x: f64| vec![f32::from_bits((x.to_bits() >> 32) as u32), f32::from_bits(x.to_bits() as u32)];
            let same = on_every_isa(|| halves(sum_of_squares(&x)));
            assert_eq!(same[0].to_bits(), halves(got)[0].to_bits());
        }
    }

    #[test]
    fn what_is_not_finite_shows() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 5, TASK_NUMBERS, 2 * TASK_NUMBERS + 2] {
                let mut x = numbers(1, 2 * TASK_NUMBERS + 3);
                x[at] = bad;
                assert!(!sum_of_squares(&x).is_finite());
            }
        }
    }
}
