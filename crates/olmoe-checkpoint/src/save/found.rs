//! A verified checkpoint, to be read.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use serde::de::DeserializeOwned;

use super::error::{SaveError, SaveNotice};
use super::limits::MAX_SMALL_FILE;
use super::manifest::Manifest;
use crate::safetensors::Shards;

/// A verified checkpoint.
#[derive(Debug)]
pub struct Found {
    /// Its step.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// The manifest, with the state of the trainer.
    pub manifest: Manifest,
    /// Notices about newer checkpoints that do not verify, to be shown.
    pub notices: Vec<SaveNotice>,
}

impl Found {
    /// Opens the tensors of a group.
    ///
    /// # Errors
    /// [`SaveError::NotThere`], [`SaveError::Shards`].
    pub fn tensors(&self, group: &str) -> Result<Shards, SaveError> {
        let shards = self.manifest.groups.get(group).ok_or_else(|| self.not_there(group))?;
        Ok(Shards::open(shards.iter().map(|name| self.path.join(name)))?)
    }

    /// Reads a small file and verifies it once more.
    ///
    /// # Errors
    /// [`SaveError::NotThere`], [`SaveError::TooLong`], and errors of the file.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>, SaveError> {
        let record = self.manifest.file(name).ok_or_else(|| self.not_there(name))?;
        let path = self.path.join(name);
        if record.bytes > MAX_SMALL_FILE {
            return Err(SaveError::TooLong { path, found: record.bytes });
        }
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(record.bytes).read_to_end(&mut bytes));
        read.map_err(SaveError::io("read", &path))?;
        let found = blake3::hash(&bytes).to_string();
        if found != record.blake3 {
            return Err(SaveError::FileHash { path, found, expected: record.blake3.clone() });
        }
        Ok(bytes)
    }

    /// Reads a small file as JSON.
    ///
    /// # Errors
    /// Those of [`Found::bytes`], and [`SaveError::Json`].
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, SaveError> {
        let bytes = self.bytes(name)?;
        serde_json::from_slice(&bytes).map_err(|source| SaveError::Json { name: name.into(), source })
    }

    fn not_there(&self, name: &str) -> SaveError {
        SaveError::NotThere { path: self.path.clone(), name: name.into() }
    }
}
