//! Rows of bad checkpoints, and the check that all of them must pass.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::inference::Loading;
use olmoe_checkpoint::{Checkpoint, CheckpointError};
use olmoe_model::model::Precision;
use tempfile::TempDir;

use crate::memory::measured;

/// Ten times what any of them takes on a machine that does nothing else; large files have to be read, too.
const TIME: Duration = Duration::from_millis(100);
/// After this a row hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Everything a checkpoint is opened for: tensors, tokenizer, weights.
pub(crate) fn whole(path: &Path) -> Result<(), CheckpointError> {
    let checkpoint = Checkpoint::open(path)?;
    Companions::of(&checkpoint, None, false)?;
    checkpoint.load(&Loading::new(Precision::Fp32, false), &|_| ())?;
    Ok(())
}

struct Row {
    name: String,
    path: PathBuf,
    expected: Vec<String>,
    /// Bytes of all files.
    bytes: u64,
}

struct Outcome {
    error: Option<String>,
    time: Duration,
    memory: usize,
}

/// Bad checkpoints in a folder of their own.
pub(crate) struct Table {
    folder: TempDir,
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn new() -> Table {
        Table { folder: tempfile::tempdir().unwrap(), rows: Vec::new() }
    }

    /// A row made by `make` under a name that ends so.
    pub(crate) fn row(&mut self, name: &str, ending: &str, expected: &[&str], make: impl FnOnce(&Path)) {
        let path = self.folder.path().join(format!("row-{}{ending}", self.rows.len()));
        make(&path);
        let expected = expected.iter().map(|text| (*text).to_owned()).collect();
        self.rows.push(Row { name: name.to_owned(), bytes: size(&path), path, expected });
    }

    /// A row of a file with this ending.
    pub(crate) fn file(&mut self, name: &str, ending: &str, bytes: &[u8], expected: &[&str]) {
        self.row(name, ending, expected, |path| fs::write(path, bytes).unwrap());
    }

    /// A row of a good folder that `damage` changes.
    pub(crate) fn folder(&mut self, name: &str, good: &Path, expected: &[&str], damage: impl FnOnce(&Path)) {
        self.row(name, "", expected, |path| {
            copy(good, path);
            damage(path);
        });
    }

    /// All of them.
    pub(crate) fn check(self, kind: &str) {
        let Table { folder, rows } = self;
        let (send, outcomes) = mpsc::channel();
        let paths: Vec<PathBuf> = rows.iter().map(|row| row.path.clone()).collect();
        // On a thread that is left behind if it hangs.
        std::thread::spawn(move || {
            for path in paths {
                let began = Instant::now();
                let (result, memory) = measured(|| whole(&path));
                let time = began.elapsed();
                let error = result.err().map(|error| error.to_string());
                send.send(Outcome { error, time, memory }).unwrap();
            }
        });
        let mut slowest = (Duration::ZERO, String::new());
        let mut problems = Vec::new();
        for row in &rows {
            let name = &row.name;
            let outcome = outcomes.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{name}: a panic, or it hangs"));
            slowest = slowest.max((outcome.time, name.clone()));
            let Some(error) = outcome.error else {
                problems.push(format!("{name}: it was taken"));
                continue;
            };
            let place = row.path.display().to_string();
            let missing = row.expected.iter().chain([&place]).find(|part| !error.contains(*part));
            if let Some(part) = missing {
                problems.push(format!("{name}: no {part:?} in: {error}"));
            }
            if error.len() > 1200 || error.chars().any(char::is_control) {
                problems.push(format!("{name}: no message for people: {error:?}"));
            }
            // What is in the files in memory some times over, and the windows they are read through.
            let allowed = 16 * row.bytes as usize + (1 << 20);
            if outcome.memory > allowed {
                problems.push(format!("{name}: {} bytes of memory, allowed {allowed}", outcome.memory));
            }
            if outcome.time > TIME + Duration::from_nanos(50 * row.bytes) {
                problems.push(format!("{name}: {:?}", outcome.time));
            }
        }
        drop(folder);
        eprintln!("{kind}: {} rows, the slowest took {:?} ({})", rows.len(), slowest.0, slowest.1);
        assert!(problems.is_empty(), "{} of {} rows:\n{}", problems.len(), rows.len(), problems.join("\n"));
    }
}

/// Copies the files of a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Bytes of a file, or of the files of a folder; links and devices have none.
fn size(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            fs::read_dir(path).unwrap().map(|entry| size(&entry.unwrap().path())).sum()
        }
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => 0,
    }
}

/// Changes the text of a file: what is replaced must be there.
pub(crate) fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Changes the bytes of a file.
pub(crate) fn patch(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}
