//! The `model:` section of an OLMo training YAML. Keys and defaults: `ModelConfig` of OLMo's mixture-of-experts branch,
//! plus the keys of the branch for shared layers, which must be off.
//!
//! The defaults are GPT-2's (dropout 0.1, biases, tied head, no RoPE): a section that leaves them out is not an OLMoE
//! model.

pub(super) mod write;

use serde_json::Value;
use serde_saphyr::options::NonFiniteFloatPolicy;

use super::error::{ConfigError, KeyNotice};
use super::hf::in_vocabulary;
use super::names;
use super::section::Section;
use super::validate;
use super::{
    Activation, Auxiliary, AuxiliaryDefinition, ClipOrder, ClipQkv, FeedForward, Init, InitMethod, LoadedConfig, Mlp,
    ModelConfig, Moe, Norm, NormKind, Rope,
};

/// Keys of the section, in the order of OLMo's class, followed by those of the branch for shared layers.
const KEYS: &[&str] = &[
    "d_model",
    "n_heads",
    "n_kv_heads",
    "clip_qkv",
    "n_layers",
    "mlp_ratio",
    "mlp_hidden_size",
    "activation_type",
    "block_type",
    "block_group_size",
    "alibi",
    "alibi_bias_max",
    "rope",
    "rope_full_precision",
    "rope_theta",
    "flash_attention",
    "attention_dropout",
    "multi_query_attention",
    "attention_layer_norm",
    "residual_dropout",
    "embedding_dropout",
    "embedding_layer_norm",
    "layer_norm_type",
    "layer_norm_with_affine",
    "layer_norm_eps",
    "attention_layer_norm_with_affine",
    "max_sequence_length",
    "include_bias",
    "bias_for_layer_norm",
    "scale_logits",
    "vocab_size",
    "embedding_size",
    "weight_tying",
    "eos_token_id",
    "pad_token_id",
    "init_device",
    "init_fn",
    "init_std",
    "init_cutoff_factor",
    "precision",
    "moe_num_experts",
    "moe_top_k",
    "moe_mlp_impl",
    "moe_log_expert_assignment",
    "moe_shared_expert",
    "moe_lbl_in_fp32",
    "moe_loss_weight",
    "moe_zloss_weight",
    "moe_dropless",
    "moe_capacity_factor",
    "scale_emb_init",
    "emb_init_std",
    "norm_after",
    "moe_interleave",
    "share_blocks",
    "share_moe",
    "share_experts",
    "init_dense_router",
    "share_load_balance_across_layers",
    "moe_expert_model_parallelism",
    "moe_expert_choice",
    "moe_expert_choice_grouped",
];

/// Keys that choose how OLMo computes and have no effect here, with the notice for each.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("init_device", "no effect; parameters are created where they are used"),
    ("flash_attention", "no effect; attention always runs without materialising the scores of a whole sequence"),
    ("block_group_size", "no effect; blocks are not wrapped in groups"),
    ("precision", "no effect in this section; the training precision is the key `precision` at the top level"),
    ("alibi_bias_max", "no effect, because positions are rotary"),
    ("moe_mlp_impl", "no effect; `sparse` and `grouped` compute the same function"),
    ("moe_lbl_in_fp32", "no effect; the router's losses are always computed in f32"),
    ("moe_log_expert_assignment", "no effect; the assignment is always recorded"),
    ("moe_expert_model_parallelism", "no effect; how experts are spread over processes is not part of the model"),
];

/// Keys of the branch for shared layers, where `moe_dropless` is false unless set.
const SHARED_LAYERS_BRANCH: &[&str] = &[
    "moe_interleave",
    "share_blocks",
    "share_moe",
    "share_experts",
    "init_dense_router",
    "share_load_balance_across_layers",
    "moe_expert_choice",
    "moe_expert_choice_grouped",
];

/// The block implementations; `Llama` differs from `Sequential` only in how it stores q, k and v.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BlockType {
    Sequential,
    Llama,
    Moe,
}

/// Most values that all aliases of a YAML file may expand to.
const MAX_REPLAYED: usize = 10_000;

/// Parses a YAML text into a tree of JSON values.
pub(super) fn parse(text: &str) -> Result<Value, ConfigError> {
    validate::length(text)?;
    // No key takes `.inf`. Aliases of aliases must not expand a small file to a large one.
    let options = serde_saphyr::options! {
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        // A run with the name `n` must not get the name `false`.
        strict_booleans: true,
        // Lists of data files may have thousands of comments.
        emit_comments: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPLAYED },
    };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| ConfigError::Syntax { format: "YAML", message: error.without_snippet().to_string() })
}

/// Reads and validates the model section of a parsed training YAML, or that section alone.
pub(super) fn read(file: &Value) -> Result<LoadedConfig, ConfigError> {
    let top = Section::new(file, "the YAML")?;
    let section = match file.get("model") {
        Some(model) => Section::new(model, "the `model` section")?,
        None if !top.keys().any(|key| KEYS.contains(&key)) => return Err(ConfigError::NoModelSection),
        None => top,
    };
    section.reject_unknown(KEYS, |key| KEYS.contains(&key))?;
    let block = section.name(
        "block_type",
        BlockType::Sequential,
        &[("sequential", BlockType::Sequential), ("llama", BlockType::Llama), ("moe", BlockType::Moe)],
        "sequential, llama, moe",
    )?;
    let mut notices = notices(&section, block)?;
    let config = config(&section, block, &mut notices)?;
    // Every value has its type now; the following checks are about meaning.
    reject_unsupported(&section)?;
    validate::check(&config, &names::OLMO)?;
    Ok(LoadedConfig { config, notices })
}

fn config(section: &Section<'_>, block: BlockType, notices: &mut Vec<KeyNotice>) -> Result<ModelConfig, ConfigError> {
    let d_model = section.size("d_model", 768)?;
    // Checked before the other sizes, because widths are multiples of it.
    validate::size(names::OLMO.d_model, d_model, validate::MAX_WIDTH)?;
    let n_heads = section.size("n_heads", 12)?;
    let include_bias = section.flag("include_bias", true)?;
    let tie_embeddings = section.flag("weight_tying", true)?;
    let norm_after = section.flag("norm_after", false)?;
    if norm_after && block == BlockType::Llama {
        return Err(ConfigError::NormAfterInLlamaBlock);
    }
    let vocab_size = section.size("vocab_size", 50257)?;
    let embedding_size = section.optional_size("embedding_size", Some(50304))?.unwrap_or(vocab_size);

    let norm_bias = section.optional_flag("bias_for_layer_norm", None)?.unwrap_or(include_bias);
    let kind = section.name(
        "layer_norm_type",
        NormKind::LayerNorm,
        &[("default", NormKind::LayerNorm), ("low_precision", NormKind::LayerNorm), ("rms", NormKind::Rms)],
        "default, low_precision, rms",
    )?;
    let eps = section.number("layer_norm_eps", 1e-5)? as f32;
    let norm = |affine: bool| Norm { kind, affine, bias: affine && norm_bias, eps };
    let affine = section.flag("layer_norm_with_affine", true)?;
    let qk_affine = section.flag("attention_layer_norm_with_affine", true)?;

    let mlp = mlp(section, d_model)?;
    let eos_token_id = section.size("eos_token_id", 50256)?;
    if eos_token_id == 0 && vocab_size == 50280 {
        let text = "0 is the value in OLMoE's training files, but their data ends documents with 50279; set 50279 \
                    unless the tokenizer is the older gpt-neox-20b-pii-special"
            .to_owned();
        notices.push(KeyNotice { key: "eos_token_id", text });
    }
    Ok(ModelConfig {
        d_model,
        n_layers: section.size("n_layers", 12)?,
        n_heads,
        n_kv_heads: key_value_heads(section, n_heads)?,
        // With no heads, validation fails before it reads this value.
        head_dim: d_model.checked_div(n_heads).unwrap_or(0),
        vocab_size,
        embedding_size,
        max_sequence_length: section.size("max_sequence_length", 1024)?,
        feed_forward: feed_forward(section, block, mlp)?,
        even_layers: section.optional_flag("moe_interleave", None)?.unwrap_or(false).then_some(mlp),
        norm: norm(affine),
        qk_norm: section.flag("attention_layer_norm", false)?.then(|| norm(qk_affine)),
        embedding_norm: section.flag("embedding_layer_norm", false)?.then(|| norm(affine)),
        norm_after,
        rope: Rope { theta: section.number("rope_theta", 10_000.0)? as f32 },
        clip_qkv: section
            .optional_number("clip_qkv", None)?
            .map(|limit| ClipQkv { limit: limit as f32, order: ClipOrder::BeforeNorm }),
        attention_bias: include_bias,
        mlp_bias: include_bias,
        head_bias: include_bias && !tie_embeddings,
        tie_embeddings,
        scale_logits: section.flag("scale_logits", false)?,
        init: init(section)?,
        auxiliary: Auxiliary {
            definition: AuxiliaryDefinition::Olmo,
            load_balancing_weight: section.optional_number("moe_loss_weight", Some(0.1))?.unwrap_or(0.0) as f32,
            z_weight: section.optional_number("moe_zloss_weight", None)?.unwrap_or(0.0) as f32,
        },
        pad_token_id: in_vocabulary(
            "pad_token_id",
            Some(section.size("pad_token_id", 50256)?),
            embedding_size,
            notices,
        ),
        bos_token_id: None,
        eos_token_id: in_vocabulary("eos_token_id", Some(eos_token_id), embedding_size, notices),
    })
}

/// `n_kv_heads`, which the deprecated `multi_query_attention` may repeat but not contradict.
fn key_value_heads(section: &Section<'_>, n_heads: usize) -> Result<usize, ConfigError> {
    let kv_heads = section.optional_size("n_kv_heads", None)?;
    let switch = section.optional_flag("multi_query_attention", None)?;
    let by_switch = |switch: bool| if switch { 1 } else { n_heads };
    match (kv_heads, switch) {
        (None, None) => Ok(n_heads),
        (None, Some(switch)) => Ok(by_switch(switch)),
        (Some(kv_heads), Some(switch)) if kv_heads != by_switch(switch) => {
            Err(ConfigError::MultiQueryConflict { switch, kv_heads })
        }
        (Some(kv_heads), _) => Ok(kv_heads),
    }
}

/// The MLP of a dense block, and of an expert, except that an expert with a capacity has no gate.
fn mlp(section: &Section<'_>, d_model: usize) -> Result<Mlp, ConfigError> {
    let activation = section.name(
        "activation_type",
        Activation::SwiGlu,
        &[("swiglu", Activation::SwiGlu), ("gelu", Activation::Gelu), ("relu", Activation::Relu)],
        "swiglu, gelu, relu",
    )?;
    let ratio = section.size("mlp_ratio", 4)?;
    let hidden = section.optional_size("mlp_hidden_size", None)?.unwrap_or(ratio.saturating_mul(d_model));
    // Checked before halving, because a saturated product may be odd or even.
    let limit = 2 * validate::MAX_WIDTH;
    if hidden > limit {
        return Err(ConfigError::TooLarge { key: names::OLMO.mlp_width, found: hidden, limit });
    }
    let width = match activation {
        Activation::SwiGlu if !hidden.is_multiple_of(2) => {
            return Err(ConfigError::OddSwiGluWidth { width: hidden });
        }
        Activation::SwiGlu => hidden / 2,
        _ => hidden,
    };
    Ok(Mlp { width, activation })
}

fn feed_forward(section: &Section<'_>, block: BlockType, mlp: Mlp) -> Result<FeedForward, ConfigError> {
    if block != BlockType::Moe {
        return Ok(FeedForward::Dense(mlp));
    }
    let moe_size = |key: &'static str, default| {
        section.optional_size(key, Some(default))?.ok_or(ConfigError::MissingMoeSize { key })
    };
    let capacity = section.optional_number("moe_capacity_factor", Some(1.25))?;
    // A null counts as false, as in OLMo.
    let dropless = section.optional_flag("moe_dropless", Some(true))?.unwrap_or(false);
    let expert = match mlp.activation {
        // Experts with a capacity have no gate: with swiglu they apply silu alone.
        Activation::SwiGlu if !dropless => Mlp { activation: Activation::Silu, ..mlp },
        _ => mlp,
    };
    Ok(FeedForward::Moe(Moe {
        num_experts: moe_size("moe_num_experts", 8)?,
        top_k: moe_size("moe_top_k", 2)?,
        expert,
        normalize_top_k: false,
        shared_expert: section.optional_flag("moe_shared_expert", None)?.unwrap_or(false).then_some(mlp),
        capacity_factor: match dropless {
            true => None,
            false => Some(capacity.ok_or(ConfigError::MissingCapacity)? as f32),
        },
    }))
}

fn init(section: &Section<'_>) -> Result<Init, ConfigError> {
    Ok(Init {
        method: section.name(
            "init_fn",
            InitMethod::Normal,
            &[
                ("normal", InitMethod::Normal),
                ("mitchell", InitMethod::Mitchell),
                ("full_megatron", InitMethod::FullMegatron),
                ("kaiming_normal", InitMethod::KaimingNormal),
                ("fan_in", InitMethod::FanIn),
            ],
            "normal, mitchell, full_megatron, kaiming_normal, fan_in",
        )?,
        std: section.number("init_std", 0.02)? as f32,
        cutoff_factor: section.optional_number("init_cutoff_factor", None)?.map(|factor| factor as f32),
        embedding_std: section.optional_number("emb_init_std", None)?.map(|std| std as f32),
        scale_embedding: section.flag("scale_emb_init", false)?,
    })
}

/// Settings that have a key but no implementation.
fn reject_unsupported(section: &Section<'_>) -> Result<(), ConfigError> {
    match (section.flag("alibi", false)?, section.flag("rope", false)?) {
        (true, true) => return Err(ConfigError::AlibiWithRope),
        (true, false) => return Err(ConfigError::Alibi),
        (false, false) => return Err(ConfigError::NoPositionEncoding),
        (false, true) => {}
    }
    for key in ["attention_dropout", "residual_dropout", "embedding_dropout"] {
        match section.number(key, 0.1)? {
            0.0 => {}
            _ if !section.has(key) => return Err(ConfigError::DropoutByDefault { key }),
            found => return Err(ConfigError::Dropout { key, found }),
        }
    }
    let on = |key: &str| section.optional_flag(key, None).map(|flag| flag.unwrap_or(false));
    for key in ["moe_expert_choice", "moe_expert_choice_grouped"] {
        if on(key)? {
            return Err(ConfigError::ExpertChoice { key });
        }
    }
    for key in ["share_blocks", "share_moe", "share_experts"] {
        if on(key)? {
            return Err(ConfigError::SharedLayers { key });
        }
    }
    if on("share_load_balance_across_layers")? {
        return Err(ConfigError::SharedLoadBalance);
    }
    if on("init_dense_router")? {
        return Err(ConfigError::DenseRouter);
    }
    Ok(())
}

/// Keys that are set but have no effect, or another effect than may be expected.
fn notices(section: &Section<'_>, block: BlockType) -> Result<Vec<KeyNotice>, ConfigError> {
    let mut notices = Vec::new();
    let mut note = |key: &'static str, text: &str| notices.push(KeyNotice { key, text: text.to_owned() });
    for (key, text) in WITHOUT_EFFECT {
        if section.get(key).is_some() {
            note(key, text);
        }
    }
    if !section.flag("rope_full_precision", true)? {
        note("rope_full_precision", "no effect; rotations are always computed in f32");
    }
    if section.get("layer_norm_type").and_then(Value::as_str) == Some("low_precision") {
        note("layer_norm_type", "read as `default`; norms are always computed in f32");
    }
    let full_megatron = section.get("init_fn").and_then(Value::as_str) == Some("full_megatron");
    if section.flag("scale_emb_init", false)? && (!full_megatron || section.get("emb_init_std").is_some()) {
        note("scale_emb_init", "no effect; it needs `init_fn: full_megatron` and no `emb_init_std`");
    }
    if block != BlockType::Moe {
        let architectural = ["moe_num_experts", "moe_top_k", "moe_dropless", "moe_shared_expert"];
        for key in architectural.into_iter().filter(|key| section.get(key).is_some()) {
            note(key, "no effect, because `block_type` is not `moe`");
        }
        return Ok(notices);
    }
    let dropless = section.optional_flag("moe_dropless", Some(true))?.unwrap_or(false);
    if dropless && section.get("moe_capacity_factor").is_some() {
        note("moe_capacity_factor", "no effect, because `moe_dropless` is true");
    }
    if !section.has("moe_dropless") && SHARED_LAYERS_BRANCH.iter().any(|key| section.has(key)) {
        note("moe_dropless", "left out and taken as true; in the OLMo branch for shared layers it would be false");
    }
    let off = section.optional_number("moe_loss_weight", Some(0.1))?.unwrap_or(0.0) == 0.0;
    if off && section.optional_number("moe_zloss_weight", None)?.unwrap_or(0.0) != 0.0 {
        note("moe_zloss_weight", "applied although `moe_loss_weight` is 0; OLMo drops both losses then");
    }
    Ok(notices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<LoadedConfig, ConfigError> {
        super::read(&parse(text)?)
    }

    /// The fewest keys that turn OLMo's defaults into a model that this crate implements.
    const PLAIN: &str = "rope: true\nattention_dropout: 0.0\nresidual_dropout: 0\nembedding_dropout: 0.0\n";

    fn plain(lines: &str) -> Result<LoadedConfig, ConfigError> {
        read(&format!("{PLAIN}{lines}\n"))
    }

    fn rejected(lines: &str) -> String {
        plain(lines).unwrap_err().to_string()
    }

    fn moe(lines: &str) -> Moe {
        let loaded = plain(&format!("block_type: moe\n{lines}")).unwrap();
        loaded.config.moe().unwrap().clone()
    }

    #[test]
    fn defaults_are_those_of_olmo() {
        let loaded = plain("").unwrap();
        let config = loaded.config;
        assert!(loaded.notices.is_empty());
        assert_eq!((config.d_model, config.n_layers, config.n_heads, config.n_kv_heads), (768, 12, 12, 12));
        assert_eq!((config.vocab_size, config.embedding_size, config.max_sequence_length), (50257, 50304, 1024));
        assert_eq!(config.feed_forward, FeedForward::Dense(Mlp { width: 1536, activation: Activation::SwiGlu }));
        assert_eq!(config.norm, Norm { kind: NormKind::LayerNorm, affine: true, bias: true, eps: 1e-5 });
        assert_eq!((config.qk_norm, config.embedding_norm, config.clip_qkv), (None, None, None));
        assert!(config.attention_bias && config.mlp_bias && config.tie_embeddings && !config.head_bias);
        assert_eq!((config.init.method, config.init.std, config.init.cutoff_factor), (InitMethod::Normal, 0.02, None));
        assert_eq!((config.eos_token_id, config.pad_token_id), (Some(50256), Some(50256)));
        assert_eq!((config.auxiliary.load_balancing_weight, config.auxiliary.z_weight), (0.1, 0.0));
        let mixture = moe("");
        assert_eq!((mixture.num_experts, mixture.top_k, mixture.capacity_factor), (8, 2, None));
    }

    #[test]
    fn widths() {
        let width = |lines| match plain(lines).unwrap().config.feed_forward {
            FeedForward::Dense(mlp) => mlp.width,
            FeedForward::Moe(moe) => moe.expert.width,
        };
        assert_eq!(width("mlp_ratio: 8"), 3072);
        assert_eq!(width("mlp_hidden_size: 1024\nmlp_ratio: 8"), 512);
        assert_eq!(width("activation_type: gelu"), 3072);
        assert_eq!(width("activation_type: relu\nmlp_hidden_size: 7"), 7);
        assert_eq!(width("block_type: moe\nmlp_ratio: 1"), 384);
        assert!(rejected("mlp_hidden_size: 7").contains("the MLP is 7 wide"));
        assert!(rejected("mlp_ratio: 1152921504606846976").contains("the largest size"));
        assert!(rejected("mlp_ratio: 0").contains("`mlp_hidden_size` is 0"));
    }

    #[test]
    fn norms_and_biases() {
        let config = plain("include_bias: false\nweight_tying: false\nattention_layer_norm: true").unwrap().config;
        assert!(!config.norm.bias && !config.attention_bias && !config.head_bias);
        assert_eq!(config.qk_norm, Some(config.norm));
        let config =
            plain("weight_tying: false\nbias_for_layer_norm: false\nembedding_layer_norm: true").unwrap().config;
        assert!(!config.norm.bias && config.attention_bias && config.head_bias && config.mlp_bias);
        assert_eq!(config.embedding_norm, Some(config.norm));
        let lines = "attention_layer_norm: true\nattention_layer_norm_with_affine: false\nlayer_norm_type: rms\n\
                     layer_norm_eps: 1e-6";
        let config = plain(lines).unwrap().config;
        assert_eq!(config.qk_norm, Some(Norm { kind: NormKind::Rms, affine: false, bias: false, eps: 1e-6 }));
        assert!(config.norm.affine && config.norm.bias);
    }

    #[test]
    fn key_value_heads_and_the_deprecated_switch() {
        let heads = |lines| plain(lines).unwrap().config.n_kv_heads;
        assert_eq!(heads("n_kv_heads: 4"), 4);
        assert_eq!(heads("n_kv_heads: null\nmulti_query_attention: null"), 12);
        assert_eq!(heads("multi_query_attention: true"), 1);
        assert_eq!(heads("multi_query_attention: false"), 12);
        assert_eq!(heads("multi_query_attention: true\nn_kv_heads: 1"), 1);
        assert!(rejected("multi_query_attention: true\nn_kv_heads: 4").contains("keep `n_kv_heads`"));
        assert!(rejected("n_kv_heads: 5").contains("`n_kv_heads` (5) does not divide `n_heads` (12)"));
    }

    #[test]
    fn mixtures() {
        let swiglu = Mlp { width: 1536, activation: Activation::SwiGlu };
        let silu = Mlp { width: 1536, activation: Activation::Silu };
        assert_eq!(moe("").expert, swiglu);
        assert_eq!(moe("moe_shared_expert: true").shared_expert, Some(swiglu));
        let capacity = moe("moe_dropless: false\nmoe_shared_expert: true");
        assert_eq!((capacity.expert, capacity.capacity_factor), (silu, Some(1.25)));
        assert_eq!(capacity.shared_expert, Some(swiglu), "the shared expert keeps its gate");
        assert_eq!(moe("moe_dropless: false\nactivation_type: gelu").expert.activation, Activation::Gelu);
        assert_eq!(moe("moe_dropless: null\nmoe_capacity_factor: 2").capacity_factor, Some(2.0));
        assert!(rejected("block_type: moe\nmoe_dropless: false\nmoe_capacity_factor: null").contains("such as 1.25"));
        assert!(rejected("block_type: moe\nmoe_top_k: null").contains("`moe_top_k` is null"));
        assert!(rejected("block_type: moe\nmoe_top_k: 9").contains("set it to at most 8"));
        assert!(rejected("block_type: moe\ninit_fn: mitchell").contains("only defined for dense"));
    }

    #[test]
    fn dense_layers_and_mixtures_in_turn() {
        let even = |lines: &str| plain(&format!("block_type: moe\nmoe_interleave: true\n{lines}")).unwrap().config;
        let swiglu = Mlp { width: 1536, activation: Activation::SwiGlu };
        let config = even("moe_dropless: true");
        assert_eq!((config.even_layers, config.moe().unwrap().expert), (Some(swiglu), swiglu));
        assert_eq!(config.mixture_layers().collect::<Vec<_>>(), [1, 3, 5, 7, 9, 11]);
        assert_eq!(even("mlp_hidden_size: 14").even_layers, Some(Mlp { width: 7, ..swiglu }));
        let capacity = even("moe_dropless: false");
        assert_eq!(capacity.even_layers, Some(swiglu), "a dense block keeps its gate");
        assert_eq!(capacity.moe().unwrap().expert.activation, Activation::Silu);
        assert_eq!(plain("block_type: moe\nmoe_interleave: null").unwrap().config.even_layers, None);
        let dense = rejected("moe_interleave: true");
        assert!(dense.contains("`moe_interleave` is set, but the model has no experts"), "{dense}");
        let one = rejected("block_type: moe\nmoe_interleave: true\nn_layers: 1");
        assert!(one.contains("set `n_layers` to at least 2"), "{one}");
    }

    #[test]
    fn positions_and_dropout() {
        assert!(rejected("alibi: true").contains("exclude each other"));
        assert!(read("alibi: true").unwrap_err().to_string().contains("set `alibi: false` and `rope: true`"));
        assert!(read("d_model: 64").unwrap_err().to_string().contains("learned position embeddings"));
        let left_out = read("rope: true").unwrap_err().to_string();
        assert!(left_out.contains("`attention_dropout` is left out, which means 0.1"), "{left_out}");
        let set = read("rope: true\nattention_dropout: 0.2").unwrap_err().to_string();
        assert!(set.contains("`attention_dropout` is 0.2"), "{set}");
        assert_eq!(plain("rope_theta: 500000").unwrap().config.rope.theta, 500_000.0);
        assert_eq!(plain("rope_theta: 5e5").unwrap().config.rope.theta, 500_000.0);
        let clip = plain("clip_qkv: 8").unwrap().config.clip_qkv;
        assert_eq!(clip, Some(ClipQkv { limit: 8.0, order: ClipOrder::BeforeNorm }));
        assert!(rejected("clip_qkv: -1.0").contains("`clip_qkv` is -1"));
        assert!(rejected("clip_qkv: .inf").contains("must be a number or null, found the text \".inf\""));
    }

    #[test]
    fn switches_without_implementation() {
        for key in ["moe_expert_choice", "moe_expert_choice_grouped", "share_blocks", "share_moe", "share_experts"] {
            assert!(rejected(&format!("{key}: true")).contains(&format!("`{key}: true` is not implemented")));
        }
        assert!(rejected("share_load_balance_across_layers: true").contains("per layer"));
        assert!(rejected("init_dense_router: true").contains("neither here nor in OLMo"));
        assert!(rejected("block_type: llama\nnorm_after: true").contains("llama"));
        assert!(plain("norm_after: true").unwrap().config.norm_after);
        let off = plain("block_type: moe\nmoe_interleave: false\nshare_experts: null").unwrap();
        assert_eq!(off.notices.len(), 1, "{:?}", off.notices);
        assert_eq!(off.notices[0].key, "moe_dropless");
    }

    #[test]
    fn keys_without_effect_give_notices() {
        let lines = "init_device: meta\nflash_attention: true\nblock_group_size: 4\nprecision: amp_bf16\n\
                     moe_top_k: 8\nrope_full_precision: false\nlayer_norm_type: low_precision\nscale_emb_init: true";
        let notices = plain(lines).unwrap().notices;
        let keys: Vec<&str> = notices.iter().map(|notice| notice.key).collect();
        let expected = [
            "init_device",
            "flash_attention",
            "block_group_size",
            "precision",
            "rope_full_precision",
            "layer_norm_type",
            "scale_emb_init",
            "moe_top_k",
        ];
        assert_eq!(keys, expected);
        let lines = "block_type: moe\nmoe_capacity_factor: 2\nmoe_loss_weight: 0\nmoe_zloss_weight: 1e-3";
        let keys: Vec<&str> = plain(lines).unwrap().notices.iter().map(|notice| notice.key).collect();
        assert_eq!(keys, ["moe_capacity_factor", "moe_zloss_weight"]);
        let trap = plain("vocab_size: 50280\neos_token_id: 0").unwrap();
        assert_eq!((trap.config.eos_token_id, trap.notices[0].key), (Some(0), "eos_token_id"));
        let small = plain("vocab_size: 256\nembedding_size: null").unwrap();
        assert_eq!((small.config.embedding_size, small.config.eos_token_id), (256, None));
        assert_eq!(small.notices.len(), 2);
    }

    #[test]
    fn a_whole_training_file_is_read_by_its_model_section() {
        let text = format!(
            "run_name: ${{oc.env:JOB}}\nmodel:\n  {}\noptimizer:\n  eps: 1e-8\nmax_duration: 130e9T\nlimit: .inf\n",
            PLAIN.trim().replace('\n', "\n  ")
        );
        assert_eq!(read(&text).unwrap(), plain("").unwrap());
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(rejected("d_modle: 4").contains("unknown key `d_modle`; did you mean `d_model`?"));
        assert!(rejected("warmup: 4").contains("unknown key `warmup`; remove it"));
        assert!(rejected("n_layers: two").contains("`n_layers` must be a whole number, found the text \"two\""));
        assert!(rejected("n_layers: 1.5").contains("found the number 1.5"));
        assert!(rejected("include_bias: 3").contains("must be true or false"));
        assert!(rejected("init_fn: orthogonal").contains("must be one of normal, mitchell"));
        assert!(rejected("activation_type: [gelu]").contains("must be a name, found a list"));
        assert!(
            rejected("embedding_size: 100").contains("`embedding_size` (100) is smaller than `vocab_size` (50257)")
        );
        assert!(rejected("d_model: 1152921504606846976").contains("`d_model` is 1152921504606846976"));
        assert!(rejected("n_heads: 256\nd_model: 256").contains("1 elements"));
        let messages = [
            ("optimizer:\n  name: adamw\n", "no `model:` section"),
            ("model: 3\n", "the `model` section must be a mapping"),
            ("- 1\n", "the YAML must be a mapping"),
            ("a: [\n", "not valid YAML"),
            ("rope: true\nrope: true\n", "not valid YAML"),
        ];
        for (text, expected) in messages {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn comments_are_free_and_words_are_words() {
        let text = format!("{PLAIN}{}n_layers: 3\n", "# a path that is left out\n".repeat(20_000));
        assert_eq!(read(&text).unwrap().config.n_layers, 3);
        assert_eq!(parse("[n, no, on, true]").unwrap(), serde_json::json!(["n", "no", "on", true]));
    }

    #[test]
    fn every_key_with_a_remark_is_a_key() {
        assert!(WITHOUT_EFFECT.iter().map(|(key, _)| key).chain(SHARED_LAYERS_BRANCH).all(|key| KEYS.contains(key)));
    }
}
