//! Writes a `config.json`: `olmoe` for a mixture of experts, `llama` for a dense model.

use serde_json::{Value, json};

use super::super::error::ConfigError;
use super::super::section::shorten;
use super::super::{FeedForward, ModelConfig};

/// The formats of numbers that a `config.json` names.
const DTYPES: &[&str] = &["bfloat16", "float16", "float32"];

/// The file that is closest to the configuration, without what the format cannot express.
pub(in super::super) fn text(config: &ModelConfig, dtype: &str) -> Result<String, ConfigError> {
    if !DTYPES.contains(&dtype) {
        let allowed = "bfloat16, float16, float32";
        return Err(ConfigError::UnknownName { key: "torch_dtype", found: shorten(dtype), allowed });
    }
    let theta = number(config.rope.theta);
    // Keys whose class default is not null are written even when they are null. The base of the rotary embeddings is
    // where transformers 4 looks for it and where transformers 5 does.
    let mut file = json!({
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "hidden_act": "silu",
        "hidden_size": config.d_model,
        "initializer_range": number(config.init.std),
        "max_position_embeddings": config.max_sequence_length,
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.n_kv_heads,
        "pad_token_id": config.pad_token_id,
        "rms_norm_eps": number(config.norm.eps),
        "rope_parameters": { "rope_theta": theta, "rope_type": "default" },
        "rope_scaling": null,
        "rope_theta": theta,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": true,
        "vocab_size": config.embedding_size,
    });
    let family = match &config.feed_forward {
        FeedForward::Moe(moe) => json!({
            "architectures": ["OlmoeForCausalLM"],
            "clip_qkv": config.clip_qkv.map(|clip| number(clip.limit)),
            "intermediate_size": moe.expert.width,
            "model_type": "olmoe",
            "norm_topk_prob": moe.normalize_top_k,
            "num_experts": moe.num_experts,
            "num_experts_per_tok": moe.top_k,
            "output_router_logits": false,
            "router_aux_loss_coef": number(config.auxiliary.load_balancing_weight),
        }),
        FeedForward::Dense(mlp) => json!({
            "architectures": ["LlamaForCausalLM"],
            "head_dim": config.head_dim,
            "intermediate_size": mlp.width,
            "mlp_bias": config.mlp_bias,
            "model_type": "llama",
        }),
    };
    if let (Value::Object(file), Value::Object(family)) = (&mut file, family) {
        file.extend(family);
    }
    // Keys and numbers can always be written.
    Ok(format!("{file:#}\n"))
}

/// The shortest decimal that reads back as the same `f32`: 1e-5, not 9.999999747378752e-6.
fn number(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
