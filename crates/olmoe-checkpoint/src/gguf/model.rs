//! The metadata of a model, such as `{arch}.embedding_length`, to and from the configuration.

use olmoe_model::config::{
    Activation, ConfigError, FeedForward, KeyNotice, LoadedConfig, Mlp, ModelConfig, Moe, Norm, NormKind, Rope,
};

use super::container::{GgufHeader, TensorInfo};
use super::keys;
use super::value::{Metadata, MetadataValue};
use super::vocabulary::{BOS, EOS, PAD};
use crate::layout::{FileTensor, Layout};

/// Why the metadata of a file cannot be read as a model.
#[derive(Debug, thiserror::Error)]
pub enum GgufModelError {
    /// Another architecture.
    #[error("general.architecture is {found}; the architectures read are olmoe and llama")]
    Architecture {
        /// What the file says.
        found: String,
    },
    /// A key that every model needs.
    #[error("metadata has no {key}")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A value of the wrong type or size.
    #[error("{key} is {found}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A setting without an implementation.
    #[error("{key} is {found}: {reason}")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// Why it cannot be used.
        reason: &'static str,
    },
    /// A file that belongs to a model but is not one.
    #[error("general.type is {found:?}: {what}; give the model itself")]
    NotAModel {
        /// What the file says.
        found: String,
        /// What such a file contains.
        what: &'static str,
    },
    /// A tensor that every model needs.
    #[error("there is no tensor {name:?}")]
    MissingTensor {
        /// Its name.
        name: &'static str,
    },
    /// The values do not make a model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration has something that the format cannot express.
    #[error("llama.cpp's {architecture} cannot express this model: {source}")]
    NotExpressible {
        /// The architecture that would be written.
        architecture: &'static str,
        /// What is different when it is read back.
        source: ConfigError,
    },
}

/// Keys of one architecture.
struct ArchitectureKeys<'m> {
    metadata: &'m Metadata,
    architecture: &'m str,
}

impl<'m> ArchitectureKeys<'m> {
    fn find(&self, key: &str) -> (String, Option<&'m MetadataValue>) {
        let key = format!("{}.{key}", self.architecture);
        let value = self.metadata.get(&key);
        (key, value)
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, GgufModelError> {
        let (key, value) = self.find(key);
        let Some(value) = value else { return Ok(None) };
        // A list has a value for each layer.
        let one = match value {
            MetadataValue::Array(_, values) if self.is_for_each_layer(values.len()) => {
                values.first().filter(|first| values.iter().all(|other| other == *first)).unwrap_or(value)
            }
            one => one,
        };
        let size = one.as_u64().and_then(|size| usize::try_from(size).ok());
        let expected = "a whole number, the same for all layers";
        size.map(Some).ok_or_else(|| GgufModelError::Value { key, found: value.to_string(), expected })
    }

    fn is_for_each_layer(&self, count: usize) -> bool {
        self.find("block_count").1.and_then(MetadataValue::as_u64) == Some(count as u64)
    }

    fn size(&self, key: &str) -> Result<usize, GgufModelError> {
        self.optional_size(key)?.ok_or_else(|| GgufModelError::MissingKey { key: self.find(key).0 })
    }

    fn optional_number(&self, key: &str) -> Result<Option<f32>, GgufModelError> {
        let (key, value) = self.find(key);
        let Some(value) = value else { return Ok(None) };
        let number = value.as_f64().map(|number| Some(number as f32));
        number.ok_or_else(|| GgufModelError::Value { key, found: value.to_string(), expected: "a number" })
    }

    /// Refuses a key unless its value is one that changes nothing.
    fn refuse(
        &self,
        key: &str,
        reason: &'static str,
        harmless: impl Fn(&MetadataValue) -> bool,
    ) -> Result<(), GgufModelError> {
        match self.find(key) {
            (key, Some(value)) if !harmless(value) => {
                Err(GgufModelError::Unsupported { key, found: value.to_string(), reason })
            }
            _ => Ok(()),
        }
    }
}

/// What `general.type` may be beside `model`.
const NOT_A_MODEL: [(&str, &str); 3] = [
    ("adapter", "a LoRA adapter, which changes a model"),
    ("mmproj", "the image and audio encoder of a model"),
    ("imatrix", "statistics for quantising a model"),
];

/// The configuration of a file's model.
pub(crate) fn read(header: &GgufHeader) -> Result<LoadedConfig, GgufModelError> {
    let metadata = &header.metadata;
    let architecture = match metadata.get("general.architecture") {
        Some(MetadataValue::Text(name)) if name == "olmoe" || name == "llama" => name.as_str(),
        found => {
            let found = found.map_or("missing".to_owned(), MetadataValue::to_string);
            return Err(GgufModelError::Architecture { found });
        }
    };
    let kind = metadata.get("general.type").and_then(MetadataValue::as_text);
    if let Some((found, what)) = NOT_A_MODEL.into_iter().find(|(name, _)| Some(*name) == kind) {
        return Err(GgufModelError::NotAModel { found: found.to_owned(), what });
    }
    let keys = ArchitectureKeys { metadata, architecture };
    let tensor = |name: &str| header.tensors.iter().find(|tensor| tensor.name == name);
    let unknown = refuse_unsupported(&keys)?;
    if let Some(tensor) = tensor(super::ROPE_FREQUENCIES) {
        let reason = "it scales the rotary frequencies, which no model here has";
        return Err(GgufModelError::Unsupported { key: tensor.name.clone(), found: "a tensor".to_owned(), reason });
    }
    const EMBEDDING: &str = "token_embd.weight";
    let embedding = tensor(EMBEDDING).ok_or(GgufModelError::MissingTensor { name: EMBEDDING })?;
    let rows = embedding.shape.first().copied().unwrap_or(0);

    let (d_model, n_heads) = (keys.size("embedding_length")?, keys.size("attention.head_count")?);
    let head_dim = match keys.optional_size("attention.key_length")? {
        Some(head_dim) => head_dim,
        // With no heads, validation fails before it reads this value.
        None => d_model.checked_div(n_heads).unwrap_or(0),
    };
    let expert = Mlp { width: keys.size("feed_forward_length")?, activation: Activation::SwiGlu };
    let eps = keys.optional_number("attention.layer_norm_rms_epsilon")?;
    let eps = eps.ok_or_else(|| GgufModelError::MissingKey { key: keys.find("attention.layer_norm_rms_epsilon").0 })?;
    let norm = Norm { kind: NormKind::Rms, affine: true, bias: false, eps };
    let is_mixture = architecture == "olmoe";
    let feed_forward = if is_mixture {
        FeedForward::Moe(Moe {
            num_experts: keys.size("expert_count")?,
            top_k: keys.size("expert_used_count")?,
            expert,
            normalize_top_k: false,
            shared_expert: None,
            capacity_factor: None,
        })
    } else {
        FeedForward::Dense(expert)
    };
    // Settings of training, which a file does not have, are those of the release.
    let ModelConfig { init, auxiliary, .. } = ModelConfig::release();
    let mut config = ModelConfig {
        d_model,
        n_layers: keys.size("block_count")?,
        n_heads,
        n_kv_heads: keys.optional_size("attention.head_count_kv")?.unwrap_or(n_heads),
        head_dim,
        vocab_size: rows,
        embedding_size: rows,
        max_sequence_length: keys.size("context_length")?,
        feed_forward,
        even_layers: None,
        norm,
        qk_norm: is_mixture.then_some(norm),
        embedding_norm: None,
        norm_after: false,
        rope: Rope { theta: keys.optional_number("rope.freq_base")?.unwrap_or(10_000.0) },
        clip_qkv: None,
        attention_bias: tensor("blk.0.attn_q.bias").is_some(),
        mlp_bias: false,
        head_bias: false,
        tie_embeddings: !is_mixture && tensor("output.weight").is_none(),
        scale_logits: false,
        init,
        auxiliary,
        pad_token_id: None,
        bos_token_id: None,
        eos_token_id: None,
    };
    let mut notices: Vec<KeyNotice> =
        keys::advice(metadata).into_iter().map(|(key, text)| KeyNotice { key, text }).collect();
    if !unknown.is_empty() {
        let text = format!("unknown keys are ignored: {}", unknown.join(", "));
        notices.push(KeyNotice { key: "metadata", text });
    }
    let mut token = |key: &'static str| {
        let id = metadata.get(key)?.as_u64()?;
        let inside = id < rows as u64;
        if !inside {
            let text =
                format!("{id} is beyond the {rows} rows of the embedding; the model is read as having no such token");
            notices.push(KeyNotice { key, text });
        }
        inside.then_some(id as u32)
    };
    config.pad_token_id = token(PAD);
    config.bos_token_id = token(BOS);
    config.eos_token_id = token(EOS);
    config.validate()?;
    for key in ["attention.value_length", "rope.dimension_count"] {
        let reason = "every head has one width for keys, values and rotation, d_model / n_heads";
        keys.refuse(key, reason, |value| value.as_u64() == Some(head_dim as u64))?;
    }
    let reason = "the output of the last layer is as wide as that of every layer, embedding_length";
    keys.refuse(
        "embedding_length_out",
        reason,
        |value| matches!(value.as_u64(), Some(x) if x == 0 || x == d_model as u64),
    )?;
    let reason = "attention is scaled by the square root of the width of a head";
    let usual = 1.0 / (head_dim as f64).sqrt();
    let is_usual = |x: f64| x == 0.0 || (x - usual).abs() < 1e-6 * usual;
    keys.refuse("attention.scale", reason, |value| value.as_any_number().is_some_and(is_usual))?;
    Ok(LoadedConfig { config, notices })
}

/// Refuses settings that are not implemented; returns the unknown keys of the architecture.
fn refuse_unsupported<'m>(keys: &ArchitectureKeys<'m>) -> Result<Vec<&'m str>, GgufModelError> {
    // Linear scaling without a factor, which is checked below, has no effect: it is also the meaning of a missing key.
    let plain = |value: &MetadataValue| matches!(value.as_text(), Some("none" | "linear"));
    keys.refuse("rope.scaling.type", keys::SCALING, plain)?;
    let silu = |value: &MetadataValue| matches!(value.as_text(), Some("silu" | "swish"));
    keys.refuse("hidden_activation", "only silu has an implementation here", silu)?;
    if keys.architecture == "llama" {
        let zero = |value: &MetadataValue| value.as_u64() == Some(0);
        keys.refuse("expert_count", "mixtures of the llama architecture (Mixtral) are not read", zero)?;
    }
    let mut unknown = Vec::new();
    for (key, value) in keys.metadata.iter() {
        let Some(short) = key.strip_prefix(keys.architecture).and_then(|rest| rest.strip_prefix('.')) else { continue };
        if let Some(reason) = keys::obstacle(short, value) {
            return Err(GgufModelError::Unsupported { key: key.to_owned(), found: value.to_string(), reason });
        }
        if !keys::is_known(short) {
            unknown.push(key);
        }
    }
    Ok(unknown)
}

/// The architecture a configuration is written as.
pub(crate) fn architecture(config: &ModelConfig) -> &'static str {
    if config.moe().is_some() { "olmoe" } else { "llama" }
}

/// The metadata that a configuration needs; [`check`] tells whether they say all of it.
pub(crate) fn described(config: &ModelConfig) -> Metadata {
    let mut metadata = Metadata::default();
    metadata.insert("general.architecture", MetadataValue::Text(architecture(config).to_owned()));
    write(config, &mut metadata);
    metadata
}

/// Appends what the configuration says.
pub(crate) fn write(config: &ModelConfig, metadata: &mut Metadata) {
    let architecture = architecture(config);
    let mut put = |key: &str, value: MetadataValue| {
        metadata.insert(format!("{architecture}.{key}"), value);
    };
    // The configuration was validated: every size is far below 2^32.
    let size = |size: usize| MetadataValue::U32(u32::try_from(size).unwrap_or(u32::MAX));
    put("block_count", size(config.n_layers));
    put("context_length", size(config.max_sequence_length));
    put("embedding_length", size(config.d_model));
    let width = match &config.feed_forward {
        FeedForward::Dense(mlp) => mlp.width,
        FeedForward::Moe(moe) => moe.expert.width,
    };
    put("feed_forward_length", size(width));
    put("attention.head_count", size(config.n_heads));
    put("attention.head_count_kv", size(config.n_kv_heads));
    put("rope.freq_base", MetadataValue::F32(config.rope.theta));
    put("attention.layer_norm_rms_epsilon", MetadataValue::F32(config.norm.eps));
    if let Some(moe) = config.moe() {
        put("expert_count", size(moe.num_experts));
        put("expert_used_count", size(moe.top_k));
    }
    put("rope.dimension_count", size(config.head_dim));
    put("vocab_size", size(config.embedding_size));
    for (key, id) in [(BOS, config.bos_token_id), (EOS, config.eos_token_id), (PAD, config.pad_token_id)] {
        if let Some(id) = id {
            metadata.insert(key, MetadataValue::U32(id));
        }
    }
}

/// Checks that the metadata, with the tensors of a layout, expresses all of the configuration.
pub(crate) fn check(config: &ModelConfig, metadata: &Metadata, layout: &Layout) -> Result<(), GgufModelError> {
    let tensor = |tensor: &FileTensor| TensorInfo {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        kind: 0,
        offset: 0,
        bytes: 0,
    };
    let tensors = layout.tensors.iter().map(tensor).collect();
    let back = read(&GgufHeader { version: 3, metadata: metadata.clone(), tensors })?;
    let architecture = architecture(config);
    config.same_function(&back.config).map_err(|source| GgufModelError::NotExpressible { architecture, source })
}

/// Why llama.cpp refuses a well-formed file that this crate reads; `None` if it does not.
pub(crate) fn not_loaded_by_llama_cpp(config: &ModelConfig) -> Option<String> {
    let missing = match config.moe() {
        Some(_) if config.n_kv_heads != config.n_heads => "grouped key and value heads",
        Some(_) if config.attention_bias => "biases of its attention",
        _ => return None,
    };
    Some(format!("llama.cpp does not load this file, because its olmoe has no {missing}; this program does"))
}
