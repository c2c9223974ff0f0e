//! KTO and its relatives: labelled answers one by one, and for KTO's estimate of the divergence each prompt with the answer of
//! another row.

use std::borrow::Cow;
use std::sync::atomic::AtomicBool;

use olmoe_data::instruct::LabelledExample;
use olmoe_model::model::{Model, Objective};

use super::dpo::{evaluation, named};
use super::examples::micro_batches;
use super::reference::{References, RowSums};
use super::scores::{ScorePass, Scored, Sides, scores, whole};
use super::settings::MicroBatch;
use super::stack::{Sequence, Stack, StepNoise, Unit};
use crate::preference::kto::{self, KlBatch, KtoStep, LabelledCompletion, LabelledLoss};
use crate::preference::{Completion, PreferenceMetrics, log_prob};
use crate::trainer::{Evaluation, Pass, TrainError, check_loss};

/// Labelled answers and how they are learned.
pub(super) struct Kto {
    pub(super) kto: kto::Kto,
    pub(super) answers: Answers,
    pub(super) references: References,
}

/// Labelled answers, and which row's answer each prompt is scored with.
pub(super) struct Answers {
    pub(super) rows: Vec<LabelledExample>,
    /// Empty for losses without an estimate of the divergence.
    pub(super) partners: Vec<u32>,
    /// Most tokens of a prompt with the answer of another row.
    pub(super) longest: usize,
}

impl Answers {
    /// The sequences of a row: its own, and its prompt with the answer of another. The prompt is computed once.
    pub(super) fn both(&self, row: usize) -> Unit<'_> {
        let mut unit = self.own(row);
        if let Some(other) = self.mismatched(row) {
            unit.prefix = self.rows[row].prompt.min(other.0.len()).saturating_sub(1);
            unit.sequences.push(other);
        }
        unit
    }

    /// Which of rows are desirable.
    fn desirable<'a>(&'a self, rows: &'a [u32]) -> impl Iterator<Item = bool> + 'a {
        rows.iter().map(|row| self.rows[*row as usize].desirable)
    }

    fn own(&self, row: usize) -> Unit<'_> {
        Unit::of(row, &self.rows[row].example)
    }

    /// The prompt of a row with the answer of another; none for losses without an estimate.
    fn mismatched(&self, row: usize) -> Option<Sequence<'_>> {
        let other = &self.rows[*self.partners.get(row)? as usize];
        let (own, prompt) = (&self.rows[row].example, self.rows[row].prompt);
        let mut ids = own.ids[..prompt].to_vec();
        let mut weights = vec![0.0; prompt];
        ids.extend_from_slice(&other.example.ids[other.prompt..]);
        weights.extend_from_slice(&other.example.weights[other.prompt..]);
        ids.truncate(self.longest);
        weights.truncate(self.longest);
        Some((Cow::Owned(ids), Cow::Owned(weights)))
    }
}

impl Kto {
    /// The answers of rows, given the log-probabilities of their tokens.
    fn labelled<'a>(
        &'a self,
        rows: &'a [u32],
        scores: &'a [Scored],
        references: &'a [RowSums],
    ) -> Vec<LabelledCompletion<'a>> {
        let of = |((row, own), sums): ((&u32, &'a Scored), &RowSums)| LabelledCompletion {
            completion: Completion { logp_t: &own.logp_t, log_sum_squares_t: None, reference: sums[0].log_prob(false) },
            desirable: self.answers.rows[*row as usize].desirable,
        };
        rows.iter().zip(scores).zip(references).map(of).collect()
    }

    /// The estimate of the divergence over some rows.
    fn kl(&self, rows: &[u32], references: &[RowSums], model: &Model, by: MicroBatch) -> Result<f64, TrainError> {
        if !self.kto.needs_kl() {
            return Ok(0.0);
        }
        let never = AtomicBool::new(false);
        let unit = |row: usize| {
            let sequences = self.answers.mismatched(row).into_iter().collect();
            Unit { row, start: 0, prefix: 0, sequences }
        };
        let scores = scores(model, rows, &unit, ScorePass::plain(by), &never)?;
        let pairs = scores.iter().zip(references);
        let pairs: Vec<(f64, f64)> = pairs.map(|(own, sums)| (log_prob(&own[0].logp_t), sums[1].total())).collect();
        Ok(self.kto.kl(&pairs))
    }

    /// Forward and backward passes over the answers of a step.
    pub(super) fn learn(
        &self,
        rows: &[u32],
        micro_batch: MicroBatch,
        noise: Option<&StepNoise>,
        pass: Pass<'_>,
    ) -> Result<(), TrainError> {
        let Pass { model, activations, gradients, report, state, .. } = pass;
        let both = |row: usize| self.answers.both(row);
        let references = self.references.of_rows(rows, model, &both, false, micro_batch)?;
        let own = |row: usize| self.answers.own(row);
        let tokens: Vec<usize> = rows.iter().map(|row| self.answers.rows[*row as usize].example.ids.len()).collect();
        let mut step = KtoStep { answers: rows.len() as u64, ..KtoStep::default() };
        let of_step = self.kto.settings().kl_batch == KlBatch::Step;
        if of_step {
            step.kl = self.kl(rows, &references, model, micro_batch)?;
        }
        if self.kto.needs_delta() {
            let never = AtomicBool::new(false);
            let score = ScorePass { noise, ..ScorePass::plain(micro_batch) };
            let found = scores(model, rows, &own, score, &never)?;
            let scores: Vec<Scored> = found.into_iter().flatten().collect();
            let mean = self.kto.mean_reward(&self.labelled(rows, &scores, &references))?;
            step.delta = state.mean_reward.get_or_insert_default().update(mean);
        }
        let mut losses: Vec<LabelledLoss> = Vec::with_capacity(rows.len());
        let (mut kl, mut sides) = (0.0, Sides::default());
        let micros = micro_batches(&tokens, micro_batch);
        let auxiliary = 1.0 / micros.len() as f64;
        for some in micros {
            let (rows, references) = (&rows[some.clone()], &references[some.clone()]);
            if !of_step {
                step.kl = self.kl(rows, references, model, micro_batch)?;
            }
            kl += step.kl * rows.len() as f64;
            let units: Vec<Unit<'_>> = rows.iter().map(|row| own(*row as usize)).collect();
            let stack = Stack::new(units.iter(), noise)?;
            model.forward(&stack.batch, activations)?;
            let scores = Scored::after(model, &stack, activations, false)?;
            let found = self.kto.losses(&self.labelled(rows, &scores, references), &step)?;
            let dlogp_t = stack.spread(|sequence, token| found[sequence].answer.gradient.at(token));
            for loss in &found {
                report.cross_entropy += loss.loss;
            }
            losses.extend(found);
            let objective =
                Objective { targets: &stack.targets, dlogp_t: &dlogp_t, z: 0.0, auxiliary, statistics: true };
            let (found, routers) = model.backward(&stack.batch, activations, &objective, gradients)?;
            sides.add_labelled(&Scored::of(&stack, &found), self.answers.desirable(rows));
            report.add_routers(&routers, &activations.routing);
            check_loss(report, model, activations)?;
        }
        let kl = if of_step { step.kl } else { kl / rows.len().max(1) as f64 };
        let mut metrics = PreferenceMetrics::of_answers(&self.kto, kl);
        losses.iter().for_each(|loss| metrics.add_answer(loss));
        metrics.add_tokens(&sides.entropy());
        report.named = named(&metrics);
        report.named.extend(sides.logits());
        Ok(())
    }

    /// Loss and metrics of all answers as one step; the running mean of rewards is that of training.
    pub(super) fn evaluate(
        &self,
        model: &mut Model,
        micro_batch: MicroBatch,
        mean_reward: f64,
        interrupt: &AtomicBool,
    ) -> Result<Evaluation, TrainError> {
        let rows: Vec<u32> = (0..self.answers.rows.len() as u32).collect();
        let both = |row: usize| self.answers.both(row);
        let references = self.references.of_rows(&rows, model, &both, false, micro_batch)?;
        let own = |row: usize| self.answers.own(row);
        let score = ScorePass { statistics: true, ..ScorePass::plain(micro_batch) };
        let Some(scores) = whole(scores(model, &rows, &own, score, interrupt))? else {
            return Ok(Evaluation::default());
        };
        let scores: Vec<Scored> = scores.into_iter().flatten().collect();
        let mut sides = Sides::default();
        sides.add_labelled(&scores, self.answers.desirable(&rows));
        let kl = self.kl(&rows, &references, model, micro_batch)?;
        let step = KtoStep { answers: rows.len() as u64, kl, delta: mean_reward };
        let mut metrics = PreferenceMetrics::of_answers(&self.kto, kl);
        let losses = self.kto.losses(&self.labelled(&rows, &scores, &references), &step)?;
        losses.iter().for_each(|loss| metrics.add_answer(loss));
        metrics.add_tokens(&sides.entropy());
        let mut found = evaluation(&metrics);
        found.metrics.extend(sides.logits().map(|(name, value)| (format!("eval_{name}"), value)));
        Ok(found)
    }
}
