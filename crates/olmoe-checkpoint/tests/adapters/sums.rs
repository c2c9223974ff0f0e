//! Several adapters at once.

use super::references::ROUNDING;
use super::*;

fn sum(list: &[(&str, f32)]) -> Result<AdapterWeights, olmoe_checkpoint::CheckpointError> {
    AdapterWeights::combined(list.iter().map(|(name, factor)| (read(name), *factor)).collect())
}

/// peft#2710: a second adapter counts, of stacks too. The change of every matrix is the sum of the changes.
#[test]
fn two_adapters_change_matrices_by_the_sum_of_their_changes() {
    let desk = Desk::new();
    let matrices =
        |adapter: &AdapterWeights| Tensors(std::fs::read(desk.merged(adapter, HF).join("model.safetensors")).unwrap());
    let before = Tensors(std::fs::read(golden("base/model.safetensors")).unwrap());
    let (one, other) = (matrices(&read("separate")), matrices(&read("fused_own")));
    let both = matrices(&sum(&[("separate", 1.0), ("fused_own", -0.5)]).unwrap());
    for name in before.names() {
        let (w, x, y) = (before.get(&name), one.get(&name), other.get(&name));
        let expected: Vec<f32> = (0..w.len()).map(|at| x[at] - 0.5 * (y[at] - w[at])).collect();
        let worst = difference(&both.get(&name), &expected);
        assert!(worst < 2e-6, "{name}: {worst}");
    }
}

#[test]
fn a_factor_multiplies_the_scale() {
    let desk = Desk::new();
    let base = Tensors::of("separate").get("logits.base");
    assert!(difference(&logits(&desk.merged(&sum(&[("separate", 0.0)]).unwrap(), HF)), &base) < ROUNDING);
    let twice = sum(&[("separate", 0.5), ("separate", 0.5)]).unwrap();
    assert_eq!(twice.parts[0].adapter.rank, 6);
    let found = logits(&desk.merged(&twice, HF));
    let worst = difference(&found, &Tensors::of("separate").get("logits.separate"));
    assert!(worst < ROUNDING, "{worst}");
    // Matrices of either alone, and the embedding.
    let mixed = sum(&[("separate_kept", 1.0), ("fused_down", 2.0)]).unwrap();
    assert_eq!(mixed.parts.len(), 1 + 2 + 2);
    assert!(mixed.parts.windows(2).all(|pair| pair[0].adapter.module != pair[1].adapter.module));
}

/// peft#3608: the sum of two DoRA adapters of a matrix is none.
#[test]
fn two_dora_adapters_of_a_matrix_are_refused() {
    for (one, other) in [("separate_dora", "separate_dora"), ("separate_dora", "separate"), ("separate", "fused_dora")]
    {
        let text = sum(&[(one, 1.0), (other, 1.0)]).unwrap_err().to_string();
        assert!(text.contains("magnitudes belong to one adapter alone") && text.contains("olmoe merge"), "{text}");
    }
    // Of different matrices they are two adapters.
    let mixed = sum(&[("fused_dora", 1.0), ("fused_down", 1.0)]).unwrap();
    assert_eq!(mixed.parts.iter().filter(|part| part.adapter.dora).count(), 2 * 4 + 1);
    let text = AdapterWeights::combined(Vec::new()).unwrap_err().to_string();
    assert!(text.contains("no adapter"), "{text}");
}
