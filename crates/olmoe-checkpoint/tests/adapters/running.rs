//! Adapters beside the weights of a model.

use super::references::{ADAPTERS, ROUNDING};
use super::*;

fn with_adapter(path: &Path, adapter: AdapterWeights, keep_blocks: bool) -> Vec<f32> {
    let loading = Loading { adapter: Some(adapter), ..Loading::new(Precision::Fp32, keep_blocks) };
    logits_of(&Checkpoint::open(path).unwrap().load(&loading, &|_| ()).unwrap().model)
}

/// Every adapter that a model can have runs unmerged, from any layout.
#[test]
fn every_adapter_of_peft_runs_beside_the_weights() {
    for (stage, names) in ADAPTERS {
        let tensors = Tensors::of(stage);
        for name in names.iter().filter(|name| **name != "fused_dora") {
            let found = with_adapter(&golden("base"), read(name), false);
            let worst = difference(&found, &tensors.get(&format!("logits.{name}")));
            assert!(worst < ROUNDING, "{name}: {worst}");
        }
    }
    // DoRA of a head is merged only.
    let loading = Loading { adapter: Some(read("fused_dora")), ..Loading::new(Precision::Fp32, false) };
    let text = base().load(&loading, &|_| ()).map(drop).unwrap_err().to_string();
    assert!(text.contains("lm_head"), "{text}");
}

#[test]
fn the_layouts_of_an_adapter_give_equal_bits() {
    for (one, other) in [("separate", "fused"), ("fused_stacks", "swapped")] {
        let [one, other] = [one, other].map(|name| with_adapter(&golden("base"), read(name), false));
        assert_eq!(one, other);
    }
}

#[test]
fn an_adapter_that_changes_nothing_leaves_the_bits_of_the_base() {
    let mut adapter = read("separate");
    adapter.parts.iter_mut().for_each(|part| part.b.fill(0.0));
    assert_eq!(with_adapter(&golden("base"), adapter, false), logits(&golden("base")));
}
