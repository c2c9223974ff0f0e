//! The losses that depend on one pair of answers, each with its derivatives.

use olmoe_tensor::elementary::{exp, exp_m1, ln, ln_1p};

use super::completion::Sums;
use super::logistic::{log_1m_exp, log_sigmoid, sigmoid};
use super::settings::{FDivergence, LossType, PreferenceSettings};

/// The largest exponent of the α-divergence, as in trl.
const MAX_EXPONENT: f64 = 80.0;
/// The largest mean log-probability that has odds: at 0 they are infinite. One of f32 just below 0 has the size 2⁻²⁴ of the
/// rounding of probabilities near 1.
const MAX_MEAN: f64 = -5.960_464_477_539_063e-8;

/// A loss of a pair, and its derivatives by the log-probabilities of both answers, as `ld_alpha` weighs their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Terms {
    pub(super) loss: f64,
    pub(super) chosen: f64,
    pub(super) rejected: f64,
}

/// A loss of a number, and its derivative.
pub(super) struct Slope {
    pub(super) loss: f64,
    pub(super) by: f64,
}

/// `−(1−ε)·log σ(βx) − ε·log σ(−βx)`
pub(super) fn logistic(beta: f64, epsilon: f64, x: f64) -> Slope {
    let z = beta * x;
    Slope {
        loss: -(1.0 - epsilon) * log_sigmoid(z) - epsilon * log_sigmoid(-z),
        by: beta * (epsilon * sigmoid(z) - (1.0 - epsilon) * sigmoid(-z)),
    }
}

impl FDivergence {
    /// The score of a log-ratio, and its derivative.
    fn score(self, coefficient: f64, s: f64) -> (f64, f64) {
        let rate = coefficient - 1.0;
        match self {
            FDivergence::ReverseKl => (s, 1.0),
            FDivergence::ForwardKl => (-exp_m1(-s), exp(-s)),
            FDivergence::JsDivergence => (std::f64::consts::LN_2 + log_sigmoid(s), sigmoid(-s)),
            FDivergence::AlphaDivergence if rate.abs() < 1e-6 => (s, 1.0),
            FDivergence::AlphaDivergence if rate * s > MAX_EXPONENT => (exp_m1(MAX_EXPONENT) / rate, 0.0),
            FDivergence::AlphaDivergence => (exp_m1(rate * s) / rate, exp(rate * s)),
        }
    }
}

/// Loss and derivatives of a pair. The cross-entropy that `sft`, `orpo` and `cpo` have is not among them
/// ([`cross_entropy_weight`]).
pub(super) fn terms(
    loss_type: LossType,
    settings: &PreferenceSettings,
    chosen: &Sums,
    rejected: &Sums,
    delta: f64,
) -> Terms {
    let (beta, epsilon) = (settings.beta, settings.label_smoothing);
    let (ratio_c, ratio_r) = (chosen.log_ratio(), rejected.log_ratio());
    let (z_c, z_r) = (beta * ratio_c, beta * ratio_r);
    let score = |s| settings.f_divergence_type.score(settings.f_alpha_divergence_coef, s);
    // A function of the difference of both scores.
    let difference = |slope: &dyn Fn(f64) -> Slope| {
        let ((c, by_c), (r, by_r)) = (score(ratio_c), score(ratio_r));
        let Slope { loss, by } = slope(c - r);
        Terms { loss, chosen: by * by_c, rejected: -by * by_r }
    };
    // The same of their means over tokens.
    let mean_difference = |slope: &dyn Fn(f64) -> Slope| {
        let ((c, by_c), (r, by_r)) = (score(ratio_c), score(ratio_r));
        let Slope { loss, by } = slope(c / chosen.length() - r / rejected.length());
        Terms { loss, chosen: by * by_c / chosen.length(), rejected: -by * by_r / rejected.length() }
    };
    // The derivative of σ.
    let bell = |z: f64| sigmoid(z) * sigmoid(-z);
    match loss_type {
        LossType::Sigmoid | LossType::Wpo => difference(&|x| logistic(beta, epsilon, x)),
        LossType::SigmoidNorm => mean_difference(&|x| logistic(beta, epsilon, x)),
        LossType::Simpo => {
            let x = chosen.mean() - rejected.mean() - settings.gamma_beta_ratio;
            let Slope { loss, by } = logistic(beta, epsilon, x);
            Terms { loss, chosen: by / chosen.length(), rejected: -by / rejected.length() }
        }
        LossType::Ipo => mean_difference(&|x| {
            let error = x - 0.5 / beta;
            Slope { loss: error * error, by: 2.0 * error }
        }),
        LossType::Hinge => difference(&|x| match 1.0 - beta * x {
            margin if margin <= 0.0 => Slope { loss: 0.0, by: 0.0 },
            margin => Slope { loss: margin, by: -beta },
        }),
        LossType::Robust => difference(&|x| {
            let z = beta * x;
            let scale = 1.0 / (1.0 - 2.0 * epsilon);
            Slope {
                loss: scale * (epsilon * log_sigmoid(-z) - (1.0 - epsilon) * log_sigmoid(z)),
                by: -scale * beta * ((1.0 - epsilon) * sigmoid(-z) + epsilon * sigmoid(z)),
            }
        }),
        LossType::ExoPair => difference(&|x| {
            let z = beta * x;
            let (to_right, to_wrong) = (ln_1p(-epsilon), ln(epsilon));
            Slope {
                loss: sigmoid(z) * (log_sigmoid(z) - to_right) + sigmoid(-z) * (log_sigmoid(-z) - to_wrong),
                by: beta * bell(z) * (z - to_right + to_wrong),
            }
        }),
        LossType::NcaPair => Terms {
            loss: -log_sigmoid(z_c) - 0.5 * log_sigmoid(-z_c) - 0.5 * log_sigmoid(-z_r),
            chosen: beta * (0.5 * sigmoid(z_c) - sigmoid(-z_c)),
            rejected: 0.5 * beta * sigmoid(z_r),
        },
        LossType::BcoPair => Terms {
            loss: -log_sigmoid(z_c - delta) - log_sigmoid(delta - z_r),
            chosen: -beta * sigmoid(delta - z_c),
            rejected: beta * sigmoid(z_r - delta),
        },
        LossType::SppoHard => {
            let (error_c, error_r) = (ratio_c - 0.5 / beta, ratio_r + 0.5 / beta);
            Terms { loss: error_c * error_c + error_r * error_r, chosen: 2.0 * error_c, rejected: 2.0 * error_r }
        }
        LossType::ApoZero => {
            Terms { loss: sigmoid(-z_c) + sigmoid(z_r), chosen: -beta * bell(z_c), rejected: beta * bell(z_r) }
        }
        LossType::ApoDown => Terms {
            loss: sigmoid(z_c) + sigmoid(z_r - z_c),
            chosen: beta * (bell(z_c) - bell(z_c - z_r)),
            rejected: beta * bell(z_c - z_r),
        },
        LossType::Discopop => difference(&|x| {
            let (z, tau) = (beta * x, settings.discopop_tau);
            let (mix, logistic) = (sigmoid(z / tau), -log_sigmoid(z));
            // m·e⁻ᶻ, where neither may be too large for its product with the other.
            let exponential = exp(log_sigmoid(z / tau) - z);
            let by_mix = (exponential * sigmoid(-z / tau) - logistic * bell(z / tau)) / tau;
            Slope {
                loss: logistic * (1.0 - mix) + exponential,
                by: beta * (by_mix - sigmoid(-z) * (1.0 - mix) - exponential),
            }
        }),
        LossType::Orpo => {
            let Slope { loss, by } = logistic(1.0, 0.0, log_odds_ratio(chosen, rejected));
            let rate = |sums: &Sums| match sums.mean() {
                mean if mean > MAX_MEAN => 0.0,
                mean => -1.0 / exp_m1(mean) / sums.length(),
            };
            Terms { loss: beta * loss, chosen: beta * by * rate(chosen), rejected: -beta * by * rate(rejected) }
        }
        LossType::Cpo => {
            let Slope { loss, by } = logistic(beta, epsilon, chosen.policy - rejected.policy);
            Terms { loss, chosen: by, rejected: -by }
        }
        LossType::Sft | LossType::Aot | LossType::AotUnpaired => Terms::default(),
    }
}

/// How often the cross-entropy of the chosen answer counts in a loss.
pub(super) fn cross_entropy_weight(loss_type: LossType, settings: &PreferenceSettings) -> f64 {
    match loss_type {
        LossType::Sft | LossType::Orpo => 1.0,
        LossType::Cpo => settings.cpo_alpha,
        _ => 0.0,
    }
}

/// ORPO's logarithm of the ratio of the odds of both answers, `log p/(1 − p)` with `log p` the mean of a token.
pub(super) fn log_odds_ratio(chosen: &Sums, rejected: &Sums) -> f64 {
    let log_odds = |sums: &Sums| {
        // NaN stays NaN.
        let mean = if sums.mean() > MAX_MEAN { MAX_MEAN } else { sums.mean() };
        mean - log_1m_exp(mean)
    };
    log_odds(chosen) - log_odds(rejected)
}
