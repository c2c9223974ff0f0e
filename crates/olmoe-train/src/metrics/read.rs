//! Reading a log, even while it is being written.

use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use super::{Line, MAX_LINE_BYTES, MetricsError};

/// The lines of a file, in order. Reading ends before an incomplete last line, and after an error.
#[derive(Debug)]
pub struct Lines<T> {
    path: PathBuf,
    input: BufReader<File>,
    line: Vec<u8>,
    number: u64,
    /// The number of bytes of the lines returned so far.
    pub(super) offset: u64,
    /// Whether the last returned line has a line break.
    pub(super) terminated: bool,
    ended: bool,
    of: PhantomData<T>,
}

impl<T: Line> Lines<T> {
    /// Opens a file.
    ///
    /// # Errors
    /// [`MetricsError::Io`], [`MetricsError::NotAFile`].
    pub fn open(path: &Path) -> Result<Lines<T>, MetricsError> {
        // Opening a pipe would block until its other end is opened.
        if !std::fs::metadata(path).map_err(MetricsError::io("read", path))?.is_file() {
            return Err(MetricsError::NotAFile { path: path.to_owned() });
        }
        Lines::of(File::open(path).map_err(MetricsError::io("read", path))?, path)
    }

    pub(super) fn of(mut file: File, path: &Path) -> Result<Lines<T>, MetricsError> {
        file.seek(SeekFrom::Start(0)).map_err(MetricsError::io("read", path))?;
        let input = BufReader::with_capacity(1 << 16, file);
        Ok(Lines {
            path: path.to_owned(),
            input,
            line: Vec::new(),
            number: 0,
            offset: 0,
            terminated: true,
            ended: false,
            of: PhantomData,
        })
    }

    fn read(&mut self) -> Result<Option<T>, MetricsError> {
        self.line.clear();
        self.number += 1;
        let (path, line) = (&self.path, self.number);
        let mut limited = self.input.by_ref().take(MAX_LINE_BYTES as u64 + 1);
        limited.read_until(b'\n', &mut self.line).map_err(MetricsError::io("read", path))?;
        if self.line.is_empty() {
            return Ok(None);
        }
        if self.line.len() > MAX_LINE_BYTES {
            return Err(MetricsError::TooLong { path: path.clone(), line });
        }
        let terminated = self.line.ends_with(b"\n");
        match serde_json::from_slice(&self.line) {
            Ok(record) => {
                self.offset += self.line.len() as u64;
                self.terminated = terminated;
                Ok(Some(record))
            }
            // A prefix of an object is never a valid object, so a line that does not parse is incomplete.
            Err(_) if !terminated => Ok(None),
            Err(error) => {
                let (path, reason) = (path.clone(), reason(&error));
                Err(MetricsError::Malformed { path, line, reason, example: T::EXAMPLE })
            }
        }
    }
}

/// The parser's message with the column.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text);
    // A name in the message may have any length.
    let mut short: String = text.chars().take(200).flat_map(char::escape_debug).collect();
    if error.column() > 0 {
        short = format!("{short} (column {})", error.column());
    }
    short
}

impl<T: Line> Iterator for Lines<T> {
    type Item = Result<T, MetricsError>;

    fn next(&mut self) -> Option<Result<T, MetricsError>> {
        if self.ended {
            return None;
        }
        let read = self.read().transpose();
        self.ended = !matches!(read, Some(Ok(_)));
        read
    }
}

/// Whether a process has the file open for appending.
pub fn is_being_written(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}
