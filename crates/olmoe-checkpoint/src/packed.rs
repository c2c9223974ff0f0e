//! A file with the packed weights of a checkpoint, from which the next load reads them without packing.
//!
//! ```text
//! magic     8 bytes, "OLMOEPKD"
//! version   u32, little-endian like all of it
//! length    u32, bytes of the header
//! hash      blake3 of the header
//! header    JSON: what the bytes depend on, and each piece with its hash
//! pieces    at multiples of 4096: all forms of a parameter, as they are in memory
//! ```
//!
//! The header describes the checkpoint and the packing, and the file is used only if both are unchanged: the sizes and
//! times of the checkpoint's files, their tensors and a sample of their bytes; the precision; and a hash of some known
//! weights after packing, which changes with the packed layout. Every piece is hashed while it is read. The hashes
//! protect against accidents, not against attacks: whoever can write the file could also write the checkpoint.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use olmoe_model::model::Model;
use olmoe_tensor::gemm::Operand;
use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::linear::PackedWeight;
use olmoe_tensor::quant::BlockFormat;
use olmoe_tensor::quant::product::QuantizedWeight;
use olmoe_tensor::threads::{Shared, parallel};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::checkpoint::Checkpoint;
use crate::disk::{Disk, LocalDisk};
use crate::error::CheckpointError;
use crate::loading::Loading;
use crate::output::{Made, Output};
use crate::read_at::ReadAt;

const MAGIC: &[u8; 8] = b"OLMOEPKD";
const VERSION: u32 = 1;
/// Bytes before the header.
const BEFORE: usize = MAGIC.len() + 4 + 4 + blake3::OUT_LEN;
/// Longest header that is read.
const MAX_HEADER: usize = 64 << 20;
/// Alignment of the pieces.
const PAGE: u64 = 4096;
/// Bytes that a thread reads and hashes at once, so that they are still in its cache.
const AT_ONCE: usize = 256 << 10;
/// The sample of a file that distinguishes it from another of the same size and time: so many pages, evenly spread.
const SAMPLES: u64 = 64;

/// What the packed bytes depend on, and their places.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PackedHeader {
    source: CheckpointIdentity,
    precision: String,
    /// Whether quantised matrices stay quantised.
    keep_blocks: bool,
    /// Hash of some known weights after packing.
    layout: String,
    pieces: Vec<PackedPiece>,
}

/// What identifies a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct CheckpointIdentity {
    files: Vec<SourceFile>,
    /// Hash of the configuration, the table of tensors, and samples of the files.
    hash: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SourceFile {
    name: String,
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: i128,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PackedPiece {
    parameter: String,
    offset: u64,
    bytes: u64,
    /// 16 hexadecimal digits.
    hash: String,
}

/// Why a file of packed weights cannot be used.
#[derive(Debug, PartialEq)]
pub(crate) enum Unusable {
    /// It does not exist.
    Absent,
    /// It is damaged or does not belong to the checkpoint.
    Because(String),
}

fn because(reason: impl Into<String>) -> Unusable {
    Unusable::Because(reason.into())
}

/// The packed weights of a checkpoint as a file.
#[derive(Debug)]
pub(crate) struct PackedCache {
    path: PathBuf,
    /// The expected header, with empty hashes.
    expected: PackedHeader,
    end: u64,
}

impl PackedCache {
    /// The file for this model of this checkpoint.
    pub(crate) fn new(
        path: &Path,
        checkpoint: &Checkpoint,
        loading: &Loading,
        model: &mut Model,
    ) -> Result<PackedCache, CheckpointError> {
        let mut header = PackedHeader {
            source: source(checkpoint)?,
            precision: loading.precision.name().to_owned(),
            keep_blocks: loading.keep_blocks,
            layout: layout(),
            pieces: Vec::new(),
        };
        for id in 0..model.parameters().len() {
            let name = model.parameters()[id].name.clone();
            header.pieces.extend(model.held_mut(id).map(|bytes| PackedPiece {
                parameter: name.clone(),
                offset: 0,
                bytes: bytes.len() as u64,
                hash: hex(0),
            }));
        }
        // Offsets lengthen the header, and the header moves the pieces, so room for the longest header is reserved.
        let room = header.pieces.len() * u64::MAX.to_string().len();
        let json = serde_json::to_vec(&header).map_err(|error| CheckpointError::io(path)(error.into()))?;
        let mut at = ((BEFORE + json.len() + room) as u64).next_multiple_of(PAGE);
        for piece in &mut header.pieces {
            piece.offset = at;
            at = (at + piece.bytes).next_multiple_of(PAGE);
        }
        Ok(PackedCache { path: path.to_owned(), expected: header, end: at })
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.end
    }

    /// Fills the model from the file. After an error its parameters are arbitrary.
    pub(crate) fn read(&self, model: &mut Model, advance: &(dyn Fn(u64) + Sync)) -> Result<(), Unusable> {
        let metadata = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(Unusable::Absent),
            Err(error) => return Err(because(error.to_string())),
            Ok(metadata) => metadata,
        };
        if !metadata.is_file() {
            return Err(because("it is not a regular file"));
        }
        let file = File::open(&self.path).map_err(|error| because(error.to_string()))?;
        let header = self.header(&file)?;
        let mut pieces = header.pieces.iter();
        for id in 0..model.parameters().len() {
            for bytes in model.held_mut(id) {
                let Some(piece) = pieces.next() else { return Err(because("it lacks a piece")) };
                let hash = read_piece(&file, piece.offset, bytes, advance)
                    .ok_or_else(|| because(format!("{} cannot be read", piece.parameter)))?;
                if hex(hash) != piece.hash {
                    return Err(because(format!("its piece for {} is damaged", piece.parameter)));
                }
            }
        }
        Ok(())
    }

    /// The header, if it is undamaged and, except for the hashes of the pieces, as expected.
    fn header(&self, file: &File) -> Result<PackedHeader, Unusable> {
        let mut before = [0; BEFORE];
        let length = ReadAt::len(file).map_err(|error| because(error.to_string()))?;
        file.read_at(0, &mut before).map_err(|_| because("it is cut short"))?;
        let (magic, rest) = before.split_at(MAGIC.len());
        let number = |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        if magic != MAGIC {
            return Err(because("it is not a file of packed weights"));
        }
        if number(0) != VERSION {
            return Err(because("it was made by another version of this program"));
        }
        let header_bytes = number(4) as usize;
        if header_bytes > MAX_HEADER || (BEFORE + header_bytes) as u64 > length {
            return Err(because("it is cut short"));
        }
        let mut json = vec![0; header_bytes];
        file.read_at(BEFORE as u64, &mut json).map_err(|_| because("it is cut short"))?;
        if blake3::hash(&json).as_bytes() != &rest[8..] {
            return Err(because("its header is damaged"));
        }
        let found: PackedHeader = serde_json::from_slice(&json).map_err(|_| because("its header is damaged"))?;
        let expected = &self.expected;
        if found.source != expected.source {
            return Err(because("the checkpoint has changed since, or it belongs to another"));
        }
        if (&found.precision, found.keep_blocks) != (&expected.precision, expected.keep_blocks) {
            return Err(because("it was made for another precision"));
        }
        let place = |piece: &PackedPiece| (piece.parameter.clone(), piece.offset, piece.bytes);
        let same = found.pieces.iter().map(place).eq(expected.pieces.iter().map(place));
        if found.layout != expected.layout || !same {
            return Err(because("it was made by another version of this program"));
        }
        if length != self.end {
            return Err(because(format!("it has {length} bytes, expected {}", self.end)));
        }
        Ok(found)
    }

    /// Writes the file, which gets its name when every byte is on disk.
    pub(crate) fn write(&self, model: &mut Model, advance: &dyn Fn(u64)) -> Result<(), CheckpointError> {
        let output = Output::begin(&self.path, Made::File(MAGIC), true, self.end)?;
        let io = || CheckpointError::io(output.path());
        let mut file = File::options().write(true).open(output.path()).map_err(io())?;
        let mut header = self.expected.clone();
        let mut hashes = Vec::with_capacity(header.pieces.len());
        for id in 0..model.parameters().len() {
            hashes.extend(model.held_mut(id).map(|bytes| hex(hash(bytes))));
        }
        header.pieces.iter_mut().zip(hashes).for_each(|(piece, hash)| piece.hash = hash);
        let json = serde_json::to_vec(&header).map_err(|error| CheckpointError::io(output.path())(error.into()))?;
        let mut head = Vec::with_capacity(BEFORE + json.len());
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&(json.len() as u32).to_le_bytes());
        head.extend_from_slice(blake3::hash(&json).as_bytes());
        head.extend_from_slice(&json);
        let mut written = 0;
        let mut put = |bytes: &[u8], offset: u64| {
            let filling = vec![0; (offset - written) as usize];
            LocalDisk.write(&mut file, &filling).map_err(io())?;
            for bytes in bytes.chunks(AT_ONCE) {
                LocalDisk.write(&mut file, bytes).map_err(io())?;
                advance(bytes.len() as u64);
            }
            written = offset + bytes.len() as u64;
            Ok::<(), CheckpointError>(())
        };
        put(&head, 0)?;
        let mut pieces = header.pieces.iter();
        for id in 0..model.parameters().len() {
            for (bytes, piece) in model.held_mut(id).zip(pieces.by_ref()) {
                put(bytes, piece.offset)?;
            }
        }
        put(&[], self.end)?;
        LocalDisk.sync_file(&file).map_err(io())?;
        output.commit()
    }
}

fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}

/// The hash of a piece: the hash of the hashes of its parts, which are computed in parallel.
fn hash(bytes: &[u8]) -> u64 {
    let mut hashes = vec![0; bytes.len().div_ceil(AT_ONCE)];
    let shared = Shared::new(&mut hashes);
    parallel(bytes.len().div_ceil(AT_ONCE), |at| {
        let part = &bytes[at * AT_ONCE..((at + 1) * AT_ONCE).min(bytes.len())];
        // SAFETY: each task has a place of its own.
        let hash = unsafe { shared.range(at..at + 1) };
        hash[0] = xxh3_64(part);
    });
    join(&hashes)
}

fn join(hashes: &[u64]) -> u64 {
    xxh3_64(&hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect::<Vec<u8>>())
}

/// Reads a piece on all threads and returns its hash; `None` if it cannot be read.
fn read_piece(file: &File, offset: u64, bytes: &mut [u8], advance: &(dyn Fn(u64) + Sync)) -> Option<u64> {
    let (len, failed) = (bytes.len(), AtomicBool::new(false));
    let mut hashes = vec![0; len.div_ceil(AT_ONCE)];
    let (shared, bytes) = (Shared::new(&mut hashes), Shared::new(bytes));
    parallel(len.div_ceil(AT_ONCE), |at| {
        let range = at * AT_ONCE..((at + 1) * AT_ONCE).min(len);
        // SAFETY: each task has a part and a place of its own.
        let (part, hash) = unsafe { (bytes.range(range.clone()), shared.range(at..at + 1)) };
        match file.read_at(offset + range.start as u64, part) {
            Ok(()) => hash[0] = xxh3_64(part),
            Err(_) => failed.store(true, Ordering::Relaxed),
        }
        advance(range.len() as u64);
    });
    (!failed.into_inner()).then(|| join(&hashes))
}

impl Checkpoint {
    /// What its weights are recognised by: a hash of names, sizes and times of its files, of its tensors and of a sample of
    /// their bytes, as a file of packed weights depends on. Cheap, and another one after every change of a file.
    ///
    /// # Errors
    /// What the system says.
    pub fn fingerprint(&self) -> Result<String, CheckpointError> {
        let json = serde_json::to_vec(&source(self)?)
            .map_err(|error| CheckpointError::io(&self.contents().path)(error.into()))?;
        Ok(blake3::hash(&json).to_string())
    }
}

/// What identifies the files of this checkpoint.
fn source(checkpoint: &Checkpoint) -> Result<CheckpointIdentity, CheckpointError> {
    let contents = checkpoint.contents();
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(format!("{:?}", checkpoint.config).as_bytes());
    add(format!("{:?}", contents.tensors).as_bytes());
    let mut files = Vec::new();
    for (path, file) in &contents.files {
        let io = || CheckpointError::io(path);
        let metadata = file.metadata().map_err(io())?;
        let modified = metadata.modified().map_err(io())?;
        let modified = match modified.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        };
        let bytes = metadata.len();
        let mut page = [0; PAGE as usize];
        for sample in 0..SAMPLES {
            let at = bytes / SAMPLES * sample;
            let page = &mut page[..PAGE.min(bytes - at) as usize];
            file.read_at(at, page).map_err(io())?;
            add(page);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push(SourceFile { name, bytes, modified });
    }
    Ok(CheckpointIdentity { files, hash: hasher.finalize().to_hex().to_string() })
}

/// Some known weights after packing: two panels, the second one not full, and at least two blocks in each row.
fn layout() -> String {
    const ROWS: usize = 33;
    let mut hasher = blake3::Hasher::new();
    for format in BlockFormat::ALL {
        let input = 2 * format.block_len();
        let mut weight = QuantizedWeight::new(format, 1, ROWS, input);
        let bytes = ROWS * 2 * format.block_bytes();
        let mut blocks = Buffer::scratch(bytes);
        blake3::Hasher::new().finalize_xof().fill(&mut blocks);
        weight.pack(0..weight.strips().count(), &blocks);
        hasher.update(weight.packed_mut());
    }
    for operand in [Operand::F32, Operand::Bf16] {
        let input = 66;
        let mut weight = PackedWeight::new(1, ROWS, input, operand, false);
        let numbers: Vec<f32> = (0..ROWS * input).map(|i| i as f32).collect();
        weight.pack(&numbers);
        hasher.update(weight.packed_mut());
    }
    hasher.finalize().to_hex().to_string()
}
