//! The file-system operations of a save, as a seam for faults.
//!
//! Everything that a save changes on disk goes through [`Disk`], one call an operation, so that a test can fail or
//! stop at each. Reading does not: what is on disk after a crash is read as any file is.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// What a save does to a disk.
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

    /// Appends all of `bytes`; after an error some of them may be there.
    ///
    /// # Errors
    /// The system's.
    fn write(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;

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

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
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
