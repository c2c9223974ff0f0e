//! The fields of a row, and the errors about them.

use super::conversation::Place;
use super::error::InstructError;
use super::format::ReadOptions;
use super::json::Json;

/// The fields of a row.
pub(super) struct Fields<'a> {
    pub(super) place: &'a Place,
    pub(super) row: &'a Json,
    pub(super) options: &'a ReadOptions,
}

impl Fields<'_> {
    pub(super) fn wrong(
        &self,
        field: impl Into<String>,
        expected: &'static str,
        found: Option<&Json>,
    ) -> InstructError {
        let found = found.map_or_else(|| "missing".to_owned(), Json::to_string);
        InstructError::Field { place: self.place.clone(), field: field.into(), expected, found }
    }

    pub(super) fn get(&self, field: &str) -> Option<&Json> {
        self.row.get(field)
    }

    pub(super) fn needed(&self, field: &str, expected: &'static str) -> Result<&Json, InstructError> {
        self.get(field).ok_or_else(|| self.wrong(field, expected, None))
    }

    pub(super) fn text(&self, field: &str) -> Result<&str, InstructError> {
        let value = self.needed(field, "a string")?;
        value.text().ok_or_else(|| self.wrong(field, "a string", Some(value)))
    }

    /// A string that may be missing; None if it is missing or empty.
    pub(super) fn optional_text(&self, field: &str) -> Result<Option<&str>, InstructError> {
        match self.get(field) {
            None => Ok(None),
            Some(_) => Ok(Some(self.text(field)?).filter(|text| !text.is_empty())),
        }
    }
}
