//! What can go wrong when checkpoints are saved and loaded.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::limits::{MANIFEST_FILE, MANIFEST_VERSION, MAX_MANIFEST, MAX_SMALL_FILE};
use crate::safetensors::{SafetensorsError, ShardsError};

/// Why a checkpoint cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// An error of the system.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The attempted action.
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
        /// The bytes to write, and a reserve.
        needed: u64,
        /// The free bytes.
        free: u64,
    },
    /// A name that a file of a checkpoint must not have.
    #[error("{}: {name:?} may not be the name of a file of a checkpoint; expected a plain name", path.display())]
    FileName {
        /// The folder.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Two files or groups with the same name.
    #[error("{}: {name:?} occurs twice", path.display())]
    Twice {
        /// The folder.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A value that JSON cannot represent.
    #[error("{name} cannot be written as JSON: {source}")]
    Json {
        /// The file.
        name: String,
        /// The reason.
        source: serde_json::Error,
    },
    /// Tensors that make no valid file.
    #[error("{}: {source}", path.display())]
    Tensors {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: SafetensorsError,
    },
    /// A tensor that got another number of bytes than its shape has.
    #[error("{}: tensor {tensor:?}: {found} bytes were written, expected {expected}", path.display())]
    TensorBytes {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The bytes written until the error.
        found: u64,
        /// The bytes of its shape.
        expected: u64,
    },
    /// An earlier part of this save failed.
    #[error("{}: not saved, because a part of the checkpoint could not be written; save again from the beginning", path.display())]
    Incomplete {
        /// The folder.
        path: PathBuf,
    },
    /// Another complete checkpoint of this step.
    #[error("{}: there is another complete checkpoint of this step; remove it or use another folder", path.display())]
    Exists {
        /// Its folder.
        path: PathBuf,
    },
    /// A removal that would leave no complete checkpoint.
    #[error("{}: this is the last complete checkpoint; it is not removed before there is another", path.display())]
    LastOne {
        /// Its folder.
        path: PathBuf,
    },
    /// A folder without a manifest.
    #[error("{}: no {MANIFEST_FILE}, so it is not a complete checkpoint; load another", path.display())]
    NoManifest {
        /// The folder.
        path: PathBuf,
    },
    /// A manifest that is too long.
    #[error("{}: {found} bytes long, more than the {MAX_MANIFEST} of a manifest", path.display())]
    ManifestTooLong {
        /// The manifest.
        path: PathBuf,
        /// The size of the manifest in bytes.
        found: u64,
    },
    /// A damaged manifest.
    #[error("{}: damaged: its content does not agree with the blake3 at its end; load another checkpoint", path.display())]
    ManifestDamaged {
        /// The manifest.
        path: PathBuf,
    },
    /// An undamaged manifest with unknown content.
    #[error("{}: not a manifest of this program: {message}", path.display())]
    ManifestForm {
        /// The manifest.
        path: PathBuf,
        /// The reason.
        message: String,
    },
    /// A manifest of another version.
    #[error("{}: version {found}, but this program reads version {MANIFEST_VERSION}; use a newer program", path.display())]
    ManifestVersion {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// A checkpoint in the folder of another step.
    #[error("{}: the manifest has step {found}, the name of the folder {expected}; rename the folder", path.display())]
    WrongStep {
        /// The folder.
        path: PathBuf,
        /// The manifest's step.
        found: u64,
        /// The step in the folder's name.
        expected: u64,
    },
    /// A missing file.
    #[error("{}: missing; load another checkpoint", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A file with another size than in the manifest.
    #[error("{}: {found} bytes, but {expected} in the manifest; load another checkpoint", path.display())]
    FileSize {
        /// The file.
        path: PathBuf,
        /// The size of the file in bytes.
        found: u64,
        /// The size in the manifest.
        expected: u64,
    },
    /// A file with another content than in the manifest.
    #[error("{}: damaged: its blake3 is {found}, but {expected} in the manifest; load another checkpoint", path.display())]
    FileHash {
        /// The file.
        path: PathBuf,
        /// The hash of the file.
        found: String,
        /// The hash in the manifest.
        expected: String,
    },
    /// Checkpoints, all of them damaged.
    #[error("{}: none of the checkpoints verifies{}", path.display(), list(notices))]
    NoneVerifies {
        /// The folder of the run.
        path: PathBuf,
        /// What is wrong with each checkpoint.
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
    /// A file that is too long to be read as a whole.
    #[error("{}: {found} bytes, more than the {MAX_SMALL_FILE} of a file that is read as a whole", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The size of the file in bytes.
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

    /// Whether the error means that the files of a checkpoint are not those that were written.
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
