//! Agreement of the model with a golden state.
//!
//! The golden states are results in f32 or a higher precision. In `fp32` each quantity has one bound for all golden
//! states. In `amp_bf16` the factors of each product are rounded to 8 bits, so the bounds are wider, and a choice of
//! experts with a smaller margin than [`MARGIN`] may differ. Each quantity can have one bound there, too, because none
//! of the tokens of the golden states is near a point where rounding decides which experts are chosen (see
//! `tools/reference/README.md`).

use olmoe_model::model::{Keep, Model, Precision};

use crate::check::{Check, CheckKind, largest, relative, relative_scalar};
use crate::golden::{Golden, Router};
use crate::pass::{PassTask, TrainingPass, VerifyError, build};

/// Largest errors of one precision.
pub(crate) struct Bounds {
    /// Logits, relative to the norm of all of them.
    pub(crate) logits: f64,
    /// Cross-entropy and total loss, relative.
    pub(crate) cross_entropy: f64,
    /// Auxiliary losses, relative.
    pub(crate) auxiliary: f64,
    /// The gradient of a parameter, relative to its norm.
    pub(crate) gradients: f64,
    /// The gradient of a parameter where the reference has only zeros, absolute.
    pub(crate) zero_gradients: f64,
    /// Router probabilities, absolute.
    pub(crate) probs: f64,
}

/// The bounds of `fp32`.
pub(crate) const FP32: Bounds =
    Bounds { logits: 1e-5, cross_entropy: 1e-6, auxiliary: 1e-5, gradients: 1e-5, zero_gradients: 1e-7, probs: 1e-5 };
/// The bounds of `amp_bf16`.
const AMP_BF16: Bounds =
    Bounds { logits: 2e-2, cross_entropy: 2e-2, auxiliary: 2e-2, gradients: 2e-2, zero_gradients: 1e-7, probs: 2e-2 };

/// With `amp_bf16` a choice is clear when the probability of the last chosen expert exceeds that of the first expert
/// that is not chosen by more than this share of itself. Only clear choices have to be those of the reference; in the
/// golden states of this project all choices are clear. The relative error of a probability is the absolute error of
/// its logit; bf16 rounds a number of 8, about the largest logit here, by up to 8/2^8, and two logits are compared.
const MARGIN: f32 = 1.0 / 16.0;

pub(crate) fn check(golden: &Golden, precision: Precision, report: &mut dyn FnMut(Check)) -> Result<(), VerifyError> {
    let model = build(golden, precision)?;
    let pass = TrainingPass::run(&model, &PassTask::of(golden), Keep::Everything).map_err(VerifyError::of(golden))?;
    let bounds = match precision {
        Precision::Fp32 => FP32,
        Precision::AmpBf16 => AMP_BF16,
    };
    let mut answer = |what: &str, worst: f64, bound: f64, detail: String| {
        let of = (golden.name.as_str(), precision.name());
        report(Check::new(of, CheckKind::Agreement, what, worst, bound, detail));
    };
    answer("logits", relative(&pass.logits, &golden.logits), bounds.logits, String::new());
    let losses = pass.losses;
    let scalars = [
        ("cross-entropy", losses.cross_entropy, Some(golden.cross_entropy), bounds.cross_entropy),
        ("load-balancing loss", losses.load_balancing, golden.load_balancing, bounds.auxiliary),
        ("router z-loss", losses.router_z, golden.z, bounds.auxiliary),
        ("total loss", losses.total(), Some(golden.total), bounds.cross_entropy),
    ];
    for (what, found, expected, bound) in scalars {
        if let Some(expected) = expected {
            let detail = format!("{found:.7}, expected {expected:.7}");
            answer(what, relative_scalar(found, expected), bound, detail);
        }
    }
    if let Some(router) = &golden.router {
        let (wrong, clear, all) = different_choices(router, &pass, golden.tokens(), precision);
        answer("chosen experts", wrong as f64, 0.0, format!("tokens with other experts, of {clear} clear in {all}"));
        answer("router probabilities", probability_error(router, &pass), bounds.probs, String::new());
    }
    let gradients = gradient_errors(golden, &model, &pass);
    let (zeros, others): (Vec<_>, Vec<_>) = gradients.iter().partition(|gradient| gradient.zero);
    if let Some((error, parameter)) = worst(&others) {
        answer("gradients", error, bounds.gradients, format!("worst of {}: {parameter}", others.len()));
    }
    if let Some((error, parameter)) = worst(&zeros) {
        answer("gradients that are zero", error, bounds.zero_gradients, parameter.to_owned());
    }
    Ok(())
}

/// The largest error and its parameter; NaN counts as larger than any number.
fn worst<'a>(of: &[&GradientError<'a>]) -> Option<(f64, &'a str)> {
    let worst = of.iter().max_by(|a, b| a.error.abs().total_cmp(&b.error.abs()))?;
    Some((worst.error, worst.parameter))
}

/// The largest error of a probability of the router.
fn probability_error(router: &Router, pass: &TrainingPass) -> f64 {
    let found = pass.routing.layers.iter().flat_map(|layer| layer.routing.probs_te.iter());
    largest(found.zip(&router.probs).map(|(found, expected)| f64::from((found - expected).abs())))
}

/// The error of the gradient of one parameter.
pub(crate) struct GradientError<'a> {
    parameter: &'a str,
    /// Whether the reference has only zeros, so that the error is absolute.
    zero: bool,
    pub(crate) error: f64,
}

/// The errors of all gradients that both the golden state and the model have.
pub(crate) fn gradient_errors<'a>(golden: &'a Golden, model: &Model, pass: &TrainingPass) -> Vec<GradientError<'a>> {
    let named = pass.gradients.iter().map(|(id, found)| (&model.parameters()[id].name, found));
    let known = named.filter_map(|(name, found)| Some((golden.parameter(name)?, found)));
    known
        .map(|(parameter, found)| GradientError {
            parameter: &parameter.name,
            zero: parameter.gradient.iter().all(|x| *x == 0.0),
            error: relative(found, &parameter.gradient),
        })
        .collect()
}

/// The number of tokens with other experts than in the reference although the choice is clear, the number of clear
/// choices, and the number of all choices. In f32 all choices are clear, and the order of the experts counts; with bf16
/// products only the set of experts counts.
fn different_choices(
    router: &Router,
    pass: &TrainingPass,
    tokens: usize,
    precision: Precision,
) -> (usize, usize, usize) {
    let (mut wrong, mut clear) = (0, 0);
    for (l, layer) in pass.routing.layers.iter().enumerate() {
        let (num_choices, num_experts) = (layer.routing.ids_tk.cols(), layer.routing.probs_te.cols());
        for t in 0..tokens {
            let row = l * tokens + t;
            let mut expected = router.ids[row * num_choices..][..num_choices].to_vec();
            let mut found = layer.routing.ids_tk.row(t).to_vec();
            if precision != Precision::Fp32 {
                let last = expected[num_choices - 1] as usize;
                if router.margin[row] <= MARGIN * router.probs[row * num_experts + last] {
                    continue;
                }
                expected.sort_unstable();
                found.sort_unstable();
            }
            clear += 1;
            wrong += usize::from(found != expected);
        }
    }
    (wrong, clear, router.margin.len())
}
