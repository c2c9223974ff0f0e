//! The tensors of this project's own checkpoints: canonical names and shapes.

use crate::layout::Row;

/// The table.
pub(crate) fn rows() -> Vec<Row> {
    const NAMES: [&str; 23] = [
        "embed_tokens.{s}",
        "embedding_norm.{s}",
        "layers.{i}.attention_norm.{s}",
        "layers.{i}.attention.q_proj.{s}",
        "layers.{i}.attention.k_proj.{s}",
        "layers.{i}.attention.v_proj.{s}",
        "layers.{i}.attention.q_norm.{s}",
        "layers.{i}.attention.k_norm.{s}",
        "layers.{i}.attention.o_proj.{s}",
        "layers.{i}.mlp_norm.{s}",
        "layers.{i}.moe.router.{s}",
        "layers.{i}.moe.experts.gate_proj.{s}",
        "layers.{i}.moe.experts.up_proj.{s}",
        "layers.{i}.moe.experts.down_proj.{s}",
        "layers.{i}.moe.{s}",
        "layers.{i}.moe.shared_expert.gate_proj.{s}",
        "layers.{i}.moe.shared_expert.up_proj.{s}",
        "layers.{i}.moe.shared_expert.down_proj.{s}",
        "layers.{i}.mlp.gate_proj.{s}",
        "layers.{i}.mlp.up_proj.{s}",
        "layers.{i}.mlp.down_proj.{s}",
        "norm.{s}",
        "lm_head.{s}",
    ];
    NAMES.into_iter().map(|name| Row::new(name, name)).collect()
}
