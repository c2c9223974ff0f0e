//! Walks through trees of sequences, and experts that are switched off.

use olmoe_model::batch::{Batch, BatchError};
use olmoe_model::config::ModelConfig;
use olmoe_model::intervention::{Intervention, InterventionError, SwitchedOff};
use olmoe_model::model::{Activations, Held, Keep, KvCache, Model, ModelError, Precision};

fn model(precision: Precision) -> Model {
    let json = r#"{
        "model_type": "olmoe", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 10, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2,
        "max_position_embeddings": 200, "pad_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2
    }"#;
    let config = ModelConfig::from_hf_json(json).expect("a good configuration").config;
    let mut model = Model::new(config, precision, Held::Inference).expect("a model");
    model.initialize(7);
    model
}

fn ids(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 17 + seed * 29 + i * i * seed + 3) % 61) as u32).collect()
}

/// The hidden states of a whole sequence.
fn alone(model: &Model, ids: &[u32], activations: &mut Activations) -> Vec<f32> {
    model.forward(&Batch::uniform(ids, ids.len()).expect("one sequence"), activations).expect("a pass");
    activations.hidden().to_vec()
}

#[test]
fn tokens_of_a_walk_have_the_bits_of_whole_sequences() {
    for precision in [Precision::Fp32, Precision::AmpBf16] {
        let model = model(precision);
        let mut activations = Activations::new(Keep::Nothing);
        // Tokens before a part, and tokens of it; the lengths cross panels of 16 and blocks of 128 keys.
        let parts = [(150, 3), (153, 20), (153, 1), (140, 2), (128, 31), (16, 5), (3, 1), (0, 40), (40, 1)];
        let root = ids(150, 5);
        let mut path = root.clone();
        let (mut tokens, mut expected) = (Vec::new(), Vec::new());
        let width = model.config().d_model;
        for (seed, (held, length)) in parts.into_iter().enumerate() {
            path.truncate(held);
            let own = ids(length, seed + 20);
            path.extend(&own);
            tokens.extend(own);
            expected.extend_from_slice(&alone(&model, &path, &mut activations)[held * width..]);
        }
        let mut caches = [KvCache::new(&model, 180)];
        let first = Batch::walk(&root, &[(0, 150)]).expect("a walk");
        model.forward_cached(&first, &mut caches, &mut activations).expect("a pass");
        let batch = Batch::walk(&tokens, &parts).expect("a walk");
        model.forward_cached(&batch, &mut caches, &mut activations).expect("a pass");
        assert!(activations.hidden().to_vec() == expected, "{precision:?}");
        // The cache has the last path, and goes on as one of it alone.
        assert_eq!(caches[0].len(), path.len());
        let more = Batch::walk(&ids(4, 3), &[(path.len(), 4)]).expect("a walk");
        model.forward_cached(&more, &mut caches, &mut activations).expect("a pass");
        let found = activations.hidden().to_vec();
        path.extend(ids(4, 3));
        let expected = alone(&model, &path, &mut activations);
        assert!(found == expected[expected.len() - 4 * width..], "{precision:?}");
    }
}

#[test]
fn walks_that_do_not_go_on_from_their_path() {
    let model = model(Precision::Fp32);
    let mut activations = Activations::new(Keep::Nothing);
    let mut caches = [KvCache::new(&model, 16)];
    let sum = BatchError::Sum { what: "part", sum: 5, tokens: 6 };
    assert_eq!(Batch::walk(&ids(6, 1), &[(0, 2), (1, 3)]).unwrap_err(), sum);
    assert!(matches!(Batch::walk(&ids(2, 1), &[(usize::MAX, 2)]), Err(BatchError::TooMany { .. })));
    assert_eq!(Batch::walk(&[], &[]).expect("nothing").tokens(), 0);
    let mut pass = |parts: &[(usize, usize)]| {
        let count = parts.iter().map(|part| part.1).sum();
        let batch = Batch::walk(&ids(count, 1), parts).expect("a walk");
        model.forward_cached(&batch, &mut caches, &mut activations).map(|()| caches[0].len())
    };
    assert_eq!(pass(&[(0, 8), (3, 2)]).expect("a walk"), 5);
    for (parts, found, held) in [(&[(4, 2)][..], 4, 5), (&[(5, 2), (8, 1)], 8, 7)] {
        let error = pass(parts).unwrap_err();
        let expected = |error: &ModelError| matches!(error, ModelError::CachePosition { found: f, held: h, .. } if (*f, *h) == (found, held));
        assert!(expected(&error), "{error}");
    }
    let error = pass(&[(5, 12)]).unwrap_err();
    assert!(matches!(error, ModelError::CacheFull { length: 17, capacity: 16, .. }), "{error}");
    // An empty part is none.
    assert_eq!(pass(&[(5, 1), (2, 0), (6, 3)]).expect("a walk"), 9);
}

#[test]
fn experts_that_are_switched_off() {
    let mut model = model(Precision::Fp32);
    let mut activations = Activations::new(Keep::Nothing);
    let ids = ids(60, 4);
    let before = alone(&model, &ids, &mut activations);
    let routing = activations.routing.clone();
    let expert = (0..6).max_by_key(|e| routing.layers[1].load_e[*e]).expect("experts");
    assert!(routing.layers[1].load_e[expert] > 10);
    let off = |how| Intervention { layer: 1, expert, how };

    model.set_interventions(&[off(SwitchedOff::Banned)]).expect("enough are left");
    let banned = alone(&model, &ids, &mut activations);
    assert!(banned != before);
    let layers = &activations.routing.layers;
    assert_eq!(layers[1].load_e[expert], 0);
    assert_eq!(layers[0].routing.ids_tk[..], routing.layers[0].routing.ids_tk[..]);
    // Layer 1 has the same input: the others have the probabilities that they have among themselves.
    for t in 0..60 {
        let (old, new) = (routing.layers[1].routing.probs_te.row(t), layers[1].routing.probs_te.row(t));
        for e in (0..6).filter(|e| *e != expert) {
            assert!((new[e] - old[e] / (1.0 - old[expert])).abs() < 1e-5);
        }
        assert_eq!(new[expert], 0.0);
    }

    model.set_interventions(&[off(SwitchedOff::Silent)]).expect("none is banned");
    let silent = alone(&model, &ids, &mut activations);
    assert!(silent != before && silent != banned);
    let (old, new) = (&routing.layers[1].routing, &activations.routing.layers[1].routing);
    assert_eq!((&new.ids_tk[..], &new.probs_te[..]), (&old.ids_tk[..], &old.probs_te[..]));
    for (i, id) in new.ids_tk.iter().enumerate() {
        assert_eq!(new.weights_tk[i], if *id as usize == expert { 0.0 } else { old.weights_tk[i] });
    }

    model.set_interventions(&[]).expect("none");
    assert!(alone(&model, &ids, &mut activations) == before, "the model is as it was");
    let ban = |layer, expert| Intervention { layer, expert, how: SwitchedOff::Banned };
    let refused = |model: &mut Model, off: &[Intervention]| match model.set_interventions(off) {
        Err(ModelError::Intervention(error)) => error,
        other => panic!("{other:?}"),
    };
    let error = refused(&mut model, &[ban(3, 0)]);
    assert_eq!(error, InterventionError::NoExpert { layer: 3, expert: 0, experts: 6, layers: vec![0, 1, 2] });
    assert!(matches!(refused(&mut model, &[ban(0, 6)]), InterventionError::NoExpert { expert: 6, .. }));
    let five: Vec<_> = (0..5).map(|expert| ban(2, expert)).collect();
    assert_eq!(refused(&mut model, &five), InterventionError::TooFew { layer: 2, left: 1, top_k: 2 });
    assert!(model.interventions().is_empty());
    model.set_interventions(&[&five[..4], &five[..4]].concat()).expect("two are left, and each is banned once");
}
