//! Texts that are written in the middle of training: they change nothing, and an interruption changes nothing of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use olmoe_data::{Tokenizer, Vocabulary};
use olmoe_tensor::memory::peak_bytes;
use olmoe_tensor::threads::set_num_threads;
use olmoe_train::config::TrainConfig;
use olmoe_train::metrics::SampleLog;
use olmoe_train::trainer::{Event, Outcome, TrainError, Trainer};
use tempfile::TempDir;

const YAML: &str = "
run_name: test
model: {d_model: 32, n_heads: 2, n_layers: 2, mlp_hidden_size: 48, block_type: moe, moe_num_experts: 4, moe_top_k: 2,
        rope: true, attention_dropout: 0, residual_dropout: 0, embedding_dropout: 0, vocab_size: 257, embedding_size: 264,
        attention_layer_norm: true, layer_norm_type: rms, include_bias: false, weight_tying: false, activation_type: swiglu,
        eos_token_id: 256, pad_token_id: 1, max_sequence_length: 32}
optimizer: {name: adamw, learning_rate: 1e-2}
scheduler: {name: cosine_with_warmup, t_warmup: 3}
data: {drop_last: true}
global_train_batch_size: 4
device_train_microbatch_size: 4
precision: amp_bf16
max_duration: 10
stop_at: 10
save_interval: 3
no_pre_train_checkpoint: true
";

const PROMPTS: &str = "--samples={prompts: ['ab', 'the <|endoftext|>'], interval: 3, max_new_tokens: 12}";

/// The process has one number of threads and one pool of memory.
static PROCESS: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    PROCESS.lock().unwrap_or_else(|error| error.into_inner())
}

/// When a run is asked to stop.
#[derive(Clone, Copy, PartialEq)]
enum Stop {
    Never,
    /// After the step.
    Step(u64),
    /// When the step is saved, right before its samples.
    Save(u64),
}

#[derive(Debug, PartialEq)]
struct Seen {
    losses: Vec<u64>,
    /// Steps of samples.
    steps: Vec<u64>,
    /// `peak_bytes` at the samples.
    peaks: Vec<usize>,
}

struct Runs(TempDir);

impl Runs {
    fn new() -> Runs {
        let runs = Runs(tempfile::tempdir().unwrap());
        let text = "abc the abcd of the abc ".repeat(40);
        let bytes: Vec<u8> = text.bytes().flat_map(|byte| u16::from(byte).to_le_bytes()).collect();
        fs::write(runs.path("data.npy"), bytes).unwrap();
        fs::write(runs.path("tokenizer.json"), tokenizer().json()).unwrap();
        runs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn trainer(&self, name: &str, overrides: &[&str]) -> Result<Trainer, TrainError> {
        let own = |key: &str, name: &str| format!("--{key}={}", self.path(name).display());
        let mut all = vec![own("save_folder", name), own("tokenizer.identifier", "tokenizer.json")];
        all.push(format!("--data.paths=[{}]", self.path("data.npy").display()));
        all.extend(overrides.iter().map(ToString::to_string));
        Trainer::new(TrainConfig::from_yaml(YAML, &all, &|_| None)?.config, &mut |_| {})
    }

    fn train(&self, name: &str, overrides: &[&str], stop: Stop) -> (Outcome, Seen) {
        let mut trainer = self.trainer(name, overrides).unwrap();
        let mut log = SampleLog::open(&self.path(name), trainer.sampled_up_to().unwrap()).unwrap();
        let mut seen = Seen { losses: Vec::new(), steps: Vec::new(), peaks: Vec::new() };
        let interrupt = AtomicBool::new(false);
        let outcome = trainer.run(&interrupt, &mut |event| match event {
            Event::Step(report, _) => {
                seen.losses.push(report.cross_entropy.to_bits());
                interrupt.fetch_or(stop == Stop::Step(report.step), Ordering::Relaxed);
            }
            Event::Saved(saved, _) => _ = interrupt.fetch_or(stop == Stop::Save(saved.step), Ordering::Relaxed),
            Event::Sampled(samples) => {
                assert_eq!(samples.len(), 2);
                samples.iter().for_each(|sample| log.append(sample).unwrap());
                seen.steps.push(samples[0].step);
                seen.peaks.push(peak_bytes());
            }
            Event::Notice(_) | Event::Evaluated(..) => {}
        });
        (outcome.unwrap(), seen)
    }

    fn samples(&self, name: &str) -> String {
        fs::read_to_string(self.path(name).join("samples.jsonl")).unwrap()
    }

    fn weights(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name).join("step-10/model-00001-of-00001.safetensors")).unwrap()
    }
}

/// The bytes, then an end of text.
fn tokenizer() -> Tokenizer {
    Tokenizer::from_vocabulary(&Vocabulary { pad: Some(1), ..Vocabulary::bytes() }).unwrap()
}

#[test]
fn training_does_not_notice_them() {
    let _alone = alone();
    let runs = Runs::new();
    let (_, without) = runs.train("without", &[], Stop::Never);
    assert_eq!((without.losses.len(), without.steps.len()), (10, 0));
    for threads in [1, 2] {
        set_num_threads(threads);
        let name = format!("with{threads}");
        let (outcome, with) = runs.train(&name, &[PROMPTS], Stop::Never);
        assert_eq!((outcome, &with.steps[..]), (Outcome::Finished, &[3, 6, 9, 10][..]));
        assert_eq!(with.losses, without.losses);
        assert!(runs.weights(&name) == runs.weights("without"));
    }
    let samples = runs.samples("with1");
    assert_eq!(samples, runs.samples("with2"));
    let lines: Vec<serde_json::Value> = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let tokenizer = tokenizer();
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["prompt"], ["ab", "the <|endoftext|>"][i % 2]);
        let ids: Vec<u32> = line["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert!(ids.iter().all(|id| *id <= 256), "{line}");
        assert_eq!(line["text"], tokenizer.decode(&ids, true).unwrap());
        assert!(ids.len() == 12 && line["finish_reason"] == "length" || ids.last() == Some(&256), "{line}");
    }
    // The model has moved between them.
    assert!(lines[0]["ids"] != lines[6]["ids"] || lines[1]["ids"] != lines[7]["ids"]);
    let (_, other) = runs.train("seed", &[PROMPTS, "--samples.seed=1"], Stop::Never);
    assert_eq!(other.losses, without.losses);
    assert_ne!(runs.samples("seed"), samples);
}

#[test]
fn an_interruption_loses_none_and_doubles_none() {
    let _alone = alone();
    let runs = Runs::new();
    runs.train("whole", &[PROMPTS], Stop::Never);
    for (i, stop) in [Stop::Step(2), Stop::Step(3), Stop::Step(7), Stop::Step(10), Stop::Save(3), Stop::Save(9)]
        .into_iter()
        .enumerate()
    {
        let name = format!("part{i}");
        let (outcome, first) = runs.train(&name, &[PROMPTS], stop);
        assert_eq!(outcome, Outcome::Interrupted);
        if let Stop::Save(step) = stop {
            assert!(!first.steps.contains(&step), "{:?}", first.steps);
        }
        let (outcome, _) = runs.train(&name, &[PROMPTS, "--try_load_latest_save"], Stop::Never);
        assert_eq!(outcome, Outcome::Finished);
        assert_eq!(runs.samples(&name), runs.samples("whole"), "{i}");
    }
    // Those of steps that were not saved are written again; so are those of a run that is over.
    fs::remove_dir_all(runs.path("part0/step-9")).unwrap();
    fs::remove_dir_all(runs.path("part0/step-10")).unwrap();
    for steps in [&[6, 9, 10][..], &[10]] {
        let (_, seen) = runs.train("part0", &[PROMPTS, "--try_load_latest_save"], Stop::Never);
        assert_eq!(seen.steps, steps);
        assert_eq!(runs.samples("part0"), runs.samples("whole"));
    }
}

#[test]
fn memory_does_not_grow_with_them() {
    let _alone = alone();
    set_num_threads(1);
    let runs = Runs::new();
    let often = [PROMPTS, "--samples.interval=1", "--max_duration=1000", "--stop_at=120", "--save_interval=null"];
    let (_, seen) = runs.train("run", &often, Stop::Never);
    let (middle, last) = (seen.peaks[59], seen.peaks[119]);
    // A cache of one text takes 8 KB: 2 (keys, values) x 2 layers x 32 x 32 numbers. 120 texts were written in between.
    let leak = 120 * 8192;
    assert!(last < middle + leak / 4, "{middle} bytes after 60 times, {last} after 120");
}

#[test]
fn what_cannot_be_written_is_said_before_the_run_begins() {
    let _alone = alone();
    let runs = Runs::new();
    let none = format!("--tokenizer.identifier={}", Path::new("none.json").display());
    for (i, (overrides, expected)) in [
        (&[PROMPTS, &none][..], "set `tokenizer.identifier` to its tokenizer.json"),
        (&[PROMPTS, "--tokenizer.identifier=gpt2"], "samples and tasks need the tokenizer of the data"),
        (
            &["--samples={prompts: [ab, '0123456789012345678901234567890123']}"],
            "`samples.prompts[1]`: the prompt has 34 tokens",
        ),
        (&["--samples={prompts: ['']}"], "`samples.prompts[0]`: the prompt has no tokens"),
        (&["--samples={prompts: [ab]}", "--samples.top_p=0"], "in the section `samples`: top_p is 0"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("run{i}");
        let error = runs.trainer(&name, overrides).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{overrides:?}: {error}");
        assert!(!runs.path(&name).join("config.yaml").exists());
    }
}
