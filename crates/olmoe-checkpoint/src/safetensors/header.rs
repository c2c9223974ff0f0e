//! The header of a safetensors file, read and checked.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::limits::{MAX_HEADER, MAX_METADATA, MAX_RANK, MAX_TENSOR_NAME, MAX_TENSORS};
use super::{SafeType, SafetensorsError};
use crate::read_at::ReadAt;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its number format.
    pub dtype: SafeType,
    /// The shape, outermost axis first; empty for a single number.
    pub shape: Vec<usize>,
    /// Its first byte, counted from the beginning of the file.
    pub offset: u64,
    /// The number of its bytes, which agrees with its shape and format; all lie within the file.
    pub bytes: u64,
}

/// The content of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafetensorsHeader {
    /// The tensors, in the order of their bytes.
    pub entries: Vec<Entry>,
    /// Strings by key.
    pub metadata: BTreeMap<String, String>,
}

/// Reads the header of a safetensors file and checks it against the file.
///
/// Only the header is read. Every returned entry lies within the file.
///
/// # Errors
/// [`SafetensorsError`], with the tensor's name.
pub fn read_header(file: &(impl ReadAt + ?Sized)) -> Result<SafetensorsHeader, SafetensorsError> {
    let length = file.len()?;
    let Some(left) = length.checked_sub(8) else { return Err(SafetensorsError::TooShort { found: length }) };
    let mut prefix = [0; 8];
    file.read_at(0, &mut prefix)?;
    let found = u64::from_le_bytes(prefix);
    if found > MAX_HEADER {
        return Err(SafetensorsError::HeaderTooLong { found });
    }
    if found > left {
        return Err(SafetensorsError::HeaderCut { found, left });
    }
    let mut bytes = vec![0; found as usize];
    file.read_at(8, &mut bytes)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| SafetensorsError::NotText { at: error.valid_up_to() })?;
    if !text.starts_with('{') {
        return Err(SafetensorsError::NotAnObject);
    }
    let raw: RawHeader = serde_json::from_str(text).map_err(SafetensorsError::Json)?;
    check(raw, 8 + found, left - found)
}

/// Turns a raw header into entries, and checks them.
fn check(raw: RawHeader, data_begin: u64, data: u64) -> Result<SafetensorsHeader, SafetensorsError> {
    if raw.tensors.len() > MAX_TENSORS {
        return Err(SafetensorsError::TooManyTensors);
    }
    let mut names = HashSet::with_capacity(raw.tensors.len());
    for (name, _) in &raw.tensors {
        if name.len() > MAX_TENSOR_NAME {
            return Err(SafetensorsError::NameTooLong { found: name.len() });
        }
        if !names.insert(name) {
            return Err(SafetensorsError::Duplicate { tensor: name.clone() });
        }
    }
    if raw.metadata.len() > MAX_METADATA {
        return Err(SafetensorsError::TooMuchMetadata);
    }
    let mut metadata = BTreeMap::new();
    for (key, value) in raw.metadata {
        if metadata.insert(key.clone(), value).is_some() {
            return Err(SafetensorsError::DuplicateMetadata { key });
        }
    }

    let mut entries =
        raw.tensors.into_iter().map(|(name, raw)| entry(name, raw, data)).collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(|entry| (entry.offset, entry.bytes));
    let mut previous = 0;
    for entry in &mut entries {
        let (begin, tensor) = (entry.offset, &entry.name);
        if begin > previous {
            return Err(SafetensorsError::Hole { tensor: tensor.clone(), begin, previous });
        }
        if begin < previous {
            return Err(SafetensorsError::Overlap { tensor: tensor.clone(), begin, previous });
        }
        // Neither sum overflows, since both lie within the file.
        previous = begin + entry.bytes;
        entry.offset = data_begin + begin;
    }
    if previous != data {
        return Err(SafetensorsError::Uncovered { covered: previous, data });
    }
    Ok(SafetensorsHeader { entries, metadata })
}

/// One tensor, whose offset still counts from the beginning of the data.
fn entry(tensor: String, raw: RawTensor, data: u64) -> Result<Entry, SafetensorsError> {
    let (begin, end) = raw.data_offsets;
    if raw.shape.0.len() > MAX_RANK {
        return Err(SafetensorsError::Rank { tensor });
    }
    let Some(dtype) = SafeType::from_name(&raw.dtype) else {
        let found = raw.dtype.chars().take(40).collect();
        return Err(SafetensorsError::UnknownType { tensor, found });
    };
    let Some(found) = end.checked_sub(begin) else { return Err(SafetensorsError::Reversed { tensor, begin, end }) };
    if end > data {
        return Err(SafetensorsError::OutOfRange { tensor, end, data });
    }
    let shape = raw.shape.0.iter().map(|&extent| usize::try_from(extent)).collect::<Result<Vec<_>, _>>().ok();
    let counted = shape.and_then(|shape| dtype.bytes(&shape).map(|bytes| (shape, bytes)));
    let Some((shape, expected)) = counted else {
        return Err(SafetensorsError::Overflow { tensor, shape: raw.shape.0 });
    };
    if found != expected {
        return Err(SafetensorsError::Size { tensor, dtype: dtype.name(), shape, found, expected });
    }
    Ok(Entry { name: tensor, dtype, shape, offset: begin, bytes: found })
}

/// The header as written: all pairs in order, including duplicates.
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: RawShape,
    data_offsets: (u64, u64),
}

/// The extents of a shape, at most one more than is allowed.
struct RawShape(Vec<u64>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut raw = RawHeader { tensors: Vec::new(), metadata: Vec::new() };
                let mut metadata = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if metadata.is_some() {
                            return Err(A::Error::custom("__metadata__ occurs twice"));
                        }
                        metadata = Some(map.next_value::<Option<RawMetadata>>()?);
                    } else if raw.tensors.len() > MAX_TENSORS {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let tensor = map.next_value().map_err(|error| {
                            let shown: String = name.chars().take(MAX_TENSOR_NAME).collect();
                            A::Error::custom(format_args!("tensor {shown:?}: {error}"))
                        })?;
                        raw.tensors.push((name, tensor));
                    }
                }
                raw.metadata = metadata.flatten().map_or_else(Vec::new, |metadata| metadata.0);
                Ok(raw)
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

struct RawMetadata(Vec<(String, String)>);

impl<'de> Deserialize<'de> for RawMetadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        pairs(deserializer, "strings by key", MAX_METADATA).map(RawMetadata)
    }
}

/// The pairs of an object of strings, in order, including duplicates; at most one more than `limit`.
pub(super) fn pairs<'de, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
    limit: usize,
) -> Result<Vec<(String, String)>, D::Error> {
    struct Pairs(&'static str, usize);
    impl<'de> Visitor<'de> for Pairs {
        type Value = Vec<(String, String)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while pairs.len() <= self.1 {
                let Some(pair) = map.next_entry()? else { return Ok(pairs) };
                pairs.push(pair);
            }
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(pairs)
        }
    }
    deserializer.deserialize_map(Pairs(expected, limit))
}

impl<'de> Deserialize<'de> for RawShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Extents;
        impl<'de> Visitor<'de> for Extents {
            type Value = RawShape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the extents of a shape")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawShape, A::Error> {
                let mut shape = Vec::new();
                while shape.len() <= MAX_RANK {
                    let Some(extent) = seq.next_element()? else { return Ok(RawShape(shape)) };
                    shape.push(extent);
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(RawShape(shape))
            }
        }
        deserializer.deserialize_seq(Extents)
    }
}
