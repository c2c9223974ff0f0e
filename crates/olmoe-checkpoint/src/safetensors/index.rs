//! `model.safetensors.index.json`: the file of each tensor.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::header::pairs;
use super::limits::MAX_TENSORS;
use crate::file_name;
pub use crate::file_name::INDEX_FILE;

/// The largest index in bytes.
pub const MAX_INDEX: usize = 100_000_000;

/// The file of each tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardIndex {
    /// The file of each tensor, as a plain name in the folder of the index.
    pub weight_map: BTreeMap<String, String>,
    /// The total size of all tensors in bytes, if the index has it.
    pub total_size: Option<u64>,
}

/// Why an index cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Longer than any index.
    #[error("{found} bytes long, more than the {MAX_INDEX} of an index")]
    TooLong {
        /// Its bytes.
        found: usize,
    },
    /// Content that is not JSON, or not an index.
    #[error("it is not a valid index: {0}")]
    Json(#[from] serde_json::Error),
    /// Too many tensors.
    #[error("more than {MAX_TENSORS} tensors")]
    TooManyTensors,
    /// Two files for one tensor.
    #[error("tensor {tensor:?} occurs twice, and which file is meant is unknown; write the index again")]
    Duplicate {
        /// The tensor.
        tensor: String,
    },
    /// A file that is not beside the index.
    #[error("tensor {tensor:?} is in {file:?}; expected the plain name of a file in the same folder")]
    FileName {
        /// The tensor.
        tensor: String,
        /// The file in the index.
        file: String,
    },
}

#[derive(Deserialize)]
struct RawIndex {
    #[serde(default)]
    metadata: Option<RawIndexMetadata>,
    weight_map: RawMap,
}

#[derive(Deserialize)]
struct RawIndexMetadata {
    #[serde(default)]
    total_size: Value,
}

struct RawMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for RawMap {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        pairs(deserializer, "files by tensor", MAX_TENSORS).map(RawMap)
    }
}

impl ShardIndex {
    /// Parses an index.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        if bytes.len() > MAX_INDEX {
            return Err(IndexError::TooLong { found: bytes.len() });
        }
        let raw: RawIndex = serde_json::from_slice(bytes)?;
        if raw.weight_map.0.len() > MAX_TENSORS {
            return Err(IndexError::TooManyTensors);
        }
        let mut weight_map = BTreeMap::new();
        for (tensor, file) in raw.weight_map.0 {
            if !file_name::is_plain(&file) {
                return Err(IndexError::FileName {
                    tensor,
                    file: file.chars().take(file_name::MAX_FILE_NAME).collect(),
                });
            }
            if weight_map.insert(tensor.clone(), file).is_some() {
                return Err(IndexError::Duplicate { tensor });
            }
        }
        Ok(Self { weight_map, total_size: raw.metadata.and_then(|metadata| metadata.total_size.as_u64()) })
    }

    /// The index as JSON, as transformers writes it.
    ///
    /// # Errors
    /// [`IndexError::FileName`], since an index is written only if it can be read again.
    pub fn to_json(&self) -> Result<String, IndexError> {
        #[derive(Serialize)]
        struct IndexMetadata {
            #[serde(skip_serializing_if = "Option::is_none")]
            total_size: Option<u64>,
        }
        #[derive(Serialize)]
        struct Index<'a> {
            metadata: IndexMetadata,
            weight_map: &'a BTreeMap<String, String>,
        }
        if let Some((tensor, file)) = self.weight_map.iter().find(|(_, file)| !file_name::is_plain(file)) {
            return Err(IndexError::FileName { tensor: tensor.clone(), file: file.clone() });
        }
        let index = Index { metadata: IndexMetadata { total_size: self.total_size }, weight_map: &self.weight_map };
        Ok(serde_json::to_string_pretty(&index)? + "\n")
    }

    /// The names of the files, each once, in order.
    pub fn files(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}
