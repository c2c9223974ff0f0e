//! Hugging Face checkpoints of `OlmoeForCausalLM` and `LlamaForCausalLM`: `config.json` and safetensors, in one file or
//! in shards with an index. Matrices are `[out, in]`.
//!
//! The experts of a layer are tensors of their own in files (`mlp.experts.{e}.gate_proj`), and two fused stacks in the
//! memory of newer transformers (`mlp.experts.gate_up_proj [E, 2I, D]`, `mlp.experts.down_proj [E, D, I]`), which some
//! tools save as they are. Both are read and written.

use crate::layout::Row;

/// How a Hugging Face checkpoint stores the experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experts {
    /// Three matrices for each expert, as in published files.
    Separate,
    /// Two stacks for each layer.
    Fused,
}

/// A tensor whose presence tells that the experts are fused.
pub(crate) const FUSED: &str = "mlp.experts.gate_up_proj";

/// Tensors that old exports carry and that say nothing: the inverse frequencies of the rotary embedding.
pub(crate) fn is_ignored(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}

/// The table.
pub(crate) fn rows(experts: Experts) -> Vec<Row> {
    let mut rows = vec![
        Row::new("embed_tokens.{s}", "model.embed_tokens.{s}"),
        Row::new("layers.{i}.attention_norm.{s}", "model.layers.{i}.input_layernorm.{s}"),
        Row::new("layers.{i}.attention.q_proj.{s}", "model.layers.{i}.self_attn.q_proj.{s}"),
        Row::new("layers.{i}.attention.k_proj.{s}", "model.layers.{i}.self_attn.k_proj.{s}"),
        Row::new("layers.{i}.attention.v_proj.{s}", "model.layers.{i}.self_attn.v_proj.{s}"),
        Row::new("layers.{i}.attention.q_norm.{s}", "model.layers.{i}.self_attn.q_norm.{s}"),
        Row::new("layers.{i}.attention.k_norm.{s}", "model.layers.{i}.self_attn.k_norm.{s}"),
        Row::new("layers.{i}.attention.o_proj.{s}", "model.layers.{i}.self_attn.o_proj.{s}"),
        Row::new("layers.{i}.mlp_norm.{s}", "model.layers.{i}.post_attention_layernorm.{s}"),
        Row::new("layers.{i}.moe.router.{s}", "model.layers.{i}.mlp.gate.{s}"),
        // Dense models (llama).
        Row::new("layers.{i}.mlp.gate_proj.{s}", "model.layers.{i}.mlp.gate_proj.{s}"),
        Row::new("layers.{i}.mlp.up_proj.{s}", "model.layers.{i}.mlp.up_proj.{s}"),
        Row::new("layers.{i}.mlp.down_proj.{s}", "model.layers.{i}.mlp.down_proj.{s}"),
        Row::new("norm.{s}", "model.norm.{s}"),
        Row::new("lm_head.{s}", "lm_head.{s}"),
    ];
    rows.extend(match experts {
        Experts::Separate => [
            Row::new("layers.{i}.moe.experts.gate_proj.{s}", "model.layers.{i}.mlp.experts.{e}.gate_proj.{s}"),
            Row::new("layers.{i}.moe.experts.up_proj.{s}", "model.layers.{i}.mlp.experts.{e}.up_proj.{s}"),
            Row::new("layers.{i}.moe.experts.down_proj.{s}", "model.layers.{i}.mlp.experts.{e}.down_proj.{s}"),
        ],
        Experts::Fused => [
            Row::new("layers.{i}.moe.experts.gate_proj.{s}", "model.layers.{i}.mlp.experts.gate_up_proj"),
            Row::new("layers.{i}.moe.experts.up_proj.{s}", "model.layers.{i}.mlp.experts.gate_up_proj").order(1),
            Row::new("layers.{i}.moe.experts.down_proj.{s}", "model.layers.{i}.mlp.experts.down_proj"),
        ],
    });
    rows
}
