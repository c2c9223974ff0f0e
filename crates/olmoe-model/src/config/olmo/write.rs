//! Writes the `config.yaml` of an unsharded OLMo checkpoint: its `model:` section, which is all that loading one needs.
//!
//! A key that every branch of OLMo has and that decides the function is written out, because the defaults are GPT-2's.
//! Branches reject keys that they do not know: one that some of them lack is written only where its value is not the
//! default of those that have it. The branch with a mixture of experts has no `moe_interleave`; the main branch, which
//! trains dense models, has no key of mixtures at all; the branch with dense layers between mixtures lacks `rope_theta`,
//! `layer_norm_eps`, `embedding_layer_norm` and some others.

use std::fmt::Display;

use super::super::{Activation, FeedForward, InitMethod, Mlp, ModelConfig, Norm, NormKind};
use super::KEYS;

/// The file that is closest to the configuration, without what the format cannot express.
pub(in super::super) fn text(config: &ModelConfig) -> String {
    let mut lines = SectionLines(Vec::new());
    lines.add("d_model", config.d_model);
    lines.add("n_heads", config.n_heads);
    lines.add("n_kv_heads", config.n_kv_heads);
    lines.add("n_layers", config.n_layers);
    feed_forward(config, &mut lines);
    norms(config, &mut lines);
    lines.add("alibi", false);
    lines.add("rope", true);
    // OLMo's key is an integer.
    let theta = config.rope.theta.round();
    if theta != 10_000.0 {
        lines.add("rope_theta", theta);
    }
    lines.add("clip_qkv", optional(config.clip_qkv.map(|clip| clip.limit)));
    for key in ["attention_dropout", "residual_dropout", "embedding_dropout"] {
        lines.add(key, number(0.0));
    }
    lines.add("include_bias", config.attention_bias);
    lines.add("weight_tying", config.tie_embeddings);
    lines.add("scale_logits", config.scale_logits);
    lines.add("max_sequence_length", config.max_sequence_length);
    lines.add("vocab_size", config.vocab_size);
    lines.add("embedding_size", config.embedding_size);
    // These keys cannot be null; an id without a row means that there is no such token.
    let token = |id: Option<u32>| id.map_or(config.embedding_size, |id| id as usize);
    lines.add("eos_token_id", token(config.eos_token_id));
    lines.add("pad_token_id", token(config.pad_token_id));
    let method = match config.init.method {
        InitMethod::Normal => "normal",
        InitMethod::Mitchell => "mitchell",
        InitMethod::FullMegatron => "full_megatron",
        InitMethod::KaimingNormal => "kaiming_normal",
        InitMethod::FanIn => "fan_in",
    };
    lines.add("init_fn", method);
    lines.add("init_std", number(config.init.std));
    lines.add("init_cutoff_factor", optional(config.init.cutoff_factor));
    if let Some(std) = config.init.embedding_std {
        lines.add("emb_init_std", number(std));
    }
    if config.init.scale_embedding {
        lines.add("scale_emb_init", true);
    }
    // In the order of OLMo's own files.
    lines.0.sort_by_key(|(key, _)| KEYS.iter().position(|known| known == key));
    lines.0.iter().fold("model:\n".to_owned(), |text, (key, value)| text + &format!("  {key}: {value}\n"))
}

fn feed_forward(config: &ModelConfig, lines: &mut SectionLines) {
    let (block, mlp) = match &config.feed_forward {
        FeedForward::Dense(mlp) => ("sequential", *mlp),
        // Experts with a capacity have no gate: with swiglu they apply silu alone.
        FeedForward::Moe(moe) if moe.capacity_factor.is_some() && moe.expert.activation == Activation::Silu => {
            ("moe", Mlp { activation: Activation::SwiGlu, ..moe.expert })
        }
        FeedForward::Moe(moe) => ("moe", moe.expert),
    };
    let (activation, hidden) = match mlp.activation {
        Activation::SwiGlu | Activation::Silu => ("swiglu", mlp.width.saturating_mul(2)),
        Activation::Gelu => ("gelu", mlp.width),
        Activation::Relu => ("relu", mlp.width),
    };
    lines.add("block_type", block);
    lines.add("activation_type", activation);
    lines.add("mlp_hidden_size", hidden);
    let Some(moe) = config.moe() else { return };
    lines.add("moe_loss_weight", number(config.auxiliary.load_balancing_weight));
    lines.add("moe_zloss_weight", optional(Some(config.auxiliary.z_weight).filter(|weight| *weight != 0.0)));
    lines.add("moe_num_experts", moe.num_experts);
    lines.add("moe_top_k", moe.top_k);
    lines.add("moe_dropless", moe.capacity_factor.is_none());
    if let Some(factor) = moe.capacity_factor {
        lines.add("moe_capacity_factor", number(factor));
    }
    lines.add("moe_shared_expert", moe.shared_expert.is_some());
    if config.even_layers.is_some() {
        lines.add("moe_interleave", true);
    }
}

fn norms(config: &ModelConfig, lines: &mut SectionLines) {
    let kind = match config.norm.kind {
        NormKind::Rms => "rms",
        NormKind::LayerNorm => "default",
    };
    let all = [Some(config.norm), config.qk_norm, config.embedding_norm];
    lines.add("layer_norm_type", kind);
    lines.add("layer_norm_with_affine", config.norm.affine);
    if config.norm.eps != 1e-5 {
        lines.add("layer_norm_eps", number(config.norm.eps));
    }
    lines.add("bias_for_layer_norm", all.into_iter().flatten().any(|norm: Norm| norm.bias));
    lines.add("attention_layer_norm", config.qk_norm.is_some());
    lines.add("attention_layer_norm_with_affine", config.qk_norm.is_none_or(|norm| norm.affine));
    if config.embedding_norm.is_some() {
        lines.add("embedding_layer_norm", true);
    }
    if config.norm_after {
        lines.add("norm_after", true);
    }
}

/// The lines of the section so far.
struct SectionLines(Vec<(&'static str, String)>);

impl SectionLines {
    /// No key and no value needs quotes: they are names, numbers, `true`, `false` and `null`.
    fn add(&mut self, key: &'static str, value: impl Display) {
        self.0.push((key, value.to_string()));
    }
}

/// The shortest decimal that reads back as the same `f32`, with a point and without an exponent: some YAML readers take
/// `1e-5` for text.
fn number(x: f32) -> String {
    let text = x.to_string();
    if text.contains('.') { text } else { format!("{text}.0") }
}

fn optional(x: Option<f32>) -> String {
    x.map_or("null".to_owned(), number)
}
