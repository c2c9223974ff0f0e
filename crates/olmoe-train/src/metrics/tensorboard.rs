//! Records as an event file of TensorBoard.
//!
//! The file is a sequence of frames (TFRecord): length as u64, its masked CRC, the bytes, their masked CRC; all numbers
//! little-endian. The bytes are an `Event` in the encoding of protocol buffers, of which these fields are used:
//!
//! ```text
//! Event      1 wall_time: double   2 step: int64   3 file_version: string   5 summary: Summary   7 session_log: SessionLog
//! Summary    1 value: repeated Value
//! Value      1 tag: string         2 simple_value: float   8 tensor: Tensor   9 metadata: Metadata
//! Tensor     1 type: enum          STRING = 7          2 shape: Shape, empty for one text   8 string: bytes
//! Metadata   1 plugin: Plugin      4 class: enum       TENSOR = 2
//! Plugin     1 name: string
//! SessionLog 1 status: enum        START = 1
//! ```

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use olmoe_checkpoint::disk::{Disk, LocalDisk};

use super::{MetricsError, Record, Sample};

/// The version record that every file begins with.
const FILE_VERSION: &[u8] = b"brain.Event:2";
/// Counts the files that this process creates, to tell apart those of one second.
const MAX_FILES: u32 = 10_000;

/// An event file that a run appends to. It stores values as f32.
#[derive(Debug)]
pub struct EventFile<D: Disk = LocalDisk> {
    path: PathBuf,
    disk: D,
    file: D::File,
    /// The length of the complete frames in bytes.
    length: u64,
    buffer: Vec<u8>,
}

impl EventFile {
    /// As [`create_on`](EventFile::create_on), on the disk of this machine.
    ///
    /// # Errors
    /// As [`create_on`](EventFile::create_on).
    pub fn create(folder: &Path, after: u64, now: SystemTime) -> Result<EventFile, MetricsError> {
        EventFile::create_on(LocalDisk, folder, after, now)
    }
}

impl<D: Disk> EventFile<D> {
    /// Creates a file in an existing folder, for what follows the step `after`.
    ///
    /// TensorBoard reads the files of a folder in the order of their times. The new file tells it to drop later steps
    /// of earlier files, which a resumed run repeats.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn create_on(disk: D, folder: &Path, after: u64, now: SystemTime) -> Result<EventFile<D>, MetricsError> {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let (host, process) = (host_name(), std::process::id());
        let mut number = 0;
        let (path, file) = loop {
            let path = folder.join(format!("events.out.tfevents.{seconds:010}.{host}.{process}.{number}"));
            match disk.create_file(&path) {
                Ok(file) => break (path, file),
                Err(error) if error.kind() == ErrorKind::AlreadyExists && number < MAX_FILES => number += 1,
                Err(error) => return Err(MetricsError::io("open", &path)(error)),
            }
        };
        let mut events = EventFile { path, disk, file, length: 0, buffer: Vec::new() };
        events.write(&file_version(now))?;
        events.write(&session_start(now, after.saturating_add(1)))?;
        Ok(events)
    }

    /// Appends a record; after an error the file is as it was before.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn append(&mut self, record: &Record, now: SystemTime) -> Result<(), MetricsError> {
        let event = scalars(now, record);
        self.write(&event)
    }

    /// Appends a text with its prompt under a tag `name`. After an error the file is as it was before.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn append_text(&mut self, name: &str, sample: &Sample, now: SystemTime) -> Result<(), MetricsError> {
        let event = text(now, sample.step, name, &format!("{}{}", sample.prompt, sample.text));
        self.write(&event)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, event: &[u8]) -> Result<(), MetricsError> {
        self.buffer.clear();
        frame(event, &mut self.buffer);
        if let Err(error) = self.disk.write(&mut self.file, &self.buffer) {
            // Part of a frame would make all following frames unreadable.
            let _: io::Result<()> = self.disk.truncate(&mut self.file, self.length);
            return Err(MetricsError::io("write", &self.path)(error));
        }
        self.length += self.buffer.len() as u64;
        Ok(())
    }
}

/// Appends the bytes, framed by their length and CRCs.
fn frame(bytes: &[u8], out: &mut Vec<u8>) {
    let length = (bytes.len() as u64).to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&masked_crc(&length).to_le_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(&masked_crc(bytes).to_le_bytes());
}

fn file_version(now: SystemTime) -> Vec<u8> {
    let mut event = Vec::new();
    double(1, wall_time(now), &mut event);
    block(3, FILE_VERSION, &mut event);
    event
}

fn session_start(now: SystemTime, step: u64) -> Vec<u8> {
    let mut event = Vec::new();
    double(1, wall_time(now), &mut event);
    integer(2, step, &mut event);
    block(7, &[0x08, 0x01], &mut event);
    event
}

fn scalars(now: SystemTime, record: &Record) -> Vec<u8> {
    let (mut value, mut summary) = (Vec::new(), Vec::new());
    for (name, number) in record.values() {
        value.clear();
        block(1, name.as_bytes(), &mut value);
        key(2, FOUR_BYTES, &mut value);
        value.extend_from_slice(&(number as f32).to_le_bytes());
        block(1, &value, &mut summary);
    }
    of_step(now, record.step, &summary)
}

fn text(now: SystemTime, step: u64, name: &str, text: &str) -> Vec<u8> {
    let (mut tensor, mut plugin, mut metadata, mut value, mut summary) = <(Vec<u8>, _, _, _, _)>::default();
    integer(1, 7, &mut tensor);
    block(2, &[], &mut tensor);
    block(8, text.as_bytes(), &mut tensor);
    block(1, b"text", &mut plugin);
    block(1, &plugin, &mut metadata);
    integer(4, 2, &mut metadata);
    block(1, name.as_bytes(), &mut value);
    block(8, &tensor, &mut value);
    block(9, &metadata, &mut value);
    block(1, &value, &mut summary);
    of_step(now, step, &summary)
}

fn of_step(now: SystemTime, step: u64, summary: &[u8]) -> Vec<u8> {
    let mut event = Vec::with_capacity(summary.len() + 32);
    double(1, wall_time(now), &mut event);
    integer(2, step, &mut event);
    block(5, summary, &mut event);
    event
}

/// Seconds since 1970.
fn wall_time(now: SystemTime) -> f64 {
    now.duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

// The wire types of fields.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const BLOCK: u64 = 2;
const FOUR_BYTES: u64 = 5;

fn key(field: u64, encoding: u64, out: &mut Vec<u8>) {
    varint(field << 3 | encoding, out);
}

fn integer(field: u64, value: u64, out: &mut Vec<u8>) {
    key(field, VARINT, out);
    varint(value, out);
}

fn double(field: u64, value: f64, out: &mut Vec<u8>) {
    key(field, EIGHT_BYTES, out);
    out.extend_from_slice(&value.to_le_bytes());
}

fn block(field: u64, bytes: &[u8], out: &mut Vec<u8>) {
    key(field, BLOCK, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Seven bits per byte, the lowest first; the high bit marks that more bytes follow.
fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The CRC-32C of each byte, with the reflected polynomial.
const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| CRC_TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}

/// Rotated and offset, as TFRecord requires, since the CRC of data that contains CRCs detects little.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// The name of this machine, restricted to characters that are valid in file names.
fn host_name() -> String {
    let said = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let said = said.or_else(|| std::env::var("HOSTNAME").ok()).or_else(|| std::env::var("COMPUTERNAME").ok());
    let allowed = |letter: &char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '.');
    let name: String = said.unwrap_or_default().trim().chars().filter(allowed).take(64).collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn sums_are_those_of_the_standard() {
        // RFC 3720, B.4, and the check value of the algorithm's catalogue.
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46DD_794E);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    /// What `tensorboard` 2.21 and `protobuf` 7.36 write: `RecordWriter(file).write(event.SerializeToString())`.
    #[test]
    fn frames_are_those_of_tensorboard() {
        let now = UNIX_EPOCH + Duration::from_millis(1_764_000_000_250);
        let record = Record::new(300)
            .with("train/CrossEntropyLoss", 4.213)
            .with("optim/learning_rate_group0", 3.9e-4)
            .with("é", f64::NAN);
        let hex = |event: &[u8]| {
            let mut framed = Vec::new();
            frame(event, &mut framed);
            framed.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(hex(&file_version(now)), GOLDEN_VERSION);
        assert_eq!(hex(&session_start(now, 301)), GOLDEN_START);
        assert_eq!(hex(&scalars(now, &record)), GOLDEN_SCALARS);
        assert_eq!(hex(&text(now, 300, "samples/0", "once — é")), GOLDEN_TEXT);
    }

    const GOLDEN_VERSION: &str = "1800000000000000a37f4b2209000010402049da411a0d627261696e2e4576656e743a327b854a4b";
    const GOLDEN_START: &str = "100000000000000095fbfe1809000010402049da4110ad023a0208015988ffda";
    const GOLDEN_SCALARS: &str = "5b000000000000001b01028a09000010402049da4110ac022a4d0a1d0a16747261696e2f43726f7373456e74726f7079\
        4c6f737315e5d086400a210a1a6f7074696d2f6c6561726e696e675f726174655f67726f75703015ea78cc390a090a02\
        c3a9150000c07f2b61db4e";
    const GOLDEN_TEXT: &str = "3a000000000000001295eae209000010402049da4110ac022a2c0a2a0a0973616d706c65732f30421108071200420b6f6e63\
        6520e2809420c3a94a0a0a060a04746578742002b1b0a4e7";

    #[test]
    fn two_files_of_one_second_have_two_names() {
        let folder = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(5);
        let first = EventFile::create(folder.path(), 0, now).unwrap();
        let second = EventFile::create(folder.path(), 0, now).unwrap();
        assert_ne!(first.path(), second.path());
        let name = first.path().file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("events.out.tfevents.0000000005."), "{name}");
        let error = EventFile::create(&folder.path().join("none"), 0, now).unwrap_err().to_string();
        assert!(error.starts_with("cannot open "), "{error}");
    }
}
