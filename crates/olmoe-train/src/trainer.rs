//! The training loop: from a configuration to a trained model, with checkpoints from which an interrupted run resumes.
//!
//! | module | contents |
//! |---|---|
//! | `begin` | the start of a run: initial weights, its own newest checkpoint, or `load_path` |
//! | `decisions` | what is due after a step, and whether the run ends |
//! | `event` | the events that a run reports |
//! | `task` | what one kind of training has to itself |
//! | `pretraining` | pretraining as such a task |
//! | `data` | the data of a configuration |
//! | `record` | what a checkpoint was trained on |
//! | `step` | one step: micro-batches forward and back, then the update |
//! | `metrics` | the metrics of a step |
//! | `evaluation` | perplexity on held-out texts |
//! | `downstream` | tasks with answers |
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
mod downstream;
mod error;
mod evaluation;
mod event;
mod folder;
mod indices;
mod metrics;
mod pretraining;
mod record;
mod samples;
mod step;
mod task;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use olmoe_checkpoint::disk::{Disk, LocalDisk};
use olmoe_model::model::{Activations, Gradients, Held, Model};

use crate::config::{TrainConfig, TrainConfigError};
use crate::optimizer::{Optimizer, Step};
use crate::plan::{Plan, too_little_memory};
use crate::state::TrainerState;
use decisions::{Due, Moment, Situation};
use folder::CheckpointContents;
use indices::Indices;
use pretraining::Pretraining;

pub use error::TrainError;
pub use event::{Event, Outcome};
pub use folder::{CONFIG_FILE, LOCK_FILE};
pub use step::StepReport;

pub(crate) use begin::Beginning;
pub(crate) use folder::{RunFolder, SavedWeights, saves};
pub(crate) use metrics::Speed;
pub(crate) use samples::Samples;
pub(crate) use step::check_loss;
pub(crate) use task::{DataPosition, Evaluation, Pass, Task};

/// The instances of a configuration's data, which is opened and closed again.
///
/// # Errors
/// Data that is not there or makes no data set.
pub fn instances(config: &TrainConfig) -> Result<u64, TrainError> {
    config.check_start()?;
    Ok(data::open(&config.data, config.data.files(), &config.model)?.len().into())
}

/// A run of one kind of training; [`Trainer`] alone is pretraining.
pub struct Trainer<D: Disk = LocalDisk, T: Task = Pretraining> {
    config: TrainConfig,
    task: T,
    /// Shared with the engine that writes samples, while it does.
    model: Arc<Model>,
    gradients: Gradients,
    optimizer: Optimizer,
    activations: Activations,
    state: TrainerState,
    samples: Option<Samples>,
    /// The step of the newest samples.
    last_sampled: Option<u64>,
    folder: RunFolder<D>,
    speed: Speed,
    /// Whether it began from a checkpoint.
    loaded: bool,
    last_saved: Option<u64>,
}

/// What a run begins with.
pub(crate) struct Start<D: Disk, T: Task> {
    pub(crate) config: TrainConfig,
    pub(crate) task: T,
    pub(crate) model: Arc<Model>,
    pub(crate) optimizer: Optimizer,
    pub(crate) activations: Activations,
    pub(crate) samples: Option<Samples>,
    pub(crate) folder: RunFolder<D>,
    pub(crate) beginning: Beginning,
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
        let task = Pretraining::open(&config, on)?;
        let samples = Samples::open(&config)?;
        let folder = RunFolder::open(&config, disk)?;
        let beginning = Beginning::find(&config, &folder, task.position(), on)?;
        let plan = Plan::new(&config, &beginning.state, task.instances())?;
        if let Some(available) = too_little_memory(plan.memory) {
            return Err(TrainError::Memory { parameters: plan.parameters.total, needed: plan.memory, available });
        }
        let mut model = Arc::new(Model::new(config.model.clone(), precision, Held::Trained)?);
        samples.iter().try_for_each(|samples| samples.check(&model))?;
        let mut optimizer = Optimizer::new(config.optimizer.clone(), &model);
        beginning.load(&config, unshared(&mut model), &mut optimizer, on)?;
        beginning.claim(&config, &folder, on)?;
        if saves(&config) && plan.steps > 0 {
            folder.check_space(beginning.state.step, plan.checkpoint)?;
        }
        let yaml = config.to_yaml()?;
        folder.write(CONFIG_FILE, |out| out.write_all(yaml.as_bytes()))?;
        let task = task.with_schedule(beginning.schedule(&config));
        let activations = Activations::new(config.keep());
        Ok(Trainer::start(Start { config, task, model, optimizer, activations, samples, folder, beginning }))
    }

    /// What is left to do.
    ///
    /// # Errors
    /// More parameters than any model has.
    pub fn plan(&self) -> Result<Plan, TrainError> {
        Ok(Plan::new(&self.config, &self.state, self.task.instances())?)
    }
}

impl<D: Disk, T: Task> Trainer<D, T> {
    /// A run that is ready.
    pub(crate) fn start(start: Start<D, T>) -> Trainer<D, T> {
        let Start { config, task, model, optimizer, activations, samples, folder, beginning } = start;
        Trainer {
            gradients: model.gradients(),
            activations,
            state: beginning.state,
            speed: Speed::new(&config),
            loaded: beginning.path().is_some(),
            last_saved: beginning.goes_on.then_some(beginning.state.step),
            optimizer,
            model,
            task,
            samples,
            last_sampled: None,
            folder,
            config,
        }
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

    /// What this kind of training has to itself.
    pub fn task(&self) -> &T {
        &self.task
    }

    /// The step up to which the samples of an earlier part of this run are there; those of later steps are (still, or
    /// again) to come.
    ///
    /// # Errors
    /// More parameters than any model has.
    pub fn sampled_up_to(&self) -> Result<u64, TrainError> {
        let step = self.state.step;
        let over = self.task.steps_left(&self.config, &self.state)? == 0;
        let again = decisions::samples_are_due(&self.config, step) || over;
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
        let batches_per_epoch = self.task.batches_per_epoch(&self.config);
        let at = self.state.progress(batches_per_epoch);
        let (last_step, epochs) = (self.config.stop_step(&at), self.config.max_epochs(&at));
        let mut indices = match self.config.save_data_indices && self.state.step < last_step {
            true => Some(Indices::open(self.folder.disk(), self.folder.path(), self.state.step)?),
            false => None,
        };
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
                given_up: self.has_given_up(),
                unevaluated: self.task.lacks_evaluation(&self.config, &self.state, last_step),
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
                None if !whole || self.has_given_up() => continue,
                None => {}
            }
            if let Some(batch) = self.task.next_batch(&self.config, &mut self.state, epochs, &self.folder)? {
                let report = self.step(&batch, batches_per_epoch)?;
                if let Some(indices) = &mut indices {
                    indices.record(self.folder.disk(), report.step, T::rows(&batch))?;
                }
                self.log(&report, on);
                moment = Moment::Step(report.cross_entropy);
            }
        }
    }

    /// Whether the evaluations have not improved for too long.
    fn has_given_up(&self) -> bool {
        let worse = self.state.evaluation.map_or(0, |evaluation| evaluation.worse);
        self.task.patience().is_some_and(|patience| worse >= patience)
    }

    /// Takes a training step with one batch. After an error, weights, state and gradients are unchanged, so that
    /// another batch can follow.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`], ids that the model has no rows for.
    pub fn step(&mut self, batch: &T::Batch, batches_per_epoch: u64) -> Result<StepReport, TrainError> {
        let learned = self.learn(batch, batches_per_epoch);
        if learned.is_err() {
            // Micro-batches before the failed one have accumulated gradients.
            self.gradients.clear();
        }
        learned
    }

    fn learn(&mut self, batch: &T::Batch, batches_per_epoch: u64) -> Result<StepReport, TrainError> {
        let started = Instant::now();
        let config = &self.config;
        let (examples, tokens) = self.task.counts(config, batch);
        let mut state = self.state;
        state.count(examples, tokens);
        let mut report = StepReport { step: state.step, epoch: state.epoch, tokens, ..StepReport::default() };
        let (learning_rate, clip) = self.task.rate(config, &self.state, &state, batches_per_epoch);
        let (model, activations) = (unshared(&mut self.model), &mut self.activations);
        let (gradients, state_after) = (&mut self.gradients, &mut state);
        let pass = Pass { config, model, activations, gradients, state: state_after, report: &mut report };
        self.task.learn(batch, pass)?;
        let step = Step { number: state.step, learning_rate, clip, record: config.records_metrics(state.step) };
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
        let parameters = self.optimizer.metrics();
        let metrics = self.task.metrics(&self.config, report, &self.state, &self.speed, parameters);
        on(Event::Step(report, &metrics));
    }

    fn save(&mut self, on: &mut dyn FnMut(Event<'_>)) -> Result<(), TrainError> {
        let (state, task) = (&self.state, &self.task);
        let contents = CheckpointContents {
            weights: task.saved(&self.model),
            model_config: task.model_config(&self.model),
            files: task.files(&self.config)?,
            position: task.position(),
            best: state.evaluation.filter(|_| task.keeps_best()).map(|evaluation| evaluation.best_step),
        };
        let (saved, removed) = self.folder.save(&self.config, state, &self.model, &self.optimizer, contents)?;
        self.last_saved = Some(saved.step);
        if let Some(path) = &saved.set_aside {
            on(Event::Notice(&format!("a damaged checkpoint of this step is now {}", path.display())));
        }
        on(Event::Saved(&saved, &removed));
        Ok(())
    }

    /// Whether all evaluations came to their end.
    fn evaluate(&mut self, interrupt: &AtomicBool, on: &mut dyn FnMut(Event<'_>)) -> Result<bool, TrainError> {
        let found = self.task.evaluate(&self.config, &mut self.model, &self.state, interrupt)?;
        if !found.metrics.is_empty() {
            on(Event::Evaluated(self.state.step, &found.metrics));
        }
        if let Some(loss) = found.loss.filter(|_| found.whole) {
            let best = self.state.evaluated(loss);
            if best && self.task.keeps_best() && saves(&self.config) && self.last_saved != Some(self.state.step) {
                self.save(on)?;
            }
        }
        Ok(found.whole)
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
pub(crate) fn unshared(model: &mut Arc<Model>) -> &mut Model {
    Arc::get_mut(model).expect("the engine of the samples is dropped when they are written")
}
