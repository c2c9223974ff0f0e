//! A result that appears under its name only when it is complete, and that replaces nothing but results of its kind.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::disk::{Disk, LocalDisk};
use crate::error::CheckpointError;
use crate::file_name::{ADAPTER_CONFIG, is_of_adapter, is_of_checkpoint, numbered};
use crate::open::{Contents, Format};

/// Bytes in addition to the tensors: headers, configuration, tokenizer.
const BESIDE: u64 = 64 << 20;

/// What is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// The folder of a checkpoint.
    Folder,
    /// The folder of an adapter.
    Adapter,
    /// A file that begins with these bytes.
    File(&'static [u8]),
}

/// A file or folder that is written beside its final name.
pub(crate) struct Output {
    name: PathBuf,
    partial: PathBuf,
    made: Made,
    /// Names of files that are written in a temporary folder and then moved to its parent; empty where the result is
    /// one file or folder.
    parts: Vec<String>,
    replace: bool,
    done: bool,
    /// A lock that is held while the result is written, so that another run does not remove it as a leftover.
    _lock: File,
}

impl Output {
    /// Begins a result of about that many bytes. With `force` it replaces a result of its kind; an empty folder is none.
    pub(crate) fn begin(name: &Path, made: Made, force: bool, bytes: u64) -> Result<Output, CheckpointError> {
        let exists = fs::symlink_metadata(name).is_ok();
        if exists {
            check_replaceable(name, made)?;
            if !force && !is_empty_folder(name) {
                return Err(CheckpointError::Exists { path: name.to_owned() });
            }
        }
        let mut partial = name.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        remove_leftover(&partial, made)?;
        let parent = match name.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(CheckpointError::io(parent))?;
        let (free, needed) = (LocalDisk.free_bytes(parent).map_err(CheckpointError::io(parent))?, bytes + BESIDE);
        if free < needed {
            return Err(CheckpointError::NoSpace { path: name.to_owned(), needed, free });
        }
        let begun = match made {
            Made::Folder | Made::Adapter => fs::create_dir(&partial),
            Made::File(_) => File::create_new(&partial).map(drop),
        };
        begun.map_err(CheckpointError::io(&partial))?;
        let lock = File::open(&partial).map_err(CheckpointError::io(&partial))?;
        // On a file system without locks, the user has to avoid two runs at once.
        let _ = lock.try_lock();
        Ok(Output {
            name: name.to_owned(),
            partial,
            made,
            parts: Vec::new(),
            replace: exists,
            done: false,
            _lock: lock,
        })
    }

    /// Begins a result of several files of these names in the folder of `name`, which none of them has. Each is a file of
    /// the kind `made`.
    pub(crate) fn begin_parts(
        name: &Path,
        made: Made,
        parts: Vec<String>,
        force: bool,
        bytes: u64,
    ) -> Result<Output, CheckpointError> {
        for path in parts.iter().map(|part| name.with_file_name(part)) {
            if fs::symlink_metadata(&path).is_ok() {
                check_replaceable(&path, made)?;
                if !force {
                    return Err(CheckpointError::Exists { path });
                }
            }
        }
        if fs::symlink_metadata(name).is_ok() {
            let reason = "it exists, and the parts of the result lie beside a file of that name".to_owned();
            return Err(CheckpointError::NotReplaced { path: name.to_owned(), reason });
        }
        let mut output = Self::begin(name, Made::Folder, false, bytes)?;
        (output.parts, output.made) = (parts, made);
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
        if self.replace {
            // It may have changed since.
            check_replaceable(&self.name, self.made)?;
        }
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

/// Fails if replacing what has this name would remove anything but a result of that kind.
fn check_replaceable(path: &Path, made: Made) -> Result<(), CheckpointError> {
    let refused = |reason: String| CheckpointError::NotReplaced { path: path.to_owned(), reason };
    let metadata = fs::symlink_metadata(path).map_err(CheckpointError::io(path))?;
    match made {
        Made::Folder if metadata.is_dir() => {
            if let Some(stranger) = stranger(path, made).map_err(CheckpointError::io(path))? {
                return Err(refused(stranger));
            }
            let is_model = |contents: Contents| matches!(contents.format, Format::HuggingFace(_) | Format::Olmo);
            match Contents::read(path).is_ok_and(is_model) || is_empty_folder(path) {
                true => Ok(()),
                false => Err(refused("it is a folder without a whole checkpoint".to_owned())),
            }
        }
        Made::Adapter if metadata.is_dir() => {
            if let Some(stranger) = stranger(path, made).map_err(CheckpointError::io(path))? {
                return Err(refused(stranger));
            }
            match path.join(ADAPTER_CONFIG).is_file() || is_empty_folder(path) {
                true => Ok(()),
                false => Err(refused("it is a folder without an adapter".to_owned())),
            }
        }
        Made::Folder | Made::Adapter => Err(refused("it is no folder, but the result is one".to_owned())),
        Made::File(_) if path.is_dir() => {
            Err(refused("it is a folder, but the result is one file; give a name in it if you mean that".to_owned()))
        }
        // A link to nothing holds nothing.
        Made::File(_) if metadata.is_symlink() && !path.exists() => Ok(()),
        Made::File(magic) => match begins_with(path, magic).map_err(CheckpointError::io(path))? {
            true => Ok(()),
            false => Err(refused("it is another kind of file than the result".to_owned())),
        },
    }
}

fn is_empty_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
        && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether a file is empty or begins with these bytes, as far as it goes.
fn begins_with(path: &Path, magic: &[u8]) -> io::Result<bool> {
    // Looked at before it is opened: opening a pipe waits for its other end.
    if !fs::metadata(path)?.is_file() {
        return Ok(false);
    }
    let mut start = Vec::new();
    File::open(path)?.take(magic.len() as u64).read_to_end(&mut start)?;
    Ok(magic.starts_with(&start))
}

/// What a folder holds that belongs to no checkpoint or adapter of this program, in words; of several the first by name.
fn stranger(folder: &Path, made: Made) -> io::Result<Option<String>> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (name, is_dir) = (entry.file_name(), entry.file_type()?.is_dir());
        if is_dir {
            return Ok(Some(format!("it holds the folder {}", name.display())));
        }
        let (belongs, kind): (fn(&str) -> bool, _) = match made {
            Made::Adapter => (is_of_adapter, "an adapter"),
            _ => (is_of_checkpoint, "a checkpoint"),
        };
        if !name.to_str().is_some_and(belongs) {
            return Ok(Some(format!("it holds {}, which is no file of {kind}", name.display())));
        }
    }
    Ok(None)
}

/// Removes the leftovers of an interrupted run, unless they are still being written.
fn remove_leftover(partial: &Path, made: Made) -> Result<(), CheckpointError> {
    let Ok(metadata) = fs::symlink_metadata(partial) else { return Ok(()) };
    let refused = |reason: String| CheckpointError::NotReplaced { path: partial.to_owned(), reason };
    if metadata.is_dir() {
        // Parts are made in a folder, too.
        let is_part = |name: &str| name.strip_suffix(".gguf").and_then(numbered).is_some();
        let entries = fs::read_dir(partial).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(CheckpointError::io(partial))?;
        if !entries.iter().all(|entry| entry.file_name().to_str().is_some_and(is_part))
            && let Some(stranger) = stranger(partial, made).map_err(CheckpointError::io(partial))?
        {
            return Err(refused(stranger));
        }
    } else {
        let begun = match made {
            Made::File(magic) => begins_with(partial, magic).map_err(CheckpointError::io(partial))?,
            Made::Folder | Made::Adapter => false,
        };
        if !begun {
            return Err(refused("an interrupted run would have left something else here".to_owned()));
        }
    }
    let lock = File::open(partial).map_err(CheckpointError::io(partial))?;
    if let Err(TryLockError::WouldBlock) = lock.try_lock() {
        let source = io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it; wait for it to end");
        return Err(CheckpointError::Io { path: partial.to_owned(), source });
    }
    remove(partial).map_err(CheckpointError::io(partial))
}

/// Removes a file, or a folder that holds nothing but files.
fn remove(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return fs::remove_file(path);
    }
    for entry in fs::read_dir(path)? {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(path)
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

    const GGUF: Made = Made::File(b"GGUF");

    #[test]
    fn a_name_is_taken_only_by_what_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("model.gguf");
        let partial = folder.path().join("model.gguf.partial");
        drop(Output::begin(&name, GGUF, false, 10).unwrap());
        assert!(!name.exists() && !partial.exists());
        let output = Output::begin(&name, GGUF, false, 10).unwrap();
        fs::write(output.path(), "GGUF new").unwrap();
        let busy = Output::begin(&name, GGUF, false, 10).map(drop).unwrap_err();
        assert!(busy.to_string().contains("another process"), "{busy}");
        output.commit().unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"GGUF new");
        assert!(matches!(Output::begin(&name, GGUF, false, 10), Err(CheckpointError::Exists { .. })));
        // The leftovers of an interrupted run are removed.
        fs::write(&partial, "GGUF old").unwrap();
        let output = Output::begin(&name, GGUF, true, 10).unwrap();
        output.commit().unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"");
    }

    /// Whether it is refused for this reason, and nothing is removed.
    fn refused(path: &Path, made: Made, force: bool, reason: &str) {
        let error = Output::begin(path, made, force, 0).map(drop).unwrap_err();
        assert!(matches!(error, CheckpointError::NotReplaced { .. }), "{error}");
        assert!(error.to_string().contains(reason) && !error.to_string().contains("--force"), "{reason}: {error}");
    }

    #[test]
    fn files_of_people_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("letters.txt"), "dear").unwrap();
        refused(folder.path(), Made::Folder, true, "it holds letters.txt, which is no file of a checkpoint");
        refused(&path("letters.txt"), GGUF, true, "another kind of file");
        refused(&path("letters.txt"), Made::Folder, true, "it is no folder");
        refused(folder.path(), GGUF, true, "it is a folder");
        fs::create_dir_all(path("model/mine")).unwrap();
        refused(&path("model"), Made::Folder, false, "the folder mine");
        fs::create_dir_all(path("only")).unwrap();
        fs::write(path("only/config.json"), "{}").unwrap();
        refused(&path("only"), Made::Folder, true, "without a whole checkpoint");
        // What only looks like a leftover.
        for (name, made) in [("a", Made::Folder), ("b", GGUF)] {
            fs::create_dir(path(&format!("{name}.partial"))).unwrap();
            fs::write(path(&format!("{name}.partial/diary")), "today").unwrap();
            refused(&path(name), made, true, "diary");
        }
        fs::write(path("c.partial"), "dear").unwrap();
        refused(&path("c"), GGUF, true, "something else");
        let parts = vec!["letters.txt".to_owned()];
        let error = Output::begin_parts(&path("x.gguf"), GGUF, parts, true, 0).map(drop).unwrap_err();
        assert!(error.to_string().contains("letters.txt: it is another kind of file"), "{error}");
        assert_eq!(fs::read(path("letters.txt")).unwrap(), b"dear");
        // An empty folder has nothing to lose.
        fs::create_dir(path("empty")).unwrap();
        Output::begin(&path("empty"), Made::Folder, false, 0).unwrap().commit().unwrap();
        assert!(matches!(
            Output::begin(&path("large"), Made::Folder, false, u64::MAX / 2),
            Err(CheckpointError::NoSpace { .. })
        ));
    }
}
