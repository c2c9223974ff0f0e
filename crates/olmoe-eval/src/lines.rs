//! Files of JSON lines that grow: answers, verdicts of judges, ends of programs.
//!
//! A line counts when its end is there: what a crash left of the last one is cut off before another is appended.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use olmoe_checkpoint::disk::{Disk, LocalDisk, make_folders};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// After so long, what was appended is made durable.
const BETWEEN_SYNCS: Duration = Duration::from_secs(5);

/// The records of a file, and how many of its lines are none. A file that is not there has none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<(Vec<T>, usize)> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        bytes => bytes?,
    };
    let (mut records, mut damaged) = (Vec::new(), 0);
    for line in bytes[..whole(&bytes)].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(record) => records.push(record),
            Err(_) => damaged += 1,
        }
    }
    Ok((records, damaged))
}

/// A record as a line, with its end.
pub(crate) fn line(record: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string(record)? + "\n")
}

/// A file that records are appended to. It is made with the first one.
pub(crate) struct Appended {
    path: PathBuf,
    file: Option<File>,
    synced: Instant,
}

impl Appended {
    pub(crate) fn at(path: &Path) -> Appended {
        Appended { path: path.to_owned(), file: None, synced: Instant::now() }
    }

    /// Appends a record.
    pub(crate) fn push(&mut self, record: &impl Serialize) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                make_folders(&LocalDisk, self.path.parent().unwrap_or(Path::new("")))?;
                none.insert(open(&self.path)?)
            }
        };
        LocalDisk.write(file, line(record)?.as_bytes())?;
        if self.synced.elapsed() > BETWEEN_SYNCS {
            file.sync_data()?;
            self.synced = Instant::now();
        }
        Ok(())
    }

    /// Makes what was appended durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }
}

/// Opens a file to append to its whole lines.
fn open(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).open(path)?;
    let bytes = std::fs::read(path)?;
    let whole = whole(&bytes);
    if whole < bytes.len() {
        file.set_len(whole as u64)?;
    }
    Ok(file)
}

/// The length of the whole lines.
fn whole(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_is_cut_off_and_a_damaged_one_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.jsonl");
        assert_eq!(read::<u32>(&path).unwrap(), (Vec::new(), 0));
        let mut appended = Appended::at(&path);
        assert!(!path.exists());
        appended.push(&1).unwrap();
        appended.push(&2).unwrap();
        appended.sync().unwrap();
        std::fs::write(&path, "1\nx\n2\n3").unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), (vec![1, 2], 1));
        Appended::at(&path).push(&40).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\nx\n2\n40\n");
    }
}
