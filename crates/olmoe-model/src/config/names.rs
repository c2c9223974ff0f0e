//! The key of each field in each format, so that an error names the key in the user's file.

/// Key of each validated field in one format.
pub(super) struct Names {
    pub(super) d_model: &'static str,
    pub(super) n_layers: &'static str,
    pub(super) n_heads: &'static str,
    pub(super) n_kv_heads: &'static str,
    pub(super) head_dim: &'static str,
    pub(super) vocab_size: &'static str,
    pub(super) embedding_size: &'static str,
    pub(super) max_sequence_length: &'static str,
    pub(super) mlp_width: &'static str,
    pub(super) even_layers: &'static str,
    pub(super) shared_width: &'static str,
    pub(super) num_experts: &'static str,
    pub(super) top_k: &'static str,
    pub(super) capacity_factor: &'static str,
    pub(super) norm_eps: &'static str,
    pub(super) rope_theta: &'static str,
    pub(super) clip_qkv: &'static str,
    pub(super) init_std: &'static str,
    pub(super) init_cutoff: &'static str,
    pub(super) embedding_std: &'static str,
    pub(super) load_balancing_weight: &'static str,
    pub(super) z_weight: &'static str,
}

/// The fields of [`ModelConfig`](super::ModelConfig).
pub(super) const OWN: Names = Names {
    d_model: "d_model",
    n_layers: "n_layers",
    n_heads: "n_heads",
    n_kv_heads: "n_kv_heads",
    head_dim: "head_dim",
    vocab_size: "vocab_size",
    embedding_size: "embedding_size",
    max_sequence_length: "max_sequence_length",
    mlp_width: "feed_forward width",
    even_layers: "even_layers",
    shared_width: "shared_expert.width",
    num_experts: "num_experts",
    top_k: "top_k",
    capacity_factor: "capacity_factor",
    norm_eps: "eps",
    rope_theta: "rope.theta",
    clip_qkv: "clip_qkv.limit",
    init_std: "init.std",
    init_cutoff: "init.cutoff_factor",
    embedding_std: "init.embedding_std",
    load_balancing_weight: "auxiliary.load_balancing_weight",
    z_weight: "auxiliary.z_weight",
};

/// Hugging Face `config.json`. A field that the format lacks keeps the name of the field; the reader gives it a valid
/// value.
pub(super) const HF: Names = Names {
    d_model: "hidden_size",
    n_layers: "num_hidden_layers",
    n_heads: "num_attention_heads",
    n_kv_heads: "num_key_value_heads",
    head_dim: "head_dim",
    vocab_size: "vocab_size",
    embedding_size: "vocab_size",
    max_sequence_length: "max_position_embeddings",
    mlp_width: "intermediate_size",
    num_experts: "num_experts",
    top_k: "num_experts_per_tok",
    norm_eps: "rms_norm_eps",
    rope_theta: "rope_theta",
    clip_qkv: "clip_qkv",
    init_std: "initializer_range",
    load_balancing_weight: "router_aux_loss_coef",
    ..OWN
};

/// The `model:` section of an OLMo YAML.
pub(super) const OLMO: Names = Names {
    mlp_width: "mlp_hidden_size",
    even_layers: "moe_interleave",
    shared_width: "mlp_hidden_size",
    num_experts: "moe_num_experts",
    top_k: "moe_top_k",
    capacity_factor: "moe_capacity_factor",
    norm_eps: "layer_norm_eps",
    rope_theta: "rope_theta",
    clip_qkv: "clip_qkv",
    init_std: "init_std",
    init_cutoff: "init_cutoff_factor",
    embedding_std: "emb_init_std",
    load_balancing_weight: "moe_loss_weight",
    z_weight: "moe_zloss_weight",
    ..OWN
};

/// The keys of each field in a `config.json` and in the `model:` section of an OLMo YAML; empty where a file has none.
const FIELDS: [(&str, &str, &str); 36] = [
    ("d_model", "hidden_size", "d_model"),
    ("n_layers", "num_hidden_layers", "n_layers"),
    ("n_heads", "num_attention_heads", "n_heads"),
    ("n_kv_heads", "num_key_value_heads", "n_kv_heads"),
    ("head_dim", "head_dim", ""),
    ("vocab_size", "vocab_size", "vocab_size"),
    ("embedding_size", "vocab_size", "embedding_size"),
    ("max_sequence_length", "max_position_embeddings", "max_sequence_length"),
    ("feed_forward", "model_type", "block_type"),
    ("feed_forward.dense.width", "intermediate_size", "mlp_hidden_size"),
    ("feed_forward.dense.activation", "hidden_act", "activation_type"),
    ("feed_forward.moe.num_experts", "num_experts", "moe_num_experts"),
    ("feed_forward.moe.top_k", "num_experts_per_tok", "moe_top_k"),
    ("feed_forward.moe.expert.width", "intermediate_size", "mlp_hidden_size"),
    ("feed_forward.moe.expert.activation", "hidden_act", "activation_type"),
    ("feed_forward.moe.normalize_top_k", "norm_topk_prob", ""),
    ("feed_forward.moe.shared_expert", "", "moe_shared_expert"),
    ("feed_forward.moe.capacity_factor", "", "moe_capacity_factor"),
    ("even_layers", "", "moe_interleave"),
    ("norm.kind", "", "layer_norm_type"),
    ("norm.affine", "", "layer_norm_with_affine"),
    ("norm.bias", "", "bias_for_layer_norm"),
    ("norm.eps", "rms_norm_eps", "layer_norm_eps"),
    ("qk_norm", "", "attention_layer_norm"),
    ("qk_norm.affine", "", "attention_layer_norm_with_affine"),
    ("qk_norm.eps", "rms_norm_eps", "layer_norm_eps"),
    ("embedding_norm", "", "embedding_layer_norm"),
    ("norm_after", "", "norm_after"),
    ("rope.theta", "rope_theta", "rope_theta"),
    ("clip_qkv", "clip_qkv", "clip_qkv"),
    ("attention_bias", "attention_bias", "include_bias"),
    ("mlp_bias", "mlp_bias", "include_bias"),
    ("head_bias", "", "include_bias"),
    ("tie_embeddings", "tie_word_embeddings", "weight_tying"),
    ("scale_logits", "", "scale_logits"),
    ("auxiliary.load_balancing_weight", "router_aux_loss_coef", "moe_loss_weight"),
];

/// A field of [`ModelConfig`](super::ModelConfig) by the names that people know it by: the keys of their files, and what
/// within a key, such as `clip_qkv` (order).
pub fn in_files(field: &str) -> String {
    let (mut name, mut within) = (field, "");
    loop {
        if let Some((_, hf, olmo)) = FIELDS.iter().find(|known| known.0 == name) {
            let keys = match (*hf, *olmo) {
                (hf, "") => format!("`{hf}`"),
                ("", olmo) => format!("`{olmo}`"),
                (hf, olmo) if hf == olmo => format!("`{hf}`"),
                (hf, olmo) => format!("`{hf}` (OLMo: `{olmo}`)"),
            };
            return if within.is_empty() { keys } else { format!("{keys}, {within},") };
        }
        let Some((above, _)) = name.rsplit_once('.') else { return format!("`{field}`") };
        (name, within) = (above, &field[above.len() + 1..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_the_names_of_files() {
        for (field, names) in [
            ("feed_forward.moe.normalize_top_k", "`norm_topk_prob`"),
            ("tie_embeddings", "`tie_word_embeddings` (OLMo: `weight_tying`)"),
            ("clip_qkv.order", "`clip_qkv`, order,"),
            ("feed_forward.moe.shared_expert.width", "`moe_shared_expert`, width,"),
            ("norm_after", "`norm_after`"),
            ("unheard_of", "`unheard_of`"),
        ] {
            assert_eq!(in_files(field), names);
        }
    }
}
