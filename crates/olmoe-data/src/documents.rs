//! Documents: lines of JSON in plain, gzip or zstd files.
//!
//! A line ends at `\n`, `\r\n` or `\r`, and its number counts from 1, blank ones included. A byte-order mark before the first
//! one is no part of it. What is no document is named and left out; what cannot be read at all, such as a damaged archive or
//! a text of another encoding, is an error.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::de::SliceRead;

use crate::white_space::without_mark;

/// Most bytes of a line.
pub const MAX_LINE_BYTES: u64 = 1 << 28;
const BUFFER: usize = 1 << 18;

/// Where in a line's object the text and the name of a document are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    /// The key of the text; dots lead into objects.
    pub text: String,
    /// The key of the name; none: a document is named after its file and line.
    pub id: Option<String>,
    /// What the name is.
    pub id_type: IdType,
}

impl Default for Fields {
    fn default() -> Fields {
        Fields { text: "text".into(), id: Some("id".into()), id_type: IdType::Text }
    }
}

/// What the name of a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdType {
    /// A text.
    Text,
    /// A whole number.
    Integer,
}

/// A document of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its name, where the file gives one.
    pub id: Option<String>,
    /// Its text, as it is in the file.
    pub text: String,
    /// The line, from 1.
    pub line: u64,
}

/// A line that is no document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} line {}: {}", self.path.display(), self.line, self.reason)
    }
}

/// The documents of a file, in order.
pub struct Documents<'a> {
    path: PathBuf,
    input: Box<dyn BufRead + Send + 'a>,
    fields: &'a Fields,
    /// The bytes read last: a line, or several where some end in `\r` alone.
    bytes: Vec<u8>,
    /// Where in them the next line begins.
    next: usize,
    line: u64,
}

impl<'a> Documents<'a> {
    /// Opens a file or a pipe; its name says how it is packed, `.gz` or `.zst`, and with any other name its first bytes do.
    /// `read` is told of every so many bytes of the file that were read.
    ///
    /// # Errors
    /// What the system says; archives of other kinds are [`io::ErrorKind::Unsupported`].
    pub fn open(path: &Path, fields: &'a Fields, read: &'a (dyn Fn(u64) + Sync)) -> io::Result<Documents<'a>> {
        let mut file = BufReader::with_capacity(BUFFER, Counted { file: File::open(path)?, read });
        let name = path.extension().and_then(|end| end.to_str()).map(str::to_ascii_lowercase);
        let packing = match (name.as_deref(), file.fill_buf()?) {
            (Some(name @ ("gz" | "zst" | "bz2" | "xz")), _) => Some(name),
            (_, [0x1F, 0x8B, ..]) => Some("gz"),
            (_, [0x28, 0xB5, 0x2F, 0xFD, ..]) => Some("zst"),
            _ => None,
        };
        let input: Box<dyn BufRead + Send + 'a> = match packing {
            Some("gz") => Box::new(BufReader::with_capacity(BUFFER, Members { input: Some(Member::Between(file)) })),
            Some("zst") => {
                Box::new(BufReader::with_capacity(BUFFER, Frames { decoder: FrameDecoder::new(), input: file }))
            }
            Some("bz2" | "xz") => {
                let text = "files packed with bzip2 or xz are not read; unpack them or use gzip or zstd";
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
            _ => Box::new(file),
        };
        Ok(Documents { path: path.to_owned(), input, fields, bytes: Vec::new(), next: 0, line: 0 })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last line that was read, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The next document; `malformed` is told of the lines before it that are none.
    ///
    /// # Errors
    /// What the system or the decoder says; the file cannot be read further.
    pub fn next(&mut self, malformed: &mut dyn FnMut(Malformed)) -> io::Result<Option<Document>> {
        while self.read_line()? {
            let rest = &self.bytes[self.next..];
            let end = rest.iter().position(|byte| *byte == b'\r').unwrap_or(rest.len());
            let line = &rest[..end];
            self.next += end + 1;
            self.line += 1;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match parse(line, self.fields) {
                Ok((text, id)) => return Ok(Some(Document { id, text, line: self.line })),
                Err(error) => {
                    malformed(Malformed { path: self.path.clone(), line: self.line, reason: error.to_string() });
                }
            }
        }
        Ok(None)
    }

    /// Sees to it that a line begins at `next`; false at the end of the file.
    fn read_line(&mut self) -> io::Result<bool> {
        if self.next < self.bytes.len() {
            return Ok(true);
        }
        self.bytes.clear();
        self.next = 0;
        let read = (&mut self.input).take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut self.bytes)?;
        if read as u64 > MAX_LINE_BYTES {
            let text = format!("line {} has more than {MAX_LINE_BYTES} bytes; split the document", self.line + 1);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if self.line == 0 {
            if matches!(self.bytes[..], [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..]) {
                let text = "the text is UTF-16; convert it to UTF-8 first";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            let mark = self.bytes.len() - without_mark(&self.bytes).len();
            self.bytes.drain(..mark);
        }
        if self.bytes.last() == Some(&b'\n') {
            self.bytes.pop();
            if self.bytes.last() != Some(&b'\r') {
                // So that an empty line is one, too.
                self.bytes.push(b'\r');
            }
        }
        Ok(read > 0)
    }
}

/// Tells of what is read.
struct Counted<'a> {
    file: File,
    read: &'a (dyn Fn(u64) + Sync),
}

impl Read for Counted<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(bytes)?;
        (self.read)(count as u64);
        Ok(count)
    }
}

/// All members of a gzip file, one after the other, and zeros behind a member, with which tapes and some programs fill up:
/// what `gzip` and Python's `gzip` read.
struct Members<R: BufRead> {
    /// Gone after an error.
    input: Option<Member<R>>,
}

enum Member<R: BufRead> {
    /// Before the first member, or behind one.
    Between(R),
    Inside(GzDecoder<R>),
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.input.take() {
                None => return Err(io::Error::other("the archive is damaged")),
                Some(Member::Between(mut input)) => {
                    let next = input.fill_buf()?.iter().position(|byte| *byte != 0);
                    match (next, input.fill_buf()?.len()) {
                        (None, 0) => {
                            self.input = Some(Member::Between(input));
                            return Ok(0);
                        }
                        (None, zeros) => {
                            input.consume(zeros);
                            self.input = Some(Member::Between(input));
                        }
                        (Some(zeros), _) => {
                            input.consume(zeros);
                            self.input = Some(Member::Inside(GzDecoder::new(input)));
                        }
                    }
                }
                Some(Member::Inside(mut member)) => match member.read(bytes)? {
                    0 if !bytes.is_empty() => self.input = Some(Member::Between(member.into_inner())),
                    count => {
                        self.input = Some(Member::Inside(member));
                        return Ok(count);
                    }
                },
            }
        }
    }
}

/// All frames of a zstd file.
struct Frames<R: BufRead> {
    decoder: FrameDecoder,
    input: R,
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let wrong = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
        // What is behind the last frame, or before the first one, is the beginning of a frame or the end.
        while self.decoder.can_collect() == 0 {
            if !self.decoder.is_finished() {
                let decoded = self.decoder.decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBlocks(1));
                decoded.map_err(|error| wrong(error.to_string()))?;
                continue;
            }
            let sums = (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
            if let (Some(expected), Some(found)) = sums
                && expected != found
            {
                return Err(wrong(format!("the checksum is {found:#x}, but the file says {expected:#x}")));
            }
            if self.input.fill_buf()?.is_empty() {
                return Ok(0);
            }
            match self.decoder.reset(&mut self.input) {
                Ok(()) => {}
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.input).take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(wrong(error.to_string())),
            }
        }
        self.decoder.read(bytes)
    }
}

/// Text and name of a line.
fn parse(line: &[u8], fields: &Fields) -> serde_json::Result<(String, Option<String>)> {
    let text: Vec<&str> = fields.text.split('.').collect();
    let id: Option<Vec<&str>> = fields.id.as_ref().map(|id| id.split('.').collect());
    let mut found = Found::default();
    let mut json = serde_json::Deserializer::new(SliceRead::new(line));
    let seed = Object { text: Some(&text), id: id.as_deref(), id_type: fields.id_type, found: &mut found };
    seed.deserialize(&mut json)?;
    json.end()?;
    let Some(text) = found.text else { return Err(missing(&fields.text)) };
    match (&fields.id, found.id) {
        (Some(key), None) => Err(missing(key)),
        (_, id) => Ok((text, id)),
    }
}

fn missing(key: &str) -> serde_json::Error {
    serde_json::Error::custom(format_args!("the field `{key}` is missing"))
}

#[derive(Default)]
struct Found {
    text: Option<String>,
    id: Option<String>,
}

/// An object in which the rest of a path leads to a field. Where a key comes twice, the last one counts.
struct Object<'a> {
    text: Option<&'a [&'a str]>,
    id: Option<&'a [&'a str]>,
    id_type: IdType,
    found: &'a mut Found,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<str>>()? {
            let inside = |path: Option<&'_ [&'_ str]>| -> Option<usize> {
                path.filter(|path| path.first().is_some_and(|first| *first == key)).map(<[&str]>::len)
            };
            match (inside(self.text), inside(self.id)) {
                (None, None) => drop(map.next_value::<IgnoredAny>()?),
                (Some(1), same) => {
                    let text: String = map.next_value()?;
                    if same == Some(1) {
                        self.found.id = Some(text.clone());
                    }
                    self.found.text = Some(text);
                }
                (_, Some(1)) => {
                    self.found.id = Some(match self.id_type {
                        IdType::Text => map.next_value()?,
                        IdType::Integer => map.next_value::<i128>()?.to_string(),
                    });
                }
                (text, id) => map.next_value_seed(Object {
                    text: self.text.filter(|_| text.is_some()).map(|path| &path[1..]),
                    id: self.id.filter(|_| id.is_some()).map(|path| &path[1..]),
                    id_type: self.id_type,
                    found: self.found,
                })?,
            }
        }
        Ok(())
    }
}
