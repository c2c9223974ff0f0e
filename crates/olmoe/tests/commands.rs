//! The program from outside: help, usage errors, exit status.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

mod program;

use program::desk::Desk;
use program::{PROGRAM, olmoe};

#[test]
fn help_has_examples_and_exit_statuses() {
    for (arguments, expected) in [
        (&["--help"][..], "Exit status: 0 done, 1 failed, 2 wrong usage, 75 stopped with all work saved"),
        (&["verify", "--help"], "olmoe verify --golden tests/golden --json"),
        (&["download", "--help"], "olmoe download allenai/OLMoE-1B-7B-0924"),
        (&["inspect", "--help"], "olmoe inspect olmoe-q4_0.gguf --json"),
        (&["convert", "--help"], "olmoe convert OLMoE-1B-7B-0924 olmoe.gguf --to gguf"),
        (&["quantize", "--help"], "--type q4_k_m"),
        (&["init", "--help"], "olmoe init --config configs/tiny.yml --seed 1 tiny"),
        (&["upcycle", "--help"], "olmoe upcycle step700000-unsharded moe --to olmo --seed 1"),
        (&["soup", "--help"], "olmoe soup anneal-42 anneal-43 anneal-44 --out soup --to hf"),
        (&["logits", "--help"], "--ids 5,17,42"),
        (&["train", "--help"], "olmoe train configs/tiny-train.yml --dry-run"),
        (&["tokens", "--help"], "olmoe tokens -m OLMoE-1B-7B-0924 --file notes.txt --json"),
        (&["eval", "--help"], "olmoe eval compare results/base results/tuned"),
        (&["runs", "--help"], "olmoe runs runs/a runs/b --plot loss.svg --x tokens"),
        (&["bench", "gemm", "--help"], "olmoe bench gemm --precision amp_bf16"),
        (&["bench", "train", "--help"], "olmoe bench train --config small"),
        (&["bench", "batch", "--help"], "--sequences 4,8,16"),
        (&["bench", "limits", "--help"], "olmoe bench limits --threads 1"),
        (&["completions", "--help"], "olmoe completions fish"),
        (&["man", "--help"], "olmoe man pages"),
    ] {
        let done = olmoe(arguments, &[]);
        assert_eq!((done.code, done.err.as_str()), (0, ""), "{arguments:?}");
        assert!(done.out.contains(expected), "{arguments:?}: {}", done.out);
        assert!(!done.out.contains('\x1b'), "no colours when the output is not a terminal");
    }
    assert!(olmoe(&["--version"], &[]).out.starts_with("olmoe 0."));
}

#[test]
fn wrong_usage_is_status_2() {
    for (arguments, expected) in [
        (&[][..], "Usage: olmoe"),
        (&["verfy"], "similar subcommand exists: 'verify'"),
        (&["verify", "--golde", "x"], "--golden"),
        (&["verify", "--threads", "0"], "from 1 to 1024"),
        (&["verify", "--threads", "many"], "from 1 to 1024"),
        (&["verify", "--precision", "f16"], "amp_bf16"),
        (&["convert", "a", "b"], "--to <FORMAT>"),
        (&["convert", "a", "b", "--to", "onnx"], "hf, olmo, gguf"),
        (&["quantize", "a", "b", "--type", "q3_k"], "q4_k_m"),
        (&["init", "out", "--config", "c.yml"], "--seed"),
        (&["upcycle", "a", "b", "--to", "hf"], "--seed"),
        (&["upcycle", "a", "b", "--to", "hf", "--seed", "1", "--upstream-swap"], "--shared-expert"),
        (&["upcycle", "a", "b", "--to", "hf", "--seed", "1", "--num-experts", "0"], "above 0"),
        (&["soup", "a", "--out", "b", "--to", "hf"], "2 values required"),
        (&["soup", "a", "b", "--to", "hf"], "--out"),
        (&["soup", "a", "b", "--out", "c", "--to", "hf", "--weights", "1,x"], "invalid"),
        (&["logits", "-m", "a", "--out", "b"], "--ids"),
        (&["logits", "-m", "a", "--out", "b", "--ids", "1", "--text", "x"], "cannot be used with"),
        (&["logits", "-m", "a", "--out", "b", "--ids", "1,x"], "invalid"),
        (&["tokens", "hello"], "--tokenizer"),
        (&["download", "a/b/c"], "a/b/c"),
        (&["verify", "--json", "--quiet"], "cannot be used with"),
        (&["runs", "--x", "tokens"], "--plot"),
        (&["runs", "--smooth", "0"], "above 0"),
        (&["train"], "CONFIG"),
        (&["train", "c.yml", "--export=onnx"], "hf, olmo, gguf"),
        (&["bench"], "Usage: olmoe bench"),
        (&["bench", "train", "--steps", "0"], "above 0"),
        (&["bench", "decode", "-m", "a", "--cache-type", "q4_0"], "f32, bf16, q8_0"),
        (&["bench", "train", "--precision", "all"], "fp32, amp_bf16"),
        (&["bench", "batch", "-m", "a", "--sequences", "4,0"], "above 0"),
        (&["bench", "batch"], "--model"),
        (&["bench", "decod"], "similar subcommand exists: 'decode'"),
        (&["completions", "bsh"], "similar value exists: 'bash'"),
        (&["man"], "<DIR>"),
        (&["tokenize", "--json", "--dryrun"], "cannot be used with"),
    ] {
        let done = olmoe(arguments, &[]);
        assert_eq!(done.code, 2, "{arguments:?}: {}", done.err);
        assert!(done.err.contains(expected), "{arguments:?}: {}", done.err);
        assert_eq!(done.out, "", "{arguments:?}");
    }
}

#[test]
fn a_bad_instruction_set_is_status_2() {
    let done = olmoe(&["verify", "--quiet"], &[("OLMOE_ISA", "sse9")]);
    assert_eq!((done.code, done.out.as_str()), (2, ""));
    assert!(done.err.contains("sse9") && done.err.contains("OLMOE_ISA"), "{}", done.err);
}

#[test]
fn verify_passes() {
    let done = olmoe(&["verify", "--quiet"], &[]);
    assert_eq!((done.code, done.err.as_str()), (0, ""), "{}", done.out);
    let lines: Vec<_> = done.out.lines().collect();
    assert_eq!(lines.len(), 1, "only the counts: {lines:?}");
    let counts: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!((counts[1], counts[0] == counts[2]), ("checks,", true), "{lines:?}");
}

#[test]
fn verify_prints_a_line_a_check_and_json() {
    let folder = one_golden();
    let folder = folder.path().to_str().unwrap();
    let lines = olmoe(&["verify", "--golden", folder, "--precision", "fp32", "--threads", "1"], &[]);
    assert_eq!((lines.code, lines.err.as_str()), (0, ""));
    assert!(lines.out.contains("mistake: gate and up swapped"), "{}", lines.out);
    let json = olmoe(&["verify", "--golden", folder, "--precision", "fp32", "--json"], &[("OLMOE_ISA", "scalar")]);
    let report: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks.len() + 1, lines.out.lines().count());
    assert_eq!(report["summary"]["checks"], checks.len());
    assert_eq!((checks[0]["model"].as_str(), checks[0]["kind"].as_str()), (Some("dense"), Some("agreement")));
}

/// A folder with one golden state.
fn one_golden() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/dense.safetensors");
    std::fs::copy(from, folder.path().join("dense.safetensors")).unwrap();
    folder
}

#[test]
fn verify_fails_on_a_broken_file_and_names_it() {
    let folder = one_golden();
    std::fs::write(folder.path().join("broken.safetensors"), "not a file of tensors").unwrap();
    let done = olmoe(&["verify", "--golden", folder.path().to_str().unwrap()], &[]);
    assert_eq!((done.code, done.out.as_str()), (1, ""));
    assert!(done.err.starts_with("error: ") && done.err.contains("broken.safetensors"), "{}", done.err);
    let done = olmoe(&["verify", "--golden", "/nowhere/at/all"], &[]);
    assert_eq!(done.code, 1);
    assert!(done.err.contains("/nowhere/at/all"), "{}", done.err);
}

#[test]
fn verify_fails_on_wrong_numbers_and_says_which() {
    let folder = one_golden();
    let path = folder.path().join("dense.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    // The last tensor is a parameter; another exponent makes its last number another one.
    let last = bytes.len() - 1;
    bytes[last] ^= 0x01;
    std::fs::write(&path, bytes).unwrap();
    let done = olmoe(&["verify", "--quiet", "--golden", folder.path().to_str().unwrap()], &[]);
    assert_eq!((done.code, done.err.as_str()), (1, ""));
    assert!(
        done.out.lines().next().is_some_and(|line| line.contains("dense") && line.contains("FAIL")),
        "{}",
        done.out
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = std::process::Command::new(PROGRAM)
        .args(["verify", "--precision", "fp32"])
        .env_remove("OLMOE_ISA")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("logits"), "{line}");
    let done = child.wait_with_output().unwrap();
    assert_eq!((done.status.code(), String::from_utf8(done.stderr).unwrap()), (Some(0), String::new()));
}

/// Runs it with pipes whose readers go away at once; its exit status.
fn with_closed_pipes(arguments: &[&str]) -> Option<i32> {
    let mut command = std::process::Command::new(PROGRAM);
    let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    child.wait().unwrap().code()
}

#[test]
fn nobody_has_to_read() {
    for (arguments, code) in [
        (&["--help"][..], 0),
        (&["bench", "decode", "--help"], 0),
        (&["completions", "zsh"], 0),
        (&["verify", "--precision", "fp32"], 0),
        (&["inspect", "/nowhere/at/all"], 1),
        (&["verfy"], 2),
    ] {
        assert_eq!(with_closed_pipes(arguments), Some(code), "{arguments:?}");
    }
}

/// The commands that help lists, with those below bench.
fn commands() -> Vec<String> {
    let listed = |arguments: &[&str]| {
        let help = olmoe(arguments, &[]).out;
        let lines = help
            .lines()
            .filter(|line| line.starts_with("  ") && !line.starts_with("   ") && !line.trim_start().starts_with('-'));
        let names = lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned);
        names.filter(|name| name != "help" && !name.starts_with('[')).collect::<Vec<_>>()
    };
    let mut all = listed(&["-h"]);
    assert!(all.len() >= 18 && all.contains(&"generate".to_owned()), "{all:?}");
    for above in ["bench", "eval"] {
        all.extend(listed(&[above, "-h"]).iter().map(|name| format!("{above}-{name}")));
    }
    all
}

#[test]
fn completions_name_every_command() {
    let script = olmoe(&["completions", "bash"], &[]);
    assert_eq!((script.code, script.err.as_str()), (0, ""));
    for name in commands() {
        assert!(script.out.contains(&format!("olmoe__subcmd__{}", name.replace('-', "__subcmd__"))), "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("olmoe.bash");
    std::fs::write(&file, script.out).unwrap();
    match std::process::Command::new("bash").arg("-n").arg(file).output() {
        Ok(done) => assert!(done.status.success() && done.stderr.is_empty(), "{done:?}"),
        Err(error) => println!("skipped: no bash here: {error}"),
    }
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = olmoe(&["completions", shell], &[]);
        assert!(script.code == 0 && script.out.contains("quantize"), "{shell}: {}", script.err);
    }
}

#[test]
fn every_command_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("share/man1");
    let done = olmoe(&["man", pages.to_str().unwrap()], &[]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    let names: Vec<String> =
        commands().iter().map(|name| format!("olmoe-{name}.1")).chain(["olmoe.1".into()]).collect();
    assert!(done.out.contains(&format!("{} pages", names.len())), "{}", done.out);
    assert_eq!(std::fs::read_dir(&pages).unwrap().count(), names.len(), "nothing else");
    for name in &names {
        let page = pages.join(name);
        let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{name}: {error}"));
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "\"EXIT STATUS\""] {
            let bench = name == "olmoe-bench.1" && !["NAME", "SYNOPSIS", "OPTIONS"].contains(&section);
            assert!(bench || text.contains(&format!(".SH {section}\n")), "{name}: {section}");
        }
        match std::process::Command::new("groff").args(["-man", "-ww", "-z", "-Tutf8", "-Kutf8"]).arg(&page).output() {
            Ok(done) => assert!(done.status.success() && done.stderr.is_empty(), "{name}: {done:?}"),
            Err(error) => println!("skipped: no groff here: {error}"),
        }
    }
    // Again over what is there, and where no folder can be.
    let again = olmoe(&["man", pages.to_str().unwrap(), "--quiet"], &[]);
    assert_eq!((again.code, again.out.as_str(), again.err.as_str()), (0, "", ""));
    let done = olmoe(&["man", pages.join("olmoe.1").to_str().unwrap()], &[]);
    assert!(done.code == 1 && done.err.contains("cannot make the folder"), "{}", done.err);
}

#[test]
fn records_are_json_and_quiet_says_nothing() {
    let desk = Desk::new("logits", 16);
    let path = |name: &str| desk.path(name).to_str().unwrap().to_owned();
    let written = desk.json(&["--ids", "1,2,3", "--out", "x.safetensors", "--json"]);
    assert_eq!((&written["tokens"], &written["logits"]), (&3.into(), &260.into()));
    let (hf, config) = (path("hf"), path("config.json"));
    for (number, arguments) in [
        &["convert", &hf, "--to", "gguf"][..],
        &["quantize", &hf, "--type", "f16"],
        &["init", "--config", &config, "--seed", "1"],
        &["soup", &hf, &hf, "--to", "hf"],
    ]
    .iter()
    .enumerate()
    {
        for flag in ["--json", "--quiet"] {
            let out = path(&format!("out{number}{flag}"));
            let out: &[&str] = if arguments[0] == "soup" { &["--out", &out, flag] } else { &[&out, flag] };
            let done = olmoe(&[*arguments, out].concat(), &[]);
            assert_eq!(done.code, 0, "{arguments:?}: {}", done.err);
            if flag == "--quiet" {
                assert_eq!((done.out.as_str(), done.err.as_str()), ("", ""), "{arguments:?}");
                continue;
            }
            let record: serde_json::Value = serde_json::from_str(&done.out).unwrap();
            assert!(record["tensors"].as_u64() > Some(0) && record["bytes"].as_u64() > Some(0), "{record}");
            assert!(record["kinds"][0]["rmse"].is_number() && record["path"].is_string(), "{record}");
        }
    }
    std::fs::write(desk.path("a.jsonl"), "{\"id\": \"1\", \"text\": \"Hello\"}\nno JSON\n").unwrap();
    let (documents, tokens, tokenizer) = (path("a.jsonl"), path("tokens"), path("tokenizer.json"));
    let done = olmoe(
        &[
            &["tokenize", "--documents", &documents, "--destination", &tokens][..],
            &["--tokenizer.name_or_path", &tokenizer, "--json"],
        ]
        .concat(),
        &[],
    );
    let record: serde_json::Value = serde_json::from_str(&done.out).unwrap_or_else(|_| panic!("{}", done.err));
    assert_eq!((&record["documents"], &record["tokens"], &record["malformed"]), (&1.into(), &6.into(), &1.into()));
    assert!(record["parts"][0].as_str().is_some_and(|part| part.ends_with(".npy")), "{record}");
}
