//! Forward passes over sequences: the log-probabilities of their learned tokens, and statistics of these.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, Ordering};

use olmoe_model::model::{Activations, Keep, Model};
use olmoe_tensor::ops::cross_entropy::LogProbs;

use super::error::FinetuneError;
use super::examples::micro_batches;
use super::settings::MicroBatch;
use super::stack::{Stack, StepNoise, Unit};
use crate::preference::TokenStatistics;
use crate::trainer::TrainError;

/// What gives the sequences of a row.
pub(super) type UnitOf<'a> = dyn Fn(usize) -> Unit<'a> + 'a;

/// What is known of the learned tokens of a sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Scored {
    /// The log-probability of each.
    pub(super) logp_t: Vec<f32>,
    /// `log Σp²` of the distribution of each, where statistics were asked for.
    pub(super) square_sums_t: Option<Vec<f32>>,
    /// Sums over them, where statistics were asked for.
    pub(super) sums: TokenSums,
}

/// Sums over learned tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct TokenSums {
    /// How many.
    pub(super) tokens: u64,
    /// Those that the model holds for the most likely.
    pub(super) correct: u64,
    /// Entropies in nats.
    pub(super) entropy: f64,
    /// Means of the logits over the vocabulary.
    pub(super) logits: f64,
}

impl AddAssign for TokenSums {
    fn add_assign(&mut self, other: TokenSums) {
        self.tokens += other.tokens;
        self.correct += other.correct;
        self.entropy += other.entropy;
        self.logits += other.logits;
    }
}

impl TokenSums {
    /// `mean_token_accuracy` and `entropy`, trl's names.
    pub(super) fn named(&self) -> Vec<(String, f64)> {
        let mean = |sum: f64| sum / self.tokens.max(1) as f64;
        vec![("mean_token_accuracy".to_owned(), mean(self.correct as f64)), ("entropy".to_owned(), mean(self.entropy))]
    }
}

/// Sums over the tokens of chosen and of rejected answers, or of desirable and of undesirable ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sides([TokenSums; 2]);

impl Sides {
    /// Takes in chosen and rejected answers in turn.
    pub(super) fn add_pairs(&mut self, answers: &[Scored]) {
        answers.iter().enumerate().for_each(|(at, answer)| self.0[at % 2] += answer.sums);
    }

    /// Takes in answers, given which are desirable.
    pub(super) fn add_labelled(&mut self, answers: &[Scored], desirable: impl Iterator<Item = bool>) {
        answers.iter().zip(desirable).for_each(|(answer, good)| self.0[usize::from(!good)] += answer.sums);
    }

    /// The entropy over all answers, as trl has it.
    pub(super) fn entropy(&self) -> TokenStatistics {
        let [chosen, rejected] = self.0;
        let (entropy, tokens) = (chosen.entropy + rejected.entropy, chosen.tokens + rejected.tokens);
        TokenStatistics { entropy, tokens, ..TokenStatistics::default() }
    }

    /// The same, and the accuracy over chosen answers.
    pub(super) fn statistics(&self) -> TokenStatistics {
        let [chosen, _] = self.0;
        TokenStatistics { correct: chosen.correct, chosen_tokens: chosen.tokens, ..self.entropy() }
    }

    /// The mean logits of both sides, those of which there are answers.
    pub(super) fn logits(&self) -> impl Iterator<Item = (String, f64)> {
        let named = ["logits/chosen", "logits/rejected"].into_iter().zip(self.0).filter(|(_, sums)| sums.tokens > 0);
        named.map(|(name, sums)| (name.to_owned(), sums.logits / sums.tokens as f64))
    }
}

impl Scored {
    /// Of each sequence of a stack.
    pub(super) fn of(stack: &Stack, found: &LogProbs) -> Vec<Scored> {
        let mut all: Vec<Scored> =
            stack.learned(&found.logp_t).into_iter().map(|logp_t| Scored { logp_t, ..Scored::default() }).collect();
        let Some(statistics) = &found.statistics else { return all };
        let [entropies, square_sums, logits, correct] =
            [&statistics.entropy_t, &statistics.log_square_sum_t, &statistics.mean_logit_t, &statistics.top1_t]
                .map(|numbers| stack.learned(numbers));
        let sum = |numbers: &[f32]| numbers.iter().map(|x| f64::from(*x)).sum::<f64>();
        for (at, (own, square_sums_t)) in all.iter_mut().zip(square_sums).enumerate() {
            own.sums = TokenSums {
                tokens: own.logp_t.len() as u64,
                correct: sum(&correct[at]) as u64,
                entropy: sum(&entropies[at]),
                logits: sum(&logits[at]),
            };
            own.square_sums_t = Some(square_sums_t);
        }
        all
    }

    /// Of each sequence of a stack, after a forward pass over it.
    pub(super) fn after(
        model: &Model,
        stack: &Stack,
        activations: &Activations,
        statistics: bool,
    ) -> Result<Vec<Scored>, TrainError> {
        let found = match statistics {
            true => model.log_probs_and_statistics(activations, &stack.targets)?,
            false => model.log_probs(activations, &stack.targets)?,
        };
        Ok(Scored::of(stack, &found))
    }
}

/// The scores of the sequences of rows, row by row; `noise` is that of the training passes of a step. Nothing is kept for a
/// backward pass.
pub(super) fn scores(
    model: &Model,
    rows: &[u32],
    unit: &UnitOf<'_>,
    pass: ScorePass<'_>,
    interrupt: &AtomicBool,
) -> Result<Vec<Vec<Scored>>, TrainError> {
    let mut activations = Activations::new(Keep::Nothing);
    let all: Vec<Unit<'_>> = rows.iter().map(|row| unit(*row as usize)).collect();
    let tokens: Vec<usize> = all.iter().map(Unit::tokens).collect();
    let mut found = Vec::with_capacity(rows.len());
    for some in micro_batches(&tokens, pass.micro_batch) {
        if interrupt.load(Ordering::Relaxed) {
            return Err(FinetuneError::Interrupted.into());
        }
        let own = &all[some];
        let stack = Stack::new(own.iter(), pass.noise)?;
        model.forward(&stack.batch, &mut activations)?;
        let mut scores = Scored::after(model, &stack, &activations, pass.statistics)?.into_iter();
        found.extend(own.iter().map(|own| scores.by_ref().take(own.sequences.len()).collect::<Vec<_>>()));
    }
    Ok(found)
}

/// How sequences are scored.
#[derive(Clone, Copy)]
pub(super) struct ScorePass<'n> {
    /// How they are divided into passes.
    pub(super) micro_batch: MicroBatch,
    /// Whether statistics are computed.
    pub(super) statistics: bool,
    /// The randomness of a training pass.
    pub(super) noise: Option<&'n StepNoise>,
}

impl ScorePass<'_> {
    /// Without statistics and randomness.
    pub(super) fn plain(micro_batch: MicroBatch) -> ScorePass<'static> {
        ScorePass { micro_batch, statistics: false, noise: None }
    }
}

/// What was computed, or nothing where it was interrupted.
pub(super) fn whole<T>(found: Result<T, TrainError>) -> Result<Option<T>, TrainError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(TrainError::Finetune(error)) if *error == FinetuneError::Interrupted => Ok(None),
        Err(error) => Err(error),
    }
}
