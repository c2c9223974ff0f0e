//! The layouts of peft and GGUF, written and read.

use olmoe_checkpoint::adapter::{AdapterPart, FileLayout};
use olmoe_model::adapter::Sharing;

use super::references::{ADAPTERS, ROUNDING};
use super::*;

/// peft#3112, vllm#52194: the three layouts of one adapter are one adapter, to the bit.
#[test]
fn the_three_layouts_of_an_adapter_are_equal() {
    for (one, other) in [("separate", "fused"), ("separate_linear", "fused_linear"), ("fused_stacks", "swapped")] {
        assert_eq!(read(one).parts, read(other).parts, "{one} {other}");
    }
    // Gate and up of a stack of peft's own have one A of its rank.
    let stacks = read("fused_stacks");
    let [gate, up] = ["gate", "up"].map(|name| {
        let name = format!("layers.0.moe.experts.{name}_proj");
        stacks.parts.iter().find(|part| part.adapter.module.to_string() == name).unwrap()
    });
    assert_eq!((gate.adapter.rank, &gate.a), (3, &up.a));
}

#[test]
fn what_is_written_is_read_as_it_was() {
    let desk = Desk::new();
    for name in ADAPTERS.iter().flat_map(|(_, names)| *names) {
        let adapter = read(name);
        let dora_of_experts = *name == "separate_dora";
        for layout in [FileLayout::Separate, FileLayout::Fused] {
            let path = desk.path("written");
            let written = adapter.write(&path, layout, true);
            if dora_of_experts && layout == FileLayout::Fused {
                let text = written.unwrap_err().to_string();
                assert!(text.contains("no DoRA of a stack of experts"), "{text}");
                continue;
            }
            written.unwrap();
            let back = AdapterWeights::read(&path, &config()).unwrap();
            assert_eq!(back.replaced, adapter.replaced, "{name} {layout:?}");
            if *name == "separate_patterns" && layout == FileLayout::Fused {
                // Ranks of gate and up that differ keep their numbers.
                let close = |x: &AdapterPart, y: &AdapterPart| (&x.a, x.adapter.rank) == (&y.a, y.adapter.rank);
                assert!(back.parts.iter().zip(&adapter.parts).all(|(x, y)| close(x, y)));
            } else {
                assert_eq!(back.parts, adapter.parts, "{name} {layout:?}");
            }
        }
    }
}

/// What transformers computes with an adapter is computed from a GGUF adapter, too.
#[test]
fn gguf_adapters_keep_the_logits() {
    let desk = Desk::new();
    for (stage, names) in ADAPTERS {
        let tensors = Tensors::of(stage);
        for name in names {
            let path = desk.path("adapter.gguf");
            let written = read(name).write_gguf(&path, true);
            if name.contains("dora") || *name == "separate_kept" || *name == "separate_one_expert" {
                let text = written.unwrap_err().to_string();
                assert!(text.contains("olmoe merge"), "{text}");
                continue;
            }
            written.unwrap();
            let back = AdapterWeights::read(&path, &config()).unwrap();
            let found = logits(&desk.merged(&back, HF));
            let worst = difference(&found, &tensors.get(&format!("logits.{name}")));
            assert!(worst < ROUNDING, "{name}: {worst}");
        }
    }
}

#[test]
fn a_gguf_adapter_has_one_alpha_and_the_rest_in_b() {
    let desk = Desk::new();
    let path = desk.path("a.gguf");
    read("separate").write_gguf(&path, false).unwrap();
    // Equal scales need no change of B.
    assert_eq!(AdapterWeights::read(&path, &config()).unwrap().parts, read("separate").parts);
    let bytes = std::fs::read(&path).unwrap();
    for text in
        ["general.type", "adapter.lora.alpha", "blk.0.ffn_gate_exps.weight.lora_a", "blk.1.ffn_gate_inp.weight.lora_b"]
    {
        assert!(bytes.windows(text.len()).any(|window| window == text.as_bytes()), "{text}");
    }
    let refused = read("separate").write_gguf(&path, false).unwrap_err();
    assert!(matches!(refused, olmoe_checkpoint::CheckpointError::Exists { .. }), "{refused}");
    // It is no model.
    let text = Checkpoint::open(&path).map(drop).unwrap_err().to_string();
    assert!(text.contains("which changes a model"), "{text}");
}

/// A side that all experts share is written for each of them, and is one again when it is read.
#[test]
fn shared_sides_are_copies_in_files_and_shared_again() {
    let desk = Desk::new();
    let separate = read("separate");
    for share in [Sharing::A, Sharing::B, Sharing::Both] {
        let mut shared = separate.clone();
        for part in &mut shared.parts {
            if !part.adapter.module.to_string().contains("experts") {
                continue;
            }
            part.adapter.share = share;
            let [a, b] = share.sides();
            part.a.truncate(if a { part.a.len() / 4 } else { part.a.len() });
            part.b.truncate(if b { part.b.len() / 4 } else { part.b.len() });
        }
        for layout in [FileLayout::Separate, FileLayout::Fused] {
            let path = desk.path("shared");
            shared.write(&path, layout, true).unwrap();
            assert_eq!(AdapterWeights::read(&path, &config()).unwrap().parts, shared.parts, "{share:?} {layout:?}");
        }
        let path = desk.path("shared.gguf");
        shared.write_gguf(&path, true).unwrap();
        let copies = logits(&desk.merged(&AdapterWeights::read(&path, &config()).unwrap(), HF));
        assert_eq!(copies, logits(&desk.merged(&shared, HF)));
    }
}

/// Square matrices do not show the order of the sides: the settings do, or it is an error.
#[test]
fn shapes_that_fit_two_layouts_need_the_version_of_peft() {
    let desk = Desk::new();
    let mut config = config();
    let Some(width) = config.moe().map(|moe| moe.expert.width) else { panic!() };
    assert_eq!((config.d_model, width), (24, 20));
    // Gate and up of this model are a square stack.
    let olmoe_model::config::FeedForward::Moe(moe) = &mut config.feed_forward else { panic!() };
    moe.expert.width = 12;
    let folder = desk.copy("fused_gate_up");
    set(&folder, "target_modules", serde_json::json!([]));
    change(&folder, |tensors| {
        tensors.retain(|(name, ..)| name.contains("experts"));
        for (name, shape, numbers) in tensors {
            if name.contains("lora_B") {
                *shape = vec![24, 12];
                numbers.truncate(24 * 12);
            }
        }
    });
    let read = |version: serde_json::Value| {
        set(&folder, "peft_version", version);
        AdapterWeights::read(&folder, &config)
    };
    let (new, old) = (read("0.21.2".into()).unwrap(), read("0.18.1".into()).unwrap());
    assert_eq!(new.parts[0].adapter.rank, 3);
    assert_ne!(new.parts, old.parts);
    for version in [serde_json::Value::Null, "0.16.0".into()] {
        let text = read(version).map(drop).unwrap_err().to_string();
        assert!(text.contains("peft_version"), "{text}");
    }
}

#[test]
fn folders_of_people_are_not_replaced() {
    let desk = Desk::new();
    let path = desk.path("letters");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("letters.txt"), "dear").unwrap();
    let text = read("separate").write(&path, FileLayout::Separate, true).unwrap_err().to_string();
    assert!(text.contains("letters.txt, which is no file of an adapter"), "{text}");
    let text = read("separate").write(&golden("base"), FileLayout::Separate, true).unwrap_err().to_string();
    assert!(text.contains("no file of an adapter"), "{text}");
    let path = desk.path("written");
    read("separate").write(&path, FileLayout::Separate, false).unwrap();
    let again = read("separate").write(&path, FileLayout::Separate, false).unwrap_err();
    assert!(matches!(again, olmoe_checkpoint::CheckpointError::Exists { .. }), "{again}");
    read("separate").write(&path, FileLayout::Fused, true).unwrap();
}

/// What peft loads only in the stacks' layout is told.
#[test]
fn adapters_of_some_of_the_experts_matrices_are_written_with_a_notice() {
    let desk = Desk::new();
    let notices = |name: &str, layout| read(name).write(&desk.path("written"), layout, true).unwrap();
    for (name, expected) in
        [("fused_gate_up", true), ("separate_one_expert", true), ("separate_patterns", true), ("separate", false)]
    {
        let found = notices(name, FileLayout::Separate);
        assert_eq!(found.iter().any(|text| text.contains("write the fused layout")), expected, "{name}: {found:?}");
        assert!(notices(name, FileLayout::Fused).is_empty(), "{name}");
    }
    assert!(notices("separate_dora", FileLayout::Separate)[0].contains("DoRA of experts"));
    // Ranks that differ between layers have a pattern for each layer's stack.
    notices("separate_patterns", FileLayout::Separate);
    let text = std::fs::read(desk.path("written").join("adapter_config.json")).unwrap();
    let settings: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let of = |layer: usize| &settings["rank_pattern"][format!(r"model\.layers\.{layer}\.mlp\.experts\.gate_up_proj")];
    assert_eq!((of(0), of(1)), (&serde_json::json!(4), &serde_json::json!(3)));
}
