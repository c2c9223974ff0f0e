//! The validated model configuration and the formats it is read from and written to.
//!
//! [`ModelConfig`] says what the model *is*, in one vocabulary for every source. Each file format has its own file
//! here that maps its keys onto these fields: `hf` for a Hugging Face `config.json`, `olmo` for the `model:` section of
//! an OLMo training YAML. What they cannot map is an error; what is accepted but changes nothing here is a [`Notice`].
//! What they write is read again, and refused if it would stand for another [function](ModelConfig::same_function).

mod error;
mod function;
mod hf;
mod names;
mod olmo;
mod section;
mod validate;

pub use error::{ConfigError, Notice};
pub use section::{closest, describe, shorten};
pub use validate::{
    MAX_CONFIG_BYTES, MAX_EXPERTS, MAX_HEADS, MAX_LAYERS, MAX_SEQUENCE_LENGTH, MAX_VOCABULARY, MAX_WIDTH,
};

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use function::Format;

/// The architecture of one model, validated: every value of this type that was read by this module can be built.
///
/// The fields are plain so that code can read them and variants can be derived; after changing one, call
/// [`validate`](Self::validate). Deserialising as a part of anything, or by [`from_json`](Self::from_json), validates;
/// only the inherent `deserialize`, which the derive needs for that, does not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ModelConfig {
    /// Width of the residual stream, in elements. OLMo `d_model` (default 768), HF `hidden_size` (2048).
    pub d_model: usize,
    /// Number of transformer blocks. OLMo `n_layers` (12), HF `num_hidden_layers` (16).
    pub n_layers: usize,
    /// Number of query heads. OLMo `n_heads` (12), HF `num_attention_heads` (16).
    pub n_heads: usize,
    /// Number of key and value heads; a divisor of `n_heads`. OLMo `n_kv_heads`, HF `num_key_value_heads`
    /// (both: `n_heads`).
    pub n_kv_heads: usize,
    /// Elements per head: always `d_model / n_heads`, and even, because rotary embeddings turn pairs.
    pub head_dim: usize,
    /// Number of ids the tokenizer can produce. OLMo `vocab_size` (50257); HF files only know `embedding_size`.
    pub vocab_size: usize,
    /// Rows of the embedding and of the head, at least `vocab_size`. OLMo `embedding_size` (50304; null means
    /// `vocab_size`), HF `vocab_size` (50304).
    pub embedding_size: usize,
    /// Longest input, in tokens. OLMo `max_sequence_length` (1024), HF `max_position_embeddings` (4096).
    pub max_sequence_length: usize,
    /// What each block does after attention, unless `even_layers` says otherwise. OLMo `block_type` (sequential =
    /// dense), HF `model_type` (olmoe: a mixture, llama: dense).
    pub feed_forward: FeedForward,
    /// The MLP of every second layer, beginning with the first (0, 2, …), where those are dense and only the others are
    /// the mixture that `feed_forward` says. `None`: all layers are alike. OLMo `moe_interleave` (off; as wide as an
    /// expert, and gated with swiglu even where a capacity takes the gate from the experts), HF: never.
    pub even_layers: Option<Mlp>,
    /// The two norms of each block and the final norm. OLMo `layer_norm_*`, HF: RMS with weight, `rms_norm_eps`.
    pub norm: Norm,
    /// Norm of the projected queries and keys, before the heads are split and before RoPE; its statistics run over the
    /// whole projected width, all heads together. `None` is off. OLMo `attention_layer_norm` (off), HF: on for
    /// olmoe, off for llama.
    pub qk_norm: Option<Norm>,
    /// Norm of the embeddings before the first block. `None` is off. OLMo `embedding_layer_norm` (off).
    pub embedding_norm: Option<Norm>,
    /// Normalise the output of attention and feed-forward instead of their input. OLMo `norm_after` (false).
    pub norm_after: bool,
    /// Rotary position embeddings, the only position encoding implemented.
    pub rope: Rope,
    /// Clamp of queries, keys and values. `None` is off. `clip_qkv` in both formats (null).
    pub clip_qkv: Option<ClipQkv>,
    /// Biases on the q, k, v and o projections. OLMo `include_bias` (true), HF `attention_bias` (false).
    pub attention_bias: bool,
    /// Biases in the feed-forward. Dense: one per linear. Mixture: one on each linear of the shared expert and one
    /// vector of `d_model` added once to the sum over the routed experts; the experts' own matrices have none.
    /// OLMo `include_bias` (true), HF: `mlp_bias` for llama (false), never for olmoe.
    pub mlp_bias: bool,
    /// Bias on the head; only with an untied head. OLMo `include_bias` (true), HF: never.
    pub head_bias: bool,
    /// The head shares the embedding's weight. OLMo `weight_tying` (true), HF `tie_word_embeddings` (false).
    pub tie_embeddings: bool,
    /// Multiply the logits by `1/sqrt(d_model)`. OLMo `scale_logits` (false), HF: never.
    pub scale_logits: bool,
    /// How fresh parameters are drawn.
    pub init: Init,
    /// The auxiliary losses of the router.
    pub auxiliary: Auxiliary,
    /// Id of the padding token. OLMo `pad_token_id` (50256), HF (1).
    pub pad_token_id: Option<u32>,
    /// Id of the begin-of-sequence token; OLMoE has none. HF `bos_token_id` (null).
    pub bos_token_id: Option<u32>,
    /// Id of the end-of-text token. OLMo `eos_token_id` (50256), HF (50279). The OLMoE training files say 0, which
    /// their tokenizer does not end documents with; reading one gives a notice.
    pub eos_token_id: Option<u32>,
}

/// What a block does after attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedForward {
    /// One MLP for all tokens.
    Dense(Mlp),
    /// A router and a set of experts.
    Moe(Moe),
}

/// The shape of one MLP: `down(act(gate x) * (up x))` when gated, `down(act(up x))` otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mlp {
    /// Inner width, in elements: rows of `up_proj`. HF `intermediate_size` (2048); OLMo: half of `mlp_hidden_size`
    /// (or of `mlp_ratio * d_model`) with swiglu, all of it otherwise.
    pub width: usize,
    /// The nonlinearity. OLMo `activation_type` (swiglu), HF `hidden_act` (silu, always gated).
    pub activation: Activation,
}

/// Nonlinearity of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `silu(gate) * up`: the only gated one.
    SwiGlu,
    /// The exact GELU (error function, not the tanh approximation).
    Gelu,
    /// `max(x, 0)`.
    Relu,
    /// `x * sigmoid(x)`, without a gate.
    Silu,
}

impl Activation {
    /// Whether the MLP has a `gate_proj`.
    pub fn is_gated(self) -> bool {
        self == Self::SwiGlu
    }
}

/// A mixture of experts with token-choice routing: softmax over all experts, then the `top_k` largest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moe {
    /// Number of routed experts. OLMo `moe_num_experts` (8), HF `num_experts` (64).
    pub num_experts: usize,
    /// Experts per token. OLMo `moe_top_k` (2), HF `num_experts_per_tok` (8).
    pub top_k: usize,
    /// The shape of one routed expert.
    pub expert: Mlp,
    /// Divide the chosen probabilities by their sum. HF `norm_topk_prob` (false), OLMo: never.
    pub normalize_top_k: bool,
    /// An expert that every token passes, added to the routed sum. OLMo `moe_shared_expert` (off; as wide as a routed
    /// expert, and gated with swiglu even where a capacity takes the gate from the routed ones).
    pub shared_expert: Option<Mlp>,
    /// `None`: dropless. `Some(f)`: an expert takes at most `floor(f * top_k * tokens / num_experts)` tokens of a
    /// micro-batch (0 means no limit) and its MLP has no gate. OLMo `moe_dropless` (true), `moe_capacity_factor`
    /// (1.25).
    pub capacity_factor: Option<f32>,
}

/// A norm: its statistics and its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Norm {
    /// Which statistics.
    pub kind: NormKind,
    /// Whether it has a weight. OLMo `layer_norm_with_affine`, `attention_layer_norm_with_affine` (true).
    pub affine: bool,
    /// Whether it also has a bias; only with a weight. OLMo `bias_for_layer_norm` (null: as `include_bias`).
    pub bias: bool,
    /// Added to the mean square or variance. OLMo `layer_norm_eps`, HF `rms_norm_eps` (both 1e-5).
    pub eps: f32,
}

/// Statistics of a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps)`.
    Rms,
    /// `(x - mean) / sqrt(variance + eps)`.
    LayerNorm,
}

/// Rotary position embeddings over the whole head, pairing element `j` with `j + head_dim / 2`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Base of the wavelengths, at least 1. `rope_theta` in both formats (10000).
    pub theta: f32,
}

/// Clamp of queries, keys and values to `[-limit, limit]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipQkv {
    /// The bound, greater than 0.
    pub limit: f32,
    /// On which side of the query and key norm. Without such a norm both mean the same.
    pub order: ClipOrder,
}

/// Where `clip_qkv` acts; the reference implementations differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipOrder {
    /// OLMo: the projections are clamped, then queries and keys are normalised.
    BeforeNorm,
    /// Hugging Face: queries and keys are normalised, then all three are clamped.
    AfterNorm,
}

/// How fresh parameters are drawn; the rule of each parameter is in its
/// [`ParameterSpec`](crate::parameters::ParameterSpec).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Init {
    /// The family. OLMo `init_fn` (normal), HF: normal.
    pub method: InitMethod,
    /// Standard deviation for `Normal` and `FullMegatron`. OLMo `init_std`, HF `initializer_range` (both 0.02).
    pub std: f32,
    /// Truncate at this many standard deviations. `None`: no truncation for `Normal`, 3 for `Mitchell` and
    /// `FullMegatron`; the other two never truncate. OLMo `init_cutoff_factor` (null).
    pub cutoff_factor: Option<f32>,
    /// Standard deviation of the embedding instead of the method's own. OLMo `emb_init_std` (null).
    pub embedding_std: Option<f32>,
    /// Multiply the embedding's standard deviation by `sqrt(d_model)`; only with `FullMegatron` and without
    /// `embedding_std`. OLMo `scale_emb_init` (false).
    pub scale_embedding: bool,
}

/// Families of initialisation. `in` is the number of inputs of a matrix, `l` the layer counted from 0, `L` how many
/// there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitMethod {
    /// Every matrix has the same standard deviation.
    Normal,
    /// `1/sqrt(d_model)`; matrices that write to the residual stream `1/sqrt(2 * in * (l + 1))`. Dense models only.
    Mitchell,
    /// `std`; matrices that write to the residual stream `std/sqrt(2L)`; head `1/sqrt(d_model)`.
    FullMegatron,
    /// `sqrt(2/in)`. Dense models only.
    KaimingNormal,
    /// `1/sqrt(in)`; with `scale_logits` the embedding 0.5. Dense models only.
    FanIn,
}

/// The auxiliary losses of the router. A weight of 0 turns a loss off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auxiliary {
    /// Whose formula and scale.
    pub definition: AuxiliaryDefinition,
    /// Weight of the load-balancing loss. OLMo `moe_loss_weight` (0.1), HF `router_aux_loss_coef` (0.01). Hugging Face
    /// adds it only when `output_router_logits` is true; here that key changes nothing and 0 turns the loss off.
    pub load_balancing_weight: f32,
    /// Weight of the router's z-loss. OLMo `moe_zloss_weight` (null = 0), HF: none.
    pub z_weight: f32,
}

/// Whose definition of the load-balancing loss: they differ in scale by factors of `top_k` and of the number of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuxiliaryDefinition {
    /// Per-layer products, averaged over layers: 1 at perfect balance. What OLMoE was trained with.
    Olmo,
    /// All layers' tokens pooled before the product: `top_k` at perfect balance.
    HuggingFace,
    /// Per sequence and layer, summed over layers: the number of layers at perfect balance.
    Megatron,
}

/// A configuration together with what its file said that has no effect here.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The validated configuration.
    pub config: ModelConfig,
    /// One entry per key that was accepted without effect, in the order of the format's table; show them once.
    pub notices: Vec<Notice>,
}

impl ModelConfig {
    /// OLMoE-1B-7B (0924 and 0125): 16 layers of 64 experts, 8 per token; 6,919,161,856 parameters.
    ///
    /// As in the training file, except that `eos_token_id` is the id that ends documents in its data (50279).
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
    pub fn from_hf_json(text: &str) -> Result<Loaded, ConfigError> {
        hf::read(text)
    }

    /// Writes a Hugging Face `config.json` that transformers 4 and 5 read: `olmoe` for a mixture, `llama` for a dense
    /// model. `dtype`, how the weights beside it are stored, is `bfloat16`, `float16` or `float32`.
    ///
    /// Of the initialisation only the standard deviation is kept, of the auxiliary losses only the load-balancing weight,
    /// and `vocab_size` becomes the rows of the embedding.
    ///
    /// # Errors
    /// A configuration that is not valid, another `dtype`, and [`ConfigError::Inexpressible`] for a function that the
    /// format cannot hold.
    pub fn to_hf_json(&self, dtype: &str) -> Result<String, ConfigError> {
        self.validate()?;
        let text = hf::write::text(self, dtype)?;
        Format::HuggingFace.check(self, &text)?;
        Ok(text)
    }

    /// Writes the `config.yaml` of an unsharded OLMo checkpoint, which is a `model:` section.
    ///
    /// The definition of the auxiliary losses and the id that begins a sequence are not kept: OLMo has one of the former
    /// and none of the latter.
    ///
    /// # Errors
    /// A configuration that is not valid, and [`ConfigError::Inexpressible`] for a function that the format cannot hold.
    pub fn to_olmo_yaml(&self) -> Result<String, ConfigError> {
        self.validate()?;
        let text = olmo::write::text(self);
        Format::Olmo.check(self, &text)?;
        Ok(text)
    }

    /// Checks that two configurations stand for the same function: given the same parameters, the same logits.
    ///
    /// Everything counts but the initialisation, the auxiliary losses, the special tokens, `vocab_size` (only the rows of
    /// the embedding count), and the order of clamp and norm where queries and keys are not normalised.
    ///
    /// # Errors
    /// [`ConfigError::OtherFunction`] with the first field that differs, in alphabetical order, and both values.
    pub fn same_function(&self, other: &ModelConfig) -> Result<(), ConfigError> {
        function::same(self, other)
    }

    /// Reads an OLMo training YAML (its `model:` section; the other sections are not looked at) or that section alone.
    /// Omitted keys take OLMo's defaults, which are GPT-2's and not OLMoE's.
    ///
    /// # Errors
    /// Bad YAML, unknown or mistyped keys, and every setting that no model of this crate can honour.
    pub fn from_olmo_yaml(text: &str) -> Result<Loaded, ConfigError> {
        olmo::read(&olmo::parse(text)?)
    }

    /// As [`from_olmo_yaml`](Self::from_olmo_yaml), of a file that was parsed by [`parse_yaml`].
    ///
    /// # Errors
    /// Unknown or mistyped keys, and every setting that no model of this crate can honour.
    pub fn from_olmo_value(file: &Value) -> Result<Loaded, ConfigError> {
        olmo::read(file)
    }

    /// Reads the JSON that serialising a `ModelConfig` gives (own checkpoints).
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

    /// Reads a configuration file in any of the three formats. A `.yml` or `.yaml` file is OLMo's; otherwise JSON is
    /// told by its content (`model_type` marks Hugging Face, `feed_forward` this crate), and the rest is YAML.
    ///
    /// # Errors
    /// As the reader of each format, and failures to read the file; every error names the file.
    pub fn read(path: impl AsRef<Path>) -> Result<Loaded, ConfigError> {
        let path = path.as_ref();
        let in_file = |source| ConfigError::InFile { path: path.into(), source: Box::new(source) };
        let text = &read_text(path)?;
        let extension = path.extension().and_then(|extension| extension.to_str());
        let is_yaml = matches!(extension, Some("yml" | "yaml"));
        if is_yaml || !text.trim_start().starts_with('{') {
            return Self::from_olmo_yaml(text).map_err(in_file);
        }
        // An own configuration always has this key and the other format never has.
        let is_own = serde_json::from_str::<Value>(text)
            .is_ok_and(|value| value.get("feed_forward").is_some() && value.get("model_type").is_none());
        let loaded = match is_own {
            true => Self::from_json(text).map(|config| Loaded { config, notices: Vec::new() }),
            false => Self::from_hf_json(text),
        };
        loaded.map_err(in_file)
    }

    /// Rows of the query projection and columns of the output projection: `n_heads * head_dim`.
    pub fn query_width(&self) -> usize {
        self.n_heads.saturating_mul(self.head_dim)
    }

    /// Rows of the key and of the value projection: `n_kv_heads * head_dim`.
    pub fn key_value_width(&self) -> usize {
        self.n_kv_heads.saturating_mul(self.head_dim)
    }

    /// What a layer, counted from 0, does after attention.
    pub fn feed_forward_of(&self, layer: usize) -> FeedForward {
        match self.even_layers {
            Some(mlp) if layer.is_multiple_of(2) => FeedForward::Dense(mlp),
            _ => self.feed_forward.clone(),
        }
    }

    /// The layers that are mixtures, in ascending order.
    pub fn mixture_layers(&self) -> impl Iterator<Item = usize> {
        (0..self.n_layers).filter(|layer| matches!(self.feed_forward_of(*layer), FeedForward::Moe(_)))
    }

    /// The mixture, of the layers that are one, or `None` for a dense model.
    pub fn moe(&self) -> Option<&Moe> {
        match &self.feed_forward {
            FeedForward::Moe(moe) => Some(moe),
            FeedForward::Dense(_) => None,
        }
    }

    /// Checks every rule that a model must satisfy to be built; the readers here have already done so.
    ///
    /// # Errors
    /// The first rule that does not hold, with the field and what to set it to.
    pub fn validate(&self) -> Result<(), ConfigError> {
        validate::check(self, &names::OWN)
    }
}

/// Parses a YAML of at most [`MAX_CONFIG_BYTES`] into the tree that JSON has, too. What is no finite number is a text.
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
    // A pipe or a device would never end.
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
    // The byte-order mark that some editors write is no part of the text.
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
