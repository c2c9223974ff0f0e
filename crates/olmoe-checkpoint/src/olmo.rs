//! Unsharded checkpoints of OLMo's trainer: `config.yaml` beside `model.safetensors` or `model.pt`.
//!
//! Query, key and value projections are one matrix. A dropless mixture-of-experts layer stacks the rows of its experts,
//! and its down projections are transposed (`w2 [E·I, D]`); one with a capacity has `[E, D, I]` and `[E, I, D]`. A
//! dense MLP has `ff_proj`, whose rows are those of `up` and then of `gate`, and `ff_out`. A model that alternates
//! dense and mixture-of-experts blocks (`moe_interleave`) has both.

use olmoe_model::config::ModelConfig;
use olmoe_model::parameters::ParameterSpec;

use crate::layout::{Layout, Row, Transform};

/// Prefixes that wrappers of a training run add to names.
const WRAPPERS: [&str; 3] = ["_fsdp_wrapped_module.", "_orig_mod.", "module."];

/// A tensor whose presence means that query, key and value have separate matrices (`block_type: llama`).
pub(crate) const SEPARATE_QUERY: &str = "transformer.blocks.0.q_proj.weight";

/// The table for a configuration; `joined` query, key and value are one matrix.
pub(crate) fn rows(config: &ModelConfig, joined: bool) -> Vec<Row> {
    let mut rows = vec![
        Row::new("embed_tokens.{s}", "transformer.wte.{s}"),
        Row::new("embedding_norm.{s}", "transformer.emb_norm.{s}"),
        Row::new("layers.{i}.attention_norm.{s}", "transformer.blocks.{i}.attn_norm.{s}"),
        Row::new("layers.{i}.attention.q_norm.{s}", "transformer.blocks.{i}.q_norm.{s}"),
        Row::new("layers.{i}.attention.k_norm.{s}", "transformer.blocks.{i}.k_norm.{s}"),
        Row::new("layers.{i}.attention.o_proj.{s}", "transformer.blocks.{i}.attn_out.{s}"),
        Row::new("layers.{i}.mlp_norm.{s}", "transformer.blocks.{i}.ff_norm.{s}"),
        Row::new("layers.{i}.moe.router.{s}", "transformer.blocks.{i}.ffn.router.layer.{s}"),
        Row::new("layers.{i}.moe.bias", "transformer.blocks.{i}.ffn.experts.bias"),
        Row::new(
            "layers.{i}.moe.shared_expert.gate_proj.{s}",
            "transformer.blocks.{i}.ffn.shared_expert.gate_proj.{s}",
        ),
        Row::new("layers.{i}.moe.shared_expert.up_proj.{s}", "transformer.blocks.{i}.ffn.shared_expert.up_proj.{s}"),
        Row::new(
            "layers.{i}.moe.shared_expert.down_proj.{s}",
            "transformer.blocks.{i}.ffn.shared_expert.down_proj.{s}",
        ),
        Row::new("layers.{i}.mlp.down_proj.{s}", "transformer.blocks.{i}.ff_out.{s}"),
        Row::new("norm.{s}", "transformer.ln_f.{s}"),
        Row::new("lm_head.{s}", "transformer.ff_out.{s}"),
    ];
    const QUERY_KEY_VALUE: [(&str, &str); 3] = [
        ("layers.{i}.attention.q_proj.{s}", "transformer.blocks.{i}.q_proj.{s}"),
        ("layers.{i}.attention.k_proj.{s}", "transformer.blocks.{i}.k_proj.{s}"),
        ("layers.{i}.attention.v_proj.{s}", "transformer.blocks.{i}.v_proj.{s}"),
    ];
    for (order, (canonical, separate)) in (0..).zip(QUERY_KEY_VALUE) {
        let file = if joined { "transformer.blocks.{i}.att_proj.{s}" } else { separate };
        rows.push(Row::new(canonical, file).order(order));
    }
    let up = Row::new("layers.{i}.mlp.up_proj.{s}", "transformer.blocks.{i}.ff_proj.{s}");
    rows.extend([up, Row::new("layers.{i}.mlp.gate_proj.{s}", "transformer.blocks.{i}.ff_proj.{s}").order(1)]);
    let Some(moe) = config.moe() else { return rows };
    const GATE: &str = "layers.{i}.moe.experts.gate_proj.{s}";
    const UP: &str = "layers.{i}.moe.experts.up_proj.{s}";
    const W1: &str = "transformer.blocks.{i}.ffn.experts.mlp.w1";
    let down = Row::new("layers.{i}.moe.experts.down_proj.{s}", "transformer.blocks.{i}.ffn.experts.mlp.w2");
    if moe.capacity_factor.is_some() {
        rows.extend([Row::new(UP, W1).transform(Transform::Transpose), down.transform(Transform::Transpose)]);
    } else {
        rows.push(down.transform(Transform::Transpose).flat());
        if moe.expert.activation.is_gated() {
            rows.push(Row::new(GATE, W1).flat());
            rows.push(Row::new(UP, "transformer.blocks.{i}.ffn.experts.mlp.v1").flat());
        } else {
            rows.push(Row::new(UP, W1).flat());
        }
    }
    rows
}

/// The name of OLMo's tensor that each parameter is a part of, or the whole; one without a place there has its own.
pub fn tensor_names(config: &ModelConfig, specs: &[ParameterSpec]) -> Vec<String> {
    let mut names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    if let Ok(layout) = Layout::new(&rows(config, true), specs) {
        for tensor in layout.tensors {
            for piece in tensor.pieces {
                names[piece.parameter].clone_from(&tensor.name);
            }
        }
    }
    names
}

/// The number of blocks in a group, from names of the form `block_groups.{g}.{j}`; every group but the last is full.
pub(crate) fn group_size<'n>(names: impl Iterator<Item = &'n str>) -> usize {
    names.filter_map(|name| Some(split_group(&without_wrappers(name))?.1 + 1)).max().unwrap_or(1)
}

/// Group, block in the group, and the rest of the name.
fn split_group(name: &str) -> Option<(usize, usize, &str)> {
    let mut parts = name.strip_prefix("transformer.block_groups.")?.splitn(3, '.');
    let mut number = || parts.next()?.parse::<u16>().ok().map(usize::from);
    Some((number()?, number()?, parts.next()?))
}

fn without_wrappers(name: &str) -> String {
    WRAPPERS.iter().fold(name.to_owned(), |name, wrapper| name.replace(wrapper, ""))
}

/// The plain name of a tensor: without wrappers, and with its block counted from the first
/// (`block_groups.{g}.{j}` is block `g · group_size + j`).
pub(crate) fn plain_name(name: &str, group_size: usize) -> String {
    let name = without_wrappers(name);
    match split_group(&name) {
        Some((group, block, rest)) => format!("transformer.blocks.{}.{rest}", group * group_size + block),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_and_groups_are_taken_off() {
        let plain = |name| plain_name(name, 4);
        assert_eq!(plain("_fsdp_wrapped_module.transformer.wte.weight"), "transformer.wte.weight");
        assert_eq!(
            plain("transformer.block_groups.2._fsdp_wrapped_module.3.ffn.experts.mlp.w1"),
            "transformer.blocks.11.ffn.experts.mlp.w1"
        );
        let names = ["transformer.block_groups.0.0.a", "transformer.block_groups.0._orig_mod.1.a", "transformer.wte"];
        assert_eq!((group_size(names.into_iter()), group_size(["a"].into_iter())), (2, 1));
        assert_eq!(plain("transformer.block_groups.x.weight"), "transformer.block_groups.x.weight");
    }
}
