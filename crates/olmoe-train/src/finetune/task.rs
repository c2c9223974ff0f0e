//! Fine-tuning as a task of the trainer's loop.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use olmoe_checkpoint::disk::Disk;
use olmoe_data::instruct::Part;
use olmoe_model::config::ModelConfig;
use olmoe_model::model::Model;

use super::dpo::Dpo;
use super::examples::UnitOrder;
use super::kto::Kto;
use super::plan::MemoryPlan;
use super::routing::Drift;
use super::saved::{FINETUNE_FILE, FinetuneRecord};
use super::schedule::FinetuneSchedule;
use super::selection::Selection;
use super::settings::{FinetuneSettings, RunLength};
use super::sft::Sft;
use super::stack::StepNoise;
use crate::config::TrainConfig;
use crate::loss::neftune_amplitude;
use crate::metrics::{EXPERT_LOAD, TOKENS_PER_SECOND, TOTAL_TOKENS};
use crate::optimizer::Clip;
use crate::optimizer::metrics::Metrics;
use crate::state::TrainerState;
use crate::trainer::{
    CONFIG_FILE, Evaluation, Pass, RunFolder, SavedWeights, Speed, StepReport, Task, TrainError, unshared,
};

/// Examples and how they are learned.
pub(super) enum Learner {
    /// Conversations.
    Sft(Sft),
    /// Pairs.
    Dpo(Dpo),
    /// Labelled answers.
    Kto(Kto),
}

/// Fine-tuning, as a task of [`Trainer`](crate::trainer::Trainer).
pub struct Finetuning {
    pub(super) settings: FinetuneSettings,
    pub(super) learner: Learner,
    pub(super) evaluation: Option<Learner>,
    pub(super) order: UnitOrder,
    /// Tokens of each row of the training data.
    pub(super) lengths: Vec<usize>,
    /// Tokens of the longest sequence of each row.
    pub(super) longest: Vec<usize>,
    /// Units of an epoch.
    pub(super) units: u64,
    /// The units of the present epoch.
    pub(super) epoch: Option<(u64, Vec<Vec<Part>>)>,
    /// Steps of the run.
    pub(super) steps: u64,
    pub(super) schedule: FinetuneSchedule,
    pub(super) selection: Selection,
    pub(super) drift: Option<Drift>,
    pub(super) record: FinetuneRecord,
    pub(super) plan: MemoryPlan,
    /// The configuration of the model that the run began with.
    pub(super) base_config: ModelConfig,
}

/// The units of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitBatch {
    /// Each is of parts of rows.
    units: Vec<Vec<Part>>,
    /// The rows, in order.
    rows: Vec<u32>,
}

/// Batches of an epoch of so many units.
pub(super) fn batches(settings: &FinetuneSettings, units: u64) -> u64 {
    let size = settings.batch_size.max(1) as u64;
    if settings.drop_last { units / size } else { units.div_ceil(size) }
}

/// Steps of a run over epochs of so many units.
pub(super) fn steps(settings: &FinetuneSettings, units: u64) -> u64 {
    match settings.length {
        RunLength::Steps(steps) => steps,
        // Less than a millionth of a step is an error of rounding.
        RunLength::Epochs(epochs) => (epochs * batches(settings, units) as f64 - 1e-6).ceil().max(0.0) as u64,
    }
}

impl Finetuning {
    /// The settings.
    pub fn settings(&self) -> &FinetuneSettings {
        &self.settings
    }

    /// Which parameters are trained.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// What the run began with and what it trains, as checkpoints have it.
    pub fn record(&self) -> &FinetuneRecord {
        &self.record
    }

    /// The memory of the run, and what it trains.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Steps of the run.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The randomness of a step; none if nothing is random.
    fn noise(&self, batch: &UnitBatch, model: &Model, step: u64) -> Option<StepNoise> {
        // NEFTune's length is that of padded rows: of packed sequences, or of the longest row of the step.
        let longest = || batch.rows.iter().map(|row| self.longest[*row as usize]).max().unwrap_or(0);
        let length = self.settings.packing.map_or_else(longest, |packing| packing.length);
        let alpha = self.settings.neftune_alpha.unwrap_or(0.0);
        let amplitude = neftune_amplitude(alpha, length, model.config().d_model) as f32;
        let random = amplitude > 0.0 || model.adapters().iter().any(|adapter| adapter.dropout > 0.0);
        random.then_some(StepNoise { seed: self.settings.seed, step, amplitude })
    }

    fn tokens(batch: &UnitBatch) -> usize {
        batch.units.iter().flatten().map(|part| part.length).sum()
    }
}

impl Task for Finetuning {
    type Batch = UnitBatch;
    type Position = UnitOrder;

    fn position(&self) -> &UnitOrder {
        &self.order
    }

    fn batches_per_epoch(&self, _config: &TrainConfig) -> u64 {
        batches(&self.settings, self.units)
    }

    fn steps_left(&self, _config: &TrainConfig, state: &TrainerState) -> Result<u64, TrainError> {
        Ok(self.steps.saturating_sub(state.step))
    }

    fn next_batch<D: Disk>(
        &mut self,
        _config: &TrainConfig,
        state: &mut TrainerState,
        epochs: u64,
        _folder: &RunFolder<D>,
    ) -> Result<Option<UnitBatch>, TrainError> {
        while state.epoch < epochs {
            if self.epoch.as_ref().is_none_or(|(epoch, _)| *epoch != state.epoch) {
                self.epoch = Some((state.epoch, self.order.units(&self.lengths, state.epoch)?));
            }
            let units = self.epoch.as_ref().map_or(&[][..], |(_, units)| &units[..]);
            let seen = usize::try_from(state.examples_seen_this_epoch).unwrap_or(usize::MAX).min(units.len());
            let left = &units[seen..];
            let count = left.len().min(self.settings.batch_size);
            if count > 0 && (count == self.settings.batch_size || !self.settings.drop_last) {
                let units = left[..count].to_vec();
                let rows = units.iter().flatten().map(|part| part.row as u32).collect();
                return Ok(Some(UnitBatch { units, rows }));
            }
            state.next_epoch();
        }
        Ok(None)
    }

    fn rows(batch: &UnitBatch) -> &[u32] {
        &batch.rows
    }

    fn counts(&self, _config: &TrainConfig, batch: &UnitBatch) -> (u64, u64) {
        (batch.units.len() as u64, Self::tokens(batch) as u64)
    }

    fn learn(&mut self, batch: &UnitBatch, pass: Pass<'_>) -> Result<(), TrainError> {
        let by = self.settings.micro_batch;
        let noise = self.noise(batch, pass.model, pass.state.step);
        match &self.learner {
            Learner::Sft(sft) => sft.learn(&batch.units, by, noise.as_ref(), pass),
            Learner::Dpo(dpo) => dpo.learn(&batch.rows, by, noise.as_ref(), pass),
            Learner::Kto(kto) => kto.learn(&batch.rows, by, noise.as_ref(), pass),
        }
    }

    fn rate(&self, _config: &TrainConfig, before: &TrainerState, _after: &TrainerState, _batches: u64) -> (f64, Clip) {
        let clip = self.settings.max_grad_norm.map_or(Clip::Off, Clip::Norm);
        (self.schedule.rate_after(before.step), clip)
    }

    fn metrics(
        &self,
        config: &TrainConfig,
        report: &StepReport,
        state: &TrainerState,
        speed: &Speed,
        parameters: Option<&Metrics>,
    ) -> Vec<(String, f64)> {
        if !report.step.is_multiple_of(self.settings.log_interval) && report.step < self.steps {
            return Vec::new();
        }
        let mut all: Vec<(String, f64)> = Vec::new();
        let mut add = |name: &str, value: f64| all.push((name.to_owned(), value));
        add("loss", report.total_loss());
        add("grad_norm", report.grad_norm);
        add("learning_rate", report.learning_rate);
        add("epoch", state.epoch as f64 + state.examples_seen_this_epoch as f64 / self.units.max(1) as f64);
        add("num_tokens", state.tokens_seen as f64);
        report.named.iter().filter(|(name, _)| name != "loss").for_each(|(name, value)| add(name, *value));
        let weight = f64::from(config.model.auxiliary.load_balancing_weight);
        if weight != 0.0 && !report.loads.is_empty() {
            add("aux_loss", report.load_balancing / weight);
        }
        if config.model.auxiliary.z_weight != 0.0 && !report.loads.is_empty() {
            add("router_z_loss", report.router_z / f64::from(config.model.auxiliary.z_weight));
        }
        report.imbalance().into_iter().for_each(|load| add(EXPERT_LOAD, load));
        add(TOTAL_TOKENS, state.tokens_seen as f64);
        add(TOKENS_PER_SECOND, speed.rates().0);
        all.extend(parameters.iter().flat_map(|metrics| metrics.named()));
        all
    }

    fn evaluate(
        &mut self,
        _config: &TrainConfig,
        model: &mut Arc<Model>,
        state: &TrainerState,
        interrupt: &AtomicBool,
    ) -> Result<Evaluation, TrainError> {
        let by = self.settings.evaluation.micro_batch;
        let mut found = match &self.evaluation {
            None => Evaluation { whole: true, ..Evaluation::default() },
            Some(Learner::Sft(sft)) => sft.evaluate(model, by, interrupt)?,
            Some(Learner::Dpo(dpo)) => dpo.evaluate(unshared(model), by, interrupt)?,
            Some(Learner::Kto(kto)) => {
                kto.evaluate(unshared(model), by, state.mean_reward.map_or(0.0, |mean| mean.mean), interrupt)?
            }
        };
        if let (Some(drift), true) = (&mut self.drift, found.whole) {
            found.metrics.extend(drift.metrics(model)?);
        }
        Ok(found)
    }

    fn lacks_evaluation(&self, _config: &TrainConfig, state: &TrainerState, last_step: u64) -> bool {
        let settings = &self.settings.evaluation;
        let due = match state.step {
            0 => settings.at_start,
            step => step >= last_step || settings.interval.is_some_and(|interval| step.is_multiple_of(interval)),
        };
        self.evaluation.is_some() && due && state.evaluation.is_none_or(|evaluation| evaluation.step != state.step)
    }

    fn patience(&self) -> Option<u64> {
        self.settings.evaluation.patience
    }

    fn keeps_best(&self) -> bool {
        self.settings.evaluation.keep_best
    }

    fn saved(&self, model: &Model) -> SavedWeights {
        let ids = (0..model.parameters().len()).filter(|id| self.selection.is_trained(*id));
        SavedWeights { group: self.record.group(), ids: ids.collect() }
    }

    fn model_config<'m>(&'m self, _model: &'m Model) -> &'m ModelConfig {
        &self.base_config
    }

    fn files(&self, _config: &TrainConfig) -> Result<Vec<(String, Vec<u8>)>, TrainError> {
        let mut files = Vec::new();
        if !self.settings.configuration.is_empty() {
            files.push((CONFIG_FILE.to_owned(), self.settings.configuration.clone().into_bytes()));
        }
        let record = serde_json::to_string_pretty(&self.record);
        let record = record.map_err(|source| TrainError::TrainerState { path: FINETUNE_FILE.into(), source })?;
        files.push((FINETUNE_FILE.to_owned(), (record + "\n").into_bytes()));
        Ok(files)
    }
}
