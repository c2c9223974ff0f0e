//! Where special tokens come from, and the eos trap.

mod shared;

use olmoe_data::{SpecialTokenSources, SpecialTokens, Tokenizer};
use serde_json::{Value, json};
use shared::{REAL, real, tiny, tiny_json};

/// The tiny tokenizer with a masked address as token 0, as in OLMoE's.
fn with_masked_address() -> Tokenizer {
    let mut json = tiny_json();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    vocab.remove("Ā");
    vocab.insert("|||IP_ADDRESS|||".into(), json!(0));
    vocab.insert("Ā".into(), json!(264));
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

#[test]
fn an_eos_of_0_is_corrected_where_0_is_a_masked_address() {
    let trapped = json!({"eos_token_id": 0, "pad_token_id": 1});
    let made = with_masked_address();
    let mut tokenizers = vec![(&made, 263)];
    tokenizers.extend(real(REAL[0].1).map(|(olmoe, _)| (olmoe, 50279)));
    for (tokenizer, end) in &tokenizers {
        for from in ["training", "config", "generation_config"] {
            let mut sources = SpecialTokenSources::default();
            match from {
                "training" => sources.training = Some(&trapped),
                "config" => sources.config = Some(&trapped),
                _ => sources.generation_config = Some(&trapped),
            }
            let (special, notices) = SpecialTokens::resolve(*tokenizer, &sources).unwrap();
            assert_eq!((special.ends_document(), special.pad, special.bos), (Some(*end), Some(1), None), "{from}");
            assert!(special.ends_generation(*end) && !special.ends_generation(0));
            assert_eq!(special.begins_conversation(), Some(*end));
            let notice = notices[0].to_string();
            assert!(
                notice.starts_with("`eos_token_id` in ") && notice.contains(&format!("replaced by {end}")),
                "{notice}"
            );
            sources.keep_eos = true;
            let (special, notices) = SpecialTokens::resolve(*tokenizer, &sources).unwrap();
            assert_eq!(special.ends_document(), Some(0));
            assert!(notices[0].text.contains("kept as asked"), "{}", notices[0]);
        }
        // A right id is not corrected, nor a padding id of 0.
        let right = json!({"eos_token_id": end, "pad_token_id": 0});
        let sources = SpecialTokenSources { config: Some(&right), ..Default::default() };
        let (special, notices) = SpecialTokens::resolve(*tokenizer, &sources).unwrap();
        assert_eq!((special.eos, special.pad, notices.len()), (Some(*end), Some(0), 0));
    }
    // In a tokenizer with another token 0, the id 0 is right.
    let sources = SpecialTokenSources { training: Some(&trapped), ..Default::default() };
    let (special, notices) = SpecialTokens::resolve(&tiny(), &sources).unwrap();
    assert_eq!((special.eos, notices.len()), (Some(0), 0));
}

#[test]
fn the_first_source_counts() {
    let tokenizer = tiny();
    let [config, training, generation, named] = [
        json!({"eos_token_id": [5, 6], "bos_token_id": null, "pad_token_id": -1}),
        json!({"eos_token_id": 7, "pad_token_id": 8}),
        json!({"eos_token_id": [9, 5], "bos_token_id": 10, "pad_token_id": 11}),
        json!({"eos_token": "a", "bos_token": {"content": "b"}, "pad_token": null, "unk_token": "c"}),
    ];
    let all = SpecialTokenSources {
        config: Some(&config),
        training: Some(&training),
        generation_config: Some(&generation),
        tokenizer_config: Some(&named),
        ..Default::default()
    };
    let of = |sources: &SpecialTokenSources| SpecialTokens::resolve(&tokenizer, sources).unwrap().0;
    let special = of(&all);
    assert_eq!((special.eos, special.bos, special.pad, special.unk), (Some(5), Some(10), Some(8), Some(99)));
    // The ids of all sources except the training configuration, which another source precedes, and the token known by its text.
    assert_eq!(special.end_ids(), [5, 6, 9, 97, 263]);
    assert!([5, 6, 9].iter().all(|id| special.ends_generation(*id)) && !special.ends_generation(7));
    let special = of(&SpecialTokenSources { tokenizer_config: Some(&named), ..Default::default() });
    assert_eq!((special.eos, special.bos, special.pad), (Some(97), Some(98), None));
    assert_eq!(special.begins_conversation(), Some(98));
    let special = of(&SpecialTokenSources::default());
    assert_eq!((special.eos, special.bos, special.pad, special.unk), (Some(263), None, None, None));
}

#[test]
fn folders_of_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = with_masked_address();
    let read = || SpecialTokens::from_directory(&tokenizer, folder.path(), false).map_err(|error| error.to_string());
    assert_eq!(read().unwrap().0.eos, Some(263));
    let write = |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    write("config.json", json!({"eos_token_id": 0, "pad_token_id": 1, "vocab_size": 300}));
    write("generation_config.json", json!({"eos_token_id": 299}));
    let (special, notices) = read().unwrap();
    let ends = special.end_ids();
    assert_eq!((special.eos, special.pad, ends, notices.len()), (Some(263), Some(1), vec![263, 299], 1));
    for (name, value, expected) in [
        (
            "generation_config.json",
            json!({"eos_token_id": "x"}),
            "must be a token's id, a list of ids or null, found \"x\"",
        ),
        ("generation_config.json", json!({"eos_token_id": [[1]]}), "found [1]"),
        ("generation_config.json", json!({"eos_token_id": -2}), "found -2"),
        ("tokenizer_config.json", json!({"bos_token": 7}), "must be a token's text, found 7"),
    ] {
        write(name, value);
        let error = read().unwrap_err();
        assert!(error.contains(expected), "{error}");
        write(name, json!({}));
    }
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    assert!(read().unwrap_err().contains("config.json is not valid JSON"));
}

#[test]
fn tokens_that_the_model_does_not_have_are_passed_over_with_a_notice() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    // The model has rows for 262 of the tokenizer's 264 tokens.
    write("config.json", json!({"eos_token_id": 97, "vocab_size": 262}));
    for (name, value, key, expected) in [
        ("generation_config.json", json!({"pad_token_id": 262}), "pad_token_id", "is 262, beyond the 262 rows"),
        ("generation_config.json", json!({"bos_token_id": 1u64 << 33}), "bos_token_id", "is 8589934592, beyond"),
        ("generation_config.json", json!({"eos_token_id": [97, 300]}), "eos_token_id", "is 300, beyond"),
        ("generation_config.json", json!({"eot_token_id": 999}), "eot_token_id", "is 999, beyond"),
        ("tokenizer_config.json", json!({"pad_token": "[PAD]"}), "pad_token", "is \"[PAD]\", which is not a token"),
        ("tokenizer_config.json", json!({"unk_token": "<unk>"}), "unk_token", "is \"<unk>\", which is not a token"),
        (
            "tokenizer_config.json",
            json!({"bos_token": {"content": "<s>"}}),
            "bos_token",
            "is \"<s>\", which is not a token",
        ),
        ("tokenizer_config.json", json!({"eos_token": "</s>"}), "eos_token", "is \"</s>\", which is not a token"),
        ("special_tokens_map.json", json!({"pad_token": "[PAD]"}), "pad_token", "is \"[PAD]\", which is not a token"),
        // The tokenizer has this token, but the model has no row for it.
        ("tokenizer_config.json", json!({"pad_token": "<|endoftext|>"}), "pad_token", "is 263, beyond the 262 rows"),
    ] {
        write(name, value);
        let (special, notices) = SpecialTokens::from_directory(&tiny(), folder.path(), false).unwrap();
        assert_eq!((special.pad, special.bos, special.unk, special.end_ids()), (None, None, None, vec![97]), "{name}");
        assert_eq!(notices.len(), 1, "{notices:?}");
        let notice = notices[0].to_string();
        let parts = [format!("`{key}` in {name} {expected}"), "ignored".to_owned()];
        assert!(parts.iter().all(|part| notice.contains(part)), "{notice}");
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
}

/// A tokenizer of the bytes and these tokens, from id 264 on.
fn with_tokens(texts: &[&str]) -> Tokenizer {
    let mut json = tiny_json();
    for (text, id) in texts.iter().zip(264..) {
        json["model"]["vocab"][*text] = json!(id);
    }
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

#[test]
fn tokens_known_by_their_text_end_generation() {
    let ends = |texts: &[&str]| {
        let (special, _) = SpecialTokens::resolve(&with_tokens(texts), &SpecialTokenSources::default()).unwrap();
        special.end_ids()
    };
    // Each token of the set in `llama-vocab.cpp`.
    for text in [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<|fim_pad|>",
        "<PAD>",
        "[PAD]",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<REPO>",
        "<|file_sep|>",
    ] {
        assert_eq!(ends(&[text]), [263, 264], "{text}");
    }
    for text in ["<|im_start|>", "<|eot_id", "<s>", "<|fim_prefix|>", "[PAD264]"] {
        assert_eq!(ends(&[text]), [263], "{text}");
    }
    // Where an answer consists of several messages, the end of a message is not the end of the answer; and there `</s>` is text.
    assert_eq!(ends(&["<|end|>", "<|return|>", "<|call|>"]), [263, 265, 266]);
    assert_eq!(ends(&["<|end|>", "<|flush|>", "<|calls|>"]), [263, 265, 266]);
    assert_eq!(ends(&["</s>", "<|tool_response>"]), [263, 265]);
}

#[test]
fn everything_that_names_an_end_is_told() {
    let tokenizer = with_tokens(&["<|eot_id|>", "<turn>", "<stop>"]);
    let config = json!({"eos_token_id": [263, 266], "eot_token_id": 264});
    let generation = json!({"eos_token_id": [266, 263]});
    let [named, map] = [json!({"eos_token": "<|endoftext|>"}), json!({"eos_token": "<stop>", "eot_token": "<turn>"})];
    let sources = SpecialTokenSources {
        config: Some(&config),
        generation_config: Some(&generation),
        tokenizer_config: Some(&named),
        special_tokens_map: Some(&map),
        ..Default::default()
    };
    let (special, notices) = SpecialTokens::resolve(&tokenizer, &sources).unwrap();
    assert!(notices.is_empty(), "{notices:?}");
    assert_eq!((special.eos, special.end_ids()), (Some(263), vec![263, 266, 264, 265]));
    let says = |id: u32| special.ends.iter().find(|end| end.id == id).unwrap().sources.join("; ");
    assert_eq!(says(264), "eot_token_id of config.json; its text, as llama.cpp knows it");
    assert_eq!(says(266), "eos_token_id of config.json; eos_token_id of generation_config.json");
    assert_eq!(says(265), "eot_token of the tokenizer's settings");
    // Without a tokenizer, only ids count.
    let (special, _) = SpecialTokens::resolve(None, &sources).unwrap();
    assert_eq!(special.end_ids(), [263, 266, 264]);
}
