//! Golden states: what a reference implementation computed, read from safetensors.
//!
//! B sequences of S tokens (T = B·S), V rows of the head, L layers, E experts, K choices.
//!
//! ```text
//! metadata   config_hf or config_olmo, losses (JSON: what loss.total is made of), description, command, versions
//! input_ids  i32 [B,S]           document_lengths  i32 [B,N]  optional; the lengths of a row sum to S
//! padding    i32 [B,S]  optional; 1 for tokens that attention does not see and the loss does not count as targets
//! logits     f32 [B,S,V]         loss.ce  loss.total  f32 [1]
//! loss.aux   f32 [1]  Hugging Face's, without its weight; or loss.load_balancing and loss.z, with theirs
//! router.ids i32 [L,T,K]         router.probs  f32 [L,T,E]    router.margin  f32 [L,T]   unless dense
//! param.X    grad.X  f32         for every parameter X of the model's registry, in its shape
//! ```

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use olmoe_model::batch::Batch;
use olmoe_model::config::{Auxiliary, AuxiliaryDefinition, ConfigError, ModelConfig};
use olmoe_model::parameters::parameters;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};

/// Most bytes of a golden file.
pub const MAX_GOLDEN_BYTES: u64 = 1 << 28;
/// Most positions of the model of a golden state, because its rotary tables are built in full.
pub const MAX_POSITIONS: usize = 1 << 16;

/// Weights, inputs and expected results of one model.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Name of the file, without its extension.
    pub name: String,
    /// The purpose of the golden state.
    pub description: String,
    /// The architecture, with the auxiliary losses that are part of [`Golden::total`].
    pub config: ModelConfig,
    /// Token ids, `[T]`.
    pub ids: Vec<u32>,
    /// Tokens in each sequence.
    pub length: usize,
    /// Lengths of the documents of all sequences, when attention is restricted to them.
    pub documents: Option<Vec<usize>>,
    /// Whether a token is padding, `[T]`, when there is some.
    pub padding: Option<Vec<bool>>,
    /// `[T, V]`
    pub logits: Vec<f32>,
    /// Mean over the next tokens.
    pub cross_entropy: f64,
    /// With its weight.
    pub load_balancing: Option<f64>,
    /// With its weight.
    pub z: Option<f64>,
    /// The total loss, whose gradients are in the parameters.
    pub total: f64,
    /// The routing; `None` for a dense model.
    pub router: Option<Router>,
    /// In canonical order.
    pub parameters: Vec<Parameter>,
}

/// The routing of all layers.
#[derive(Clone, Debug)]
pub struct Router {
    /// Chosen experts, the most probable first, `[L, T, K]`.
    pub ids: Vec<u32>,
    /// Probabilities of all experts, `[L, T, E]`.
    pub probs: Vec<f32>,
    /// Probability of the last chosen expert minus that of the first expert that is not chosen, `[L, T]`.
    pub margin: Vec<f32>,
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Canonical name.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// The values.
    pub value: Vec<f32>,
    /// The gradient of [`Golden::total`].
    pub gradient: Vec<f32>,
}

/// Why a golden state cannot be read. Every text names the file.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// The file or folder cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A folder without golden files.
    #[error("{}: no *.safetensors here; make them with tools/reference, or leave --golden out", path.display())]
    NoFiles {
        /// The folder.
        path: PathBuf,
    },
    /// Too long to be a golden file.
    #[error("{file}: longer than {limit} bytes, the most of a golden file; make a smaller one")]
    TooLarge {
        /// The file.
        file: String,
        /// [`MAX_GOLDEN_BYTES`].
        limit: u64,
    },
    /// Not a whole safetensors file.
    #[error("{file}: not a whole safetensors file ({source}); copy or make it again")]
    Format {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: SafeTensorError,
    },
    /// A metadata entry is missing.
    #[error("{file}: its metadata has no {key}; it was not made by the programs in tools/reference")]
    MissingMetadata {
        /// The file.
        file: String,
        /// The entry.
        key: &'static str,
    },
    /// A metadata entry has an invalid value.
    #[error("{file}: metadata {key}: {message}")]
    BadMetadata {
        /// The file.
        file: String,
        /// The entry.
        key: &'static str,
        /// What was expected.
        message: String,
    },
    /// The configuration cannot be read.
    #[error("{file}: metadata {key}: {source}")]
    Config {
        /// The file.
        file: String,
        /// `config_hf` or `config_olmo`.
        key: &'static str,
        /// What is wrong with it.
        source: Box<ConfigError>,
    },
    /// The model has too many positions.
    #[error(
        "{file}: its model has {found} positions, more than the {limit} of a golden state; lower max_sequence_length"
    )]
    TooManyPositions {
        /// The file.
        file: String,
        /// Positions of its configuration.
        found: usize,
        /// [`MAX_POSITIONS`].
        limit: usize,
    },
    /// A tensor is missing.
    #[error("{file}: no tensor {tensor}, which its configuration requires")]
    MissingTensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that does not belong to the model of the configuration.
    #[error("{file}: tensor {tensor} does not belong to the model of its configuration")]
    UnexpectedTensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of another type.
    #[error("{file}: tensor {tensor}: found {found:?}, expected {expected:?}")]
    Dtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: Dtype,
        /// The type of the format.
        expected: Dtype,
    },
    /// A tensor of another shape.
    #[error("{file}: tensor {tensor}: found shape {found:?}, expected {expected}")]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the configuration requires.
        expected: String,
    },
    /// A number with an invalid value.
    #[error("{file}: tensor {tensor}, element {at}: found {found}, expected {expected}")]
    Value {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Index of the element.
        at: usize,
        /// Its value.
        found: String,
        /// The valid values.
        expected: String,
    },
}

macro_rules! embedded_files {
    ($($name:literal,)*) => {
        [$(($name, include_bytes!(concat!("../../../tests/golden/", $name, ".safetensors")))),*]
    };
}

/// The golden states of the project, by name; their files are part of the program.
const EMBEDDED: [(&str, &[u8]); 23] = embedded_files!(
    "toy",
    "release_shape",
    "gqa",
    "odd",
    "long",
    "tied",
    "clip_qkv",
    "norm_topk_prob",
    "olmo_losses",
    "megatron_losses",
    "shared_expert",
    "capacity",
    "dense",
    "documents",
    "padding",
    "norm_after",
    "layernorm",
    "nonparametric",
    "qk_norm_plain",
    "clip_qkv_olmo",
    "scale_logits",
    "relu_multi_query",
    "interleave",
);

/// The golden states that are part of the program.
///
/// # Errors
/// Never, unless the program was built from damaged files.
pub fn embedded() -> Result<Vec<Golden>, GoldenError> {
    EMBEDDED.iter().map(|(name, bytes)| Golden::parse(&format!("{name}.safetensors"), bytes)).collect()
}

/// All golden states of a folder, by name.
///
/// # Errors
/// [`GoldenError::NoFiles`] if it has none, and the first error of reading any.
pub fn read_directory(path: &Path) -> Result<Vec<Golden>, GoldenError> {
    let unreadable = |source| GoldenError::Unreadable { path: path.into(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if file.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(GoldenError::NoFiles { path: path.into() });
    }
    files.sort();
    files.iter().map(|file| Golden::read(file)).collect()
}

impl Golden {
    /// Reads a file.
    ///
    /// # Errors
    /// [`GoldenError`]
    pub fn read(path: &Path) -> Result<Golden, GoldenError> {
        let unreadable = |source| GoldenError::Unreadable { path: path.into(), source };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(unreadable)?;
        file.take(MAX_GOLDEN_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        Golden::parse(&path.display().to_string(), &bytes)
    }

    /// Reads the bytes of a file; `file` is its name.
    ///
    /// # Errors
    /// [`GoldenError`], in this order: length, format, metadata, then each tensor's presence, type, shape and numbers.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Golden, GoldenError> {
        if bytes.len() as u64 > MAX_GOLDEN_BYTES {
            return Err(GoldenError::TooLarge { file: file.into(), limit: MAX_GOLDEN_BYTES });
        }
        let format = |source| GoldenError::Format { file: file.into(), source };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(format)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(format)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        GoldenFile { file, tensors: tensors.iter().collect(), metadata }.golden()
    }

    /// The tokens as one batch.
    pub(crate) fn batch(&self) -> Batch {
        self.batch_of(0..self.tokens() / self.length)
    }

    /// Some of its sequences as one batch.
    pub(crate) fn batch_of(&self, sequences: Range<usize>) -> Batch {
        let tokens = sequences.start * self.length..sequences.end * self.length;
        let ids = &self.ids[tokens.clone()];
        let mut batch = Batch::uniform(ids, self.length).expect("the ids were read as whole sequences");
        if let Some(lengths) = &self.documents {
            let per_row = lengths.len() / (self.tokens() / self.length);
            let lengths = &lengths[sequences.start * per_row..sequences.end * per_row];
            batch = batch.with_documents(lengths).expect("document lengths were checked on reading");
        }
        if let Some(padding) = &self.padding {
            batch = batch.with_hidden(padding[tokens].to_vec()).expect("the padding was read for every token");
        }
        batch
    }

    /// A parameter by name.
    pub(crate) fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }

    /// Tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.ids.len()
    }
}

/// A file that is being read to a [`Golden`]: tensors are taken out one by one, and none may be left.
struct GoldenFile<'a> {
    file: &'a str,
    tensors: HashMap<&'a str, TensorView<'a>>,
    metadata: HashMap<String, String>,
}

/// The terms of `loss.total`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct LossDefinition {
    auxiliary: GoldenDefinition,
    load_balancing_weight: f32,
    z_weight: f32,
}

#[derive(Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum GoldenDefinition {
    None,
    Olmo,
    HuggingFace,
    Megatron,
}

impl GoldenFile<'_> {
    fn golden(mut self) -> Result<Golden, GoldenError> {
        let (config, definition) = self.config()?;
        let [sequences, length] = self.shape("input_ids")?;
        let tokens = sequences.saturating_mul(length);
        if tokens == 0 || length < 2 {
            return Err(self.wrong_shape("input_ids", &[sequences, length], "[B, S] with B ≥ 1 and S ≥ 2"));
        }
        let rows = config.embedding_size;
        let ids = self.indices("input_ids", &[sequences, length], rows)?;
        let documents = self.documents(sequences, length)?;
        let padding = match self.tensors.contains_key("padding") {
            true => Some(self.indices("padding", &[sequences, length], 2)?.into_iter().map(|flag| flag == 1).collect()),
            false => None,
        };
        let logits = self.floats("logits", &[sequences, length, rows])?;
        let weight = f64::from(config.auxiliary.load_balancing_weight);
        let load_balancing = match definition {
            GoldenDefinition::None => None,
            GoldenDefinition::HuggingFace => Some(weight * self.scalar("loss.aux")?),
            GoldenDefinition::Olmo | GoldenDefinition::Megatron => Some(self.scalar("loss.load_balancing")?),
        };
        let z = if config.auxiliary.z_weight == 0.0 { None } else { Some(self.scalar("loss.z")?) };
        let router = match config.moe() {
            None => None,
            Some(moe) => {
                let mixtures = config.mixture_layers().count();
                Some(Router {
                    ids: self.indices("router.ids", &[mixtures, tokens, moe.top_k], moe.num_experts)?,
                    probs: self.floats("router.probs", &[mixtures, tokens, moe.num_experts])?,
                    margin: self.floats("router.margin", &[mixtures, tokens])?,
                })
            }
        };
        let mut all = Vec::new();
        for spec in parameters(&config) {
            let value = self.floats(&format!("param.{}", spec.name), &spec.shape)?;
            let gradient = self.floats(&format!("grad.{}", spec.name), &spec.shape)?;
            all.push(Parameter { name: spec.name, shape: spec.shape, value, gradient });
        }
        let (cross_entropy, total) = (self.scalar("loss.ce")?, self.scalar("loss.total")?);
        if let Some(tensor) = self.tensors.keys().min() {
            return Err(GoldenError::UnexpectedTensor { file: self.file.into(), tensor: (*tensor).into() });
        }
        let stem = Path::new(self.file).file_stem().map_or_else(|| self.file.into(), |stem| stem.to_string_lossy());
        Ok(Golden {
            name: stem.into_owned(),
            description: self.metadata("description")?.to_owned(),
            config,
            ids,
            length,
            documents,
            padding,
            logits,
            cross_entropy,
            load_balancing,
            z,
            total,
            router,
            parameters: all,
        })
    }

    fn metadata(&self, key: &'static str) -> Result<&str, GoldenError> {
        let found = self.metadata.get(key).map(String::as_str);
        found.ok_or_else(|| GoldenError::MissingMetadata { file: self.file.into(), key })
    }

    fn config(&self) -> Result<(ModelConfig, GoldenDefinition), GoldenError> {
        let (key, loaded) = match self.metadata("config_hf") {
            Ok(text) => ("config_hf", ModelConfig::from_hf_json(text)),
            Err(_) => ("config_olmo", ModelConfig::from_olmo_yaml(self.metadata("config_olmo")?)),
        };
        let wrong = |source| GoldenError::Config { file: self.file.into(), key, source: Box::new(source) };
        let mut config = loaded.map_err(wrong)?.config;
        let bad = |message| GoldenError::BadMetadata { file: self.file.into(), key: "losses", message };
        let losses: LossDefinition =
            serde_json::from_str(self.metadata("losses")?).map_err(|error| bad(error.to_string()))?;
        config.auxiliary = Auxiliary {
            definition: match losses.auxiliary {
                GoldenDefinition::Olmo | GoldenDefinition::None => AuxiliaryDefinition::Olmo,
                GoldenDefinition::HuggingFace => AuxiliaryDefinition::HuggingFace,
                GoldenDefinition::Megatron => AuxiliaryDefinition::Megatron,
            },
            load_balancing_weight: losses.load_balancing_weight,
            z_weight: losses.z_weight,
        };
        let weights = [losses.load_balancing_weight, losses.z_weight];
        if losses.auxiliary == GoldenDefinition::None && weights != [0.0; 2] {
            return Err(bad(format!("auxiliary is none, so both weights have to be 0, found {weights:?}")));
        }
        config.validate().map_err(wrong)?;
        if config.max_sequence_length > MAX_POSITIONS {
            let (found, limit) = (config.max_sequence_length, MAX_POSITIONS);
            return Err(GoldenError::TooManyPositions { file: self.file.into(), found, limit });
        }
        Ok((config, losses.auxiliary))
    }

    fn documents(&mut self, sequences: usize, length: usize) -> Result<Option<Vec<usize>>, GoldenError> {
        const NAME: &str = "document_lengths";
        if !self.tensors.contains_key(NAME) {
            return Ok(None);
        }
        let [rows, count] = self.shape(NAME)?;
        let lengths = self.indices(NAME, &[sequences, count], length + 1)?;
        debug_assert_eq!(rows, sequences);
        for (row, lengths) in lengths.chunks(count.max(1)).enumerate() {
            let sum: usize = lengths.iter().map(|n| *n as usize).sum();
            if sum != length {
                let expected = format!("a row that sums to {length}");
                return Err(self.wrong_value(NAME, row * count, format!("a row that sums to {sum}"), expected));
            }
        }
        Ok(Some(lengths.into_iter().map(|n| n as usize).collect()))
    }

    /// The shape of a tensor of N dimensions.
    fn shape<const N: usize>(&self, name: &str) -> Result<[usize; N], GoldenError> {
        let missing = || GoldenError::MissingTensor { file: self.file.into(), tensor: name.into() };
        let found = self.tensors.get(name).ok_or_else(missing)?.shape();
        found.try_into().map_err(|_| self.wrong_shape(name, found, format!("{N} dimensions")))
    }

    fn wrong_shape(&self, name: &str, found: &[usize], expected: impl Into<String>) -> GoldenError {
        let (file, tensor) = (self.file.into(), name.into());
        GoldenError::Shape { file, tensor, found: found.to_vec(), expected: expected.into() }
    }

    fn wrong_value(&self, name: &str, at: usize, found: String, expected: String) -> GoldenError {
        GoldenError::Value { file: self.file.into(), tensor: name.into(), at, found, expected }
    }

    /// The four bytes of each element of a tensor.
    fn take(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Vec<[u8; 4]>, GoldenError> {
        let file = || self.file.to_owned();
        let missing = || GoldenError::MissingTensor { file: file(), tensor: name.into() };
        let tensor = self.tensors.remove(name).ok_or_else(missing)?;
        if tensor.dtype() != dtype {
            let (tensor, found) = (name.to_owned(), tensor.dtype());
            return Err(GoldenError::Dtype { file: file(), tensor, found, expected: dtype });
        }
        if tensor.shape() != shape {
            return Err(self.wrong_shape(name, tensor.shape(), format!("{shape:?}")));
        }
        Ok(tensor.data().as_chunks().0.to_vec())
    }

    fn floats(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, GoldenError> {
        let bytes = self.take(name, Dtype::F32, shape)?;
        let values: Vec<f32> = bytes.into_iter().map(f32::from_le_bytes).collect();
        match values.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(self.wrong_value(name, at, values[at].to_string(), "a finite number".into())),
            None => Ok(values),
        }
    }

    fn scalar(&mut self, name: &str) -> Result<f64, GoldenError> {
        Ok(f64::from(self.floats(name, &[1])?[0]))
    }

    /// Numbers of `0..limit`.
    fn indices(&mut self, name: &str, shape: &[usize], limit: usize) -> Result<Vec<u32>, GoldenError> {
        let bytes = self.take(name, Dtype::I32, shape)?;
        let mut values = Vec::with_capacity(bytes.len());
        for (at, bytes) in bytes.into_iter().enumerate() {
            let found = i32::from_le_bytes(bytes);
            match u32::try_from(found) {
                Ok(index) if (index as usize) < limit => values.push(index),
                _ => return Err(self.wrong_value(name, at, found.to_string(), format!("0 to {}", limit - 1))),
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_golden_file_is_embedded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let in_folder = read_directory(&folder).unwrap();
        let mut names: Vec<_> = EMBEDDED.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        assert_eq!(in_folder.iter().map(|golden| golden.name.as_str()).collect::<Vec<_>>(), names);
        assert_eq!(embedded().unwrap().len(), names.len());
    }
}
