//! Adapters of every matrix: with B = 0 the model is the one without, otherwise it is the one with changed weights; the
//! gradients are those of the changed weights, by the chain rule.

use std::convert::Infallible;

use olmoe_model::adapter::{Adapter, AdapterInit, Sharing, parameters_with};
use olmoe_model::batch::{Batch, TokenNoise};
use olmoe_model::config::{Activation, FeedForward, Mlp, ModelConfig};
use olmoe_model::model::{Activations, Gradients, Held, Keep, Model, Objective, Precision};
use olmoe_model::parameters::{ModulePart, ParameterKind, ParameterSpec, parameters};
use olmoe_tensor::encoding::Encoding;
use olmoe_tensor::quant::{BlockFormat, dequantize, quantize};
use olmoe_tensor::threads::set_num_threads;

const RANK: usize = 3;
const SCALE: f32 = 0.7;

fn config(dense: bool) -> ModelConfig {
    let json = r#"{
        "model_type": "olmoe", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 10, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2,
        "max_position_embeddings": 40, "pad_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2
    }"#;
    let mut config = ModelConfig::from_hf_json(json).expect("a good configuration").config;
    (config.auxiliary.load_balancing_weight, config.auxiliary.z_weight) = (0.1, 0.01);
    let mlp = Mlp { width: 12, activation: Activation::SwiGlu };
    match &mut config.feed_forward {
        FeedForward::Moe(moe) if !dense => moe.shared_expert = Some(mlp),
        other => {
            *other = FeedForward::Dense(mlp);
            (config.attention_bias, config.mlp_bias) = (true, true);
        }
    }
    config
}

/// The kinds of adapters of every matrix that can have one.
fn adapters(config: &ModelConfig, dora: bool, share: Sharing) -> Vec<Adapter> {
    let matrix = |spec: &&ParameterSpec| {
        use ParameterKind::{Embedding, Expert, Linear, Router};
        matches!(spec.kind, Embedding | Expert | Linear | Router)
    };
    let adapter = |spec: &ParameterSpec| Adapter {
        module: spec.module,
        rank: RANK,
        scale: SCALE,
        dora: dora && !matches!(spec.module.part, ModulePart::Embedding | ModulePart::Head),
        share,
        dropout: 0.0,
        init: AdapterInit::Kaiming,
    };
    parameters(config).iter().filter(matrix).map(adapter).collect()
}

/// A model with adapters, all of it trained or only they; B has numbers unless `fresh`.
fn model(config: &ModelConfig, adapters: &[Adapter], precision: Precision, whole: bool, fresh: bool) -> Model {
    let specs = parameters_with(config, adapters).expect("adapters of the model");
    let held = Held::of(&specs, config, |spec| whole || spec.kind.is_of_adapter());
    let mut model = Model::with_adapters(config.clone(), precision, held, &[], adapters).expect("a model");
    model.initialize(7);
    if !fresh {
        for ids in model.adapter_ids().to_vec() {
            model.update(ids.b, |range, numbers| {
                range.zip(numbers).for_each(|(at, x)| *x = ((at * 29 + 5) % 23) as f32 / 46.0 - 0.24);
            });
            if let Some(magnitude) = ids.magnitude {
                model.update(magnitude, |range, numbers| {
                    range.zip(numbers).for_each(|(at, x)| *x *= 1.0 + (at % 5) as f32 / 20.0);
                });
            }
        }
    }
    model
}

fn batch() -> Batch {
    let ids: Vec<u32> = (0..40).map(|i| (i * 17 + 3) % 61).collect();
    Batch::uniform(&ids, 20).expect("two sequences")
}

fn step(model: &Model, keep: Keep) -> (Gradients, Vec<f32>) {
    step_of(model, &batch(), keep)
}

fn step_of(model: &Model, batch: &Batch, keep: Keep) -> (Gradients, Vec<f32>) {
    let (targets, count) = batch.next_tokens();
    let mut activations = Activations::new(keep);
    model.forward(batch, &mut activations).expect("a pass");
    let dlogp_t = vec![-1.0 / count as f32; targets.len()];
    let objective = Objective { targets: &targets, dlogp_t: &dlogp_t, z: 0.01, auxiliary: 1.0, statistics: false };
    let mut gradients = model.gradients();
    let (log_probs, _) = model.backward(batch, &mut activations, &objective, &mut gradients).expect("the way back");
    (gradients, log_probs.logp_t.to_vec())
}

fn logits(model: &Model) -> Vec<f32> {
    let mut activations = Activations::new(Keep::Nothing);
    model.logits(&batch(), &mut activations).expect("logits").to_vec()
}

const SHARINGS: [Sharing; 4] = [Sharing::PerExpert, Sharing::A, Sharing::B, Sharing::Both];

#[test]
fn without_b_and_switched_off_the_model_is_the_one_without() {
    for precision in [Precision::Fp32, Precision::AmpBf16] {
        for (dense, dora) in [(false, false), (false, true), (true, true)] {
            let config = config(dense);
            let mut plain = Model::new(config.clone(), precision, Held::Inference).expect("a model");
            plain.initialize(7);
            let expected = logits(&plain);
            let adapters = adapters(&config, dora, Sharing::PerExpert);
            let fresh = model(&config, &adapters, precision, false, true);
            assert!(logits(&fresh) == expected, "{precision:?}, dense {dense}, dora {dora}");
            let mut adapted = model(&config, &adapters, precision, false, false);
            assert!(logits(&adapted) != expected);
            adapted.set_adapters_enabled(false);
            assert!(logits(&adapted) == expected);
        }
    }
}

/// The adapted weight `W' [E, out, in]`, and for each row the factor of DoRA; the embedding as `[1, V, D]`.
struct Merged {
    shape: [usize; 3],
    weight: Vec<f64>,
    factors: Vec<f64>,
    norms: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    /// Whether A, B have a matrix for each expert.
    own: [bool; 2],
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn merged(model: &Model, at: usize) -> Merged {
    let (adapter, ids) = (&model.adapters()[at], model.adapter_ids()[at]);
    let value = |id: usize| wide(model.value(id).expect("trained"));
    let (w, a, b) = (value(ids.base), value(ids.a), value(ids.b));
    let embedding = adapter.module.part == ModulePart::Embedding;
    let shape = match model.parameters()[ids.base].shape[..] {
        [e, out, input] => [e, out, input],
        [out, input] => [1, out, input],
        _ => unreachable!("a matrix"),
    };
    let [experts, out, input] = shape;
    let own = [a.len() == experts * RANK * input, b.len() == experts * out * RANK];
    let (mut weight, mut factors, mut norms) = (w.clone(), vec![1.0; experts * out], vec![1.0; experts * out]);
    let s = f64::from(adapter.scale);
    for row in 0..experts * out {
        let (e, o) = (row / out, row % out);
        let first = [if own[0] { e * RANK * input } else { 0 }, if own[1] { e * out * RANK } else { 0 }];
        for i in 0..input {
            let change: f64 = (0..RANK)
                .map(|k| match embedding {
                    true => a[o * RANK + k] * b[i * RANK + k],
                    false => b[first[1] + o * RANK + k] * a[first[0] + k * input + i],
                })
                .sum();
            weight[row * input + i] += s * change;
        }
        if let Some(magnitude) = ids.magnitude {
            let own = &mut weight[row * input..(row + 1) * input];
            norms[row] = own.iter().map(|x| x * x).sum::<f64>().sqrt();
            factors[row] = value(magnitude)[row] / norms[row];
            own.iter_mut().for_each(|x| *x *= factors[row]);
        }
    }
    Merged { shape, weight, factors, norms, a, b, own }
}

fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let (mut error, mut size) = (0.0, 1e-30);
    for (x, y) in found.iter().zip(expected) {
        error += (f64::from(*x) - y).powi(2);
        size += y.powi(2);
    }
    f64::sqrt(error / size)
}

#[test]
fn values_and_gradients_are_those_of_the_changed_weights() {
    for dense in [false, true] {
        for dora in [false, true] {
            for share in SHARINGS.into_iter().filter(|share| !dense || *share == Sharing::PerExpert) {
                let config = config(dense);
                let adapters = adapters(&config, dora, share);
                let adapted = model(&config, &adapters, Precision::Fp32, true, false);
                let mut plain = Model::new(config.clone(), Precision::Fp32, Held::Trained).expect("a model");
                plain.initialize(7);
                let all: Vec<Merged> = (0..adapters.len()).map(|at| merged(&adapted, at)).collect();
                for (merged, ids) in all.iter().zip(adapted.adapter_ids()) {
                    let weight: Vec<f32> = merged.weight.iter().map(|x| *x as f32).collect();
                    let spec = &plain.parameters()[ids.base].clone();
                    plain.set(&spec.name, &spec.shape, &weight).expect("the weight's shape");
                }
                let what = format!("dense {dense}, dora {dora}, {share:?}");
                let (expected, found) = (wide(&logits(&plain)), logits(&adapted));
                assert!(relative_error(&found, &expected) < 1e-5, "{what}: {}", relative_error(&found, &expected));
                let (of_weights, _) = step(&plain, Keep::Everything);
                let (gradients, logp) = step(&adapted, Keep::Everything);
                for ((merged, ids), adapter) in all.iter().zip(adapted.adapter_ids()).zip(&adapters) {
                    let dw = wide(of_weights.get(ids.base).expect("trained"));
                    let expected = chain_rule(merged, adapter, &dw);
                    let ids = [Some(ids.base), Some(ids.a), Some(ids.b), ids.magnitude];
                    for (id, expected) in ids.into_iter().zip(expected) {
                        let Some(id) = id else { continue };
                        let error = relative_error(gradients.get(id).expect("trained"), &expected);
                        assert!(error < 2e-5, "{what}, {}: {error}", adapted.parameters()[id].name);
                    }
                }
                for keep in [Keep::FeedForward, Keep::BlockInputs] {
                    let (others, other_logp) = step(&adapted, keep);
                    assert!(others.iter().zip(gradients.iter()).all(|((_, a), (_, b))| a[..] == b[..]), "{what}");
                    assert!(other_logp == logp);
                }
                let alone = model(&config, &adapters, Precision::Fp32, false, false);
                let (own, own_logp) = step(&alone, Keep::BlockInputs);
                assert!(own_logp == logp, "{what}");
                assert!(own.iter().all(|(id, g)| g[..] == gradients.get(id).expect("trained")[..]), "{what}");
            }
        }
    }
}

/// The gradients of W, A, B and the magnitude from that of the changed weight; the norm of DoRA counts as constant.
fn chain_rule(merged: &Merged, adapter: &Adapter, dw: &[f64]) -> [Vec<f64>; 4] {
    let [_, out, input] = merged.shape;
    let s = f64::from(adapter.scale);
    let mut found = [vec![0.0; dw.len()], vec![0.0; merged.a.len()], vec![0.0; merged.b.len()], Vec::new()];
    for (row, dw) in dw.chunks(input).enumerate() {
        let (e, o) = (row / out, row % out);
        let (factor, norm) = (merged.factors[row], merged.norms[row]);
        let first = [if merged.own[0] { e * RANK * input } else { 0 }, if merged.own[1] { e * out * RANK } else { 0 }];
        for (i, dw) in dw.iter().enumerate() {
            found[0][row * input + i] = factor * dw;
            for k in 0..RANK {
                let [a, b] = match adapter.module.part {
                    ModulePart::Embedding => [o * RANK + k, i * RANK + k],
                    _ => [first[0] + k * input + i, first[1] + o * RANK + k],
                };
                found[1][a] += s * factor * dw * merged.b[b];
                found[2][b] += s * factor * dw * merged.a[a];
            }
        }
        let own = &merged.weight[row * input..(row + 1) * input];
        found[3].push(own.iter().zip(dw).map(|(w, dw)| w / factor * dw).sum::<f64>() / norm);
    }
    found
}

fn noise(tokens: std::ops::Range<u64>, embedding: f32) -> TokenNoise {
    TokenNoise { keys_t: tokens.map(|t| t.wrapping_mul(0x1234_5678_9abc_def1)).collect(), embedding }
}

/// Dropout and noise are the same when a block is recomputed and when a sequence is alone; the gradients are those of the
/// function that they make.
#[test]
fn dropout_is_of_the_token() {
    let config = config(false);
    let mut all = adapters(&config, false, Sharing::PerExpert);
    all.iter_mut().for_each(|adapter| adapter.dropout = 0.3);
    let mut adapted = model(&config, &all, Precision::Fp32, false, false);
    let batch = batch().with_noise(noise(0..40, 0.05)).expect("a key for each token");
    let (gradients, logp) = step_of(&adapted, &batch, Keep::Everything);
    let (without, plain) = step(&adapted, Keep::Everything);
    assert!(plain != logp && without.iter().zip(gradients.iter()).any(|((_, a), (_, b))| a[..] != b[..]));
    for keep in [Keep::FeedForward, Keep::BlockInputs] {
        let (others, other_logp) = step_of(&adapted, &batch, keep);
        assert!(other_logp == logp && others.iter().zip(gradients.iter()).all(|((_, a), (_, b))| a[..] == b[..]));
    }
    let second =
        Batch::uniform(&batch.ids[20..], 20).expect("a sequence").with_noise(noise(20..40, 0.05)).expect("keys");
    assert_eq!(step_of(&adapted, &second, Keep::BlockInputs).1[..], logp[20..]);

    // Along the gradient, the loss changes by the square of its norm.
    let square: f64 = gradients.iter().flat_map(|(_, g)| g.iter()).map(|g| f64::from(*g).powi(2)).sum();
    let far = 2e-3 / square.sqrt();
    let mut loss = |by: f64| {
        for (id, g) in gradients.iter() {
            adapted.update(id, |range, numbers| {
                numbers.iter_mut().zip(&g[range]).for_each(|(x, g)| *x += (by * f64::from(*g)) as f32);
            });
        }
        let (targets, count) = batch.next_tokens();
        let mut activations = Activations::new(Keep::Nothing);
        adapted.forward(&batch, &mut activations).expect("a pass");
        let found = adapted.log_probs(&activations, &targets).expect("log-probabilities");
        let auxiliary = olmoe_model::auxiliary::losses(&activations.routing, &batch, &config.auxiliary, 1.0).0;
        let z: f64 = found.lse_t.iter().map(|lse| 0.005 * f64::from(*lse).powi(2)).sum();
        -found.logp_t.iter().map(|x| f64::from(*x)).sum::<f64>() / count as f64
            + auxiliary.load_balancing
            + auxiliary.z
            + z
    };
    let up = loss(far);
    let down = loss(-2.0 * far);
    let slope = (up - down) / (2.0 * far);
    assert!((slope / square - 1.0).abs() < 0.02, "{slope} {square}");
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let config = config(false);
    for dora in [false, true] {
        let adapted = model(&config, &adapters(&config, dora, Sharing::A), Precision::AmpBf16, false, false);
        let all = |threads: usize| {
            set_num_threads(threads);
            let (gradients, logp) = step(&adapted, Keep::BlockInputs);
            (gradients.iter().flat_map(|(_, g)| g.to_vec()).collect::<Vec<f32>>(), logp)
        };
        let one = all(1);
        assert!(all(2) == one && all(5) == one);
        set_num_threads(2);
    }
}

/// Over a base in quantised blocks, which stay as they are: B = 0 has the base's bits, the bytes are those predicted, and
/// the gradients are close to those over the numbers that the blocks stand for.
#[test]
fn a_base_of_blocks_can_have_adapters() {
    let mut config = config(false);
    (config.d_model, config.head_dim) = (64, 16);
    if let FeedForward::Moe(moe) = &mut config.feed_forward {
        (moe.expert.width, moe.shared_expert) = (32, None);
    }
    let format = BlockFormat::Q8_0;
    let adapters = adapters(&config, false, Sharing::PerExpert);
    let specs = parameters_with(&config, &adapters).expect("adapters of the model");
    let held = Held::of(&specs, &config, |spec| spec.kind.is_of_adapter());
    let mut drawn = Model::new(config.clone(), Precision::Fp32, Held::Trained).expect("a model");
    drawn.initialize(3);
    let encodings = vec![Some(Encoding::Blocks(format)); drawn.parameters().len()];
    let made = |held: Vec<Held>, encodings: &[Option<Encoding>], adapters: &[Adapter]| {
        let mut model = Model::with_adapters(config.clone(), Precision::Fp32, held, encodings, adapters).expect("a model");
        for id in 0..drawn.parameters().len() {
            let mut value = drawn.value(id).expect("numbers").to_vec();
            let mut bytes = Vec::new();
            if !encodings.is_empty() && model.encoding(id).is_some() || encodings.is_empty() && value.len() > 64 {
                bytes = vec![0; format.bytes(value.len()).expect("whole blocks")];
                quantize(format, &value, &mut bytes);
                dequantize(format, &bytes, &mut value);
            }
            if model.encoding(id).is_some() {
                let place = |number: usize| number / format.block_len() * format.block_bytes();
                let Ok(()) = model.fill_encoded(id, |range, out| {
                    out.copy_from_slice(&bytes[place(range.start)..place(range.end)]);
                    Ok::<_, Infallible>(())
                });
            } else {
                let Ok(()) = model.fill(id, |range, out| {
                    out.copy_from_slice(&value[range]);
                    Ok::<_, Infallible>(())
                });
            }
        }
        model.initialize_adapters(7);
        model
    };
    let plain = made(vec![Held::Inference; drawn.parameters().len()], &encodings, &[]);
    let mut blocks = made(held.clone(), &encodings, &adapters);
    let quantized = (0..drawn.parameters().len()).filter(|id| blocks.encoding(*id).is_some()).count();
    assert_eq!(quantized, 2 + 2 * 7, "embedding, head, attention and experts stay in blocks");
    let predicted = config.bytes_with_adapters(Precision::Fp32, &held, &encodings, &adapters).expect("adapters");
    assert_eq!(blocks.bytes() as u64, predicted);
    assert!(logits(&blocks) == logits(&plain));
    let mut numbers = made(held, &[], &adapters);
    for model in [&mut blocks, &mut numbers] {
        for ids in model.adapter_ids().to_vec() {
            model.update(ids.b, |range, out| {
                range.zip(out).for_each(|(at, x)| *x = ((at * 29 + 5) % 23) as f32 / 46.0 - 0.24);
            });
        }
    }
    let (found, _) = step(&blocks, Keep::BlockInputs);
    let (expected, _) = step(&numbers, Keep::BlockInputs);
    for ((id, found), (_, expected)) in found.iter().zip(expected.iter()) {
        let name = &blocks.parameters()[id].name;
        // Of a mixture, tokens may go to other experts; the rest is what activations lose in eight bits.
        assert!(relative_error(found, &wide(expected)) < 0.2, "{name}: {}", relative_error(found, &wide(expected)));
    }
}

#[test]
fn adapters_that_no_model_can_have() {
    let config = config(false);
    let good = adapters(&config, false, Sharing::PerExpert);
    let refused = |change: &dyn Fn(&mut Vec<Adapter>)| {
        let mut all = good.clone();
        change(&mut all);
        parameters_with(&config, &all).expect_err("refused").to_string()
    };
    assert!(refused(&|all| all[1].rank = 0).contains("rank 0"));
    assert!(refused(&|all| all[1].scale = f32::NAN).contains("finite"));
    assert!(refused(&|all| all[1].dropout = 1.0).contains("less than 1"));
    assert!(refused(&|all| all.push(all[0].clone())).contains("two adapters"));
    assert!(refused(&|all| all[1].module.layer = Some(9)).contains("layers.9"));
    assert!(refused(&|all| all[0].dora = true).contains("embed_tokens"));
}
