//! A cache of encoded rows on disk, under a key of everything that the encoding depends on.
//!
//! A file holds a magic number, the key, the number of examples, their lengths, ids and weights, all little-endian, and
//! the BLAKE3 hash of everything before. A file whose hash does not agree or whose key is another one is made again.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use super::conversation::Example;
use super::error::InstructError;
use crate::Tokenizer;

/// The first bytes of a file; the last of them is the version.
const MAGIC: [u8; 8] = *b"OLMOEIN\x01";
/// The bytes before the lengths: magic number, key and number of examples.
const HEAD: usize = 8 + 32 + 8;
const HASH: usize = 32;

/// A hash of everything that the encoding of rows depends on.
pub type Key = [u8; 32];

/// The key of rows: a hash of the contents of their files, in order, the template, the tokenizer and all options. The
/// places and names of the files do not enter it.
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
        // The length comes first, so that the concatenation of parts is unambiguous.
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

/// Writes examples. The file gets its name only when it is complete.
///
/// # Errors
/// Errors of the system.
pub fn store(path: &Path, key: &Key, examples: &[Example]) -> Result<(), InstructError> {
    let failed = |error: io::Error| cache("write", path, error.to_string());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let write = || {
        let mut out = Hashed { hash: blake3::Hasher::new(), inner: BufWriter::new(File::create(&temporary)?) };
        out.write_all(&MAGIC)?;
        out.write_all(key)?;
        out.write_all(&(examples.len() as u64).to_le_bytes())?;
        for example in examples {
            out.write_all(&(example.ids.len() as u64).to_le_bytes())?;
        }
        for id in examples.iter().flat_map(|example| &example.ids) {
            out.write_all(&id.to_le_bytes())?;
        }
        for weight in examples.iter().flat_map(|example| &example.weights) {
            out.write_all(&weight.to_le_bytes())?;
        }
        let Hashed { hash, mut inner } = out;
        inner.write_all(hash.finalize().as_bytes())?;
        inner.into_inner()?.sync_all()?;
        std::fs::rename(&temporary, path)?;
        // Syncing the folder brings the file's name to disk.
        match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    };
    if let Some(example) = examples.iter().find(|example| example.ids.len() != example.weights.len()) {
        let (ids, weights) = (example.ids.len(), example.weights.len());
        return Err(cache("write", path, format!("an example has {ids} tokens and {weights} weights")));
    }
    write().map_err(failed)
}

/// Reads examples; None if there is no such file or it has another key.
///
/// # Errors
/// A file that is damaged or cannot be read.
pub fn load(path: &Path, key: &Key) -> Result<Option<Vec<Example>>, InstructError> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| cache("read", path, error.to_string()))?,
    };
    let damaged = |message: &str| cache("read", path, message.to_owned());
    if bytes.len() < HEAD + HASH || bytes[..8] != MAGIC {
        return Err(damaged("it is not a file of encoded rows of this version, or it is truncated"));
    }
    if bytes[8..40] != key[..] {
        return Ok(None);
    }
    let (content, hash) = bytes.split_at(bytes.len() - HASH);
    if blake3::hash(content).as_bytes()[..] != *hash {
        return Err(damaged("its content does not agree with its hash"));
    }
    let wrong = || damaged("its lengths do not fit its size");
    let number = |at: usize| {
        let bytes = content.get(at..at.checked_add(8)?)?;
        usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let count = number(HEAD - 8).filter(|count| *count <= content.len() / 8).ok_or_else(wrong)?;
    let lengths: Option<Vec<usize>> = (0..count).map(|row| number(HEAD + 8 * row)).collect();
    let lengths = lengths.ok_or_else(wrong)?;
    let total = lengths.iter().try_fold(0usize, |sum, length| sum.checked_add(*length)).ok_or_else(wrong)?;
    let numbers = &content[HEAD + 8 * count..];
    if total.checked_mul(8) != Some(numbers.len()) {
        return Err(wrong());
    }
    let (ids, weights) = numbers.split_at(4 * total);
    let (ids, weights) = (ids.as_chunks::<4>().0, weights.as_chunks::<4>().0);
    let mut at = 0;
    let examples = lengths.into_iter().map(|length| {
        let range = at..at + length;
        at += length;
        Example {
            ids: ids[range.clone()].iter().map(|id| u32::from_le_bytes(*id)).collect(),
            weights: weights[range].iter().map(|weight| f32::from_le_bytes(*weight)).collect(),
        }
    });
    Ok(Some(examples.collect()))
}

fn cache(action: &'static str, path: &Path, message: String) -> InstructError {
    InstructError::Cache { action, path: path.to_owned(), message }
}

/// A writer that hashes what it writes.
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
