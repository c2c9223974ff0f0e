//! Checkpoints of a training run, written so that a crash loses none.
//!
//! ```text
//! run/
//!   step-1000/                           complete: it got this name after every byte was on disk
//!     model-00001-of-00002.safetensors   one group of tensors, in shards
//!     model-00002-of-00002.safetensors
//!     optimizer-00001-of-00001.safetensors
//!     config.json, tokenizer.json …      small files
//!     manifest.json                      size and blake3 of each file, and of itself; position and random state
//!   latest -> step-1000                  for people; loading does not need it
//!   step-2000.tmp/                       being written, or left over from a crash
//!   step-500.old.tmp/                    being removed
//!   step-900.damaged/                    did not verify when step 900 was saved again
//! ```
//!
//! Saving: write `step-N.tmp/`, sync each file, write and sync the manifest, sync the folder, rename it, sync the run
//! folder, move `latest`. Old checkpoints are removed last, beginning with a rename. So a folder named `step-N` is
//! always complete, unless the disk itself damages it. Loading takes the newest checkpoint that verifies and reports
//! what is wrong with each newer one. The same state gives the same bytes: nothing here depends on time, host or paths.
//!
//! Only one process may save into a run folder at a time; the caller has to ensure that.

mod error;
mod found;
mod limits;
mod manifest;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

pub use error::{SaveError, SaveNotice};
pub use found::Found;
pub use limits::{MANIFEST_FILE, MANIFEST_VERSION, MAX_MANIFEST, MAX_SMALL_FILE};
pub use manifest::{FileRecord, Manifest, verify};
pub use writer::{CheckpointWriter, SPACE_RESERVE, SavedCheckpoint};

use crate::disk::{Disk, LocalDisk, make_folders};

/// The link to the checkpoint that was saved last.
pub const LATEST: &str = "latest";
const LATEST_TEMPORARY: &str = "latest.tmp";

/// The checkpoints in the folder of a run.
#[derive(Debug)]
pub struct Checkpoints<D = LocalDisk> {
    run_dir: PathBuf,
    disk: D,
}

impl Checkpoints {
    /// Opens the folder of a run, and creates it if it does not exist.
    ///
    /// # Errors
    /// [`SaveError::Io`].
    pub fn open(run_dir: impl Into<PathBuf>) -> Result<Self, SaveError> {
        Self::open_on(run_dir, LocalDisk)
    }
}

impl<D: Disk> Checkpoints<D> {
    /// As [`open`](Checkpoints::open), through a disk of the caller's.
    ///
    /// # Errors
    /// [`SaveError::Io`].
    pub fn open_on(run_dir: impl Into<PathBuf>, disk: D) -> Result<Self, SaveError> {
        let run_dir = run_dir.into();
        make_folders(&disk, &run_dir).map_err(SaveError::io("make the folder", &run_dir))?;
        Ok(Self { run_dir, disk })
    }

    /// The folder of the run.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The disk of the folder, for the files beside the checkpoints.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The steps that have a folder, ascending. The checkpoints are not verified.
    ///
    /// # Errors
    /// [`SaveError::Io`].
    pub fn steps(&self) -> Result<Vec<u64>, SaveError> {
        let mut steps: Vec<u64> = names(&self.run_dir)?.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Begins a save: removes the leftovers of crashes, and creates the folder to write into.
    ///
    /// # Errors
    /// [`SaveError::Io`].
    pub fn begin(&self, step: u64) -> Result<CheckpointWriter<'_, D>, SaveError> {
        for name in names(&self.run_dir)?.iter().filter(|name| is_leftover(name)) {
            remove_tree(&self.disk, &self.run_dir.join(name))?;
        }
        CheckpointWriter::new(self, step)
    }

    /// The newest checkpoint that verifies, with a notice for each newer one that does not; None if no step has a
    /// folder.
    ///
    /// # Errors
    /// [`SaveError::NoneVerifies`] if all checkpoints are damaged, since training must not start afresh without the
    /// user's decision.
    pub fn load_latest(&self) -> Result<Option<Found>, SaveError> {
        let mut notices = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match self.load(step) {
                Ok(found) => return Ok(Some(Found { notices, ..found })),
                Err(problem) => notices.push(SaveNotice { path: self.folder(step), problem }),
            }
        }
        if notices.is_empty() { Ok(None) } else { Err(SaveError::NoneVerifies { path: self.run_dir.clone(), notices }) }
    }

    /// The checkpoint of a step, if it verifies.
    ///
    /// # Errors
    /// The reason why it does not verify.
    pub fn load(&self, step: u64) -> Result<Found, SaveError> {
        let path = self.folder(step);
        let manifest = verify(&path)?;
        if manifest.step != step {
            return Err(SaveError::WrongStep { path, found: manifest.step, expected: step });
        }
        Ok(Found { step, path, manifest, notices: Vec::new() })
    }

    /// Removes the checkpoints of these steps; missing ones are skipped. A folder with further files is kept, because
    /// they belong to the user.
    ///
    /// # Errors
    /// [`SaveError::LastOne`] if no complete checkpoint would be left, before anything is removed.
    pub fn prune(&self, steps: &[u64]) -> Result<(), SaveError> {
        let (removed, kept): (Vec<u64>, Vec<u64>) =
            self.steps()?.into_iter().partition(|step| steps.contains(step) && !self.holds_more(*step));
        let whole = |step: &u64| manifest::read(&self.folder(*step)).is_ok_and(|m| m.step == *step);
        let newest = kept.into_iter().rev().find(whole);
        let Some(newest) = newest else {
            return match removed.into_iter().rev().find(whole) {
                Some(step) => Err(SaveError::LastOne { path: self.folder(step) }),
                None => Ok(()),
            };
        };
        if removed.iter().any(|step| self.latest().as_deref() == Some(&folder_name(*step))) {
            self.move_latest(newest)?;
        }
        let old = |step: &u64| self.run_dir.join(format!("{}.old.tmp", folder_name(*step)));
        for step in &removed {
            remove_tree(&self.disk, &old(step))?;
            self.rename(&self.folder(*step), &old(step))?;
        }
        self.sync_run_dir()?;
        removed.iter().try_for_each(|step| remove_tree(&self.disk, &old(step)))
    }

    /// Whether the folder of a step holds files that its manifest does not list.
    fn holds_more(&self, step: u64) -> bool {
        let folder = self.folder(step);
        let (Ok(manifest), Ok(names)) = (manifest::read(&folder), names(&folder)) else { return false };
        names.iter().any(|name| name != MANIFEST_FILE && manifest.file(name).is_none())
    }

    fn folder(&self, step: u64) -> PathBuf {
        self.run_dir.join(folder_name(step))
    }

    /// The target of `latest`.
    fn latest(&self) -> Option<String> {
        let path = self.run_dir.join(LATEST);
        let target = std::fs::read_link(&path).ok().and_then(|target| target.to_str().map(String::from));
        if cfg!(unix) { target } else { std::fs::read_to_string(&path).ok() }
    }

    fn move_latest(&self, step: u64) -> Result<(), SaveError> {
        let temporary = self.run_dir.join(LATEST_TEMPORARY);
        remove_tree(&self.disk, &temporary)?;
        let point = self.disk.point(&temporary, &folder_name(step));
        point.map_err(SaveError::io("make the pointer", &temporary))?;
        self.rename(&temporary, &self.run_dir.join(LATEST))?;
        self.sync_run_dir()
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), SaveError> {
        self.disk.rename(from, to).map_err(SaveError::io("rename to its final name", from))
    }

    fn sync_run_dir(&self) -> Result<(), SaveError> {
        self.disk.sync_dir(&self.run_dir).map_err(SaveError::io("sync the folder", &self.run_dir))
    }
}

fn folder_name(step: u64) -> String {
    format!("step-{step}")
}

/// The step of a folder's name.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

/// Whether a file is the leftover of an interrupted save or removal.
fn is_leftover(name: &str) -> bool {
    let Some(name) = name.strip_suffix(".tmp") else { return false };
    name == LATEST || step_of(name.strip_suffix(".old").unwrap_or(name)).is_some()
}

/// The names in a folder, sorted. Names that are not UTF-8 do not belong to checkpoints and are skipped.
fn names(folder: &Path) -> Result<Vec<String>, SaveError> {
    let list = || -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    };
    let mut names = list().map_err(SaveError::io("list the folder", folder))?;
    names.sort_unstable();
    Ok(names)
}

/// Removes a file, or a folder with its content, if it exists. Links are not followed.
fn remove_tree(disk: &impl Disk, path: &Path) -> Result<(), SaveError> {
    let is_dir = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.is_dir(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SaveError::io("look at", path)(error)),
    };
    if !is_dir {
        return disk.remove_file(path).map_err(SaveError::io("remove", path));
    }
    let entries = || std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    let mut entries = entries().map_err(SaveError::io("list the folder", path))?;
    entries.sort_unstable();
    entries.iter().try_for_each(|entry| remove_tree(disk, entry))?;
    disk.remove_dir(path).map_err(SaveError::io("remove the folder", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_folders() {
        for (name, step, leftover) in [
            ("step-0", Some(0), false),
            ("step-18446744073709551615", Some(u64::MAX), false),
            ("step-18446744073709551616", None, false),
            ("step-007", None, false),
            ("step-+7", None, false),
            ("step--7", None, false),
            ("step-7.tmp", None, true),
            ("step-7.old.tmp", None, true),
            ("step-7.damaged", None, false),
            ("step-x.tmp", None, false),
            ("mine.tmp", None, false),
            ("latest.tmp", None, true),
            ("latest", None, false),
        ] {
            assert_eq!((step_of(name), is_leftover(name)), (step, leftover), "{name}");
        }
    }
}
