//! What a run tells while it goes on, and how it ended.

use olmoe_checkpoint::save::Saved;

use super::step::StepReport;
use crate::metrics::Sample;

/// What happens in a run, as it happens.
#[derive(Debug)]
pub enum Event<'a> {
    /// Something that the user should know.
    Notice(&'a str),
    /// A step, with its metrics where they are due (`wandb.log_interval`), else none.
    Step(&'a StepReport, &'a [(String, f64)]),
    /// Evaluations after a step, with their metrics.
    Evaluated(u64, &'a [(String, f64)]),
    /// What the model made of the prompts of `samples`, in their order.
    Sampled(&'a [Sample]),
    /// A checkpoint is on disk, and those of these steps were removed.
    Saved(&'a Saved, &'a [u64]),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is over.
    Finished,
    /// It was asked to stop, and has saved if it saves at all.
    Interrupted,
    /// The `time_limit` has come, and it has saved if it saves at all.
    TimeLimit,
    /// The loss has risen over `early_stopping_factor` times its smallest.
    EarlyStop,
}
