//! The cache on disk, laid out as Python's `huggingface_hub` lays it out, so that both use what the other downloaded:
//!
//! ```text
//! CACHEDIR.TAG
//! .locks/models--org--name/<etag>.lock     held while that blob is written
//! models--org--name/
//!   blobs/<etag>                           a file's content; complete and checked, or not there
//!   blobs/<etag>.incomplete                its beginning
//!   refs/<revision>                        the commit that a branch or tag was at last
//!   snapshots/<commit>/<file>              links to blobs
//!   trees/<commit>.json                    the names and sizes of that commit's files
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::names::{check_file, is_commit};
use super::{DownloadProgress, HubError, MAX_FILES, MAX_LISTING_BYTES, RepoFile, RepoId};

/// The part of a cache that belongs to one repository.
pub(super) struct RepoCache {
    root: PathBuf,
    folder: PathBuf,
    locks: PathBuf,
}

/// A listing as it is stored; other keys are ignored.
#[derive(Serialize, Deserialize)]
struct Tree {
    format_version: u32,
    files: BTreeMap<String, TreeFile>,
}

#[derive(Serialize, Deserialize)]
struct TreeFile {
    size: u64,
    blob_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_size: Option<u64>,
}

/// The version of [`Tree`] that is read and written.
const TREE_FORMAT: u32 = 1;

/// Marks the folder as one that backups may skip.
const CACHE_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# Files downloaded from a model hub; they can be \
                         downloaded again.\n";

impl RepoCache {
    pub(super) fn new(root: &Path, repo: &RepoId) -> RepoCache {
        let name = repo.folder();
        RepoCache { root: root.to_owned(), folder: root.join(&name), locks: root.join(".locks").join(&name) }
    }

    /// The commit that `revision` was at when it was last seen.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = read_bounded(&self.folder.join("refs").join(revision), 64).ok()?;
        let commit = text.trim_ascii();
        String::from_utf8(commit.to_vec()).ok().filter(|commit| is_commit(commit))
    }

    /// The folder with the files of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The content named by a tag.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The beginning of that content.
    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Whether a file of a commit is there, with the size listed.
    pub(super) fn has(&self, commit: &str, file: &RepoFile) -> bool {
        has_size(&self.snapshot(commit).join(&file.name), file.size)
    }

    /// Remembers the commit that a branch or tag is at.
    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        write_whole(&self.folder.join("refs").join(revision), commit.as_bytes())
    }

    /// The stored listing of a commit, if there is a sound one.
    pub(super) fn tree(&self, commit: &str) -> Option<Vec<RepoFile>> {
        let text = read_bounded(&self.tree_path(commit), MAX_LISTING_BYTES).ok()?;
        let tree: Tree = serde_json::from_slice(&text).ok()?;
        let sound = tree.format_version == TREE_FORMAT && tree.files.len() <= MAX_FILES;
        let files: Vec<RepoFile> = tree
            .files
            .into_iter()
            .map(|(name, file)| RepoFile {
                name,
                size: Some(file.lfs_size.unwrap_or(file.size)),
                git: Some(file.blob_id),
                lfs: file.lfs_sha256,
            })
            .collect();
        (sound && files.iter().all(|file| check_file(&file.name).is_ok())).then_some(files)
    }

    /// Stores the listing of a commit, unless the server left parts of it out.
    pub(super) fn write_tree(&self, commit: &str, files: &[RepoFile]) -> Result<(), HubError> {
        let path = self.tree_path(commit);
        if path.exists() {
            return Ok(());
        }
        let entry = |file: &RepoFile| {
            let lfs_size = file.lfs.as_ref().and(file.size);
            let tree =
                TreeFile { size: file.size?, blob_id: file.git.clone()?, lfs_sha256: file.lfs.clone(), lfs_size };
            Some((file.name.clone(), tree))
        };
        let Some(files) = files.iter().map(entry).collect() else { return Ok(()) };
        let text = serde_json::to_vec_pretty(&Tree { format_version: TREE_FORMAT, files })
            .map_err(|error| disk("write", &path)(error.into()))?;
        write_whole(&path, &text)
    }

    fn tree_path(&self, commit: &str) -> PathBuf {
        self.folder.join("trees").join(format!("{commit}.json"))
    }

    /// Makes sure that nobody else writes this blob until the result is dropped; waits if somebody does.
    pub(super) fn lock(&self, etag: &str, file: &str, progress: &dyn DownloadProgress) -> Result<File, HubError> {
        for folder in [&self.locks, &self.folder.join("blobs")] {
            fs::create_dir_all(folder).map_err(disk("create", folder))?;
        }
        let tag = self.root.join("CACHEDIR.TAG");
        if !tag.exists() {
            // Of no importance for the files themselves.
            let _ = fs::write(&tag, CACHE_TAG);
        }
        let path = self.locks.join(format!("{etag}.lock"));
        loop {
            let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let lock = lock.map_err(disk("open", &path))?;
            let locked = match lock.try_lock() {
                Ok(()) => Ok(()),
                Err(TryLockError::WouldBlock) => {
                    progress.note(&format!("{file}: another process is downloading it; waiting"));
                    lock.lock()
                }
                Err(TryLockError::Error(error)) => Err(error),
            };
            match locked {
                // Without locks on this file system a blob still appears only whole and checked.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(lock),
                Err(error) => return Err(disk("lock", &path)(error)),
                // Whoever held it may have removed the file: then the lock guards nothing.
                Ok(()) if same_file(&lock, &path) => return Ok(lock),
                Ok(()) => {}
            }
        }
    }

    /// Turns a partial file, complete and checked by now, into the blob.
    pub(super) fn publish(&self, etag: &str) -> Result<(), HubError> {
        let (partial, blob) = (self.partial(etag), self.blob(etag));
        let file = File::open(&partial).map_err(disk("open", &partial))?;
        file.sync_all().map_err(disk("write", &partial))?;
        fs::rename(&partial, &blob).map_err(disk("rename to", &blob))?;
        sync_folder(&self.folder.join("blobs"));
        Ok(())
    }

    /// Makes the snapshot's file point to the blob.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<(), HubError> {
        let pointer = self.snapshot(commit).join(name);
        let blob = self.blob(etag);
        let folder = pointer.parent().unwrap_or(&pointer);
        fs::create_dir_all(folder).map_err(disk("create", folder))?;
        let target = PathBuf::from(format!("{}blobs/{etag}", "../".repeat(2 + name.matches('/').count())));
        if fs::read_link(&pointer).is_ok_and(|there| there == target) {
            return Ok(());
        }
        // Somebody may be reading the file that is replaced: it is there at every moment.
        let temporary = temporary_beside(&pointer);
        match symlink(&target, &temporary) {
            // A file system without links: the file itself goes there.
            Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) => {
                fs::rename(&blob, &pointer).map_err(disk("rename to", &pointer))
            }
            Err(error) => Err(disk("create", &pointer)(error)),
            Ok(()) => fs::rename(&temporary, &pointer).map_err(|error| {
                let _ = fs::remove_file(&temporary);
                disk("create", &pointer)(error)
            }),
        }
    }
}

/// Whether a file is there and, if a size is known, has that size.
pub(super) fn has_size(path: &Path, size: Option<u64>) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && size.is_none_or(|size| size == found.len()))
}

/// What to make of an error of the system: no room left is a cause of its own.
pub(super) fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HubError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            HubError::DiskFull { path, needed: None, source }
        }
        _ => HubError::Disk { action, path, source },
    }
}

/// Reads a file of at most `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit { Err(io::Error::other(format!("it is longer than {limit} bytes"))) } else { Ok(bytes) }
}

/// Writes a small file so that readers see the old content or the new one.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), HubError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(disk("create", folder))?;
    let temporary = temporary_beside(path);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        disk("write", path)(error)
    })
}

/// A path in the same folder that nobody else uses: processes differ in their number, threads in the count.
fn temporary_beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

/// Makes a rename in a folder last through a power cut, where the system can.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(unix)]
fn same_file(open: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (open.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => identity(open) == identity(there),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_file(_: &File, _: &Path) -> bool {
    true
}
