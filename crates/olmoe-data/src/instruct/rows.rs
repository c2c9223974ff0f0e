//! The rows of JSON, JSON Lines, CSV and Parquet files.

use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use serde::Deserializer as _;
use serde::de::{SeqAccess, Visitor};

use super::conversation::Place;
use super::error::InstructError;
use super::json::Json;
use super::parquet::ParquetRows;
use crate::lines::{Lines, check_encoding, unpacked};
use crate::white_space::without_mark;

/// The largest `.json` file, which is read as a whole.
pub const MAX_JSON_BYTES: u64 = 4 << 30;
/// The supported endings of file names; those of text formats may be followed by `.gz` or `.zst`.
pub const ENDINGS: &str = ".json, .jsonl, .csv or .parquet, the first three also followed by .gz or .zst";

/// The rows of a file, each an object whose keys are the columns, in their order, with its place.
pub struct Rows {
    path: Arc<Path>,
    row: u64,
    source: Source,
}

enum Source {
    Lines(Lines<'static>),
    Values(std::vec::IntoIter<Json>),
    Csv {
        header: Vec<String>,
        reader: Box<csv::Reader<Box<dyn BufRead + Send>>>,
    },
    Parquet(Box<ParquetRows>),
    /// After an error there are no more rows.
    Ended,
}

/// The ending of a file's name that says what it holds, without that of its compression.
fn ending(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let name = name.strip_suffix(".gz").or(name.strip_suffix(".zst")).unwrap_or(&name);
    name.rsplit_once('.').map_or("", |(_, ending)| ending).to_owned()
}

/// Whether a file's name says that it holds rows.
pub(super) fn is_read(path: &Path) -> bool {
    matches!(ending(path).as_str(), "jsonl" | "ndjson" | "json" | "csv" | "parquet")
}

impl Rows {
    /// Opens a file; the ending of its name tells the format.
    ///
    /// # Errors
    /// A file that cannot be read or is of an unsupported type.
    pub fn open(path: &Path) -> Result<Rows, InstructError> {
        let unreadable = || InstructError::unreadable(path);
        let source = match ending(path).as_str() {
            "jsonl" | "ndjson" => Source::Lines(Lines::open(path, &|_| {}).map_err(unreadable())?),
            "json" => Source::Values(values(path)?.into_iter()),
            "csv" => csv_rows(path)?,
            "parquet" => Source::Parquet(Box::new(ParquetRows::open(path)?)),
            _ => return Err(InstructError::Kind { path: path.to_owned(), expected: ENDINGS }),
        };
        Ok(Rows { path: path.into(), row: 0, source })
    }

    fn place(&self, line: Option<u64>) -> Place {
        Place { path: self.path.clone(), row: self.row, line }
    }

    fn read(&mut self) -> Result<Option<(Place, Json)>, InstructError> {
        self.row += 1;
        let (line, row) = match &mut self.source {
            Source::Ended => return Ok(None),
            Source::Lines(lines) => {
                let Some(line) = lines.next().map_err(InstructError::unreadable(&self.path))? else { return Ok(None) };
                let parsed = serde_json::from_slice(line);
                let line = Some(lines.line());
                match parsed {
                    Ok(row) => (line, row),
                    Err(error) => {
                        return Err(InstructError::Syntax { place: self.place(line), message: error.to_string() });
                    }
                }
            }
            Source::Values(values) => match values.next() {
                Some(row) => (None, row),
                None => return Ok(None),
            },
            Source::Csv { header, reader } => {
                let mut record = csv::StringRecord::new();
                let read = reader.read_record(&mut record);
                let line = record.position().map(csv::Position::line);
                match read {
                    Ok(false) => return Ok(None),
                    Ok(true) => {
                        let cells = record.iter().map(|cell| Json::Text(cell.to_owned()));
                        (line, Json::Object(header.iter().cloned().zip(cells).collect()))
                    }
                    Err(error) => {
                        let message = format!("{error}; the header has {} columns", header.len());
                        return Err(InstructError::Syntax { place: self.place(None), message });
                    }
                }
            }
            Source::Parquet(rows) => match rows.next() {
                Some(row) => (None, row?),
                None => return Ok(None),
            },
        };
        let place = self.place(line);
        if !matches!(row, Json::Object(_)) {
            let message = format!("the row is {row}, expected an object");
            return Err(InstructError::Syntax { place, message });
        }
        Ok(Some((place, row)))
    }
}

impl Iterator for Rows {
    type Item = Result<(Place, Json), InstructError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.read().transpose();
        if !matches!(row, Some(Ok(_))) {
            self.source = Source::Ended;
        }
        row
    }
}

/// The values of a `.json` file: the elements of an array, or values one after the other.
fn values(path: &Path) -> Result<Vec<Json>, InstructError> {
    let unreadable = || InstructError::unreadable(path);
    let mut bytes = Vec::new();
    let input = unpacked(path, &|_| {}).map_err(unreadable())?;
    input.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable())?;
    if bytes.len() as u64 > MAX_JSON_BYTES {
        return Err(InstructError::TooLong { path: path.to_owned(), limit: MAX_JSON_BYTES });
    }
    check_encoding(&bytes).map_err(unreadable())?;
    let bytes = without_mark(&bytes);
    let mut values = Vec::new();
    let read = if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        json.deserialize_seq(Elements(&mut values)).and_then(|()| json.end())
    } else {
        let mut stream = serde_json::Deserializer::from_slice(bytes).into_iter();
        stream.try_for_each(|value| value.map(|value| values.push(value)))
    };
    read.map_err(|error| {
        let place = Place { path: path.into(), row: values.len() as u64 + 1, line: None };
        InstructError::Syntax { place, message: error.to_string() }
    })?;
    Ok(values)
}

/// The elements of an array, up to the first error.
struct Elements<'a>(&'a mut Vec<Json>);

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an array of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(element) = seq.next_element()? {
            self.0.push(element);
        }
        Ok(())
    }
}

fn csv_rows(path: &Path) -> Result<Source, InstructError> {
    let mut input = unpacked(path, &|_| {}).map_err(InstructError::unreadable(path))?;
    check_encoding(input.fill_buf().map_err(InstructError::unreadable(path))?)
        .map_err(InstructError::unreadable(path))?;
    let mut reader = csv::ReaderBuilder::new().from_reader(input);
    let wrong = |message: String| {
        let place = Place { path: path.into(), row: 0, line: Some(1) };
        InstructError::Syntax { place, message }
    };
    let header = reader.headers().map_err(|error| wrong(error.to_string()))?;
    let header: Vec<String> = header.iter().map(str::to_owned).collect();
    for (at, name) in header.iter().enumerate() {
        if header[..at].contains(name) {
            return Err(wrong(format!("the header names the column {name:?} twice")));
        }
    }
    Ok(Source::Csv { header, reader: Box::new(reader) })
}
