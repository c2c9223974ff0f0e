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
            let (special, notices) = SpecialTokens::resolve(tokenizer, &sources).unwrap();
            assert_eq!((special.ends_document(), special.pad, special.bos), (Some(*end), Some(1), None), "{from}");
            assert!(special.ends_generation(*end) && !special.ends_generation(0));
            assert_eq!(special.begins_conversation(), Some(*end));
            let notice = notices[0].to_string();
            assert!(
                notice.starts_with("`eos_token_id` in ") && notice.contains(&format!("taken as {end}")),
                "{notice}"
            );
            sources.keep_eos = true;
            let (special, notices) = SpecialTokens::resolve(tokenizer, &sources).unwrap();
            assert_eq!(special.ends_document(), Some(0));
            assert!(notices[0].text.contains("kept as asked"), "{}", notices[0]);
        }
        // Nothing is corrected that is right, nor a padding of 0.
        let right = json!({"eos_token_id": end, "pad_token_id": 0});
        let sources = SpecialTokenSources { config: Some(&right), ..Default::default() };
        let (special, notices) = SpecialTokens::resolve(tokenizer, &sources).unwrap();
        assert_eq!((special.eos, special.pad, notices.len()), (Some(*end), Some(0), 0));
    }
    // In a tokenizer whose token 0 is another one, 0 is meant.
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
    assert_eq!(special.stops, [6, 9]);
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
    assert_eq!((special.eos, special.pad, special.stops, notices.len()), (Some(263), Some(1), vec![299], 1));
    for (name, value, expected) in [
        (
            "generation_config.json",
            json!({"eos_token_id": 300}),
            "`eos_token_id` in generation_config.json is 300, but ids go from 0 to 299",
        ),
        ("generation_config.json", json!({"eos_token_id": 1u64 << 33}), "is 8589934592"),
        (
            "generation_config.json",
            json!({"eos_token_id": "x"}),
            "must be a token's id, a list of ids or null, found \"x\"",
        ),
        ("generation_config.json", json!({"eos_token_id": [[1]]}), "found [1]"),
        ("generation_config.json", json!({"eos_token_id": -2}), "found -2"),
        (
            "tokenizer_config.json",
            json!({"bos_token": "<s>"}),
            "`bos_token` in tokenizer_config.json is \"<s>\", which is no token",
        ),
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
