//! Results replace nothing but results of their kind, and say what stands in their way.

mod program;

use std::path::Path;

use program::desk::Desk;
use program::{Done, olmoe};

/// Runs the program; words that begin with `@` are paths in the folder.
fn run(desk: &Desk, words: &str) -> Done {
    let words = words.split(' ').map(|word| match word.strip_prefix('@') {
        Some(name) => desk.path(name).to_str().unwrap().to_owned(),
        None => word.to_owned(),
    });
    olmoe(&words.collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>(), &[])
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_no_part_of_a_checkpoint_is_never_removed() {
    let desk = Desk::new("init", 32);
    let out = desk.path("out");
    assert_eq!(run(&desk, "convert @hf @dense --to hf --quiet").code, 0);
    for command in [
        "convert @hf @out --to hf",
        "convert @hf @out --to olmo",
        "soup @hf @hf --out @out --to hf",
        "init --config @config.json --seed 1 @out",
    ] {
        let _ = std::fs::remove_dir_all(&out);
        assert_eq!(run(&desk, "convert @hf @out --to hf --quiet").code, 0);
        // Without anything else in it, the checkpoint is replaced.
        assert_eq!(run(&desk, &format!("{command} --force --quiet")).code, 0, "{command}");
        for name in ["README.md", "LICENSE", "train.py", "results.csv", "model-q4.gguf", "optim.pt"] {
            std::fs::write(out.join(name), "mine").unwrap();
            let before = names(&out);
            let done = run(&desk, &format!("{command} --force --quiet"));
            assert_eq!(done.code, 1, "{command}: {}", done.err);
            assert!(done.err.contains(&format!("it holds {name}, which is no file of a checkpoint")), "{}", done.err);
            assert!(!done.err.contains("--force"), "it was given: {}", done.err);
            assert_eq!(names(&out), before, "{command}: nothing is removed and nothing left half done");
            std::fs::remove_file(out.join(name)).unwrap();
        }
        std::fs::create_dir(out.join("sub")).unwrap();
        for force in [" --force", ""] {
            let done = run(&desk, &format!("{command}{force} --quiet"));
            assert!(done.err.contains("it holds the folder sub") && !done.err.contains("--force"), "{}", done.err);
        }
        std::fs::remove_dir(out.join("sub")).unwrap();
        let done = run(&desk, &format!("{command} --quiet"));
        assert!(done.code == 1 && done.err.contains("--force to replace it"), "{}", done.err);
    }
}

#[test]
fn files_of_another_kind_are_not_replaced_by_models() {
    let desk = Desk::new("init", 32);
    std::fs::write(desk.path("letter"), "dear").unwrap();
    let part = desk.path("part-00001-of-00002.gguf");
    for command in [
        "convert @hf @letter --to gguf",
        "quantize @hf @letter --type f16",
        "convert @hf @letter --to hf",
        "init --config @config.json --seed 1 @letter --to gguf",
        "soup @hf @hf --out @letter --to gguf",
    ] {
        let done = run(&desk, &format!("{command} --force --quiet"));
        assert!(done.code == 1 && done.err.contains("it is not replaced"), "{command}: {}", done.err);
        assert!(!done.err.contains("--force"), "{}", done.err);
        assert_eq!(std::fs::read(desk.path("letter")).unwrap(), b"dear");
    }
    std::fs::write(&part, "dear").unwrap();
    let done = run(&desk, "convert @hf @part.gguf --to gguf --shard-size 20KB --force --quiet");
    let taken = names(&desk.path("")).iter().filter(|name| name.starts_with("part")).count();
    assert_eq!((std::fs::read(&part).unwrap().as_slice(), done.code == 0), (&b"dear"[..], taken > 1), "{}", done.err);
    // A GGUF file, an empty file and an empty folder are replaced; the last one needs no word.
    std::fs::write(desk.path("empty.gguf"), "").unwrap();
    for _ in 0..2 {
        assert_eq!(run(&desk, "convert @hf @empty.gguf --force --quiet").code, 0);
    }
    std::fs::create_dir(desk.path("empty")).unwrap();
    assert_eq!(run(&desk, "convert @hf @empty --to hf --quiet").code, 0);
    // What only has the name of a leftover.
    std::fs::create_dir(desk.path("new.partial")).unwrap();
    std::fs::write(desk.path("new.partial/diary"), "today").unwrap();
    let done = run(&desk, "convert @hf @new --to hf --quiet");
    assert!(done.code == 1 && done.err.contains("new.partial: it holds diary"), "{}", done.err);
    assert!(desk.path("new.partial/diary").exists());
}

#[test]
fn quickstart_writes_over_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), "mine").unwrap();
    let done = olmoe(&["quickstart", folder.path().to_str().unwrap(), "--size", "smallest"], &[]);
    assert!(done.code == 1 && done.err.contains("tokenizer.json: it exists already"), "{}", done.err);
    assert_eq!(names(folder.path()), ["tokenizer.json"]);
    assert_eq!(std::fs::read(folder.path().join("tokenizer.json")).unwrap(), b"mine");
}
