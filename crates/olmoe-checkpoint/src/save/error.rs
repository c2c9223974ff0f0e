//! What can go wrong with a checkpoint.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::limits::{MANIFEST_FILE, MANIFEST_VERSION, MAX_MANIFEST, MAX_SMALL_FILE};
use crate::safetensors::{SafetensorsError, ShardsError};

/// Why a checkpoint cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The system refuses.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not enough space.
    #[error("{}: {needed} bytes needed, {free} free; free some space or save elsewhere", path.display())]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// Bytes that will be written, and a reserve.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A name that may not be one of a file of a checkpoint.
    #[error("{}: {name:?} may not be the name of a file of a checkpoint; expected a plain name", path.display())]
    FileName {
        /// The folder.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Two files or groups of one name.
    #[error("{}: {name:?} is there twice", path.display())]
    Twice {
        /// The folder.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Something that JSON cannot hold.
    #[error("{name} cannot be written as JSON: {source}")]
    Json {
        /// The file.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Tensors that make no valid file.
    #[error("{}: {source}", path.display())]
    Tensors {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: SafetensorsError,
    },
    /// A tensor whose numbers are not as many as its shape says.
    #[error("{}: tensor {tensor:?}: {found} bytes came, expected {expected}", path.display())]
    TensorBytes {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Bytes that came until the error.
        found: u64,
        /// Bytes of its shape.
        expected: u64,
    },
    /// An earlier part of this save failed.
    #[error("{}: not saved, as a part of it could not be written; save again from the beginning", path.display())]
    Incomplete {
        /// The folder.
        path: PathBuf,
    },
    /// Another checkpoint of this step.
    #[error("{}: there is another checkpoint of this step, and it is whole; remove it or use another folder", path.display())]
    Exists {
        /// Its folder.
        path: PathBuf,
    },
    /// Nothing complete would be left.
    #[error("{}: this is the last complete checkpoint; it is not removed before there is another", path.display())]
    LastOne {
        /// Its folder.
        path: PathBuf,
    },
    /// No manifest.
    #[error("{}: no {MANIFEST_FILE}, so it is not a complete checkpoint; load another", path.display())]
    NoManifest {
        /// The folder.
        path: PathBuf,
    },
    /// A manifest longer than any.
    #[error("{}: {found} bytes long, more than the {MAX_MANIFEST} of a manifest", path.display())]
    ManifestTooLong {
        /// The manifest.
        path: PathBuf,
        /// Its bytes.
        found: u64,
    },
    /// The manifest is not what was written.
    #[error("{}: damaged: its last lines are not the blake3 of what is above them; load another checkpoint", path.display())]
    ManifestDamaged {
        /// The manifest.
        path: PathBuf,
    },
    /// The manifest is whole, and cannot be understood.
    #[error("{}: not a manifest of this program: {message}", path.display())]
    ManifestForm {
        /// The manifest.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A manifest of another version.
    #[error("{}: version {found}, this program reads {MANIFEST_VERSION}; use a newer one", path.display())]
    ManifestVersion {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// The folder of one step with the checkpoint of another.
    #[error("{}: the manifest says step {found}, the name of the folder {expected}; rename the folder", path.display())]
    WrongStep {
        /// The folder.
        path: PathBuf,
        /// The manifest's step.
        found: u64,
        /// The folder's.
        expected: u64,
    },
    /// A file is not there.
    #[error("{}: missing; load another checkpoint", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A file of another length.
    #[error("{}: {found} bytes, the manifest says {expected}; load another checkpoint", path.display())]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// The manifest's.
        expected: u64,
    },
    /// A file of other contents.
    #[error("{}: damaged: its blake3 is {found}, the manifest says {expected}; load another checkpoint", path.display())]
    FileHash {
        /// The file.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// The manifest's.
        expected: String,
    },
    /// Checkpoints, all of them damaged.
    #[error("{}: none of the checkpoints verifies{}", path.display(), list(notices))]
    NoneVerifies {
        /// The folder of the run.
        path: PathBuf,
        /// What is wrong with each.
        notices: Vec<SaveNotice>,
    },
    /// A file or a group that the checkpoint does not have.
    #[error("{}: no {name:?} in this checkpoint", path.display())]
    NotThere {
        /// The folder.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A file that is not read as a whole.
    #[error("{}: {found} bytes, more than the {MAX_SMALL_FILE} of a file that is read as a whole", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
    },
    /// The tensors of a group cannot be read.
    #[error(transparent)]
    Shards(#[from] ShardsError),
}

impl SaveError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| SaveError::Io { action, path: path.into(), source }
    }

    /// Whether it says that the files of a checkpoint are not those that were written.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::NoManifest { .. }
                | Self::ManifestTooLong { .. }
                | Self::ManifestDamaged { .. }
                | Self::MissingFile { .. }
                | Self::FileSize { .. }
                | Self::FileHash { .. }
        )
    }
}

/// A checkpoint that does not verify.
#[derive(Debug)]
pub struct SaveNotice {
    /// Its folder.
    pub path: PathBuf,
    /// The file, and what was found and expected.
    pub problem: SaveError,
}

impl fmt::Display for SaveNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed over: {}", self.path.display(), self.problem)
    }
}

fn list(notices: &[SaveNotice]) -> String {
    notices.iter().map(|notice| format!("\n  {notice}")).collect()
}
