//! Real configuration files, round trips, and arbitrary text.

use std::path::{Path, PathBuf};

use olmoe_model::config::{Activation, FeedForward, LoadedConfig, Mlp, ModelConfig, NormKind};
use olmoe_model::parameters::ParameterCount;
use proptest::prelude::*;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn own(name: &str) -> LoadedConfig {
    ModelConfig::read(workspace().join("configs").join(name)).unwrap()
}

#[test]
fn the_shipped_configurations() {
    let release = own("olmoe-1b-7b.yml");
    assert_eq!(release.config, ModelConfig::release());
    assert!(release.notices.is_empty());
    for (name, total, active) in [("tiny.yml", 39_407_872, 29_970_688), ("small.yml", 261_505_536, 85_344_768)] {
        let loaded = own(name);
        assert!(loaded.notices.is_empty(), "{name}: {:?}", loaded.notices);
        let count = ParameterCount::of(&loaded.config).unwrap();
        assert_eq!((count.total, count.active), (total, active), "{name}");
    }
}

/// The published training files, where they are at hand.
#[test]
fn the_published_training_files() {
    let folder = workspace().join("../shared/data/configs");
    if !folder.is_dir() {
        println!("skipped: no published training files beside the workspace");
        return;
    }
    let read = |name: &str| {
        let loaded = ModelConfig::read(folder.join(name)).unwrap_or_else(|error| panic!("{error}"));
        let eos = loaded.notices.iter().any(|notice| notice.key == "eos_token_id");
        assert_eq!(eos, loaded.config.eos_token_id == Some(0), "{name}");
        loaded.config
    };
    let published = read("OLMoE-1B-7B-0924.yml");
    let expected = ModelConfig { eos_token_id: Some(0), ..ModelConfig::release() };
    assert_eq!(published, expected);
    assert_eq!(read("olmoe-8x1b-newhp-newds-final-anneal.yml"), expected);

    let dense = read("olmo-1b-newhp-newds.yml");
    assert_eq!(dense.feed_forward, FeedForward::Dense(Mlp { width: 8192, activation: Activation::SwiGlu }));
    assert_eq!(ParameterCount::of(&dense).unwrap().total, 1_279_854_592);

    let shared = read("olmoe-8x1b-newhp-newds-cx5-fine-shared.yml");
    let moe = shared.moe().unwrap();
    assert_eq!((moe.num_experts, moe.top_k, moe.shared_expert), (32, 3, Some(moe.expert)));
    assert_eq!(moe.expert.width, 2048);

    let early = read("olmoe17-16x1b-fullshard-swiglu-wrapb-s1k1.yml");
    assert_eq!(early.norm.kind, NormKind::LayerNorm);
    assert!(!early.norm.affine && early.clip_qkv.is_some_and(|clip| clip.limit == 8.0));

    let large = read("olmoe-8x7b-A7B.yml");
    assert_eq!(large.moe().unwrap().expert.width, 1408);
    assert!(read("olmoe-8x1b-newhp-newds-cx5-fine1-normreorder.yml").norm_after);
    assert_eq!(read("olmoe-8x1b-newhp-newds-cx5-k2.yml").moe().unwrap().top_k, 2);
    for name in ["olmoe-8x1b-newhp-newds-cx5-fine1-newtok.yml", "olmoe-8x1b-newhp-newds-final-v2.yml"] {
        let config = read(name);
        assert_eq!((config.vocab_size, config.embedding_size), (100_278, 100_352));
    }
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    for file in files.filter(|file| file.extension().is_some_and(|extension| extension == "yml")) {
        ModelConfig::read(&file).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn own_json_round_trips() {
    for config in [own("olmoe-1b-7b.yml").config, own("tiny.yml").config] {
        let json = serde_json::to_string_pretty(&config).unwrap();
        assert_eq!(ModelConfig::from_json(&json).unwrap(), config);
        assert_eq!(serde_json::from_str::<ModelConfig>(&json).unwrap(), config);
    }
}

#[test]
fn files_are_told_apart_by_content_and_errors_name_them() {
    let folder = std::env::temp_dir().join(format!("olmoe-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let json = serde_json::to_string(&ModelConfig::release()).unwrap();
    let own = ModelConfig::read(write("model.json", json.as_bytes())).unwrap();
    assert_eq!(own.config, ModelConfig::release());
    let hf = ModelConfig::read(write("config.json", br#" {"model_type": "olmoe"}"#)).unwrap();
    assert_eq!(hf.notices.len(), 1);

    let error = |name: &str, bytes: &[u8]| ModelConfig::read(write(name, bytes)).unwrap_err().to_string();
    assert!(error("bad.json", b"{}").contains("bad.json: `model_type` is missing"));
    assert!(error("bad.yml", b"{}").contains("bad.yml: found no `model:` section"));
    assert!(error("own.json", br#"{"feed_forward": 1}"#).contains("own.json: the configuration is not valid JSON"));
    assert!(error("binary", b"\xff\xfe").contains("first bad byte at offset 0"));
    assert!(error("long.yml", &vec![b' '; (1 << 24) + 1]).contains("longer than 16777216 bytes"));
    let absent = ModelConfig::read(folder.join("absent.yml")).unwrap_err().to_string();
    assert!(absent.contains("cannot read the configuration") && absent.contains("absent.yml"), "{absent}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A Hugging Face file to start mutations from.
const HF: &str = r#"{"model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024, "num_attention_heads": 16,
"num_key_value_heads": 4, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "clip_qkv": null,
"eos_token_id": [50279], "rms_norm_eps": 1e-05, "num_experts": 64, "vocab_size": 50304, "norm_topk_prob": false}"#;

/// What replaces a piece of text: the values that parsers tend to stumble over.
#[rustfmt::skip]
const SPLICES: &[&str] = &[
    "", "0", "-1", "1e308", "1e999", "18446744073709551615", "1152921504606846976", "0.5", "null", "true", "\"x\"",
    "[", "]", "{", "}", ":", ",", "\n", "- ", "&a ", "*a", "<<: ", "!!int ", ".nan", ".inf", "~", "é", "\0", "'", "|",
    "? ", "---\n", "%", "n_heads: 3", "\"hidden_size\": 7,",
];

fn splice(text: &str, edits: &[(usize, usize, usize)]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for &(at, cut, with) in edits {
        let at = at % (chars.len() + 1);
        let end = (at + cut).min(chars.len());
        chars.splice(at..end, SPLICES[with % SPLICES.len()].chars());
    }
    chars.into_iter().collect()
}

/// Whatever was accepted must be valid, countable, and survive a round trip.
fn accepted(loaded: Result<LoadedConfig, olmoe_model::config::ConfigError>) {
    match loaded {
        Ok(LoadedConfig { config, notices }) => {
            config.validate().unwrap();
            ParameterCount::of(&config).unwrap();
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(ModelConfig::from_json(&json).unwrap(), config);
            assert!(notices.iter().all(|notice| !notice.to_string().is_empty()));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_json_never_panics(edits in prop::collection::vec((any::<usize>(), 0usize..12, any::<usize>()), 1..5)) {
        accepted(ModelConfig::from_hf_json(&splice(HF, &edits)));
        let own = serde_json::to_string(&ModelConfig::release()).unwrap();
        if let Ok(config) = ModelConfig::from_json(&splice(&own, &edits)) {
            config.validate().unwrap();
        }
    }

    #[test]
    fn mutated_yaml_never_panics(edits in prop::collection::vec((any::<usize>(), 0usize..12, any::<usize>()), 1..5)) {
        let text = include_str!("../../../configs/tiny.yml");
        accepted(ModelConfig::from_olmo_yaml(&splice(text, &edits)));
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        accepted(ModelConfig::from_hf_json(&text));
        accepted(ModelConfig::from_olmo_yaml(&text));
    }

    #[test]
    fn any_value_for_any_key_never_panics(key in "[a-z_]{1,20}", index in 0usize..28, value in any::<f64>()) {
        let keys = [
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "max_position_embeddings", "initializer_range", "rms_norm_eps", "pad_token_id", "eos_token_id",
            "rope_theta", "clip_qkv", "num_experts", "num_experts_per_tok", "router_aux_loss_coef", "vocab_size",
        ];
        let key = keys.get(index).copied().unwrap_or(&key);
        let value = if index % 2 == 0 { value } else { value.abs().min(1e6).floor() };
        let text = serde_json::json!({"model_type": "olmoe", key: value}).to_string();
        accepted(ModelConfig::from_hf_json(&text));
    }
}
