//! The tensor names of OLMo's safetensors files.
//!
//! OLMo stores a nested dict of tensors under one flat level of names. Each name is the URL-safe base64 of a pickle
//! (protocol 4) of `(path, is_pickled)`: the keys that lead to the tensor, and whether the tensor is instead the bytes
//! of a pickled value.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use thiserror::Error;

use crate::pickle::{self, PickleError, PickleValue, shortened};

/// What a name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OlmoKey {
    /// The keys from the outermost dict to the tensor; one for the tensors of a model.
    pub path: Vec<String>,
    /// Whether the tensor's bytes are a pickle of something that is no tensor.
    pub is_pickled: bool,
}

/// Why a name cannot be understood.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// Not base64.
    #[error("tensor name `{key}` is not URL-safe base64 ({source}); it is not a name in OLMo's safetensors files")]
    Base64 {
        /// The name, shortened.
        key: String,
        /// What is wrong with it.
        source: base64::DecodeError,
    },
    /// Base64 of something that is not a harmless pickle.
    #[error("tensor name `{key}`: {source}")]
    Pickle {
        /// The name, shortened.
        key: String,
        /// What is wrong with it.
        source: PickleError,
    },
    /// A pickle of something else.
    #[error("tensor name `{key}`: expected {expected}, found {found}; it is not a name in OLMo's safetensors files")]
    Content {
        /// The name, shortened.
        key: String,
        /// What should stand in this place.
        expected: &'static str,
        /// What stands there.
        found: &'static str,
    },
}

/// Reads a name.
pub fn decode(key: &str) -> Result<OlmoKey, KeyError> {
    let bytes = URL_SAFE.decode(key).map_err(|source| KeyError::Base64 { key: shortened(key), source })?;
    let pickle = pickle::parse(&bytes).map_err(|source| KeyError::Pickle { key: shortened(key), source })?;
    let wrong =
        |expected, found: &PickleValue| KeyError::Content { key: shortened(key), expected, found: found.kind() };
    let items = |id, expected| match pickle.value(id) {
        PickleValue::Tuple(items) => Ok(items.as_slice()),
        other => Err(wrong(expected, other)),
    };
    const PAIR: &str = "a tuple of a path and a bool";
    let root = pickle.root();
    let &[path, is_pickled] = items(root, PAIR)? else { return Err(wrong(PAIR, pickle.value(root))) };
    let parts = items(path, "a tuple of strings as the path")?;
    let text = |&id| match pickle.value(id) {
        PickleValue::Str(text) => Ok((*text).to_owned()),
        other => Err(wrong("a string in the path", other)),
    };
    let path = parts.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    match pickle.value(is_pickled) {
        PickleValue::Bool(is_pickled) => Ok(OlmoKey { path, is_pickled: *is_pickled }),
        other => Err(wrong("a bool after the path", other)),
    }
}

/// The name of the tensor that `path` leads to, byte for byte as Python's pickler writes it.
///
/// Each part is written out. Python refers back to a part that is the very same object as an earlier one of the path;
/// the names of a model's tensors are paths of one part.
pub fn encode(path: &[&str], is_pickled: bool) -> String {
    let mut writer = KeyWriter { bytes: vec![0x80, 4], frame: None };
    if path.len() > 3 {
        writer.put(b"(");
    }
    for part in path {
        writer.string(part);
    }
    match path.len() {
        0 => writer.put(b")"),
        1 => writer.put(b"\x85\x94"),
        2 => writer.put(b"\x86\x94"),
        3 => writer.put(b"\x87\x94"),
        _ => writer.put(b"t\x94"),
    }
    writer.begin_object();
    writer.put(if is_pickled { b"\x88" } else { b"\x89" });
    writer.put(b"\x86\x94.");
    writer.close_frame();
    URL_SAFE.encode(&writer.bytes)
}

/// Opcodes in frames, divided as Python does.
struct KeyWriter {
    bytes: Vec<u8>,
    /// Where the open frame's opcodes begin.
    frame: Option<usize>,
}

impl KeyWriter {
    /// A frame this long is closed before the next object; a string this long is outside of all frames.
    const FRAME: usize = 64 << 10;
    /// Fewer bytes get no frame.
    const SHORTEST_FRAME: usize = 4;

    fn put(&mut self, opcodes: &[u8]) {
        self.frame.get_or_insert(self.bytes.len());
        self.bytes.extend_from_slice(opcodes);
    }

    fn string(&mut self, text: &str) {
        self.begin_object();
        let header = match (u8::try_from(text.len()), u32::try_from(text.len())) {
            (Ok(length), _) => vec![0x8c, length],
            (_, Ok(length)) => [&b"X"[..], &length.to_le_bytes()].concat(),
            _ => [&b"\x8d"[..], &(text.len() as u64).to_le_bytes()].concat(),
        };
        if text.len() < Self::FRAME {
            self.put(&header);
            self.put(text.as_bytes());
        } else {
            self.close_frame();
            self.bytes.extend_from_slice(&header);
            self.bytes.extend_from_slice(text.as_bytes());
        }
        self.put(b"\x94");
    }

    fn begin_object(&mut self) {
        if self.frame.is_some_and(|start| self.bytes.len() - start >= Self::FRAME) {
            self.close_frame();
        }
    }

    fn close_frame(&mut self) {
        let Some(start) = self.frame.take() else { return };
        let length = self.bytes.len() - start;
        if length >= Self::SHORTEST_FRAME {
            let header = [&b"\x95"[..], &(length as u64).to_le_bytes()].concat();
            self.bytes.splice(start..start, header);
        }
    }
}
