//! Keys of llama.cpp's list (`llama-arch.cpp`) that the configuration cannot express: the values with which they have
//! no effect, and the effect of other values.
//!
//! llama.cpp reads many of these keys for some architectures only. A file with another value is nevertheless refused,
//! because its author expects an effect that this program does not implement.

use super::value::{Metadata, MetadataValue};

/// A group of keys with the same meaning.
struct KeyGroup {
    keys: &'static [&'static str],
    /// The numbers without effect; a list has no effect if all of its numbers are among them. `true` counts as 1.
    harmless: &'static [f64],
    reason: &'static str,
}

const WITHOUT: &[KeyGroup] = &[
    group(&["attention.causal"], &[1.0], "attention to later tokens has no implementation here"),
    group(&["attention.clamp_kqv"], &[0.0], "no GGUF model here clamps its projections"),
    group(&["attention.sliding_window"], &[0.0], "attention over a window has no implementation here"),
    group(&["attention.max_alibi_bias"], &[0.0], "attention with linear biases has no implementation here"),
    group(
        &["attention.output_scale", "attention.value_scale", "residual_scale", "embedding_scale", "logit_scale"],
        &[0.0, 1.0],
        "scaled activations have no implementation here",
    ),
    group(
        &["attn_logit_softcapping", "router_logit_softcapping", "final_logit_softcapping"],
        &[0.0],
        "capped logits have no implementation here",
    ),
    group(
        &["attention.temperature_length", "attention.temperature_scale"],
        &[0.0],
        "attention with a temperature has no implementation here",
    ),
    group(
        &[
            "attention.q_lora_rank",
            "attention.kv_lora_rank",
            "attention.key_length_mla",
            "attention.value_length_mla",
            "attention.decay_lora_rank",
            "attention.iclr_lora_rank",
            "attention.value_residual_mix_lora_rank",
            "attention.gate_lora_rank",
            "attention.output_lora_rank",
        ],
        &[0.0],
        "projections of low rank have no implementation here",
    ),
    group(
        &[
            "attention.indexer.head_count",
            "attention.indexer.key_length",
            "attention.indexer.top_k",
            "attention.compress_ratios",
            "attention.shared_kv_layers",
            "attention.recurrent_layers",
            "attention.relative_buckets_count",
        ],
        &[0.0],
        "every layer attends to all tokens before, with keys and values of its own",
    ),
    group(&["attention.output_group_count"], &[0.0, 1.0], "every head has one output projection"),
    group(
        &["use_parallel_residual", "swin_norm", "rescale_every_n_layers", "hash_layer_count", "token_shift_count"],
        &[0.0],
        "blocks of another kind have no implementation here",
    ),
    group(
        &["full_attention_interval", "hyper_connection.count"],
        &[0.0, 1.0],
        "blocks of another kind have no implementation here",
    ),
    group(
        &[
            "ssm.conv_kernel",
            "ssm.inner_size",
            "ssm.state_size",
            "ssm.time_step_rank",
            "ssm.group_count",
            "ssm.dt_b_c_rms",
            "wkv.head_size",
            "kda.head_dim",
            "shortconv.l_cache",
            "time_mix_extra_dim",
            "time_decay_extra_dim",
        ],
        &[0.0],
        "recurrent layers have no implementation here",
    ),
    group(
        &["nextn_predict_layers", "n_deepstack_layers", "embedding_length_per_layer_input"],
        &[0.0],
        "layers beside the blocks have no implementation here",
    ),
    group(
        &["expert_shared_count", "expert_shared_feed_forward_length", "expert_chunk_feed_forward_length"],
        &[0.0],
        "no GGUF model here has shared experts",
    ),
    group(
        &["expert_group_count", "expert_group_used_count", "expert_group_scale"],
        &[0.0, 1.0],
        "experts in groups have no implementation here",
    ),
    group(&["experts_per_group", "moe_latent_size"], &[0.0], "experts in groups have no implementation here"),
    group(&["expert_weights_scale"], &[0.0, 1.0], "no GGUF model here scales what its experts give"),
    group(
        &["expert_weights_norm"],
        &[0.0],
        "llama.cpp's olmoe never brings the weights of the chosen experts to a sum of 1; convert the original with --to hf",
    ),
    group(&["expert_gating_func"], &[0.0, 1.0], "only the softmax (1) chooses experts here"),
    group(
        &["moe_every_n_layers", "interleave_moe_layer_step"],
        &[0.0, 1.0],
        "in a GGUF model here all layers are alike",
    ),
    group(&["leading_dense_block_count"], &[0.0], "in a GGUF model here all layers are alike"),
    group(&["swiglu_clamp_exp", "swiglu_clamp_shexp"], &[0.0], "no activation here is clamped"),
    group(&["rope.dimension_sections"], &[0.0], "positions in several dimensions have no implementation here"),
    group(&["rope.scaling.factor", "rope.scale_linear", "rope.scaling.alpha"], &[0.0, 1.0], SCALING),
    group(&["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"], &[1.0], SCALING),
    group(&["rope.scaling.yarn_ext_factor"], &[0.0, -1.0], SCALING),
];

pub(super) const SCALING: &str = "scaled rotary embeddings have no implementation here";

/// Keys that are read for the configuration.
const READ: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "embedding_length_out",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "hidden_activation",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
];

/// Keys without an effect of their own: they modify another key that is off, or are for other uses of a model.
const WITHOUT_EFFECT: &[&str] = &[
    "attention.group_norm_epsilon",
    "attention.group_norm_groups",
    "attention.key_length_swa",
    "attention.layer_norm_epsilon",
    "attention.sliding_window_pattern",
    "attention.value_length_swa",
    "classifier.output_labels",
    "expert_feed_forward_length",
    "pooling_type",
    "rope.dimension_count_swa",
    "rope.freq_base_swa",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",
    "vocab_size",
];

const fn group(keys: &'static [&'static str], harmless: &'static [f64], reason: &'static str) -> KeyGroup {
    KeyGroup { keys, harmless, reason }
}

/// Why a key of the architecture, given without its prefix, cannot be honoured; `None` if it has no effect.
pub(super) fn obstacle(key: &str, value: &MetadataValue) -> Option<&'static str> {
    let group = WITHOUT.iter().find(|group| group.keys.contains(&key))?;
    let harmless = |value: &MetadataValue| value.as_any_number().is_some_and(|x| group.harmless.contains(&x));
    let all = match value {
        MetadataValue::Array(_, values) => values.iter().all(harmless),
        one => harmless(one),
    };
    (!all).then_some(group.reason)
}

/// Whether a key, without its prefix, is in llama.cpp's list and handled here.
pub(super) fn is_known(key: &str) -> bool {
    READ.contains(&key) || WITHOUT_EFFECT.contains(&key) || WITHOUT.iter().any(|group| group.keys.contains(&key))
}

/// Notices about metadata outside the keys of the architecture that is not followed.
pub(super) fn advice(metadata: &Metadata) -> Vec<(&'static str, String)> {
    let mut notices = Vec::new();
    let sampling: Vec<String> = metadata
        .iter()
        .filter_map(|(key, value)| Some(format!("{} {value}", key.strip_prefix("general.sampling.")?)))
        .collect();
    if !sampling.is_empty() {
        let text = format!("advises {}; not followed, give flags of that name if you want it", sampling.join(", "));
        notices.push(("general.sampling", text));
    }
    const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
    if metadata.get(ADD_EOS) == Some(&MetadataValue::Bool(true)) {
        let text = "is true, but no token is put after a text, because generation continues it".to_owned();
        notices.push((ADD_EOS, text));
    }
    const SUPPRESSED: &str = "tokenizer.ggml.suppress_tokens";
    if let Some(ids) = metadata.get(SUPPRESSED).and_then(MetadataValue::as_ids).filter(|ids| !ids.is_empty()) {
        let flags: Vec<String> = ids.iter().take(4).map(|id| format!("--logit-bias {id}=-inf")).collect();
        let more = if ids.len() > 4 { " …" } else { "" };
        notices.push((SUPPRESSED, format!("is not followed; {}{more} does the same", flags.join(" "))));
    }
    notices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::value::ValueType;

    #[test]
    fn every_key_is_listed_once() {
        let groups = WITHOUT.iter().flat_map(|group| group.keys);
        let mut keys: Vec<&str> = READ.iter().chain(WITHOUT_EFFECT).chain(groups).copied().collect();
        keys.sort_unstable();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn lists_are_harmless_if_all_of_them_is() {
        let list = |values: [i32; 3]| MetadataValue::Array(ValueType::I32, values.map(MetadataValue::I32).to_vec());
        assert_eq!(obstacle("rope.dimension_sections", &list([0, 0, 0])), None);
        assert!(obstacle("rope.dimension_sections", &list([0, 1, 0])).is_some());
        assert_eq!(obstacle("expert_weights_norm", &MetadataValue::Bool(false)), None);
        assert!(obstacle("expert_weights_norm", &MetadataValue::Bool(true)).is_some());
        assert!(obstacle("expert_gating_func", &MetadataValue::Text("softmax".into())).is_some());
        assert_eq!(obstacle("pooling_type", &MetadataValue::U32(3)), None);
    }
}
