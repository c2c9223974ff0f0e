//! GGUF files of llama.cpp's `olmoe` and `llama` architectures.
//!
//! | module | contents |
//! |---|---|
//! | [`container`] | the header and the data of any GGUF file |
//! | [`value`] | typed metadata |
//! | [`types`] | ggml's tensor types |
//! | `model` | metadata of a model and its configuration |
//! | `keys` | keys of llama.cpp's list that a configuration cannot express |
//! | `parts` | models in several files |
//! | `vocabulary` | metadata of a tokenizer and its vocabulary |
//! | [`mix`] | the encoding of each tensor |
//!
//! Experts are stacked; everything else is as in Hugging Face's files, except that `llama` has the rows of its query
//! and key projections in another order, because llama.cpp rotates neighbouring pairs there.

pub mod container;
mod keys;
pub mod mix;
pub(crate) mod model;
pub(crate) mod parts;
pub mod types;
pub mod value;
pub(crate) mod vocabulary;

use olmoe_model::config::{FeedForward, ModelConfig};

use crate::layout::{Row, Transform};

/// The key of the kind of a file, and its value for an adapter.
pub(crate) const TYPE: &str = "general.type";
pub(crate) const ADAPTER: &str = "adapter";

/// A tensor of models with scaled rotary frequencies (Llama 3.1), which are not implemented.
pub(crate) const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

/// The table for a configuration.
pub(crate) fn rows(config: &ModelConfig) -> Vec<Row> {
    let pairs = match config.feed_forward {
        FeedForward::Moe(_) => Transform::Same,
        FeedForward::Dense(_) => Transform::Interleave(config.head_dim),
    };
    vec![
        Row::new("embed_tokens.{s}", "token_embd.{s}"),
        Row::new("layers.{i}.attention_norm.{s}", "blk.{i}.attn_norm.{s}"),
        Row::new("layers.{i}.attention.q_proj.{s}", "blk.{i}.attn_q.{s}").transform(pairs),
        Row::new("layers.{i}.attention.k_proj.{s}", "blk.{i}.attn_k.{s}").transform(pairs),
        Row::new("layers.{i}.attention.v_proj.{s}", "blk.{i}.attn_v.{s}"),
        Row::new("layers.{i}.attention.q_norm.{s}", "blk.{i}.attn_q_norm.{s}"),
        Row::new("layers.{i}.attention.k_norm.{s}", "blk.{i}.attn_k_norm.{s}"),
        Row::new("layers.{i}.attention.o_proj.{s}", "blk.{i}.attn_output.{s}"),
        Row::new("layers.{i}.mlp_norm.{s}", "blk.{i}.ffn_norm.{s}"),
        Row::new("layers.{i}.moe.router.{s}", "blk.{i}.ffn_gate_inp.{s}"),
        Row::new("layers.{i}.moe.experts.gate_proj.{s}", "blk.{i}.ffn_gate_exps.{s}"),
        Row::new("layers.{i}.moe.experts.up_proj.{s}", "blk.{i}.ffn_up_exps.{s}"),
        Row::new("layers.{i}.moe.experts.down_proj.{s}", "blk.{i}.ffn_down_exps.{s}"),
        Row::new("layers.{i}.mlp.gate_proj.{s}", "blk.{i}.ffn_gate.{s}"),
        Row::new("layers.{i}.mlp.up_proj.{s}", "blk.{i}.ffn_up.{s}"),
        Row::new("layers.{i}.mlp.down_proj.{s}", "blk.{i}.ffn_down.{s}"),
        Row::new("norm.{s}", "output_norm.{s}"),
        Row::new("lm_head.{s}", "output.{s}"),
    ]
}
