//! A fault at every operation of a run on its disk: whatever it is, the run that goes on afterwards ends with the weights,
//! the indices and the configuration of one that nothing happened to.
#![cfg(unix)]

#[path = "../../olmoe-checkpoint/tests/faults/disk.rs"]
mod disk;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use disk::{Fault, FaultyDisk, Luck, Tree};
use olmoe_train::config::TrainConfig;
use olmoe_train::metrics::{EventFile, FILE_NAME, LOSS, MetricsLog, Reader, Record};
use olmoe_train::trainer::{CONFIG_FILE, Event, Outcome, Trainer};

const YAML: &str = "
run_name: test
model: {d_model: 8, n_heads: 1, n_layers: 1, mlp_hidden_size: 8, block_type: moe, moe_num_experts: 2, moe_top_k: 1,
        rope: true, attention_dropout: 0, residual_dropout: 0, embedding_dropout: 0, vocab_size: 20, embedding_size: 20,
        attention_layer_norm: true, layer_norm_type: rms, include_bias: false, weight_tying: false, activation_type: swiglu,
        eos_token_id: 0, pad_token_id: 1, max_sequence_length: 4}
optimizer: {name: adamw, learning_rate: 1e-2}
scheduler: {name: cosine_with_warmup, t_warmup: 1}
data: {drop_last: true}
global_train_batch_size: 2
device_train_microbatch_size: 2
precision: fp32
max_duration: 3
stop_at: 3
save_interval: 1
save_num_checkpoints_to_keep: 2
no_pre_train_checkpoint: true
try_load_latest_save: true
";

/// Two batches are an epoch, so that the second one begins in the middle of the run.
const SEQUENCES: usize = 4;

/// Trains on a disk, with the metrics that the program writes down. `after` ends it after a step.
fn train(disk: &FaultyDisk, root: &Path, after: u64) -> Result<Outcome, String> {
    let run = root.join("run");
    let overrides = [
        format!("--data.paths=[{}]", root.with_file_name("data.npy").display()),
        format!("--save_folder={}", run.display()),
    ];
    let config = TrainConfig::from_yaml(YAML, &overrides, &|_| None).unwrap().config;
    let mut trainer = Trainer::on_disk(config, disk, &mut |_| {}).map_err(|error| error.to_string())?;
    let step = trainer.state().step;
    let lines = MetricsLog::open_on(disk, &run, step);
    let events = EventFile::create_on(disk, &run, step, SystemTime::now());
    let mut metrics = lines.and_then(|lines| Ok((lines, events?)));
    let interrupt = AtomicBool::new(false);
    let outcome = trainer.run(&interrupt, &mut |event| {
        let Ok((lines, events)) = &mut metrics else { return };
        let done = match event {
            Event::Step(report, _) => {
                interrupt.fetch_or(report.step >= after, Ordering::Relaxed);
                let record = Record::new(report.step).with(LOSS, report.cross_entropy);
                lines.append(&record).and_then(|()| events.append(&record, SystemTime::now()))
            }
            Event::Saved(..) => lines.sync(),
            _ => Ok(()),
        };
        if let Err(error) = done {
            metrics = Err(error);
        }
    });
    outcome.map_err(|error| error.to_string())
}

/// What a run left that no fault may change.
#[derive(Debug, PartialEq)]
struct Left {
    checkpoint: Tree,
    indices: String,
    config: String,
}

fn left(run: &Path) -> Left {
    let mut indices = String::new();
    let file = File::open(run.join("data-indices/rank0.tsv.gz")).unwrap();
    flate2::read::MultiGzDecoder::new(file).read_to_string(&mut indices).unwrap();
    Left {
        checkpoint: Tree::read(&run.join("step-3")),
        indices,
        config: std::fs::read_to_string(run.join(CONFIG_FILE)).unwrap(),
    }
}

/// A folder for the run, in memory where the system has such a folder, beside its data.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let memory = Path::new("/dev/shm");
    let folder = tempfile::tempdir_in(if memory.is_dir() { memory.into() } else { std::env::temp_dir() }).unwrap();
    let ids = (0..SEQUENCES * 4).flat_map(|i| ((i * 7 + i / 3) as u16 % 20).to_le_bytes());
    std::fs::write(folder.path().join("data.npy"), ids.collect::<Vec<u8>>()).unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir(&root).unwrap();
    (folder, root)
}

/// Goes on to the end, on a disk without faults that has to know every file there is.
fn go_on(root: &Path, what: &str) -> Left {
    let disk = FaultyDisk::new(root, Fault::None);
    assert_eq!(train(&disk, root, u64::MAX), Ok(Outcome::Finished), "{what}");
    let found = Tree::read(root);
    disk.settle(Luck::SystemLives);
    assert!(Tree::read(root) == found, "{what}: a file was changed past the disk");
    let steps: Vec<u64> =
        Reader::open(&root.join("run").join(FILE_NAME)).unwrap().map(|record| record.unwrap().step).collect();
    assert!(steps.is_sorted_by(|a, b| a < b) && steps.last().is_none_or(|step| *step <= 3), "{what}: {steps:?}");
    left(&root.join("run"))
}

#[test]
fn no_fault_of_the_disk_changes_what_a_run_comes_to() {
    let (_folder, root) = folder();
    let before = Tree::read(&root);
    let expected = go_on(&root, "nothing");
    assert_eq!(expected.indices.lines().count(), 3);
    for at in 1.. {
        let lucks = [Luck::SystemLives, Luck::Worst, Luck::Random(at as u64), Luck::Random(at as u64 + 1000)];
        let deaths = lucks.map(|luck| (Fault::Death(at), Some(luck)));
        for (fault, luck) in [(Fault::Error(at), None), (Fault::Errors(at), None)].into_iter().chain(deaths) {
            before.write(&root);
            let disk = FaultyDisk::new(&root, fault);
            let result = train(&disk, &root, u64::MAX);
            if !disk.fired() {
                assert_eq!(result, Ok(Outcome::Finished));
                // The fault is past the last operation: config, order, indices, metrics and three checkpoints.
                assert!(at > 100, "{at} operations");
                return;
            }
            if let Some(luck) = luck {
                disk.settle(luck);
            }
            let what = format!("{fault:?}, {luck:?}: {result:?}");
            assert_eq!(go_on(&root, &what), expected, "{what}");
        }
    }
}

/// The same when the run goes on from a checkpoint and faults meet it then.
#[test]
fn no_fault_of_the_disk_meets_a_run_that_goes_on() {
    let (_folder, root) = folder();
    let disk = FaultyDisk::new(&root, Fault::None);
    assert_eq!(train(&disk, &root, 2), Ok(Outcome::Interrupted));
    let before = Tree::read(&root);
    let expected = go_on(&root, "nothing");
    for at in 1.. {
        let lucks = [Luck::SystemLives, Luck::Worst, Luck::Random(at as u64)];
        for luck in lucks {
            before.write(&root);
            let disk = FaultyDisk::new(&root, Fault::Death(at));
            let result = train(&disk, &root, u64::MAX);
            if !disk.fired() {
                assert!(at > 40, "{at} operations");
                return;
            }
            disk.settle(luck);
            let what = format!("death at {at}, {luck:?}: {result:?}");
            assert_eq!(go_on(&root, &what), expected, "{what}");
        }
    }
}
