//! Keys of a `config.json` that the class of the model does not have: other tools wrote them, or they belong to another
//! family of models.
//!
//! transformers stores such keys and ignores them. Here a key without effect is ignored with a notice. A key that would
//! change the result in the family that it belongs to is refused, because whoever set it expects that effect.

use serde_json::Value;

use super::super::error::{ConfigError, KeyNotice};
use super::super::section::{Section, closest, describe, shorten};

/// Keys of other families, and the effect that they would have.
struct IgnoredKeys {
    keys: &'static [&'static str],
    /// The numbers without effect; a list has no effect if all of its numbers are among them.
    harmless: &'static [f64],
    /// The texts without effect; a list has no effect if all of its texts are among them.
    texts: &'static [&'static str],
    reason: &'static str,
}

const fn group(
    keys: &'static [&'static str],
    harmless: &'static [f64],
    texts: &'static [&'static str],
    reason: &'static str,
) -> IgnoredKeys {
    IgnoredKeys { keys, harmless, texts, reason }
}

const CHANGES: &[IgnoredKeys] = &[
    group(&["layer_types"], &[], &["full_attention", "attention"], "all layers attend to all tokens before"),
    group(
        &["attention_chunk_size", "attention_window_size", "sliding_window_pattern"],
        &[],
        &[],
        "attention over a window has no implementation here",
    ),
    group(
        &[
            "attention_multiplier",
            "dim_model_base",
            "embedding_multiplier",
            "logit_scale",
            "logits_scaling",
            "lm_head_multiplier",
            "residual_multiplier",
            "routed_scaling_factor",
            "scale_depth",
            "scale_emb",
        ],
        &[1.0],
        &[],
        "scaled activations have no implementation here",
    ),
    group(
        &["attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "router_logit_softcapping"],
        &[],
        &[],
        "capped or rescaled logits have no implementation here",
    ),
    group(
        &["n_shared_experts", "num_shared_experts", "shared_expert_intermediate_size", "shared_intermediate_size"],
        &[0.0],
        &[],
        "this family has no shared expert",
    ),
    group(
        &["first_k_dense_replace", "mlp_only_layers", "num_dense_layers", "num_nextn_predict_layers"],
        &[0.0],
        &[],
        "in this family all layers are alike",
    ),
    group(
        &["decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq", "moe_layer_frequency"],
        &[1.0],
        &[],
        "in this family all layers are alike",
    ),
    group(&["n_group", "topk_group"], &[0.0, 1.0], &[], "experts in groups have no implementation here"),
    group(
        &["moe_router_activation_func", "score_function", "scoring_func"],
        &[],
        &["softmax"],
        "only the softmax chooses experts here",
    ),
    group(&["partial_rotary_factor", "rotary_pct"], &[1.0], &[], "every element of a head is rotated here"),
    group(&["no_rope_layers"], &[1.0], &[], "every layer rotates its queries and keys here"),
    group(&["no_rope_layer_interval"], &[0.0], &[], "every layer rotates its queries and keys here"),
    group(
        &["alibi", "rope_interleave", "rope_interleaved"],
        &[],
        &[],
        "position embeddings are rotary here and pair the halves of a head",
    ),
    group(
        &["parallel_attn", "use_parallel_residual"],
        &[],
        &[],
        "attention and feed-forward are applied one after the other here",
    ),
    group(&["kv_lora_rank", "q_lora_rank"], &[0.0], &[], "projections of low rank have no implementation here"),
    group(&["hidden_activation"], &[], &["silu", "swish"], "only silu has an implementation here"),
    group(&["swiglu_limit"], &[], &[], "no activation here is clamped"),
];

/// Texts of special tokens, which are read from the files of the tokenizer.
const TOKENS: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// Checks every key that is not `known`; `others` are the keys of the other family that is read here.
pub(super) fn check(
    section: &Section<'_>,
    known: &[&'static str],
    without_meaning: impl Fn(&str) -> bool,
    others: &[&'static str],
    notices: &mut Vec<KeyNotice>,
) -> Result<(), ConfigError> {
    let mut ignored = Vec::new();
    for key in section.keys().filter(|key| !known.contains(key) && !without_meaning(key)) {
        let value = section.get(key).filter(|value| !is_off(value));
        if let Some(value) = value {
            if let Some(reason) = obstacle(section, key, value) {
                return Err(ConfigError::Unimplemented { key: shorten(key), found: shown(value), reason });
            }
            let taken_care_of = TOKENS.contains(&key) || key == SLIDING_WINDOW || has_group(key);
            let meant = closest(key, known).filter(|_| !taken_care_of);
            if others.contains(&key) || meant.is_some() {
                return Err(ConfigError::UnknownKey { key: shorten(key), suggestion: meant });
            }
        }
        ignored.push(format!("`{}`", shorten(key)));
    }
    if !ignored.is_empty() {
        let text = format!("keys without effect are ignored: {}", ignored.join(", "));
        notices.push(KeyNotice { key: "config.json", text });
    }
    Ok(())
}

const SLIDING_WINDOW: &str = "sliding_window";

fn has_group(key: &str) -> bool {
    CHANGES.iter().any(|group| group.keys.contains(&key))
}

/// Whether a value turns a feature off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

/// The effect that a key with this value would have, if it would have one.
fn obstacle(section: &Section<'_>, key: &str, value: &Value) -> Option<&'static str> {
    if key == SLIDING_WINDOW {
        let off = section.get("use_sliding_window") == Some(&Value::Bool(false));
        let context = section.get("max_position_embeddings").and_then(Value::as_u64);
        let whole = value.as_u64().zip(context).is_some_and(|(window, context)| window >= context);
        return (!off && !whole).then_some("attention over a window has no implementation here");
    }
    let group = CHANGES.iter().find(|group| group.keys.contains(&key))?;
    let harmless = |value: &Value| match value {
        Value::String(text) => group.texts.contains(&text.as_str()),
        number => number.as_f64().is_some_and(|x| group.harmless.contains(&x)),
    };
    let all = match value {
        Value::Array(values) => values.iter().all(harmless),
        one => harmless(one),
    };
    (!all).then_some(group.reason)
}

/// A value in words; of a list, its beginning.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => shorten(&value.to_string()),
        other => describe(other),
    }
}
