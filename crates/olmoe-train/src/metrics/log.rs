//! `metrics.jsonl` and `samples.jsonl` of a run folder: appending, and continuing after a resume.

use std::fs::{File, TryLockError};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use olmoe_checkpoint::disk::{Disk, LocalDisk};

use super::{Line, Lines, MetricsError};

/// How often to try for the lock, which a reader holds for a moment when it checks for a writer.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(25);

/// A file to which a run appends lines.
///
/// The file is locked while it is open, so no two runs mix their lines, and a reader can recognise a run in progress. A
/// line is one write to the system, so it survives if the program is killed.
#[derive(Debug)]
pub struct Log<T, D: Disk = LocalDisk> {
    path: PathBuf,
    disk: D,
    file: D::File,
    /// The open file, which is locked.
    _lock: File,
    /// The length of the complete lines in bytes.
    length: u64,
    of: PhantomData<T>,
}

impl<T: Line> Log<T> {
    /// As [`open_on`](Log::open_on), on the disk of this machine.
    ///
    /// # Errors
    /// As [`open_on`](Log::open_on).
    pub fn open(folder: &Path, after: u64) -> Result<Log<T>, MetricsError> {
        Log::open_on(LocalDisk, folder, after)
    }
}

impl<T: Line, D: Disk> Log<T, D> {
    /// Opens the file of an existing run folder, to append what follows the step `after`: 0 for a run from its
    /// beginning.
    ///
    /// The first line of a later step and all lines after it are removed, and so is an incomplete last line. Both are a
    /// single truncation of the file at the end of a line, so a kept line is never at risk.
    ///
    /// # Errors
    /// [`MetricsError`]: another process is writing the file, a kept line is malformed, or an error of the system.
    pub fn open_on(disk: D, folder: &Path, after: u64) -> Result<Log<T, D>, MetricsError> {
        let path = folder.join(T::FILE_NAME);
        if path.exists() && !path.is_file() {
            return Err(MetricsError::NotAFile { path });
        }
        let file = disk.open_append(&path).map_err(MetricsError::io("open", &path))?;
        // The file is opened for reading, and for writing because some file systems require that for a lock.
        let held = File::options().read(true).append(true).open(&path).map_err(MetricsError::io("open", &path))?;
        lock(&held, &path)?;

        let mut reader = Lines::<T>::of(held.try_clone().map_err(MetricsError::io("read", &path))?, &path)?;
        let (mut length, mut terminated) = (0, true);
        while let Some(line) = reader.next().transpose()? {
            if line.step() > after {
                break;
            }
            (length, terminated) = (reader.offset, reader.terminated);
        }
        let mut log = Log { path, disk, file, _lock: held, length, of: PhantomData };
        log.mend().map_err(MetricsError::io("write", &log.path))?;
        if !terminated {
            log.write(b"\n")?;
        }
        Ok(log)
    }

    /// Appends a line; after an error the file is as it was before.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn append(&mut self, line: &T) -> Result<(), MetricsError> {
        let mut line = serde_json::to_vec(line).expect("maps of numbers and texts are always JSON");
        line.push(b'\n');
        self.write(&line)
    }

    /// Syncs all lines to disk; called for each checkpoint.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn sync(&self) -> Result<(), MetricsError> {
        self.disk.sync_file(&self.file).map_err(MetricsError::io("write", &self.path))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, line: &[u8]) -> Result<(), MetricsError> {
        if let Err(error) = self.disk.write(&mut self.file, line) {
            // Part of a line would corrupt the next one. If this fails, too, the next opening of the file repairs it.
            let _ = self.mend();
            return Err(MetricsError::io("write", &self.path)(error));
        }
        self.length += line.len() as u64;
        Ok(())
    }

    /// Truncates the file to its complete lines.
    fn mend(&mut self) -> std::io::Result<()> {
        if std::fs::metadata(&self.path)?.len() > self.length {
            self.disk.truncate(&mut self.file, self.length)?;
            self.disk.sync_file(&self.file)?;
        }
        Ok(())
    }
}

fn lock(file: &File, path: &Path) -> Result<(), MetricsError> {
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => sleep(BETWEEN_TRIES),
            // Some file systems have no locks; the run should not fail because of that.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(MetricsError::io("open", path)(error)),
        }
    }
    Err(MetricsError::InUse { path: path.to_owned() })
}
