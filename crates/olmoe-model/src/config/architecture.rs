//! The architecture of a model, and the sizes that follow from it.

use serde::{Deserialize, Serialize};

/// The architecture of one model. Every value that the readers of this module return is validated, so that the model
/// can be built.
///
/// The fields are public so that code can read them and derive variants; after changing one, call
/// [`validate`](Self::validate). Deserialising through serde or by [`from_json`](Self::from_json) validates; only the
/// inherent `deserialize`, which the derive generates for that purpose, does not.
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
    /// Elements per head: always `d_model / n_heads`, and even, because rotary embeddings rotate pairs.
    pub head_dim: usize,
    /// Number of ids the tokenizer can produce. OLMo `vocab_size` (50257); HF files have only `embedding_size`.
    pub vocab_size: usize,
    /// Rows of the embedding and of the head, at least `vocab_size`. OLMo `embedding_size` (50304; null means
    /// `vocab_size`), HF `vocab_size` (50304).
    pub embedding_size: usize,
    /// Longest input, in tokens. OLMo `max_sequence_length` (1024), HF `max_position_embeddings` (4096).
    pub max_sequence_length: usize,
    /// What each block does after attention, unless `even_layers` says otherwise. OLMo `block_type` (sequential =
    /// dense), HF `model_type` (olmoe: a mixture of experts, llama: dense).
    pub feed_forward: FeedForward,
    /// The MLP of every second layer, beginning with the first (0, 2, …), in a model in which these layers are dense
    /// and only the others are the mixture of experts in `feed_forward`. `None`: all layers are alike. OLMo
    /// `moe_interleave` (off; the MLP is as wide as an expert, and gated with swiglu even where the experts have no
    /// gate because of their capacity), HF: never.
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
    /// Biases in the feed-forward layer. Dense: one for each linear. Mixture of experts: one for each linear of the
    /// shared expert, and one vector of `d_model` that is added once to the sum over the routed experts, whose matrices
    /// have none. OLMo `include_bias` (true), HF: `mlp_bias` for llama (false), never for olmoe.
    pub mlp_bias: bool,
    /// Bias on the head; only with an untied head. OLMo `include_bias` (true), HF: never.
    pub head_bias: bool,
    /// The head shares the embedding's weight. OLMo `weight_tying` (true), HF `tie_word_embeddings` (false).
    pub tie_embeddings: bool,
    /// Multiply the logits by `1/sqrt(d_model)`. OLMo `scale_logits` (false), HF: never.
    pub scale_logits: bool,
    /// How initial parameters are drawn.
    pub init: Init,
    /// The auxiliary losses of the router.
    pub auxiliary: Auxiliary,
    /// Id of the padding token. OLMo `pad_token_id` (50256), HF (1).
    pub pad_token_id: Option<u32>,
    /// Id of the begin-of-sequence token; OLMoE has none. HF `bos_token_id` (null).
    pub bos_token_id: Option<u32>,
    /// Id of the end-of-text token. OLMo `eos_token_id` (50256), HF (50279). The OLMoE training files have 0, although
    /// their data end documents with another token; reading such a file gives a notice.
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
    /// An expert that every token passes, whose output is added to the routed sum. OLMo `moe_shared_expert` (off; as
    /// wide as a routed expert, and gated with swiglu even where the routed experts have no gate because of their
    /// capacity).
    pub shared_expert: Option<Mlp>,
    /// `None`: dropless. `Some(f)`: an expert takes at most `floor(f * top_k * tokens / num_experts)` tokens of a
    /// micro-batch (0 means no limit) and its MLP has no gate. OLMo `moe_dropless` (true), `moe_capacity_factor`
    /// (1.25).
    pub capacity_factor: Option<f32>,
}

/// A norm: its statistics, and which parameters it has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Norm {
    /// The statistics by which it normalises.
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
    /// Before or after the query and key norm. Without such a norm both values mean the same.
    pub order: ClipOrder,
}

/// Where `clip_qkv` is applied; the reference implementations differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipOrder {
    /// OLMo: the projections are clamped, then queries and keys are normalised.
    BeforeNorm,
    /// Hugging Face: queries and keys are normalised, then all three are clamped.
    AfterNorm,
}

/// How initial parameters are drawn; the rule of each parameter is in its
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
    /// Standard deviation of the embedding; `None`: that of the method. OLMo `emb_init_std` (null).
    pub embedding_std: Option<f32>,
    /// Multiply the embedding's standard deviation by `sqrt(d_model)`; only with `FullMegatron` and without
    /// `embedding_std`. OLMo `scale_emb_init` (false).
    pub scale_embedding: bool,
}

/// Families of initialisation. `in` is the number of inputs of a matrix, `l` the layer counted from 0, `L` the number
/// of layers.
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
    /// The formula and the scale.
    pub definition: AuxiliaryDefinition,
    /// Weight of the load-balancing loss. OLMo `moe_loss_weight` (0.1), HF `router_aux_loss_coef` (0.01). Hugging Face
    /// adds it only when `output_router_logits` is true; this program ignores that key, and a weight of 0 turns the
    /// loss off.
    pub load_balancing_weight: f32,
    /// Weight of the router's z-loss. OLMo `moe_zloss_weight` (null = 0), HF: none.
    pub z_weight: f32,
}

/// The definition of the load-balancing loss; the definitions differ in scale by factors of `top_k` and of the number
/// of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuxiliaryDefinition {
    /// Per-layer products, averaged over layers: 1 at perfect balance. What OLMoE was trained with.
    Olmo,
    /// The tokens of all layers are pooled before the product: `top_k` at perfect balance.
    HuggingFace,
    /// Per sequence and layer, summed over layers: the number of layers at perfect balance.
    Megatron,
}

impl ModelConfig {
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

    /// The mixture-of-experts layers, in ascending order.
    pub fn mixture_layers(&self) -> impl Iterator<Item = usize> {
        (0..self.n_layers).filter(|layer| matches!(self.feed_forward_of(*layer), FeedForward::Moe(_)))
    }

    /// The mixture of experts of the layers that have one; `None` for a dense model.
    pub fn moe(&self) -> Option<&Moe> {
        match &self.feed_forward {
            FeedForward::Moe(moe) => Some(moe),
            FeedForward::Dense(_) => None,
        }
    }
}
