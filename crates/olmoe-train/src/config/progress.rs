//! The steps and tokens of `max_duration`, `stop_at` and the units of the scheduler at a point of a run.

use super::duration::Duration;
use super::schema::{SchedulerUnits, TrainConfig};

/// The progress of a run on which its end depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    /// Steps taken.
    pub step: u64,
    /// Tokens trained on, over all epochs.
    pub tokens_seen: u64,
    /// Batches of one pass over the data, the last one only if it is whole.
    pub batches_per_epoch: u64,
}

impl TrainConfig {
    /// Tokens of a batch: `global_train_batch_size` sequences.
    pub fn tokens_per_batch(&self) -> u64 {
        self.global_train_batch_size.saturating_mul(self.model.max_sequence_length as u64)
    }

    /// The step at which the duration is over.
    pub fn max_steps(&self, at: &Progress) -> u64 {
        match self.max_duration {
            Duration::Steps(steps) => steps,
            Duration::Tokens(tokens) => {
                let left = tokens.saturating_sub(at.tokens_seen);
                at.step.saturating_add(left.div_ceil(self.tokens_per_batch().max(1)))
            }
            Duration::Epochs(epochs) => epochs.saturating_mul(at.batches_per_epoch),
        }
    }

    /// The tokens at which the duration is over.
    pub fn max_tokens(&self, at: &Progress) -> u64 {
        let tokens = |batches: u64| batches.saturating_mul(self.tokens_per_batch());
        match self.max_duration {
            Duration::Steps(steps) => at.tokens_seen.saturating_add(tokens(steps.saturating_sub(at.step))),
            Duration::Tokens(tokens) => tokens,
            Duration::Epochs(epochs) => tokens(epochs.saturating_mul(at.batches_per_epoch)),
        }
    }

    /// Passes over the data that are begun, at most.
    pub fn max_epochs(&self, at: &Progress) -> u64 {
        self.max_steps(at).div_ceil(at.batches_per_epoch.max(1))
    }

    /// The step after which training stops, if the epochs do not end before. Evaluate it once, where a run begins or
    /// goes on. As in OLMo a duration alone lets ten more steps pass; `stop_at` and `stop_after` are exact.
    pub fn stop_step(&self, at: &Progress) -> u64 {
        let after = self.stop_after.map(|steps| at.step.saturating_add(steps));
        match (self.stop_at, after) {
            (Some(stop), Some(after)) => stop.min(after),
            (Some(stop), None) | (None, Some(stop)) => stop,
            (None, None) => self.max_steps(at).saturating_add(10),
        }
    }

    /// Where the schedule is, in its units. A batch counts before its step.
    pub fn schedule_position(&self, at: &Progress) -> u64 {
        match self.scheduler.units {
            SchedulerUnits::Steps => at.step,
            SchedulerUnits::Tokens => at.tokens_seen,
        }
    }

    /// Where the schedule ends if it has no `t_max`, in its units.
    pub fn schedule_end(&self, at: &Progress) -> u64 {
        match self.scheduler.units {
            SchedulerUnits::Steps => self.max_steps(at),
            SchedulerUnits::Tokens => self.max_tokens(at),
        }
    }
}
