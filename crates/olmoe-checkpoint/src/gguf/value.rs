//! The metadata of a GGUF file: typed values under dotted keys.

use std::collections::HashMap;
use std::fmt;

/// The type of a value, with the format's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum ValueType {
    U8 = 0,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::Text,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// The type with that number.
    pub fn by_number(number: u32) -> Option<ValueType> {
        Self::ALL.get(number as usize).copied()
    }

    /// The fewest bytes of a value in a file.
    pub(super) fn min_bytes(self) -> u64 {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::Text | ValueType::U64 | ValueType::I64 | ValueType::F64 => 8,
            ValueType::Array => 12,
        }
    }
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum MetadataValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Text(String),
    /// Values of one type.
    Array(ValueType, Vec<MetadataValue>),
}

impl MetadataValue {
    /// Its type.
    pub fn kind(&self) -> ValueType {
        match self {
            MetadataValue::U8(_) => ValueType::U8,
            MetadataValue::I8(_) => ValueType::I8,
            MetadataValue::U16(_) => ValueType::U16,
            MetadataValue::I16(_) => ValueType::I16,
            MetadataValue::U32(_) => ValueType::U32,
            MetadataValue::I32(_) => ValueType::I32,
            MetadataValue::U64(_) => ValueType::U64,
            MetadataValue::I64(_) => ValueType::I64,
            MetadataValue::F32(_) => ValueType::F32,
            MetadataValue::F64(_) => ValueType::F64,
            MetadataValue::Bool(_) => ValueType::Bool,
            MetadataValue::Text(_) => ValueType::Text,
            MetadataValue::Array(..) => ValueType::Array,
        }
    }

    /// A whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            MetadataValue::U8(x) => Some(x.into()),
            MetadataValue::U16(x) => Some(x.into()),
            MetadataValue::U32(x) => Some(x.into()),
            MetadataValue::U64(x) => Some(x),
            MetadataValue::I8(x) => x.try_into().ok(),
            MetadataValue::I16(x) => x.try_into().ok(),
            MetadataValue::I32(x) => x.try_into().ok(),
            MetadataValue::I64(x) => x.try_into().ok(),
            _ => None,
        }
    }

    /// A number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            MetadataValue::F32(x) => Some(x.into()),
            MetadataValue::F64(x) => Some(x),
            _ => None,
        }
    }

    /// A number of any type; true is 1.
    pub fn as_any_number(&self) -> Option<f64> {
        match *self {
            MetadataValue::Bool(x) => Some(f64::from(u8::from(x))),
            MetadataValue::U64(x) => Some(x as f64),
            MetadataValue::I64(x) => Some(x as f64),
            MetadataValue::I8(x) => Some(x.into()),
            MetadataValue::I16(x) => Some(x.into()),
            MetadataValue::I32(x) => Some(x.into()),
            ref other => other.as_u64().map(|x| x as f64).or_else(|| other.as_f64()),
        }
    }

    /// A text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            MetadataValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A list of texts.
    pub fn as_texts(&self) -> Option<Vec<String>> {
        match self {
            MetadataValue::Array(ValueType::Text, values) => {
                Some(values.iter().filter_map(MetadataValue::as_text).map(str::to_owned).collect())
            }
            _ => None,
        }
    }

    /// A list of token ids.
    pub fn as_ids(&self) -> Option<Vec<u32>> {
        match self {
            MetadataValue::Array(_, values) => values.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect(),
            _ => None,
        }
    }

    /// A list of texts as a value.
    pub fn texts(texts: &[String]) -> MetadataValue {
        MetadataValue::Array(ValueType::Text, texts.iter().cloned().map(MetadataValue::Text).collect())
    }

    /// Appends the value, without its type.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            MetadataValue::U8(x) => out.extend(x.to_le_bytes()),
            MetadataValue::I8(x) => out.extend(x.to_le_bytes()),
            MetadataValue::U16(x) => out.extend(x.to_le_bytes()),
            MetadataValue::I16(x) => out.extend(x.to_le_bytes()),
            MetadataValue::U32(x) => out.extend(x.to_le_bytes()),
            MetadataValue::I32(x) => out.extend(x.to_le_bytes()),
            MetadataValue::U64(x) => out.extend(x.to_le_bytes()),
            MetadataValue::I64(x) => out.extend(x.to_le_bytes()),
            MetadataValue::F32(x) => out.extend(x.to_le_bytes()),
            MetadataValue::F64(x) => out.extend(x.to_le_bytes()),
            MetadataValue::Bool(x) => out.push(u8::from(*x)),
            MetadataValue::Text(text) => self::text(out, text),
            MetadataValue::Array(kind, values) => {
                out.extend((*kind as u32).to_le_bytes());
                out.extend((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| value.write(out));
            }
        }
    }
}

/// Of a long list, its beginning and its length.
impl fmt::Display for MetadataValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetadataValue::U8(x) => x.fmt(f),
            MetadataValue::I8(x) => x.fmt(f),
            MetadataValue::U16(x) => x.fmt(f),
            MetadataValue::I16(x) => x.fmt(f),
            MetadataValue::U32(x) => x.fmt(f),
            MetadataValue::I32(x) => x.fmt(f),
            MetadataValue::U64(x) => x.fmt(f),
            MetadataValue::I64(x) => x.fmt(f),
            MetadataValue::F32(x) => x.fmt(f),
            MetadataValue::F64(x) => x.fmt(f),
            MetadataValue::Bool(x) => x.fmt(f),
            MetadataValue::Text(text) if text.chars().count() > 60 => {
                let start: String = text.chars().take(57).collect();
                write!(f, "{start:?}…")
            }
            MetadataValue::Text(text) => write!(f, "{text:?}"),
            MetadataValue::Array(_, values) => {
                let shown = values.iter().take(4).map(MetadataValue::to_string).collect::<Vec<_>>().join(", ");
                let more = if values.len() > 4 { format!(", … {} in all", values.len()) } else { String::new() };
                write!(f, "[{shown}{more}]")
            }
        }
    }
}

/// Entries in their order, which can be found by key.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, MetadataValue)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// Appends an entry; false if there is already one with that key, which is not changed.
    pub fn insert(&mut self, key: impl Into<String>, value: MetadataValue) -> bool {
        let key = key.into();
        if self.index.contains_key(&key) {
            return false;
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        true
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&MetadataValue> {
        self.index.get(key).map(|&at| &self.entries[at].1)
    }

    /// The entries, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &MetadataValue)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Appends a string in the format of GGUF.
pub(super) fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
