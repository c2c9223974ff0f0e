//! peft's files, and what transformers computes with them.

use super::*;

/// Every adapter of the goldens, by the file with its logits.
pub(super) const ADAPTERS: [(&str, &[&str]); 3] = [
    (
        "separate",
        &[
            "separate",
            "separate_rslora",
            "separate_dora",
            "separate_patterns",
            "separate_kept",
            "separate_linear",
            "separate_one_expert",
        ],
    ),
    ("fused", &["fused", "fused_linear", "fused_own", "fused_stacks", "fused_gate_up", "fused_down", "fused_dora"]),
    ("swapped", &["swapped"]),
];

/// What peft and transformers add in another order. The logits reach 4.
pub(super) const ROUNDING: f32 = 1e-5;

#[test]
fn the_base_has_the_logits_of_transformers() {
    let tensors = Tensors::of("separate");
    assert!(difference(&logits(&golden("base")), &tensors.get("logits.base")) < ROUNDING);
}

/// vllm#6909, vllm#41384, peft#3112, unsloth-zoo#828: every layout, scale and magnitude has its effect. The dimensions are
/// those of no square matrix.
#[test]
fn every_adapter_of_peft_merged_has_the_logits_of_transformers() {
    let desk = Desk::new();
    for (stage, names) in ADAPTERS {
        let tensors = Tensors::of(stage);
        for name in names {
            let found = logits(&desk.merged(&read(name), HF));
            let worst = difference(&found, &tensors.get(&format!("logits.{name}")));
            assert!(worst < ROUNDING, "{name}: {worst}");
        }
    }
}

/// unsloth-zoo#828, peft#3608: the matrices that merge_and_unload makes.
#[test]
fn merged_matrices_are_those_of_peft() {
    let desk = Desk::new();
    let mut compared = 0;
    for (stage, name) in
        [("separate", "separate"), ("separate", "separate_dora"), ("fused", "fused_own"), ("fused", "fused_dora")]
    {
        let experts = if stage == "fused" { Experts::Fused } else { Experts::Separate };
        let path = desk.merged(&read(name), Target::HuggingFace { experts, dtype: None });
        let ours = Tensors(std::fs::read(path.join("model.safetensors")).unwrap());
        let theirs = Tensors::of(stage);
        let prefix = format!("merged.{name}.");
        for key in theirs.names().iter().filter(|key| key.starts_with(&prefix)) {
            let (found, expected) = (ours.get(&key[prefix.len()..]), theirs.get(key));
            assert!(difference(&found, &expected) < 2e-6, "{key}: {}", difference(&found, &expected));
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * 2 * (4 + 1 + 12) + 2 * (4 + 1 + 2) + 2 * 4 + 1);
}

/// Automodel#3284, #1755: what the tensors are is what the settings say.
#[test]
fn ranks_scales_and_kinds_are_those_of_the_settings() {
    let found = read("separate_patterns");
    let of = |name: &str| {
        let part = found.parts.iter().find(|part| part.adapter.module.to_string() == name).unwrap();
        (part.adapter.rank, part.adapter.scale)
    };
    assert_eq!(of("layers.0.attention.q_proj"), (3, (5.0f64 / 3.0) as f32));
    assert_eq!(of("layers.0.attention.o_proj"), (2, 0.5));
    assert_eq!(of("layers.1.moe.experts.up_proj"), (1, 5.0));
    assert_eq!(of("layers.0.moe.experts.up_proj"), (2, 2.5));
    assert_eq!(of("layers.0.moe.experts.down_proj"), (2, 3.5));
    assert_eq!(of("layers.1.moe.router"), (2, 2.5));
    assert_eq!(found.base.as_deref(), Some("base"));
    // rsLoRA: 3/√4.
    assert!(read("separate_rslora").parts.iter().all(|part| part.adapter.scale == 1.5));
    assert!(read("separate_dora").parts.iter().all(|part| part.adapter.dora && part.magnitude.is_some()));
    let kept = read("separate_kept");
    let replaced: Vec<&str> = kept
        .replaced
        .iter()
        .map(|one| olmoe_model::parameters::parameters(&config())[one.parameter].name.clone().leak() as &str)
        .collect();
    assert!(
        replaced.contains(&"lm_head.weight") && replaced.contains(&"layers.1.attention.q_norm.weight"),
        "{replaced:?}"
    );
    assert_eq!(replaced.len(), 2 * 4 + 1 + 2);
    let one = read("separate_one_expert");
    let experts = &one.parts[0];
    assert_eq!(
        experts.a.chunks_exact(2 * 20).map(|a| a.iter().all(|x| *x == 0.0)).collect::<Vec<_>>(),
        [true, true, false, true]
    );
}
