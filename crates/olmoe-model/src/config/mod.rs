//! The validated model configuration and the formats it is read from and written to.
//!
//! [`ModelConfig`] describes the model with one set of fields for every source. Each file format has its own file here
//! that maps its keys to these fields: `hf` for a Hugging Face `config.json`, `olmo` for the `model:` section of an
//! OLMo training YAML. A key that cannot be mapped is an error; a key that is accepted without effect gives a
//! [`KeyNotice`]. A written file is read again, and refused if it would define another
//! [function](ModelConfig::same_function).

pub(crate) mod architecture;
pub(crate) mod error;
mod function;
mod hf;
mod names;
mod olmo;
mod section;
mod validate;

pub use architecture::{
    Activation, Auxiliary, AuxiliaryDefinition, ClipOrder, ClipQkv, FeedForward, Init, InitMethod, Mlp, ModelConfig,
    Moe, Norm, NormKind, Rope,
};
pub use error::{ConfigError, KeyNotice};
pub use names::in_files;
pub use section::{closest, describe, shorten};
pub use validate::{
    MAX_CONFIG_BYTES, MAX_EXPERTS, MAX_HEADS, MAX_LAYERS, MAX_SEQUENCE_LENGTH, MAX_VOCABULARY, MAX_WIDTH,
};

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use function::ConfigFormat;

/// A configuration, and the notices about keys of its file that have no effect here.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedConfig {
    /// The validated configuration.
    pub config: ModelConfig,
    /// One entry for each key that was accepted without effect, in the order of the table of the format; show them
    /// once.
    pub notices: Vec<KeyNotice>,
}

impl ModelConfig {
    /// OLMoE-1B-7B (0924 and 0125): 16 layers of 64 experts, 8 per token; 6,919,161,856 parameters.
    ///
    /// As in the training file, except that `eos_token_id` is the id that ends the documents of the training data
    /// (50279).
    pub fn release() -> Self {
        let norm = Norm { kind: NormKind::Rms, affine: true, bias: false, eps: 1e-5 };
        Self {
            d_model: 2048,
            n_layers: 16,
            n_heads: 16,
            n_kv_heads: 16,
            head_dim: 128,
            vocab_size: 50280,
            embedding_size: 50304,
            max_sequence_length: 4096,
            feed_forward: FeedForward::Moe(Moe {
                num_experts: 64,
                top_k: 8,
                expert: Mlp { width: 1024, activation: Activation::SwiGlu },
                normalize_top_k: false,
                shared_expert: None,
                capacity_factor: None,
            }),
            even_layers: None,
            norm,
            qk_norm: Some(norm),
            embedding_norm: None,
            norm_after: false,
            rope: Rope { theta: 10_000.0 },
            clip_qkv: None,
            attention_bias: false,
            mlp_bias: false,
            head_bias: false,
            tie_embeddings: false,
            scale_logits: false,
            init: Init {
                method: InitMethod::Normal,
                std: 0.02,
                cutoff_factor: Some(3.0),
                embedding_std: None,
                scale_embedding: false,
            },
            auxiliary: Auxiliary {
                definition: AuxiliaryDefinition::Olmo,
                load_balancing_weight: 0.01,
                z_weight: 0.001,
            },
            pad_token_id: Some(1),
            bos_token_id: None,
            eos_token_id: Some(50279),
        }
    }

    /// Reads a Hugging Face `config.json` with `model_type: olmoe`, or `llama` for a dense model. Omitted keys take the
    /// defaults of the class.
    ///
    /// # Errors
    /// Bad JSON, unknown or mistyped keys, and every setting that no model of this crate can honour.
    pub fn from_hf_json(text: &str) -> Result<LoadedConfig, ConfigError> {
        hf::read(text)
    }

    /// Writes a Hugging Face `config.json` that transformers 4 and 5 read: `olmoe` for a mixture of experts, `llama`
    /// for a dense model. `dtype` is the format in which the weights are stored: `bfloat16`, `float16` or `float32`.
    ///
    /// Of the initialisation only the standard deviation is kept, of the auxiliary losses only the load-balancing
    /// weight, and `vocab_size` becomes the rows of the embedding.
    ///
    /// # Errors
    /// A configuration that is not valid, another `dtype`, and [`ConfigError::Inexpressible`] for a function that the
    /// format cannot express.
    pub fn to_hf_json(&self, dtype: &str) -> Result<String, ConfigError> {
        self.validate()?;
        let text = hf::write::text(self, dtype)?;
        ConfigFormat::HuggingFace.check(self, &text)?;
        Ok(text)
    }

    /// Writes the `config.yaml` of an unsharded OLMo checkpoint, which is a `model:` section.
    ///
    /// The definition of the auxiliary losses and the id of the begin-of-sequence token are not kept: OLMo has one
    /// definition and no such token.
    ///
    /// # Errors
    /// A configuration that is not valid, and [`ConfigError::Inexpressible`] for a function that the format cannot
    /// express.
    pub fn to_olmo_yaml(&self) -> Result<String, ConfigError> {
        self.validate()?;
        let text = olmo::write::text(self);
        ConfigFormat::Olmo.check(self, &text)?;
        Ok(text)
    }

    /// Checks that two configurations define the same function: with the same parameters they give the same logits.
    ///
    /// All fields are compared except the initialisation, the auxiliary losses, the special tokens, `vocab_size` (only
    /// the rows of the embedding count), and the order of clamp and norm where queries and keys are not normalised.
    ///
    /// # Errors
    /// [`ConfigError::OtherFunction`] with the first field that differs, in alphabetical order, and both values.
    pub fn same_function(&self, other: &ModelConfig) -> Result<(), ConfigError> {
        function::same(self, other)
    }

    /// Reads the `model:` section of an OLMo training YAML, whose other sections are ignored, or a file with that
    /// section alone. Omitted keys take OLMo's defaults, which are GPT-2's and not OLMoE's.
    ///
    /// # Errors
    /// Bad YAML, unknown or mistyped keys, and every setting that no model of this crate can honour.
    pub fn from_olmo_yaml(text: &str) -> Result<LoadedConfig, ConfigError> {
        olmo::read(&olmo::parse(text)?)
    }

    /// As [`from_olmo_yaml`](Self::from_olmo_yaml), for a file parsed by [`parse_yaml`].
    ///
    /// # Errors
    /// Unknown or mistyped keys, and every setting that no model of this crate can honour.
    pub fn from_olmo_value(file: &Value) -> Result<LoadedConfig, ConfigError> {
        olmo::read(file)
    }

    /// Reads the JSON that serialising a `ModelConfig` gives, which is the format of this project's checkpoints.
    ///
    /// # Errors
    /// Bad JSON, unknown, missing or mistyped fields, and values that [`validate`](Self::validate) rejects.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        validate::length(text)?;
        let syntax = |error: serde_json::Error| ConfigError::Syntax { format: "JSON", message: error.to_string() };
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let config = Self::deserialize(&mut deserializer).map_err(syntax)?;
        deserializer.end().map_err(syntax)?;
        config.validate()?;
        Ok(config)
    }

    /// Reads a configuration file in any of the three formats. A `.yml` or `.yaml` file is OLMo's. Otherwise a JSON
    /// file with `feed_forward` is this crate's, any other JSON file is Hugging Face's, and what is not JSON is read as
    /// YAML.
    ///
    /// # Errors
    /// As the reader of each format, and failures to read the file; every error names the file.
    pub fn read(path: impl AsRef<Path>) -> Result<LoadedConfig, ConfigError> {
        let path = path.as_ref();
        let in_file = |source| ConfigError::InFile { path: path.into(), source: Box::new(source) };
        let text = &read_text(path)?;
        let extension = path.extension().and_then(|extension| extension.to_str());
        let is_yaml = matches!(extension, Some("yml" | "yaml"));
        if is_yaml || !text.trim_start().starts_with('{') {
            return Self::from_olmo_yaml(text).map_err(in_file);
        }
        // A configuration of this crate always has this key, and a Hugging Face configuration never has it.
        let is_own = serde_json::from_str::<Value>(text)
            .is_ok_and(|value| value.get("feed_forward").is_some() && value.get("model_type").is_none());
        let loaded = match is_own {
            true => Self::from_json(text).map(|config| LoadedConfig { config, notices: Vec::new() }),
            false => Self::from_hf_json(text),
        };
        loaded.map_err(in_file)
    }

    /// Checks every rule that a model must satisfy to be built; the readers here have already checked them.
    ///
    /// # Errors
    /// The first rule that is violated, with the field and the values that it may have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        validate::check(self, &names::OWN)
    }
}

/// Parses a YAML text of at most [`MAX_CONFIG_BYTES`] into a tree of JSON values. NaN and infinity become texts.
///
/// # Errors
/// [`ConfigError::TooLong`], [`ConfigError::Syntax`].
pub fn parse_yaml(text: &str) -> Result<Value, ConfigError> {
    olmo::parse(text)
}

/// Reads the text of a configuration file, at most [`MAX_CONFIG_BYTES`] of a regular file.
///
/// # Errors
/// [`ConfigError::Unreadable`], [`ConfigError::TooLong`], [`ConfigError::NotUtf8`]; each names the file.
pub fn read_text(path: &Path) -> Result<String, ConfigError> {
    let in_file = |source| ConfigError::InFile { path: path.into(), source: Box::new(source) };
    let unreadable = |source| ConfigError::Unreadable { path: path.into(), source };
    let mut bytes = Vec::new();
    // Reading a pipe or a device could go on for ever.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
    }
    if metadata.len() > MAX_CONFIG_BYTES as u64 {
        return Err(in_file(ConfigError::TooLong { limit: MAX_CONFIG_BYTES }));
    }
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_CONFIG_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_CONFIG_BYTES {
        return Err(in_file(ConfigError::TooLong { limit: MAX_CONFIG_BYTES }));
    }
    // The byte-order mark that some editors write is not part of the text.
    if bytes.starts_with("\u{feff}".as_bytes()) {
        bytes.drain(.."\u{feff}".len());
    }
    String::from_utf8(bytes).map_err(|error| in_file(ConfigError::NotUtf8 { offset: error.utf8_error().valid_up_to() }))
}

impl Serialize for ModelConfig {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for ModelConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let config = Self::deserialize(deserializer)?;
        config.validate().map_err(serde::de::Error::custom)?;
        Ok(config)
    }
}
