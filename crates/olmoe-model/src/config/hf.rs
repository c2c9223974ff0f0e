//! Hugging Face `config.json` with `model_type: olmoe`, and `llama` for dense models. Keys and defaults: `OlmoeConfig`
//! and `LlamaConfig` of transformers 4.57 and 5.
//!
//! The class default of olmoe's `intermediate_size` is 2048; the released models set it to 1024.

mod others;
pub(super) mod write;

use serde_json::Value;

use super::error::{ConfigError, KeyNotice};
use super::names;
use super::section::{Section, describe, shorten, wrong_type};
use super::validate;
use super::{
    Activation, Auxiliary, AuxiliaryDefinition, ClipOrder, ClipQkv, FeedForward, Init, InitMethod, LoadedConfig, Mlp,
    ModelConfig, Moe, Norm, NormKind, Rope,
};

/// Keys with a meaning here, in both families.
const KEYS: &[&str] = &[
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "attention_dropout",
    "per_layer_config",
    "quantization_config",
    "eot_token_id",
    "eom_token_id",
];

/// The keys and defaults of one model class.
struct Family {
    keys: &'static [&'static str],
    d_model: usize,
    width: usize,
    n_layers: usize,
    n_heads: usize,
    rows: usize,
    max_sequence_length: usize,
    eps: f64,
    pad_token_id: Option<usize>,
    bos_token_id: Option<usize>,
    eos_token_id: Option<usize>,
}

/// `OlmoeConfig`: always a mixture, always with query and key norms.
const OLMOE: Family = Family {
    keys: &[
        "clip_qkv",
        "num_experts",
        "num_local_experts",
        "num_experts_per_tok",
        "norm_topk_prob",
        "router_aux_loss_coef",
        "output_router_logits",
    ],
    d_model: 2048,
    width: 2048,
    n_layers: 16,
    n_heads: 16,
    rows: 50304,
    max_sequence_length: 4096,
    eps: 1e-5,
    pad_token_id: Some(1),
    bos_token_id: None,
    eos_token_id: Some(50279),
};

/// `LlamaConfig`: always dense, never with query and key norms. `pretraining_tp` only splits products.
const LLAMA: Family = Family {
    keys: &["mlp_bias", "pretraining_tp"],
    d_model: 4096,
    width: 11008,
    n_layers: 32,
    n_heads: 32,
    rows: 32000,
    max_sequence_length: 2048,
    eps: 1e-6,
    pad_token_id: None,
    bos_token_id: Some(1),
    eos_token_id: Some(2),
};

/// Keys that every transformers configuration may have and that do not affect the function of the model: its origin,
/// how a process loaded it, which outputs a caller wants, and generation settings in old files. Keys that begin with an
/// underscore are also of this kind.
const WITHOUT_MEANING: &[&str] = &[
    "architectures",
    "attn_implementation",
    "auto_map",
    "chunk_size_feed_forward",
    "dtype",
    "finetuning_task",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "add_cross_attention",
    "cross_attention_hidden_size",
    "label2id",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "prefix",
    "problem_type",
    "pruned_heads",
    "return_dict",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    // Generation settings.
    "bad_words_ids",
    "begin_suppress_tokens",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Parses and validates a `config.json`.
pub(super) fn read(text: &str) -> Result<LoadedConfig, ConfigError> {
    validate::length(text)?;
    let value: Value = serde_json::from_str(text)
        .map_err(|error| ConfigError::Syntax { format: "JSON", message: error.to_string() })?;
    let section = Section::new(&value, "config.json")?;
    let (family, is_dense) = match section.get("model_type") {
        None => return Err(ConfigError::NoModelType),
        Some(Value::String(found)) if found == "olmoe" => (OLMOE, false),
        Some(Value::String(found)) if found == "llama" => (LLAMA, true),
        Some(Value::String(found)) => return Err(ConfigError::WrongModelType { found: shorten(found) }),
        Some(other) => return Err(wrong_type("model_type", "a name", other)),
    };
    let known = [KEYS, family.keys].concat();
    let mut notices = Vec::new();
    let without_meaning = |key: &str| WITHOUT_MEANING.contains(&key) || key.starts_with('_');
    others::check(&section, &known, without_meaning, &[OLMOE.keys, LLAMA.keys].concat(), &mut notices)?;
    reject_unsupported(&section)?;
    if !is_dense && !section.has("intermediate_size") {
        let text = "left out, so it has the class default 2048; OLMoE-1B-7B has 1024".to_owned();
        notices.push(KeyNotice { key: "intermediate_size", text });
    }
    for key in ["quantization_config", "quantization", "compression_config"] {
        if section.get(key).is_some() {
            let text = "ignored here; whether the weights can be read depends on the files that hold them".to_owned();
            notices.push(KeyNotice { key, text });
        }
    }

    let d_model = section.size("hidden_size", family.d_model)?;
    let n_heads = section.size("num_attention_heads", family.n_heads)?;
    let rows = section.size("vocab_size", family.rows)?;
    let eps = section.number("rms_norm_eps", family.eps)? as f32;
    let norm = Norm { kind: NormKind::Rms, affine: true, bias: false, eps };
    // Keys of the other family are unknown here, so they have their defaults, which have no effect.
    let clip_qkv = section
        .optional_number("clip_qkv", None)?
        .map(|limit| ClipQkv { limit: limit as f32, order: ClipOrder::AfterNorm });
    let mlp = Mlp { width: section.size("intermediate_size", family.width)?, activation: Activation::SwiGlu };
    let config = ModelConfig {
        d_model,
        n_layers: section.size("num_hidden_layers", family.n_layers)?,
        n_heads,
        n_kv_heads: section.optional_size("num_key_value_heads", None)?.unwrap_or(n_heads),
        head_dim: match section.optional_size("head_dim", None)? {
            Some(head_dim) => head_dim,
            // With no heads, validation fails before it reads this value.
            None => d_model.checked_div(n_heads).unwrap_or(0),
        },
        vocab_size: rows,
        embedding_size: rows,
        max_sequence_length: section.size("max_position_embeddings", family.max_sequence_length)?,
        feed_forward: match is_dense {
            true => FeedForward::Dense(mlp),
            false => FeedForward::Moe(mixture(&section, mlp)?),
        },
        even_layers: None,
        norm,
        qk_norm: (!is_dense).then_some(norm),
        embedding_norm: None,
        norm_after: false,
        rope: Rope { theta: rope_theta(&section)? as f32 },
        clip_qkv,
        attention_bias: section.flag("attention_bias", false)?,
        mlp_bias: section.flag("mlp_bias", false)?,
        head_bias: false,
        tie_embeddings: section.flag("tie_word_embeddings", false)?,
        scale_logits: false,
        init: Init {
            method: InitMethod::Normal,
            std: section.number("initializer_range", 0.02)? as f32,
            cutoff_factor: None,
            embedding_std: None,
            scale_embedding: false,
        },
        auxiliary: Auxiliary {
            definition: AuxiliaryDefinition::HuggingFace,
            load_balancing_weight: section.number("router_aux_loss_coef", 0.01)? as f32,
            z_weight: 0.0,
        },
        pad_token_id: token(&section, "pad_token_id", family.pad_token_id, rows, &mut notices)?,
        bos_token_id: token(&section, "bos_token_id", family.bos_token_id, rows, &mut notices)?,
        eos_token_id: token(&section, "eos_token_id", family.eos_token_id, rows, &mut notices)?,
    };
    validate::check(&config, &names::HF)?;
    Ok(LoadedConfig { config, notices })
}

fn mixture(section: &Section<'_>, expert: Mlp) -> Result<Moe, ConfigError> {
    Ok(Moe {
        num_experts: match section.has("num_experts") {
            true => section.size("num_experts", 64)?,
            false => section.size("num_local_experts", 64)?,
        },
        top_k: section.size("num_experts_per_tok", 8)?,
        expert,
        normalize_top_k: section.flag("norm_topk_prob", false)?,
        shared_expert: None,
        capacity_factor: None,
    })
}

/// Settings that have a key but no implementation.
fn reject_unsupported(section: &Section<'_>) -> Result<(), ConfigError> {
    // `swish` is another name of the same function.
    match section.get("hidden_act") {
        None => {}
        Some(Value::String(found)) if found == "silu" || found == "swish" => {}
        Some(Value::String(found)) => return Err(ConfigError::HiddenAct { found: shorten(found) }),
        Some(other) => return Err(wrong_type("hidden_act", "a name", other)),
    }
    let dropout = section.number("attention_dropout", 0.0)?;
    if dropout != 0.0 {
        return Err(ConfigError::Dropout { key: "attention_dropout", found: dropout });
    }
    let per_layer = section.get("per_layer_config");
    if per_layer.is_some_and(|value| value.as_object().is_none_or(|layers| !layers.is_empty())) {
        return Err(ConfigError::PerLayerConfig);
    }
    Ok(())
}

/// The base of the rotary embeddings: `rope_theta` at the top (transformers 4) or inside `rope_parameters` (5).
fn rope_theta(section: &Section<'_>) -> Result<f64, ConfigError> {
    let mut theta = section.optional_number("rope_theta", None)?;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(value) = section.get(key) else { continue };
        // Some files have one set for each kind of layer; here there is only one kind.
        let rope = Section::new(value.get("full_attention").unwrap_or(value), key)?;
        let scaled = |found: String| ConfigError::RopeScaling { key, found };
        for name in rope.keys() {
            match (name, rope.get(name)) {
                (_, None) | ("rope_theta", _) => {}
                ("rope_type" | "type", Some(Value::String(kind))) if kind == "default" => {}
                ("rope_type" | "type", Some(Value::String(kind))) => {
                    return Err(scaled(format!("`{}`", shorten(kind))));
                }
                ("partial_rotary_factor", Some(factor)) if factor.as_f64() == Some(1.0) => {}
                (_, Some(other)) => return Err(scaled(format!("`{}`: {}", shorten(name), describe(other)))),
            }
        }
        if let Some(inner) = rope.optional_number("rope_theta", None)? {
            match theta {
                Some(outer) if outer != inner => return Err(ConfigError::RopeThetaConflict { outer, inner }),
                _ => theta = Some(inner),
            }
        }
    }
    Ok(theta.unwrap_or(10_000.0))
}

/// A special token. The class keeps its default ids for every vocabulary, so an id without a row means that there is
/// none.
fn token(
    section: &Section<'_>,
    key: &'static str,
    default: Option<usize>,
    rows: usize,
    notices: &mut Vec<KeyNotice>,
) -> Result<Option<u32>, ConfigError> {
    let id = match section.get(key) {
        Some(Value::Array(ids)) => {
            let Some(first) = ids.first() else { return Ok(None) };
            let Some(id) = first.as_u64() else { return Err(wrong_type(key, "a list of token ids", first)) };
            // Generation reads all end-of-text ids with the tokenizer; the model has one.
            if ids.len() > 1 && key != "eos_token_id" {
                let text = format!("lists {} ids; only the first, {id}, is used", ids.len());
                notices.push(KeyNotice { key, text });
            }
            // An id that does not fit `usize` is outside every vocabulary.
            Some(usize::try_from(id).unwrap_or(usize::MAX))
        }
        // Old files write -1 for no token.
        Some(value) if value.as_i64() == Some(-1) => None,
        _ => section.optional_size(key, default)?,
    };
    Ok(in_vocabulary(key, id, rows, notices))
}

/// The id if the embedding has a row for it, otherwise `None` and a notice.
pub(super) fn in_vocabulary(
    key: &'static str,
    id: Option<usize>,
    rows: usize,
    notices: &mut Vec<KeyNotice>,
) -> Option<u32> {
    let id = id?;
    match u32::try_from(id) {
        Ok(narrow) if id < rows => Some(narrow),
        _ => {
            let text =
                format!("{id} is beyond the {rows} rows of the embedding; the model is read as having no such token");
            notices.push(KeyNotice { key, text });
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file of the released models, as transformers 4 wrote it.
    const RELEASE: &str = r#"{
        "architectures": ["OlmoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "clip_qkv": null,
        "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 1024, "max_position_embeddings": 4096, "model_type": "olmoe", "norm_topk_prob": false,
        "num_attention_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16,
        "num_key_value_heads": 16, "output_router_logits": false, "pad_token_id": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": null, "rope_theta": 10000.0, "router_aux_loss_coef": 0.01, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0", "use_cache": true, "vocab_size": 50304
    }"#;

    /// The released file with some keys replaced, added, or, where `remove` gives null, removed.
    fn with(changes: Value) -> Result<LoadedConfig, ConfigError> {
        let mut value: Value = serde_json::from_str(RELEASE).unwrap();
        value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        read(&value.to_string())
    }

    fn rejected(changes: Value) -> String {
        with(changes).unwrap_err().to_string()
    }

    #[test]
    fn the_released_file_is_the_release_model() {
        let loaded = read(RELEASE).unwrap();
        let mut expected = ModelConfig::release();
        // Fields that the format cannot express, or expresses otherwise.
        expected.vocab_size = 50304;
        expected.init.cutoff_factor = None;
        expected.auxiliary.definition = AuxiliaryDefinition::HuggingFace;
        expected.auxiliary.z_weight = 0.0;
        assert_eq!(loaded.config, expected);
        assert!(loaded.notices.is_empty());
    }

    #[test]
    fn omitted_keys_take_the_class_defaults() {
        let loaded = read(r#"{"model_type": "olmoe"}"#).unwrap();
        assert_eq!(loaded.config.moe().unwrap().expert.width, 2048);
        assert_eq!(loaded.notices[0].key, "intermediate_size");
        let mut config = loaded.config;
        let FeedForward::Moe(moe) = &mut config.feed_forward else { panic!("the class always has experts") };
        moe.expert.width = 1024;
        assert_eq!(config, read(RELEASE).unwrap().config);
    }

    #[test]
    fn a_llama_is_a_dense_model() {
        // What `LlamaConfig().to_dict()` has in transformers 5.
        let class = r#"{
            "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 128,
            "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
            "max_position_embeddings": 2048, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": null, "pretraining_tp": 1,
            "rms_norm_eps": 1e-06, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "tie_word_embeddings": false, "transformers_version": "5.23.0", "use_cache": true, "vocab_size": 32000
        }"#;
        let loaded = read(class).unwrap();
        assert!(loaded.notices.is_empty(), "{:?}", loaded.notices);
        assert_eq!(loaded, read(r#"{"model_type": "llama"}"#).unwrap());
        let config = loaded.config;
        assert_eq!(config.feed_forward, FeedForward::Dense(Mlp { width: 11008, activation: Activation::SwiGlu }));
        assert_eq!((config.qk_norm, config.clip_qkv, config.norm.eps), (None, None, 1e-6));
        // Llama-2-7B.
        assert_eq!(crate::parameters::ParameterCount::of(&config).unwrap().total, 6_738_415_616);
        let read = |key: &str| read(&format!(r#"{{"model_type": "llama", {key}}}"#));
        let config = read(r#""mlp_bias": true, "attention_bias": true, "num_key_value_heads": 8"#).unwrap().config;
        assert_eq!((config.mlp_bias, config.attention_bias, config.n_kv_heads), (true, true, 8));
        let rejected = [
            (r#""num_experts": 8"#, "unknown key `num_experts`"),
            (r#""clip_qkv": 8.0"#, "unknown key `clip_qkv`"),
            (r#""rope_scaling": {"rope_type": "llama3", "factor": 8.0}"#, "`rope_scaling` sets"),
            (r#""head_dim": 64"#, "it must be 128"),
            (r#""hidden_act": "gelu""#, "`hidden_act` is `gelu`"),
        ];
        for (key, expected) in rejected {
            let error = read(key).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn rope_is_found_in_both_places() {
        let theta = |changes| with(changes).unwrap().config.rope.theta;
        assert_eq!(theta(serde_json::json!({"rope_theta": 500000})), 500_000.0);
        let inner = serde_json::json!({"rope_theta": 2e4, "rope_type": "default"});
        assert_eq!(theta(serde_json::json!({"rope_theta": null, "rope_parameters": inner})), 20_000.0);
        assert_eq!(theta(serde_json::json!({"rope_scaling": {"type": "default"}})), 10_000.0);
        assert!(rejected(serde_json::json!({"rope_parameters": inner})).contains("is 10000 but"));
        let linear = serde_json::json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
        assert!(rejected(linear).contains("`rope_scaling` sets"));
        let yarn = serde_json::json!({"rope_parameters": {"rope_type": "yarn"}});
        assert!(rejected(yarn).contains("sets `yarn`"));
        assert!(rejected(serde_json::json!({"rope_scaling": 2})).contains("must be a mapping"));
        assert!(rejected(serde_json::json!({"rope_theta": 0.5})).contains("1 or greater"));
    }

    #[test]
    fn variants() {
        let changes = serde_json::json!({
            "clip_qkv": 8.0, "num_key_value_heads": null, "norm_topk_prob": true, "attention_bias": true,
            "tie_word_embeddings": true, "head_dim": 128, "hidden_act": "swish",
        });
        let config = with(changes).unwrap().config;
        assert_eq!(config.clip_qkv, Some(ClipQkv { limit: 8.0, order: ClipOrder::AfterNorm }));
        assert_eq!(config.n_kv_heads, 16);
        assert!(config.moe().unwrap().normalize_top_k && config.attention_bias && config.tie_embeddings);
        let grouped = with(serde_json::json!({"num_key_value_heads": 4})).unwrap().config;
        assert_eq!((grouped.n_kv_heads, grouped.key_value_width(), grouped.query_width()), (4, 512, 2048));
    }

    #[test]
    fn token_ids() {
        let loaded = with(serde_json::json!({"eos_token_id": [50279, 0], "bos_token_id": -1})).unwrap();
        assert_eq!((loaded.config.eos_token_id, loaded.config.bos_token_id), (Some(50279), None));
        // All end-of-text ids are read with the tokenizer; of each other token there is one.
        assert!(loaded.notices.is_empty(), "{:?}", loaded.notices);
        let loaded = with(serde_json::json!({"pad_token_id": [3, 4]})).unwrap();
        assert!(loaded.config.pad_token_id == Some(3) && loaded.notices[0].to_string().contains("the first, 3"));
        let small = with(serde_json::json!({"vocab_size": 99})).unwrap();
        assert_eq!((small.config.eos_token_id, small.config.pad_token_id), (None, Some(1)));
        assert!(small.notices[0].to_string().contains("50279 is beyond the 99 rows"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        use serde_json::json;
        assert!(rejected(json!({"hiden_size": 1})).contains("unknown key `hiden_size`; did you mean `hidden_size`?"));
        assert!(rejected(json!({"hidden_size": "2048"})).contains("must be a whole number, found the text \"2048\""));
        assert!(rejected(json!({"hidden_size": null})).contains("found null"));
        assert!(rejected(json!({"norm_topk_prob": 1})).contains("must be true or false, found the number 1"));
        assert!(rejected(json!({"rms_norm_eps": []})).contains("must be a number, found a list"));
        assert!(rejected(json!({"rms_norm_eps": 0})).contains("`rms_norm_eps` is 0"));
        assert!(rejected(json!({"hidden_act": "gelu"})).contains("`hidden_act` is `gelu`"));
        assert!(rejected(json!({"attention_dropout": 0.1})).contains("set `attention_dropout: 0.0`"));
        assert!(rejected(json!({"model_type": "olmo"})).contains("`model_type` is `olmo`"));
        assert!(rejected(json!({"mlp_bias": true})).contains("unknown key `mlp_bias`"));
        assert!(rejected(json!({"model_type": null})).contains("`model_type` is missing"));
        assert!(rejected(json!({"num_attention_heads": 0})).contains("`num_attention_heads` is 0"));
        assert!(rejected(json!({"num_attention_heads": 3})).contains("does not divide `hidden_size`"));
        assert!(rejected(json!({"num_experts_per_tok": 65})).contains("`num_experts_per_tok` (65)"));
        assert!(rejected(json!({"head_dim": 64})).contains("`head_dim` is 64; it must be 128"));
        assert!(rejected(json!({"per_layer_config": {"0": {"num_experts": 8}}})).contains("`per_layer_config`"));
        assert!(rejected(json!({"hidden_size": 1u64 << 60})).contains("the largest size supported is 1048576"));
        assert!(read("[]").unwrap_err().to_string().contains("must be a mapping"));
        assert!(read("{").unwrap_err().to_string().contains("not valid JSON"));
    }

    #[test]
    fn keys_of_other_tools_are_passed_over() {
        use serde_json::json;
        for (key, value) in [
            ("unsloth_fixed", json!(true)),
            ("transformers.js_config", json!({"use_external_data_format": true})),
            ("quantization", json!(null)),
            ("layer_types", json!(vec!["full_attention"; 16])),
            ("sliding_window", json!(null)),
            ("sliding_window", json!(4096)),
            ("use_sliding_window", json!(false)),
            ("max_window_layers", json!(28)),
            ("mlp_only_layers", json!([])),
            ("n_shared_experts", json!(0)),
            ("routed_scaling_factor", json!(1.0)),
            ("scoring_func", json!("softmax")),
            ("mlp_bias", json!(false)),
            ("eos_token", json!("<|endoftext|>")),
            ("model_max_length", json!(4096)),
        ] {
            let loaded = with(json!({key: value})).unwrap();
            assert_eq!(loaded.config, read(RELEASE).unwrap().config, "{key}");
            let notice = loaded.notices[0].to_string();
            assert!(notice.contains(&format!("are ignored: `{key}`")), "{notice}");
        }
        for (key, value, expected) in [
            ("layer_types", json!(["full_attention", "sliding_attention"]), "attend to all tokens"),
            ("sliding_window", json!(1024), "attention over a window"),
            ("final_logit_softcapping", json!(30.0), "capped"),
            ("routed_scaling_factor", json!(2.5), "scaled activations"),
            ("mlp_only_layers", json!([3]), "all layers are alike"),
            ("no_rope_layers", json!([1, 1, 0]), "rotates its queries and keys"),
            ("partial_rotary_factor", json!(0.5), "every element of a head"),
            ("scoring_func", json!("sigmoid"), "only the softmax"),
            ("hidden_activation", json!("gelu_pytorch_tanh"), "only silu"),
        ] {
            let error = rejected(json!({key: value}));
            assert!(error.starts_with(&format!("`{key}` is ")) && error.contains(expected), "{error}");
        }
        // One set of rotary embeddings for each kind of layer.
        let sets = json!({"full_attention": {"rope_theta": 5e5, "rope_type": "default"}});
        let loaded = with(json!({"rope_theta": null, "rope_parameters": sets})).unwrap();
        assert_eq!(loaded.config.rope.theta, 500_000.0);
    }

    #[test]
    fn every_key_is_listed_once() {
        for family in [OLMOE, LLAMA] {
            let mut keys: Vec<&str> = KEYS.iter().chain(family.keys).chain(WITHOUT_MEANING).copied().collect();
            keys.sort_unstable();
            assert!(keys.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }
}
