//! Training some parameters of a model: the same gradients as when all are trained, in less memory, with a base of
//! numbers or of quantised blocks.

use std::convert::Infallible;

use olmoe_model::batch::Batch;
use olmoe_model::config::{Activation, FeedForward, Mlp, ModelConfig};
use olmoe_model::model::{Activations, Gradients, Held, Keep, Model, ModelError, Objective, Precision};
use olmoe_model::parameters::{MlpMatrix, ModulePart, ParameterKind, ParameterSpec, Projection};
use olmoe_tensor::encoding::Encoding;
use olmoe_tensor::quant::{BlockFormat, dequantize, quantize};
use olmoe_tensor::threads::set_num_threads;

const LAYERS: usize = 3;

fn mixture() -> ModelConfig {
    let json = r#"{
        "model_type": "olmoe", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 10, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2,
        "max_position_embeddings": 40, "pad_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2
    }"#;
    let mut config = ModelConfig::from_hf_json(json).expect("a good configuration").config;
    (config.auxiliary.load_balancing_weight, config.auxiliary.z_weight) = (0.1, 0.01);
    config
}

/// Mixtures with norms before and after, with a shared expert; a dense model with biases whose head is the embedding.
fn configs() -> Vec<(&'static str, ModelConfig)> {
    let plain = mixture();
    let mlp = Mlp { width: 12, activation: Activation::SwiGlu };
    let mut shared = mixture();
    if let FeedForward::Moe(moe) = &mut shared.feed_forward {
        moe.shared_expert = Some(mlp);
    }
    (shared.norm_after, shared.embedding_norm) = (true, Some(shared.norm));
    let mut dense = ModelConfig { feed_forward: FeedForward::Dense(mlp), tie_embeddings: true, ..mixture() };
    (dense.attention_bias, dense.mlp_bias) = (true, true);
    vec![("mixture", plain), ("norms after, shared expert", shared), ("dense, tied", dense)]
}

type Choice = (&'static str, fn(&ParameterSpec) -> bool);

/// What may be trained alone.
const CHOICES: [Choice; 10] = [
    ("routers", |spec| spec.kind == ParameterKind::Router),
    ("the experts of layer 1", |spec| spec.kind == ParameterKind::Expert && spec.module.layer == Some(1)),
    ("nothing below layer 2", |spec| spec.module.layer == Some(2) || spec.module.part == ModulePart::FinalNorm),
    ("attention of layer 1", |spec| {
        spec.module.layer == Some(1) && matches!(spec.module.part, ModulePart::Attention(_))
    }),
    ("an output projection", |spec| {
        spec.module.layer == Some(0) && spec.module.part == ModulePart::Attention(Projection::Output)
    }),
    ("down projections", |spec| matches!(spec.module.part, ModulePart::Mlp(_, MlpMatrix::Down))),
    ("norms", |spec| spec.kind == ParameterKind::Norm),
    ("biases", |spec| spec.kind == ParameterKind::Bias),
    ("the head and the embedding", |spec| matches!(spec.module.part, ModulePart::Head | ModulePart::Embedding)),
    ("the final norm", |spec| spec.module.part == ModulePart::FinalNorm),
];

fn batch() -> Batch {
    let ids: Vec<u32> = (0..40).map(|i| (i * 17 + 3) % 61).collect();
    Batch::uniform(&ids, 20).expect("two sequences")
}

/// Gradients and log-probabilities of a step.
fn step(model: &Model, keep: Keep) -> (Gradients, Vec<f32>) {
    let batch = batch();
    let (targets, count) = batch.next_tokens();
    let mut activations = Activations::new(keep);
    model.forward(&batch, &mut activations).expect("a pass");
    let dlogp_t = vec![-1.0 / count as f32; targets.len()];
    let objective = Objective { targets: &targets, dlogp_t: &dlogp_t, z: 0.01, auxiliary: 1.0, statistics: false };
    let mut gradients = model.gradients();
    let (log_probs, _) = model.backward(&batch, &mut activations, &objective, &mut gradients).expect("the way back");
    (gradients, log_probs.logp_t.to_vec())
}

#[test]
fn what_is_trained_has_the_gradients_of_the_full_model() {
    for (what, config) in configs() {
        for precision in [Precision::Fp32, Precision::AmpBf16] {
            let mut full = Model::new(config.clone(), precision, Held::Trained).expect("a model");
            full.initialize(7);
            let (expected, expected_logp) = step(&full, Keep::Everything);
            for (trained, choose) in CHOICES {
                let held = Held::for_training(&config, choose);
                let bytes = config.parameter_bytes(precision, &held, &[]);
                let mut model = Model::with(config.clone(), precision, held, &[]).expect("a model");
                model.initialize(7);
                assert_eq!(model.bytes() as u64, bytes, "{what}, {trained}");
                for keep in [Keep::Everything, Keep::FeedForward, Keep::BlockInputs] {
                    let (gradients, logp) = step(&model, keep);
                    assert_eq!(logp, expected_logp, "{what}, {trained}");
                    for (id, spec) in model.parameters().iter().enumerate() {
                        let name = format!("{what}, {precision:?}, {keep:?}, {trained}: {}", spec.name);
                        match gradients.get(id) {
                            Some(found) => assert!(found[..] == expected.get(id).expect("all")[..], "{name}"),
                            None => assert!(!choose(spec), "{name}"),
                        }
                        assert_eq!(gradients.get(id).is_some(), choose(spec), "{name}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_trained_takes_less() {
    let config = ModelConfig { n_layers: LAYERS, ..ModelConfig::release() };
    let full = vec![Held::Trained; 3 + 12 * LAYERS];
    let bytes = |held: &[Held]| config.parameter_bytes(Precision::AmpBf16, held, &[]);
    let number = |held: &[Held], of: Held| held.iter().filter(|held| **held == of).count();
    // Above the only trained layer a matrix is packed twice, below it once.
    let upper = Held::for_training(&config, |spec| spec.module.layer == Some(2));
    assert_eq!(number(&upper, Held::Trained), 12);
    assert_eq!((number(&upper, Held::Frozen), number(&upper, Held::Inference)), (2, 1 + 12 * 2));
    let lower = Held::for_training(&config, |spec| spec.module.layer == Some(0));
    assert_eq!((number(&lower, Held::Frozen), number(&lower, Held::Inference)), (2 + 12 * 2, 1));
    let layer = 3 * 64 * 1024 * 2048 + 4 * 2048 * 2048u64;
    let routers = 64 * 2048;
    // Of two layers: the way back in bf16, and of the routers in f32.
    assert_eq!(bytes(&lower) - bytes(&upper), 2 * (2 * layer + 4 * routers));
    // Numbers of two layers, and of the head, in f32, and the way back of two layers.
    let rest = 2 * (4 * layer + 4 * routers) + 2 * (2 * layer + 4 * routers);
    assert_eq!(bytes(&full) - bytes(&upper), rest + 4 * 50304 * 2048);
    assert_eq!(Held::for_training(&config, |_| false), vec![Held::Inference; full.len()]);
    assert_eq!(Held::for_training(&config, |_| true), full);
}

#[test]
fn a_gradient_that_cannot_pass_is_refused() {
    let config = mixture();
    let mut held = Held::for_training(&config, |spec| spec.name == "layers.1.moe.router.weight");
    let count = held.len();
    held.pop();
    let error = Model::with(config.clone(), Precision::Fp32, held.clone(), &[]).err().expect("refused");
    assert!(matches!(error, ModelError::HeldCount { found, expected } if found == count - 1 && expected == count));
    held.push(Held::Inference);
    let error = Model::with(config, Precision::Fp32, held, &[]).err().expect("refused");
    let text = error.to_string();
    assert!(text.contains("lm_head.weight") && text.contains("layers.1.moe.router.weight"), "{text}");
}

/// Frozen matrices in blocks under trained norms: close to the gradients over the numbers that the blocks stand for
/// (the passes differ by what activations lose in eight bits), and the same bits on any number of threads.
#[test]
fn a_base_of_blocks_can_be_trained_above() {
    let mlp = Mlp { width: 256, activation: Activation::SwiGlu };
    let mut config = ModelConfig { feed_forward: FeedForward::Dense(mlp), ..ModelConfig::release() };
    (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim) = (256, 2, 4, 2, 64);
    (config.vocab_size, config.embedding_size, config.max_sequence_length) = (97, 97, 64);
    (config.pad_token_id, config.eos_token_id) = (None, None);
    let mut drawn = Model::new(config.clone(), Precision::Fp32, Held::Trained).expect("a model");
    drawn.initialize(3);
    let held = Held::for_training(&config, |spec| spec.kind == ParameterKind::Norm);
    for format in BlockFormat::ALL {
        let encodings = vec![Some(Encoding::Blocks(format)); held.len()];
        let mut blocks = Model::with(config.clone(), Precision::Fp32, held.clone(), &encodings).expect("a model");
        let mut numbers = Model::with(config.clone(), Precision::Fp32, held.clone(), &[]).expect("a model");
        for id in 0..held.len() {
            let mut value = drawn.value(id).expect("numbers").to_vec();
            if blocks.encoding(id).is_some() {
                let mut bytes = vec![0; format.bytes(value.len()).expect("whole blocks")];
                quantize(format, &value, &mut bytes);
                dequantize(format, &bytes, &mut value);
                let place = |number: usize| number / format.block_len() * format.block_bytes();
                let Ok(()) = blocks.fill_encoded(id, |range, out| {
                    out.copy_from_slice(&bytes[place(range.start)..place(range.end)]);
                    Ok::<_, Infallible>(())
                });
            }
            for model in [&mut blocks, &mut numbers] {
                if model.takes_numbers(id) {
                    let Ok(()) = model.fill(id, |range, out| {
                        out.copy_from_slice(&value[range]);
                        Ok::<_, Infallible>(())
                    });
                }
            }
        }
        assert!(numbers.bytes() > 3 * blocks.bytes() / 2, "{}", format.name());
        let (expected, _) = step(&numbers, Keep::Everything);
        let mut first: Option<Vec<f32>> = None;
        for (threads, keep) in [(1, Keep::Everything), (2, Keep::BlockInputs), (3, Keep::FeedForward)] {
            set_num_threads(threads);
            let (gradients, _) = step(&blocks, keep);
            let all: Vec<f32> = gradients.iter().flat_map(|(_, g)| g.to_vec()).collect();
            assert!(*first.get_or_insert(all.clone()) == all, "{}: {threads} threads, {keep:?}", format.name());
            for (id, found) in gradients.iter() {
                let expected = expected.get(id).expect("trained in both");
                let error: f64 = found.iter().zip(&expected[..]).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                let error = (error / expected.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt();
                assert!(error < 0.1, "{}, {}: {error}", format.name(), blocks.parameters()[id].name);
            }
        }
        set_num_threads(2);
    }
}
