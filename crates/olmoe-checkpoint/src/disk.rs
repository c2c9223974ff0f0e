//! The file-system operations of a run, as an interface in which tests inject faults.
//!
//! A run changes checkpoints and the files beside them only through [`Disk`], one call for each operation, so that a
//! test can fail or stop at each. Reads do not go through it, because files after a crash are read as any other. Locks
//! do not either, because they end with the process.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// Size of the write buffer in bytes.
const BUFFER: usize = 1 << 20;

/// The file-system operations of a run.
///
/// Errors are those of the system, unless noted.
pub trait Disk {
    /// A file being written.
    type File;

    /// Creates a folder in an existing one.
    ///
    /// # Errors
    /// The system's.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Creates a file that must not exist.
    ///
    /// # Errors
    /// The system's.
    fn create_file(&self, path: &Path) -> io::Result<Self::File>;

    /// Opens a file to append to it, and creates it if it does not exist.
    ///
    /// # Errors
    /// The system's.
    fn open_append(&self, path: &Path) -> io::Result<Self::File>;

    /// Appends all of `bytes`; after an error some of them may have been written.
    ///
    /// # Errors
    /// The system's.
    fn write(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;

    /// Truncates a file to its first `length` bytes; later writes append to these.
    ///
    /// # Errors
    /// The system's.
    fn truncate(&self, file: &mut Self::File, length: u64) -> io::Result<()>;

    /// Returns when the contents of the file would survive a loss of power.
    ///
    /// # Errors
    /// The system's.
    fn sync_file(&self, file: &Self::File) -> io::Result<()>;

    /// Returns when the names in the folder would survive a loss of power.
    ///
    /// # Errors
    /// The system's.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Renames atomically. A file, link or pointer replaces an existing one; a folder needs a name that does not exist.
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Creates a pointer at `path` to `target` in the same folder: a symbolic link where every user may create one,
    /// else a file with the name.
    ///
    /// # Errors
    /// The system's.
    fn point(&self, path: &Path, target: &str) -> io::Result<()>;

    /// Removes a file, link or pointer.
    ///
    /// # Errors
    /// The system's.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty folder.
    ///
    /// # Errors
    /// The system's.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Free bytes of the file system of `path`.
    ///
    /// # Errors
    /// The system's.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// The disk of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalDisk;

impl Disk for LocalDisk {
    type File = File;

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    fn create_file(&self, path: &Path) -> io::Result<File> {
        File::create_new(path)
    }

    fn open_append(&self, path: &Path) -> io::Result<File> {
        File::options().append(true).create(true).open(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn truncate(&self, file: &mut File, length: u64) -> io::Result<()> {
        file.set_len(length)?;
        file.seek(SeekFrom::Start(length)).map(drop)
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    #[cfg(unix)]
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    // Folders cannot be opened on that system; the journal of the file system orders the changes of names.
    #[cfg(not(unix))]
    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    #[cfg(unix)]
    fn point(&self, path: &Path, target: &str) -> io::Result<()> {
        std::os::unix::fs::symlink(target, path)
    }

    #[cfg(not(unix))]
    fn point(&self, path: &Path, target: &str) -> io::Result<()> {
        std::fs::write(path, target)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        fs4::available_space(path)
    }
}

/// Writes a file that gets its name only when everything that `fill` writes is on disk; until then an existing file of
/// that name stays. Returns the file, to which more can be appended.
///
/// # Errors
/// Those of the system. A partial file may be left under another name; the next call removes it.
pub fn write_whole<D: Disk>(
    disk: &D,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<D::File> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    if std::fs::symlink_metadata(&temporary).is_ok() {
        disk.remove_file(&temporary)?;
    }
    let mut file = disk.create_file(&temporary)?;
    let mut out = BufWriter::with_capacity(BUFFER, Appending { disk, file: &mut file });
    let filled = fill(&mut out).and_then(|()| out.flush());
    // The buffer is not dropped, because that would write again after an error.
    drop(out.into_parts());
    filled?;
    disk.sync_file(&file)?;
    disk.rename(&temporary, path)?;
    disk.sync_dir(parent(path))?;
    Ok(file)
}

/// Creates a folder and its missing parents; each is durable in its parent when this returns.
///
/// # Errors
/// The system's.
pub fn make_folders(disk: &impl Disk, path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    make_folders(disk, parent(path))?;
    disk.create_dir(path)?;
    disk.sync_dir(parent(path))
}

/// The folder that a path is in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

struct Appending<'a, D: Disk> {
    disk: &'a D,
    file: &'a mut D::File,
}

impl<D: Disk> Write for Appending<'_, D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write(self.file, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
