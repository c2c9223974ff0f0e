//! Pretraining: token files in the order of OLMo's trainer, the loss of language modelling, perplexity on held-out texts.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use olmoe_checkpoint::disk::Disk;
use olmoe_checkpoint::open::MODEL_GROUP;
use olmoe_data::pretrain::{Batch, DataSet, GLOBAL_INDICES, Loader, LoaderSettings};
use olmoe_model::model::Model;

use super::data;
use super::downstream::Downstream;
use super::error::TrainError;
use super::evaluation::{self, Evaluator};
use super::event::Event;
use super::folder::{CONFIG_FILE, RunFolder, SavedWeights};
use super::metrics::{self, Speed};
use super::record::DataRecord;
use super::step::{StepReport, passes};
use super::task::{Evaluation, Pass, Task};
use crate::config::{TrainConfig, count};
use crate::optimizer::Clip;
use crate::optimizer::metrics::Metrics;
use crate::plan::{Plan, olmo_flops_per_token};
use crate::schedule::Schedule;
use crate::state::TrainerState;

/// Pretraining.
pub struct Pretraining {
    data: Arc<DataSet>,
    /// The present pass over the data.
    loader: Option<Loader>,
    record: DataRecord,
    evaluators: Vec<Evaluator>,
    downstream: Option<Downstream>,
    schedule: Schedule,
    flops_per_token: f64,
}

impl Pretraining {
    /// Opens the data of a configuration.
    pub(super) fn open(config: &TrainConfig, on: &mut dyn FnMut(Event<'_>)) -> Result<Pretraining, TrainError> {
        let data = data::open(&config.data, config.data.files(), &config.model)?;
        let (evaluators, others) = evaluation::evaluators(config)?;
        let downstream = Downstream::open(config)?;
        if !others.is_empty() && downstream.is_none() {
            let text = format!(
                "evaluators of the type downstream are left out, since evaluation_data does not say where their data is: {}",
                others.join(", ")
            );
            on(Event::Notice(&text));
        }
        let instances = u64::from(data.len());
        if instances < config.global_train_batch_size {
            let length = config.model.max_sequence_length;
            return Err(TrainError::TooLittleData { instances, length, batch: config.global_train_batch_size });
        }
        Ok(Pretraining {
            record: DataRecord::of(config, &data)?,
            data,
            loader: None,
            evaluators,
            downstream,
            schedule: Schedule::new(config),
            flops_per_token: olmo_flops_per_token(&config.model, config.model.max_sequence_length)?,
        })
    }

    /// The same with the schedule of a run that goes on.
    pub(super) fn with_schedule(self, schedule: Schedule) -> Pretraining {
        Pretraining { schedule, ..self }
    }

    /// Sequences of the data.
    pub(super) fn instances(&self) -> u64 {
        self.data.len().into()
    }
}

impl Task for Pretraining {
    type Batch = Batch;
    type Position = DataRecord;

    fn position(&self) -> &DataRecord {
        &self.record
    }

    fn batches_per_epoch(&self, config: &TrainConfig) -> u64 {
        self.instances() / config.global_train_batch_size
    }

    fn steps_left(&self, config: &TrainConfig, state: &TrainerState) -> Result<u64, TrainError> {
        Ok(Plan::new(config, state, self.instances())?.steps)
    }

    fn next_batch<D: Disk>(
        &mut self,
        config: &TrainConfig,
        state: &mut TrainerState,
        epochs: u64,
        folder: &RunFolder<D>,
    ) -> Result<Option<Batch>, TrainError> {
        while state.epoch < epochs {
            let open = match self.loader.take() {
                Some(open) => open,
                None => {
                    let order = data::order(config, &self.data, state.epoch)?;
                    folder.write(Path::new("train_data").join(GLOBAL_INDICES), |out| {
                        order.pieces().try_for_each(|piece| out.write_all(&piece))
                    })?;
                    let settings = LoaderSettings {
                        batch_size: count(config.global_train_batch_size),
                        start: state.examples_seen_this_epoch,
                        drop_last: true,
                        ..LoaderSettings::default()
                    };
                    Loader::new(self.data.clone(), order, settings)?
                }
            };
            if let Some(batch) = self.loader.insert(open).next() {
                return Ok(Some(batch?));
            }
            self.loader = None;
            state.next_epoch();
        }
        Ok(None)
    }

    fn rows(batch: &Batch) -> &[u32] {
        &batch.indices
    }

    fn counts(&self, config: &TrainConfig, _batch: &Batch) -> (u64, u64) {
        (config.global_train_batch_size, config.tokens_per_batch())
    }

    fn learn(&mut self, batch: &Batch, pass: Pass<'_>) -> Result<(), TrainError> {
        let Pass { config, model, activations, gradients, report, .. } = pass;
        passes(config, model, batch, activations, gradients, report)
    }

    fn rate(
        &self,
        config: &TrainConfig,
        before: &TrainerState,
        after: &TrainerState,
        batches_per_epoch: u64,
    ) -> (f64, Clip) {
        let [before, at] = [before, after].map(|state| state.progress(batches_per_epoch));
        let rate = self.schedule.learning_rate(config.schedule_position(&at), config.schedule_end(&at));
        (rate, self.schedule.clip(config.schedule_position(&before)))
    }

    fn metrics(
        &self,
        config: &TrainConfig,
        report: &StepReport,
        state: &TrainerState,
        speed: &Speed,
        parameters: Option<&Metrics>,
    ) -> Vec<(String, f64)> {
        let interval = config.wandb.as_ref().map_or(1, |wandb| wandb.log_interval);
        if report.step.is_multiple_of(interval) {
            metrics::named(config, report, state.tokens_seen, self.flops_per_token, speed, parameters)
        } else {
            Vec::new()
        }
    }

    fn evaluate(
        &mut self,
        _config: &TrainConfig,
        model: &mut Arc<Model>,
        _state: &TrainerState,
        interrupt: &AtomicBool,
    ) -> Result<Evaluation, TrainError> {
        let (mut metrics, mut whole) = evaluation::evaluate(&self.evaluators, model, interrupt)?;
        if let Some(downstream) = self.downstream.as_ref().filter(|_| whole) {
            let (more, all) = downstream.evaluate(model, interrupt)?;
            metrics.extend(more);
            whole = all;
        }
        Ok(Evaluation { metrics, whole, loss: None })
    }

    fn saved(&self, model: &Model) -> SavedWeights {
        SavedWeights { group: MODEL_GROUP, ids: (0..model.parameters().len()).collect() }
    }

    fn files(&self, config: &TrainConfig) -> Result<Vec<(String, Vec<u8>)>, TrainError> {
        Ok(vec![(CONFIG_FILE.to_owned(), config.to_yaml()?.into_bytes())])
    }
}
