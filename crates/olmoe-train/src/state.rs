//! The state of a run in addition to parameters and moments: its progress, and its position in the data.

use serde::{Deserialize, Serialize};

use crate::config::{Progress, TrainConfig};
use crate::preference::RunningMean;

/// The state of the trainer, which the manifest of a checkpoint carries
/// ([`CheckpointWriter::state`](olmoe_checkpoint::save::CheckpointWriter::state)).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Steps taken.
    pub step: u64,
    /// The pass over the data, from 0.
    pub epoch: u64,
    /// Sequences of this pass that have been used, which is the position in the data.
    pub examples_seen_this_epoch: u64,
    /// Tokens trained on, over all passes.
    pub tokens_seen: u64,
    /// The smallest loss so far, for `early_stopping_factor`.
    pub min_train_loss: Option<f64>,
    /// Where a warm-up of a fresh optimizer began, in the units of the schedule
    /// ([`Schedule::with_new_warmup`](crate::schedule::Schedule::with_new_warmup)).
    pub new_warmup: Option<u64>,
    /// What the evaluations came to by which the run is judged; none: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluated>,
    /// The running mean of rewards, of losses that compare with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_reward: Option<RunningMean>,
}

/// What the evaluations so far came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluated {
    /// The step of the last one.
    pub step: u64,
    /// The smallest loss.
    pub best: f64,
    /// Its step.
    pub best_step: u64,
    /// Evaluations since then.
    pub worse: u64,
}

impl TrainerState {
    /// The state of a run that begins.
    pub fn start(config: &TrainConfig) -> TrainerState {
        TrainerState {
            step: 0,
            epoch: config.epoch.unwrap_or(0),
            examples_seen_this_epoch: 0,
            tokens_seen: 0,
            min_train_loss: None,
            new_warmup: None,
            evaluation: None,
            mean_reward: None,
        }
    }

    /// The state that a run goes on with from that of a checkpoint: `reset_trainer_state`, `restore_dataloader`,
    /// `epoch` and `fast_forward_batches` act here, in OLMo's order.
    ///
    /// Without `restore_dataloader` the data and the count of tokens begin anew, and the steps go on. Batches that are
    /// skipped count as sequences that are behind, not as tokens. With `reset_trainer_state` none are skipped.
    pub fn resumed(self, config: &TrainConfig) -> TrainerState {
        if config.reset_trainer_state {
            return TrainerState::start(config);
        }
        let mut state = self;
        match config.epoch {
            _ if !config.restore_dataloader => state.begin_data(),
            Some(epoch) if epoch != state.epoch => (state.epoch, state.examples_seen_this_epoch) = (epoch, 0),
            _ => {}
        }
        let skipped = config.fast_forward_batches.unwrap_or(0).saturating_mul(config.global_train_batch_size);
        state.examples_seen_this_epoch = state.examples_seen_this_epoch.saturating_add(skipped);
        state
    }

    /// The data and the count of its tokens begin anew, and the steps go on: OLMo's `restore_dataloader: false`.
    pub fn begin_data(&mut self) {
        (self.epoch, self.examples_seen_this_epoch, self.tokens_seen) = (0, 0, 0);
    }

    /// Counts a batch, which comes before its step.
    pub fn count_batch(&mut self, config: &TrainConfig) {
        self.count(config.global_train_batch_size, config.tokens_per_batch());
    }

    /// Counts a batch of so many sequences and tokens, which comes before its step.
    pub fn count(&mut self, examples: u64, tokens: u64) {
        self.step = self.step.saturating_add(1);
        self.examples_seen_this_epoch = self.examples_seen_this_epoch.saturating_add(examples);
        self.tokens_seen = self.tokens_seen.saturating_add(tokens);
    }

    /// Takes in the loss of an evaluation at the present step; whether it is the smallest so far.
    pub fn evaluated(&mut self, loss: f64) -> bool {
        let step = self.step;
        let before = self.evaluation.filter(|before| before.best <= loss || loss.is_nan());
        self.evaluation = Some(match before {
            Some(before) => Evaluated { step, worse: before.worse + 1, ..before },
            None => Evaluated { step, best: loss, best_step: step, worse: 0 },
        });
        before.is_none()
    }

    /// The next pass over the data begins.
    pub fn next_epoch(&mut self) {
        self.epoch = self.epoch.saturating_add(1);
        self.examples_seen_this_epoch = 0;
    }

    /// The progress on which the end of the run depends.
    pub fn progress(&self, batches_per_epoch: u64) -> Progress {
        Progress { step: self.step, tokens_seen: self.tokens_seen, batches_per_epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_goes_on_with() {
        let saved = TrainerState {
            step: 70,
            epoch: 2,
            examples_seen_this_epoch: 500,
            tokens_seen: 9_000,
            min_train_loss: Some(2.5),
            new_warmup: None,
            evaluation: None,
            mean_reward: None,
        };
        let plain = TrainConfig { global_train_batch_size: 10, ..TrainConfig::default() };
        let with = |change: fn(&mut TrainConfig)| {
            let mut config = plain.clone();
            change(&mut config);
            let state = saved.resumed(&config);
            (state.step, state.epoch, state.examples_seen_this_epoch, state.tokens_seen)
        };
        assert_eq!(saved.resumed(&plain), saved);
        assert_eq!(with(|c| c.epoch = Some(2)), (70, 2, 500, 9_000));
        assert_eq!(with(|c| c.epoch = Some(3)), (70, 3, 0, 9_000));
        assert_eq!(with(|c| c.fast_forward_batches = Some(4)), (70, 2, 540, 9_000));
        assert_eq!(with(|c| c.restore_dataloader = false), (70, 0, 0, 0));
        let skip = |c: &mut TrainConfig| (c.restore_dataloader, c.fast_forward_batches) = (false, Some(3));
        assert_eq!(with(skip), (70, 0, 30, 0));
        let anew = |c: &mut TrainConfig| (c.reset_trainer_state, c.fast_forward_batches) = (true, Some(3));
        assert_eq!(with(anew), (0, 0, 0, 0));
        assert_eq!(TrainerState::start(&plain).min_train_loss, None);
    }

    #[test]
    fn batches_and_epochs_are_counted() {
        let config = TrainConfig { global_train_batch_size: 3, ..TrainConfig::default() };
        let mut state = TrainerState::start(&config);
        state.count_batch(&config);
        state.count_batch(&config);
        assert_eq!((state.step, state.examples_seen_this_epoch, state.tokens_seen), (2, 6, 6 * 4096));
        state.next_epoch();
        assert_eq!((state.epoch, state.examples_seen_this_epoch, state.tokens_seen), (1, 0, 6 * 4096));
        assert_eq!(state.progress(5), Progress { step: 2, tokens_seen: 6 * 4096, batches_per_epoch: 5 });
    }
}
