//! The model as its users call it: continuing several sequences at once, its form for inference, and what it refuses.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use olmoe_model::batch::Batch;
use olmoe_model::config::{Activation, Mlp, ModelConfig};
use olmoe_model::model::{Activations, Held, Keep, KvCache, Model, ModelError, Objective, Precision};

fn config() -> ModelConfig {
    let json = r#"{
        "model_type": "olmoe", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 10, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2,
        "max_position_embeddings": 40, "pad_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2
    }"#;
    ModelConfig::from_hf_json(json).expect("a good configuration").config
}

fn model(precision: Precision) -> Model {
    let mut model = Model::new(config(), precision, Held::Trained).expect("a model");
    model.initialize(7);
    model
}

fn ids(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 17 + seed * 29 + 3) % 61) as u32).collect()
}

#[test]
fn sequences_of_different_age_continue_together() {
    for precision in [Precision::Fp32, Precision::AmpBf16] {
        let model = model(precision);
        let mut activations = Activations::new(Keep::Nothing);
        let (first, second) = (ids(30, 1), ids(21, 2));
        let alone = [&first, &second].map(|ids| {
            let batch = Batch::uniform(ids, ids.len()).expect("one sequence");
            model.logits(&batch, &mut activations).expect("logits")
        });
        // 25 and 9 tokens one after the other, then 5 and 12 more together.
        let mut caches = [KvCache::new(&model, 30), KvCache::new(&model, 33)];
        for (i, (ids, len)) in [(&first, 25), (&second, 9)].into_iter().enumerate() {
            let batch = Batch::uniform(&ids[..len], len).expect("one sequence");
            model.forward_cached(&batch, &mut caches[i..=i], &mut activations).expect("prefill");
        }
        let both = [&first[25..], &second[9..]].concat();
        let batch = Batch::new(&both, &[5, 12]).expect("two sequences").continued_from(&[25, 9]).expect("two ages");
        model.forward_cached(&batch, &mut caches, &mut activations).expect("both");
        let logits = model.logits_of(activations.hidden());
        assert_eq!(logits.row_range(0..5), alone[0].row_range(25..30), "{precision:?}");
        assert_eq!(logits.row_range(5..17), alone[1].row_range(9..21), "{precision:?}");

        // Back to the middle and on again.
        caches[1].truncate(4);
        let batch = Batch::uniform(&second[4..], 17).and_then(|b| b.continued_from(&[4])).expect("one sequence");
        model.forward_cached(&batch, &mut caches[1..], &mut activations).expect("again");
        let logits = model.logits_of(activations.hidden());
        assert_eq!(logits[..], *alone[1].row_range(4..21), "{precision:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_lost() {
    let model = model(Precision::Fp32);
    let mut activations = Activations::new(Keep::Everything);
    let batch = |ids: &[u32]| Batch::uniform(ids, ids.len()).expect("one sequence");

    let error = model.forward(&batch(&[3, 61]), &mut activations).unwrap_err();
    assert!(matches!(error, ModelError::TokenId { at: 1, id: 61, rows: 61 }), "{error}");
    let error = model.forward(&batch(&ids(41, 1)), &mut activations).unwrap_err();
    assert!(matches!(error, ModelError::TooLong { length: 41, limit: 40 }), "{error}");

    let good = batch(&ids(8, 1));
    model.forward(&good, &mut activations).expect("a pass");
    let mut gradients = model.gradients();
    let objective = Objective { targets: &[99; 8], dlogp_t: &[-1.0; 8], z: 0.0, auxiliary: 0.0, statistics: false };
    let error = model.backward(&good, &mut activations, &objective, &mut gradients).unwrap_err();
    assert!(matches!(error, ModelError::TokenId { at: 0, id: 99, .. }), "{error}");
    assert!(gradients.iter().all(|(_, g)| g.iter().all(|x| *x == 0.0)));

    let mut caches = [KvCache::new(&model, 10)];
    let error = model.forward_cached(&good, &mut [], &mut activations).unwrap_err();
    assert!(matches!(error, ModelError::CacheCount { found: 0, expected: 1 }), "{error}");
    model.forward_cached(&good, &mut caches, &mut activations).expect("it fits");
    let error = model.forward_cached(&good, &mut caches, &mut activations).unwrap_err();
    assert!(matches!(error, ModelError::CachePosition { sequence: 0, found: 0, held: 8 }), "{error}");
    let next = batch(&[5, 6, 7]).continued_from(&[8]).expect("one age");
    let error = model.forward_cached(&next, &mut caches, &mut activations).unwrap_err();
    assert!(matches!(error, ModelError::CacheFull { length: 11, capacity: 10, .. }), "{error}");
    assert_eq!(caches[0].len(), 8);
    let next = batch(&[5, 6]).continued_from(&[8]).expect("one age");
    model.forward_cached(&next, &mut caches, &mut activations).expect("as if nothing had happened");
}

/// A batch that says less than the truth of its tokens panics in the first layer, after the first cache took its keys.
#[test]
fn caches_are_of_use_after_a_pass_that_panicked() {
    let model = model(Precision::AmpBf16);
    let mut activations = Activations::new(Keep::Nothing);
    let both = [ids(9, 1), ids(7, 2)];
    let mut caches = [KvCache::new(&model, 20), KvCache::new(&model, 20)];
    let read = |caches: &mut [KvCache], range: Range<usize>, activations: &mut Activations| {
        let parts = [&both[0][range.clone()], &both[1][range.clone()]].concat();
        let batch =
            Batch::new(&parts, &[range.len(), range.len()]).and_then(|batch| batch.continued_from(&[range.start; 2]));
        model.forward_cached(&batch.expect("two sequences"), caches, activations).expect("a pass");
        activations.hidden().to_vec()
    };
    read(&mut caches, 0..4, &mut activations);
    let mut untouched = [caches[0].prefix(4, 20), caches[1].prefix(4, 20)];
    let mut bad =
        Batch::new(&ids(6, 3), &[3, 3]).and_then(|batch| batch.continued_from(&[4, 4])).expect("two sequences");
    (bad.sequences[2], bad.segments[2]) = (9, 9);
    let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        model.forward_cached(&bad, &mut caches, &mut activations)
    }));
    assert!(passed.is_err(), "the batch was to panic");
    assert_eq!(caches.each_ref().map(KvCache::len), [4, 4]);
    let expected = read(&mut untouched, 4..7, &mut activations);
    assert_eq!(read(&mut caches, 4..7, &mut activations), expected);
    assert_eq!(caches.each_ref().map(KvCache::len), [7, 7]);
}

#[test]
fn parameters_are_set_by_name_and_shape() {
    let mut model = model(Precision::Fp32);
    let error = model.set("norm.wieght", &[24], &[1.0f32; 24]).unwrap_err();
    assert!(matches!(&error, ModelError::UnknownParameter { name } if name == "norm.wieght"), "{error}");
    let error = model.set("lm_head.weight", &[24, 61], &[0.0f32; 24 * 61]).unwrap_err();
    assert!(matches!(&error, ModelError::Shape { expected, .. } if *expected == [61, 24]), "{error}");
    let error = Precision::by_name("fp16").unwrap_err();
    assert!(error.to_string().contains("amp_bf16"), "{error}");
    assert!(model.set("norm.weight", &[24], &[0.5f32; 24]).is_ok());
}

#[test]
fn an_empty_batch_is_no_accident() {
    let model = model(Precision::Fp32);
    let mut activations = Activations::new(Keep::Everything);
    let batch = Batch::uniform(&[], 0).expect("nothing");
    let mut gradients = model.gradients();
    model.forward(&batch, &mut activations).expect("a pass over nothing");
    let objective = Objective { targets: &[], dlogp_t: &[], z: 0.0, auxiliary: 1.0, statistics: false };
    let (log_probs, losses) = model.backward(&batch, &mut activations, &objective, &mut gradients).expect("a way back");
    assert!(log_probs.logp_t.is_empty() && (losses.load_balancing, losses.z) == (0.0, 0.0));
    assert!(gradients.iter().all(|(_, g)| g.iter().all(|x| *x == 0.0)));
}

/// The same parameters in a model made for inference, filled in the three ways there are.
#[test]
fn a_model_made_for_inference_computes_the_same_from_its_packed_form_alone() {
    for tied in [false, true] {
        for precision in [Precision::Fp32, Precision::AmpBf16] {
            let mut config = config();
            config.tie_embeddings = tied;
            let make = |held| Model::new(config.clone(), precision, held).expect("a model");
            let (mut full, mut drawn, mut set, mut filled) =
                (make(Held::Trained), make(Held::Inference), make(Held::Inference), make(Held::Inference));
            full.initialize(7);
            drawn.initialize(7);
            for (id, spec) in full.parameters().iter().enumerate() {
                let value = full.value(id).expect("a model made for training has all its numbers");
                set.set(&spec.name, &spec.shape, value).expect("a parameter of this model");
                let read = |range: Range<usize>, out: &mut [f32]| {
                    let row = if spec.shape.len() > 1 { value.cols() } else { value.len() };
                    assert!(
                        range.len() <= 32 * row && range.start.is_multiple_of(row) && range.len().is_multiple_of(row)
                    );
                    out.copy_from_slice(&value[range]);
                    Ok::<(), ()>(())
                };
                filled.fill(id, read).expect("nothing failed");
                let only_packed = spec.shape.len() > 1 && spec.name != "embed_tokens.weight";
                assert_eq!(drawn.value(id).is_none(), only_packed, "{}", spec.name);
            }
            let ids = ids(12, 3);
            let batch = Batch::uniform(&ids, 12).expect("one sequence");
            let logits = |model: &Model| model.logits(&batch, &mut Activations::new(Keep::Nothing)).expect("logits");
            let expected = logits(&full);
            for model in [&drawn, &set, &filled] {
                assert_eq!(logits(model)[..], expected[..], "{precision:?} tied: {tied}");
                assert_eq!(model.bytes() as u64, config.inference_bytes(precision, &[]), "{precision:?} tied: {tied}");
            }
            assert!(drawn.bytes() < full.bytes() / 2);
        }
    }
}

/// 6.92 billion parameters: two bytes each, four more for the embedding that is looked up and for the routers.
#[test]
fn the_release_takes_two_bytes_a_parameter() {
    let config = ModelConfig::release();
    let (embedding, routers, norms) = (50304 * 2048, 16 * 64 * 2048, (16 * 4 + 1) * 2048);
    let matrices = 6_919_161_856 - embedding - routers - norms;
    // Cosines and sines of 4096 positions, 64 each.
    let rope = 4096 * 128 * 4;
    assert_eq!(
        config.inference_bytes(Precision::AmpBf16, &[]),
        rope + 2 * matrices + 4 * (embedding + routers + norms)
    );
    assert_eq!(config.inference_bytes(Precision::Fp32, &[]), rope + 4 * 6_919_161_856);
}

#[test]
fn the_first_failure_of_a_reader_wins() {
    for held in [Held::Inference, Held::Frozen, Held::Trained] {
        let mut model = Model::new(config(), Precision::Fp32, held).expect("a model");
        let id = model.find("layers.0.moe.experts.up_proj.weight").expect("it has experts");
        // Six experts of ten rows of 24: the strips are the experts.
        for failing in [&[0][..], &[3, 1, 5], &[5]] {
            let first = *failing.iter().min().expect("one fails");
            let error = model.fill(id, |range, out| {
                out.fill(0.0);
                let expert = range.start / 240;
                assert_eq!(range, expert * 240..(expert + 1) * 240);
                if failing.contains(&expert) { Err(expert) } else { Ok(()) }
            });
            assert_eq!(error, Err(first));
        }
        let reads = AtomicUsize::new(0);
        let error = model.fill(id, |_, _| {
            reads.fetch_add(1, Ordering::Relaxed);
            Err("no such file")
        });
        assert_eq!(error, Err("no such file"));
        assert!(reads.into_inner() <= olmoe_tensor::threads::num_threads());
        let again = model.fill(id, |_, out| {
            out.fill(0.5);
            Ok::<(), ()>(())
        });
        again.expect("nothing failed");
    }
}

#[test]
#[should_panic(expected = "made for training")]
fn numbers_that_are_not_held_cannot_be_updated() {
    let mut model = Model::new(config(), Precision::Fp32, Held::Inference).expect("a model");
    let id = model.find("lm_head.weight").expect("it has a head");
    model.update(id, |_, _| {});
}

/// 4.8 million numbers are drawn in two parts that meet inside a chunk.
#[test]
fn drawing_in_parts_leaves_no_trace() {
    let json = r#"{
        "model_type": "llama", "vocab_size": 40000, "hidden_size": 120, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 4, "tie_word_embeddings": true, "max_position_embeddings": 4
    }"#;
    let config = ModelConfig::from_hf_json(json).expect("a good configuration").config;
    let mut model = Model::new(config, Precision::AmpBf16, Held::Inference).expect("a model");
    model.initialize(5);
    let id = model.find("embed_tokens.weight").expect("it has an embedding");
    let mut expected = vec![0.0; 40000 * 120];
    olmoe_model::init::initialize(&model.parameters()[id], 5, &mut expected);
    assert!(model.value(id).is_some_and(|value| value[..] == expected[..]));
}

#[test]
fn layers_are_counted_as_the_model_has_them() {
    let even_layers = Some(Mlp { width: 20, activation: Activation::SwiGlu });
    let config = ModelConfig { n_layers: 5, even_layers, ..config() };
    let model = {
        let mut model = Model::new(config.clone(), Precision::Fp32, Held::Inference).expect("a model");
        model.initialize(7);
        model
    };
    let mut activations = Activations::new(Keep::Nothing);
    model.forward(&Batch::uniform(&ids(9, 1), 9).expect("one sequence"), &mut activations).expect("a pass");
    let routing = &activations.routing;
    assert_eq!(routing.layers.iter().map(|mixture| mixture.layer).collect::<Vec<_>>(), [1, 3]);
    assert_eq!((0..5).map(|layer| routing.position(layer)).collect::<Vec<_>>(), [None, Some(0), None, Some(1), None]);
    // Of the mixtures alone, what is read depends on the experts that are reached.
    let all = model.bytes_read(|_| 6);
    let expert = (all - model.bytes_read(|layer| if layer == 3 { 5 } else { 6 })) as f64;
    assert!(expert >= 3.0 * 10.0 * 24.0 * 4.0, "{expert}");
    assert_eq!((all - model.bytes_read(|layer| if layer % 2 == 0 { 0 } else { 6 })), 0);
    // The wider of both kinds of layers is what a pass needs at its widest place.
    let wide = Some(Mlp { width: 10_000, activation: Activation::SwiGlu });
    let bytes = |config: &ModelConfig| config.pass_bytes(9, 1, Precision::Fp32, false);
    let alike = ModelConfig { even_layers: None, ..config.clone() };
    assert!(bytes(&ModelConfig { even_layers: wide, ..config.clone() }) > bytes(&alike) + 9 * 3 * 9_000 * 4);
    assert!(bytes(&config) < bytes(&alike), "fewer routers");
}

#[test]
fn log_probabilities_of_some_rows_are_those_of_all() {
    let model = model(Precision::AmpBf16);
    let mut activations = Activations::new(Keep::Nothing);
    model.forward(&Batch::uniform(&ids(30, 1), 15).expect("two sequences"), &mut activations).expect("a pass");
    let targets = ids(30, 2);
    let all = model.log_probs(&activations, &targets).expect("log-probabilities");
    // In any order, one of them twice.
    let rows = [29, 3, 4, 3, 0];
    let own: Vec<u32> = rows.iter().map(|row| targets[*row as usize]).collect();
    let some = model.log_probs_at(&activations, &rows, &own).expect("log-probabilities");
    for (i, row) in rows.iter().enumerate() {
        let row = *row as usize;
        assert_eq!((some.logp_t[i], some.lse_t[i]), (all.logp_t[row], all.lse_t[row]));
    }
    assert!(model.log_probs_at(&activations, &[], &[]).expect("nothing").logp_t.is_empty());
    let error = model.log_probs_at(&activations, &[2, 30], &[5, 5]).unwrap_err();
    assert!(matches!(error, ModelError::Row { row: 30, tokens: 30 }), "{error}");
    let error = model.log_probs_at(&activations, &[2], &[61]).unwrap_err();
    assert!(matches!(error, ModelError::TokenId { at: 0, id: 61, rows: 61 }), "{error}");
}

/// Sequences with a common prefix, which is there once, have the bits of whole sequences, and the gradient of their sum.
#[test]
fn a_common_prefix_is_computed_once() {
    let model = model(Precision::Fp32);
    let (prefix, first, second, alone) = (ids(9, 1), ids(6, 2), ids(11, 3), ids(5, 4));
    let whole = [[&prefix[..], &first].concat(), [&prefix[..], &second].concat(), alone.clone()];
    let apart = Batch::new(&whole.concat(), &whole.each_ref().map(Vec::len)).expect("three sequences");
    let tokens = [&prefix[..], &first, &second, &alone].concat();
    let together = Batch::branched(&tokens, &[(9, vec![6, 11]), (0, vec![5])]).expect("two groups");
    let run = |batch: &Batch, targets: &[u32], keep: Keep| {
        let mut activations = Activations::new(keep);
        model.forward(batch, &mut activations).expect("a pass");
        let hidden = activations.hidden().to_vec();
        let mut gradients = model.gradients();
        let dlogp_t = vec![-0.1; targets.len()];
        let objective = Objective { targets, dlogp_t: &dlogp_t, z: 0.0, auxiliary: 0.0, statistics: false };
        let (found, _) = model.backward(batch, &mut activations, &objective, &mut gradients).expect("the way back");
        (hidden, found.logp_t.to_vec(), gradients)
    };
    // Only what follows the prefix is learned.
    let mut targets = vec![u32::MAX; apart.tokens()];
    for at in (9..14).chain(24..34).chain(35..39) {
        targets[at] = apart.ids[at + 1];
    }
    let kept: Vec<usize> = (0..15).chain(24..40).collect();
    let own: Vec<u32> = kept.iter().map(|at| targets[*at]).collect();
    let (hidden, logp, gradients) = run(&apart, &targets, Keep::Everything);
    for keep in [Keep::Everything, Keep::BlockInputs] {
        let (own_hidden, own_logp, own_gradients) = run(&together, &own, keep);
        let width = own_hidden.len() / kept.len();
        for (i, at) in kept.iter().enumerate() {
            assert_eq!(own_hidden[i * width..(i + 1) * width], hidden[at * width..(at + 1) * width], "token {at}");
            assert_eq!(own_logp[i], logp[*at]);
        }
        for ((id, own), (_, both)) in own_gradients.iter().zip(gradients.iter()) {
            let size = both.iter().fold(1e-6f32, |a, b| a.max(b.abs()));
            let far = own.iter().zip(both.iter()).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
            assert!(far < 1e-5 * size, "{}: {far} of {size}", model.parameters()[id].name);
        }
    }
    let fewer = Batch::branched(&tokens, &[(9, vec![6, 11])]).expect_err("fewer tokens");
    assert!(fewer.to_string().contains("26"), "{fewer}");
}
