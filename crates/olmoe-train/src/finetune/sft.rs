//! Supervised fine-tuning: cross-entropy of the learned tokens.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use olmoe_data::instruct::{Example, Part};
use olmoe_model::model::{Activations, Keep, Model};

use super::examples::micro_batches;
use super::scores::{Scored, TokenSums};
use super::settings::{MicroBatch, SftSettings};
use super::stack::{Stack, StepNoise, Unit};
use crate::loss::{Loss, StepCounts};
use crate::trainer::{Evaluation, Pass, TrainError, check_loss};

/// Conversations and how they are learned.
pub(super) struct Sft {
    pub(super) settings: SftSettings,
    pub(super) rows: Vec<Example>,
}

impl Sft {
    /// Forward and backward passes over the units of a step.
    pub(super) fn learn(
        &self,
        units: &[Vec<Part>],
        micro_batch: MicroBatch,
        noise: Option<&StepNoise>,
        pass: Pass<'_>,
    ) -> Result<(), TrainError> {
        let Pass { model, activations, gradients, report, .. } = pass;
        let tokens: Vec<usize> = units.iter().map(|unit| unit.iter().map(|part| part.length).sum()).collect();
        let stack = |some: Range<usize>| {
            let parts = units[some].iter().flatten();
            let documents: Vec<Unit<'_>> = parts.map(|part| Unit::part(&self.rows, part)).collect();
            Stack::new(documents.iter(), noise)
        };
        let stacks = micro_batches(&tokens, micro_batch).into_iter().map(stack).collect::<Result<Vec<_>, _>>()?;
        let mut counts = StepCounts::default();
        stacks.iter().for_each(|stack| counts.add(&stack.targets, &stack.batch.segments));
        let mut sums = TokenSums::default();
        for stack in &stacks {
            let share = self.settings.reduction.weights(&counts, &stack.targets, &stack.batch.segments);
            let weights: Vec<f64> = share.iter().zip(&stack.weights).map(|(share, weight)| share * weight).collect();
            let token_loss = self.settings.token_loss;
            let loss = Loss { share: 1.0 / stacks.len() as f64, token_loss, statistics: true, ..Loss::over(1.0) };
            let targets = &stack.targets;
            let (log_probs, routers) =
                loss.passes(model, &stack.batch, targets, Some(&weights), activations, gradients)?;
            // Sequence by sequence, so that the division into passes does not show.
            for range in stack.sequences.iter().cloned() {
                let own = range.map(|t| loss.of_token(log_probs.logp_t[t], weights[t]));
                report.cross_entropy += own.sum::<f64>();
            }
            Scored::of(stack, &log_probs).iter().for_each(|own| sums += own.sums);
            report.add_routers(&routers, &activations.routing);
            check_loss(report, model, activations)?;
        }
        report.named = sums.named();
        Ok(())
    }

    /// Cross-entropy over all learned tokens, however they are divided into passes.
    pub(super) fn evaluate(
        &self,
        model: &Model,
        micro_batch: MicroBatch,
        interrupt: &AtomicBool,
    ) -> Result<Evaluation, TrainError> {
        let mut activations = Activations::new(Keep::Nothing);
        let tokens: Vec<usize> = self.rows.iter().map(|row| row.ids.len()).collect();
        let (mut sum, mut sums) = (0.0, TokenSums::default());
        for some in micro_batches(&tokens, micro_batch) {
            if interrupt.load(Ordering::Relaxed) {
                return Ok(Evaluation::default());
            }
            let units: Vec<Unit<'_>> = some.map(|row| Unit::of(row, &self.rows[row])).collect();
            let stack = Stack::new(units.iter(), None)?;
            model.forward(&stack.batch, &mut activations)?;
            let log_probs = model.log_probs_and_statistics(&activations, &stack.targets)?;
            Scored::of(&stack, &log_probs).iter().for_each(|own| sums += own.sums);
            for range in stack.sequences.iter().cloned() {
                sum -= range.map(|t| stack.weights[t] * f64::from(log_probs.logp_t[t])).sum::<f64>();
            }
        }
        let loss = sum / sums.tokens.max(1) as f64;
        let named = std::iter::once(("loss".to_owned(), loss)).chain(sums.named());
        let metrics = named.map(|(name, value)| (format!("eval_{name}"), value)).collect();
        Ok(Evaluation { metrics, whole: true, loss: Some(loss) })
    }
}
