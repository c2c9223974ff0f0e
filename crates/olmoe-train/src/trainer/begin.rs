//! The start of a run: initial weights, its own newest checkpoint, or `load_path`.

use std::path::{Path, PathBuf};

use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::disk::Disk;
use olmoe_checkpoint::open::Format;
use olmoe_checkpoint::save::{Found, LATEST, MANIFEST_FILE, verify};
use olmoe_model::model::Model;

use super::error::TrainError;
use super::event::Event;
use super::folder::{DATA_FILE, RunFolder};
use super::task::DataPosition;
use crate::config::TrainConfig;
use crate::optimizer::Optimizer;
use crate::schedule::Schedule;
use crate::state::TrainerState;

/// The start of a run.
pub(crate) struct Beginning {
    pub(crate) state: TrainerState,
    /// The checkpoint with the weights; `None` for initial weights.
    weights: Option<PathBuf>,
    /// The state of the optimizer.
    optimizer: Option<Found>,
    /// Whether the run resumes in its own folder.
    pub(crate) goes_on: bool,
}

impl Beginning {
    /// Finds the start of a run over the data of `position`.
    pub(crate) fn find<D: Disk, P: DataPosition>(
        config: &TrainConfig,
        folder: &RunFolder<D>,
        position: &P,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<Beginning, TrainError> {
        if config.try_load_latest_save
            && let Some(found) = folder.checkpoints.load_latest()?
        {
            found.notices.iter().for_each(|notice| on(Event::Notice(&notice.to_string())));
            // A resumed run ignores `load_path`, which was used when the run began. Its position means nothing in other data.
            let mut state = trainer_state(&found)?;
            let differences = differences(&found, &state, position, on)?;
            if !differences.is_empty() && config.restore_dataloader {
                return Err(other_data::<P>(&found, &state, differences, true));
            }
            if !differences.is_empty() {
                let text = format!(
                    "restore_dataloader=false: a new pass over the data begins, since {}",
                    differences.join("; ")
                );
                on(Event::Notice(&text));
                state.begin_data();
            }
            let weights = Some(found.path.clone());
            return Ok(Beginning { state, weights, optimizer: Some(found), goes_on: true });
        }
        let Some(path) = &config.load_path else {
            let state = TrainerState::start(config);
            return Ok(Beginning { state, weights: None, optimizer: None, goes_on: false });
        };
        let path = match Path::new(path) {
            run if !run.join(MANIFEST_FILE).is_file() && run.join(LATEST).join(MANIFEST_FILE).is_file() => {
                run.join(LATEST)
            }
            path => path.to_owned(),
        };
        if !path.join(MANIFEST_FILE).is_file() {
            let text = format!(
                "load_path {}: only the weights are loaded; step, data and optimizer start afresh",
                path.display()
            );
            on(Event::Notice(&text));
            let state = TrainerState::start(config);
            return Ok(Beginning { state, weights: Some(path), optimizer: None, goes_on: false });
        }
        let manifest = verify(&path)?;
        let found = Found { step: manifest.step, path: path.clone(), manifest, notices: Vec::new() };
        let mut state = match config.reset_trainer_state {
            true => TrainerState::start(config),
            false => {
                let state = trainer_state(&found)?;
                let goes_on = config.restore_dataloader && config.epoch.is_none_or(|epoch| epoch == state.epoch);
                if goes_on {
                    let differences = differences(&found, &state, position, on)?;
                    if !differences.is_empty() {
                        return Err(other_data::<P>(&found, &state, differences, false));
                    }
                }
                state.resumed(config)
            }
        };
        if config.reset_optimizer_state && !config.reset_trainer_state {
            // Of the schedule only the units matter here.
            state.new_warmup = Some(config.schedule_position(&state.progress(0)));
        }
        let optimizer = (!config.reset_optimizer_state).then_some(found);
        Ok(Beginning { state, weights: Some(path), optimizer, goes_on: false })
    }

    /// Makes the folder that of the run; checkpoints of another run that are moved aside are noted.
    pub(crate) fn claim<D: Disk>(
        &self,
        config: &TrainConfig,
        folder: &RunFolder<D>,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        for path in folder.claim(config, self.path(), self.state.step, self.goes_on)? {
            on(Event::Notice(&format!("save_overwrite: a checkpoint of another run is now {}", path.display())));
        }
        Ok(())
    }

    /// The run's own checkpoint that it goes on from.
    pub(crate) fn own(&self) -> Option<&Found> {
        self.optimizer.as_ref().filter(|_| self.goes_on)
    }

    /// The checkpoint it comes from.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.weights.as_deref()
    }

    /// The learning rate schedule from this start on.
    pub(super) fn schedule(&self, config: &TrainConfig) -> Schedule {
        let schedule = Schedule::new(config);
        self.state.new_warmup.map_or(schedule, |start| schedule.with_new_warmup(start))
    }

    /// Loads the model and the optimizer.
    pub(super) fn load(
        &self,
        config: &TrainConfig,
        model: &mut Model,
        optimizer: &mut Optimizer,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let Some(path) = &self.weights else {
            model.initialize(config.seed);
            return Ok(());
        };
        let checkpoint = Checkpoint::open(path)?;
        if checkpoint.contents().format != Format::Training {
            checkpoint.contents().notices.iter().for_each(|notice| on(Event::Notice(notice)));
        }
        if let Err(difference) =
            checkpoint.contents().config.as_ref().map_or(Ok(()), |own| own.config.same_function(&config.model))
        {
            on(Event::Notice(&format!("load_path: the model of the checkpoint differs: {difference}")));
        }
        checkpoint.load_into(model, &|_| {})?;
        if let Some(found) = &self.optimizer {
            optimizer.restore(model.parameters(), found)?;
        }
        Ok(())
    }
}

/// In what the data that a checkpoint is in the middle of differs from the present one.
fn differences<P: DataPosition>(
    found: &Found,
    state: &TrainerState,
    position: &P,
    on: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<String>, TrainError> {
    if state.examples_seen_this_epoch == 0 {
        return Ok(Vec::new());
    }
    if found.manifest.file(DATA_FILE).is_some() {
        return Ok(found.json::<P>(DATA_FILE)?.differences(position));
    }
    on(Event::Notice(&format!(
        "{}: the checkpoint, of an older version, does not record what it was trained on; the run resumes at its position, which is \
         right only if files, ratios, sequence length and seed are unchanged",
        found.path.display()
    )));
    Ok(Vec::new())
}

fn other_data<P: DataPosition>(found: &Found, state: &TrainerState, differences: Vec<String>, own: bool) -> TrainError {
    let (epoch, examples) = (state.epoch, state.examples_seen_this_epoch);
    TrainError::OtherData { path: found.path.clone(), epoch, examples, differences, advice: P::ADVICE, own }
}

fn trainer_state(found: &Found) -> Result<TrainerState, TrainError> {
    serde_json::from_value(found.manifest.state.clone())
        .map_err(|source| TrainError::TrainerState { path: found.path.clone(), source })
}
