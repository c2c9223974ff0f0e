//! Files that other programs made, on the command line: what they say is followed, and what cannot be is named.

mod program;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use olmoe_checkpoint::encoding::Encoding;
use olmoe_checkpoint::gguf::container::{self, GgufWriter};
use olmoe_checkpoint::gguf::value::{Metadata, MetadataValue, ValueType};
use program::desk::Desk;
use program::{Done, olmoe};
use serde_json::{Value, json};

/// Runs the program; words that begin with `@` are paths in the folder.
fn run(desk: &Desk, words: &str) -> Done {
    let words: Vec<String> = words
        .split(' ')
        .map(|word| match word.strip_prefix('@') {
            Some(name) => desk.path(name).to_str().unwrap().to_owned(),
            None => word.to_owned(),
        })
        .collect();
    olmoe(&words.iter().map(String::as_str).collect::<Vec<_>>(), &[])
}

fn done(desk: &Desk, words: &str) -> Done {
    let done = run(desk, words);
    assert_eq!(done.code, 0, "{words}: {}", done.err);
    done
}

fn failed(desk: &Desk, words: &str) -> String {
    let done = run(desk, words);
    assert_eq!((done.code, done.out.as_str()), (1, ""), "{words}: {}", done.err);
    done.err
}

/// Why a model stops that would say one token for ever.
fn reason(desk: &Desk, model: &str, token: u32) -> String {
    let words = format!("generate -m @{model} -p hi --temp 0 -n 3 --json --quiet --logit-bias {token}=1000");
    let report: Value = serde_json::from_str(&done(desk, &words).out).unwrap();
    report["samples"][0]["finish_reason"].as_str().unwrap().to_owned()
}

fn set(path: &Path, key: &str, value: Value) {
    let mut file: Value = std::fs::read(path).map_or(json!({}), |bytes| serde_json::from_slice(&bytes).unwrap());
    file[key] = value;
    std::fs::write(path, file.to_string()).unwrap();
}

fn written(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A GGUF file with other metadata; nothing for a key that is left out.
fn regguf(from: &Path, to: &Path, changes: &[(&str, Option<MetadataValue>)]) {
    let bytes = std::fs::read(from).unwrap();
    let header = container::read(&bytes[..]).unwrap();
    let mut metadata = Metadata::default();
    for (key, value) in header.metadata.iter().filter(|entry| changes.iter().all(|change| change.0 != entry.0)) {
        metadata.insert(key, value.clone());
    }
    for (key, value) in changes {
        if let Some(value) = value {
            metadata.insert(*key, value.clone());
        }
    }
    let encoding = |kind| match kind {
        0 => Encoding::F32,
        30 => Encoding::BF16,
        other => panic!("no tensor here is of type {other}"),
    };
    let specs: Vec<_> = header
        .tensors
        .iter()
        .map(|tensor| (tensor.name.clone(), tensor.shape.clone(), encoding(tensor.kind)))
        .collect();
    let mut writer = GgufWriter::new(Vec::new(), &metadata, &specs).unwrap();
    for tensor in &header.tensors {
        writer.write(&bytes[tensor.offset as usize..][..tensor.bytes as usize]).unwrap();
    }
    std::fs::write(to, writer.finish().unwrap()).unwrap();
}

fn ids(ids: &[u32]) -> MetadataValue {
    MetadataValue::Array(ValueType::U32, ids.iter().map(|id| MetadataValue::U32(*id)).collect())
}

/// The bytes of every tensor of a safetensors file, changed and written back.
fn edit(path: &Path, change: impl Fn(&str, &mut [u8])) {
    let mut bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    for (name, entry) in header.iter().filter(|entry| entry.0 != "__metadata__") {
        let place = |at: usize| 8 + length + entry["data_offsets"][at].as_u64().unwrap() as usize;
        change(name, &mut bytes[place(0)..place(1)]);
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn all_ends_of_a_text_count_and_travel() {
    let desk = Desk::new("generate", 64);
    // Rows beyond the tokens, so that nothing else says anything about them.
    let [first, second, other] = [257, 258, 259];
    set(&desk.path("hf/generation_config.json"), "eos_token_id", json!([256, first]));
    set(&desk.path("hf/config.json"), "eos_token_id", json!([256, second]));
    for words in [
        "convert @hf @a.gguf --to gguf --quiet",
        "quantize @hf @q.gguf --type q8_0 --quiet",
        "convert @hf @olmo --to olmo --quiet",
        "convert @a.gguf @back --to hf --quiet",
        "convert @olmo @b.gguf --to gguf --quiet",
        "convert @b.gguf @c.gguf --to gguf --quiet",
        "soup @hf @hf --out @soup --to hf --quiet",
    ] {
        done(&desk, words);
    }
    for model in ["hf", "a.gguf", "q.gguf", "olmo", "back", "b.gguf", "c.gguf", "soup"] {
        for id in [256, first, second] {
            assert_eq!(reason(&desk, model, id), "stop", "{model} {id}");
        }
        assert_eq!(reason(&desk, model, other), "length", "{model}");
    }
    // transformers looks for all of them in one place, llama.cpp for single ones under two keys, Ollama in a list.
    let mut ends: Vec<u64> = written(&desk.path("back/generation_config.json"))["eos_token_id"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap())
        .collect();
    ends.sort_unstable();
    assert_eq!(ends, [256, 257, 258]);
    let report: Value = serde_json::from_str(&done(&desk, "inspect @a.gguf --json").out).unwrap();
    let held = |key: &str| report["metadata"][format!("tokenizer.ggml.{key}")].as_str().unwrap().to_owned();
    assert_eq!((held("eos_token_id"), held("eos_token_ids")), ("256".into(), "[256, 258, 257]".into()));
    assert_eq!((held("eot_token_id"), held("eom_token_id")), ("258".into(), "257".into()));
    let text = done(&desk, "inspect @hf").out;
    for line in [
        "ends a text: 256 \"<|endoftext|>\" (eos_token_id of config.json; eos_token_id of generation_config.json;",
        "ends a text: 257 (eos_token_id of generation_config.json)",
        "ends a text: 258 (eos_token_id of config.json)",
    ] {
        assert!(text.contains(line), "{text}");
    }
    // A file that says all of it already is copied as it is.
    let before = r#"{"eos_token_id": [258, 257, 256], "temperature": 0.5}"#;
    std::fs::write(desk.path("hf/generation_config.json"), before).unwrap();
    done(&desk, "convert @hf @same --to hf --quiet");
    assert_eq!(std::fs::read_to_string(desk.path("same/generation_config.json")).unwrap(), before);
}

#[test]
fn every_key_of_a_gguf_file_that_names_an_end_counts() {
    let desk = Desk::new("generate", 64);
    done(&desk, "convert @hf @m.gguf --to gguf --quiet");
    for key in ["eot_token_id", "eom_token_id", "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id"] {
        let key = format!("tokenizer.ggml.{key}");
        regguf(&desk.path("m.gguf"), &desk.path("one.gguf"), &[(&key, Some(MetadataValue::U32(257)))]);
        assert_eq!((reason(&desk, "one.gguf", 257), reason(&desk, "one.gguf", 258)), ("stop".into(), "length".into()));
        let text = done(&desk, "inspect @one.gguf").out;
        assert!(text.contains(&format!("ends a text: 257 ({key})")), "{text}");
    }
    for key in ["tokenizer.ggml.eog_token_ids", "tokenizer.ggml.eos_token_ids"] {
        regguf(&desk.path("m.gguf"), &desk.path("more.gguf"), &[(key, Some(ids(&[256, 257, 258, 999])))]);
        done(&desk, "convert @more.gguf @more --to hf --quiet");
        for model in ["more.gguf", "more"] {
            for (id, expected) in [(257, "stop"), (258, "stop"), (259, "length")] {
                assert_eq!(reason(&desk, model, id), expected, "{key} {model} {id}");
            }
        }
        let said = done(&desk, "inspect @more.gguf").out;
        assert!(said.contains(&format!("note: `{key}` in the GGUF file is 999, beyond the 260 rows")), "{said}");
        std::fs::remove_dir_all(desk.path("more")).unwrap();
    }
    regguf(
        &desk.path("m.gguf"),
        &desk.path("bad.gguf"),
        &[("tokenizer.ggml.eog_token_ids", Some(MetadataValue::U32(7)))],
    );
    assert!(failed(&desk, "generate -m @bad.gguf -p hi -n 1").contains("eog_token_ids is 7, expected a list"));
}

#[test]
fn the_token_that_a_template_puts_behind_an_answer_ends_texts() {
    let desk = Desk::new("generate", 64);
    let mut tokenizer = written(&desk.path("tokenizer.json"));
    tokenizer["model"]["vocab"]["<turn>"] = json!(257);
    let mut added = tokenizer["added_tokens"][0].clone();
    (added["id"], added["content"]) = (json!(257), json!("<turn>"));
    tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
    std::fs::write(desk.path("hf/tokenizer.json"), tokenizer.to_string()).unwrap();
    assert_eq!(reason(&desk, "hf", 257), "length");
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n<turn>{% endfor %}";
    std::fs::write(desk.path("hf/chat_template.jinja"), template).unwrap();
    assert_eq!(reason(&desk, "hf", 257), "stop");
    done(&desk, "convert @hf @m.gguf --to gguf --quiet");
    assert_eq!(reason(&desk, "m.gguf", 257), "stop");
    let text = done(&desk, "inspect @m.gguf").out;
    assert!(text.contains("ends a text: 257 \"<turn>\" (") && text.contains("the chat template"), "{text}");
    // One that cannot be used is no reason to stop elsewhere, nor not to run.
    std::fs::write(desk.path("hf/chat_template.jinja"), "{% if").unwrap();
    assert_eq!(reason(&desk, "hf", 257), "length");
}

#[test]
fn special_tokens_without_a_row_are_none() {
    let desk = Desk::new("generate", 64);
    set(&desk.path("hf/config.json"), "pad_token_id", Value::Null);
    std::fs::remove_file(desk.path("hf/generation_config.json")).unwrap();
    let settings = desk.path("hf/tokenizer_config.json");
    let check = |expected: &str| {
        for words in [
            "generate -m @hf -p hi -n 1 --temp 0",
            "convert @hf @m.gguf --to gguf",
            "quantize @hf @q.gguf --type q8_0",
            "convert @hf @there --to hf",
        ] {
            let said = done(&desk, words).err;
            assert!(said.contains(expected), "{words}: {said}");
        }
        for name in ["m.gguf", "q.gguf"] {
            done(&desk, &format!("generate -m @{name} -p hi -n 1 --quiet"));
            std::fs::remove_file(desk.path(name)).unwrap();
        }
        std::fs::remove_dir_all(desk.path("there")).unwrap();
    };
    for (content, expected) in [
        (
            json!({"pad_token": "[PAD]"}),
            "`pad_token` in tokenizer_config.json is \"[PAD]\", which is not a token of the tokenizer",
        ),
        (
            json!({"unk_token": "<unk>"}),
            "`unk_token` in tokenizer_config.json is \"<unk>\", which is not a token of the tokenizer",
        ),
        (
            json!({"bos_token": {"content": "<s>"}}),
            "`bos_token` in tokenizer_config.json is \"<s>\", which is not a token of the tokenizer",
        ),
    ] {
        std::fs::write(&settings, content.to_string()).unwrap();
        check(expected);
    }
    std::fs::remove_file(&settings).unwrap();
    let generation = desk.path("hf/generation_config.json");
    std::fs::write(&generation, r#"{"pad_token_id": 260, "eos_token_id": 256}"#).unwrap();
    check("`pad_token_id` in generation_config.json is 260, beyond the 260 rows");
    std::fs::remove_file(&generation).unwrap();
    set(&desk.path("hf/config.json"), "pad_token_id", json!(260));
    check("260 is beyond the 260 rows");
    // A token that was added to the tokenizer and not to the model.
    set(&desk.path("hf/config.json"), "pad_token_id", Value::Null);
    let mut tokenizer = written(&desk.path("tokenizer.json"));
    let first = tokenizer["added_tokens"][0].clone();
    for (id, text) in [(257, "[A]"), (258, "[B]"), (259, "[C]"), (260, "[PAD]")] {
        let mut added = first.clone();
        (added["id"], added["content"]) = (json!(id), json!(text));
        tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
    }
    std::fs::write(desk.path("hf/tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(&settings, r#"{"pad_token": "[PAD]"}"#).unwrap();
    check("`pad_token` in tokenizer_config.json is 260, beyond the 260 rows");
}

/// A model in f32 with one number changed.
fn with_number(desk: &Desk, tensor: &str, at: usize, value: f32) {
    done(desk, "init --config @config.json --seed 1 @f32 --tokenizer @tokenizer.json --dtype f32 --quiet");
    edit(&desk.path("f32/model.safetensors"), |name, bytes| {
        if name == tensor {
            bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
        }
    });
}

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn numbers_that_do_not_fit_are_refused_or_clamped() {
    let desk = Desk::new("generate", 64);
    with_number(&desk, "lm_head.weight", 77, -7e4);
    let before = names(desk.path("hf").parent().unwrap());
    let commands = [
        ("convert @f32 @h --to hf --dtype f16", "h"),
        ("convert @f32 @o --to olmo --dtype f16", "o"),
        ("convert @f32 @g.gguf --to gguf --dtype f16", "g.gguf"),
        ("quantize @f32 @q.gguf --type f16", "q.gguf"),
        ("soup @f32 @f32 --out @s --to hf --dtype f16", "s"),
    ];
    for (words, _) in commands {
        let error = failed(&desk, &format!("{words} --quiet"));
        let expected =
            "parameter lm_head.weight: number 77 of matrix 0 is -7e4, beyond what f16 can hold (up to 65504)";
        assert!(error.contains(expected) && error.contains("--clamp"), "{words}: {error}");
    }
    assert_eq!(names(desk.path("hf").parent().unwrap()), before, "nothing is left");
    for (words, name) in commands {
        done(&desk, &format!("{words} --quiet --clamp"));
        done(&desk, &format!("generate -m @{name} -p hi -n 1 --quiet"));
    }
    edit(&desk.path("h/model.safetensors"), |name, bytes| {
        // The largest half: an exponent of 30 and a mantissa of ones.
        assert!(name != "lm_head.weight" || bytes[154..156] == 0xfbffu16.to_le_bytes(), "{:?}", &bytes[154..156]);
    });
    let said = run(&desk, "convert @f32 @again --to hf --dtype f16 --clamp").err;
    assert!(said.contains("numbers beyond the range of their type that were clamped: 1"), "{said}");
    // Values in the range of the type are written without a notice; quantised blocks have a scale of their own.
    done(&desk, "convert @f32 @b --to hf --dtype bf16 --quiet");
    done(&desk, "quantize @f32 @q8.gguf --type q8_0 --quiet");
    done(&desk, "generate -m @q8.gguf -p hi -n 1 --quiet");
}

#[test]
fn the_range_of_every_type_has_an_end() {
    let desk = Desk::new("generate", 64);
    // Above the largest bf16, 3.3895e38; and far above 127 times the largest half, where the scale of a block ends.
    for (value, words, expected) in [
        (3.4e38, "convert @f32 @x --to hf --dtype bf16", "is 3.4e38, beyond what bf16 can hold"),
        (1e7, "quantize @f32 @x --type q8_0", "is 1e7, beyond what q8_0 can hold as the scale of a block"),
    ] {
        with_number(&desk, "lm_head.weight", 5, value);
        let error = failed(&desk, &format!("{words} --quiet"));
        assert!(
            error.contains("parameter lm_head.weight: number 5 of matrix 0") && error.contains(expected),
            "{error}"
        );
        std::fs::remove_dir_all(desk.path("f32")).unwrap();
    }
    assert!(!desk.path("x").exists());
    // A NaN in any tensor is an error when quantising, also in those that are not quantised: the router and the norms.
    for (tensor, parameter) in [
        ("model.layers.1.mlp.gate.weight", "layers.1.moe.router.weight"),
        ("model.norm.weight", "norm.weight"),
        ("model.layers.0.self_attn.q_proj.weight", "layers.0.attention.q_proj.weight"),
    ] {
        with_number(&desk, tensor, 3, f32::NAN);
        let error = failed(&desk, "quantize @f32 @x --type q8_0 --quiet");
        assert!(error.contains(&format!("parameter {parameter}: number 3 of matrix 0 is not finite")), "{error}");
        std::fs::remove_dir_all(desk.path("f32")).unwrap();
    }
}

#[test]
fn models_in_several_files_are_read_and_written() {
    let desk = Desk::new("generate", 64);
    let text = |model: &str| done(&desk, &format!("generate -m @{model} -p hi -n 8 --temp 0 --quiet")).out;
    let expected = text("hf");
    done(&desk, "convert @hf @m.gguf --to gguf --quiet --shard-size 20KB");
    assert!(!desk.path("m.gguf").exists());
    let parts: Vec<String> =
        names(desk.path("hf").parent().unwrap()).into_iter().filter(|name| name.ends_with(".gguf")).collect();
    let count = parts.len();
    assert!(count > 2, "{parts:?}");
    for (number, part) in (1..).zip(&parts) {
        assert_eq!(*part, format!("m-{number:05}-of-{count:05}.gguf"));
        // Any of them stands for all.
        assert_eq!(text(part), expected, "{part}");
    }
    let report: Value = serde_json::from_str(&done(&desk, &format!("inspect @{} --json", parts[1])).out).unwrap();
    let said = |key: &str| report["metadata"][key].as_str().unwrap().to_owned();
    let tensors = report["tensors"].as_array().unwrap().len();
    assert_eq!((said("split.no"), said("split.count")), ("0".into(), count.to_string()));
    assert_eq!(said("split.tensors.count"), tensors.to_string());
    // A folder of them, and back into one file.
    std::fs::create_dir(desk.path("parts")).unwrap();
    for part in &parts {
        std::fs::rename(desk.path(part), desk.path("parts").join(part)).unwrap();
    }
    assert_eq!(text("parts"), expected);
    done(&desk, "convert @parts @whole.gguf --to gguf --quiet");
    done(&desk, "convert @hf @direct.gguf --to gguf --quiet");
    let bytes = |name: &str| {
        let bytes = std::fs::read(desk.path(name)).unwrap();
        let tensors = container::read(&bytes[..]).unwrap().tensors;
        tensors
            .iter()
            .map(|tensor| bytes[tensor.offset as usize..][..tensor.bytes as usize].to_vec())
            .collect::<Vec<_>>()
    };
    assert!(bytes("whole.gguf") == bytes("direct.gguf"));
    let whole: Value = serde_json::from_str(&done(&desk, "inspect @whole.gguf --json").out).unwrap();
    assert!(whole["metadata"].get("split.count").is_none());

    // What is there is not replaced, and what is missing or misplaced is named.
    let part = |number: usize| desk.path("parts").join(&parts[number]);
    std::fs::copy(part(2), desk.path(&parts[2])).unwrap();
    let error = failed(&desk, "convert @hf @m.gguf --to gguf --quiet --shard-size 20KB");
    assert!(error.contains(&parts[2]) && error.contains("--force"), "{error}");
    let second = std::fs::read(part(1)).unwrap();
    std::fs::remove_file(part(1)).unwrap();
    let error = failed(&desk, &format!("generate -m @parts/{} -p hi", parts[0]));
    assert!(error.contains(&format!("part 2 of {count} is missing")) && error.contains(&parts[1]), "{error}");
    std::fs::copy(part(2), part(1)).unwrap();
    let error = failed(&desk, &format!("generate -m @parts/{} -p hi", parts[0]));
    assert!(error.contains(&format!("split.no is 2 of {count} files, expected 1 of {count} files")), "{error}");
    std::fs::write(desk.path("second.gguf"), second).unwrap();
    let error = failed(&desk, "generate -m @second.gguf -p hi");
    assert!(error.contains(&format!("-00002-of-{count:05}.gguf")), "{error}");

    done(&desk, "convert @hf @shards --to hf --quiet --shard-size 20KB");
    assert!(names(&desk.path("shards")).iter().filter(|name| name.ends_with(".safetensors")).count() > 2);
    assert_eq!(text("shards"), expected);
    assert!(failed(&desk, "convert @hf @o --to olmo --shard-size 1MB").contains("one file"));
    assert_eq!(run(&desk, "convert @hf @o --to hf --shard-size many").code, 2);
}

#[test]
fn keys_of_llama_cpp_are_followed_or_named() {
    let desk = Desk::new("generate", 64);
    done(&desk, "convert @hf @m.gguf --to gguf --quiet");
    let bad = desk.path("x.gguf");
    let float = |x: f32| Some(MetadataValue::F32(x));
    let number = |x: u32| Some(MetadataValue::U32(x));
    let word = |x: &str| Some(MetadataValue::Text(x.to_owned()));
    for (key, value) in [
        ("olmoe.expert_weights_norm", Some(MetadataValue::Bool(true))),
        ("olmoe.expert_weights_scale", float(2.5)),
        ("olmoe.expert_gating_func", number(2)),
        ("olmoe.expert_shared_count", number(1)),
        ("olmoe.expert_group_count", number(8)),
        ("olmoe.leading_dense_block_count", number(1)),
        ("olmoe.nextn_predict_layers", number(1)),
        ("olmoe.attention.causal", Some(MetadataValue::Bool(false))),
        ("olmoe.attention.scale", float(0.5)),
        ("olmoe.attention.max_alibi_bias", float(8.0)),
        ("olmoe.attn_logit_softcapping", float(50.0)),
        ("olmoe.final_logit_softcapping", float(30.0)),
        ("olmoe.logit_scale", float(0.0625)),
        ("olmoe.embedding_scale", float(12.0)),
        ("olmoe.residual_scale", float(0.22)),
        ("olmoe.embedding_length_out", number(64)),
        ("olmoe.rope.scaling.type", word("longrope")),
        ("olmoe.rope.scaling.attn_factor", float(1.5)),
        ("olmoe.rope.scaling.yarn_ext_factor", float(1.0)),
        ("olmoe.rope.scale_linear", float(4.0)),
        ("olmoe.hidden_activation", word("gelu")),
        ("general.type", word("adapter")),
    ] {
        let shown = value.as_ref().unwrap().to_string();
        regguf(&desk.path("m.gguf"), &bad, &[(key, value)]);
        let error = failed(&desk, "generate -m @x.gguf -p hi -n 1");
        assert!(error.contains(&format!("{key} is {shown}")), "{error}");
    }
    // The same keys, with values that change nothing; 8 is the width of a head.
    let expected = done(&desk, "generate -m @m.gguf -p hi -n 8 --temp 0 --quiet").out;
    let layers = Some(MetadataValue::Array(ValueType::U32, vec![MetadataValue::U32(4), MetadataValue::U32(4)]));
    regguf(
        &desk.path("m.gguf"),
        &bad,
        &[
            ("olmoe.expert_weights_norm", Some(MetadataValue::Bool(false))),
            ("olmoe.expert_weights_scale", float(1.0)),
            ("olmoe.expert_gating_func", number(1)),
            ("olmoe.expert_shared_count", number(0)),
            ("olmoe.attention.causal", Some(MetadataValue::Bool(true))),
            ("olmoe.attention.scale", float(1.0 / 8f32.sqrt())),
            ("olmoe.rope.scaling.type", word("linear")),
            ("olmoe.rope.scaling.factor", float(1.0)),
            ("olmoe.rope.scaling.original_context_length", number(4096)),
            ("olmoe.attention.head_count", layers.clone()),
            ("olmoe.attention.head_count_kv", layers),
            ("olmoe.expert_feed_forward_length", number(16)),
            ("olmoe.pooling_type", number(3)),
            ("olmoe.mine", number(3)),
            ("general.sampling.temp", float(0.5)),
            ("tokenizer.ggml.add_eos_token", Some(MetadataValue::Bool(true))),
            ("tokenizer.ggml.suppress_tokens", Some(ids(&[7, 9]))),
        ],
    );
    let found = done(&desk, "generate -m @x.gguf -p hi -n 8 --temp 0 --quiet");
    assert_eq!(found.out, expected);
    let said = done(&desk, "inspect @x.gguf").out;
    for note in ["`metadata`: unknown keys are ignored: olmoe.mine", "advises temp 0.5"] {
        assert!(said.contains(note), "{said}");
    }
    assert!(said.contains("--logit-bias 7=-inf --logit-bias 9=-inf") && said.contains("add_eos_token"), "{said}");
    // Without its merges a byte-level tokenizer would give other ids than the model was trained with.
    regguf(&desk.path("m.gguf"), &bad, &[("tokenizer.ggml.merges", None)]);
    let error = failed(&desk, "generate -m @x.gguf -p hi -n 1");
    assert!(error.contains("x.gguf: tokenizer.ggml.merges is missing"), "{error}");
    done(&desk, "convert @x.gguf @there --to hf --tokenizer @tokenizer.json --quiet");
}

#[test]
fn keys_of_other_tools_do_not_stand_in_the_way() {
    let desk = Desk::new("generate", 64);
    let expected = done(&desk, "generate -m @hf -p hi -n 8 --temp 0 --quiet").out;
    let config = desk.path("hf/config.json");
    let good = std::fs::read_to_string(&config).unwrap();
    for (key, value) in [
        ("unsloth_fixed", json!(true)),
        ("transformers.js_config", json!({"dtype": "q4"})),
        ("quantization", Value::Null),
        ("layer_types", json!(["full_attention", "full_attention"])),
        ("sliding_window", Value::Null),
        ("sliding_window", json!(64)),
    ] {
        set(&config, key, value);
        assert_eq!(done(&desk, "generate -m @hf -p hi -n 8 --temp 0 --quiet").out, expected, "{key}");
        let said = done(&desk, "inspect @hf").out;
        assert!(said.contains("ignored") && said.contains(&format!("`{key}`")), "{key}: {said}");
        std::fs::write(&config, &good).unwrap();
    }
    for (key, value) in [
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("sliding_window", json!(32)),
        ("final_logit_softcapping", json!(30.0)),
        ("n_shared_experts", json!(1)),
        ("scoring_func", json!("sigmoid")),
    ] {
        set(&config, key, value);
        let error = failed(&desk, "generate -m @hf -p hi -n 1");
        assert!(error.contains("config.json") && error.contains(&format!("`{key}` is ")), "{key}: {error}");
        std::fs::write(&config, &good).unwrap();
    }
}

#[test]
fn what_lies_in_the_place_of_a_file_is_named() {
    let desk = Desk::new("generate", 64);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    let page = "\n<!DOCTYPE html>\n<html><head><title>Login</title></head></html>\n";
    let whole = |name: &str| std::fs::read(desk.path(name)).unwrap();
    done(&desk, "convert @hf @m.gguf --to gguf --quiet");
    for name in ["hf/model.safetensors", "hf/config.json", "hf/tokenizer.json", "hf/generation_config.json", "m.gguf"] {
        let good = whole(name);
        let words = if name == "m.gguf" { "generate -m @m.gguf -p hi -n 1" } else { "generate -m @hf -p hi -n 1" };
        for (content, what) in [
            (pointer.as_bytes(), "a Git-LFS pointer in the place of the file; run `git lfs pull`"),
            (page.as_bytes(), "an HTML page in the place of the file; download the file itself"),
            (b"Entry not found", "the message of a server in the place of the file"),
            (b"\x1f\x8b\x08\0\0\0\0\0\x02\x03", "a gzip archive in the place of the file; unpack it"),
        ] {
            std::fs::write(desk.path(name), content).unwrap();
            let error = failed(&desk, words);
            assert!(error.contains(&format!("{name}: {what}")), "{name}: {error}");
        }
        std::fs::write(desk.path(name), good).unwrap();
    }
    let hint = |name: &str, expected: &str| {
        let folder = desk.path("other");
        std::fs::create_dir(&folder).unwrap();
        std::fs::copy(desk.path("hf/config.json"), folder.join("config.json")).unwrap();
        std::fs::write(folder.join(name), "x").unwrap();
        let error = failed(&desk, "inspect @other");
        assert!(error.contains(expected), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    };
    hint("adapter_model.safetensors", "a LoRA adapter, which changes a model");
    hint("pytorch_model.bin", "save them as safetensors");
    hint("model-00001-of-00002.safetensors", "their index model.safetensors.index.json is missing");
}

#[test]
#[cfg(unix)]
fn links_to_nothing_are_named() {
    let desk = Desk::new("generate", 64);
    // As in a cache of the hub whose blobs were cleared.
    let blob = PathBuf::from("../../blobs/6d1f");
    for name in
        ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"]
    {
        let path = desk.path("hf").join(name);
        let good = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&blob, &path).unwrap();
        let error = failed(&desk, "generate -m @hf -p hi -n 1");
        let expected = format!("{name}: a link to ../../blobs/6d1f, which is not there; get it again");
        assert!(error.contains(&expected), "{error}");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, good).unwrap();
    }
    done(&desk, "generate -m @hf -p hi -n 1 --quiet");
}
