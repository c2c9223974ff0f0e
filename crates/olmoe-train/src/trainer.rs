//! The training loop: from a configuration to a trained model, with checkpoints from which an interrupted run resumes.
//!
//! | module | contents |
//! |---|---|
//! | `begin` | the start of a run: initial weights, its own newest checkpoint, or `load_path` |
//! | `decisions` | what is due after a step, and whether the run ends |
//! | `event` | the events that a run reports |
//! | `data` | the data of a configuration |
//! | `record` | what a checkpoint was trained on |
//! | `step` | one step: micro-batches forward and back, then the update |
//! | `metrics` | the metrics of a step |
//! | `evaluation` | perplexity on held-out texts |
//! | `samples` | texts that the model generates during training |
//! | `indices` | the instances of each step |
//! | `folder` | the folder of the run: its lock, when to save, which checkpoints to keep |
//!
//! A step depends on the weights, the state of the optimizer, and the position in the data, which are all in a
//! checkpoint. So a resumed run is the uninterrupted run, bit for bit, on any number of threads.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//!
//! use olmoe_train::config::TrainConfig;
//! use olmoe_train::trainer::{Event, Outcome, Trainer};
//!
//! let overrides = ["--run_name=first", "--save_folder=runs/first", "--try_load_latest_save"];
//! let config = TrainConfig::read("configs/tiny-train.yml", &overrides)?.config;
//! let mut log = |event: Event<'_>| {
//!     if let Event::Step(report, _) = event {
//!         eprintln!("step {}: loss {:.4}", report.step, report.cross_entropy);
//!     }
//! };
//! let mut trainer = Trainer::new(config, &mut log)?;
//! // Set it, from a handler of signals, say, and the run saves and returns.
//! let interrupt = AtomicBool::new(false);
//! assert_eq!(trainer.run(&interrupt, &mut log)?, Outcome::Finished);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod begin;
mod data;
mod decisions;
mod error;
mod evaluation;
mod event;
mod folder;
mod indices;
mod metrics;
mod record;
mod samples;
mod step;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use olmoe_checkpoint::disk::{Disk, LocalDisk};
use olmoe_data::pretrain::{Batch, DataSet, GLOBAL_INDICES, Loader, LoaderSettings};
use olmoe_model::model::{Activations, Gradients, Held, Model};

use crate::config::{TrainConfig, TrainConfigError, count};
use crate::optimizer::{Optimizer, Step};
use crate::plan::{Plan, olmo_flops_per_token, too_little_memory};
use crate::schedule::Schedule;
use crate::state::TrainerState;
use begin::Beginning;
use decisions::{Due, Moment, Situation};
use evaluation::Evaluator;
use folder::RunFolder;
use indices::Indices;
use metrics::Speed;
use record::DataRecord;
use samples::Samples;

pub use error::TrainError;
pub use event::{Event, Outcome};
pub use folder::{CONFIG_FILE, LOCK_FILE};
pub use step::StepReport;

/// The instances of a configuration's data, which is opened and closed again.
///
/// # Errors
/// Data that is not there or makes no data set.
pub fn instances(config: &TrainConfig) -> Result<u64, TrainError> {
    config.check_start()?;
    Ok(data::open(&config.data, config.data.files(), &config.model)?.len().into())
}

/// A run.
pub struct Trainer<D: Disk = LocalDisk> {
    config: TrainConfig,
    /// Shared with the engine that writes samples, while it does.
    model: Arc<Model>,
    gradients: Gradients,
    optimizer: Optimizer,
    activations: Activations,
    schedule: Schedule,
    state: TrainerState,
    data: Arc<DataSet>,
    record: DataRecord,
    evaluators: Vec<Evaluator>,
    samples: Option<Samples>,
    /// The step of the newest samples.
    last_sampled: Option<u64>,
    folder: RunFolder<D>,
    speed: Speed,
    flops_per_token: f64,
    /// Whether it began from a checkpoint.
    loaded: bool,
    last_saved: Option<u64>,
}

impl Trainer {
    /// Makes a run ready: checks the configuration and the data, locks the folder, loads or draws the weights.
    ///
    /// # Errors
    /// Whatever keeps the run from its first step; nothing that was saved has changed.
    pub fn new(config: TrainConfig, on: &mut dyn FnMut(Event<'_>)) -> Result<Trainer, TrainError> {
        Self::on_disk(config, LocalDisk, on)
    }
}

impl<D: Disk> Trainer<D> {
    /// As [`new`](Trainer::new), with all files of the run on a disk of the caller's.
    ///
    /// # Errors
    /// As [`new`](Trainer::new).
    pub fn on_disk(config: TrainConfig, disk: D, on: &mut dyn FnMut(Event<'_>)) -> Result<Trainer<D>, TrainError> {
        config.check_start()?;
        let missing = TrainConfigError::Missing { path: "precision", advice: "set amp_bf16 or fp32" };
        let precision = config.precision().ok_or(missing)?;
        let data = data::open(&config.data, config.data.files(), &config.model)?;
        let samples = Samples::open(&config)?;
        let (evaluators, others) = evaluation::evaluators(&config)?;
        if !others.is_empty() {
            let text = format!("evaluators of the type downstream are left out: {}", others.join(", "));
            on(Event::Notice(&text));
        }
        let instances = u64::from(data.len());
        if instances < config.global_train_batch_size {
            let length = config.model.max_sequence_length;
            return Err(TrainError::TooLittleData { instances, length, batch: config.global_train_batch_size });
        }
        let folder = RunFolder::open(&config, disk)?;
        let record = DataRecord::of(&config, &data)?;
        let beginning = Beginning::find(&config, &folder, &record, on)?;
        let plan = Plan::new(&config, &beginning.state, instances)?;
        if let Some(available) = too_little_memory(plan.memory) {
            return Err(TrainError::Memory { parameters: plan.parameters.total, needed: plan.memory, available });
        }
        let mut model = Arc::new(Model::new(config.model.clone(), precision, Held::Trained)?);
        samples.iter().try_for_each(|samples| samples.check(&model))?;
        let mut optimizer = Optimizer::new(config.optimizer.clone(), &model);
        beginning.load(&config, unshared(&mut model), &mut optimizer, on)?;
        let moved = folder.claim(&config, beginning.path(), beginning.state.step, beginning.goes_on)?;
        for path in moved {
            on(Event::Notice(&format!("save_overwrite: a checkpoint of another run is now {}", path.display())));
        }
        if folder::saves(&config) && plan.steps > 0 {
            folder.check_space(beginning.state.step, plan.checkpoint)?;
        }
        let yaml = config.to_yaml()?;
        folder.write(CONFIG_FILE, |out| out.write_all(yaml.as_bytes()))?;
        Ok(Trainer {
            gradients: model.gradients(),
            activations: Activations::new(config.keep()),
            schedule: beginning.schedule(&config),
            state: beginning.state,
            flops_per_token: olmo_flops_per_token(&config.model, config.model.max_sequence_length)?,
            speed: Speed::new(&config),
            loaded: beginning.path().is_some(),
            last_saved: beginning.goes_on.then_some(beginning.state.step),
            optimizer,
            model,
            data,
            record,
            evaluators,
            samples,
            last_sampled: None,
            folder,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// How far it is.
    pub fn state(&self) -> &TrainerState {
        &self.state
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model as it is now, to be changed.
    pub fn model_mut(&mut self) -> &mut Model {
        unshared(&mut self.model)
    }

    /// What is left to do.
    ///
    /// # Errors
    /// More parameters than any model has.
    pub fn plan(&self) -> Result<Plan, TrainError> {
        Ok(Plan::new(&self.config, &self.state, self.data.len().into())?)
    }

    /// The step up to which the samples of an earlier part of this run are there; those of later steps are (still, or
    /// again) to come.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn sampled_up_to(&self) -> Result<u64, TrainError> {
        let step = self.state.step;
        let again = decisions::samples_are_due(&self.config, step) || self.plan()?.steps == 0;
        Ok(if again { step.saturating_sub(1) } else { step })
    }

    /// Trains to the end of the run, or until `interrupt` is set or the time limit is reached, and saves. `on` is
    /// called with every event.
    ///
    /// # Errors
    /// Data that cannot be read, a loss or a gradient that is NaN or infinite, a checkpoint that cannot be written.
    /// Existing checkpoints are not changed.
    pub fn run(&mut self, interrupt: &AtomicBool, on: &mut dyn FnMut(Event<'_>)) -> Result<Outcome, TrainError> {
        let began = Instant::now();
        let batches_per_epoch = u64::from(self.data.len()) / self.config.global_train_batch_size;
        let at = self.state.progress(batches_per_epoch);
        let (last_step, epochs) = (self.config.stop_step(&at), self.config.max_epochs(&at));
        let mut indices = match self.config.save_data_indices && self.state.step < last_step {
            true => Some(Indices::open(self.folder.disk(), self.folder.path(), self.state.step)?),
            false => None,
        };
        let mut loader = None;
        let mut moment = Moment::Start { loaded: self.loaded };
        loop {
            let now = Situation {
                moment,
                state: &self.state,
                last_step,
                epochs,
                // `interrupt` is read only here; evaluations and samples end early when it is set and return here.
                interrupted: interrupt.load(Ordering::Relaxed),
                seconds: began.elapsed().as_secs_f64(),
                saved: self.last_saved,
                sampled: self.last_sampled,
            };
            let end = decisions::end_reason(&self.config, &now);
            let Due { save, evaluate, sample } = decisions::due(&self.config, &now, end);
            moment = Moment::Between;
            if save {
                indices.iter().try_for_each(|indices| indices.sync(self.folder.disk()))?;
                self.save(on)?;
            }
            let whole = (!evaluate || self.evaluate(interrupt, on)?) && (!sample || self.sample(interrupt, on)?);
            match end {
                Some(end) if whole => return Ok(end),
                Some(_) => return Ok(Outcome::Interrupted),
                None if !whole => continue,
                None => {}
            }
            if let Some(batch) = self.next_batch(&mut loader, epochs)? {
                let report = self.step(&batch, batches_per_epoch)?;
                if let Some(indices) = &mut indices {
                    indices.record(self.folder.disk(), report.step, &batch.indices)?;
                }
                self.log(&report, on);
                moment = Moment::Step(report.cross_entropy);
            }
        }
    }

    /// The next batch, from the next pass over the data if the present one has ended; `None` after the last pass.
    fn next_batch(&mut self, loader: &mut Option<Loader>, epochs: u64) -> Result<Option<Batch>, TrainError> {
        while self.state.epoch < epochs {
            let open = match loader.take() {
                Some(open) => open,
                None => {
                    let order = data::order(&self.config, &self.data, self.state.epoch)?;
                    self.folder.write(Path::new("train_data").join(GLOBAL_INDICES), |out| {
                        order.pieces().try_for_each(|piece| out.write_all(&piece))
                    })?;
                    let settings = LoaderSettings {
                        batch_size: count(self.config.global_train_batch_size),
                        start: self.state.examples_seen_this_epoch,
                        drop_last: true,
                        ..LoaderSettings::default()
                    };
                    Loader::new(self.data.clone(), order, settings)?
                }
            };
            if let Some(batch) = loader.insert(open).next() {
                return Ok(Some(batch?));
            }
            *loader = None;
            self.state.next_epoch();
        }
        Ok(None)
    }

    /// Takes a training step with one batch. After an error, weights, state and gradients are unchanged, so that
    /// another batch can follow.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`], ids that the model has no rows for.
    pub fn step(&mut self, batch: &Batch, batches_per_epoch: u64) -> Result<StepReport, TrainError> {
        let learned = self.learn(batch, batches_per_epoch);
        if learned.is_err() {
            // Micro-batches before the failed one have accumulated gradients.
            self.gradients.clear();
        }
        learned
    }

    fn learn(&mut self, batch: &Batch, batches_per_epoch: u64) -> Result<StepReport, TrainError> {
        let started = Instant::now();
        let config = &self.config;
        let before = config.schedule_position(&self.state.progress(batches_per_epoch));
        let mut state = self.state;
        state.count_batch(config);
        let at = state.progress(batches_per_epoch);
        let mut report = StepReport {
            step: state.step,
            epoch: state.epoch,
            tokens: batch.ids.len() as u64,
            ..StepReport::default()
        };
        step::passes(config, &self.model, batch, &mut self.activations, &mut self.gradients, &mut report)?;
        let step = Step {
            number: state.step,
            learning_rate: self.schedule.learning_rate(config.schedule_position(&at), config.schedule_end(&at)),
            clip: self.schedule.clip(before),
            record: config.records_metrics(state.step),
        };
        let model = unshared(&mut self.model);
        step::update(&mut self.optimizer, model, &mut self.gradients, &step, &mut report)?;
        let least = state.min_train_loss.unwrap_or(f64::INFINITY);
        state.min_train_loss = Some(least.min(report.cross_entropy));
        self.state = state;
        report.seconds = started.elapsed().as_secs_f64();
        Ok(report)
    }

    fn log(&mut self, report: &StepReport, on: &mut dyn FnMut(Event<'_>)) {
        self.speed.add(report);
        let interval = self.config.wandb.as_ref().map_or(1, |wandb| wandb.log_interval);
        let metrics = if report.step.is_multiple_of(interval) {
            let (seen, parameters) = (self.state.tokens_seen, self.optimizer.metrics());
            metrics::named(&self.config, report, seen, self.flops_per_token, &self.speed, parameters)
        } else {
            Vec::new()
        };
        on(Event::Step(report, &metrics));
    }

    fn save(&mut self, on: &mut dyn FnMut(Event<'_>)) -> Result<(), TrainError> {
        let (saved, removed) =
            self.folder.save(&self.config, &self.state, &self.model, &self.optimizer, &self.record)?;
        self.last_saved = Some(saved.step);
        if let Some(path) = &saved.set_aside {
            on(Event::Notice(&format!("a damaged checkpoint of this step is now {}", path.display())));
        }
        on(Event::Saved(&saved, &removed));
        Ok(())
    }

    /// Whether all evaluators came to their end.
    fn evaluate(&self, interrupt: &AtomicBool, on: &mut dyn FnMut(Event<'_>)) -> Result<bool, TrainError> {
        let (metrics, whole) = evaluation::evaluate(&self.evaluators, &self.model, interrupt)?;
        if !metrics.is_empty() {
            on(Event::Evaluated(self.state.step, &metrics));
        }
        Ok(whole)
    }

    /// Writes the samples of the present step; whether they came to their end.
    fn sample(&mut self, interrupt: &AtomicBool, on: &mut dyn FnMut(Event<'_>)) -> Result<bool, TrainError> {
        let Some(samples) = &self.samples else { return Ok(true) };
        let Some(written) = samples.write(&self.model, self.state.step, interrupt)? else { return Ok(false) };
        self.last_sampled = Some(self.state.step);
        on(Event::Sampled(&written));
        Ok(true)
    }
}

/// The model, to be changed.
fn unshared(model: &mut Arc<Model>) -> &mut Model {
    Arc::get_mut(model).expect("the engine of the samples is dropped when they are written")
}
