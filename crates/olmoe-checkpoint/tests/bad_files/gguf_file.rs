//! A GGUF file field by field, so that each can be wrong on its own.

use std::fs;
use std::path::Path;

use olmoe_checkpoint::gguf::container;
use olmoe_checkpoint::gguf::value::{MetadataValue, ValueType};

/// An entry of the metadata.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    /// What the file says of the key's length, if that is not its length.
    pub(crate) key_len: Option<u64>,
    pub(crate) kind: u32,
    pub(crate) value: Vec<u8>,
}

/// A tensor's description.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: Vec<u8>,
    pub(crate) name_len: Option<u64>,
    pub(crate) rank: Option<u32>,
    /// Innermost first.
    pub(crate) extents: Vec<u64>,
    pub(crate) kind: u32,
    /// From the beginning of the data.
    pub(crate) offset: u64,
}

/// A file.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) num_entries: Option<u64>,
    pub(crate) num_tensors: Option<u64>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

/// An array of values that are given as bytes.
pub(crate) fn array(kind: ValueType, values: &[Vec<u8>]) -> Vec<u8> {
    [&(kind as u32).to_le_bytes()[..], &(values.len() as u64).to_le_bytes(), &values.concat()].concat()
}

fn encoded(value: &MetadataValue) -> Vec<u8> {
    match value {
        MetadataValue::U32(x) => x.to_le_bytes().to_vec(),
        MetadataValue::I32(x) => x.to_le_bytes().to_vec(),
        MetadataValue::F32(x) => x.to_le_bytes().to_vec(),
        MetadataValue::Bool(x) => vec![u8::from(*x)],
        MetadataValue::Text(x) => text(x.as_bytes()),
        MetadataValue::Array(kind, values) => array(*kind, &values.iter().map(encoded).collect::<Vec<_>>()),
        other => panic!("no file here has {other}"),
    }
}

impl Gguf {
    pub(crate) fn read(path: &Path) -> Gguf {
        let bytes = fs::read(path).unwrap();
        let header = container::read(&bytes[..]).unwrap();
        let begin = header.tensors.iter().map(|tensor| tensor.offset).min().unwrap();
        let entry = |(key, value): (&str, &MetadataValue)| Entry {
            key: key.into(),
            key_len: None,
            kind: value.kind() as u32,
            value: encoded(value),
        };
        let tensor = |tensor: &container::TensorInfo| Tensor {
            name: tensor.name.clone().into_bytes(),
            name_len: None,
            rank: None,
            extents: tensor.shape.iter().rev().map(|&extent| extent as u64).collect(),
            kind: tensor.kind,
            offset: tensor.offset - begin,
        };
        let file = Gguf {
            magic: *b"GGUF",
            version: header.version,
            num_entries: None,
            num_tensors: None,
            entries: header.metadata.iter().map(entry).collect(),
            tensors: header.tensors.iter().map(tensor).collect(),
            alignment: 32,
            data: bytes[begin as usize..].to_vec(),
        };
        assert!(file.bytes() == bytes, "what is not changed is as it was");
        file
    }

    /// All but the data.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.magic);
        out.extend(self.version.to_le_bytes());
        out.extend(self.num_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.num_entries.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for entry in &self.entries {
            out.extend(entry.key_len.unwrap_or(entry.key.len() as u64).to_le_bytes());
            out.extend(&entry.key);
            out.extend(entry.kind.to_le_bytes());
            out.extend(&entry.value);
        }
        for tensor in &self.tensors {
            out.extend(tensor.name_len.unwrap_or(tensor.name.len() as u64).to_le_bytes());
            out.extend(&tensor.name);
            out.extend(tensor.rank.unwrap_or(tensor.extents.len() as u32).to_le_bytes());
            tensor.extents.iter().for_each(|extent| out.extend(extent.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }

    fn place(&self, key: &str) -> usize {
        let place = self.entries.iter().position(|entry| entry.key == key.as_bytes());
        place.unwrap_or_else(|| panic!("no {key}"))
    }

    pub(crate) fn entry(&mut self, key: &str) -> &mut Entry {
        let place = self.place(key);
        &mut self.entries[place]
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.entries.remove(self.place(key));
    }

    /// Sets a value, new or not.
    pub(crate) fn set(&mut self, key: &str, kind: ValueType, value: impl Into<Vec<u8>>) {
        self.entries.retain(|entry| entry.key != key.as_bytes());
        self.entries.push(Entry { key: key.into(), key_len: None, kind: kind as u32, value: value.into() });
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name.as_bytes()).unwrap()
    }

    /// The bytes of a tensor from its number `at` on.
    pub(crate) fn data_of(&mut self, name: &str, at: usize) -> &mut [u8] {
        let offset = self.tensor(name).offset as usize;
        &mut self.data[offset + at..]
    }
}
