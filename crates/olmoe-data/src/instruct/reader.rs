//! [`Records`]: the rows of a file with their contents.

use std::collections::BTreeSet;
use std::path::Path;

use super::conversation::Record;
use super::convert;
use super::error::InstructError;
use super::format::{Format, ReadOptions};
use super::rows::Rows;

/// How many unused columns are named.
const MAX_UNUSED: usize = 32;

/// The rows of a file, all of one format.
pub struct Records<'a> {
    rows: Rows,
    options: &'a ReadOptions,
    format: Option<Format>,
    unused: BTreeSet<String>,
}

impl<'a> Records<'a> {
    /// Opens a file.
    ///
    /// # Errors
    /// A file that cannot be read or is of an unsupported type, or a field that no format has.
    pub fn open(path: &Path, options: &'a ReadOptions) -> Result<Records<'a>, InstructError> {
        options.check()?;
        Ok(Records { rows: Rows::open(path)?, options, format: options.format, unused: BTreeSet::new() })
    }

    /// The format. Unless it was given, it is known after the first row.
    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// Columns of the rows so far that were not used.
    pub fn unused_columns(&self) -> impl Iterator<Item = &str> {
        self.unused.iter().map(String::as_str)
    }

    fn read(&mut self) -> Result<Option<Record>, InstructError> {
        let Some(row) = self.rows.next() else { return Ok(None) };
        let (place, row) = row?;
        let row = self.options.renamed(&place, row)?;
        let format = match (self.options.format, self.format) {
            (Some(format), _) => format,
            (None, None) => Format::required(&place, &row)?,
            (None, Some(expected)) => match Format::of(&row) {
                Some(format) if format == expected => format,
                found => {
                    let found = found.map_or_else(|| "unknown".to_owned(), |format| format.to_string());
                    return Err(InstructError::Mixed { place, expected: expected.to_string(), found });
                }
            },
        };
        self.format = Some(format);
        for column in row.keys().filter(|column| !Format::knows(column)) {
            if self.unused.len() < MAX_UNUSED && !self.unused.contains(column) {
                self.unused.insert(column.to_owned());
            }
        }
        let content = convert::content(&place, &row, format, self.options)?;
        Ok(Some(Record { place, content }))
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, InstructError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}
