//! Statistics of a tensor for a log: sums, norms and extremes, in one pass.
//!
//! The sums are divided as in [`global_norm`](super::global_norm): f32 lanes over 1,024 numbers, and these sums in f64,
//! in order.

use super::lanes::lanes;
use crate::memory::Buffer;
use crate::simd::kernel;
use crate::threads::{Shared, parallel};

/// Numbers of a task.
const TASK_NUMBERS: usize = 64 << 10;
/// Numbers that are summed in f32.
const RUN: usize = 1024;

/// Statistics of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// How many numbers there are.
    pub count: usize,
    /// `Σ x`
    pub sum: f64,
    /// `Σ |x|`
    pub sum_abs: f64,
    /// `Σ x²`
    pub squares: f64,
    /// How many numbers are not 0.
    pub nonzero: f64,
    /// The smallest `|x|`; infinite of an empty tensor.
    pub min_abs: f32,
    /// The largest `|x|`.
    pub max_abs: f32,
}

impl Summary {
    /// The summary of an empty tensor.
    pub const EMPTY: Summary =
        Summary { count: 0, sum: 0.0, sum_abs: 0.0, squares: 0.0, nonzero: 0.0, min_abs: f32::INFINITY, max_abs: 0.0 };

    /// `√Σ x²`
    pub fn norm(&self) -> f64 {
        self.squares.sqrt()
    }

    /// The mean `Σ x / n`; NaN of an empty tensor.
    pub fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// Adds the numbers of another tensor: both as one.
    pub fn add(&mut self, other: &Summary) {
        self.count += other.count;
        self.sum += other.sum;
        self.sum_abs += other.sum_abs;
        self.squares += other.squares;
        self.nonzero += other.nonzero;
        self.min_abs = self.min_abs.min(other.min_abs);
        self.max_abs = self.max_abs.max(other.max_abs);
    }
}

kernel! {
    fn block[s: S](x: &[f32]) -> Summary {
        let mut total = Summary::EMPTY;
        for x in x.chunks(RUN) {
            let mut sums = [s.zero(); 4];
            let mut largest = s.zero();
            lanes!(s; read [x]; {
                let size = s.max(x, s.sub(s.zero(), x));
                let one = s.select_lt(s.zero(), size, s.splat(1.0), s.zero());
                sums = [s.add(sums[0], x), s.add(sums[1], size), s.fma(x, x, sums[2]), s.add(sums[3], one)];
                largest = s.max(size, largest);
            });
            // The zeros that pad the rest would be the smallest numbers.
            let (whole, rest) = x.as_chunks::<16>();
            let mut minus_smallest = s.splat(f32::NEG_INFINITY);
            for x in whole {
                let x = s.load(x);
                minus_smallest = s.max(s.min(x, s.sub(s.zero(), x)), minus_smallest);
            }
            let smallest = rest.iter().fold(-s.reduce_max(minus_smallest), |smallest, x| smallest.min(x.abs()));
            let mut totals = [0.0; 4];
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = f64::from(s.reduce_add(sum));
            }
            let [sum, sum_abs, squares, nonzero] = totals;
            let max_abs = s.reduce_max(largest);
            total.add(&Summary { count: x.len(), sum, sum_abs, squares, nonzero, min_abs: smallest, max_abs });
        }
        total
    }
}

/// The summary of `x`, on all threads.
pub fn summary(x: &[f32]) -> Summary {
    if x.len() <= TASK_NUMBERS {
        return block(x);
    }
    let tasks = x.len().div_ceil(TASK_NUMBERS);
    let mut parts = Buffer::<[f64; 6]>::scratch(tasks);
    let shared = Shared::new(&mut parts);
    parallel(tasks, |i| {
        let part = block(&x[i * TASK_NUMBERS..(i * TASK_NUMBERS + TASK_NUMBERS).min(x.len())]);
        let Summary { count: _, sum, sum_abs, squares, nonzero, min_abs, max_abs } = part;
        // SAFETY: each task has its own place, and the buffer outlives the loop.
        let place = unsafe { shared.range(i..i + 1) };
        place[0] = [sum, sum_abs, squares, nonzero, min_abs.into(), max_abs.into()];
    });
    let mut total = Summary::EMPTY;
    for &[sum, sum_abs, squares, nonzero, min_abs, max_abs] in parts.iter() {
        let (min_abs, max_abs) = (min_abs as f32, max_abs as f32);
        total.add(&Summary { count: 0, sum, sum_abs, squares, nonzero, min_abs, max_abs });
    }
    Summary { count: x.len(), ..total }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{numbers, on_every_isa_and_threads};

    #[test]
    fn agrees_with_f64_on_every_instruction_set_and_number_of_threads() {
        for n in [0, 1, 15, 16, 79, 1025, 3 * TASK_NUMBERS + 77] {
            let mut x = numbers(1, n);
            x.iter_mut().skip(1).step_by(7).for_each(|x| *x = 0.0);
            x.iter_mut().step_by(16).for_each(|x| *x += 2.0);
            if n == 15 {
                x.iter_mut().for_each(|x| *x -= 7.0);
            }
            let got = summary(&x);
            let wide = || x.iter().map(|x| f64::from(*x));
            let near = |got: f64, expected: f64| (got - expected).abs() <= 1e-6 * (n as f64 + expected.abs());
            assert_eq!(got.count, n);
            assert!(near(got.sum, wide().sum()) && near(got.sum_abs, wide().map(f64::abs).sum()), "{n}: {got:?}");
            assert!(near(got.squares, wide().map(|x| x * x).sum()));
            assert_eq!(got.nonzero, wide().filter(|x| *x != 0.0).count() as f64);
            assert_eq!(got.min_abs, x.iter().map(|x| x.abs()).fold(f32::INFINITY, f32::min), "{n}");
            assert_eq!(got.max_abs, x.iter().map(|x| x.abs()).fold(0.0, f32::max));
            on_every_isa_and_threads(|| {
                let got = summary(&x);
                let halves = |x: f64| [(x.to_bits() >> 32) as u32, x.to_bits() as u32].map(f32::from_bits);
                let sums = [got.sum, got.sum_abs, got.squares, got.nonzero].map(halves);
                [&sums.concat()[..], &[got.min_abs, got.max_abs]].concat()
            });
        }
        assert_eq!(summary(&[]).min_abs, f32::INFINITY);
        assert!(summary(&[]).mean().is_nan());
    }
}
