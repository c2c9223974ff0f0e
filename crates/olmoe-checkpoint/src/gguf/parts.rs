//! A model in several files: `model-00001-of-00003.gguf` and so on, as llama.cpp's `gguf-split` and `gguf-py` write
//! them.
//!
//! In every file, `split.no` is the index of the part, counted from 0, `split.count` the number of parts, and
//! `split.tensors.count` the number of tensors in all parts. The first part has all other metadata.

use std::path::{Path, PathBuf};

use super::value::{Metadata, MetadataValue};
use crate::file_name::numbered;

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// Most parts: their number has 16 bits.
const MAX_PARTS: u64 = u16::MAX as u64;

/// Why files are not the parts of one model.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// An invalid value.
    #[error("{key} is {found}, expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The names of the other parts cannot be derived from the name of a part.
    #[error(
        "it is part {number} of {count}, but its name does not end with -{number:05}-of-{count:05}.gguf, so the others cannot \
         be found; give the parts their names back"
    )]
    Name {
        /// Which part, from 1.
        number: u64,
        /// How many there are.
        count: u64,
    },
    /// A part that is not there.
    #[error("part {number} of {count} is missing; put all parts into one folder")]
    Missing {
        /// Which part, from 1.
        number: u64,
        /// How many there are.
        count: u64,
    },
    /// The number of tensors is not that of the metadata.
    #[error(
        "the parts have {found} tensors together, expected {expected}; they are of different models, get them again"
    )]
    Tensors {
        /// How many there are.
        found: usize,
        /// How many the files say.
        expected: u64,
    },
}

/// The metadata of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GgufPart {
    /// Which one, from 0.
    pub(crate) number: u64,
    /// How many there are.
    pub(crate) count: u64,
    /// The tensors of all of them.
    pub(crate) tensors: Option<u64>,
}

impl GgufPart {
    /// The metadata of a part; `None` for a file that is not divided.
    pub(crate) fn of(metadata: &Metadata) -> Result<Option<GgufPart>, PartError> {
        let number = |key| match metadata.get(key) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| PartError::Value {
                key,
                found: value.to_string(),
                expected: "a whole number".to_owned(),
            }),
        };
        let Some(count) = number(COUNT)?.filter(|count| *count > 1) else { return Ok(None) };
        if count > MAX_PARTS {
            let expected = format!("at most {MAX_PARTS}");
            return Err(PartError::Value { key: COUNT, found: count.to_string(), expected });
        }
        let index = number(NUMBER)?.unwrap_or(0);
        if index >= count {
            let expected = format!("less than {COUNT}, {count}");
            return Err(PartError::Value { key: NUMBER, found: index.to_string(), expected });
        }
        Ok(Some(GgufPart { number: index, count, tensors: number(TENSORS)? }))
    }

    /// The files of all parts, where this one lies at `path`.
    pub(crate) fn files(self, path: &Path) -> Result<Vec<PathBuf>, PartError> {
        let GgufPart { number, count, .. } = self;
        let name = path.file_name().and_then(|name| name.to_str());
        let split = name.and_then(split).filter(|split| (split.1, split.2) == (number + 1, count));
        let Some((stem, ..)) = split else { return Err(PartError::Name { number: number + 1, count }) };
        Ok((1..=count).map(|number| path.with_file_name(file_name(stem, number, count))).collect())
    }

    /// Checks that a file is the one with this number.
    pub(crate) fn check(self, metadata: &Metadata, number: u64) -> Result<(), PartError> {
        let found = GgufPart::of(metadata)?;
        let same = found.is_some_and(|part| (part.number, part.count) == (number, self.count));
        let found = found.map_or("missing".to_owned(), |part| format!("{} of {} files", part.number, part.count));
        let expected = format!("{number} of {} files", self.count);
        if same { Ok(()) } else { Err(PartError::Value { key: NUMBER, found, expected }) }
    }

    /// Appends the metadata of the part.
    pub(crate) fn write(self, metadata: &mut Metadata) {
        let narrow = |number: u64| MetadataValue::U16(u16::try_from(number).unwrap_or(u16::MAX));
        metadata.insert(NUMBER, narrow(self.number));
        metadata.insert(COUNT, narrow(self.count));
        let tensors = self.tensors.and_then(|tensors| i32::try_from(tensors).ok()).unwrap_or(i32::MAX);
        metadata.insert(TENSORS, MetadataValue::I32(tensors));
    }
}

/// The name of a part, counted from 1.
pub(crate) fn file_name(stem: &str, number: u64, count: u64) -> String {
    format!("{stem}-{number:05}-of-{count:05}.gguf")
}

/// The stem, the number from 1 and the count in the name of a part.
pub(crate) fn split(name: &str) -> Option<(&str, u64, u64)> {
    numbered(name.strip_suffix(".gguf")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(file_name("m", 1, 12), "m-00001-of-00012.gguf");
        assert_eq!(split("a-b-00003-of-00012.gguf"), Some(("a-b", 3, 12)));
        for name in ["m.gguf", "m-1-of-2.gguf", "m-00001-of-00002.bin", "m-0000x-of-00002.gguf", "00001-of-00002.gguf"]
        {
            assert_eq!(split(name), None, "{name}");
        }
    }
}
