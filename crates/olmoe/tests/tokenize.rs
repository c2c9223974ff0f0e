//! `olmoe tokenize`, as a user runs it.

mod program;

use std::path::Path;

use program::{Done, olmoe};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../olmoe-data/tests/golden");

fn tokenize(arguments: &[&str]) -> Done {
    olmoe(&[&["tokenize"], arguments].concat(), &[])
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn documents_become_token_files() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let (corpus, tokenizer) = (format!("{GOLDEN}/corpus"), format!("{GOLDEN}/tokenizer.json"));
    let flags = ["--documents", &corpus, "--tokenizer.name_or_path", &tokenizer, "--max_size", "1_000_000"];
    let place = out.to_str().unwrap();
    let to_out = [&flags[..], &["--destination", place]].concat();

    let dry = tokenize(&[&to_out[..], &["--dryrun", "--processes", "2"]].concat());
    assert_eq!(dry.code, 0, "{}", dry.err);
    for expected in
        ["eos_token_id 263, bos_token_id none, dtype uint16", "max_size 1000000", "5 files, ", "in 2 groups"]
    {
        assert!(dry.out.contains(expected), "{expected}: {}", dry.out);
    }
    assert_eq!(dry.out.matches("\ngroup ").count(), 5);
    assert!(!out.exists());

    let done = tokenize(&to_out);
    assert_eq!(done.code, 0, "{}", done.err);
    let summary = "part files 1, documents 185, tokens 6391; left out: malformed lines 9, empty texts 3\n";
    assert!(done.out.ends_with(summary), "{}", done.out);
    assert_eq!(done.err.matches("left out: ").count(), 9, "{}", done.err);
    assert!(done.err.contains("a.jsonl line 6: invalid type: sequence, expected an object"), "{}", done.err);
    assert_eq!(names(&out), ["part-0-00000.csv.gz", "part-0-00000.npy"]);
    let bytes = std::fs::read(out.join("part-0-00000.npy")).unwrap();
    assert_eq!(bytes.len(), 2 * 6391);

    let again = tokenize(&to_out);
    assert_eq!((again.code, again.err.contains("replace it with --force")), (1, true), "{}", again.err);
    let forced = tokenize(&[&to_out[..], &["--force", "--quiet", "--threads", "1"]].concat());
    assert_eq!((forced.code, forced.out.as_str()), (0, ""), "{}", forced.err);
    assert_eq!(std::fs::read(out.join("part-0-00000.npy")).unwrap(), bytes);

    // The same from a file, where a flag comes first.
    let config = folder.path().join("tokens.yaml");
    let second = folder.path().join("second");
    let text = format!(
        "documents: ['{corpus}/*']\ndestination: nowhere\nmax_size: 1_000_000\nprocesses: 1\n\
         tokenizer:\n  name_or_path: {tokenizer}\n  eos_token_id: 263\nfields: {{id_field_name: id}}\n"
    );
    std::fs::write(&config, text).unwrap();
    let done = tokenize(&["-c", config.to_str().unwrap(), "--destination", second.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(std::fs::read(second.join("part-0-00000.npy")).unwrap(), bytes);
}

#[test]
fn what_cannot_be_done_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (corpus, tokenizer) = (format!("{GOLDEN}/corpus"), format!("{GOLDEN}/tokenizer.json"));
    let config = folder.path().join("bad.yaml");
    std::fs::write(&config, "procesess: 2\n").unwrap();
    let all = ["--documents", &corpus, "--tokenizer.name_or_path", &tokenizer];
    let cases: [(&str, &[&str], i32, &str); 11] = [
        ("no documents", &["--tokenizer.name_or_path", &tokenizer], 1, "there are no documents to read"),
        ("no tokenizer", &["--documents", &corpus], 1, "--tokenizer.name_or_path"),
        ("no destination", &[], 1, "no destination is given"),
        ("no match", &["--documents", "none/*", "--dryrun"], 1, "note: no documents match none/*"),
        ("dtype", &["--dtype", "float32", "--dryrun"], 1, "`dtype` is float32; use uint8"),
        ("narrow", &["--dtype", "uint8", "--dryrun"], 1, "choose a wider dtype"),
        ("number", &["--seed=-1"], 2, "expected a whole number"),
        ("slow tokenizer", &["--tokenizer.fast=false", "--dryrun"], 1, "`tokenizer.fast` is false"),
        ("text type", &["--fields.text_field_type", "int", "--dryrun"], 1, "only str is supported"),
        ("id type", &["--fields.id_field_type", "list", "--dryrun"], 1, "use str or int"),
        ("unknown key", &["-c", config.to_str().unwrap()], 1, "procesess"),
    ];
    for (name, arguments, code, expected) in cases {
        let given = |flag: &str| arguments.contains(&flag);
        let alone = given("--documents") && !given("--dryrun") || given("--tokenizer.name_or_path");
        let rest: Vec<&str> = match (alone, given("--documents")) {
            (true, _) => Vec::new(),
            (false, true) => all[2..].to_vec(),
            (false, false) => all.to_vec(),
        };
        let done = tokenize(&[&rest, arguments].concat());
        assert!(done.code == code && done.err.contains(expected), "{name}: {} {}", done.code, done.err);
    }
    let note = tokenize(&[&all[..], &["--tokenizer.eos_token_id", "0", "--dryrun"]].concat());
    assert!(note.code == 0 && note.err.contains("and not a special token of this tokenizer"), "{}", note.err);
}

#[test]
fn the_same_tokens_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(format!("{GOLDEN}/tokenizer.json")).unwrap()).unwrap();
    json["model"]["dropout"] = serde_json::json!(0.5);
    std::fs::write(path("dropout.json"), json.to_string()).unwrap();
    std::fs::write(path("d.jsonl"), format!("{{\"id\": \"1\", \"text\": \"{}\"}}\n", "the low the low ".repeat(50)))
        .unwrap();
    let tokens = |tokenizer: &str, out: &str| {
        let done = tokenize(&[
            "--documents",
            &path("d.jsonl"),
            "--destination",
            &path(out),
            "--tokenizer.name_or_path",
            tokenizer,
        ]);
        assert_eq!(done.code, 0, "{}", done.err);
        (std::fs::read(folder.path().join(out).join("part-0-00000.npy")).unwrap(), done.err)
    };
    let (expected, _) = tokens(&format!("{GOLDEN}/tokenizer.json"), "plain");
    for out in ["one", "two", "three"] {
        let (found, said) = tokens(&path("dropout.json"), out);
        assert_eq!(found, expected);
        assert!(said.contains("`dropout` in the tokenizer's model is 0.5; it is off"), "{said}");
    }
}

#[test]
fn documents_of_a_pipe_and_of_other_systems() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text = "\u{feff}{\"id\":\"1\",\"text\":\"one\"}\r\n{\"id\":\"2\",\"text\":\"two\"}\r\n";
    std::fs::write(place("d.jsonl"), text).unwrap();
    std::fs::write(place("tokens.yaml"), format!("\u{feff}documents: ['{}']\r\nseed: 1\r\n", place("d.jsonl")))
        .unwrap();
    let tokenizer = format!("--tokenizer.name_or_path={GOLDEN}/tokenizer.json");
    let done = tokenize(&["-c", &place("tokens.yaml"), &tokenizer, "--destination", &place("file")]);
    assert!(
        done.code == 0 && done.out.contains("documents 2,") && done.out.contains("malformed lines 0"),
        "{} {}",
        done.out,
        done.err
    );
    if cfg!(unix) {
        let mut command = assert_cmd::Command::new(program::PROGRAM);
        command.args(["tokenize", "--documents", "/dev/stdin", &tokenizer, "--destination=~/pipe"]);
        let piped = command.env("HOME", folder.path()).write_stdin(text).output().unwrap();
        assert!(piped.status.success(), "{}", String::from_utf8_lossy(&piped.stderr));
        let tokens = |name: &str| std::fs::read(folder.path().join(name).join("part-0-00000.npy")).unwrap();
        assert_eq!(tokens("pipe").len(), tokens("file").len());
    }
}
