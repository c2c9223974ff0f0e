//! The destination folder, which is written under a temporary name until it is complete.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::TokenizeError;

/// A folder under its temporary name. It is removed when dropped before [`Folder::commit`].
pub(super) struct Folder {
    target: PathBuf,
    temporary: PathBuf,
    committed: bool,
}

impl Folder {
    pub(super) fn begin(target: &Path, force: bool) -> Result<Folder, TokenizeError> {
        if target.to_string_lossy().contains("://") {
            return Err(TokenizeError::Remote { path: target.display().to_string() });
        }
        let target: PathBuf = target.components().collect();
        if !is_empty(&target)? {
            if !force {
                return Err(TokenizeError::Exists { path: target });
            }
            only_parts(&target)?;
        }
        let temporary = beside(&target, ".tmp");
        // An earlier run that was killed may have left one.
        discard(&temporary)?;
        fs::create_dir_all(&temporary).map_err(TokenizeError::write("make the folder", &temporary))?;
        Ok(Folder { target, temporary, committed: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.temporary
    }

    /// Gives the folder its name, once all of its files are on disk.
    pub(super) fn commit(mut self) -> Result<(), TokenizeError> {
        sync(&self.temporary)?;
        let old = beside(&self.target, ".old.tmp");
        if !is_empty(&self.target)? {
            only_parts(&self.target)?;
            discard(&old)?;
            fs::rename(&self.target, &old).map_err(TokenizeError::write("rename", &self.target))?;
        } else if self.target.exists() {
            fs::remove_dir(&self.target).map_err(TokenizeError::write("replace", &self.target))?;
        }
        fs::rename(&self.temporary, &self.target).map_err(TokenizeError::write("rename", &self.temporary))?;
        self.committed = true;
        sync(self.target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        discard(&old)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.committed {
            // What cannot be removed now, the next run removes.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn entries(path: &Path) -> Result<Vec<String>, TokenizeError> {
    let unreadable = TokenizeError::write("read the folder", path);
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(&unreadable)?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(unreadable)
}

fn is_empty(path: &Path) -> Result<bool, TokenizeError> {
    Ok(entries(path)?.is_empty())
}

/// Fails if a folder holds anything but token files.
fn only_parts(path: &Path) -> Result<(), TokenizeError> {
    let part = |name: &String| name.starts_with("part-") && (name.ends_with(".npy") || name.ends_with(".csv.gz"));
    match entries(path)?.into_iter().find(|name| !part(name)) {
        Some(found) => Err(TokenizeError::NotOurs { path: path.to_owned(), found }),
        None => Ok(()),
    }
}

/// Removes a folder of token files, if it exists.
fn discard(path: &Path) -> Result<(), TokenizeError> {
    only_parts(path)?;
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(TokenizeError::write("remove", path)),
    }
}

/// Syncs the names in a folder to disk.
fn sync(path: &Path) -> Result<(), TokenizeError> {
    if cfg!(unix) {
        let synced = fs::File::open(path).and_then(|folder| folder.sync_all());
        synced.map_err(TokenizeError::write("write to disk", path))?;
    }
    Ok(())
}
