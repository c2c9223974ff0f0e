//! The folder of a program: the only place where it writes.

use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Limits, SandboxError};

/// A folder that is removed with all that a program made in it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// An empty one among the temporary files, for this user only.
    pub(super) fn new() -> Result<Folder, SandboxError> {
        let place = std::env::temp_dir();
        let made = tempfile::Builder::new().prefix("olmoe-program-").tempdir_in(&place);
        // Removed by `empty`: a program may nest folders deeper than the recursion of the standard library goes.
        let path = made.map_err(|source| SandboxError::Folder { path: place, source })?.keep();
        Ok(Folder { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), SandboxError> {
        let path = self.path.join(name);
        fs::write(&path, text).map_err(|source| SandboxError::Folder { path, source })
    }

    /// Whether there are more files or bytes in it than allowed. What cannot be counted, as its path is too long or its
    /// mode hides it, counts as too many.
    pub(super) fn exceeds(&self, limits: &Limits) -> bool {
        let mut folders = vec![self.path.clone()];
        let (mut files, mut bytes) = (0, 0);
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                // Removed by the program in the meantime.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) => return true,
            };
            for entry in entries.flatten() {
                files += 1;
                match entry.metadata() {
                    Ok(data) if data.is_dir() => folders.push(entry.path()),
                    Ok(data) => bytes += data.len(),
                    Err(_) => {}
                }
                // The program itself is one file.
                if files > limits.files.saturating_add(1) || bytes > limits.folder_bytes {
                    return true;
                }
            }
        }
        false
    }

    /// Removes what is in it, level by level: what is in a folder moves up first, so that no path gets long and no
    /// recursion deep.
    fn empty(&self) -> io::Result<()> {
        let mut moved = 0_u64;
        loop {
            let entries: Vec<DirEntry> = fs::read_dir(&self.path)?.collect::<io::Result<_>>()?;
            if entries.is_empty() {
                return Ok(());
            }
            for entry in entries {
                if !entry.file_type()?.is_dir() {
                    fs::remove_file(entry.path())?;
                    continue;
                }
                open_to_owner(&entry.path())?;
                for inner in fs::read_dir(entry.path())? {
                    let inner = inner?;
                    if inner.file_type()?.is_dir() {
                        // A folder has to be written for its `..` to change.
                        open_to_owner(&inner.path())?;
                        fs::rename(inner.path(), self.path.join(format!(".moved-{moved}")))?;
                        moved += 1;
                    } else {
                        fs::remove_file(inner.path())?;
                    }
                }
                fs::remove_dir(entry.path())?;
            }
        }
    }
}

/// Lets the owner read and write a folder.
fn open_to_owner(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays among the temporary files; no result depends on it.
        let _ = self.empty().and_then(|()| fs::remove_dir(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_whatever_is_in_it() {
        let folder = Folder::new().unwrap();
        let path = folder.path().to_owned();
        // Deeper than a path may be long: each folder goes into the next.
        let level = |level: usize| path.join(format!("level-{level}"));
        fs::create_dir(level(0)).unwrap();
        for above in 1..3000 {
            fs::create_dir(level(above)).unwrap();
            fs::rename(level(above - 1), level(above).join("inside")).unwrap();
        }
        let deep = level(2999);
        fs::write(deep.join(".moved-0"), "text").unwrap();
        fs::create_dir(path.join(".moved-0")).unwrap();
        assert!(folder.exceeds(&Limits::default()));
        // What cannot be reached to be counted is too much.
        assert!(folder.exceeds(&Limits { files: usize::MAX, ..Limits::default() }));
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn files_and_bytes_are_counted() {
        let folder = Folder::new().unwrap();
        let limits = Limits { files: 2, folder_bytes: 10, ..Limits::default() };
        folder.write("program.py", "1").unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        folder.write("a/b", "23").unwrap();
        assert!(!folder.exceeds(&limits));
        folder.write("a/b", "0123456789").unwrap();
        assert!(folder.exceeds(&limits));
        folder.write("a/b", "").unwrap();
        folder.write("c", "").unwrap();
        assert!(folder.exceeds(&limits));
    }
}
