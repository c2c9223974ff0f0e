//! The folder of a run: one process at a time, when to save, and which checkpoints stay.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use olmoe_checkpoint::disk::{Disk, make_folders, write_whole};
use olmoe_checkpoint::safetensors::{SafeType, Spec};
use olmoe_checkpoint::save::{Checkpoints, SavedCheckpoint};
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Model, ParameterId};
use serde::Serialize;

use super::error::TrainError;
use super::step::bad_weight;
use crate::config::TrainConfig;
use crate::optimizer::Optimizer;
use crate::state::TrainerState;

/// The file that a process holds while it trains in a folder.
pub const LOCK_FILE: &str = "run.lock";
/// The configuration, in the folder of the run and in each checkpoint.
pub const CONFIG_FILE: &str = "config.yaml";
/// What a checkpoint was trained on, in the checkpoint.
pub(super) const DATA_FILE: &str = "data.json";
/// Most bytes of numbers in a file of a checkpoint.
const MAX_SHARD_BYTES: u64 = 4 << 30;
/// Most bytes of a tokenizer that is put beside the weights.
const MAX_TOKENIZER: u64 = 256 << 20;

/// Why a checkpoint is there. It follows from the configuration and the step, so that a run that goes on knows it, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckpointKind {
    /// `save_interval`, or the end of a run.
    Regular,
    /// `save_interval_unsharded`.
    Unsharded,
    /// `save_interval_ephemeral`: until the next one.
    Ephemeral,
}

/// The parameters of a checkpoint.
pub struct SavedWeights {
    /// The group of tensors.
    pub group: &'static str,
    /// The parameters.
    pub ids: Vec<ParameterId>,
}

/// What a checkpoint has beside the state of trainer and optimizer.
pub(super) struct CheckpointContents<'a, P> {
    pub(super) weights: SavedWeights,
    pub(super) model_config: &'a ModelConfig,
    /// Small files, with their names.
    pub(super) files: Vec<(String, Vec<u8>)>,
    /// What the position in the data depends on.
    pub(super) position: &'a P,
    /// The step whose checkpoint is kept as the best.
    pub(super) best: Option<u64>,
}

pub struct RunFolder<D: Disk> {
    pub(super) checkpoints: Checkpoints<D>,
    /// Locked as long as it is open.
    _lock: File,
}

impl<D: Disk> RunFolder<D> {
    /// Creates the folder if it does not exist, and locks it.
    pub(crate) fn open(config: &TrainConfig, disk: D) -> Result<Self, TrainError> {
        let path = Path::new(&config.save_folder);
        let checkpoints = Checkpoints::open_on(path, disk)?;
        let lock = path.join(LOCK_FILE);
        let made = checkpoints.disk().open_append(&lock);
        // Open for writing, which some file systems want of a lock.
        let file = made.and_then(|_| File::options().write(true).open(&lock)).map_err(TrainError::io("open", &lock))?;
        match file.try_lock() {
            Ok(()) => Ok(RunFolder { checkpoints, _lock: file }),
            Err(TryLockError::WouldBlock) => Err(TrainError::Locked { path: path.into() }),
            Err(TryLockError::Error(error)) => Err(TrainError::io("lock", &lock)(error)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.checkpoints.run_dir()
    }

    pub(crate) fn disk(&self) -> &D {
        self.checkpoints.disk()
    }

    /// Writes a file of the folder, or of a folder in it, whole.
    pub(crate) fn write(
        &self,
        name: impl AsRef<Path>,
        fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> Result<(), TrainError> {
        let path = self.path().join(name);
        let made = path.parent().map_or(Ok(()), |folder| make_folders(self.disk(), folder));
        made.and_then(|()| write_whole(self.disk(), &path, fill)).map(drop).map_err(TrainError::io("write", &path))
    }

    /// Ensures that the folder has no checkpoints of another run than the one that begins at `state`: these are
    /// refused, or moved aside with `save_overwrite`. `goes_on` is set if the run resumes from the newest checkpoint of
    /// the folder. Returns the new paths of the moved checkpoints.
    pub(super) fn claim(
        &self,
        config: &TrainConfig,
        from: Option<&Path>,
        first_step: u64,
        goes_on: bool,
    ) -> Result<Vec<PathBuf>, TrainError> {
        let steps = self.checkpoints.steps()?;
        let (Some(newest), false) = (steps.last(), goes_on) else { return Ok(Vec::new()) };
        if !config.save_overwrite {
            return Err(TrainError::FolderInUse { path: self.path().into(), newest: *newest });
        }
        let from = from.and_then(|path| std::fs::canonicalize(path).ok());
        let mut moved = Vec::new();
        for step in steps.into_iter().filter(|step| *step >= first_step) {
            let path = self.path().join(format!("step-{step}"));
            if from.is_some() && std::fs::canonicalize(&path).ok() == from {
                continue;
            }
            let mut aside = path.with_extension("replaced");
            for i in 2.. {
                if std::fs::symlink_metadata(&aside).is_err() {
                    break;
                }
                aside = path.with_extension(format!("replaced-{i}"));
            }
            self.disk().rename(&path, &aside).map_err(TrainError::io("move aside", &path))?;
            moved.push(aside);
        }
        Ok(moved)
    }

    /// Checks that the disk has room for a checkpoint of `bytes` bytes.
    pub(crate) fn check_space(&self, step: u64, bytes: u64) -> Result<(), TrainError> {
        Ok(self.checkpoints.begin(step)?.require_space(bytes)?)
    }

    /// Saves a checkpoint, then removes those that are not kept. Returns the steps of the removed ones.
    pub(super) fn save<P: Serialize>(
        &self,
        config: &TrainConfig,
        state: &TrainerState,
        model: &Model,
        optimizer: &Optimizer,
        contents: CheckpointContents<'_, P>,
    ) -> Result<(SavedCheckpoint, Vec<u64>), TrainError> {
        if let Some(place) = bad_weight(model) {
            return Err(TrainError::BadWeight { step: state.step, place });
        }
        let specs = model.parameters();
        let CheckpointContents { weights, model_config, files, position, best } = contents;
        let values: Vec<&[f32]> =
            weights.ids.iter().map(|id| model.value(*id).map_or(&[][..], |value| &value[..])).collect();
        let of = weights.ids.iter().map(|id| &specs[*id]);
        let tensors: Vec<Spec> =
            of.map(|spec| Spec::new(spec.name.clone(), SafeType::F32, spec.shape.clone())).collect();
        let mut writer = self.checkpoints.begin(state.step)?;
        let bytes: usize = values.iter().map(|value| size_of_val(*value)).sum();
        writer.require_space(bytes as u64 + optimizer.state_bytes())?;
        writer.numbers(weights.group, &tensors, MAX_SHARD_BYTES, &values)?;
        optimizer.save(specs, &mut writer, MAX_SHARD_BYTES)?;
        writer.json("config.json", model_config)?;
        for (name, bytes) in files {
            writer.bytes(&name, &bytes)?;
        }
        if let Some(tokenizer) = tokenizer_file(&config.tokenizer.identifier) {
            writer.bytes("tokenizer.json", &tokenizer)?;
        }
        writer.json(DATA_FILE, position)?;
        writer.state(state)?;
        let saved = writer.commit()?;
        let mut removed = superfluous(config, &self.checkpoints.steps()?, state.step);
        removed.retain(|step| Some(*step) != best);
        if !removed.is_empty() {
            self.checkpoints.prune(&removed)?;
        }
        Ok((saved, removed))
    }
}

/// The tokenizer of the configuration if it is a file here: conversions put it beside the weights.
fn tokenizer_file(identifier: &str) -> Option<Vec<u8>> {
    let path = Path::new(identifier);
    let metadata = std::fs::metadata(path).ok()?;
    let usable = path.extension().is_some_and(|extension| extension == "json")
        && metadata.is_file()
        && metadata.len() <= MAX_TOKENIZER;
    usable.then(|| std::fs::read(path).ok())?
}

fn every(interval: Option<u64>, step: u64) -> bool {
    interval.is_some_and(|interval| step > 0 && step.is_multiple_of(interval))
}

fn kind(config: &TrainConfig, step: u64) -> CheckpointKind {
    if every(config.save_interval_unsharded, step) && config.save_num_unsharded_checkpoints_to_keep != 0 {
        CheckpointKind::Unsharded
    } else if every(config.save_interval, step) || !every(config.save_interval_ephemeral, step) {
        CheckpointKind::Regular
    } else {
        CheckpointKind::Ephemeral
    }
}

/// Whether checkpoints are saved.
pub(crate) fn saves(config: &TrainConfig) -> bool {
    config.save_num_checkpoints_to_keep != 0
        || (config.save_interval_unsharded.is_some() && config.save_num_unsharded_checkpoints_to_keep != 0)
}

/// Whether a checkpoint is due at a step.
pub(super) fn is_due(config: &TrainConfig, step: u64) -> bool {
    match kind(config, step) {
        CheckpointKind::Unsharded => true,
        CheckpointKind::Regular => every(config.save_interval, step) && config.save_num_checkpoints_to_keep != 0,
        CheckpointKind::Ephemeral => saves(config),
    }
}

/// What is not to be kept when the checkpoint of `saved` is there.
fn superfluous(config: &TrainConfig, steps: &[u64], saved: u64) -> Vec<u64> {
    let mut remove = Vec::new();
    for (wanted, keep) in [
        (CheckpointKind::Regular, config.save_num_checkpoints_to_keep),
        (CheckpointKind::Unsharded, config.save_num_unsharded_checkpoints_to_keep),
        (CheckpointKind::Ephemeral, 0),
    ] {
        let of_kind: Vec<u64> = steps.iter().copied().filter(|step| kind(config, *step) == wanted).collect();
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        let count = of_kind.len().saturating_sub(keep);
        remove.extend(of_kind.into_iter().take(count).filter(|step| *step != saved));
    }
    remove.sort_unstable();
    remove
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept() {
        let config = TrainConfig {
            save_interval: Some(10),
            save_interval_ephemeral: Some(3),
            save_num_checkpoints_to_keep: 2,
            ..TrainConfig::default()
        };
        let due: Vec<u64> = (0..=20).filter(|step| is_due(&config, *step)).collect();
        assert_eq!(due, [3, 6, 9, 10, 12, 15, 18, 20]);
        for (steps, saved, expected) in [
            (&[0, 3, 6][..], 6, &[3][..]),
            (&[0, 6, 9, 10], 10, &[6, 9]),
            (&[0, 10, 18, 20], 20, &[0, 18]),
            (&[10, 20, 23], 23, &[10]),
        ] {
            assert_eq!(superfluous(&config, steps, saved), expected, "{steps:?}");
        }
        let all = TrainConfig { save_num_checkpoints_to_keep: -1, ..config.clone() };
        assert_eq!(superfluous(&all, &[0, 10, 20, 30], 30), [0; 0]);
        let none = TrainConfig { save_num_checkpoints_to_keep: 0, ..config.clone() };
        assert!(!saves(&none) && (0..40).all(|step| !is_due(&none, step)));
        let unsharded =
            TrainConfig { save_interval_unsharded: Some(20), save_num_unsharded_checkpoints_to_keep: 1, ..config };
        assert_eq!(superfluous(&unsharded, &[10, 20, 30, 40], 40), [20]);
    }
}
