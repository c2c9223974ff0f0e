//! `olmoe quickstart`, with a single step of training.

use std::fs;

mod program;

use program::olmoe;

#[test]
fn from_text_to_a_model_that_writes_and_again() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("first tour");
    let name = folder.to_str().unwrap();
    let run = |words: &[&str]| olmoe(&[&["quickstart", name], words].concat(), &[("HOME", name)]);

    let done = run(&["--steps", "1"]);
    assert_eq!(done.code, 0, "{}", done.err);
    // The size is chosen by the speed of the machine, and said.
    let chosen = done.out.lines().next().unwrap();
    let size = chosen.rsplit(' ').next().unwrap();
    assert!(chosen.contains(" GFLOP/s with ") && ["smallest", "small", "medium", "full"].contains(&size), "{chosen}");
    for made in
        ["run/latest", "run/samples.jsonl", "loss.svg", "experts.svg", "model-hf/config.json", "model-q8_0.gguf"]
            .into_iter()
            .chain(["tuned/model/config.json", "text/instructions.jsonl"])
    {
        assert!(folder.join(made).exists(), "{made}");
    }
    // What counting predicts is known; a step of training is as good as none.
    for row in ["  prose                                6.53              4.27        10.", "  maths  "] {
        assert!(done.out.contains(row), "{row}: {}", done.out);
    }
    assert!(done.err.contains("step 1: eval/code/Perplexity"), "{}", done.err);
    assert!(done.out.contains("right to the letter, of 40: 0 before, "), "{}", done.out);
    // A command can be copied out, though there is a space in the folder's name.
    let shown = format!("$ olmoe train '{name}/train.yml' --try_load_latest_save\n");
    assert!(done.out.contains(&shown), "{}", done.out);

    let gguf = folder.join("model-q8_0.gguf");
    let written = fs::metadata(&gguf).unwrap().modified().unwrap();
    let again = run(&["--steps", "1"]);
    assert_eq!(again.code, 0, "{}", again.err);
    assert!(!again.out.contains("GFLOP/s"), "the size is that of the run: {}", again.out);
    assert!(
        again.out.contains("model-hf exists already") && again.err.contains("the only step is done"),
        "{}",
        again.err
    );
    assert_eq!(fs::metadata(&gguf).unwrap().modified().unwrap(), written);

    let another = if size == "small" { "medium" } else { "small" };
    for words in [&[][..], &["--steps", "1", "--size", another]] {
        let other = run(words);
        assert_eq!(other.code, 1);
        assert!(other.err.contains("train.yml: not the configuration of this run"), "{}", other.err);
    }
}

/// These evaluate a few sequences alone.
#[test]
fn small_sizes_evaluate_every_kind_of_text() {
    for size in ["smallest", "small"] {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(size);
        let name = folder.to_str().unwrap();
        let done = olmoe(&["quickstart", name, "--steps", "1", "--size", size], &[("HOME", name)]);
        assert_eq!(done.code, 0, "{size}: {}", done.err);
        for row in ["  prose  ", "  code  ", "  maths  "] {
            assert!(done.out.contains(row), "{size}, {row}: {}", done.out);
        }
    }
}

#[test]
fn what_is_wrong_is_said_before_anything_is_made() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    let quoted = home.path().join("a\"b");
    for (folder, expected) in [(&file, "file/train.yml"), (&quoted, "without \"")] {
        let done = olmoe(&["quickstart", folder.to_str().unwrap()], &[]);
        assert_eq!(done.code, 1, "{}", done.err);
        assert!(done.err.contains(expected), "{}", done.err);
    }
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    assert_eq!(olmoe(&["quickstart", "x", "--steps", "0"], &[]).code, 2);
}
