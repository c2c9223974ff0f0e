//! `olmoe generate` on the command line, with a small random model.

mod program;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use olmoe_data::{Pre, TokenKind, Tokenizer, Vocabulary};
use program::{Done, PROGRAM};
use serde_json::{Value, json};

const CONFIG: &str = r#"{"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "hidden_size": 32, "vocab_size": 260,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 16, "num_experts": 8,
    "num_experts_per_tok": 2, "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 256,
    "initializer_range": 0.3}"#;

/// A folder with a model in it.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        std::fs::write(desk.path("config.json"), CONFIG).unwrap();
        std::fs::write(desk.path("tokenizer.json"), tokenizer().json()).unwrap();
        let paths = ["config.json", "hf", "tokenizer.json"].map(|name| desk.path(name).to_str().unwrap().to_owned());
        let [config, hf, tokenizer] = paths.each_ref().map(String::as_str);
        let done = program::olmoe(&["init", "--config", config, "--seed", "1", hf, "--tokenizer", tokenizer], &[]);
        assert_eq!(done.code, 0, "{}", done.err);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["generate", "-m"]).arg(self.path("hf")).args(words).env_remove("OLMOE_ISA");
        command
    }

    fn run(&self, words: &[&str], input: &str) -> Done {
        let mut command = self.command(words);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        // It may end without reading.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let done = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Done { code: done.status.code().unwrap(), out: text(done.stdout), err: text(done.stderr) }
    }

    fn done(&self, words: &[&str]) -> String {
        let done = self.run(words, "");
        assert_eq!(done.code, 0, "{words:?}: {}", done.err);
        done.out
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.done(words)).unwrap()
    }
}

/// The bytes, then an end of text.
fn tokenizer() -> Tokenizer {
    let mut next = 255;
    let letters = (0..=255u32).map(|byte| {
        let printed = (33..127).contains(&byte) || (161..=255).contains(&byte) && byte != 173;
        next += u32::from(!printed);
        char::from_u32(if printed { byte } else { next }).unwrap().to_string()
    });
    let mut tokens: Vec<String> = letters.collect();
    tokens.push("<|endoftext|>".to_owned());
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    kinds[256] = TokenKind::Control;
    let (model, pre, merges) = ("gpt2".into(), Pre::Olmo, vec![]);
    let (bos, eos, pad, unk, add_bos, chat_template) = (None, Some(256), Some(1), None, false, None);
    let vocabulary = Vocabulary { model, pre, tokens, kinds, merges, bos, eos, pad, unk, add_bos, chat_template };
    Tokenizer::from_vocabulary(&vocabulary).unwrap()
}

#[test]
fn the_same_text_however_it_is_asked_for() {
    let desk = Desk::new();
    let settings = ["-n", "20", "--seed", "5", "--ignore-eos"];
    let with = |more: &[&str], input: &str| {
        let done = desk.run(&[&settings[..], more].concat(), input);
        assert_eq!(done.code, 0, "{more:?}: {}", done.err);
        done
    };
    let first = with(&["-p", "Bitcoin is"], "");
    assert!(first.err.contains("20 generated") && first.err.contains("seed 5"), "{}", first.err);
    std::fs::write(desk.path("text"), "Bitcoin is\n").unwrap();
    let file = desk.path("text");
    let ids = "66,105,116,99,111,105,110,32,105,115";
    for (more, input) in [
        (&[][..], "Bitcoin is\n"),
        (&["-f", file.to_str().unwrap(), "--quiet"], ""),
        (&["--ids", ids, "--threads", "1"], ""),
        (&["-p", "Bitcoin is", "--threads", "2"], ""),
    ] {
        let done = with(more, input);
        assert_eq!(done.out, first.out, "{more:?}");
        assert_eq!(done.err.is_empty(), more.contains(&"--quiet"), "{}", done.err);
    }
    let report = desk.json(&[&settings[..], &["-p", "Bitcoin is", "--json"]].concat());
    assert_eq!(format!("{}\n", report["samples"][0]["text"].as_str().unwrap()), first.out);
    assert_eq!((&report["seed"], &report["prompt"]), (&json!(5), &json!("Bitcoin is")));
    let sample = &report["samples"][0];
    assert_eq!((&sample["finish_reason"], sample["ids"].as_array().unwrap().len()), (&json!("length"), 20));
    assert_eq!(sample["usage"], json!({"prompt_tokens": 10, "reused_tokens": 0, "completion_tokens": 20}));
}

#[test]
fn settings_and_stops() {
    let desk = Desk::new();
    let text = |words: &[&str]| desk.done(&[&["-p", "x", "--temp", "0", "--quiet", "-n", "6"], words].concat());
    assert_eq!(text(&["--logit-bias", "97=1e9"]), "aaaaaa\n");
    assert_eq!(text(&["--logit-bias", "97=1e9", "--stop", "zz", "--stop", "aaaa"]), "\n");
    assert_eq!(text(&["--logit-bias", "97=1e9", "--stop", "aa", "--min-tokens", "4"]), "aaa\n");
    assert_eq!(text(&["--logit-bias", "256=1e9"]), "\n");
    assert_eq!(text(&["--logit-bias", "256=1e9", "--ignore-eos", "--special"]), "<|endoftext|>".repeat(6) + "\n");
    // Greedy does not depend on the seed; draws do.
    assert_eq!(text(&["--seed", "1"]), text(&["--seed", "2"]));
    let drawn = |seed| desk.done(&["-p", "x", "--quiet", "-n", "20", "--temperature", "1", "--seed", seed]);
    assert_ne!(drawn("1"), drawn("2"));
    let samples =
        desk.done(&["-p", "x", "--quiet", "-n", "8", "--ignore-eos", "--samples", "3", "--logit-bias", "97=1e9"]);
    assert_eq!(samples, "aaaaaaaa\n\n--- sample 2\naaaaaaaa\n\n--- sample 3\naaaaaaaa\n");
}

#[test]
fn json_shows_log_probabilities_and_experts() {
    let desk = Desk::new();
    let report = desk.json(&[
        "-p",
        "abc",
        "-n",
        "5",
        "--seed",
        "3",
        "--json",
        "--logprobs",
        "3",
        "--experts",
        "--samples",
        "2",
        "--ignore-eos",
    ]);
    let samples = report["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 2);
    for sample in samples {
        let tokens = sample["tokens"].as_array().unwrap();
        assert_eq!(tokens.len(), 5);
        for token in tokens {
            assert!(token["logprob"].as_f64().unwrap() < 0.0);
            let top: Vec<f64> =
                token["top_logprobs"].as_array().unwrap().iter().map(|top| top["logprob"].as_f64().unwrap()).collect();
            assert!(top.len() == 3 && top.is_sorted_by(|a, b| a >= b), "{top:?}");
            let layers: Vec<Vec<u32>> = serde_json::from_value(token["experts"].clone()).unwrap();
            assert!(layers.len() == 2 && layers.iter().all(|layer| layer.len() == 2 && layer.iter().all(|e| *e < 8)));
        }
    }
    let plain = desk.json(&["-p", "abc", "-n", "5", "--seed", "3", "--json", "--ignore-eos"]);
    assert_eq!(plain["samples"][0]["ids"], samples[0]["ids"], "what is shown changes nothing");
    assert_eq!(plain["samples"][0].get("tokens"), None);
}

#[test]
fn batches_keep_their_order_and_say_what_failed() {
    let desk = Desk::new();
    let lines = [
        json!({"prompt": "one long beginning", "max_tokens": 12, "id": "first"}),
        json!({"prompt": [97, 98], "max_tokens": 1, "id": {"any": 1}}),
        json!({"prompt": "one long beginning and more", "temperature": 0, "n": 2, "stop": "\n"}),
        json!({"prompt": "x", "seed": 77, "logprobs": 1, "stop": ["a", "b"], "logit_bias": {"97": 1e9}}),
    ];
    let text = |lines: &[Value]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let run = |lines: &[Value], more: &[&str]| {
        let words = [&["--batch", "-", "--seed", "9", "-n", "8", "--quiet"], more].concat();
        let done = desk.run(&words, &text(lines));
        let mut reports: Vec<Value> = done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for report in &mut reports {
            for sample in report["samples"].as_array_mut().unwrap() {
                sample["usage"]["reused_tokens"].take();
            }
        }
        (done, reports)
    };
    let (done, reports) = run(&lines, &[]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(reports.iter().map(|report| &report["index"]).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!((&reports[0]["id"], &reports[1]["id"]), (&json!("first"), &json!({"any": 1})));
    assert_eq!(reports.iter().map(|report| &report["seed"]).collect::<Vec<_>>(), [9, 10, 11, 77]);
    assert_eq!(reports[2]["samples"][0], reports[2]["samples"][1], "temperature 0");
    assert_eq!(reports[3]["samples"][0]["stop"], "a");
    // Alone, one at a time and all at once: the same.
    assert_eq!(run(&lines, &["--parallel", "1", "--threads", "1"]).1, reports);
    assert_eq!(run(&lines, &["--parallel", "3"]).1, reports);
    let alone = desk.json(&["-p", "one long beginning", "-n", "12", "--seed", "9", "--json", "--quiet"]);
    assert_eq!(alone["samples"][0]["text"], reports[0]["samples"][0]["text"]);

    let bad = [
        json!({"prompt": ""}),
        lines[1].clone(),
        json!({"prompt": "x".repeat(64)}),
        json!({"prompt": "x", "top_p": 2}),
    ];
    let (done, reports) = run(&bad, &[]);
    assert_eq!((done.code, reports.len()), (1, 4));
    assert!(done.err.contains("3 of 4 prompts failed"), "{}", done.err);
    for (at, expected) in [(0, "no tokens"), (2, "context is 64"), (3, "top_p is 2")] {
        assert!(reports[at]["error"].as_str().unwrap().contains(expected), "{}", reports[at]);
    }
    assert_eq!(reports[1]["samples"][0]["ids"].as_array().unwrap().len(), 1);
    for (line, expected) in [
        ("{", "line 1"),
        ("{\"prompt\": 1}", "a text or an array of token ids"),
        ("{}", "missing field `prompt`"),
        ("{\"prompt\": \"x\", \"top_q\": 1}", "top_q"),
    ] {
        let done = desk.run(&["--batch", "-"], line);
        assert_eq!((done.code, done.out.as_str()), (1, ""), "{line}");
        assert!(done.err.contains(expected), "{line}: {}", done.err);
    }
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let desk = Desk::new();
    let long = "x".repeat(64);
    for (words, expected) in [
        (&["-p", ""][..], "the prompt has no tokens"),
        (&["-p", &long], "the model's context is 64"),
        (&["--ids", "260"], "outside the model's vocabulary of 260"),
        (&["-p", "x", "--temp", "-1"], "temperature is -1"),
        (&["-p", "x", "--top-p", "0"], "top_p is 0"),
        (&["-p", "x", "--repetition-penalty", "0"], "repetition_penalty is 0"),
        (&["-p", "x", "--logit-bias", "300=1"], "id 300"),
        (&["-p", "x", "--stop", ""], "stop string has 0 bytes"),
        (&["-p", "x", "--experts"], "--json"),
        (&["-p", "x", "-n", "3", "--min-tokens", "4"], "min_tokens is 4"),
        (&["-f", "/no/such/file"], "/no/such/file"),
        (&["--batch", "/no/such/file"], "/no/such/file"),
    ] {
        let done = desk.run(words, "");
        assert_eq!(done.code, 1, "{words:?}: {}", done.err);
        assert!(done.err.contains(expected), "{words:?}: {}", done.err);
        assert_eq!(done.err.lines().filter(|line| line.starts_with("error:")).count(), 1, "{words:?}: {}", done.err);
    }
    for words in [&["-p", "x", "-f", "y"][..], &["-n", "0"], &["--logit-bias", "x"], &["--samples", "0"]] {
        assert_eq!(desk.run(words, "").code, 2, "{words:?}");
    }
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let desk = Desk::new();
    let words = ["--batch", "-", "-n", "30", "--ignore-eos", "--quiet"];
    let mut child =
        desk.command(&words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = "{\"prompt\": \"x\"}\n".repeat(200);
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    drop(out);
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
}

#[cfg(target_os = "linux")]
#[test]
fn an_interrupt_ends_it_with_what_there_is() {
    let desk = Desk::new();
    let words = ["--batch", "-", "-n", "50", "--ignore-eos", "--parallel", "1"];
    let piped = |command: &mut Command| {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut child = piped(&mut desk.command(&words));
    let lines = "{\"prompt\": \"x\"}\n".repeat(3000);
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{err}");
    assert!(err.contains("prompts, "), "the summary: {err}");
    let last: Value = serde_json::from_str(rest.lines().last().unwrap()).unwrap();
    assert_eq!(last["samples"][0]["finish_reason"], "cancelled");
    assert!(rest.lines().count() < 2999);
}

/// A model of some hundred megabytes, so that what the program takes for itself counts little.
#[test]
fn memory_is_what_was_foreseen() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "hidden_size": 1024,
        "vocab_size": 8192, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8,
        "intermediate_size": 512, "num_experts": 16, "num_experts_per_tok": 2, "max_position_embeddings": 4096,
        "pad_token_id": 1, "eos_token_id": 256}"#;
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("config.json"), config).unwrap();
    let (config, model) = (path("config.json"), path("model.gguf"));
    let done = program::olmoe(&["init", "--config", &config, "--seed", "1", "--to", "gguf", &model, "--quiet"], &[]);
    assert_eq!(done.code, 0, "{}", done.err);
    let (short, long) = ("5,6,7".to_owned(), vec!["7"; 1500].join(","));
    // A short prompt, a prompt and a cache that count, and packed weights that are written and then read.
    for (ids, more) in [(&short, &[][..]), (&long, &[]), (&short, &["--packed-cache"]), (&short, &["--packed-cache"])] {
        let words = [&["generate", "-m", &model, "--ids", ids, "-n", "2", "--ignore-eos"], more].concat();
        let done = program::olmoe(&words, &[]);
        assert_eq!(done.code, 0, "{}", done.err);
        if cfg!(not(target_os = "linux")) {
            continue;
        }
        let said = done.err.rsplit("memory: ").next().unwrap().split(" GB").collect::<Vec<_>>();
        let (peak, foreseen): (f64, f64) =
            (said[0].parse().unwrap(), said[1].trim_start_matches(", ").parse().unwrap());
        assert!((peak - foreseen).abs() <= 0.05 * foreseen, "{more:?}: {peak} GB, {foreseen} GB foreseen");
    }
}
