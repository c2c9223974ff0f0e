//! `olmoe generate` on the command line, with a small random model.

mod program;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use program::desk::Desk;
use serde_json::{Value, json};

#[test]
fn the_same_text_however_it_is_asked_for() {
    let desk = Desk::new("generate", 64);
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
        (&["-p", "Bitcoin is", "--cache-type", "bf16"], ""),
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
    let desk = Desk::new("generate", 64);
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
    let desk = Desk::new("generate", 64);
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
    let desk = Desk::new("generate", 64);
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
        ("{\"prompt\": 1}", "a string or an array of token ids"),
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
    let desk = Desk::new("generate", 64);
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
        (&["-p", "x", "-n", "3", "--min-tokens", "4"], "min_tokens is 4"),
        (&["-f", "/no/such/file"], "/no/such/file"),
        (&["--batch", "/no/such/file"], "/no/such/file"),
    ] {
        let done = desk.run(words, "");
        assert_eq!(done.code, 1, "{words:?}: {}", done.err);
        assert!(done.err.contains(expected), "{words:?}: {}", done.err);
        assert_eq!(done.err.lines().filter(|line| line.starts_with("error:")).count(), 1, "{words:?}: {}", done.err);
    }
    for words in [
        &["-p", "x", "-f", "y"][..],
        &["-n", "0"],
        &["--logit-bias", "x"],
        &["--samples", "0"],
        &["-p", "x", "--experts"],
    ] {
        assert_eq!(desk.run(words, "").code, 2, "{words:?}");
    }
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let desk = Desk::new("generate", 64);
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
    let desk = Desk::new("generate", 64);
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

/// Puts an end of text before every text, as the post-processor of a tokenizer.json does.
fn put_before_texts(desk: &Desk) {
    let path = desk.path("hf").join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let (token, text) = (
        json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}),
        json!({"Sequence": {"id": "A", "type_id": 0}}),
    );
    json["post_processor"] = json!({
        "type": "TemplateProcessing", "single": [token, text], "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [256], "tokens": ["<|endoftext|>"]}},
    });
    std::fs::write(path, json.to_string()).unwrap();
    let settings = json!({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"});
    std::fs::write(desk.path("hf").join("tokenizer_config.json"), settings.to_string()).unwrap();
}

#[test]
fn a_text_begins_with_what_its_tokenizer_puts_there() {
    let desk = Desk::new("generate", 64);
    let tokens = |model: &str, prompt: &str| {
        let model = desk.path(model);
        let words =
            ["generate", "-m", model.to_str().unwrap(), "-p", prompt, "-n", "1", "--temp", "0", "--json", "--quiet"];
        let done = program::olmoe(&words, &[]);
        assert_eq!(done.code, 0, "{}", done.err);
        let report: Value = serde_json::from_str(&done.out).unwrap();
        report["samples"][0]["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    assert_eq!(tokens("hf", "hi"), 2);
    put_before_texts(&desk);
    let convert = |from: &str, to: &str, format: &str| {
        let (from, to) = (desk.path(from), desk.path(to));
        let words = ["convert", from.to_str().unwrap(), to.to_str().unwrap(), "--to", format, "--quiet"];
        let done = program::olmoe(&words, &[]);
        assert_eq!(done.code, 0, "{}", done.err);
    };
    convert("hf", "m.gguf", "gguf");
    convert("m.gguf", "back", "hf");
    convert("back", "again.gguf", "gguf");
    for model in ["hf", "m.gguf", "back", "again.gguf"] {
        assert_eq!((tokens(model, "hi"), tokens(model, "<|endoftext|>hi")), (3, 3), "{model}: once, never twice");
    }
    let gguf = desk.path("m.gguf");
    let shown = program::olmoe(&["inspect", gguf.to_str().unwrap()], &[]);
    assert!(shown.out.contains("tokenizer.ggml.add_bos_token = true"), "{}", shown.out);
    // The logits are those of the same tokens.
    let (hf, out) = (desk.path("hf"), desk.path("logits.safetensors"));
    let words = ["logits", "-m", hf.to_str().unwrap(), "--text", "hi", "--out", out.to_str().unwrap(), "--json"];
    let done = program::olmoe(&words, &[]);
    let report: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(report["tokens"], 3, "{}", done.err);
}

#[test]
fn texts_of_other_systems() {
    let desk = Desk::new("generate", 64);
    let greedy = ["-n", "4", "--temp", "0", "--json", "--quiet"];
    let prompt = |name: &str, bytes: &str| {
        std::fs::write(desk.path(name), bytes).unwrap();
        desk.json(&[&greedy[..], &["-f", desk.path(name).to_str().unwrap()]].concat())["prompt"].clone()
    };
    assert_eq!(prompt("windows", "\u{feff}one\r\ntwo\r\n"), "one\ntwo");
    assert_eq!(prompt("plain", "one\ntwo\n"), "one\ntwo");
    std::fs::write(desk.path("batch.jsonl"), "\u{feff}{\"prompt\": \"hi\"}\r\n{\"prompt\": \"ho\"}\r\n").unwrap();
    let done = desk.run(&["--batch", "batch.jsonl", "-n", "1", "--temp", "0", "--quiet"], "");
    assert_eq!((done.code, done.out.lines().count()), (0, 2), "{}", done.err);
    let utf16: Vec<u8> = "\u{feff}hi".encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(desk.path("utf16"), utf16).unwrap();
    let done = desk.run(&["-f", "utf16", "-n", "1"], "");
    assert!(done.code == 1 && done.err.contains("utf16 is UTF-16 text; convert it to UTF-8 first"), "{}", done.err);
    // Every file of the model may begin with a byte-order mark.
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        let path = desk.path("hf").join(name);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(path, ["\u{feff}".as_bytes(), &bytes].concat()).unwrap();
    }
    assert_eq!(prompt("plain", "one\ntwo"), "one\ntwo");
}

#[test]
fn paths_that_no_shell_saw() {
    let desk = Desk::new("generate", 64);
    std::fs::write(desk.path("text"), "in the home directory").unwrap();
    let run = |words: &[&str]| {
        let mut command = desk.command(&[&["-n", "1", "--temp", "0", "--json", "--quiet"], words].concat());
        let home = desk.path("");
        let done = command.env("HOME", &home).env("TEXTS", &home).output().unwrap();
        (done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
    };
    for path in ["--file=~/text", "--file=$TEXTS/text", "--file=${TEXTS}/text", "--file=text"] {
        let (done, out) = run(&[path]);
        assert!(done && out.contains("in the home directory"), "{path}: {out}");
    }
    let (done, out) = run(&["--file=~nobody/text"]);
    assert!(!done && out.contains("cannot read ~nobody/text"), "{out}");
    // A text is no path.
    let (done, out) = run(&["--prompt=~/text"]);
    assert!(done && out.contains("~/text"), "{out}");
}
