//! The result of one check, and the measures of differences.

use serde::Serialize;

/// The kind of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// The model against a golden state: `worst` is an error, which may not exceed the bound.
    Agreement,
    /// The model against itself: `worst` is how many numbers have different bits, and the bound is 0.
    Determinism,
    /// The f64 reference against a golden state: as `Agreement`.
    Reference,
    /// A mistake made on purpose: `worst` is the error it causes, which has to exceed the bound.
    Mistake,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Name of the golden state.
    pub model: String,
    /// The kind of check.
    pub kind: CheckKind,
    /// What was compared.
    pub what: String,
    /// The precision of the matrix products: `fp32`, `amp_bf16`, or `fp64` for the reference.
    pub precision: &'static str,
    /// The largest error found.
    pub worst: f64,
    /// The bound of the error: an upper bound, or for a mistake a lower bound.
    pub bound: f64,
    /// Whether the error satisfies the bound.
    pub passed: bool,
    /// The place of the largest error, or other details; may be empty.
    pub detail: String,
}

impl Check {
    /// A check that passes if `worst` is at most `bound`, or for a mistake above it. NaN never passes as agreement, and
    /// always counts as a detected mistake.
    pub(crate) fn new(
        (model, precision): (&str, &'static str),
        kind: CheckKind,
        what: impl Into<String>,
        worst: f64,
        bound: f64,
        detail: impl Into<String>,
    ) -> Check {
        let within = worst <= bound;
        let passed = within != (kind == CheckKind::Mistake);
        Check { model: model.into(), kind, what: what.into(), precision, worst, bound, passed, detail: detail.into() }
    }
}

/// The numbers of checks and of passed checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckSummary {
    /// All checks, the mistakes included.
    pub checks: usize,
    /// The checks that passed.
    pub passed: usize,
    /// The mistakes among the checks.
    pub mistakes: usize,
    /// The mistakes that were detected.
    pub detected: usize,
}

impl CheckSummary {
    /// Counts a check.
    pub fn add(&mut self, check: &Check) {
        self.checks += 1;
        self.passed += usize::from(check.passed);
        if check.kind == CheckKind::Mistake {
            self.mistakes += 1;
            self.detected += usize::from(check.passed);
        }
    }

    /// The number of checks that failed.
    pub fn failed(&self) -> usize {
        self.checks - self.passed
    }
}

/// `‖found − expected‖ / ‖expected‖` in f64; for an all-zero tensor the largest magnitude found.
pub(crate) fn relative(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "only tensors of the same shape are compared");
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

/// The largest of some magnitudes; 0 if there are none, NaN if one is NaN.
pub(crate) fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |worst, x| if x > worst || x.is_nan() { x } else { worst })
}

/// How many numbers differ in their bits, and the index of the first.
pub(crate) fn different_bits(found: &[f32], expected: &[f32]) -> (usize, Option<usize>) {
    assert_eq!(found.len(), expected.len(), "only tensors of the same shape are compared");
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
        assert!(!Check::new(("m", "fp32"), CheckKind::Agreement, "x", f64::NAN, 1.0, "").passed);
        assert!(Check::new(("m", "fp32"), CheckKind::Mistake, "x", f64::NAN, 1.0, "").passed);
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
