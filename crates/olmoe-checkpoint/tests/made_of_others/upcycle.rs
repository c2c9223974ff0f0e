use std::collections::BTreeMap;

use olmoe_checkpoint::gguf::mix::Mix;
use olmoe_checkpoint::inference::Loading;
use olmoe_checkpoint::olmo_keys;
use olmoe_checkpoint::upcycle::{Upcycled, Upcycling};
use olmoe_model::init::Noise;
use safetensors::SafeTensors;

use super::*;

/// As the script does it, with fewer experts.
fn plain() -> Upcycling {
    Upcycling {
        num_experts: 8,
        top_k: 2,
        interleave: false,
        normalize_top_k: false,
        shared_expert: false,
        swap_shared_gate: false,
        noise: None,
        router_std: 0.02,
        seed: 1,
    }
}

/// The tensors of an OLMo checkpoint by name, in f32.
fn olmo_tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let named = |name: &str| olmo_keys::decode(name).map_or(name.to_owned(), |key| key.path.join("."));
    let numbers = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors.iter().map(|(name, view)| (named(name), (view.shape().to_vec(), numbers(view.data())))).collect()
}

/// `tools/reference/make_golden_upcycle.py` has the script's formulas.
#[test]
fn it_is_what_the_script_makes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/upcycle");
    let expected = olmo_tensors(&folder.join("expected.safetensors"));
    let dense = Checkpoint::open(&folder.join("dense")).unwrap();
    for swap_shared_gate in [false, true] {
        let upcycling = Upcycling { num_experts: 3, shared_expert: true, swap_shared_gate, ..plain() };
        let desk = Desk::new();
        let mixture = desk.write(&Upcycled::new(&dense, upcycling).unwrap(), OLMO);
        let mut found = olmo_tensors(&mixture.contents().path.join("model.safetensors"));
        let routers: Vec<String> = found.keys().filter(|name| name.contains(".router.")).cloned().collect();
        for name in &routers {
            assert_eq!(found.remove(name).unwrap().0, [3, 16], "{name}");
        }
        assert_eq!(routers.len(), 2);
        for (name, tensor) in &found {
            let swapped = expected.get(&format!("swapped.{name}")).filter(|_| swap_shared_gate);
            assert!(swapped.unwrap_or(&expected[name]) == tensor, "{name}");
        }
        assert_eq!(found.len(), expected.keys().filter(|name| !name.starts_with("swapped.")).count());
    }
}

/// The script copies the tensors of the blocks that it leaves dense under their own names.
#[test]
fn every_second_block_is_what_the_script_makes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/upcycle");
    let expected = olmo_tensors(&folder.join("expected.safetensors"));
    let before = olmo_tensors(&folder.join("dense/model.safetensors"));
    let dense = Checkpoint::open(&folder.join("dense")).unwrap();
    let upcycling = Upcycling { num_experts: 3, shared_expert: true, interleave: true, ..plain() };
    let desk = Desk::new();
    let mixture = desk.write(&Upcycled::new(&dense, upcycling).unwrap(), OLMO);
    assert_eq!(mixture.config().mixture_layers().collect::<Vec<_>>(), [1]);
    let mut found = olmo_tensors(&mixture.contents().path.join("model.safetensors"));
    assert_eq!(found.remove("transformer.blocks.1.ffn.router.layer.weight").unwrap().0, [3, 16]);
    for (name, tensor) in &found {
        let of_mixture = name.starts_with("transformer.blocks.1.");
        assert!(tensor == if of_mixture { &expected[name] } else { &before[name] }, "{name}");
    }
    // A block has six tensors beside its MLP; that has two, three stacks and a shared expert of three.
    assert_eq!(found.len(), 3 + (6 + 2) + (6 + 3 + 3));
}

#[test]
fn probabilities_that_sum_to_one_give_the_dense_function() {
    let desk = Desk::new();
    let dense = desk.write(&Random::new(dense(), 2, DType::F32), OLMO);
    let expected = logits(&dense);
    for (num_experts, top_k, normalize_top_k, interleave, target) in [
        (8, 2, true, false, HF),
        (5, 1, true, false, FUSED),
        (8, 7, true, false, HF),
        (4, 4, false, false, OLMO),
        (4, 4, false, true, OLMO),
        (3, 3, false, false, GGUF),
        (1, 1, false, false, HF),
    ] {
        // Routers that prefer some experts clearly.
        let upcycling = Upcycling { num_experts, top_k, normalize_top_k, interleave, router_std: 0.5, ..plain() };
        let mixture = desk.write(&Upcycled::new(&dense, upcycling).unwrap(), target);
        let error = apart(&logits(&mixture), &expected);
        assert!(error < 5e-6, "{top_k} of {num_experts}: {error}");
    }
}

#[test]
fn otherwise_a_layer_adds_the_chosen_share_of_it() {
    let desk = Desk::new();
    let scaled = |factor: f32, layers: &'static str| {
        let edited = Edited(Random::new(dense(), 2, DType::F32), move |name: &str, _, numbers: &mut [f32]| {
            if name.contains("down_proj") && name.starts_with(layers) {
                numbers.iter_mut().for_each(|x| *x *= factor);
            }
        });
        desk.write(&edited, OLMO)
    };
    let dense = scaled(1.0, "");
    let expected = logits(&dense);
    // An even router gives every expert 1/8.
    for (top_k, normalize_top_k, shared_expert, target, factor) in [
        (2, false, false, HF, 0.25),
        (2, false, false, OLMO, 0.25),
        (4, false, false, GGUF, 0.5),
        (2, false, true, OLMO, 1.25),
        (8, false, true, OLMO, 2.0),
    ] {
        let upcycling = Upcycling { top_k, normalize_top_k, shared_expert, router_std: 0.0, ..plain() };
        let mixture = logits(&desk.write(&Upcycled::new(&dense, upcycling).unwrap(), target));
        let error = apart(&mixture, &logits(&scaled(factor, "")));
        assert!(error < 5e-6, "{factor}: {error}");
        assert!(apart(&mixture, &expected) > 1e-2, "{factor} makes a difference");
    }
    // Of three layers, the second is a mixture.
    let interleaved = Upcycling { top_k: 2, interleave: true, router_std: 0.0, ..plain() };
    let interleaved = logits(&desk.write(&Upcycled::new(&dense, interleaved).unwrap(), OLMO));
    assert!(apart(&interleaved, &logits(&scaled(0.25, "layers.1."))) < 5e-6);
    assert!(apart(&interleaved, &expected) > 1e-2);
    // The script's mistake does, too: silu is on the other factor.
    let swapped = Upcycling { shared_expert: true, swap_shared_gate: true, router_std: 0.0, ..plain() };
    let swapped = logits(&desk.write(&Upcycled::new(&dense, swapped).unwrap(), OLMO));
    assert!(apart(&swapped, &logits(&scaled(1.25, ""))) > 1e-2);
}

#[test]
fn from_and_to_all_formats_with_the_same_bits() {
    let desk = Desk::new();
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        let source = desk.write(&Random::new(dense(), 3, dtype), OLMO);
        let upcycling = Upcycling { num_experts: 3, noise: Some(Noise { share: 0.5, std: 0.02 }), ..plain() };
        let mixture = Upcycled::new(&source, upcycling.clone()).unwrap();
        for target in [HF, FUSED, OLMO] {
            let written = desk.write(&mixture, target);
            assert_same(&mixture, &written);
            // Again, and from the file that was just read.
            assert_same(&written, &desk.write(&Upcycled::new(&source, upcycling.clone()).unwrap(), target));
        }
        // GGUF has vectors and routers in f32; the way back shows that they are the same numbers.
        assert_same(&mixture, &desk.write(&desk.write(&mixture, GGUF), HF));

        let source = desk.write(&Random::new(llama(), 4, dtype), HF);
        let as_gguf = desk.write(&source, GGUF);
        let both = [&source, &as_gguf].map(|dense| {
            let mixture = Upcycled::new(dense, upcycling.clone()).unwrap();
            std::fs::read(desk.try_write(&mixture, OLMO).unwrap().join("model.safetensors")).unwrap()
        });
        assert!(both[0] == both[1], "{dtype:?}");
    }
    // Without query and key norms only OLMo has a place for a mixture.
    let mixture = desk.write(&Random::new(llama(), 4, DType::F32), HF);
    let mixture = Upcycled::new(&mixture, plain()).unwrap();
    for target in [HF, GGUF] {
        let error = desk.try_write(&mixture, target).unwrap_err().to_string();
        assert!(error.contains("attention_layer_norm") && error.to_lowercase().contains("olmo"), "{error}");
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/checkpoints/llama-bf16.gguf");
    let golden = Checkpoint::open(&golden).unwrap();
    let all = Upcycling { num_experts: 4, top_k: 4, ..plain() };
    let mixture = desk.write(&Upcycled::new(&golden, all).unwrap(), OLMO);
    assert!(apart(&logits_of(&mixture, 47), &logits_of(&golden, 47)) < 5e-6);
}

fn logits_of(checkpoint: &Checkpoint, rows: u32) -> Vec<f32> {
    let ids: Vec<u32> = (0..20).map(|i| i * 7 % rows).collect();
    let model = checkpoint.load(&Loading::new(Precision::Fp32, false), &|_| {}).unwrap().model;
    let batch = Batch::uniform(&ids, ids.len()).unwrap();
    model.logits(&batch, &mut Activations::new(Keep::Nothing)).unwrap().to_vec()
}

/// Mean and standard deviation.
fn moments(numbers: &[f32]) -> (f64, f64) {
    let mean = |power: i32| numbers.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / numbers.len() as f64;
    (mean(1), (mean(2) - mean(1).powi(2)).sqrt())
}

#[test]
fn noise_and_routers_are_distributed_as_asked() {
    let source = Random::new(ModelConfig { d_model: 256, head_dim: 64, n_layers: 2, ..dense() }, 5, DType::F32);
    let dense_at = |name: &str| source.parameters().iter().position(|spec| spec.name == name).unwrap();
    let noise = Noise { share: 0.3, std: 0.05 };
    let upcycling = Upcycling { num_experts: 16, noise: Some(noise), router_std: 0.01, ..plain() };
    let mixture = Upcycled::new(&source, upcycling.clone()).unwrap();
    let other_seed = Upcycled::new(&source, Upcycling { seed: 2, ..upcycling }).unwrap();
    let (mut replaced, mut all, mut routers) = (Vec::new(), 0, Vec::new());
    let mut masks: BTreeMap<Vec<bool>, String> = BTreeMap::new();
    for (name, slab, parameter) in slabs(&mixture) {
        let found = numbers(&mixture, parameter, slab);
        let same_with_other_seed = found == numbers(&other_seed, parameter, slab);
        if name.contains(".router.") {
            assert!(!same_with_other_seed);
            routers.extend(found);
        } else if name.contains(".experts.") {
            assert!(!same_with_other_seed);
            let before = numbers(&source, dense_at(&name.replace("moe.experts", "mlp")), 0);
            let mask: Vec<bool> = found.iter().zip(&before).map(|(found, before)| found != before).collect();
            replaced.extend(found.iter().zip(&mask).filter(|entry| *entry.1).map(|entry| *entry.0));
            all += found.len();
            assert_eq!(masks.insert(mask, name.clone()), None, "{name} {slab}: noise of its own");
        } else {
            assert!(same_with_other_seed && found == numbers(&source, dense_at(&name), 0), "{name}");
        }
    }
    assert_eq!(all, 2 * 3 * 16 * 96 * 256);
    let (n, share) = (replaced.len() as f64, replaced.len() as f64 / all as f64);
    assert!((share - 0.3).abs() < 5.0 * (0.3 * 0.7 / all as f64).sqrt(), "{share}");
    let (mean, deviation) = moments(&replaced);
    assert!(
        mean.abs() < 5.0 * 0.05 / n.sqrt() && (deviation / 0.05 - 1.0).abs() < 5.0 / (2.0 * n).sqrt(),
        "{deviation}"
    );
    let (mean, deviation) = moments(&routers);
    let n = routers.len() as f64;
    assert!(
        mean.abs() < 5.0 * 0.01 / n.sqrt() && (deviation / 0.01 - 1.0).abs() < 5.0 / (2.0 * n).sqrt(),
        "{deviation}"
    );
}

#[test]
fn what_cannot_be_upcycled_is_refused() {
    let desk = Desk::new();
    let small = Random::new(dense(), 6, DType::F32);
    let mut mixture = plain();
    mixture.num_experts = 4;
    let mixture = desk.write(&Upcycled::new(&small, mixture).unwrap(), OLMO);
    let quantised = desk.write(&Random::new(llama(), 6, DType::F32), Target::Gguf { mix: Some(Mix::Q8_0) });
    let biased = Random::new(ModelConfig { mlp_bias: true, ..dense() }, 6, DType::F32);
    let mut ungated = dense();
    ungated.feed_forward = FeedForward::Dense(Mlp { width: 96, activation: Activation::Gelu });
    let ungated = Random::new(ungated, 6, DType::F32);
    let single = Random::new(ModelConfig { n_layers: 1, ..dense() }, 6, DType::F32);
    let noise = |share, std| Upcycling { noise: Some(Noise { share, std }), ..plain() };
    let swap = Upcycling { shared_expert: true, swap_shared_gate: true, ..plain() };
    #[rustfmt::skip]
    let cases: [(&dyn Weights, Upcycling, &str); 14] = [
        (&mixture, plain(), "a mixture of 4 experts already"),
        (&quantised, plain(), "quantised (q8_0); upcycle the original"),
        (&biased, plain(), "biases, which experts do not have"),
        (&small, Upcycling { top_k: 9, ..plain() }, "`top_k` (9) is greater than `num_experts` (8)"),
        (&small, Upcycling { top_k: 0, ..plain() }, "`top_k` is 0"),
        (&small, Upcycling { num_experts: 0, ..plain() }, "`num_experts` is 0"),
        (&small, Upcycling { num_experts: usize::MAX, ..plain() }, "the largest size supported is 65536"),
        (&small, Upcycling { router_std: f64::NAN, ..plain() }, "deviation of the router is NaN"),
        (&small, noise(1.5, 0.02), "share of noise is 1.5, expected a number from 0 to 1"),
        (&small, noise(f64::NAN, 0.02), "share of noise is NaN"),
        (&small, noise(0.5, -1.0), "deviation of the noise is -1"),
        (&small, Upcycling { shared_expert: false, ..swap.clone() }, "there is no shared expert"),
        (&ungated, swap, "its MLPs have no gate"),
        (&single, Upcycling { interleave: true, ..plain() }, "`even_layers` is set, but there is only one layer"),
    ];
    for (source, upcycling, expected) in cases {
        let error = Upcycled::new(source, upcycling).map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let wide = ModelConfig {
        feed_forward: FeedForward::Dense(Mlp { width: 1 << 20, activation: Activation::SwiGlu }),
        n_layers: 4096,
        ..dense()
    };
    let wide = Random::new(wide, 6, DType::F32);
    let error = Upcycled::new(&wide, Upcycling { num_experts: 65536, ..plain() }).map(drop).unwrap_err().to_string();
    assert!(error.contains("parameters"), "{error}");
    // A dense model whose matrices do not have the width of its configuration is none.
    let path = desk.try_write(&Random::new(llama(), 6, DType::F32), HF).unwrap();
    let text = std::fs::read_to_string(path.join("config.json")).unwrap();
    std::fs::write(path.join("config.json"), text.replace("\"intermediate_size\": 96", "\"intermediate_size\": 95"))
        .unwrap();
    let error = Checkpoint::open(&path).map(drop).unwrap_err().to_string();
    assert!(error.contains("mlp.gate_proj.weight") && error.contains("[96, 64], expected [95, 64]"), "{error}");
    // What is not gated is upcycled all the same, where the format has it.
    let all = Upcycling { num_experts: 4, top_k: 4, ..plain() };
    let ungated = desk.write(&ungated, OLMO);
    let mixture = desk.write(&Upcycled::new(&ungated, all).unwrap(), OLMO);
    assert!(apart(&logits(&mixture), &logits(&ungated)) < 5e-6);
}
