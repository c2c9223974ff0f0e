//! One answer, and how differences become numbers.

use serde::Serialize;

/// What sort of question a check asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The model against a golden state: `worst` is an error, which may not exceed the bound.
    Agreement,
    /// The model against itself: `worst` is how many numbers have other bits, and the bound is 0.
    Determinism,
    /// The f64 reference against a golden state: as `Agreement`.
    Reference,
    /// A mistake made on purpose: `worst` is the error it causes, which has to exceed the bound.
    Mistake,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Name of the golden state.
    pub model: String,
    /// What sort of question.
    pub kind: Kind,
    /// What was compared.
    pub what: String,
    /// Of the matrix products: `fp32`, `amp_bf16`, or `fp64` for the reference.
    pub precision: &'static str,
    /// The largest error found.
    pub worst: f64,
    /// Its bound: from above, or for a mistake from below.
    pub bound: f64,
    /// Whether the error is on the right side of the bound.
    pub passed: bool,
    /// Where the worst was found, or what else there is to know; may be empty.
    pub detail: String,
}

impl Check {
    /// Passed if `worst` is at most `bound`, or for a mistake above it; a NaN never passes as agreement and is always a
    /// mistake detected.
    pub(crate) fn new(
        (model, precision): (&str, &'static str),
        kind: Kind,
        what: impl Into<String>,
        worst: f64,
        bound: f64,
        detail: impl Into<String>,
    ) -> Check {
        let within = worst <= bound;
        let passed = within != (kind == Kind::Mistake);
        Check { model: model.into(), kind, what: what.into(), precision, worst, bound, passed, detail: detail.into() }
    }
}

/// How many checks there were and how many passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All checks, the mistakes included.
    pub checks: usize,
    /// Those that passed.
    pub passed: usize,
    /// The mistakes among them.
    pub mistakes: usize,
    /// The mistakes that were detected.
    pub detected: usize,
}

impl Summary {
    /// Counts one more.
    pub fn add(&mut self, check: &Check) {
        self.checks += 1;
        self.passed += usize::from(check.passed);
        if check.kind == Kind::Mistake {
            self.mistakes += 1;
            self.detected += usize::from(check.passed);
        }
    }

    /// Checks that failed.
    pub fn failed(&self) -> usize {
        self.checks - self.passed
    }
}

/// `‖found − expected‖ / ‖expected‖` in f64; for an all-zero tensor the largest magnitude found.
pub(crate) fn relative(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "only tensors of one shape are compared");
    let (mut difference, mut norm) = (0.0, 0.0);
    for (found, expected) in found.iter().zip(expected) {
        difference += (f64::from(*found) - f64::from(*expected)).powi(2);
        norm += f64::from(*expected).powi(2);
    }
    if norm == 0.0 { largest(found.iter().map(|x| f64::from(x.abs()))) } else { (difference / norm).sqrt() }
}

/// `|found − expected| / |expected|`, or `|found|` where 0 is expected.
pub(crate) fn relative_scalar(found: f64, expected: f64) -> f64 {
    if expected == 0.0 { found.abs() } else { ((found - expected) / expected).abs() }
}

/// The largest of some magnitudes, 0 of none, NaN if there is one.
pub(crate) fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |worst, x| if x > worst || x.is_nan() { x } else { worst })
}

/// How many numbers differ in their bits, and the index of the first.
pub(crate) fn different_bits(found: &[f32], expected: &[f32]) -> (usize, Option<usize>) {
    assert_eq!(found.len(), expected.len(), "only tensors of one shape are compared");
    let mut pairs = found.iter().zip(expected);
    let first = pairs.position(|(a, b)| a.to_bits() != b.to_bits());
    let rest = pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    (usize::from(first.is_some()) + rest, first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_never_agrees() {
        assert!(relative(&[1.0, f32::NAN], &[1.0, 2.0]).is_nan());
        assert!(relative(&[f32::NAN, 0.0], &[0.0, 0.0]).is_nan());
        assert!(largest([1.0, f64::NAN, 2.0]).is_nan());
        assert!(!Check::new(("m", "fp32"), Kind::Agreement, "x", f64::NAN, 1.0, "").passed);
        assert!(Check::new(("m", "fp32"), Kind::Mistake, "x", f64::NAN, 1.0, "").passed);
    }

    #[test]
    fn errors_are_relative_to_the_norm() {
        assert_eq!(relative(&[3.0, 5.0], &[3.0, 4.0]), 0.2);
        assert_eq!(relative(&[0.0, -0.5], &[0.0, 0.0]), 0.5);
        assert_eq!(relative(&[], &[]), 0.0);
        assert_eq!((relative_scalar(1.5, 1.0), relative_scalar(-2.0, 0.0)), (0.5, 2.0));
    }

    #[test]
    fn bits_tell_zeros_apart() {
        assert_eq!(different_bits(&[0.0, 1.0, -0.0, 3.0], &[0.0, 1.0, 0.0, 4.0]), (2, Some(2)));
        assert_eq!(different_bits(&[1.0], &[1.0]), (0, None));
    }
}
