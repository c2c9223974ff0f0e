//! Helpers of the tests of operations: inputs, finite differences, and a run on every instruction set.

use std::sync::{Mutex, PoisonError};

use crate::simd::Isa;
use crate::threads::{num_threads, set_num_threads};

/// Held while a test switches the instruction set, which is one for the whole process.
static SWITCH: Mutex<()> = Mutex::new(());

/// `n` reproducible numbers in −1..1 without a period that could hide an error of a kernel.
pub(crate) fn numbers(seed: usize, n: usize) -> Vec<f32> {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// The same numbers in f64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// A number made of the bits of all others in their order (FNV-1a), to be compared between architectures. There must be no
/// NaN: the bits of one that an operation makes differ between them.
pub(crate) fn fingerprint(x: &[f32]) -> u64 {
    assert!(!x.iter().any(|x| x.is_nan()), "a NaN has no bits of its own");
    let bytes = x.iter().flat_map(|x| x.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// `‖got − expected‖ / ‖expected‖`, or the absolute norm where nothing is expected.
pub(crate) fn relative_error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(expected).map(|(a, b)| f64::from(*a) - b));
    let size = norm(&mut expected.iter().copied());
    if size > 0.0 { difference / size } else { difference }
}

/// The gradient of a scalar function in f64 by central differences, of fourth order.
pub(crate) fn finite_differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let h = 1e-3;
    let mut at = x.to_vec();
    (0..x.len())
        .map(|i| {
            let mut moved = |by: f64| {
                at[i] = x[i] + by;
                let value = f(&at);
                at[i] = x[i];
                value
            };
            (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * h)
        })
        .collect()
}

/// [`on_every_isa`], and then on one, two and three threads; all have to give the same bits.
pub(crate) fn on_every_isa_and_threads(f: impl Fn() -> Vec<f32>) -> Vec<f32> {
    let expected = on_every_isa(&f);
    let before = num_threads();
    for threads in [1, 2, 3] {
        set_num_threads(threads);
        let got = f();
        let same = got.len() == expected.len()
            && got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan());
        assert!(same, "other bits on {threads} threads");
    }
    set_num_threads(before);
    expected
}

/// Runs `f` on every instruction set of this machine, checks that all give the bits of the scalar one, and returns
/// them.
pub(crate) fn on_every_isa(f: impl Fn() -> Vec<f32>) -> Vec<f32> {
    let _guard = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
    let before = Isa::current();
    let mut oracle: Option<Vec<f32>> = None;
    for isa in Isa::available() {
        isa.select();
        let got = f();
        match &oracle {
            None => oracle = Some(got),
            Some(oracle) => {
                assert_eq!(got.len(), oracle.len());
                for (i, (got, expected)) in got.iter().zip(oracle).enumerate() {
                    assert!(
                        got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(),
                        "{} gives {got} at {i}, scalar {expected}",
                        isa.name()
                    );
                }
            }
        }
    }
    before.select();
    oracle.expect("the scalar set is always there")
}
