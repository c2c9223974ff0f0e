//! The file-system operations of a run, as a seam for faults.
//!
//! Everything that a run changes on disk goes through [`Disk`], one call an operation, so that a test can fail or
//! stop at each: checkpoints, and the files beside them. Reading does not: what is on disk after a crash is read as any
//! file is. Locks do not either: they end with the process.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// Bytes of a file that are written at once.
const BUFFER: usize = 1 << 20;

/// What a run does to a disk.
///
/// Errors are what the system says, unless noted.
pub trait Disk {
    /// A file being written.
    type File;

    /// Makes a folder that does not exist, in one that does.
    ///
    /// # Errors
    /// The system's.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes a file that does not exist.
    ///
    /// # Errors
    /// The system's.
    fn create_file(&self, path: &Path) -> io::Result<Self::File>;

    /// Opens a file to append to, and makes it if there is none.
    ///
    /// # Errors
    /// The system's.
    fn open_append(&self, path: &Path) -> io::Result<Self::File>;

    /// Appends all of `bytes`; after an error some of them may be there.
    ///
    /// # Errors
    /// The system's.
    fn write(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a file to its first `length` bytes; what is written next comes behind these.
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

    /// Renames at once: a file, link or pointer replaces the one there, a folder takes a free name.
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes a pointer at `path` to its neighbour `target`: a symbolic link where any user may make one, else a file
    /// that holds the name.
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

    /// Bytes that may still be written to the file system of `path`.
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

    // Folders cannot be opened there; the journal of the file system orders the names.
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

/// Writes a file that has its name only when all that `fill` writes is in it and on disk; another of that name is there
/// until then. Returns the file, to which more can be appended.
///
/// # Errors
/// The system's. What was written so far may be left, under another name, which the next call removes.
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
    // Not dropped as a whole: that would write again after an error.
    drop(out.into_parts());
    filled?;
    disk.sync_file(&file)?;
    disk.rename(&temporary, path)?;
    disk.sync_dir(parent(path))?;
    Ok(file)
}

/// Makes a folder and those above it that are not there, each known to the one above when this returns.
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
