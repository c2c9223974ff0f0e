//! A run goes on only over the data that its checkpoint is in the middle of.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use olmoe_checkpoint::save::verify;
use olmoe_train::config::TrainConfig;
use olmoe_train::trainer::{Event, TrainError, Trainer};
use tempfile::TempDir;

const YAML: &str = "
run_name: test
model: {d_model: 16, n_heads: 2, n_layers: 1, mlp_hidden_size: 16, block_type: moe, moe_num_experts: 2, moe_top_k: 1,
        rope: true, attention_dropout: 0, residual_dropout: 0, embedding_dropout: 0, vocab_size: 60, embedding_size: 64,
        eos_token_id: 0, pad_token_id: 1, max_sequence_length: 8, include_bias: false, weight_tying: false}
optimizer: {name: adamw, learning_rate: 1e-3}
scheduler: {name: cosine_with_warmup, t_warmup: 3}
data: {drop_last: true}
global_train_batch_size: 4
device_train_microbatch_size: 4
precision: fp32
max_duration: 1ep
stop_at: 3
save_interval: 3
no_pre_train_checkpoint: true
";
/// Sequences of both files.
const SEQUENCES: usize = 24 + 8;

struct Desk(TempDir);

impl Desk {
    /// Two files, and a run over them that was stopped after three steps.
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        desk.tokens("d/a.npy", 24, 1);
        desk.tokens("d/b.npy", 8, 2);
        desk.train("run", &[]).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn tokens(&self, name: &str, sequences: u32, seed: u32) {
        let ids = (0..sequences * 8).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed << 28) >> 20) % 60);
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), ids.flat_map(|id| (id as u16).to_le_bytes()).collect::<Vec<_>>()).unwrap();
    }

    fn paths(&self, names: &[&str]) -> String {
        let paths: Vec<String> = names.iter().map(|name| self.path(name).display().to_string()).collect();
        format!("--data.paths=[{}]", paths.join(", "))
    }

    /// Trains, and gives what was noted.
    fn train(&self, run: &str, overrides: &[&str]) -> Result<Vec<String>, TrainError> {
        let own = [self.paths(&["d/a.npy", "d/b.npy"]), format!("--save_folder={}", self.path(run).display())];
        let all: Vec<String> = own.into_iter().chain(overrides.iter().map(ToString::to_string)).collect();
        let config = TrainConfig::from_yaml(YAML, &all, &|_| None).unwrap().config;
        let mut notices = Vec::new();
        let mut on = |event: Event<'_>| {
            if let Event::Notice(text) = event {
                notices.push(text.to_owned());
            }
        };
        Trainer::new(config, &mut on)?.run(&AtomicBool::new(false), &mut on)?;
        Ok(notices)
    }

    /// A copy of the run, as it was stopped.
    fn copy(&self, name: &str) {
        copy_folder(&self.path("run"), &self.path(name));
    }

    /// Goes on with a copy of the run to the end of the pass.
    fn go_on(&self, name: &str, overrides: &[&str]) -> Result<Vec<String>, TrainError> {
        self.copy(name);
        self.train(name, &[&["--try_load_latest_save", "--stop_at=null"][..], overrides].concat())
    }

    /// How often each sequence was trained on, from a step on.
    fn counts(&self, run: &str, from: u64) -> BTreeMap<u64, usize> {
        let file = fs::File::open(self.path(run).join("data-indices/rank0.tsv.gz")).unwrap();
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            let mut numbers = line.split('\t').map(|number| number.parse::<u64>().unwrap());
            if numbers.next().unwrap() >= from {
                numbers.for_each(|index| *counts.entry(index).or_insert(0) += 1);
            }
        }
        counts
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        match fs::read_link(&path) {
            #[cfg(unix)]
            Ok(target) => std::os::unix::fs::symlink(target, to.join(name)).unwrap(),
            _ if path.is_dir() => copy_folder(&path, &to.join(name)),
            _ => {
                fs::copy(&path, to.join(name)).unwrap();
            }
        }
    }
}

fn once() -> BTreeMap<u64, usize> {
    (0..SEQUENCES as u64).map(|index| (index, 1)).collect()
}

#[test]
fn the_rest_of_a_pass_is_what_was_not_seen() {
    let desk = Desk::new();
    assert_eq!(desk.go_on("same", &[]).unwrap(), [""; 0]);
    assert_eq!(desk.counts("same", 1), once());
    // The position counts sequences, and the order does not depend on the batch.
    desk.go_on("batch", &["--global_train_batch_size=5", "--device_train_microbatch_size=5"]).unwrap();
    assert_eq!(desk.counts("batch", 1), once());
    // Files that have moved are the same files.
    copy_folder(&desk.path("d"), &desk.path("elsewhere"));
    let moved = desk.paths(&["elsewhere/a.npy", "elsewhere/b.npy"]);
    assert_eq!(desk.go_on("moved", &[&moved]).unwrap(), [""; 0]);
    assert_eq!(desk.counts("moved", 1), once());
}

#[test]
fn other_data_is_refused_with_what_differs() {
    let desk = Desk::new();
    desk.tokens("e/a.npy", 24, 3);
    desk.tokens("e/b.npy", 9, 2);
    desk.tokens("e/c.npy", 8, 2);
    let paths = |names: &[&str]| desk.paths(names);
    let others = ["--run_name=other", "--stop_at=3", "--max_duration=2ep"];
    for (i, (overrides, expected)) in [
        (&["--seed=7"][..], "the seed of the order (`data.seed`, else `seed`) was 6198 and is 7"),
        (&["--data.seed=8"], "was 6198 and is 8"),
        (&["--model.max_sequence_length=4"], "`model.max_sequence_length` was 8 and is 4"),
        (&["--data.ratios=[1, 0.5]"], "the ratio of token file 1, b.npy, was 1 and is 0.5"),
        (&[&paths(&["d/a.npy"])], "the number of token files was 2 and is 1"),
        (&[&paths(&["d/b.npy", "d/a.npy"])], "token file 0 was a.npy of 384 bytes and is b.npy of 128 bytes"),
        (&[&paths(&["d/a.npy", "e/b.npy"])], "token file 1 was b.npy of 128 bytes and is b.npy of 144 bytes"),
        (&[&paths(&["d/a.npy", "e/c.npy"])], "token file 1 was b.npy of 128 bytes and is c.npy of 128 bytes"),
        (&[&paths(&["e/a.npy", "d/b.npy"])], "token file 0, a.npy of 384 bytes, has another content"),
        (&["--seed=7", &paths(&["d/a.npy"])], "and is 7; the number of token files was 2 and is 1"),
    ]
    .into_iter()
    .enumerate()
    {
        let run = format!("other{i}");
        let error = desk.go_on(&run, overrides).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{overrides:?}: {error}");
        assert!(error.contains("step-3: it was saved 12 sequences into pass 0 over its data"), "{error}");
        assert!(error.contains("set restore_dataloader=false") && !error.contains("reset_trainer_state"), "{error}");
        verify(&desk.path(&run).join("step-3")).unwrap();
        // The same in a run of its own; there is one way out more.
        let from = format!("--load_path={}", desk.path("run/step-3").display());
        let all = [overrides, &others, &[&from[..]]].concat();
        let error = desk.train(&format!("from{i}"), &all).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("or reset_trainer_state=true"), "{error}");
        for (j, way) in ["--restore_dataloader=false", "--reset_trainer_state", "--epoch=1"].into_iter().enumerate() {
            desk.train(&format!("way{i}-{j}"), &[&all[..], &[way]].concat()).unwrap();
        }
    }
}

#[test]
fn a_new_pass_over_other_data_begins_when_it_is_asked_for() {
    let desk = Desk::new();
    let overrides = ["--seed=7", "--restore_dataloader=false", "--stop_at=11"];
    let notices = desk.go_on("new", &overrides).unwrap();
    assert!(
        notices.len() == 1 && notices[0].contains("a new pass over the data begins, since the seed"),
        "{notices:?}"
    );
    // Steps 4 to 11 of four sequences are all of it.
    assert_eq!(desk.counts("new", 4), once());
    // That run goes on as any other, over the data that it has now.
    desk.copy("again");
    let mut all = [&overrides[..], &["--try_load_latest_save"]].concat();
    all[2] = "--stop_at=5";
    desk.train("again", &all).unwrap();
    all[2] = "--stop_at=11";
    assert_eq!(desk.train("again", &all).unwrap(), [""; 0]);
    assert_eq!(desk.counts("again", 4), once());
    // Without other data there is nothing to begin anew.
    assert_eq!(desk.go_on("same", &["--restore_dataloader=false"]).unwrap(), [""; 0]);
    assert_eq!(desk.counts("same", 1), once());
}

#[test]
fn a_checkpoint_that_does_not_say_is_trusted_with_a_note() {
    let desk = Desk::new();
    // As it was written before: without the record, under a seal of its own.
    let step = desk.path("run/step-3");
    fs::remove_file(step.join("data.json")).unwrap();
    let text = fs::read_to_string(step.join("manifest.json")).unwrap();
    let mut manifest: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    manifest.remove("blake3");
    manifest["files"].as_array_mut().unwrap().retain(|file| file["name"] != "data.json");
    let body = serde_json::to_string_pretty(&manifest).unwrap();
    let body = body.trim_end_matches("\n}");
    fs::write(
        step.join("manifest.json"),
        format!("{body},\n  \"blake3\": \"{}\"\n}}\n", blake3::hash(body.as_bytes())),
    )
    .unwrap();
    let notices = desk.go_on("old", &["--seed=7", "--stop_at=4"]).unwrap();
    assert!(notices.len() == 1 && notices[0].contains("does not record what it was trained on"), "{notices:?}");
    // From now on it does.
    assert!(desk.path("old/step-4/data.json").exists());
    let error = desk.train("old", &["--try_load_latest_save", "--stop_at=5"]).map(|_| ()).unwrap_err();
    assert!(matches!(error, TrainError::OtherData { examples: 16, epoch: 0, own: true, .. }), "{error}");
}
