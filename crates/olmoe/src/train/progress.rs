//! How a run goes: plain lines on standard error.

use std::io::{Write, stderr};

use olmoe_train::config::TrainConfig;
use olmoe_train::plan::{Plan, flops_per_token};
use olmoe_train::state::TrainerState;
use olmoe_train::trainer::{Event, Outcome, StepReport};

/// How much the newest step counts in the speed that is shown.
const NEWEST: f64 = 0.1;

/// What is shown of a run.
pub(super) struct Progress {
    quiet: bool,
    interval: u64,
    last_step: u64,
    /// Operations of a token, over those of the machine in a second.
    seconds_at_peak: f64,
    parameters: (u64, u64),
    /// Seconds of a step, smoothed.
    step_seconds: Option<f64>,
}

impl Progress {
    pub(super) fn new(config: &TrainConfig, plan: &Plan, peak: f64, quiet: bool) -> Progress {
        let flops = flops_per_token(&config.model, config.model.max_sequence_length).unwrap_or(0.0);
        Progress {
            quiet,
            interval: config.console_log_interval.max(1),
            last_step: plan.last_step,
            seconds_at_peak: flops / peak,
            parameters: (plan.parameters.total, plan.parameters.active),
            step_seconds: None,
        }
    }

    pub(super) fn begin(&self, state: &TrainerState) {
        let (total, active) = self.parameters;
        let steps = match state.step {
            step if step >= self.last_step => format!("all {step} steps are done"),
            step => format!("steps {} to {}", step + 1, self.last_step),
        };
        self.line(&format!("{total} parameters, {active} of them for each token; {steps}"));
    }

    pub(super) fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Step(report, _) => {
                let seconds = self.step_seconds.map_or(report.seconds, |old| old + NEWEST * (report.seconds - old));
                self.step_seconds = Some(seconds);
                if report.step.is_multiple_of(self.interval) || report.step >= self.last_step {
                    self.line(&self.step(report, seconds));
                }
            }
            Event::Evaluated(step, values) => {
                for (name, value) in values.iter() {
                    self.line(&format!("step {step}: {name} {value:.4}"));
                }
            }
            Event::Saved(saved, removed) => {
                let removed = match removed {
                    [] => String::new(),
                    steps => format!(", removed those of steps {steps:?}"),
                };
                self.line(&format!("saved {} ({:.1} MB){removed}", saved.path.display(), saved.bytes as f64 / 1e6));
            }
            Event::Notice(_) => {}
        }
    }

    fn step(&self, report: &StepReport, seconds: f64) -> String {
        let rate = report.tokens as f64 / report.seconds.max(1e-9);
        let balance = report.imbalance().map_or(String::new(), |most| format!(", busiest expert {most:.2}x"));
        format!(
            "[step={}/{},epoch={}] loss {:.4}, lr {:.3e}, grad norm {:.3}, {rate:.0} tokens/s, {:.0} % of peak{balance}, {} left",
            report.step,
            self.last_step,
            report.epoch,
            report.cross_entropy,
            report.learning_rate,
            report.grad_norm,
            100.0 * rate * self.seconds_at_peak,
            duration(self.last_step.saturating_sub(report.step) as f64 * seconds)
        )
    }

    pub(super) fn end(&self, outcome: Outcome, state: &TrainerState) {
        let what = match outcome {
            Outcome::Finished => "done",
            Outcome::Interrupted => "interrupted; it goes on with --try_load_latest_save",
            Outcome::TimeLimit => "time limit; it goes on with --try_load_latest_save",
            Outcome::EarlyStop => "stopped early: the loss has risen",
        };
        self.line(&format!("step {}, {} tokens: {what}", state.step, state.tokens_seen));
    }

    fn line(&self, text: &str) {
        if !self.quiet {
            // If nobody reads it the work goes on all the same.
            let _ = writeln!(stderr(), "{text}");
        }
    }
}

/// A length of time for people.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 100.0 * 60.0 => format!("{:.0} min", s / 60.0),
        s if s < 100.0 * 3600.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}
