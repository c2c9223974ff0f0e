//! The decisions of a run: what is due, and whether the run ends. They are pure functions of their arguments.

use super::event::Outcome;
use super::folder::{is_due, saves};
use crate::config::TrainConfig;
use crate::state::TrainerState;

/// Where in a run a decision is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Moment {
    /// Before the first step.
    Start {
        /// Whether the run began from a checkpoint.
        loaded: bool,
    },
    /// After a step with this cross-entropy.
    Step(f64),
    /// After what was due at one of the moments before: it was cut short, or there is no more data.
    Between,
}

/// The state of the run on which decisions depend, in addition to the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation<'a> {
    pub(super) moment: Moment,
    pub(super) state: &'a TrainerState,
    /// The step at which the run ends, and the passes over the data.
    pub(super) last_step: u64,
    pub(super) epochs: u64,
    /// Whether somebody has asked the run to stop.
    pub(super) interrupted: bool,
    /// Seconds since it began or went on.
    pub(super) seconds: f64,
    /// The steps of the newest checkpoint, and of the newest samples, in this process or the one it goes on from.
    pub(super) saved: Option<u64>,
    pub(super) sampled: Option<u64>,
    /// Whether the evaluations have not improved for too long.
    pub(super) given_up: bool,
    /// Whether an evaluation that was due at this step has not come.
    pub(super) unevaluated: bool,
}

/// What is due, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// A checkpoint.
    pub(super) save: bool,
    /// The evaluators.
    pub(super) evaluate: bool,
    /// Texts of the model.
    pub(super) sample: bool,
}

/// Why the run ends now; none if another step follows.
pub(super) fn end_reason(config: &TrainConfig, now: &Situation<'_>) -> Option<Outcome> {
    let Situation { moment, state, last_step, epochs, interrupted, seconds, .. } = *now;
    if interrupted {
        return Some(Outcome::Interrupted);
    }
    if now.given_up {
        return Some(Outcome::EarlyStop);
    }
    // A run that goes on takes a step at least, or it would never come to its end.
    if let Moment::Step(loss) = moment {
        if config.time_limit.is_some_and(|limit| seconds >= limit) {
            return Some(Outcome::TimeLimit);
        }
        let warm = config.schedule_position(&state.progress(0)) > config.scheduler.t_warmup.0;
        let limit = config.early_stopping_factor.zip(state.min_train_loss).map(|(factor, least)| factor * least);
        if warm && limit.is_some_and(|limit| loss > limit) {
            return Some(Outcome::EarlyStop);
        }
    }
    (state.step >= last_step || state.epoch >= epochs).then_some(Outcome::Finished)
}

/// What is due, if the run ends for this reason, or goes on.
pub(super) fn due(config: &TrainConfig, now: &Situation<'_>, end: Option<Outcome>) -> Due {
    let Situation { moment, state, last_step, saved, sampled, .. } = *now;
    let step = state.step;
    let first = match moment {
        Moment::Start { loaded: true } => config.force_save_unsharded,
        Moment::Start { loaded: false } => !config.no_pre_train_checkpoint,
        Moment::Step(_) | Moment::Between => false,
    };
    let regular = matches!(moment, Moment::Step(_)) && is_due(config, step);
    let unsaved = saved != Some(step) && (regular || end.is_some());
    let evaluate = match (moment, end) {
        (Moment::Start { loaded }, _) => loaded && config.eval_on_load || now.unevaluated,
        (Moment::Step(_), None) => step.is_multiple_of(config.eval_interval),
        // Of a run that ends, only the last step is evaluated.
        (Moment::Step(_), Some(Outcome::Finished)) => step >= last_step || step.is_multiple_of(config.eval_interval),
        (Moment::Step(_), Some(_)) | (Moment::Between, _) => false,
    };
    let sample = match end {
        None => moment != Moment::Between && samples_are_due(config, step),
        Some(Outcome::Finished | Outcome::EarlyStop) => config.samples.is_some(),
        Some(Outcome::Interrupted | Outcome::TimeLimit) => false,
    };
    Due { save: saves(config) && (first || unsaved), evaluate, sample: sample && sampled != Some(step) }
}

/// Whether texts are due at a step that is not the last one.
pub(super) fn samples_are_due(config: &TrainConfig, step: u64) -> bool {
    config.samples.as_ref().is_some_and(|samples| step > 0 && step.is_multiple_of(samples.interval))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Count, SamplesConfig, SchedulerUnits};

    fn config() -> TrainConfig {
        let mut config = TrainConfig {
            save_interval: Some(4),
            eval_interval: 3,
            samples: Some(SamplesConfig { interval: 5, ..SamplesConfig::default() }),
            time_limit: Some(60.0),
            early_stopping_factor: Some(1.5),
            ..TrainConfig::default()
        };
        (config.scheduler.units, config.scheduler.t_warmup) = (SchedulerUnits::Steps, Count(2));
        config
    }

    fn state(step: u64) -> TrainerState {
        TrainerState { step, min_train_loss: Some(2.0), ..TrainerState::start(&config()) }
    }

    fn at<'a>(moment: Moment, state: &'a TrainerState) -> Situation<'a> {
        Situation {
            moment,
            state,
            last_step: 20,
            epochs: 2,
            interrupted: false,
            seconds: 1.0,
            saved: None,
            sampled: None,
            given_up: false,
            unevaluated: false,
        }
    }

    #[test]
    fn why_a_run_ends() {
        use Moment::{Between, Start, Step};
        let start = Start { loaded: true };
        for (moment, step, epoch, interrupted, seconds, expected) in [
            (start, 0, 0, false, 0.0, None),
            (start, 0, 0, true, 0.0, Some(Outcome::Interrupted)),
            // Nothing is left to do.
            (start, 20, 0, false, 0.0, Some(Outcome::Finished)),
            (start, 3, 2, false, 0.0, Some(Outcome::Finished)),
            // A step is taken however late it is, and whatever the loss was.
            (start, 3, 0, false, 99.0, None),
            (Step(2.0), 3, 0, false, 59.9, None),
            (Step(2.0), 3, 0, false, 60.0, Some(Outcome::TimeLimit)),
            (Step(3.0), 3, 0, false, 0.0, None),
            (Step(3.1), 3, 0, false, 0.0, Some(Outcome::EarlyStop)),
            (Step(f64::NAN), 3, 0, false, 0.0, None),
            // Not in the warm-up.
            (Step(3.1), 2, 0, false, 0.0, None),
            (Step(2.0), 20, 0, false, 0.0, Some(Outcome::Finished)),
            (Step(2.0), 21, 0, false, 0.0, Some(Outcome::Finished)),
            (Between, 19, 2, false, 0.0, Some(Outcome::Finished)),
            (Between, 19, 1, false, 99.0, None),
            // Of several reasons, the one that the user gave; then those that say that there is more to do.
            (Step(3.1), 20, 2, true, 99.0, Some(Outcome::Interrupted)),
            (Step(3.1), 20, 2, false, 99.0, Some(Outcome::TimeLimit)),
            (Step(3.1), 20, 2, false, 0.0, Some(Outcome::EarlyStop)),
        ] {
            let state = TrainerState { epoch, ..state(step) };
            let now = Situation { interrupted, seconds, ..at(moment, &state) };
            assert_eq!(end_reason(&config(), &now), expected, "{now:?}");
        }
        // Even where it goes on, since another evaluation would not come before the next step.
        let state = state(3);
        for moment in [start, Step(2.0), Between] {
            let now = Situation { given_up: true, ..at(moment, &state) };
            assert_eq!(end_reason(&config(), &now), Some(Outcome::EarlyStop));
            assert!(due(&config(), &Situation { unevaluated: true, ..at(start, &state) }, None).evaluate);
        }
        let none = TrainConfig { time_limit: None, early_stopping_factor: None, ..config() };
        assert_eq!(end_reason(&none, &Situation { seconds: 1e9, ..at(Step(1e9), &state) }), None);
    }

    #[test]
    fn what_is_due() {
        use Moment::{Between, Start, Step};
        use Outcome::{EarlyStop, Finished, Interrupted, TimeLimit};
        let (fresh, loaded, step) = (Start { loaded: false }, Start { loaded: true }, Step(2.0));
        // A letter for each: save, evaluate, sample.
        for (moment, number, end, saved, sampled, expected) in [
            (fresh, 0, None, None, None, "s"),
            (fresh, 0, Some(Finished), None, None, "s t"),
            (fresh, 0, Some(Interrupted), None, None, "s"),
            // Samples of the checkpoint's own step may not have come before the run was interrupted.
            (loaded, 10, None, Some(10), None, "t"),
            (loaded, 8, None, Some(8), None, ""),
            (loaded, 20, Some(Finished), Some(20), None, "t"),
            (loaded, 8, Some(Interrupted), Some(8), None, ""),
            (step, 1, None, None, None, ""),
            (step, 3, None, None, None, "e"),
            (step, 4, None, None, None, "s"),
            (step, 5, None, None, None, "t"),
            (step, 12, None, Some(8), Some(10), "s e"),
            (step, 15, None, Some(12), Some(10), "e t"),
            (step, 60, None, Some(12), Some(10), "s e t"),
            // The end saves whatever the interval, and evaluates the last step of all.
            (step, 20, Some(Finished), Some(16), Some(15), "s e t"),
            (step, 19, Some(Finished), Some(16), Some(15), "s t"),
            (step, 18, Some(Finished), Some(16), Some(15), "s e t"),
            (step, 6, Some(EarlyStop), Some(4), Some(5), "s t"),
            (step, 6, Some(Interrupted), Some(4), Some(5), "s"),
            (step, 15, Some(TimeLimit), Some(12), Some(10), "s"),
            // Nothing twice.
            (Between, 12, Some(Finished), Some(12), Some(10), "t"),
            (Between, 15, Some(Finished), Some(12), Some(15), "s"),
            (Between, 15, Some(Interrupted), Some(12), None, "s"),
            (Between, 12, Some(Interrupted), Some(12), None, ""),
            (Between, 60, None, None, None, ""),
        ] {
            let state = state(number);
            let now = Situation { saved, sampled, ..at(moment, &state) };
            let Due { save, evaluate, sample } = due(&config(), &now, end);
            let found = [(save, "s"), (evaluate, "e"), (sample, "t")];
            let found: Vec<&str> = found.into_iter().filter(|(due, _)| *due).map(|(_, name)| name).collect();
            assert_eq!(found.join(" "), expected, "{now:?} {end:?}");
        }
    }

    #[test]
    fn what_the_configuration_changes() {
        let state = state(20);
        let due_with = |moment, end, change: fn(&mut TrainConfig)| {
            let mut config = config();
            change(&mut config);
            due(&config, &at(moment, &state), end)
        };
        let (fresh, loaded) = (Moment::Start { loaded: false }, Moment::Start { loaded: true });
        let save = |moment, change| due_with(moment, None, change).save;
        assert!(!save(fresh, |config| config.no_pre_train_checkpoint = true));
        assert!(save(loaded, |config| config.force_save_unsharded = true));
        assert!(!save(loaded, |config| {
            (config.force_save_unsharded, config.save_num_checkpoints_to_keep) = (true, 0)
        }));
        assert!(due_with(loaded, None, |config| config.eval_on_load = true).evaluate);
        assert!(!due_with(fresh, None, |config| config.eval_on_load = true).evaluate);
        assert!(!due_with(Moment::Step(1.0), Some(Outcome::Finished), |config| config.samples = None).sample);
        let none = due_with(Moment::Step(1.0), Some(Outcome::Finished), |config| {
            (config.save_num_checkpoints_to_keep, config.save_interval) = (0, Some(1))
        });
        assert_eq!(none, Due { save: false, evaluate: true, sample: true });
    }
}
