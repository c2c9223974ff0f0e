//! `olmoe merge`, and `--adapter` of the commands that run a model, with peft's adapters of `tests/golden/adapters`.

mod program;

use std::path::{Path, PathBuf};

use olmoe_checkpoint::safetensors::Shards;
use program::{Done, olmoe};

const IDS: &str = "3,17,5,39,8,22,11,30,2,14,27,6";

fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/adapters").join(name);
    path.to_str().unwrap().to_owned()
}

fn numbers(path: &Path, name: &str) -> Vec<f32> {
    let file = Shards::open([path]).unwrap();
    let mut bytes = vec![0; file.get(name).unwrap().bytes as usize];
    file.read_at(name, 0, &mut bytes).unwrap();
    bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
}

/// The logits that peft and transformers computed.
fn expected(stage: &str, name: &str) -> Vec<f32> {
    numbers(Path::new(&golden(&format!("logits_{stage}.safetensors"))), &format!("logits.{name}"))
}

struct Desk(tempfile::TempDir);

impl Desk {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn logits(&self, model: &str, adapters: &[&str]) -> (Vec<f32>, Done) {
        let out = self.text("logits.safetensors");
        let mut words = vec!["logits", "-m", model, "--ids", IDS, "--out", &out];
        words.extend(adapters.iter().flat_map(|adapter| ["--adapter", adapter]));
        let done = olmoe(&words, &[]);
        assert_eq!(done.code, 0, "{}", done.err);
        (numbers(&self.path("logits.safetensors"), "logits"), done)
    }

    fn merge(&self, words: &[&str]) -> Done {
        let base = golden("base");
        olmoe(&[&["merge", "-m", &base], words].concat(), &[])
    }
}

fn difference(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn adapters_run_beside_a_model_and_are_merged_into_it() {
    let desk = Desk(tempfile::tempdir().unwrap());
    let base = golden("base");
    let adapter = golden("separate");
    let wanted = expected("separate", "separate");
    let (found, done) = desk.logits(&base, &[&adapter]);
    assert!(difference(&found, &wanted) < 1e-5, "{}", difference(&found, &wanted));
    assert!(!done.err.contains("was made for"), "{}", done.err);
    let (nothing, _) = desk.logits(&base, &[&format!("{adapter}@0")]);
    assert!(difference(&nothing, &expected("separate", "base")) < 1e-5);
    let half = format!("{adapter}@0.5");
    let (halves, _) = desk.logits(&base, &[&half, &half]);
    assert!(difference(&halves, &wanted) < 1e-5);

    // Merged, in any format; what survives is told.
    let out = desk.text("merged");
    let done = desk.merge(&["--adapter", &adapter, "-o", &out, "--to", "hf"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.out.contains("moe.experts.down_proj") && done.out.contains("100.00%"), "{}", done.out);
    assert!(difference(&desk.logits(&out, &[]).0, &wanted) < 1e-5);
    let out = desk.text("merged.gguf");
    let done = desk.merge(&["--adapter", &adapter, "-o", &out, "--dtype", "bf16", "--json"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.out.contains("\"kinds\""), "{}", done.out);
    // The name is another one's now.
    let copy = desk.text("another.gguf");
    std::fs::rename(&out, &copy).unwrap();
    let (_, done) = desk.logits(&copy, &[&adapter]);
    assert!(done.err.contains("was made for base"), "{}", done.err);

    // One adapter of two, in each form.
    for (name, more) in [("sum.gguf", &[][..]), ("sum", &[]), ("stacks", &["--layout", "fused"])] {
        let out = desk.text(name);
        let done = desk.merge(&[&["--adapter", &half, "--adapter", &half, "-o", &out, "--as-adapter"], more].concat());
        assert_eq!(done.code, 0, "{}", done.err);
        assert!(difference(&desk.logits(&base, &[&out]).0, &wanted) < 1e-5, "{name}");
    }
}

#[test]
fn adapters_that_cannot_be_used_are_errors() {
    let desk = Desk(tempfile::tempdir().unwrap());
    let (dora, base, out) = (golden("separate_dora"), golden("base"), desk.text("out"));
    for (words, expected) in [
        (
            vec!["--adapter", &dora, "--adapter", &dora, "-o", &out, "--to", "hf"],
            "magnitudes belong to one adapter alone",
        ),
        (vec!["--adapter", &base, "-o", &out, "--to", "hf"], "no adapter here"),
        (vec!["-o", &out, "--to", "hf"], "--adapter"),
        (vec!["--adapter", &dora, "-o", &out], "--to"),
        (vec!["--adapter", "nowhere", "-o", &out, "--to", "hf"], "nowhere"),
        (vec!["--adapter", &dora, "-o", &out, "--to", "hf", "--into", "q8_0"], "folder"),
    ] {
        let done = desk.merge(&words);
        assert!(done.code != 0 && done.err.contains(expected), "{words:?}: {}", done.err);
    }
    let gguf = desk.text("dora.gguf");
    let done = desk.merge(&["--adapter", &dora, "-o", &gguf, "--as-adapter"]);
    assert!(done.code != 0 && done.err.contains("olmoe merge --to gguf"), "{}", done.err);
    assert!(!desk.path("out").exists());
}
