//! Checkpoints on the command line: made, looked at, converted, quantised, run.

mod program;

use std::path::{Path, PathBuf};

use olmoe_data::{TokenKind, Tokenizer, Vocabulary};
use program::{Done, olmoe};
use serde_json::Value;

/// A folder for one test, with a configuration and a tokenizer in it.
struct Desk(tempfile::TempDir);

const CONFIG: &str = r#"{"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "hidden_size": 64, "vocab_size": 300,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 32, "num_experts": 8,
    "num_experts_per_tok": 2, "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 0}"#;

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        std::fs::write(desk.path("config.json"), CONFIG).unwrap();
        std::fs::write(desk.path("tokenizer.json"), tokenizer().json()).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the program; words that begin with `@` are paths in the folder.
    fn run(&self, words: &str) -> Done {
        let words: Vec<String> = words
            .split(' ')
            .map(|word| match word.strip_prefix('@') {
                Some(name) => self.path(name).to_str().unwrap().to_owned(),
                None => word.to_owned(),
            })
            .collect();
        olmoe(&words.iter().map(String::as_str).collect::<Vec<_>>(), &[])
    }

    fn done(&self, words: &str) -> String {
        let done = self.run(words);
        assert_eq!(done.code, 0, "{words}: {}", done.err);
        done.out
    }

    fn failed(&self, words: &str) -> String {
        let done = self.run(words);
        assert_eq!((done.code, done.out.as_str()), (1, ""), "{words}: {}", done.err);
        assert!(done.err.starts_with("error: ") || done.err.contains("\nerror: "), "{words}: {}", done.err);
        done.err
    }

    fn init(&self) {
        self.done("init --config @config.json --seed 1 @hf --tokenizer @tokenizer.json");
    }
}

/// The bytes, two merges, a masked address as token 0 and an end of text.
fn tokenizer() -> Tokenizer {
    let bytes = Vocabulary::bytes();
    let mut tokens = vec!["|||IP_ADDRESS|||".to_owned(), "<|padding|>".to_owned()];
    tokens.extend_from_slice(&bytes.tokens[..256]);
    tokens.extend(["th", "the", "<|endoftext|>"].map(str::to_owned));
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    kinds[0] = TokenKind::UserDefined;
    (kinds[1], kinds[260]) = (TokenKind::Control, TokenKind::Control);
    let merges = vec!["t h".into(), "th e".into()];
    let vocabulary = Vocabulary { tokens, kinds, merges, eos: Some(260), pad: Some(1), ..bytes };
    Tokenizer::from_vocabulary(&vocabulary).unwrap()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The tensors of a safetensors file by name.
fn tensors(path: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = json(std::str::from_utf8(&bytes[8..8 + length]).unwrap());
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    let place = |entry: &Value, at: usize| 8 + length + entry["data_offsets"][at].as_u64().unwrap() as usize;
    tensors.map(|(name, entry)| (name.clone(), bytes[place(entry, 0)..place(entry, 1)].to_vec())).collect()
}

#[test]
fn from_init_through_all_formats_to_the_same_logits() {
    let desk = Desk::new();
    desk.init();
    desk.done("convert @hf @olmo --to olmo");
    desk.done("convert @olmo @olmo.gguf --to gguf");
    let said = desk.done("convert @olmo.gguf @back --to hf");
    assert!(said.contains("no number changed"), "{said}");
    assert!(tensors(&desk.path("hf/model.safetensors")) == tensors(&desk.path("back/model.safetensors")));
    // The tokenizer came along through every format, and the wrong end-of-text id of the configuration was corrected.
    for (name, key) in [("back/config.json", "eos_token_id"), ("olmo/generation_config.json", "eos_token_id")] {
        assert_eq!(json(&std::fs::read_to_string(desk.path(name)).unwrap())[key], 260, "{name}");
    }
    let ids = json(&desk.done("tokens -m @olmo.gguf --json the<|endoftext|>"))["ids"].clone();
    assert_eq!(ids, serde_json::json!([259, 260]));

    let mut all = Vec::new();
    for model in ["hf", "olmo", "olmo.gguf", "back"] {
        desk.done(&format!("logits -m @{model} --text the_cat --out @{model}.logits --routing"));
        all.push(tensors(&desk.path(&format!("{model}.logits"))));
    }
    assert!(all.iter().all(|tensors| *tensors == all[0]), "every format gives the same bits");
    let sizes: Vec<(&str, usize)> = all[0].iter().map(|(name, bytes)| (name.as_str(), bytes.len() / 4)).collect();
    let tokens = 1 + "_cat".len();
    assert_eq!(
        sizes,
        [
            ("ids", tokens),
            ("logits", tokens * 300),
            ("logprobs", tokens - 1),
            ("routing.ids", 2 * tokens * 2),
            ("routing.probs", 2 * tokens * 2),
        ]
    );
    let logits: Vec<f32> = all[0]["logits"].as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let ids: Vec<u32> = all[0]["ids"].as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    for (at, bytes) in all[0]["logprobs"].as_chunks::<4>().0.iter().enumerate() {
        let row = &logits[at * 300..(at + 1) * 300];
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        let expected = f64::from(row[ids[at + 1] as usize]) - sum.ln();
        assert!((f64::from(f32::from_le_bytes(*bytes)) - expected).abs() < 1e-5);
    }
}

#[test]
fn inspecting_shows_what_is_there() {
    let desk = Desk::new();
    desk.init();
    desk.done("quantize @hf @q.gguf --type q4_k_m");
    let report = json(&desk.done("inspect @hf --json"));
    assert_eq!((&report["format"], &report["tokenizer"]["size"]), (&"huggingface".into(), &261.into()));
    assert_eq!(report["parameters_total"], 2 * 300 * 64 + 64 + 2 * (4 * 64 * 64 + 4 * 64 + 8 * 64 + 8 * 3 * 64 * 32));
    assert_eq!(report["config"]["d_model"], 64);
    let tensor = |report: &Value, name: &str| {
        report["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == name).unwrap().clone()
    };
    let gate = tensor(&report, "model.layers.1.mlp.experts.7.gate_proj.weight");
    assert_eq!(gate, serde_json::json!({"name": gate["name"], "dtype": "bf16", "shape": [32, 64], "bytes": 4096}));
    let report = json(&desk.done("inspect @q.gguf --json"));
    assert_eq!(tensor(&report, "blk.0.ffn_gate_inp.weight")["dtype"], "f32");
    // 64 numbers in a row are no whole block of 256.
    assert_eq!(tensor(&report, "blk.0.ffn_gate_exps.weight")["dtype"], "q5_0");
    assert_eq!(report["metadata"]["general.architecture"], "\"olmoe\"");
    assert_eq!(report["metadata"]["tokenizer.ggml.eos_token_id"], "260");
    let text = desk.done("inspect @hf");
    assert!(text.contains("16 × model.layers.*.mlp.experts.*.up_proj.weight"), "{text}");
    assert_eq!(desk.done("inspect @hf --tensors").lines().count(), 7 + 3 + 2 * (9 + 24));
    assert!(desk.done("inspect @config.json").contains("experts: 8 of width 32, 2 a token"));
}

#[test]
fn quantising_says_what_it_did() {
    let desk = Desk::new();
    desk.init();
    let said = desk.done("quantize @hf @q.gguf --type Q8_0 --threads 3");
    assert!(
        said.contains("moe.experts.up_proj") && said.contains("q8_0×2") && said.contains("bits a number"),
        "{said}"
    );
    let refused = desk.failed("quantize @q.gguf @q2.gguf --type q4_0");
    assert!(refused.contains("--allow-requantize"), "{refused}");
    desk.done("quantize @q.gguf @q2.gguf --type q4_0 --allow-requantize --quiet");
    let refused = desk.failed("convert @q.gguf @out --to hf");
    assert!(refused.contains("--dtype f32"), "{refused}");
    assert_eq!(desk.done("convert @q.gguf @out --to hf --dtype f32 --quiet"), "");
}

#[test]
fn measurements_say_what_was_read_and_beside_which_limit() {
    let desk = Desk::new();
    desk.init();
    let report =
        json(&desk.done("bench batch -m @hf --sequences 1,6 --depth 3 --tokens 2 --rounds 1 --threads 2 --json"));
    let [one, six] = [0, 1].map(|row| &report["rows"][row]);
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
    // One token reaches its own two experts in each of the two layers, six tokens some of the eight.
    let (few, many) = (number(one, "experts_per_layer"), number(six, "experts_per_layer"));
    assert!(few == 2.0 && many > 2.0 && many <= 8.0, "{few} {many}");
    // Three matrices; the keys of two layers, and their values, in which each head fills half a panel of 32 columns.
    let (expert, token) = (3 * 64 * 32 * 2, 2 * (64 + 4 * 32) * 2);
    let more = 2.0 * (many - few) * f64::from(expert) + f64::from(5 * 4 * token);
    assert_eq!(number(six, "bytes_per_step") - number(one, "bytes_per_step"), more);
    assert_eq!(number(six, "bytes_per_token") * 6.0, number(six, "bytes_per_step"));
    for row in [one, six] {
        let speed = number(row, "tokens_per_second");
        let ceiling = (number(row, "read_bandwidth") / number(row, "bytes_per_token"))
            .min(number(row, "peak_flops") / number(row, "flops_per_token"));
        assert!((number(row, "share") * ceiling / speed - 1.0).abs() < 1e-9, "{row}");
    }

    desk.done("quantize @hf @q.gguf --type q8_0 --quiet");
    let [plain, blocks] = ["hf", "q.gguf"]
        .map(|model| desk.done(&format!("bench prefill -m @{model} --length 64 --rounds 1 --json --precision fp32")));
    let limit = |report: &str| json(report)["limit"].as_str().unwrap().to_owned();
    assert!(["f32 multiply-add peak", "read bandwidth"].contains(&limit(&plain).as_str()), "{plain}");
    assert!(["8-bit multiply-add peak", "read bandwidth"].contains(&limit(&blocks).as_str()), "{blocks}");
    assert!(number(&json(&blocks), "peak_flops") > number(&json(&plain), "peak_flops"));
    let line = desk.done("bench decode -m @q.gguf --tokens 2 --rounds 1");
    assert!(line.starts_with("decode 0: ") && line.contains("2.0 experts a layer"), "{line}");
    assert!(desk.failed("bench batch -m @hf --depth 63 --tokens 2").contains("65 tokens do not fit"));
    assert!(desk.failed("bench batch -m @hf --sequences 99999999999999 --tokens 2").contains("fewer sequences"));
}

#[test]
fn results_replace_nothing_unless_forced() {
    let desk = Desk::new();
    desk.init();
    let before = std::fs::read(desk.path("hf/model.safetensors")).unwrap();
    assert!(desk.failed("init --config @config.json --seed 2 @hf").contains("--force"));
    assert_eq!(std::fs::read(desk.path("hf/model.safetensors")).unwrap(), before);
    desk.done("init --config @config.json --seed 2 @hf --force");
    assert!(std::fs::read(desk.path("hf/model.safetensors")).unwrap() != before);
    // A folder with anything else in it stays.
    std::fs::create_dir(desk.path("hf/letters")).unwrap();
    desk.failed("init --config @config.json --seed 3 @hf --force");
    let mut names: Vec<_> = std::fs::read_dir(desk.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "hf", "tokenizer.json"], "nothing is left half done");
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let desk = Desk::new();
    desk.init();
    std::fs::write(desk.path("broken.gguf"), "GGUF").unwrap();
    std::fs::create_dir(desk.path("empty")).unwrap();
    for (words, expected) in [
        ("inspect @nothing", "nothing"),
        ("inspect @broken.gguf", "truncated"),
        ("inspect @empty", "an empty folder"),
        ("convert @config.json @x --to hf", "configuration without weights"),
        ("convert @hf/model.safetensors @x --to hf", "folder of the whole checkpoint"),
        ("logits -m @hf --ids 1,300 --out @x", "300"),
        ("logits -m @hf --ids 1 --out @no/such/folder", "could not be written"),
        ("logits -m @hf --file @nothing --out @x", "nothing"),
        ("tokens --tokenizer @config.json x", "config.json"),
        ("tokens -m @empty x", "an empty folder"),
        ("init --config @tokenizer.json --seed 1 @x", "tokenizer.json"),
        ("init --config @config.json --seed 1 @x --tokenizer @config.json", "config.json"),
        ("inspect no-such-org/no-such-model --offline", "offline"),
    ] {
        let error = desk.failed(words);
        assert!(error.contains(expected), "{words}: {error}");
        assert_eq!(error.lines().filter(|line| line.starts_with("error:")).count(), 1, "{words}: {error}");
        assert!(!error.contains("panicked"), "{words}: {error}");
    }
    assert!(!desk.path("x").exists());
}

const DENSE: &str =
    "model: {d_model: 64, n_heads: 4, n_layers: 2, mlp_hidden_size: 96, block_type: sequential, rope: true,
    include_bias: false, layer_norm_type: rms, attention_layer_norm: true, weight_tying: false, vocab_size: 300,
    embedding_size: 300, max_sequence_length: 64, activation_type: swiglu, eos_token_id: 260, pad_token_id: 1,
    attention_dropout: 0.0, residual_dropout: 0.0, embedding_dropout: 0.0}";

#[test]
fn a_dense_model_becomes_a_mixture() {
    let desk = Desk::new();
    std::fs::write(desk.path("dense.yml"), DENSE).unwrap();
    desk.done("init --config @dense.yml --seed 1 @dense --to olmo --tokenizer @tokenizer.json");
    let said = desk.done("upcycle @dense @moe --to hf --seed 1 --num-experts 4 --normalize-top-k --dtype f32");
    assert!(said.contains("read back and compared"), "{said}");
    let report = json(&desk.done("inspect @moe --json"));
    assert_eq!((&report["format"], &report["tokenizer"]["size"]), (&"huggingface".into(), &261.into()));
    let experts = &report["config"]["feed_forward"]["moe"];
    assert_eq!((&experts["num_experts"], &experts["top_k"]), (&4.into(), &2.into()));
    let logits = |model: &str| {
        desk.done(&format!("logits -m @{model} --text the_cat --out @{model}.logits"));
        let bytes = tensors(&desk.path(&format!("{model}.logits"))).remove("logits").unwrap();
        bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect::<Vec<f32>>()
    };
    let (dense, mixture) = (logits("dense"), logits("moe"));
    assert!(dense.iter().zip(&mixture).all(|(a, b)| (a - b).abs() < 1e-6) && dense.iter().any(|x| x.abs() > 1e-3));
    // The same bits with any number of threads; noise, a shared expert and other formats.
    let options = "--seed 2 --shared-expert --upstream-swap --noise 0.5 --noise-std 0.1 --router-std 0.01 --quiet";
    assert_eq!(desk.done(&format!("upcycle @dense @a --to olmo --threads 1 {options}")), "");
    desk.done(&format!("upcycle @dense @b --to olmo --threads 3 {options}"));
    assert!(
        std::fs::read(desk.path("a/model.safetensors")).unwrap()
            == std::fs::read(desk.path("b/model.safetensors")).unwrap()
    );
    desk.done("upcycle @dense @moe.gguf --to gguf --seed 1 --top-k 8");
    // Every second block alone: the first remains as it is.
    desk.done("upcycle @dense @half --to olmo --seed 1 --interleave --num-experts 4 --top-k 4");
    let said = desk.done("inspect @half");
    assert!(said.contains("experts: 4 of width 48, 4 a token; even layers are dense, of width 48"), "{said}");
    assert!(dense.iter().zip(&logits("half")).all(|(a, b)| (a - b).abs() < 1e-6));
    let error = desk.failed("convert @half @x --to gguf --tokenizer @tokenizer.json");
    assert!(error.contains("`moe_interleave`") && error.contains("write it with --to olmo"), "{error}");
    for (words, expected) in [
        ("upcycle @moe @x --to hf --seed 1", "a mixture of 4 experts already"),
        ("upcycle @dense @x --to hf --seed 1 --top-k 9", "`top_k` (9) is greater than `num_experts` (8)"),
        ("upcycle @dense @x --to hf --seed 1 --noise 2", "share of noise is 2"),
        ("upcycle @dense @x --to olmo --seed 1 --normalize-top-k", "OLMo cannot express this model"),
    ] {
        let error = desk.failed(words);
        assert!(error.contains(expected), "{words}: {error}");
    }
    assert!(!desk.path("x").exists());
}

#[test]
fn checkpoints_are_averaged() {
    let desk = Desk::new();
    desk.init();
    desk.done("convert @hf @olmo --to olmo");
    desk.done("convert @hf @model.gguf --to gguf");
    let said = desk.done("soup @hf @olmo @model.gguf --out @same --to hf");
    assert!(said.contains("the average of 3 checkpoints"), "{said}");
    assert!(tensors(&desk.path("hf/model.safetensors")) == tensors(&desk.path("same/model.safetensors")));
    assert_eq!(json(&desk.done("inspect @same --json"))["tokenizer"]["size"], 261);
    desk.done("init --config @config.json --seed 2 @other --tokenizer @tokenizer.json");
    let said = desk.run("soup @hf @other --weights 1,3 --dtype f32 --out @mixed.gguf --to gguf --quiet");
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{}", said.err);
    let mut notes: Vec<&str> = said.err.lines().collect();
    notes.dedup();
    assert_eq!(notes.join("\n"), said.err.trim_end(), "each is said once");

    // Another vocabulary, in the file of one of them.
    let text = String::from_utf8(tokenizer().json().to_vec()).unwrap();
    let mut swapped = json(&text);
    let words = swapped["model"]["vocab"].as_object_mut().unwrap();
    (words["a"], words["b"]) = (words["b"].clone(), words["a"].clone());
    std::fs::write(desk.path("other/tokenizer.json"), swapped.to_string()).unwrap();
    std::fs::write(desk.path("hf/chat_template.jinja"), "{{ messages }}").unwrap();
    let error = desk.failed("soup @hf @other --out @x --to hf");
    assert!(error.contains("`tokens[99]` is \"a\" in "), "{error}");
    let done = desk.run("soup @hf @other --out @named --to hf --tokenizer @tokenizer.json");
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("its chat template differs; the first one's is kept"), "{}", done.err);
    assert_eq!(std::fs::read_to_string(desk.path("named/chat_template.jinja")).unwrap(), "{{ messages }}");

    std::fs::write(desk.path("small.json"), CONFIG.replace("\"num_experts\": 8", "\"num_experts\": 4")).unwrap();
    desk.done("init --config @small.json --seed 1 @small");
    for (words, expected) in [
        ("soup @hf @small --out @x --to hf", "`num_experts` (OLMo: `moe_num_experts`) is 8 in "),
        ("soup @hf @olmo --out @x --to hf --weights 1", "1 weight for 2 checkpoints"),
        ("soup @hf @olmo --out @x --to hf --weights 1,0", "weight 2 is 0"),
        ("soup @hf @hf --out @olmo --to olmo", "--force"),
    ] {
        let error = desk.failed(words);
        assert!(error.contains(expected), "{words}: {error}");
    }
    assert!(!desk.path("x").exists());
}
