//! `data.generate_attention_mask`: padding is hidden from attention and from the loss, in training and in evaluation.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use olmoe_data::pretrain::{Batch, DataSet, DataSettings};
use olmoe_model::model::{Activations, Keep};
use olmoe_train::config::TrainConfig;
use olmoe_train::loss::cross_entropy;
use olmoe_train::trainer::{Event, Trainer};

const YAML: &str = "
run_name: test
model: {d_model: 32, n_heads: 2, n_layers: 2, mlp_hidden_size: 48, block_type: moe, moe_num_experts: 4, moe_top_k: 2,
        rope: true, attention_dropout: 0, residual_dropout: 0, embedding_dropout: 0, vocab_size: 60, embedding_size: 64,
        attention_layer_norm: true, layer_norm_type: rms, include_bias: false, weight_tying: false, init_std: 0.3,
        moe_loss_weight: 0.01, moe_zloss_weight: 0.001, eos_token_id: 0, pad_token_id: 1, max_sequence_length: 16}
optimizer: {name: adamw, learning_rate: 1e-2, eps: 1e-8, weight_decay: 0.1}
scheduler: {name: cosine_with_warmup, t_warmup: 3}
global_train_batch_size: 5
device_train_microbatch_size: 2
device_eval_batch_size: 3
precision: fp32
max_duration: 1
stop_at: 1
save_num_checkpoints_to_keep: 0
";
const SEQUENCES: usize = 5;
const LENGTH: usize = 16;

/// Padding (1) in front, here and there, and behind.
fn ids() -> Vec<u32> {
    let id = |i: u32| match (i / 16, i % 16) {
        (0, 0..3) | (1, 5 | 6) | (2, 12..) | (3, 0 | 15) => 1,
        _ => 2 + i * i * 7 % 57,
    };
    (0..(SEQUENCES * LENGTH) as u32).map(id).collect()
}

fn config(folder: &Path, mask: bool) -> TrainConfig {
    let data = format!(
        "{{paths: [{}], drop_last: true, generate_attention_mask: {mask}}}",
        folder.join("padded.npy").display()
    );
    let overrides = [
        format!("--data={data}"),
        format!("--evaluators=[{{label: held, data: {data}}}]").replace("drop_last: true", "drop_last: false"),
        format!("--save_folder={}", folder.join(format!("run-{mask}")).display()),
    ];
    TrainConfig::from_yaml(YAML, &overrides, &|_| None).unwrap().config
}

/// The log-probabilities of the targets, with the padding hidden from attention or not.
fn log_probs(trainer: &Trainer, batch: &Batch, hide: bool) -> Vec<f32> {
    let mut tokens = olmoe_model::batch::Batch::uniform(&batch.ids, LENGTH).unwrap();
    if hide {
        tokens = tokens.with_hidden(batch.ids.iter().map(|id| *id == 1).collect()).unwrap();
    }
    let mut activations = Activations::new(Keep::Nothing);
    trainer.model().forward(&tokens, &mut activations).unwrap();
    trainer.model().log_probs(&activations, &batch.targets()).unwrap().logp_t.to_vec()
}

#[test]
fn training_hides_padding() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("padded.npy");
    std::fs::write(&file, ids().iter().flat_map(|id| (*id as u16).to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let mut found = Vec::new();
    for mask in [true, false] {
        let mut notices = Vec::new();
        let mut on = |event: Event<'_>| {
            if let Event::Notice(text) = event {
                notices.push(text.to_owned());
            }
        };
        let mut trainer = Trainer::new(config(folder.path(), mask), &mut on).unwrap();
        assert_eq!(notices, [""; 0]);
        let attention_mask = mask.then_some(1);
        let settings = DataSettings { attention_mask, ..DataSettings::new(vec![file.clone()], LENGTH) };
        let batch = Batch::read(&DataSet::open(settings).unwrap(), &[0, 1, 2, 3, 4], 0).unwrap();
        let loss = |hide| cross_entropy(&log_probs(&trainer, &batch, hide), (SEQUENCES * LENGTH) as f64);
        let (expected, other) = (loss(mask), loss(!mask));
        assert!((expected - other).abs() > 1e-4, "attention to the padding shows: {expected} {other}");
        let report = trainer.step(&batch, 1).unwrap();
        assert!((report.cross_entropy - expected).abs() <= 1e-6 * expected, "{} {expected}", report.cross_entropy);
        found.push(report.loads);
    }
    assert_ne!(found[0], found[1], "the experts that tokens choose");
    let choices = (SEQUENCES * LENGTH * 2) as u64;
    assert!(found.iter().flatten().all(|loads| loads.iter().sum::<u64>() == choices), "padding has experts, too");
}

#[test]
fn evaluation_hides_padding() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("padded.npy");
    std::fs::write(&file, ids().iter().flat_map(|id| (*id as u16).to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let mut evaluated = Vec::new();
    let mut trainer = Trainer::new(config(folder.path(), true), &mut |_| {}).unwrap();
    trainer
        .run(&AtomicBool::new(false), &mut |event| {
            if let Event::Evaluated(_, metrics) = event {
                evaluated.extend(metrics.to_vec());
            }
        })
        .unwrap();
    let settings = DataSettings { attention_mask: Some(1), ..DataSettings::new(vec![file], LENGTH) };
    let batch = Batch::read(&DataSet::open(settings).unwrap(), &[0, 1, 2, 3, 4], 0).unwrap();
    let logp = log_probs(&trainer, &batch, true);
    let expected: f64 = logp.chunks(LENGTH).map(|logp| cross_entropy(logp, 15.0)).sum::<f64>() / SEQUENCES as f64;
    let (_, found) = evaluated.iter().find(|(name, _)| name == "eval/held/CrossEntropyLoss").unwrap();
    assert!((found - expected).abs() <= 1e-6 * expected, "{found} {expected}");
}
