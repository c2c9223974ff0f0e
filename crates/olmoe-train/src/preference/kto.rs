//! KTO (Ethayarajh et al., arXiv 2402.01306) and its relatives: answers that are good or bad by themselves.
//!
//! With the log-ratio `s` of an answer between policy and reference, weights `w_d` and `w_u`:
//!
//! ```text
//! kto                desirable  w_d·(1 − σ(β(s − k)))      undesirable  w_u·(1 − σ(β(k − s)))
//! apo_zero_unpaired             w_d·(1 − σ(βs))                         w_u·σ(βs)
//! bco                           −w_d·log σ(βs − δ)                      −w_u·log σ(δ − βs)
//! ```
//!
//! `k = max(0, mean of s over prompts with the answers of others)` has no gradient. The loss of a step is the mean over its
//! answers, whatever their kind: one without any of a kind is no special case.

use serde::{Deserialize, Serialize};

use super::completion::{AnswerLoss, Completion, Place, TokenGradient, Wanted};
use super::error::PreferenceError;
use super::logistic::{log_sigmoid, sigmoid};
use super::mismatch::{Mismatch, mismatched};
use crate::names::names;

names! {
    "loss type";
    /// The loss of an answer; the formulas are above.
    pub enum KtoLoss {
        /// KTO.
        Kto = "kto",
        /// APO-zero (arXiv 2408.06266) of single answers.
        ApoZeroUnpaired = "apo_zero_unpaired",
        /// BCO (arXiv 2404.04656).
        Bco = "bco",
    }
}

names! {
    "extent of KTO's estimate";
    /// What the estimate `k` is the mean over.
    pub enum KlBatch {
        /// The micro-batch, as in trl: what a step learns depends on how it is split.
        Micro = "micro",
        /// The step, however it is split.
        Step = "step",
    }
}

/// The settings; the defaults are those of trl 1.16, but for `kl_batch`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KtoSettings {
    /// The loss. Default `kto`.
    pub loss_type: KtoLoss,
    /// β. Default 0.1.
    pub beta: f64,
    /// `w_d`. Default 1.
    pub desirable_weight: f64,
    /// `w_u`. Default 1.
    pub undesirable_weight: f64,
    /// The extent of the estimate. Default `step`; trl has `micro`.
    pub kl_batch: KlBatch,
    /// The rule for mismatched answers. Default `rotated`; OLMoE's models had `reversed`.
    pub mismatch: Mismatch,
}

impl Default for KtoSettings {
    fn default() -> Self {
        KtoSettings {
            loss_type: KtoLoss::Kto,
            beta: 0.1,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            kl_batch: KlBatch::Step,
            mismatch: Mismatch::Rotated,
        }
    }
}

/// What the answers of a step are compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KtoStep {
    /// Answers of the step, all its parts together.
    pub answers: u64,
    /// `k`: [`Kto::kl`] of the micro-batch or of the step; 0 for losses without one.
    pub kl: f64,
    /// δ of `bco`: the running mean of rewards.
    pub delta: f64,
}

/// An answer, and whether it is a good one.
#[derive(Clone, Copy, Debug)]
pub struct LabelledCompletion<'a> {
    /// The answer.
    pub completion: Completion<'a>,
    /// Its label.
    pub desirable: bool,
}

/// The loss of an answer: its part of the step's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LabelledLoss {
    /// What it adds to the loss of the step.
    pub loss: f64,
    /// Its label.
    pub desirable: bool,
    /// The answer.
    pub answer: AnswerLoss,
}

/// Checked settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kto {
    settings: KtoSettings,
}

/// Kinds of answers whose numbers and weights do not fit together: Equation (8) of KTO's paper has
/// `w_d·n_d / (w_u·n_u)` between 1 and 4/3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Imbalance {
    /// Desirable and undesirable answers.
    pub answers: (u64, u64),
    /// The range of `desirable_weight` that would fit.
    pub desirable_weight: (f64, f64),
    /// That of `undesirable_weight`, instead.
    pub undesirable_weight: (f64, f64),
}

impl std::fmt::Display for Imbalance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (desirable, undesirable) = self.answers;
        let ((d_low, d_high), (u_low, u_high)) = (self.desirable_weight, self.undesirable_weight);
        write!(
            f,
            "{desirable} desirable and {undesirable} undesirable answers; set either `desirable_weight` between {d_low:.2} \
             and {d_high:.2} or `undesirable_weight` between {u_low:.2} and {u_high:.2}"
        )
    }
}

impl Kto {
    /// # Errors
    /// [`PreferenceError::Value`].
    pub fn new(settings: KtoSettings) -> Result<Kto, PreferenceError> {
        if !(settings.beta.is_finite() && settings.beta > 0.0) {
            let problem = "it must be finite and greater than 0";
            return Err(PreferenceError::Value { key: "beta", found: settings.beta.to_string(), problem });
        }
        let weights =
            [("desirable_weight", settings.desirable_weight), ("undesirable_weight", settings.undesirable_weight)];
        match weights.into_iter().find(|(_, weight)| !(weight.is_finite() && *weight >= 0.0)) {
            Some((key, found)) => {
                let problem = "it must be finite and at least 0";
                Err(PreferenceError::Value { key, found: found.to_string(), problem })
            }
            None => Ok(Kto { settings }),
        }
    }

    /// The settings.
    pub fn settings(&self) -> &KtoSettings {
        &self.settings
    }

    /// Whether prompts have to be scored with the answers of others.
    pub fn needs_kl(&self) -> bool {
        self.settings.loss_type == KtoLoss::Kto
    }

    /// Whether the losses are compared with a running mean of rewards.
    pub fn needs_delta(&self) -> bool {
        self.settings.loss_type == KtoLoss::Bco
    }

    /// The row whose answer each row of the data is scored with. With `kl_batch: micro` it is one of its own micro-batch. With
    /// `step`, reversal is within a step, as in trl 0.9.6, and rotation over all rows: no choice of batches changes it.
    ///
    /// # Errors
    /// [`PreferenceError::NoOther`] where a block has a single row.
    pub fn mismatched(&self, rows: usize, micro_batch: usize, step: usize) -> Result<Vec<usize>, PreferenceError> {
        let block = match (self.settings.kl_batch, self.settings.mismatch) {
            (KlBatch::Micro, _) => micro_batch,
            (KlBatch::Step, Mismatch::Reversed) => step,
            (KlBatch::Step, Mismatch::Rotated) => rows,
        };
        mismatched(rows, block, self.settings.mismatch)
    }

    /// `k` of mismatched rows, given their log-probabilities under policy and reference; 0 without rows.
    pub fn kl(&self, rows: &[(f64, f64)]) -> f64 {
        let sum: f64 = rows.iter().map(|(policy, reference)| policy - reference).sum();
        let mean = sum / rows.len().max(1) as f64;
        // NaN stays NaN.
        if mean < 0.0 { 0.0 } else { mean }
    }

    /// The mean reward `β·s` of answers: what BCO's δ is the running mean of.
    ///
    /// # Errors
    /// As [`Kto::losses`].
    pub fn mean_reward(&self, answers: &[LabelledCompletion<'_>]) -> Result<f64, PreferenceError> {
        let mut sum = 0.0;
        for (at, answer) in answers.iter().enumerate() {
            let answer = self.answer(at, answer)?;
            sum += self.settings.beta * (answer.policy - answer.reference);
        }
        Ok(sum / answers.len().max(1) as f64)
    }

    fn answer(&self, at: usize, answer: &LabelledCompletion<'_>) -> Result<AnswerLoss, PreferenceError> {
        let wanted = Wanted {
            ld_alpha: 1.0,
            reference: Some(self.settings.loss_type.name()),
            required: true,
            square_sums: false,
        };
        let name = if answer.desirable { "desirable" } else { "undesirable" };
        let sums = answer.completion.sums(0, wanted, Place { pair: at, answer: name })?;
        let gradient = TokenGradient { shared_tokens: sums.shared_tokens, ..TokenGradient::default() };
        Ok(AnswerLoss { gradient, policy: sums.policy, reference: sums.reference, tokens: sums.tokens })
    }

    /// The losses of answers of a step, in their order.
    ///
    /// # Errors
    /// [`PreferenceError::NoReference`], [`PreferenceError::Reference`], [`PreferenceError::Totals`],
    /// [`PreferenceError::NotFinite`].
    pub fn losses(
        &self,
        answers: &[LabelledCompletion<'_>],
        step: &KtoStep,
    ) -> Result<Vec<LabelledLoss>, PreferenceError> {
        if answers.len() as u64 > step.answers {
            let found = answers.len() as u64;
            return Err(PreferenceError::Totals { what: "answers", found, expected: step.answers });
        }
        let KtoSettings { loss_type, beta, desirable_weight, undesirable_weight, .. } = self.settings;
        let of = |(at, labelled): (usize, &LabelledCompletion<'_>)| {
            let mut answer = self.answer(at, labelled)?;
            // All losses are functions of what is to be large: of a bad answer, the negative.
            let (sign, weight) = if labelled.desirable { (1.0, desirable_weight) } else { (-1.0, undesirable_weight) };
            let s = answer.policy - answer.reference;
            let (loss, slope) = match loss_type {
                KtoLoss::Kto => saturating(sign * beta * (s - step.kl)),
                KtoLoss::ApoZeroUnpaired => saturating(sign * beta * s),
                KtoLoss::Bco => {
                    let z = sign * (beta * s - step.delta);
                    (-log_sigmoid(z), -sigmoid(-z))
                }
            };
            let factor = weight / step.answers as f64;
            let (loss, gradient) = (factor * loss, factor * sign * beta * slope);
            if !(loss.is_finite() && gradient.is_finite()) {
                let (policy, reference) = (answer.policy.to_string(), answer.reference.to_string());
                return Err(PreferenceError::NotFinite { what: "answer", at, loss, policy, reference });
            }
            answer.gradient = TokenGradient { shared: gradient, rest: gradient, ..answer.gradient };
            Ok(LabelledLoss { loss, desirable: labelled.desirable, answer })
        };
        answers.iter().enumerate().map(of).collect()
    }

    /// What is wrong between the numbers of answers of both kinds and their weights, as trl warns of it.
    pub fn imbalance(&self, desirable: u64, undesirable: u64) -> Option<Imbalance> {
        let (n_d, n_u) = (desirable.max(1) as f64, undesirable.max(1) as f64);
        let KtoSettings { desirable_weight, undesirable_weight, .. } = self.settings;
        // trl compares with two decimals.
        let rounded = |x: f64| (x * 100.0).round_ties_even() / 100.0;
        let (up, down) = (n_u * undesirable_weight / n_d, n_d * desirable_weight / n_u);
        let fits = |weight: f64, (low, high): (f64, f64)| (low..=high).contains(&weight);
        let ranges = ((rounded(up), rounded(up * 1.33)), (rounded(down / 1.33), rounded(down)));
        let balanced = n_d == n_u || fits(desirable_weight, ranges.0) || fits(undesirable_weight, ranges.1);
        (!balanced).then_some(Imbalance {
            answers: (desirable, undesirable),
            desirable_weight: ranges.0,
            undesirable_weight: ranges.1,
        })
    }
}

/// `1 − σ(z)` and its derivative.
fn saturating(z: f64) -> (f64, f64) {
    (sigmoid(-z), -sigmoid(z) * sigmoid(-z))
}
