//! DPO and its relatives: both answers of a pair in one pass. Their prompt is computed once for both, with the bits of two
//! sequences; all but its last token, which predicts the first one of each answer.

use std::sync::atomic::AtomicBool;

use olmoe_data::instruct::PairExample;
use olmoe_model::model::{Model, Objective};

use super::examples::micro_batches;
use super::reference::{References, RowSums};
use super::scores::{ScorePass, Scored, Sides, scores, whole};
use super::settings::MicroBatch;
use super::stack::{Stack, StepNoise, Unit};
use crate::preference::{
    Completion, PairLoss, Preference, PreferenceMetrics, PreferencePair, ReferenceLogProb, StepTotals,
};
use crate::trainer::{Evaluation, Pass, TrainError, check_loss};

/// Pairs and how they are learned.
pub(super) struct Dpo {
    pub(super) preference: Preference,
    pub(super) rows: Vec<PairExample>,
    /// Whether prompts are computed once for both answers.
    pub(super) share_prompts: bool,
    pub(super) references: References,
}

impl Dpo {
    /// The two sequences of a row.
    pub(super) fn unit(rows: &[PairExample], share_prompts: bool, row: usize) -> Unit<'_> {
        let PairExample { chosen, rejected, prompt } = &rows[row];
        let [mut unit, other] = [chosen, rejected].map(|side| Unit::of(row, side));
        unit.sequences.extend(other.sequences);
        unit.prefix = if share_prompts { prompt.saturating_sub(1) } else { 0 };
        unit
    }

    /// Whether the reference is kept in two sums.
    pub(super) fn splits(&self) -> bool {
        self.preference.settings().ld_alpha.is_some_and(|alpha| alpha != 1.0)
    }

    fn totals(&self, rows: &[u32]) -> StepTotals {
        let tokens = |row: &u32| self.rows[*row as usize].chosen.num_targets() as u64;
        StepTotals { pairs: rows.len() as u64, chosen_tokens: rows.iter().map(tokens).sum(), delta: 0.0 }
    }

    /// The losses of pairs, given the log-probabilities of their answers' tokens.
    fn losses(
        &self,
        answers: &[Scored],
        references: &[RowSums],
        totals: &StepTotals,
    ) -> Result<Vec<PairLoss>, TrainError> {
        let (exist, split) = (self.references.exist(), self.splits());
        let mut pairs = Vec::with_capacity(references.len());
        for (own, sums) in answers.chunks_exact(2).zip(references) {
            let side = |at: usize| Completion {
                logp_t: &own[at].logp_t,
                log_sum_squares_t: own[at].square_sums_t.as_deref(),
                reference: if exist { sums[at].log_prob(split) } else { ReferenceLogProb::None },
            };
            pairs.push(PreferencePair { chosen: side(0), rejected: side(1) });
        }
        Ok(self.preference.losses(&pairs, totals)?)
    }

    /// Forward and backward passes over the pairs of a step.
    pub(super) fn learn(
        &self,
        rows: &[u32],
        micro_batch: MicroBatch,
        noise: Option<&StepNoise>,
        pass: Pass<'_>,
    ) -> Result<(), TrainError> {
        let Pass { model, activations, gradients, report, .. } = pass;
        let unit = |row: usize| Dpo::unit(&self.rows, self.share_prompts, row);
        let references = self.references.of_rows(rows, model, &unit, self.splits(), micro_batch)?;
        let totals = self.totals(rows);
        let units: Vec<Unit<'_>> = rows.iter().map(|row| unit(*row as usize)).collect();
        let tokens: Vec<usize> = units.iter().map(Unit::tokens).collect();
        let micros = micro_batches(&tokens, micro_batch);
        let auxiliary = 1.0 / micros.len() as f64;
        let square_sums = self.preference.needs_square_sums();
        // Losses that compare all pairs of a step need all of them before the first gradient.
        let known = match self.preference.is_of_whole_step() && micros.len() > 1 {
            true => {
                let never = AtomicBool::new(false);
                let score = ScorePass { micro_batch, statistics: square_sums, noise };
                let found = scores(model, rows, &unit, score, &never)?;
                let answers: Vec<Scored> = found.into_iter().flatten().collect();
                Some(self.losses(&answers, &references, &totals)?)
            }
            false => None,
        };
        let mut metrics = PreferenceMetrics::of_pairs(&self.preference);
        let mut sides = Sides::default();
        for some in micros {
            let stack = Stack::new(units[some.clone()].iter(), noise)?;
            model.forward(&stack.batch, activations)?;
            let losses = match &known {
                Some(all) => all[some].to_vec(),
                None => {
                    let answers = Scored::after(model, &stack, activations, square_sums)?;
                    self.losses(&answers, &references[some], &totals)?
                }
            };
            let dlogp_t = stack.spread(|sequence, token| {
                let pair = &losses[sequence / 2];
                [pair.chosen, pair.rejected][sequence % 2].gradient.at(token)
            });
            losses.iter().for_each(|loss| metrics.add_pair(loss));
            report.cross_entropy = metrics.loss();
            let objective =
                Objective { targets: &stack.targets, dlogp_t: &dlogp_t, z: 0.0, auxiliary, statistics: true };
            let (found, routers) = model.backward(&stack.batch, activations, &objective, gradients)?;
            sides.add_pairs(&Scored::of(&stack, &found));
            report.add_routers(&routers, &activations.routing);
            check_loss(report, model, activations)?;
        }
        metrics.add_tokens(&sides.statistics());
        report.named = named(&metrics);
        report.named.extend(sides.logits());
        Ok(())
    }

    /// Loss and metrics of all pairs, however they are divided into passes.
    pub(super) fn evaluate(
        &self,
        model: &mut Model,
        micro_batch: MicroBatch,
        interrupt: &AtomicBool,
    ) -> Result<Evaluation, TrainError> {
        let rows: Vec<u32> = (0..self.rows.len() as u32).collect();
        let unit = |row: usize| Dpo::unit(&self.rows, self.share_prompts, row);
        let references = self.references.of_rows(&rows, model, &unit, self.splits(), micro_batch)?;
        let score = ScorePass { statistics: true, ..ScorePass::plain(micro_batch) };
        let Some(answers) = whole(scores(model, &rows, &unit, score, interrupt))? else {
            return Ok(Evaluation::default());
        };
        let answers: Vec<Scored> = answers.into_iter().flatten().collect();
        let mut sides = Sides::default();
        sides.add_pairs(&answers);
        let mut metrics = PreferenceMetrics::of_pairs(&self.preference);
        metrics.add_tokens(&sides.statistics());
        self.losses(&answers, &references, &self.totals(&rows))?.iter().for_each(|loss| metrics.add_pair(loss));
        let mut found = evaluation(&metrics);
        found.metrics.extend(sides.logits().map(|(name, value)| (format!("eval_{name}"), value)));
        Ok(found)
    }
}

/// The metrics of a step by trl's names, and those of open-instruct's that trl has no such name for.
pub(super) fn named(metrics: &PreferenceMetrics) -> Vec<(String, f64)> {
    let trl = metrics.trl();
    let others: Vec<_> =
        metrics.open_instruct().into_iter().filter(|(name, _)| !trl.iter().any(|(known, _)| known == name)).collect();
    trl.into_iter().chain(others).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The metrics of an evaluation.
pub(super) fn evaluation(metrics: &PreferenceMetrics) -> Evaluation {
    let metrics_by_name = metrics.trl().into_iter().map(|(name, value)| (format!("eval_{name}"), value));
    Evaluation { metrics: metrics_by_name.collect(), whole: true, loss: Some(metrics.loss()) }
}
