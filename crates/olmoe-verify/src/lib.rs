//! Checks that the model is right. The result of each is a [`Check`] with a number and a bound.
//!
//! | file | what is checked |
//! |---|---|
//! | `golden` | the golden states: weights, inputs and results of the reference implementations, read from safetensors |
//! | `agreement` | logits, losses, routing and every gradient of the model against a golden state |
//! | `determinism` | the same bits for any number of threads, batch and instruction set, with and without cache and recomputation |
//! | `reference` | a second model in f64 and plain loops, which shares no code with the first |
//! | `mistakes` | the classic mistakes, made on purpose: the result of each has to differ clearly from its golden state |
//!
//! [`verify`] runs all checks and reports each result as soon as it is known.

mod agreement;
mod check;
mod determinism;
mod golden;
mod mistakes;
mod pass;
mod reference;

pub use check::{Check, CheckKind, CheckSummary};
pub use golden::{Golden, GoldenError, MAX_GOLDEN_BYTES, MAX_POSITIONS, Parameter, Router, embedded, read_directory};
pub use mistakes::{MISTAKES, Mistake};
pub use pass::VerifyError;

use olmoe_model::model::Precision;

/// Runs every check of every golden state, in the order of `goldens`, and reports each as soon as it is known.
///
/// Agreement and determinism are checked once for each of `precisions`. The f64 reference and the mistakes do not
/// depend on a precision and are left out unless fp32 is among them; a mistake is checked when its golden state is
/// among `goldens`.
///
/// # Errors
/// [`VerifyError`] when a model cannot be built or run at all, which no check can express.
pub fn verify(goldens: &[Golden], precisions: &[Precision], mut report: impl FnMut(Check)) -> Result<(), VerifyError> {
    for golden in goldens {
        for precision in precisions {
            agreement::check(golden, *precision, &mut report)?;
            determinism::check(golden, *precision, &mut report)?;
        }
        if precisions.contains(&Precision::Fp32) {
            reference::check(golden, &mut report);
            mistakes::check(golden, &mut report)?;
        }
    }
    Ok(())
}
