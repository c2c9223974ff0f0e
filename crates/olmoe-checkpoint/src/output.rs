//! A result that gets its name only when it is complete.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::disk::{Disk, LocalDisk};
use crate::error::CheckpointError;
use crate::open::{Contents, Format};

/// Bytes in addition to the tensors: headers, configuration, tokenizer.
const BESIDE: u64 = 64 << 20;

/// A file or folder that is written beside its final name.
pub(crate) struct Output {
    name: PathBuf,
    partial: PathBuf,
    /// Names of files that are written in a temporary folder and then moved to its parent; empty where the result is
    /// one file or folder.
    parts: Vec<String>,
    replace: bool,
    done: bool,
    /// A lock that is held while the result is written, so that another run does not remove it as a leftover.
    _lock: File,
}

impl Output {
    /// Begins a result of about `bytes` bytes.
    pub(crate) fn begin(name: &Path, is_folder: bool, force: bool, bytes: u64) -> Result<Output, CheckpointError> {
        let exists = fs::symlink_metadata(name).is_ok();
        if exists && !(force && is_replaceable(name)) {
            return Err(CheckpointError::Exists { path: name.to_owned() });
        }
        let mut partial = name.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        remove_leftover(&partial)?;
        let parent = match name.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(CheckpointError::io(parent))?;
        let (free, needed) = (LocalDisk.free_bytes(parent).map_err(CheckpointError::io(parent))?, bytes + BESIDE);
        if free < needed {
            return Err(CheckpointError::NoSpace { path: name.to_owned(), needed, free });
        }
        let made = if is_folder { fs::create_dir(&partial) } else { File::create_new(&partial).map(drop) };
        made.map_err(CheckpointError::io(&partial))?;
        let lock = File::open(&partial).map_err(CheckpointError::io(&partial))?;
        // On a file system without locks, the user has to avoid two runs at once.
        let _ = lock.try_lock();
        Ok(Output { name: name.to_owned(), partial, parts: Vec::new(), replace: exists, done: false, _lock: lock })
    }

    /// Begins a result of several files of these names in the folder of `name`, which none of them has.
    pub(crate) fn begin_parts(
        name: &Path,
        parts: Vec<String>,
        force: bool,
        bytes: u64,
    ) -> Result<Output, CheckpointError> {
        for part in &parts {
            let path = name.with_file_name(part);
            match fs::symlink_metadata(&path) {
                Ok(metadata) if !force || metadata.is_dir() => return Err(CheckpointError::Exists { path }),
                _ => {}
            }
        }
        if fs::symlink_metadata(name).is_ok() {
            return Err(CheckpointError::Exists { path: name.to_owned() });
        }
        let mut output = Self::begin(name, true, false, bytes)?;
        output.parts = parts;
        Ok(output)
    }

    /// The temporary paths of several files.
    pub(crate) fn parts(&self) -> impl Iterator<Item = PathBuf> {
        self.parts.iter().map(|part| self.partial.join(part))
    }

    /// The temporary path.
    pub(crate) fn path(&self) -> &Path {
        &self.partial
    }

    /// Gives the result its name.
    pub(crate) fn commit(mut self) -> Result<(), CheckpointError> {
        let named = || {
            if self.partial.is_dir() {
                LocalDisk.sync_dir(&self.partial)?;
            }
            // The first file is renamed last, because without it the others are not a model.
            for part in self.parts.iter().rev() {
                LocalDisk.rename(&self.partial.join(part), &self.name.with_file_name(part))?;
            }
            if !self.parts.is_empty() {
                fs::remove_dir(&self.partial)?;
                return self.sync_parent();
            }
            if self.replace {
                remove(&self.name)?;
            }
            LocalDisk.rename(&self.partial, &self.name)?;
            self.sync_parent()
        };
        named().map_err(CheckpointError::io(&self.name))?;
        self.done = true;
        Ok(())
    }
}

impl Output {
    fn sync_parent(&self) -> io::Result<()> {
        match self.name.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => LocalDisk.sync_dir(parent),
            _ => Ok(()),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.done {
            // After an error, a second error cannot be handled.
            let _ = remove(&self.partial);
        }
    }
}

/// Whether a path may be replaced with `force`: a file, or a folder with a checkpoint and nothing else.
fn is_replaceable(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            let flat = fs::read_dir(path).is_ok_and(|mut entries| {
                entries.all(|entry| entry.is_ok_and(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir())))
            });
            let is_model = |format| matches!(format, Format::HuggingFace(_) | Format::Olmo);
            flat && Contents::read(path).is_ok_and(|contents| is_model(contents.format))
        }
        Ok(metadata) => metadata.is_file() || metadata.is_symlink(),
        Err(_) => false,
    }
}

/// Removes the leftovers of an interrupted run, unless they are still being written.
fn remove_leftover(partial: &Path) -> Result<(), CheckpointError> {
    if fs::symlink_metadata(partial).is_err() {
        return Ok(());
    }
    let lock = File::open(partial).map_err(CheckpointError::io(partial))?;
    if let Err(TryLockError::WouldBlock) = lock.try_lock() {
        let source = io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it; wait for it to end");
        return Err(CheckpointError::Io { path: partial.to_owned(), source });
    }
    remove(partial).map_err(CheckpointError::io(partial))
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

pub(crate) fn create(path: &Path) -> Result<File, CheckpointError> {
    File::create(path).map_err(CheckpointError::io(path))
}

/// A file of these bytes, on the disk.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut file = create(path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(CheckpointError::io(PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_only_by_what_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("model.gguf");
        let partial = folder.path().join("model.gguf.partial");
        drop(Output::begin(&name, false, false, 10).unwrap());
        assert!(!name.exists() && !partial.exists());
        let output = Output::begin(&name, false, false, 10).unwrap();
        fs::write(output.path(), "new").unwrap();
        let busy = Output::begin(&name, false, false, 10).map(drop).unwrap_err();
        assert!(busy.to_string().contains("another process"), "{busy}");
        output.commit().unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"new");
        assert!(matches!(Output::begin(&name, false, false, 10), Err(CheckpointError::Exists { .. })));
        // The leftovers of an interrupted run are removed.
        fs::write(&partial, "old").unwrap();
        let output = Output::begin(&name, false, true, 10).unwrap();
        output.commit().unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"");
    }

    #[test]
    fn folders_of_something_else_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("letters.txt"), "dear").unwrap();
        assert!(matches!(Output::begin(folder.path(), true, true, 0), Err(CheckpointError::Exists { .. })));
        assert!(matches!(
            Output::begin(&folder.path().join("x"), true, false, u64::MAX / 2),
            Err(CheckpointError::NoSpace { .. })
        ));
    }
}
