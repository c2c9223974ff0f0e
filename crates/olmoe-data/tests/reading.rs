//! Tokenizers that are read: other kinds than OLMoE's, files and folders, and what is wrong with them.

mod shared;

use olmoe_data::{MAX_JSON_BYTES, Tokenizer};
use serde_json::{Value, json};
use shared::{data, tiny_json};

fn error_of(json: &[u8]) -> String {
    match Tokenizer::from_json(json) {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn bad_files_are_errors() {
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit, &str); 18] = [
        ("a list", |j| *j = json!([1, 2]), "not valid JSON"),
        ("version", |j| j["version"] = "2.0".into(), "its version is \"2.0\""),
        ("no model", |j| drop(j.as_object_mut().unwrap().remove("model")), "missing field `model`"),
        ("model of the wrong type", |j| j["model"] = json!(7), "in `model`: invalid type"),
        ("model of an unknown type", |j| j["model"]["type"] = "NGRAM".into(), "cannot be built"),
        ("no merges", |j| drop(j["model"].as_object_mut().unwrap().remove("merges")), "missing field `merges`"),
        ("vocab is a list", |j| j["model"]["vocab"] = json!(["a"]), "expected a map"),
        ("negative id", |j| j["model"]["vocab"]["a"] = json!(-1), "expected u32"),
        ("id of 64 bits", |j| j["model"]["vocab"]["a"] = json!(1u64 << 40), "expected u32"),
        (
            "huge id",
            |j| j["model"]["vocab"]["a"] = json!(u32::MAX),
            "\"a\" has the id 4294967295; ids must be below 2097152",
        ),
        ("one id twice", |j| j["model"]["vocab"]["a"] = json!(98), "\"a\" and \"b\" have the same id 98"),
        ("huge added id", |j| j["added_tokens"][0]["id"] = json!(1 << 30), "ids must be below"),
        ("added id of another", |j| j["added_tokens"][0]["id"] = json!(5), "has the id 5 in its entry, but"),
        ("added token misnumbered", |j| j["added_tokens"][0]["content"] = "xyz".into(), "gives it 264"),
        ("merge of three", |j| j["model"]["merges"][0] = json!(["a", "b", "c"]), "a merge: \"a b\" or"),
        ("merge of one", |j| j["model"]["merges"][0] = json!("ab"), "a merge: \"a b\" or"),
        (
            "merge without a result",
            |j| j["model"]["merges"][0] = json!(["a", "b"]),
            "merge 0 (\"a\" with \"b\") needs the token \"ab\"",
        ),
        // The library would write beyond its buffer's end here and panic.
        (
            "prefix longer than the part",
            |j| j["model"]["continuing_subword_prefix"] = "##".into(),
            "needs the token \"h\"",
        ),
    ];
    for (name, edit, expected) in cases {
        let mut json = tiny_json();
        edit(&mut json);
        let error = error_of(json.to_string().as_bytes());
        assert!(error.contains(expected), "{name}: {error}");
    }
    let whole = tiny_json().to_string();
    for (name, bytes, expected) in [
        ("empty", Vec::new(), "EOF"),
        ("not UTF-8", vec![b'"', 0xFF, b'"'], "not valid JSON"),
        ("deep", [vec![b'['; 100_000], vec![b']'; 100_000]].concat(), "not valid JSON"),
        (
            "deep inside",
            format!("{{\"normalizer\":{}{}", "[".repeat(100_000), &whole[1..]).into_bytes(),
            "recursion limit",
        ),
        ("too long", vec![b' '; MAX_JSON_BYTES + 1], "more than 67108864 bytes"),
    ] {
        let error = error_of(&bytes);
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn truncated_and_damaged_files_do_not_panic() {
    let whole = tiny_json().to_string().into_bytes();
    for end in (0..whole.len()).step_by(37) {
        assert!(error_of(&whole[..end]).contains("not valid JSON"), "{end} bytes");
    }
    let mut read = 0;
    for at in (0..whole.len()).step_by(11) {
        for byte in [b'0', b'"', b'}', 0xC3] {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            if let Ok(tokenizer) = Tokenizer::from_json(&damaged) {
                let _ = tokenizer.encode("the low   <|endoftext|> é").map(|ids| tokenizer.decode(&ids, true));
                read += 1;
            }
        }
    }
    assert!(read > 10, "{read} were read");
}

#[test]
fn settings_of_whoever_saved_the_file_have_no_effect() {
    let mut json = tiny_json();
    json["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 0,
                             "pad_type_id": 0, "pad_token": "!"});
    for byte_level in [true, false] {
        // With another decoder, the library decodes.
        if !byte_level {
            json["decoder"] = json!({"type": "Sequence", "decoders": [json["decoder"]]});
        }
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("the the low").unwrap(), [257, 258, 32, 260], "byte level: {byte_level}");
        assert_eq!(tokenizer.json(), json.to_string().as_bytes());
    }
}

#[test]
fn older_files_do_not_name_the_type_of_the_model() {
    let mut json = tiny_json();
    json["model"].as_object_mut().unwrap().remove("type");
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("the low").unwrap(), [257, 32, 260]);
    json["model"]["merges"][0] = json!(["a", "b"]);
    assert!(error_of(json.to_string().as_bytes()).contains("needs the token \"ab\""));
}

#[test]
fn files_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    let message =
        |path: &std::path::Path| Tokenizer::from_file(path).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(message(folder.path()).contains("holds no tokenizer.json"));
    assert!(message(&folder.path().join("none.json")).contains("cannot read the tokenizer"));
    let file = folder.path().join("tokenizer.json");
    std::fs::write(&file, "{").unwrap();
    assert!(message(folder.path()).contains("tokenizer.json: the tokenizer is not valid JSON"));
    std::fs::write(&file, tiny_json().to_string()).unwrap();
    for path in [folder.path(), &file] {
        assert_eq!(Tokenizer::from_file(path).unwrap().encode("the").unwrap(), [257]);
    }
}

#[test]
fn other_kinds_run_in_the_library() {
    let json = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"the": 0, "low": 1}, "unk_token": "none"},
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("the low the").unwrap(), [0, 1, 0]);
    assert_eq!(tokenizer.decode(&[0, 1], false).unwrap(), "the low");
    let error = tokenizer.encode("other").unwrap_err().to_string();
    assert!(error.contains("cannot encode this text"), "{error}");
    assert!(tokenizer.to_vocabulary(2, &Default::default()).unwrap_err().to_string().contains("cannot be written"));
    let mut stream = tokenizer.stream(false);
    let text: String = [0, 1, 0].map(|id| stream.push(id)).concat();
    assert_eq!(text + &stream.finish(), "the low the");
    // A character-level tokenizer of a small real model.
    let Some(path) = data("models/glassllm-en/en.tokenizer.json") else { return };
    let Ok(tokenizer) = Tokenizer::from_file(&path) else { return };
    let ids = tokenizer.encode("Once upon a time").unwrap();
    let mut stream = tokenizer.stream(false);
    let text: String = ids.iter().map(|id| stream.push(*id)).collect();
    assert_eq!(text + &stream.finish(), tokenizer.decode(&ids, false).unwrap());
}

/// What a stream that begins behind tokens makes of others.
fn after(tokenizer: &Tokenizer, before: &[u32], ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.stream_after(before, skip_special);
    let text: String = ids.iter().map(|id| stream.push(*id)).collect();
    text + &stream.finish()
}

#[test]
fn a_stream_behind_other_tokens_gives_what_they_do_not() {
    let vocab = json!({
        "▁Hi": 0, "▁there": 1, "!": 2, "▁you": 3, "<s>": 4, "<0xE7>": 5, "<0x9C>": 6, "<0x9F>": 7, "▁": 8, "\n": 9,
    });
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    let llama = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    for decoder in [metaspace, llama] {
        let special = json!({"id": 4, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true});
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "!"},
        });
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        for ids in [&[0, 1, 2][..], &[4, 0, 1, 3, 2], &[0, 9, 1, 4, 3], &[4, 1], &[8, 0, 8, 8, 1], &[0, 5, 6, 7, 1]] {
            for skip in [false, true] {
                let whole = tokenizer.decode(ids, skip).unwrap();
                for at in 0..=ids.len() {
                    let begin = tokenizer.decode(&ids[..at], skip).unwrap();
                    // An incomplete character is U+FFFD until it is complete.
                    let same = whole.char_indices().zip(begin.chars()).take_while(|((_, a), b)| a == b).count();
                    let rest: String = whole.chars().skip(same).collect();
                    assert_eq!(after(&tokenizer, &ids[..at], &ids[at..], skip), rest, "{ids:?} {at} {skip} {whole:?}");
                }
            }
        }
    }
}

#[test]
fn a_stream_behind_half_a_character_gives_the_whole_of_it() {
    // The ids of the tiny vocabulary are the bytes.
    let tokenizer = Tokenizer::from_json(tiny_json().to_string().as_bytes()).unwrap();
    for (before, ids, expected) in [
        (&[0x61, 0xE7, 0x9C][..], &[0x9F, 0x62][..], "真b"),
        (&[0x61, 0xE7, 0x9C], &[0x62], "b"),
        (&[0x61, 0xE7, 0x9C], &[], ""),
        (&[0xE7], &[0x9C], ""),
        (&[0xE7], &[0x9C, 0xFF, 0x62], "\u{fffd}b"),
        (&[0x61], &[0x62, 0xE7], "b\u{fffd}"),
        (&[], &[0x20, 0x61], " a"),
    ] {
        assert_eq!(after(&tokenizer, before, ids, true), expected, "{before:?} {ids:?}");
    }
}

/// Post-processors, with the tokens that the library puts around a text.
fn post_processors() -> [Value; 6] {
    let token = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let template = |single: Vec<Value>| {
        json!({"type": "TemplateProcessing", "single": single, "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
               "special_tokens": {
                   "<|endoftext|>": {"id": "<|endoftext|>", "ids": [263], "tokens": ["<|endoftext|>"]},
                   "two": {"id": "two", "ids": [5, 6], "tokens": ["&", "'"]}}})
    };
    let end = "<|endoftext|>";
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    [
        byte_level.clone(),
        template(vec![token(end), text.clone()]),
        template(vec![token("two"), token(end), text.clone(), token(end)]),
        json!({"type": "Sequence", "processors": [byte_level, template(vec![token(end), text.clone()])]}),
        json!({"type": "RobertaProcessing", "sep": [end, 263], "cls": ["&", 5], "trim_offsets": true, "add_prefix_space": false}),
        json!({"type": "BertProcessing", "sep": ["&", 5], "cls": [end, 263]}),
    ]
}

#[test]
fn tokens_around_a_text_are_those_of_the_library() {
    let mut around = 0;
    for processor in post_processors() {
        let mut json = tiny_json();
        json["post_processor"] = processor.clone();
        let text = json.to_string();
        let tokenizer = Tokenizer::from_json(text.as_bytes()).unwrap();
        let inside = tokenizer.encode("the low").unwrap();
        assert_eq!(inside, [257, 32, 260]);
        let library = tokenizers::Tokenizer::from_bytes(text.as_bytes()).unwrap();
        let expected = library.encode("the low", true).unwrap();
        let got = [tokenizer.before_text(), &inside, tokenizer.behind_text()].concat();
        assert_eq!(got, expected.get_ids(), "{processor}");
        around += got.len() - inside.len();
    }
    assert_eq!(around, 10);
    for (processor, expected) in [
        (json!({"type": "Magic"}), "in `post_processor`: its type is none of"),
        (
            json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "pair": [], "special_tokens": {}}),
            "\"<s>\" has no ids",
        ),
        (json!({"type": "BertProcessing", "sep": ["&", 5]}), "`cls` is no token"),
    ] {
        let mut json = tiny_json();
        json["post_processor"] = processor;
        let error = error_of(json.to_string().as_bytes());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn chance_leaves_out_no_merges() {
    for byte_level in [true, false] {
        let mut json = tiny_json();
        if !byte_level {
            json["decoder"] = json!({"type": "Sequence", "decoders": [json["decoder"]]});
        }
        json["model"]["dropout"] = json!(0.9);
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        for _ in 0..20 {
            assert_eq!(tokenizer.encode("the the low").unwrap(), [257, 258, 32, 260], "byte level: {byte_level}");
        }
        let notices = tokenizer.notices();
        assert!(
            notices.len() == 1 && notices[0].contains("`dropout` in the tokenizer's model is 0.9; it is off"),
            "{notices:?}"
        );
        // The file is unchanged, since it is copied into other checkpoints.
        assert_eq!(tokenizer.json(), json.to_string().as_bytes());
    }
    assert!(Tokenizer::from_json(tiny_json().to_string().as_bytes()).unwrap().notices().is_empty());
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_file() {
    for byte_level in [true, false] {
        let mut json = tiny_json();
        if !byte_level {
            json["decoder"] = json!({"type": "Sequence", "decoders": [json["decoder"]]});
        }
        let tokenizer = Tokenizer::from_json(format!("\u{feff}{json}").as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("the low").unwrap(), [257, 32, 260]);
    }
}
