//! `olmoe train` from outside: signals, kills, messages, exit status.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

mod program;

use program::{PROGRAM, olmoe};
use tempfile::TempDir;

const YAML: &str = "
run_name: test
model: {d_model: 32, n_heads: 2, n_layers: 2, mlp_hidden_size: 48, block_type: moe, moe_num_experts: 4, moe_top_k: 2,
        rope: true, attention_dropout: 0, residual_dropout: 0, embedding_dropout: 0, vocab_size: 60, embedding_size: 64,
        attention_layer_norm: true, layer_norm_type: rms, include_bias: false, weight_tying: false, activation_type: swiglu,
        moe_loss_weight: 0.01, moe_zloss_weight: 0.001, eos_token_id: 0, pad_token_id: 1, max_sequence_length: 16}
optimizer: {name: adamw, learning_rate: 1e-2, eps: 1e-8, weight_decay: 0.1}
scheduler: {name: cosine_with_warmup, t_warmup: 3}
data: {drop_last: true}
global_train_batch_size: 4
device_train_microbatch_size: 4
precision: fp32
max_grad_norm: 1.0
max_duration: 100ep
save_interval: 5
save_num_checkpoints_to_keep: 2
";

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..40 * 16u32).flat_map(|i| ((i * i / 7 % 60) as u16).to_le_bytes()).collect();
    fs::write(folder.path().join("data.npy"), bytes).unwrap();
    let data = folder.path().join("data.npy");
    let yaml = YAML.replace("data: {", &format!("data: {{paths: [{}], ", data.display()));
    fs::write(folder.path().join("run.yml"), yaml).unwrap();
    folder
}

fn arguments(folder: &Path, run: &str, more: &[&str]) -> Vec<String> {
    let own = |path: PathBuf| path.to_str().unwrap().to_owned();
    let mut all = vec!["train".to_owned(), own(folder.join("run.yml"))];
    all.push(format!("--save_folder={}", own(folder.join(run))));
    all.extend(more.iter().map(ToString::to_string));
    all
}

fn train(folder: &Path, run: &str, more: &[&str]) -> program::Done {
    let all = arguments(folder, run, more);
    olmoe(&all.iter().map(String::as_str).collect::<Vec<_>>(), &[])
}

fn start(folder: &Path, run: &str, more: &[&str]) -> Child {
    let mut command = Command::new(PROGRAM);
    command.args(arguments(folder, run, more)).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Weights and moments of a checkpoint.
fn tensors(folder: &Path, run: &str, step: u64) -> Vec<Vec<u8>> {
    let step = folder.join(run).join(format!("step-{step}"));
    ["model", "optimizer"]
        .map(|group| fs::read(step.join(format!("{group}-00001-of-00001.safetensors"))).unwrap())
        .into()
}

/// The losses of a run's log, which has each step once and in order.
fn losses(folder: &Path, run: &str) -> Vec<f64> {
    let text = fs::read_to_string(folder.join(run).join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=lines.len() as u64).collect::<Vec<_>>());
    lines.iter().map(|line| line["train/CrossEntropyLoss"].as_f64().unwrap()).collect()
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

fn wait_for(path: &Path) {
    let began = Instant::now();
    while !path.exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
#[cfg(unix)]
fn killed_at_any_time_it_loses_nothing() {
    // 200 kills take some minutes.
    let kills: u64 = std::env::var("OLMOE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let folder = folder();
    let more = ["--max_duration=100000ep", "--save_interval_ephemeral=2", "--quiet", "--try_load_latest_save"];
    let endless = [&more[..], &["--stop_at=1000000"]].concat();
    let mut random = 1u64;
    for i in 0..kills {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let before = newest(folder.path(), "killed");
        let mut child = start(folder.path(), "killed", &endless);
        // Every other time it may not come to its first step; else it has saved, and does so again and again.
        let began = Instant::now();
        while i % 2 == 1 && newest(folder.path(), "killed") == before {
            assert!(began.elapsed() < Duration::from_secs(60), "nothing is saved");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(random >> 48));
        signal(&child, "KILL");
        assert_eq!(child.wait().unwrap().code(), None, "it was killed");
    }
    let steps = newest(folder.path(), "killed").unwrap() + 3;
    let stop = format!("--stop_at={steps}");
    let more = [&more[..], &[&stop]].concat();
    for run in ["killed", "whole"] {
        let done = train(folder.path(), run, &more);
        assert_eq!((done.code, done.err.as_str()), (0, ""), "{run}");
    }
    assert_eq!(tensors(folder.path(), "killed", steps), tensors(folder.path(), "whole", steps));
    assert_eq!(losses(folder.path(), "killed"), losses(folder.path(), "whole"));
    println!("killed {kills} times in {steps} steps");
}

/// The step that `latest` points at.
fn newest(folder: &Path, run: &str) -> Option<u64> {
    let latest = fs::read_link(folder.join(run).join("latest")).ok()?;
    latest.to_str()?.strip_prefix("step-")?.parse().ok()
}

#[test]
#[cfg(unix)]
fn a_signal_saves_and_the_run_goes_on() {
    let folder = folder();
    for name in ["INT", "TERM"] {
        let mut child =
            start(folder.path(), name, &["--save_interval=null", "--stop_at=100000", "--max_duration=100000ep"]);
        // The checkpoint before the first step.
        wait_for(&folder.path().join(name).join("step-0"));
        std::thread::sleep(Duration::from_millis(50));
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(75));
        let step = newest(folder.path(), name).unwrap();
        assert!(step > 0 && losses(folder.path(), name).len() as u64 == step);
        let stop = format!("--stop_at={}", step + 3);
        let duration = "--max_duration=100000ep";
        assert_eq!(
            train(folder.path(), name, &[&stop, duration, "--try_load_latest_save", "--save_interval=null"]).code,
            0
        );
        let whole = format!("whole-{name}");
        assert_eq!(train(folder.path(), &whole, &[&stop, duration, "--save_interval=null"]).code, 0);
        assert_eq!(tensors(folder.path(), name, step + 3), tensors(folder.path(), &whole, step + 3));
        assert_eq!(losses(folder.path(), name), losses(folder.path(), &whole));
    }
}

#[test]
#[cfg(unix)]
fn a_second_signal_while_saving_ends_it_at_once_and_loses_nothing() {
    let folder = folder();
    // Large enough that a save takes its time.
    let large = ["--model.embedding_size=16000", "--model.d_model=64", "--save_interval=null"];
    let endless = [&large[..], &["--max_duration=100000ep", "--stop_at=100000"]].concat();
    for (first, second, status) in [("INT", "INT", 130), ("TERM", "TERM", 143), ("INT", "TERM", 143)] {
        let run = format!("{first}-{second}");
        let path = folder.path().join(&run);
        let code = (0..20).find_map(|_| {
            if path.exists() {
                fs::remove_dir_all(&path).unwrap();
            }
            let mut child = start(folder.path(), &run, &endless);
            wait_for(&path.join("step-0"));
            wait_for_lines(&path.join("metrics.jsonl"));
            signal(&child, first);
            let saving = || {
                let names = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name());
                names
                    .filter_map(|name| name.into_string().ok())
                    .any(|name| name.ends_with(".tmp") && name.starts_with("step-"))
            };
            while !saving() && child.try_wait().unwrap().is_none() {}
            // It stands still until the second one has come.
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            signal(&child, "STOP");
            let in_time = saving();
            signal(&child, second);
            signal(&child, "CONT");
            let code = child.wait().unwrap().code();
            in_time.then_some(code)
        });
        assert_eq!(code, Some(Some(status)), "{run}");
        assert_eq!(newest(folder.path(), &run), Some(0));
        olmoe_checkpoint::save::verify(&path.join("step-0")).unwrap();
        let goes_on = [&large[..], &["--try_load_latest_save", "--stop_at=2"]].concat();
        let done = train(folder.path(), &run, &goes_on);
        assert_eq!(done.code, 0, "{}", done.err);
        assert_eq!((newest(folder.path(), &run), losses(folder.path(), &run).len()), (Some(2), 2));
    }
}

/// Until a file has a line.
fn wait_for_lines(path: &Path) {
    let began = Instant::now();
    while !fs::read(path).is_ok_and(|bytes| bytes.contains(&b'\n')) {
        assert!(began.elapsed() < Duration::from_secs(60), "{} stays empty", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn writes_samples_while_it_trains() {
    let folder = folder();
    let desk = program::desk::Desk::new("train", 64);
    let tokenizer = format!("--tokenizer.identifier={}", desk.path("tokenizer.json").display());
    let samples = "--samples={prompts: ['a b', \"c\\n\"], interval: 2, max_new_tokens: 5}";
    let more = ["--model.vocab_size=257", "--model.embedding_size=264", &tokenizer, samples, "--stop_at=5"];
    let done = train(folder.path(), "run", &more);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("step 4: \"a b\" -> \"") && done.err.contains("step 5: \"c\\n\" -> \""), "{}", done.err);
    let text = fs::read_to_string(folder.path().join("run/samples.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<_> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [2, 2, 4, 4, 5, 5]);
    assert!(lines.iter().all(|line| (1..=5).contains(&line["ids"].as_array().unwrap().len())), "{text}");
    let events = fs::read_dir(folder.path().join("run")).unwrap().map(|entry| entry.unwrap().path());
    let events = events.filter(|path| path.to_str().unwrap().contains("tfevents")).map(|path| fs::read(path).unwrap());
    assert!(events.flatten().collect::<Vec<u8>>().windows(9).any(|bytes| bytes == b"samples/1"));
    let done = train(folder.path(), "none", &["--tokenizer.identifier=none.json", samples]);
    assert!(done.code == 1 && done.err.contains("set `tokenizer.identifier`"), "{}", done.err);
    let done = train(folder.path(), "run", &["--print-config", samples]);
    assert!(done.out.ends_with("  top_p: 0.95\n  seed: null\n"), "{}", done.out);
}

#[test]
fn says_what_it_will_do_and_exports() {
    let folder = folder();
    let done = train(folder.path(), "run", &["--dry-run"]);
    assert_eq!(done.code, 0, "{}", done.err);
    for expected in
        ["parameters", "40 sequences of 16 tokens, 10 batches an epoch", "1000 steps of 64 tokens", "nothing was"]
    {
        assert!(done.out.contains(expected), "{expected}: {}", done.out);
    }
    let done = train(folder.path(), "run", &["--dry-run", "--data.paths=[none.npy]"]);
    assert_eq!(done.code, 0, "{}", done.err);
    for expected in [
        "run.yml: `data.paths` names none.npy, which cannot be read",
        "steps of 64 tokens; the length of the data is not known, and so neither is that of 100 epochs; nothing was written",
    ] {
        assert!(done.out.contains(expected), "{expected}: {}", done.out);
    }
    assert!(!done.out.contains("about") && !done.out.contains("supposed"), "{}", done.out);
    let done = train(folder.path(), "run", &["--dry-run", "--data.paths=[none.npy]", "--stop_at=1"]);
    assert!(
        done.code == 0
            && done.out.contains("the estimate below assumes enough of it\n1 step of 64 tokens, 64 tokens in all"),
        "{}",
        done.out
    );
    let done = train(folder.path(), "run", &["--print-config", "--data.paths=[none.npy]"]);
    assert!(done.code == 0 && done.out.contains("max_duration: \"100ep\""), "{}", done.out);
    assert!(!folder.path().join("run").exists());
    let done = train(folder.path(), "run", &["--stop_at=3", "--export", "hf", "--eval_on_load"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("step 3/3 · 0s left · loss"), "{}", done.err);
    assert!(folder.path().join("run/step-3-hf/config.json").is_file());
    let done = train(folder.path(), "run", &["--try_load_latest_save", "--stop_at=3", "--export=olmo", "--quiet"]);
    // --quiet means here what it means elsewhere: no notes either, although an unused setting is worth one.
    assert_eq!((done.code, done.err.as_str(), done.out.as_str()), (0, "", ""));
    let notes = ["--try_load_latest_save", "--stop_at=3", "--activation_checkpointing=one_in_two"];
    let said = train(folder.path(), "run", &notes);
    let quiet = train(folder.path(), "run", &[&notes[..], &["--quiet"]].concat());
    assert!(said.code == 0 && said.err.contains("note: "), "{}", said.err);
    assert_eq!((quiet.code, quiet.err.as_str()), (0, ""));
    // The same weights from either.
    let learned = ["step-3-hf", "step-3-olmo"].map(|name| {
        let from = format!("--load_path={}", folder.path().join("run").join(name).display());
        let done = train(folder.path(), name, &["--stop_at=1", &from]);
        assert!(done.code == 0 && done.err.contains("only the weights are loaded"), "{}", done.err);
        tensors(folder.path(), name, 1)
    });
    assert!(learned[0] == learned[1]);
    for (more, expected) in [
        (&["--optimizer.learning_rat=1"][..], "did you mean `optimizer.learning_rate`?"),
        (&["--data.paths=[none.npy]"], "run.yml: `data.paths` names none.npy, which cannot be read"),
        (&["--data.ratios=[-1]"], "run.yml: `data.ratios` is -1 for "),
        (&["--run_name=null"], "run.yml: `run_name` is not set"),
        (&["--data.memmap_dtype=uint32"], "data.npy holds numbers of type uint16, not uint32"),
        (&["--data.memmap_dtype=uint64"], "set `memmap_dtype: uint16` where the file is listed"),
        (&["--stop_at=5"], "set try_load_latest_save to go on"),
        (&["--precision=amp_fp16"], "amp_bf16, fp32"),
    ] {
        let done = train(folder.path(), "run", more);
        assert!(done.code == 1 && done.err.contains(expected), "{more:?}: {}", done.err);
    }
}
