//! What one kind of training has to itself: its data, what a step learns, and what an evaluation measures. The loop around
//! it, its checkpoints and its end are the same for all.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use olmoe_checkpoint::disk::Disk;
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Activations, Gradients, Model};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::TrainError;
use super::folder::{RunFolder, SavedWeights};
use super::metrics::Speed;
use super::step::StepReport;
use crate::config::TrainConfig;
use crate::optimizer::Clip;
use crate::optimizer::metrics::Metrics;
use crate::state::TrainerState;

/// What the position in the data depends on: a checkpoint carries it, and a run goes on only where it is the same.
pub trait DataPosition: Serialize + DeserializeOwned {
    /// What there is to do where it differs.
    const ADVICE: &str;

    /// What differs from the present one, each with both values.
    fn differences(&self, now: &Self) -> Vec<String>;
}

/// A forward and backward pass over a step's examples: what it reads and what it changes.
pub struct Pass<'a> {
    /// The configuration of the run.
    pub config: &'a TrainConfig,
    /// The model. Its weights stay as they are.
    pub model: &'a mut Model,
    /// Room for what forward passes keep.
    pub activations: &'a mut Activations,
    /// The gradients, to be added to.
    pub gradients: &'a mut Gradients,
    /// The state of the run after the step.
    pub state: &'a mut TrainerState,
    /// What the step reports.
    pub report: &'a mut StepReport,
}

/// The result of an evaluation.
#[derive(Debug, Default)]
pub struct Evaluation {
    /// Names and values.
    pub metrics: Vec<(String, f64)>,
    /// Whether it came to its end.
    pub whole: bool,
    /// The loss by which a run is judged, where it is.
    pub loss: Option<f64>,
}

/// What one kind of training has to itself.
pub trait Task {
    /// The examples of a step.
    type Batch;
    /// What the position in the data depends on.
    type Position: DataPosition;

    /// What the position in the data depends on now.
    fn position(&self) -> &Self::Position;

    /// Batches of one pass over the data.
    fn batches_per_epoch(&self, config: &TrainConfig) -> u64;

    /// Steps that are left of the run.
    ///
    /// # Errors
    /// More parameters than any model has.
    fn steps_left(&self, config: &TrainConfig, state: &TrainerState) -> Result<u64, TrainError>;

    /// The next batch, from the next pass over the data if the present one has ended; `None` after the last pass.
    ///
    /// # Errors
    /// Data that cannot be read.
    fn next_batch<D: Disk>(
        &mut self,
        config: &TrainConfig,
        state: &mut TrainerState,
        epochs: u64,
        folder: &RunFolder<D>,
    ) -> Result<Option<Self::Batch>, TrainError>;

    /// The rows of the data that a batch has.
    fn rows(batch: &Self::Batch) -> &[u32];

    /// Examples, as the position counts them, and tokens of a batch.
    fn counts(&self, config: &TrainConfig, batch: &Self::Batch) -> (u64, u64);

    /// Forward and backward passes of a whole batch.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`], ids that the model has no rows for.
    fn learn(&mut self, batch: &Self::Batch, pass: Pass<'_>) -> Result<(), TrainError>;

    /// The learning rate and the bound on the gradients of a step, from the states before and after it.
    fn rate(
        &self,
        config: &TrainConfig,
        before: &TrainerState,
        after: &TrainerState,
        batches_per_epoch: u64,
    ) -> (f64, Clip);

    /// The metrics of a step; none where they are not due.
    fn metrics(
        &self,
        config: &TrainConfig,
        report: &StepReport,
        state: &TrainerState,
        speed: &Speed,
        parameters: Option<&Metrics>,
    ) -> Vec<(String, f64)>;

    /// Measures the model. It ends early when `interrupt` is set.
    ///
    /// # Errors
    /// Data that cannot be read.
    fn evaluate(
        &mut self,
        config: &TrainConfig,
        model: &mut Arc<Model>,
        state: &TrainerState,
        interrupt: &AtomicBool,
    ) -> Result<Evaluation, TrainError>;

    /// Whether an evaluation that was due at this step has not come.
    fn lacks_evaluation(&self, _config: &TrainConfig, _state: &TrainerState, _last_step: u64) -> bool {
        false
    }

    /// Evaluations without a smaller loss after which the run ends.
    fn patience(&self) -> Option<u64> {
        None
    }

    /// Whether the checkpoint with the smallest loss is kept.
    fn keeps_best(&self) -> bool {
        false
    }

    /// The parameters that a checkpoint has.
    fn saved(&self, model: &Model) -> SavedWeights;

    /// The configuration of the model that a checkpoint has.
    fn model_config<'m>(&'m self, model: &'m Model) -> &'m ModelConfig {
        model.config()
    }

    /// The small files of a checkpoint beside the configuration of the model and what the position depends on.
    ///
    /// # Errors
    /// A configuration that cannot be written.
    fn files(&self, config: &TrainConfig) -> Result<Vec<(String, Vec<u8>)>, TrainError>;
}
