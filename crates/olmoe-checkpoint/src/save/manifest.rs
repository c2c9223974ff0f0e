//! The manifest: a list of a checkpoint's files with hashes, including its own, which reveal damage.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::SaveError;
use super::limits::{MANIFEST_FILE, MANIFEST_VERSION, MAX_MANIFEST};
use crate::file_name;

const FORMAT: &str = "olmoe-checkpoint";

/// The content of a checkpoint.
///
/// The file is JSON; its last member, `blake3`, is the hash of all bytes before the comma that it follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    version: u64,
    /// Name and version of the program that wrote it.
    pub creator: String,
    /// The step whose state it is.
    pub step: u64,
    /// The position in the data, the random state, and any further state of the trainer. JSON has no NaN, which becomes
    /// null.
    pub state: Value,
    /// The shards of each group of tensors.
    pub groups: BTreeMap<String, Vec<String>>,
    /// All files but the manifest, by name.
    pub files: Vec<FileRecord>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Its plain name.
    pub name: String,
    /// The size in bytes.
    pub bytes: u64,
    /// The hash of its contents, in hexadecimal digits.
    pub blake3: String,
}

impl Manifest {
    pub(super) fn new(
        step: u64,
        state: Value,
        groups: BTreeMap<String, Vec<String>>,
        mut files: Vec<FileRecord>,
    ) -> Self {
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let creator = concat!("olmoe ", env!("CARGO_PKG_VERSION")).into();
        Self { format: FORMAT.into(), version: MANIFEST_VERSION, creator, step, state, groups, files }
    }

    /// The manifest as the bytes of its file.
    pub(super) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.truncate(text.len() - "\n}".len());
        let seal = seal(text.as_bytes());
        Ok((text + &seal).into_bytes())
    }

    /// The record of a file.
    pub fn file(&self, name: &str) -> Option<&FileRecord> {
        self.files.iter().find(|record| record.name == name)
    }
}

/// The end of a manifest that begins with these bytes: their hash.
fn seal(body: &[u8]) -> String {
    format!(",\n  \"blake3\": \"{}\"\n}}\n", blake3::hash(body))
}

/// Reads the manifest of a folder, and checks it and that its files exist with their sizes.
pub(super) fn read(folder: &Path) -> Result<Manifest, SaveError> {
    let path = folder.join(MANIFEST_FILE);
    let missing = || SaveError::NoManifest { path: folder.into() };
    let found = regular_length(&path)?.ok_or_else(missing)?;
    if found > MAX_MANIFEST {
        return Err(SaveError::ManifestTooLong { path, found });
    }
    let mut bytes = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(MAX_MANIFEST).read_to_end(&mut bytes));
    read.map_err(SaveError::io("read", &path))?;
    let manifest = decode(&path, &bytes)?;
    for record in &manifest.files {
        let (path, expected) = (folder.join(&record.name), record.bytes);
        match regular_length(&path)? {
            None => return Err(SaveError::MissingFile { path }),
            Some(found) if found != expected => return Err(SaveError::FileSize { path, found, expected }),
            Some(_) => {}
        }
    }
    Ok(manifest)
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Manifest, SaveError> {
    #[derive(Deserialize)]
    struct Version {
        format: String,
        version: u64,
    }
    let form = |message: String| SaveError::ManifestForm { path: path.into(), message };
    let damaged = || SaveError::ManifestDamaged { path: path.into() };
    let body = bytes.len().checked_sub(seal(b"").len()).and_then(|length| bytes.split_at_checked(length));
    let (body, end) = body.ok_or_else(damaged)?;
    if end != seal(body).as_bytes() {
        return Err(damaged());
    }
    let text = [body, b"\n}"].concat();
    let Version { format, version } = serde_json::from_slice(&text).map_err(|error| form(error.to_string()))?;
    if format != FORMAT {
        return Err(form(format!("found format {format:?}, expected {FORMAT:?}")));
    }
    if version != MANIFEST_VERSION {
        return Err(SaveError::ManifestVersion { path: path.into(), found: version });
    }
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| form(error.to_string()))?;
    let mut names = HashSet::with_capacity(manifest.files.len());
    for FileRecord { name, .. } in &manifest.files {
        if !file_name::is_plain(name) || name == MANIFEST_FILE {
            return Err(SaveError::FileName { path: path.into(), name: name.clone() });
        }
        if !names.insert(name) {
            return Err(SaveError::Twice { path: path.into(), name: name.clone() });
        }
    }
    if let Some(name) = manifest.groups.values().flatten().find(|name| !names.contains(name)) {
        return Err(form(format!("a group has the file {name:?}, which is not in the list of files")));
    }
    Ok(manifest)
}

/// Reads a whole checkpoint and compares it with its manifest. Files that the manifest does not list are ignored.
///
/// # Errors
/// The first file that differs from what was written.
pub fn verify(path: &Path) -> Result<Manifest, SaveError> {
    let manifest = read(path)?;
    for record in &manifest.files {
        let file = path.join(&record.name);
        let hash = || io::Result::Ok(blake3::Hasher::new().update_reader(File::open(&file)?)?.finalize());
        let found = hash().map_err(SaveError::io("read", &file))?.to_string();
        if found != record.blake3 {
            return Err(SaveError::FileHash { path: file, found, expected: record.blake3.clone() });
        }
    }
    Ok(manifest)
}

/// The size of a file; None if it does not exist or is not a regular file.
fn regular_length(path: &Path) -> Result<Option<u64>, SaveError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(SaveError::io("look at", path)(error)),
    }
}
