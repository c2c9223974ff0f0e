//! How a run goes, on standard error.

use std::time::Duration;

use olmoe_data::counted;
use olmoe_train::config::TrainConfig;
use olmoe_train::plan::{Plan, flops_per_token};
use olmoe_train::state::TrainerState;
use olmoe_train::trainer::{Event, Outcome, StepReport};

use crate::live::{LiveLine, Now};

/// How much the newest step counts in the speed that is shown.
const NEWEST: f64 = 0.1;

/// What is shown of a run.
pub(crate) struct Progress {
    live: LiveLine,
    last_step: u64,
    /// Operations of a token, over those of the machine in a second, if they are known.
    seconds_at_peak: Option<f64>,
    /// What is said before the first step.
    model: String,
    /// How a run that ends before its time goes on.
    goes_on: &'static str,
    /// Seconds of a step, smoothed.
    step_seconds: Option<f64>,
}

impl Progress {
    pub(crate) fn new(config: &TrainConfig, plan: &Plan, peak: f64) -> Progress {
        let flops = flops_per_token(&config.model, config.model.max_sequence_length).unwrap_or(0.0);
        Progress {
            live: LiveLine::new(config.console_log_interval),
            last_step: plan.last_step,
            seconds_at_peak: Some(flops / peak),
            model: format!(
                "{}, {} of them for each token",
                counted(plan.parameters.total, "parameter"),
                plan.parameters.active
            ),
            goes_on: "it goes on with --try_load_latest_save",
            step_seconds: None,
        }
    }

    /// Of a run of fine-tuning that ends at `last_step`, with a line every `interval` steps.
    pub(crate) fn of_tuning(interval: u64, last_step: u64, model: String) -> Progress {
        let goes_on = "the same command goes on";
        Progress { live: LiveLine::new(interval), last_step, seconds_at_peak: None, model, goes_on, step_seconds: None }
    }

    pub(crate) fn begin(&self, state: &TrainerState) {
        let steps = match state.step {
            0 if self.last_step == 0 => "there is no step to be taken".to_owned(),
            1 if self.last_step <= 1 => "the only step is done".to_owned(),
            step if step >= self.last_step => format!("all {step} steps are done"),
            step if step + 1 == self.last_step => format!("step {}", self.last_step),
            step => format!("steps {} to {}", step + 1, self.last_step),
        };
        self.line(&format!("{}; {steps}", self.model));
    }

    pub(crate) fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Step(report, _) => {
                let seconds = self.step_seconds.map_or(report.seconds, |old| old + NEWEST * (report.seconds - old));
                self.step_seconds = Some(seconds);
                self.live.show(&self.now(report, seconds));
            }
            Event::Evaluated(step, values) => {
                for (name, value) in values.iter() {
                    self.line(&format!("step {step}: {name} {value:.4}"));
                }
            }
            // As they would be written in a program, since a model may write anything.
            Event::Sampled(samples) => samples
                .iter()
                .for_each(|one| self.line(&format!("step {}: {:?} -> {:?}", one.step, one.prompt, one.text))),
            Event::Saved(saved, removed) => {
                let removed = match removed {
                    [] => String::new(),
                    [step] => format!(", removed that of step {step}"),
                    steps => format!(", removed those of steps {steps:?}"),
                };
                self.line(&format!("saved {} ({:.1} MB){removed}", saved.path.display(), saved.bytes as f64 / 1e6));
            }
            Event::Notice(_) => {}
        }
    }

    fn now(&self, report: &StepReport, seconds: f64) -> Now {
        let rate = report.tokens as f64 / report.seconds.max(1e-9);
        let left = self.last_step.saturating_sub(report.step) as f64 * seconds;
        Now {
            step: report.step,
            steps: Some(self.last_step),
            loss: report.cross_entropy,
            learning_rate: report.learning_rate,
            gradient_norm: Some(report.grad_norm),
            tokens_per_second: rate,
            share_of_peak: self.seconds_at_peak.map(|seconds| rate * seconds),
            load: report.imbalance(),
            left: Duration::try_from_secs_f64(left).ok(),
        }
    }

    pub(crate) fn end(&self, outcome: Outcome, state: &TrainerState) {
        let what = match outcome {
            Outcome::Finished => "done".to_owned(),
            Outcome::Interrupted => format!("interrupted; {}", self.goes_on),
            Outcome::TimeLimit => format!("time limit; {}", self.goes_on),
            Outcome::EarlyStop => "stopped early: the loss has risen".to_owned(),
        };
        self.line(&format!("step {}, {}: {what}", state.step, counted(state.tokens_seen, "token")));
    }

    fn line(&self, text: &str) {
        self.live.note(text);
    }
}
