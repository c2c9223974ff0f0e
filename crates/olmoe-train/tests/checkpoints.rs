//! The state of optimizer and trainer goes through a checkpoint bit for bit.

use olmoe_checkpoint::save::{Checkpoints, SaveError};
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Gradients, Held, Model, Precision};
use olmoe_tensor::threads::set_num_threads;
use olmoe_train::config::{OptimizerConfig, OptimizerName};
use olmoe_train::optimizer::state::StateError;
use olmoe_train::optimizer::{Clip, Optimizer, Step};
use olmoe_train::state::TrainerState;

fn model(width: usize) -> Model {
    let yaml = format!(
        "{{d_model: {width}, n_heads: 2, n_layers: 2, mlp_hidden_size: 24, block_type: moe, moe_num_experts: 3, rope: true, \
         attention_dropout: 0, residual_dropout: 0, embedding_dropout: 0, attention_layer_norm: true, vocab_size: 50, \
         embedding_size: null, eos_token_id: 0, pad_token_id: 1}}"
    );
    let config = ModelConfig::from_olmo_yaml(&yaml).expect("a good configuration").config;
    let mut model = Model::new(config, Precision::Fp32, Held::Trained).expect("a model");
    model.initialize(1);
    model
}

/// A step whose gradients depend on its number alone.
fn step(optimizer: &mut Optimizer, model: &mut Model, gradients: &mut Gradients, number: u64) {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for g in gradients.iter_mut().flat_map(|(_, g)| g.iter_mut()) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *g = ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.1 * number as f32;
    }
    let step = Step { number, learning_rate: 1e-3, clip: Clip::Ratio(1.1), record: number.is_multiple_of(2) };
    assert!(optimizer.step(model, gradients, &step).applied);
}

fn bits(model: &Model) -> Vec<u32> {
    let ids = 0..model.parameters().len();
    ids.flat_map(|id| model.value(id).expect("trainable").iter().map(|x| x.to_bits()).collect::<Vec<_>>()).collect()
}

#[test]
fn a_resumed_run_is_the_uninterrupted_run() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in OptimizerName::ALL.iter().copied() {
        let checkpoints = Checkpoints::open(folder.path().join(name.name())).expect("a folder");
        let config = OptimizerConfig { name, record_update_metrics: true, ..OptimizerConfig::release() };
        set_num_threads(1);
        let mut model = model(16);
        let specs = model.parameters().to_vec();
        let mut gradients = model.gradients();
        let mut optimizer = Optimizer::new(config.clone(), &model);
        for number in 1..=3 {
            step(&mut optimizer, &mut model, &mut gradients, number);
        }
        let state = TrainerState {
            step: 3,
            epoch: 1,
            examples_seen_this_epoch: 12,
            tokens_seen: u64::MAX,
            min_train_loss: Some(0.1 + 0.2),
            new_warmup: Some(7),
            evaluation: None,
            mean_reward: None,
        };
        let mut writer = checkpoints.begin(3).expect("a checkpoint");
        optimizer.save(&specs, &mut writer, 4096).expect("saved");
        writer.state(&state).expect("saved");
        writer.commit().expect("saved");
        let saved: Vec<Vec<f32>> = (0..specs.len()).map(|id| model.value(id).expect("trainable").to_vec()).collect();
        for number in 4..=6 {
            step(&mut optimizer, &mut model, &mut gradients, number);
        }

        set_num_threads(3);
        let found = checkpoints.load_latest().expect("it verifies").expect("it is there");
        let read: TrainerState = serde_json::from_value(found.manifest.state.clone()).expect("a state");
        assert_eq!(read, state);
        assert!(found.manifest.groups["optimizer"].len() > 1, "in shards");
        let mut again = self::model(16);
        for (spec, value) in specs.iter().zip(&saved) {
            again.set(&spec.name, &spec.shape, value).expect("its parameters");
        }
        let mut restored = Optimizer::new(config, &again);
        restored.restore(&specs, &found).expect("restored");
        assert_eq!(restored.steps(), 3);
        for number in 4..=6 {
            step(&mut restored, &mut again, &mut gradients, number);
        }
        assert_eq!(bits(&model), bits(&again), "{name:?}");
        assert_eq!(restored.metrics(), optimizer.metrics());
    }
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = Checkpoints::open(folder.path()).expect("a folder");
    let mut saved = model(16);
    let specs = saved.parameters().to_vec();
    let mut gradients = saved.gradients();
    let mut optimizer = Optimizer::new(OptimizerConfig::release(), &saved);
    (1..=2).for_each(|number| step(&mut optimizer, &mut saved, &mut gradients, number));
    let mut writer = checkpoints.begin(2).expect("a checkpoint");
    optimizer.save(&specs, &mut writer, u64::MAX).expect("saved");
    writer.commit().expect("saved");
    let found = checkpoints.load(2).expect("it verifies");

    let lion = OptimizerConfig { name: OptimizerName::LionW, ..OptimizerConfig::release() };
    let error = Optimizer::new(lion, &saved).restore(&specs, &found).expect_err("another rule");
    assert!(matches!(error, StateError::OtherRule { .. }), "{error}");
    assert!(error.to_string().contains("reset_optimizer_state"));

    let mut wider = model(24);
    let specs = wider.parameters().to_vec();
    let mut gradients = wider.gradients();
    let mut optimizer = Optimizer::new(OptimizerConfig::release(), &wider);
    let error = optimizer.restore(&specs, &found).expect_err("another model");
    assert!(error.to_string().contains("embed_tokens.weight.exp_avg"), "{error}");
    assert_eq!(optimizer.steps(), 0);
    let mut other = model(24);
    let mut fresh = Optimizer::new(OptimizerConfig::release(), &other);
    step(&mut optimizer, &mut wider, &mut gradients, 1);
    step(&mut fresh, &mut other, &mut gradients, 1);
    assert_eq!(bits(&wider), bits(&other));

    checkpoints.begin(3).and_then(|writer| writer.commit()).expect("an empty checkpoint");
    let error = fresh.restore(&specs, &checkpoints.load(3).expect("it verifies")).expect_err("nothing there");
    assert!(matches!(error, StateError::Checkpoint(SaveError::NotThere { .. })), "{error}");
}
