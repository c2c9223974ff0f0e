//! Documents: lines of JSON in plain, gzip or zstd files.
//!
//! A line ends at `\n`, `\r\n` or `\r`, and line numbers count from 1, blank lines included. A byte-order mark at the
//! beginning of the file is skipped. A line that is not a document is reported and left out; what cannot be read at all,
//! such as a damaged archive or text in another encoding, is an error.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::de::SliceRead;

use crate::lines::Lines;
pub use crate::lines::MAX_LINE_BYTES;

/// Where in a line's object the text and the name of a document are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    /// The key of the text; dots lead into nested objects.
    pub text: String,
    /// The key of the name. Without one, a document is named after its file and line.
    pub id: Option<String>,
    /// The type of the name.
    pub id_type: IdType,
}

impl Default for Fields {
    fn default() -> Fields {
        Fields { text: "text".into(), id: Some("id".into()), id_type: IdType::Text }
    }
}

/// The type of a document's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdType {
    /// A string.
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

/// A line that is not a document.
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
    lines: Lines<'a>,
    fields: &'a Fields,
}

impl<'a> Documents<'a> {
    /// Opens a file or a pipe. The ending of its name tells the compression, `.gz` or `.zst`; with any other ending,
    /// its first bytes tell. `read` is called with the number of bytes of the file read since its last call.
    ///
    /// # Errors
    /// Errors of the system; archives of other kinds are [`io::ErrorKind::Unsupported`].
    pub fn open(path: &Path, fields: &'a Fields, read: &'a (dyn Fn(u64) + Sync)) -> io::Result<Documents<'a>> {
        Ok(Documents { path: path.to_owned(), lines: Lines::open(path, read)?, fields })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last line that was read, from 1.
    pub fn line(&self) -> u64 {
        self.lines.line()
    }

    /// The next document. `malformed` is called with each line before it that is not a document.
    ///
    /// # Errors
    /// Errors of the system or of the decoder; the file cannot be read further.
    pub fn next(&mut self, malformed: &mut dyn FnMut(Malformed)) -> io::Result<Option<Document>> {
        while let Some(line) = self.lines.next()? {
            match parse(line, self.fields) {
                Ok((text, id)) => return Ok(Some(Document { id, text, line: self.lines.line() })),
                Err(error) => {
                    let (path, line) = (self.path.clone(), self.lines.line());
                    malformed(Malformed { path, line, reason: error.to_string() });
                }
            }
        }
        Ok(None)
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

/// An object in which the rest of a path leads to a field. Where a key occurs twice, the last one counts.
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
