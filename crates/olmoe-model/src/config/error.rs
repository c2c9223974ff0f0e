//! The errors of a configuration, one variant per cause, and the notices about keys without effect.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::names::in_files;

/// Why a configuration was rejected. The text names the key, what was found, what was expected and what to change.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}: {source}; check that the path is right and readable", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file was read but its content is wrong.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        source: Box<ConfigError>,
    },
    /// The text is longer than any configuration.
    #[error("the configuration is longer than {limit} bytes; give a config.json or a training YAML, not a data file")]
    TooLong {
        /// Most bytes accepted.
        limit: usize,
    },
    /// The file is not UTF-8 text.
    #[error(
        "the configuration is not UTF-8 text (first bad byte at offset {offset}); give a config.json or a training YAML"
    )]
    NotUtf8 {
        /// Position of the first byte that is not UTF-8.
        offset: usize,
    },
    /// The text is not well formed.
    #[error("the configuration is not valid {format}: {message}")]
    Syntax {
        /// The format expected.
        format: &'static str,
        /// The message of the parser, with line and column.
        message: String,
    },
    /// A value that has to be a mapping is not one.
    #[error("{what} must be a mapping of keys to values, found {found}")]
    NotAMapping {
        /// Which part of the file.
        what: &'static str,
        /// What was found instead.
        found: String,
    },
    /// A YAML file without a model section.
    #[error("found no `model:` section and no model key at the top level; give a training YAML or its model section")]
    NoModelSection,
    /// A key that the format does not have.
    #[error("unknown key `{key}`{}", suggest(*suggestion))]
    UnknownKey {
        /// The key found.
        key: String,
        /// The known key closest to it, if one is close.
        suggestion: Option<&'static str>,
    },
    /// A key of another family that would change what is computed.
    #[error("`{key}` is {found}, but {reason}; remove it if the weights were trained without it")]
    Unimplemented {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// Why the key cannot be honoured.
        reason: &'static str,
    },
    /// A value of the wrong type.
    #[error("`{key}` must be {expected}, found {found}")]
    WrongType {
        /// The key.
        key: String,
        /// The expected type.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// A name that is not among those the key accepts.
    #[error("`{key}` is `{found}`; it must be one of {allowed}")]
    UnknownName {
        /// The key.
        key: &'static str,
        /// What was found.
        found: String,
        /// The names accepted.
        allowed: &'static str,
    },
    /// A `config.json` that does not say which model it describes.
    #[error(
        "`model_type` is missing; the config.json of an OLMoE model has \"model_type\": \"olmoe\", that of a dense one \
         \"llama\""
    )]
    NoModelType,
    /// A `config.json` of another family.
    #[error("`model_type` is `{found}`; only `olmoe` and `llama` can be read, so give the config.json of such a model")]
    WrongModelType {
        /// The family found.
        found: String,
    },
    /// A size of zero.
    #[error("`{key}` is 0; set it to at least 1")]
    Zero {
        /// The key.
        key: &'static str,
    },
    /// A size above its limit.
    #[error("`{key}` is {found}; the largest size supported is {limit}")]
    TooLarge {
        /// The key.
        key: &'static str,
        /// What was found.
        found: usize,
        /// The largest value accepted.
        limit: usize,
    },
    /// Sizes that are each valid but together exceed the limit of parameters.
    #[error("the sizes give a model of more than {limit} parameters; reduce the width, the layers or the experts")]
    TooManyParameters {
        /// Most parameters accepted.
        limit: u64,
    },
    /// The number of heads does not divide the width.
    #[error(
        "`{heads_key}` ({heads}) does not divide `{width_key}` ({width}); set it to a divisor so that every head has \
         the same size"
    )]
    HeadsDoNotDivideWidth {
        /// Key of the number of heads.
        heads_key: &'static str,
        /// Number of heads.
        heads: usize,
        /// Key of the width.
        width_key: &'static str,
        /// Width.
        width: usize,
    },
    /// A head size that is not the width divided by the heads.
    #[error("`{key}` is {found}; it must be {expected}, the width divided by the heads, so set that or leave it out")]
    HeadDim {
        /// The key.
        key: &'static str,
        /// What was found.
        found: usize,
        /// Width divided by heads.
        expected: usize,
    },
    /// A head with an odd number of elements, which rotary embeddings cannot pair.
    #[error(
        "heads have {head_dim} elements (`{width_key}` / `{heads_key}`), but rotary embeddings need an even number; \
         change one of the two keys"
    )]
    OddHeadDim {
        /// Elements per head.
        head_dim: usize,
        /// Key of the width.
        width_key: &'static str,
        /// Key of the number of heads.
        heads_key: &'static str,
    },
    /// A number of key and value heads that does not divide the number of query heads.
    #[error(
        "`{kv_key}` ({kv_heads}) does not divide `{heads_key}` ({heads}); set it to a divisor, or leave it out for one \
         key head per query head"
    )]
    KvHeadsDoNotDivideHeads {
        /// Key of the number of key and value heads.
        kv_key: &'static str,
        /// Number of key and value heads.
        kv_heads: usize,
        /// Key of the number of query heads.
        heads_key: &'static str,
        /// Number of query heads.
        heads: usize,
    },
    /// The deprecated switch contradicts the number of key heads.
    #[error(
        "`multi_query_attention` is {switch} but `n_kv_heads` is {kv_heads}; remove the deprecated \
         `multi_query_attention` and keep `n_kv_heads`"
    )]
    MultiQueryConflict {
        /// Value of the switch.
        switch: bool,
        /// Number of key and value heads.
        kv_heads: usize,
    },
    /// More experts per token than experts.
    #[error("`{top_k_key}` ({top_k}) is greater than `{experts_key}` ({experts}); set it to at most {experts}")]
    TopKAboveExperts {
        /// Key of the experts per token.
        top_k_key: &'static str,
        /// Experts per token.
        top_k: usize,
        /// Key of the number of experts.
        experts_key: &'static str,
        /// Number of experts.
        experts: usize,
    },
    /// Token ids without an embedding.
    #[error(
        "`{embedding_key}` ({embedding}) is smaller than `{vocabulary_key}` ({vocabulary}); set it to at least \
         {vocabulary}, or to null for as many"
    )]
    EmbeddingSmallerThanVocabulary {
        /// Key of the rows of the embedding.
        embedding_key: &'static str,
        /// Rows of the embedding.
        embedding: usize,
        /// Key of the number of token ids.
        vocabulary_key: &'static str,
        /// Number of token ids.
        vocabulary: usize,
    },
    /// A special token outside the embedding.
    #[error("`{key}` is {found}, but the embedding has {rows} rows; set an id below {rows} or null")]
    TokenOutsideVocabulary {
        /// The key.
        key: &'static str,
        /// The id.
        found: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A number that must be finite and greater than zero.
    #[error("`{key}` is {found}; it must be a finite number greater than 0{}", hint.unwrap_or(""))]
    NotPositive {
        /// The key.
        key: &'static str,
        /// What was found.
        found: f32,
        /// The end of the sentence: the value that turns the feature off, if there is one.
        hint: Option<&'static str>,
    },
    /// A number that must be finite and at least zero.
    #[error("`{key}` is {found}; it must be a finite number, 0 or greater")]
    Negative {
        /// The key.
        key: &'static str,
        /// What was found.
        found: f32,
    },
    /// A RoPE base that makes the angles overflow.
    #[error("`{key}` is {found}; it must be a finite number, 1 or greater (the released models have 10000)")]
    RopeTheta {
        /// The key.
        key: &'static str,
        /// What was found.
        found: f32,
    },
    /// Two position encodings at once.
    #[error("`alibi` and `rope` are both true, but they exclude each other; set `alibi: false`")]
    AlibiWithRope,
    /// ALiBi alone.
    #[error("`alibi: true` is not implemented; set `alibi: false` and `rope: true`")]
    Alibi,
    /// Learned positions.
    #[error(
        "`rope` is false, which means learned position embeddings, and those are not implemented; set `rope: true` \
         (when left out it is false)"
    )]
    NoPositionEncoding,
    /// Scaled RoPE.
    #[error(
        "`{key}` sets {found}, but only unscaled rotary embeddings are implemented; set it to null (OLMoE models were \
         trained without scaling)"
    )]
    RopeScaling {
        /// The key.
        key: &'static str,
        /// The scaling found.
        found: String,
    },
    /// Two different RoPE bases in one file.
    #[error("`rope_theta` is {outer} but `rope_parameters.rope_theta` is {inner}; keep one of them")]
    RopeThetaConflict {
        /// The base at the top level.
        outer: f64,
        /// The base inside `rope_parameters` (or `rope_scaling`).
        inner: f64,
    },
    /// Dropout that is set.
    #[error("`{key}` is {found}, but dropout is not implemented (OLMoE is trained without); set `{key}: 0.0`")]
    Dropout {
        /// The key.
        key: &'static str,
        /// What was found.
        found: f64,
    },
    /// Dropout that OLMo turns on when the key is left out.
    #[error(
        "`{key}` is left out, which means 0.1 in OLMo, but dropout is not implemented (OLMoE is trained without); set \
         `{key}: 0.0`"
    )]
    DropoutByDefault {
        /// The key.
        key: &'static str,
    },
    /// A `hidden_act` other than the one OLMoE has.
    #[error("`hidden_act` is `{found}`; in this format only silu-gated MLPs are implemented; set `silu`")]
    HiddenAct {
        /// What was found.
        found: String,
    },
    /// A width that cannot be halved into gate and up.
    #[error(
        "the MLP is {width} wide (`mlp_hidden_size`, or `mlp_ratio * d_model`), but swiglu halves it into gate and up; \
         set an even `mlp_hidden_size`"
    )]
    OddSwiGluWidth {
        /// The width before halving.
        width: usize,
    },
    /// An initialisation that is only defined for dense models.
    #[error("`init_fn: {method}` is only defined for dense models; with experts set `normal` or `full_megatron`")]
    InitWithExperts {
        /// The initialisation.
        method: &'static str,
    },
    /// Reordered norms in a block that ignores the switch.
    #[error("`norm_after: true` is ignored by OLMo's `llama` block; set `block_type: sequential`, which honours it")]
    NormAfterInLlamaBlock,
    /// A mixture of experts without one of its sizes.
    #[error("`{key}` is null, but `block_type: moe` needs it; set a number")]
    MissingMoeSize {
        /// The key.
        key: &'static str,
    },
    /// Neither dropless nor a capacity.
    #[error("`moe_capacity_factor` is null and `moe_dropless` is not true; set a factor such as 1.25, or dropless")]
    MissingCapacity,
    /// Experts with a capacity have no gate, but the activation is gated.
    #[error("experts with a capacity factor have no gate, but their activation is swi_glu; set silu, or no capacity")]
    GateWithCapacity,
    /// Experts that choose tokens.
    #[error(
        "`{key}: true` is not implemented: experts that choose tokens see later tokens, so the model cannot generate; \
         set it to false"
    )]
    ExpertChoice {
        /// The key.
        key: &'static str,
    },
    /// Every second layer is set to be dense, but the other layers are dense, too.
    #[error(
        "`{key}` is set, but the model has no experts, so that all its layers are dense; leave it out, or give the model \
         experts (OLMo's `block_type: moe`)"
    )]
    InterleavedWithoutExperts {
        /// The key.
        key: &'static str,
    },
    /// Two kinds of layers are set, but there is only one layer.
    #[error(
        "`{key}` is set, but there is only one layer, which would be dense; leave it out, or set `{layers_key}` to at \
         least 2"
    )]
    OneInterleavedLayer {
        /// The key.
        key: &'static str,
        /// The key of the number of layers.
        layers_key: &'static str,
    },
    /// Layers that share their weights.
    #[error("`{key}: true` is not implemented: every layer has its own weights; set it to false")]
    SharedLayers {
        /// The key.
        key: &'static str,
    },
    /// A load-balancing loss over all layers at once.
    #[error("`share_load_balance_across_layers: true` is not implemented: the loss is per layer; set it to false")]
    SharedLoadBalance,
    /// A switch that OLMo does not implement either.
    #[error("`init_dense_router: true` is not implemented, neither here nor in OLMo; set it to false")]
    DenseRouter,
    /// Layers that differ from each other.
    #[error("`per_layer_config` is set, but all layers of an OLMoE model are alike; remove it")]
    PerLayerConfig,
    /// A bias for a norm without a weight.
    #[error("`{key}` has a bias but no weight (affine: false); set bias to false")]
    NormBiasWithoutWeight {
        /// Which norm.
        key: &'static str,
    },
    /// A head bias without a head.
    #[error("`head_bias` and `tie_embeddings` are both true, but a tied head has no bias; set `head_bias` to false")]
    TiedHeadBias,
    /// Two configurations that define different functions.
    #[error(
        "{} is {this} in one model and {other} in the other; they do not compute the same function",
        in_files(field)
    )]
    OtherFunction {
        /// The first field that differs.
        field: Box<str>,
        /// Its value in the first.
        this: Box<str>,
        /// Its value in the second.
        other: Box<str>,
    },
    /// A model that a format cannot express.
    #[error(
        "{format} cannot express this model: {} is {found}, but in that format it could only be {instead}; {}",
        in_files(field),
        advise(*alternative)
    )]
    Inexpressible {
        /// The format.
        format: &'static str,
        /// The first field that the format cannot express.
        field: Box<str>,
        /// Its value.
        found: Box<str>,
        /// What it would be in a file of that format.
        instead: Box<str>,
        /// Another format that can express the model.
        alternative: Option<&'static str>,
    },
}

fn suggest(suggestion: Option<&str>) -> String {
    match suggestion {
        Some(known) => format!("; did you mean `{known}`?"),
        None => "; remove it".to_owned(),
    }
}

fn advise(alternative: Option<&str>) -> String {
    match alternative {
        Some(format) => format!("convert to {format} instead"),
        None => "keep it in this program's own format, or change that field".to_owned(),
    }
}

/// A key that was accepted but has no effect here, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyNotice {
    /// The key as written in the file.
    pub key: &'static str,
    /// Why it has no effect, or what to know about it.
    pub text: String,
}

impl fmt::Display for KeyNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.key, self.text)
    }
}
