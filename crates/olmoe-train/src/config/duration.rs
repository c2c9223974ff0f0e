//! How long to train: `max_duration`, and what follows from it.

use olmoe_model::config::shorten;
use serde_json::Value;

use super::error::TrainConfigError;
use super::field::{At, Field, Tree};
use super::schema::{SchedulerUnits, TrainConfig};

/// Most steps, tokens or epochs: what a double counts exactly.
const MAX: f64 = 9_007_199_254_740_992.0;

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duration {
    /// A number of steps: `10000`.
    Steps(u64),
    /// A number of tokens: `2e12T`.
    Tokens(u64),
    /// Whole passes over the data: `2ep`.
    Epochs(u64),
}

impl Field for Duration {
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        // As OLMo: first a double, so that exponents are understood, of which the fraction is cut off.
        let count = |text: &str| {
            let number = text.trim().parse().ok().filter(|x| (0.0..=MAX).contains(x));
            number.map(|x: f64| x as u64)
        };
        let text = match value {
            Value::Number(number) => number.to_string(),
            Value::String(text) => text.trim().to_owned(),
            _ => return Err(at.wrong_type("a number of steps, or tokens such as 2e12T, or epochs such as 1ep", value)),
        };
        let duration = match (text.strip_suffix('T'), text.strip_suffix("ep")) {
            (Some(tokens), _) => count(tokens).map(Duration::Tokens),
            (_, Some(epochs)) => epochs.trim().parse().ok().filter(|x| *x as f64 <= MAX).map(Duration::Epochs),
            _ => count(&text).map(Duration::Steps),
        };
        duration.ok_or_else(|| TrainConfigError::Duration { path: at.to_string(), found: shorten(&text) })
    }

    fn tree(&self) -> Tree {
        match self {
            Duration::Steps(steps) => steps.tree(),
            Duration::Tokens(tokens) => format!("{tokens}T").tree(),
            Duration::Epochs(epochs) => format!("{epochs}ep").tree(),
        }
    }
}

/// Where a run is, as far as its end depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    /// Steps taken.
    pub step: u64,
    /// Tokens trained on, over all epochs.
    pub tokens_seen: u64,
    /// Batches of one pass over the data, the last one only if it is whole.
    pub batches_per_epoch: u64,
}

/// What `max_duration`, `stop_at` and the scheduler's units come to at some point of a run.
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

    /// The step after which training stops, if the epochs do not end before. Evaluate it once, where a run begins or goes
    /// on. As in OLMo a duration alone lets ten more steps pass; `stop_at` and `stop_after` are exact.
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
