//! The events of a run, and its outcome.

use olmoe_checkpoint::save::SavedCheckpoint;

use super::step::StepReport;
use crate::metrics::Sample;

/// An event of a run, reported as it happens.
#[derive(Debug)]
pub enum Event<'a> {
    /// A notice for the user.
    Notice(&'a str),
    /// A step, with its metrics if they are due (`wandb.log_interval`), else without metrics.
    Step(&'a StepReport, &'a [(String, f64)]),
    /// Evaluations after a step, with their metrics.
    Evaluated(u64, &'a [(String, f64)]),
    /// The texts that the model generated from the prompts of `samples`, in their order.
    Sampled(&'a [Sample]),
    /// A checkpoint was saved, and those of the given steps were removed.
    Saved(&'a SavedCheckpoint, &'a [u64]),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The run is complete.
    Finished,
    /// The run was interrupted, and has saved a checkpoint unless saving is off.
    Interrupted,
    /// The `time_limit` was reached, and the run has saved a checkpoint unless saving is off.
    TimeLimit,
    /// The loss has exceeded `early_stopping_factor` times its smallest value.
    EarlyStop,
}
