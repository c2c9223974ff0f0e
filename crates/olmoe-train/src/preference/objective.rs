//! The loss of a step of preference tuning, for one pair after the other:
//!
//! `L = Σ_k w_k·(Σ_pairs weight·loss_k / N + c_k·Σ_{t of chosen answers} −logp_t / N_t)`
//!
//! with the N pairs of the step, the N_t tokens of their chosen answers, the weight of WPO where it is asked for, and `c_k` how
//! often loss k has the cross-entropy of the chosen answer.

use olmoe_tensor::elementary::exp;

use super::completion::{AnswerLoss, Place, PreferencePair, Sums, TokenGradient, Wanted};
use super::error::PreferenceError;
use super::pairwise::{self, Terms};
use super::settings::{LossType, PreferenceSettings};
use super::transport;

/// What a step is made of, all its parts together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTotals {
    /// Its pairs.
    pub pairs: u64,
    /// The tokens of the chosen answers; only `sft`, `orpo` and `cpo` divide by them.
    pub chosen_tokens: u64,
    /// δ of `bco_pair`: 0 as in trl 1.16, or [`RunningMean::update`]'s result.
    pub delta: f64,
}

impl StepTotals {
    /// The totals of a step that these pairs are all of.
    pub fn of(pairs: &[PreferencePair<'_>]) -> StepTotals {
        let chosen_tokens = pairs.iter().map(|pair| pair.chosen.logp_t.len() as u64).sum();
        StepTotals { pairs: pairs.len() as u64, chosen_tokens, delta: 0.0 }
    }
}

/// The loss of a pair: its part of the step's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairLoss {
    /// What it adds to the loss of the step.
    pub loss: f64,
    /// The better answer.
    pub chosen: AnswerLoss,
    /// The other.
    pub rejected: AnswerLoss,
    /// Cross-entropy of the chosen answer, the sum over its tokens.
    pub cross_entropy: f64,
    /// ORPO's logarithm of the ratio of odds; 0 for other losses.
    pub log_odds_ratio: f64,
}

/// A running mean over steps: BCO's δ.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RunningMean {
    /// The mean so far.
    pub mean: f64,
    /// Of how many.
    pub count: u64,
}

impl RunningMean {
    /// Takes a number in, and returns the mean with it.
    pub fn update(&mut self, number: f64) -> f64 {
        self.count += 1;
        self.mean += (number - self.mean) / self.count as f64;
        self.mean
    }
}

/// Checked settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Preference {
    settings: PreferenceSettings,
    /// The losses that count, with their weights.
    losses: Vec<(LossType, f64)>,
}

impl Preference {
    /// # Errors
    /// [`PreferenceError::Value`], [`PreferenceError::Together`]: a setting out of its range, or one without effect.
    pub fn new(settings: PreferenceSettings) -> Result<Preference, PreferenceError> {
        settings.check()?;
        let weights = settings.loss_weights.clone().unwrap_or_else(|| vec![1.0; settings.loss_type.len()]);
        let losses = settings.loss_type.iter().copied().zip(weights).collect();
        Ok(Preference { settings, losses })
    }

    /// The settings.
    pub fn settings(&self) -> &PreferenceSettings {
        &self.settings
    }

    /// Whether log-probabilities of a reference model are needed.
    pub fn needs_reference(&self) -> bool {
        self.referring().is_some()
    }

    /// Whether `log Σp²` of every token is needed.
    pub fn needs_square_sums(&self) -> bool {
        self.settings.use_weighting || self.losses.iter().any(|(loss, _)| *loss == LossType::Wpo)
    }

    /// Whether all pairs of a step have to be given at once.
    pub fn is_of_whole_step(&self) -> bool {
        self.losses.iter().any(|(loss, _)| loss.is_of_whole_step())
    }

    fn referring(&self) -> Option<&'static str> {
        self.losses.iter().find(|(loss, _)| loss.needs_reference()).map(|(loss, _)| loss.name())
    }

    fn wanted(&self) -> Wanted {
        // Rewards of `sft` are reported where there is a reference, as in trl; the others without one have rewards of their own.
        let alone = self.losses.iter().all(|(loss, _)| *loss == LossType::Sft).then_some(LossType::Sft.name());
        Wanted {
            ld_alpha: self.settings.ld_alpha.unwrap_or(1.0),
            reference: self.referring().or(alone),
            required: self.needs_reference(),
            square_sums: self.needs_square_sums(),
        }
    }

    fn sums(&self, pairs: &[PreferencePair<'_>]) -> Result<Vec<(Sums, Sums)>, PreferenceError> {
        let wanted = self.wanted();
        let of = |(at, pair): (usize, &PreferencePair<'_>)| {
            let shorter = pair.chosen.logp_t.len().min(pair.rejected.logp_t.len());
            let chosen = pair.chosen.sums(shorter, wanted, Place { pair: at, answer: "chosen" })?;
            Ok((chosen, pair.rejected.sums(shorter, wanted, Place { pair: at, answer: "rejected" })?))
        };
        pairs.iter().enumerate().map(of).collect()
    }

    /// The mean reward `β·s` of all answers: what BCO's δ is the running mean of.
    ///
    /// # Errors
    /// As [`Preference::losses`].
    pub fn mean_reward(&self, pairs: &[PreferencePair<'_>]) -> Result<f64, PreferenceError> {
        let sums = self.sums(pairs)?;
        let rewards: f64 = sums.iter().map(|(c, r)| self.settings.beta * (c.log_ratio() + r.log_ratio())).sum();
        Ok(rewards / (2 * sums.len()).max(1) as f64)
    }

    /// The losses of pairs of a step that has these totals, in the order of the pairs.
    ///
    /// # Errors
    /// What an answer lacks, [`PreferenceError::PartOfStep`], [`PreferenceError::Totals`], and
    /// [`PreferenceError::NotFinite`] where a loss or a gradient is NaN or infinite.
    pub fn losses(&self, pairs: &[PreferencePair<'_>], totals: &StepTotals) -> Result<Vec<PairLoss>, PreferenceError> {
        let sums = self.sums(pairs)?;
        self.check(&sums, totals)?;
        let transported = |loss: LossType| match loss.is_of_whole_step() {
            true => transport::terms(loss, &self.settings, &sums),
            false => Vec::new(),
        };
        let transported: Vec<Vec<Terms>> = self.losses.iter().map(|(loss, _)| transported(*loss)).collect();
        let of = |(at, (chosen, rejected)): (usize, &(Sums, Sums))| {
            let known = transported.iter().map(|terms| terms.get(at).copied());
            let loss = self.pair(chosen, rejected, known, totals);
            let gradients = [loss.chosen.gradient, loss.rejected.gradient];
            let mut numbers = gradients.iter().flat_map(|g| [g.shared, g.rest]).chain([loss.loss]);
            match numbers.all(f64::is_finite) {
                true => Ok(loss),
                false => Err(PreferenceError::NotFinite {
                    what: "pair",
                    at,
                    loss: loss.loss,
                    policy: format!("{} (chosen), {} (rejected)", chosen.policy, rejected.policy),
                    reference: format!("{}, {}", chosen.reference, rejected.reference),
                }),
            }
        };
        sums.iter().enumerate().map(of).collect()
    }

    fn check(&self, sums: &[(Sums, Sums)], totals: &StepTotals) -> Result<(), PreferenceError> {
        let pairs = sums.len() as u64;
        if let Some((loss, _)) = self.losses.iter().find(|(loss, _)| loss.is_of_whole_step() && pairs != totals.pairs) {
            return Err(PreferenceError::PartOfStep { loss_type: loss.name(), found: pairs, expected: totals.pairs });
        }
        let tokens = sums.iter().map(|(chosen, _)| chosen.tokens as u64).sum();
        let divides = |(loss, _): &(LossType, f64)| pairwise::cross_entropy_weight(*loss, &self.settings) != 0.0;
        let counted = [
            ("pairs", pairs, totals.pairs, true),
            ("tokens of chosen answers", tokens, totals.chosen_tokens, self.losses.iter().any(divides)),
        ];
        match counted.into_iter().find(|(_, found, expected, counts)| *counts && found > expected) {
            Some((what, found, expected, _)) => Err(PreferenceError::Totals { what, found, expected }),
            None => Ok(()),
        }
    }

    /// The loss of a pair; `known` are the terms of the losses that are of the whole step.
    fn pair(
        &self,
        chosen: &Sums,
        rejected: &Sums,
        known: impl Iterator<Item = Option<Terms>>,
        totals: &StepTotals,
    ) -> PairLoss {
        let (mut sum, mut tokens_weight) = (Terms::default(), 0.0);
        let trust = match self.needs_square_sums() {
            true => exp(chosen.log_weight + rejected.log_weight),
            false => 1.0,
        };
        for ((loss, weight), known) in self.losses.iter().zip(known) {
            let terms = known.unwrap_or_else(|| pairwise::terms(*loss, &self.settings, chosen, rejected, totals.delta));
            let trust = match loss {
                // Not `min`, which would take NaN for 1.
                LossType::Wpo if trust > 1.0 => 1.0,
                LossType::Wpo => trust,
                _ if self.settings.use_weighting => trust,
                _ => 1.0,
            };
            let factor = weight * trust / totals.pairs.max(1) as f64;
            sum.loss += factor * terms.loss;
            sum.chosen += factor * terms.chosen;
            sum.rejected += factor * terms.rejected;
            tokens_weight += weight * pairwise::cross_entropy_weight(*loss, &self.settings);
        }
        let per_token = tokens_weight / totals.chosen_tokens.max(1) as f64;
        let alpha = self.settings.ld_alpha.unwrap_or(1.0);
        let answer = |sums: &Sums, by: f64, plain: f64| AnswerLoss {
            gradient: TokenGradient { shared_tokens: sums.shared_tokens, shared: by + plain, rest: alpha * by + plain },
            policy: sums.policy,
            reference: sums.reference,
            tokens: sums.tokens,
        };
        let odds = self.losses.iter().any(|(loss, _)| *loss == LossType::Orpo);
        PairLoss {
            loss: sum.loss - per_token * chosen.plain,
            chosen: answer(chosen, sum.chosen, -per_token),
            rejected: answer(rejected, sum.rejected, 0.0),
            cross_entropy: -chosen.plain,
            log_odds_ratio: if odds { pairwise::log_odds_ratio(chosen, rejected) } else { 0.0 },
        }
    }
}
