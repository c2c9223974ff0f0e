//! Command lines as people type them: words and flags, names that tell a format, numbers, escapes, texts of errors.

mod program;

use program::desk::Desk;
use program::{Done, olmoe};
use serde_json::{Value, json};

/// Runs the program; words that begin with `@` are paths in the folder.
fn run(desk: &Desk, words: &[&str]) -> Done {
    let words = words.iter().map(|word| match word.strip_prefix('@') {
        Some(name) => desk.path(name).to_str().unwrap().to_owned(),
        None => (*word).to_owned(),
    });
    olmoe(&words.collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>(), &[])
}

fn done(desk: &Desk, words: &[&str]) -> String {
    let done = run(desk, words);
    assert_eq!(done.code, 0, "{words:?}: {}", done.err);
    done.out
}

fn refused(desk: &Desk, words: &[&str], code: i32, expected: &[&str]) {
    let done = run(desk, words);
    assert_eq!((done.code, done.out.as_str()), (code, ""), "{words:?}: {}", done.err);
    for expected in expected {
        assert!(done.err.contains(expected), "{words:?}: {expected:?} in {}", done.err);
    }
    for jargon in ["invalid digit", "invalid float", "usize", "f64", "cannot parse integer"] {
        assert!(!done.err.contains(jargon), "{words:?}: {}", done.err);
    }
}

#[test]
fn the_model_is_a_word_or_a_flag() {
    let desk = Desk::new("generate", 64);
    let greedy = ["-n", "3", "--temp", "0", "--quiet"];
    let generated = |words: &[&str]| done(&desk, &[&["generate"], words, &greedy].concat());
    let expected = generated(&["-m", "@hf", "-p", "hi"]);
    for words in [
        &["@hf", "hi"][..],
        &["@hf", "-p", "hi"],
        &["@hf", "--text", "hi"],
        &["-m", "@hf", "hi"],
        &["@hf", "--ids", "104,105"],
        &["@hf", "--ids", "104 105"],
        &["@hf", "--ids", "[104, 105]"],
    ] {
        assert_eq!(generated(words), expected, "{words:?}");
    }
    let tokens = done(&desk, &["tokens", "-m", "@hf", "hi"]);
    for words in [
        &["@hf", "hi"][..],
        &["@hf", "--text", "hi"],
        &["@hf", "-p", "hi"],
        &["--tokenizer", "@tokenizer.json", "hi"],
        &["@tokenizer.json", "hi"],
    ] {
        assert_eq!(done(&desk, &[&["tokens"], words].concat()), tokens, "{words:?}");
    }
    for (at, words) in
        [&["@hf", "hi"][..], &["-m", "@hf", "hi"], &["@hf", "-p", "hi"], &["@hf", "--prompt", "hi"]].iter().enumerate()
    {
        let out = format!("@{at}.safetensors");
        let report = done(&desk, &[&["logits"], *words, &["--out", &out, "--json"]].concat());
        assert_eq!(serde_json::from_str::<Value>(&report).unwrap()["tokens"], 2, "{words:?}");
    }
    std::fs::write(desk.path("a.txt"), "some words").unwrap();
    let experts = done(&desk, &["experts", "-m", "@hf", "@a.txt"]);
    assert_eq!(done(&desk, &["experts", "@hf", "@a.txt"]), experts);
    assert_eq!(done(&desk, &["inspect", "@hf"]), done(&desk, &["inspect", "-m", "@hf"]));
    done(&desk, &["bench", "prefill", "@hf", "--length", "8", "--rounds", "1"]);
    let requests =
        [" a", " b c", " b d"].map(|end| format!("{{\"context\":\"Which? Answer:\",\"continuation\":\"{end}\"}}\n"));
    std::fs::write(desk.path("requests.jsonl"), requests.concat()).unwrap();
    let words = ["bench", "score", "@hf", "--requests", "@requests.jsonl", "--rounds", "1"];
    assert!(done(&desk, &words).contains("score, shared"));
    let figures: Value = serde_json::from_str(&done(&desk, &[&words[..], &["--json"]].concat())).unwrap();
    let [shared, alone] = [&figures["rows"][0], &figures["rows"][1]];
    assert_eq!(shared["sum"], alone["sum"]);
    assert!(shared["computed_tokens"].as_u64() < alone["computed_tokens"].as_u64());
    done(&desk, &["convert", "-m", "@hf", "@a.gguf", "--quiet"]);
    done(&desk, &["quantize", "-m", "@hf", "@b.gguf", "--type", "f16", "--quiet"]);
    let chat = run(&desk, &["chat", "@hf", "--quiet"]);
    assert_eq!(chat.code, 0, "{}", chat.err);
}

#[test]
fn words_that_are_too_many_or_too_few() {
    let desk = Desk::new("generate", 64);
    for (words, expected) in [
        (&["generate", "@hf", "one", "two"][..], &["two"][..]),
        (&["generate", "-m", "@hf", "one", "two"], &["\"two\"", "quotes"]),
        (&["generate", "@hf", "one", "-p", "two"], &["\"one\"", "--prompt"]),
        (&["generate"], &["no model", "--model"]),
        (&["chat", "-m", "@hf", "hello"], &["\"hello\"", "--model already"]),
        (&["bench", "decode", "-m", "@hf", "@hf"], &["--model already"]),
        (&["logits", "@hf", "--out", "x"], &["no text", "--ids"]),
        (&["tokens", "@hf"], &["no text", "--stdin"]),
        (&["experts", "@hf"], &["no text"]),
        (&["convert", "@hf", "--to", "hf"], &["no output is given"]),
        (&["init", "@config.json", "out"], &["tip:", "--config <FILE>", "--seed <N>"]),
        (&["generate", "@hf", "hi", "--logprobs", "2"], &["--json"]),
        (&["generate", "@hf", "hi", "--experts"], &["--json"]),
    ] {
        refused(&desk, words, 2, expected);
    }
}

#[test]
fn a_name_tells_the_format() {
    let desk = Desk::new("generate", 64);
    done(&desk, &["convert", "@hf", "@m.gguf", "--quiet"]);
    assert!(std::fs::read(desk.path("m.gguf")).unwrap().starts_with(b"GGUF"));
    done(&desk, &["init", "--config", "@config.json", "--seed", "1", "@i.gguf", "--quiet"]);
    assert!(desk.path("i.gguf").is_file());
    done(&desk, &["soup", "@hf", "@hf", "-o", "@s.gguf", "--quiet"]);
    for (words, expected) in [
        (&["convert", "@hf", "@new"][..], "--to <FORMAT>"),
        (&["convert", "@hf", "@new.gguf", "--to", "hf"], "the name is that of a GGUF file"),
        (&["convert", "@hf", "@new.gguf", "--to", "olmo"], "the name is that of a GGUF file"),
        (&["soup", "@hf", "@hf", "--out", "@new.gguf", "--to", "hf"], "the name is that of a GGUF file"),
        (
            &["init", "--config", "@config.json", "--seed", "1", "@new.gguf", "--to", "hf"],
            "the name is that of a GGUF file",
        ),
        (&["convert", "@hf", "@model.safetensors", "--to", "hf"], "name a folder"),
        (&["convert", "@hf", "@model.safetensors", "--to", "gguf"], ".gguf"),
        (&["quantize", "@hf", "@model.bin", "--type", "q8_0"], ".gguf"),
    ] {
        refused(&desk, words, 2, &[expected]);
    }
    assert!(!desk.path("new.gguf").exists() && !desk.path("new").exists());
}

#[test]
fn numbers_that_are_none_are_named_with_what_was_expected() {
    let desk = Desk::new("generate", 64);
    for (words, found, expected) in [
        (&["generate", "@hf", "hi", "--seed", "x"][..], "x", "or -1 for any"),
        (&["generate", "@hf", "hi", "-n", "many"], "many", "or -1 for no limit"),
        (&["generate", "@hf", "hi", "-n", "-2"], "-2", "or -1 for no limit"),
        (&["generate", "@hf", "hi", "--temp", "warm"], "warm", "a number such as 0.5"),
        (&["generate", "@hf", "hi", "--top-k", "1.5"], "1.5", "a whole number of 0 or more"),
        (&["generate", "@hf", "--ids", "1;2"], "1;2", "token ids such as 5,17,42"),
        (&["init", "--config", "@config.json", "--seed", "one", "@x"], "one", "a whole number of 0 or more"),
        (
            &["init", "--config", "@config.json", "--seed", "99999999999999999999", "@x"],
            "9999",
            "a smaller whole number",
        ),
        (&["experts", "@hf", "@a", "--layers", "0,b"], "b", "numbers of layers"),
        (&["bench", "batch", "@hf", "--sequences", "4,0"], "0", "above 0"),
        (&["soup", "@hf", "@hf", "--out", "@x", "--to", "hf", "--weights", "1,x"], "x", "numbers above 0"),
        (&["upcycle", "@hf", "@x", "--to", "hf", "--seed", "1", "--noise", "much"], "much", "a number such as 0.5"),
    ] {
        refused(&desk, words, 2, &[found, expected]);
    }
    // The same in files of settings, in overrides of a configuration, in lines of a batch and in a chat.
    std::fs::write(desk.path("tokens.yaml"), "processes: many\n").unwrap();
    refused(&desk, &["tokenize", "-c", "@tokens.yaml"], 1, &["tokens.yaml", "whole number", "\"many\""]);
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/tiny-train.yml");
    let words = ["train", tiny, "--optimizer.learning_rate=fast", "--dry-run"];
    refused(&desk, &words, 1, &["optimizer.learning_rate", "a number", "fast"]);
    for (line, expected) in [
        (r#"{"prompt": "x", "temp": "warm"}"#, "string \"warm\", expected a number"),
        (r#"{"prompt": "x", "top_k": -3}"#, "integer `-3`, expected a whole number of 0 or more"),
    ] {
        let batch = desk.run(&["--batch", "-", "--quiet"], line);
        assert!(batch.code == 1 && batch.err.contains(expected), "{}", batch.err);
        assert!(batch.err.contains("standard input, line 1"), "{}", batch.err);
    }
    let chat = Desk::new("chat", 64);
    let said = chat.run(&["--quiet"], "/set temp warm\n/set top_k 1.5\n/set n_predict x\n");
    for expected in ["expected a number", "expected a whole number of 0 or more", "or -1 for no limit"] {
        assert!(said.err.contains(expected), "{}", said.err);
    }
    assert!(!said.err.contains("f64") && !said.err.contains("usize"), "{}", said.err);
}

#[test]
fn minus_one_means_what_it_means_elsewhere() {
    let desk = Desk::new("generate", 24);
    let report = |words: &[&str]| desk.json(&[&["-p", "hi", "--ignore-eos", "--json"], words].concat());
    let all = report(&["-n", "-1"]);
    assert_eq!(all["samples"][0]["usage"]["completion_tokens"], 22);
    let seeds = [report(&["-n", "1", "--seed", "-1"]), report(&["-n", "1", "--seed=-1"])];
    assert!(seeds[0]["seed"].as_u64() != seeds[1]["seed"].as_u64(), "{seeds:?}");
    let told = desk.run(&["-p", "hi", "-n", "1", "--seed", "-1"], "");
    assert!(told.code == 0 && told.err.contains("seed "), "{}", told.err);
    let batch =
        desk.run(&["--batch", "-", "-n", "2", "--ignore-eos", "--quiet"], "{\"prompt\":\"hi\",\"n_predict\":-1}\n");
    let line: Value = serde_json::from_str(&batch.out).unwrap();
    assert_eq!(line["samples"][0]["usage"]["completion_tokens"], 22);
}

#[test]
fn stop_texts_have_escapes_and_the_model_may_have_some_of_its_own() {
    let desk = Desk::new("generate", 64);
    let words = ["-p", "hi", "-n", "30", "--temp", "0", "--ignore-eos", "--json", "--quiet"];
    let free = desk.json(&words);
    let text = free["samples"][0]["text"].as_str().unwrap().to_owned();
    let byte = free["samples"][0]["ids"][4].as_u64().unwrap();
    // A character by its code, which is how a line break is written, too.
    let ascii = text.char_indices().find(|(at, letter)| *at > 0 && letter.is_ascii());
    let Some((at, letter)) = ascii else { panic!("no ASCII letter in {text:?} ({byte})") };
    let at = text.find(letter).filter(|first| *first < at).unwrap_or(at);
    let escaped = format!("\\x{:02x}", letter as u32);
    let stopped = desk.json(&[&words[..], &["--stop", &escaped]].concat());
    assert_eq!(stopped["samples"][0]["text"], text[..at]);
    assert_eq!(stopped["samples"][0]["stop"], letter.to_string());
    // The model's own: in generation_config.json.
    let settings = json!({ "eos_token_id": 256, "stop_strings": [letter.to_string()] });
    std::fs::write(desk.path("hf/generation_config.json"), settings.to_string()).unwrap();
    assert_eq!(desk.json(&words)["samples"][0]["text"], text, "--ignore-eos leaves it out");
    let ending: Vec<&str> = words.iter().copied().filter(|word| *word != "--ignore-eos").collect();
    let own = desk.json(&ending);
    assert!(own["samples"][0]["text"].as_str().unwrap().len() <= at, "{own}");
    let batch =
        desk.run(&["--batch", "-", "-n", "30", "--temp", "0", "--quiet"], "{\"prompt\": \"hi\", \"stop\": \"zzz\"}\n");
    let line: Value = serde_json::from_str(&batch.out).unwrap();
    assert_eq!(line["samples"][0]["text"], own["samples"][0]["text"], "beside those of a line");
    let noted = run(&desk, &["convert", "@hf", "@m.gguf"]);
    assert!(noted.code == 0 && noted.err.contains("`stop_strings`"), "{}", noted.err);
}

#[test]
fn one_is_no_plural() {
    let desk = Desk::new("generate", 64);
    assert!(done(&desk, &["tokens", "@hf", "x"]).ends_with("\n1 token\n"));
    assert!(done(&desk, &["logits", "@hf", "x", "--out", "@x", "--threads", "1"]).contains(": 1 token, "));
    let told = desk.run(&["-p", "x", "-n", "1"], "");
    assert!(told.err.contains("1 token read"), "{}", told.err);
    std::fs::write(desk.path("a.txt"), "x").unwrap();
    assert!(done(&desk, &["experts", "@hf", "@a.txt"]).starts_with("a     1 token\n"));
}

#[test]
fn errors_name_the_file_once() {
    let desk = Desk::new("generate", 64);
    let dense = r#"{"model_type": "llama", "hidden_size": 32, "vocab_size": 260, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32}"#;
    std::fs::write(desk.path("dense.json"), dense).unwrap();
    done(&desk, &["init", "--config", "@dense.json", "--seed", "1", "@dense", "--quiet"]);
    std::fs::write(desk.path("a.txt"), "x").unwrap();
    let dense = desk.path("dense");
    let dense = dense.to_str().unwrap();
    refused(&desk, &["experts", "@dense", "@a.txt"], 1, &[dense, "no experts"]);
    refused(&desk, &["chat", "@dense"], 1, &[dense, "has no tokenizer"]);
    refused(&desk, &["generate", "@dense", "hi"], 1, &[dense, "has no tokenizer"]);
    refused(&desk, &["logits", "@dense", "--ids", "1", "--out", "@x", "--routing"], 1, &[dense, "no router"]);
    refused(&desk, &["bench", "decode", "@dense", "--depth", "99"], 1, &[dense, "ask for fewer"]);
    // Which is which, in the words of their files; dense and mixture by name.
    let hf = desk.path("hf");
    let hf = hf.to_str().unwrap();
    let which = format!("`model_type` (OLMo: `block_type`) is \"moe\" in {hf} and \"dense\" in {dense}");
    refused(&desk, &["soup", "@hf", "@dense", "--out", "@x", "--to", "hf"], 1, &[&which]);
    std::fs::write(desk.path("hf/tokenizer.json"), "{\"a\": 1}").unwrap();
    for words in [&["tokens", "@hf", "x"][..], &["generate", "@hf", "x"]] {
        let error = run(&desk, words).err;
        assert_eq!(error.matches("tokenizer.json").count(), 1, "{words:?}: {error}");
    }
}

#[test]
fn what_a_format_cannot_hold_names_those_that_can() {
    let desk = Desk::new("generate", 64);
    let config = std::fs::read_to_string(desk.path("config.json")).unwrap();
    for (name, more, to, expected) in [
        ("normed", "\"norm_topk_prob\": true", &["gguf", "olmo"][..], "write it with --to hf"),
        ("clipped", "\"clip_qkv\": 8.0", &["gguf", "olmo"], "write it with --to hf"),
        ("tied", "\"tie_word_embeddings\": true", &["gguf"], "write it with --to hf or --to olmo"),
    ] {
        let changed = config.replacen('{', &format!("{{{more},"), 1);
        std::fs::write(desk.path("changed.json"), changed).unwrap();
        let model = format!("@{name}");
        done(&desk, &["init", "--config", "@changed.json", "--seed", "1", &model, "--quiet"]);
        let key = more.split(':').next().unwrap().trim_matches('"');
        for to in to {
            let error = run(&desk, &["convert", &model, "@x", "--to", to]).err;
            assert!(error.contains(expected) && error.contains(&format!("`{key}`")), "{name} to {to}: {error}");
            assert!(!error.contains("convert to"), "{error}");
        }
        assert_eq!(run(&desk, &["convert", &model, &format!("@{name}-again"), "--to", "hf", "--quiet"]).code, 0);
    }
}

#[test]
fn a_tied_head_is_passed_over_only_if_it_is_the_embedding() {
    let desk = Desk::new("generate", 64);
    // A head of its own, which the configuration denies.
    let path = desk.path("hf/config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let tied = config.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    assert!(tied != config);
    std::fs::write(&path, tied).unwrap();
    refused(
        &desk,
        &["convert", "@hf", "@x", "--to", "hf", "--quiet"],
        1,
        &["model.safetensors", "\"lm_head.weight\"", "\"model.embed_tokens.weight\"", "`tie_word_embeddings`"],
    );
    // The embedding once more is passed over with a note, and a dense model takes it to GGUF without a copy.
    let file = desk.path("hf/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let place = |name: &str| {
        let offset = |at: usize| header[name]["data_offsets"][at].as_u64().unwrap() as usize + 8 + length;
        offset(0)..offset(1)
    };
    bytes.copy_within(place("model.embed_tokens.weight"), place("lm_head.weight").start);
    std::fs::write(&file, bytes).unwrap();
    let copied = run(&desk, &["convert", "@hf", "@same", "--to", "hf"]);
    assert!(copied.code == 0 && copied.err.contains("lm_head.weight: passed over"), "{}", copied.err);
    assert!(!done(&desk, &["inspect", "@same", "--tensors"]).contains("lm_head"));
    let dense = r#"{"model_type": "llama", "hidden_size": 32, "vocab_size": 260, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32,
        "tie_word_embeddings": true}"#;
    std::fs::write(desk.path("dense.json"), dense).unwrap();
    done(&desk, &["init", "--config", "@dense.json", "--seed", "1", "@dense.gguf", "--quiet"]);
    assert!(!done(&desk, &["inspect", "@dense.gguf", "--tensors"]).contains(" output.weight"));
}
