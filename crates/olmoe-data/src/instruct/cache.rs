//! Encoded rows on disk, under a key of all that decides about them.
//!
//! A file is a magic number, the key, three counts (rows, sequences, bytes of the report), what each row is, the lengths of the
//! sequences, their ids and their weights, numbers little endian, the report as JSON, and a blake3 of all before it. What does
//! not agree with its hash, or has another key, is made again.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use super::conversation::{Encoded, Example, LabelledExample, PairExample};
use super::error::InstructError;
use super::report::Report;
use crate::Tokenizer;

/// The first bytes; the last of them is the version.
const MAGIC: [u8; 8] = *b"OLMOEIN\x02";
/// Bytes before the rows: magic, key and counts.
const HEAD: usize = 8 + 32 + 3 * 8;
const HASH: usize = 32;
/// What a row is.
const SAMPLE: u8 = 0;
const PAIR: u8 = 1;
const UNDESIRABLE: u8 = 2;
const DESIRABLE: u8 = 3;

/// A key of everything that decides about encoded rows.
pub type Key = [u8; 32];

/// The key of rows: the content of their files, the template, the tokenizer and whatever options there are. Where the files
/// are and what they are called does not matter; their order does.
///
/// # Errors
/// A file that cannot be read.
pub fn cache_key(
    files: &[impl AsRef<Path>],
    template: &str,
    tokenizer: &Tokenizer,
    options: &impl Serialize,
) -> Result<Key, InstructError> {
    let mut key = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        // The length first, so that no end of one thing is the beginning of the next.
        key.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    add(&MAGIC);
    add(template.as_bytes());
    add(tokenizer.json());
    let options = serde_json::to_vec(options).map_err(|error| InstructError::Setting {
        key: "options",
        value: error.to_string(),
        expected: "what can be written as JSON".to_owned(),
    })?;
    add(&options);
    for path in files {
        let path = path.as_ref();
        let mut file = blake3::Hasher::new();
        let read = File::open(path).and_then(|opened| {
            let mut opened = BufReader::with_capacity(1 << 18, opened);
            io::copy(&mut opened, &mut file)
        });
        read.map_err(InstructError::unreadable(path))?;
        add(file.finalize().as_bytes());
    }
    Ok(*key.finalize().as_bytes())
}

/// The sequences of a row.
fn sequences(row: &Encoded) -> impl Iterator<Item = &Example> {
    let (first, second) = match row {
        Encoded::Example(example) => (example, None),
        Encoded::Pair(pair) => (&pair.chosen, Some(&pair.rejected)),
        Encoded::Labelled(labelled) => (&labelled.example, None),
    };
    std::iter::once(first).chain(second)
}

fn kind(row: &Encoded) -> u8 {
    match row {
        Encoded::Example(_) => SAMPLE,
        Encoded::Pair(_) => PAIR,
        Encoded::Labelled(labelled) if labelled.desirable => DESIRABLE,
        Encoded::Labelled(_) => UNDESIRABLE,
    }
}

/// Writes rows and what became of all that they were made from. The file has its name only when it is complete.
///
/// # Errors
/// What the system says.
pub fn store(path: &Path, key: &Key, rows: &[Encoded], report: &Report) -> Result<(), InstructError> {
    let failed = |error: io::Error| cache("write", path, error.to_string());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let all = || rows.iter().flat_map(sequences);
    let report = serde_json::to_vec(report).map_err(|error| cache("write", path, error.to_string()))?;
    let write = || {
        let mut out = Hashed { hash: blake3::Hasher::new(), inner: BufWriter::new(File::create(&temporary)?) };
        out.write_all(&MAGIC)?;
        out.write_all(key)?;
        for count in [rows.len(), all().count(), report.len()] {
            out.write_all(&(count as u64).to_le_bytes())?;
        }
        for row in rows {
            out.write_all(&[kind(row)])?;
        }
        for example in all() {
            out.write_all(&(example.ids.len() as u64).to_le_bytes())?;
        }
        for id in all().flat_map(|example| &example.ids) {
            out.write_all(&id.to_le_bytes())?;
        }
        for weight in all().flat_map(|example| &example.weights) {
            out.write_all(&weight.to_le_bytes())?;
        }
        out.write_all(&report)?;
        let Hashed { hash, mut inner } = out;
        inner.write_all(hash.finalize().as_bytes())?;
        inner.into_inner()?.sync_all()?;
        std::fs::rename(&temporary, path)?;
        // The name is on disk only with its folder.
        match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    };
    if let Some(example) = all().find(|example| example.ids.len() != example.weights.len()) {
        let (ids, weights) = (example.ids.len(), example.weights.len());
        return Err(cache("write", path, format!("an example has {ids} tokens and {weights} weights")));
    }
    write().map_err(|error| {
        // What could not be finished takes room for nothing.
        let _ = std::fs::remove_file(&temporary);
        failed(error)
    })
}

/// Reads rows; nothing if there is no such file or it is of another key.
///
/// # Errors
/// A file that is damaged or cannot be read.
pub fn load(path: &Path, key: &Key) -> Result<Option<(Vec<Encoded>, Report)>, InstructError> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| cache("read", path, error.to_string()))?,
    };
    let damaged = |message: &str| cache("read", path, message.to_owned());
    if bytes.len() < HEAD + HASH || bytes[..8] != MAGIC {
        return Err(damaged("it is no file of encoded rows of this version, or was cut off"));
    }
    if bytes[8..40] != key[..] {
        return Ok(None);
    }
    let (content, hash) = bytes.split_at(bytes.len() - HASH);
    if blake3::hash(content).as_bytes()[..] != *hash {
        return Err(damaged("its hash is another one than it was written with"));
    }
    parsed(content).map(Some).ok_or_else(|| damaged("its lengths do not fit its size"))
}

/// The rows of a file whose hash is right; nothing if its counts and lengths contradict each other.
fn parsed(content: &[u8]) -> Option<(Vec<Encoded>, Report)> {
    let (counts, rest) = content.get(HEAD - 24..)?.split_at_checked(24)?;
    let number = |bytes: &[u8; 8]| usize::try_from(u64::from_le_bytes(*bytes)).ok();
    let [rows, sequences, report] = counts.as_chunks::<8>().0 else { return None };
    let (rows, sequences, report) = (number(rows)?, number(sequences)?, number(report)?);
    let (kinds, rest) = rest.split_at_checked(rows)?;
    let (lengths, rest) = rest.split_at_checked(sequences.checked_mul(8)?)?;
    let lengths = lengths.as_chunks::<8>().0.iter().map(number).collect::<Option<Vec<usize>>>()?;
    let total = lengths.iter().try_fold(0usize, |sum, length| sum.checked_add(*length))?;
    let (ids, rest) = rest.split_at_checked(total.checked_mul(4)?)?;
    let (weights, rest) = rest.split_at_checked(total * 4)?;
    if rest.len() != report {
        return None;
    }
    let (ids, weights) = (ids.as_chunks::<4>().0, weights.as_chunks::<4>().0);
    let mut at = 0;
    let mut examples = lengths.into_iter().map(|length| {
        let range = at..at + length;
        at += length;
        Example {
            ids: ids[range.clone()].iter().map(|id| u32::from_le_bytes(*id)).collect(),
            weights: weights[range].iter().map(|weight| f32::from_le_bytes(*weight)).collect(),
        }
    });
    let mut encoded = Vec::with_capacity(rows);
    for kind in kinds {
        let first = examples.next()?;
        encoded.push(match *kind {
            SAMPLE => Encoded::Example(first),
            PAIR => Encoded::Pair(PairExample::new(first, examples.next()?)),
            UNDESIRABLE | DESIRABLE => Encoded::Labelled(LabelledExample::new(first, *kind == DESIRABLE)),
            _ => return None,
        });
    }
    let report = serde_json::from_slice(rest).ok()?;
    examples.next().is_none().then_some((encoded, report))
}

fn cache(action: &'static str, path: &Path, message: String) -> InstructError {
    InstructError::Cache { action, path: path.to_owned(), message }
}

/// Hashes what is written.
struct Hashed<W> {
    hash: blake3::Hasher,
    inner: W,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
