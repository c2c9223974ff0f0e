//! Configurations as the two formats write them: round trips, files of the reference implementation, refusals.

use olmoe_model::config::{
    Activation, ClipOrder, ClipQkv, ConfigError, FeedForward, Init, InitMethod, Mlp, ModelConfig, Moe, Norm, NormKind,
};

/// A small mixture that both formats can hold.
fn small() -> ModelConfig {
    let mut config = ModelConfig::release();
    (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim) = (32, 2, 4, 4, 8);
    (config.vocab_size, config.embedding_size, config.max_sequence_length) = (90, 99, 64);
    (config.pad_token_id, config.eos_token_id) = (Some(1), Some(2));
    let moe = moe(&mut config);
    (moe.num_experts, moe.top_k, moe.expert.width) = (8, 2, 16);
    config
}

fn moe(config: &mut ModelConfig) -> &mut Moe {
    match &mut config.feed_forward {
        FeedForward::Moe(moe) => moe,
        FeedForward::Dense(_) => panic!("a mixture"),
    }
}

/// A small dense model that both formats can hold.
fn dense() -> ModelConfig {
    let feed_forward = FeedForward::Dense(Mlp { width: 20, activation: Activation::SwiGlu });
    ModelConfig { feed_forward, qk_norm: None, ..small() }
}

fn clip(order: ClipOrder) -> Option<ClipQkv> {
    Some(ClipQkv { limit: 6.5, order })
}

fn expert(width: usize, activation: Activation) -> Mlp {
    Mlp { width, activation }
}

/// A change and what becomes of it: `Ok` in a format that can hold it, otherwise a part of the refusal.
type Case =
    (&'static str, fn() -> ModelConfig, fn(&mut ModelConfig), Result<(), &'static str>, Result<(), &'static str>);

const TO_OLMO: &str = "convert to OLMo instead";
const NOWHERE: &str = "keep it in this program's own format";

#[rustfmt::skip]
const CASES: &[Case] = &[
    // In both.
    ("release", ModelConfig::release, |_| {}, Ok(()), Ok(())),
    ("small", small, |_| {}, Ok(()), Ok(())),
    ("few key heads", small, |c| c.n_kv_heads = 2, Ok(()), Ok(())),
    ("one key head", small, |c| c.n_kv_heads = 1, Ok(()), Ok(())),
    ("tied", small, |c| c.tie_embeddings = true, Ok(()), Ok(())),
    ("eps", small, |c| (c.norm.eps, c.qk_norm) = (1e-6, Some(Norm { eps: 1e-6, ..c.norm })), Ok(()), Ok(())),
    ("tiny eps", dense, |c| c.norm.eps = 1.1754944e-38, Ok(()), Ok(())),
    ("base", small, |c| c.rope.theta = 500_000.0, Ok(()), Ok(())),
    ("no tokens", small, |c| (c.pad_token_id, c.eos_token_id) = (None, None), Ok(()), Ok(())),
    ("other training", small, |c| {
        c.init = Init { method: InitMethod::FullMegatron, std: 0.5, cutoff_factor: Some(2.5), embedding_std: Some(1.0), scale_embedding: true };
        (c.auxiliary.load_balancing_weight, c.auxiliary.z_weight) = (0.0, 0.0);
    }, Ok(()), Ok(())),
    ("dense", dense, |_| {}, Ok(()), Ok(())),
    ("dense, few key heads, tied", dense, |c| (c.n_kv_heads, c.tie_embeddings) = (2, true), Ok(()), Ok(())),
    ("dense, tied, biases", dense, |c| (c.tie_embeddings, c.attention_bias, c.mlp_bias) = (true, true, true), Ok(()), Ok(())),
    // Only in Hugging Face's.
    ("normalised weights", small, |c| moe(c).normalize_top_k = true, Ok(()), Err("`norm_topk_prob` is true, but in that format it could only be false; convert to Hugging Face's olmoe instead")),
    ("clamp after norm", small, |c| c.clip_qkv = clip(ClipOrder::AfterNorm), Ok(()), Err("OLMo cannot express this model: `clip_qkv`, order, is \"after_norm\", but in that format it could only be \"before_norm\"")),
    ("biases of attention", dense, |c| c.attention_bias = true, Ok(()), Err("convert to Hugging Face's llama instead")),
    ("biases of the MLP", dense, |c| c.mlp_bias = true, Ok(()), Err("`mlp_bias` (OLMo: `include_bias`) is true")),
    ("odd base", small, |c| c.rope.theta = 10000.5, Ok(()), Err("`rope_theta` is 10000.5, but in that format it could only be 1000")),
    // Only in OLMo's.
    ("shared expert", small, |c| moe(c).shared_expert = Some(moe(c).expert), Err("Hugging Face's olmoe cannot express this model: `moe_shared_expert` is {\"activation\":\"swi_glu\",\"width\":16}, but in that format it could only be null; convert to OLMo instead"), Ok(())),
    ("dense layers between", small, |c| c.even_layers = Some(expert(16, Activation::SwiGlu)), Err("Hugging Face's olmoe cannot express this model: `moe_interleave` is {\"activation\":\"swi_glu\",\"width\":16}, but in that format it could only be null; convert to OLMo instead"), Ok(())),
    ("dense layers between experts with a capacity", small, |c| {
        c.even_layers = Some(expert(16, Activation::SwiGlu));
        (moe(c).capacity_factor, moe(c).expert.activation) = (Some(1.25), Activation::Silu);
    }, Err(TO_OLMO), Ok(())),
    ("clamp before norm", small, |c| c.clip_qkv = clip(ClipOrder::BeforeNorm), Err("`clip_qkv`, order,"), Ok(())),
    ("clamp without norm", small, |c| (c.clip_qkv, c.qk_norm) = (clip(ClipOrder::AfterNorm), None), Err("`attention_layer_norm` is null"), Ok(())),
    ("no query and key norm", small, |c| c.qk_norm = None, Err(TO_OLMO), Ok(())),
    ("plain query and key norm", small, |c| c.qk_norm = Some(Norm { affine: false, ..c.norm }), Err("`attention_layer_norm_with_affine` is false"), Ok(())),
    ("plain norms", small, |c| (c.norm.affine, c.qk_norm) = (false, Some(Norm { affine: false, ..c.norm })), Err("`layer_norm_with_affine`"), Ok(())),
    ("means subtracted", small, |c| (c.norm.kind, c.qk_norm) = (NormKind::LayerNorm, None), Err("`layer_norm_type` is \"layer_norm\""), Ok(())),
    ("norms with biases", small, |c| (c.norm.bias, c.qk_norm) = (true, Some(Norm { bias: true, ..c.norm })), Err("`bias_for_layer_norm`"), Ok(())),
    ("only query and key norm with bias", small, |c| (c.norm.affine, c.qk_norm) = (false, Some(Norm { bias: true, ..c.norm })), Err("`layer_norm_with_affine`"), Ok(())),
    ("norm of embeddings", small, |c| c.embedding_norm = Some(c.norm), Err("`embedding_layer_norm`"), Ok(())),
    ("norms after", small, |c| c.norm_after = true, Err("`norm_after` is true"), Ok(())),
    ("scaled logits", small, |c| c.scale_logits = true, Err("`scale_logits`"), Ok(())),
    ("all biases", small, |c| (c.attention_bias, c.mlp_bias, c.head_bias) = (true, true, true), Err("`include_bias`"), Ok(())),
    ("experts of gelu", small, |c| moe(c).expert = expert(17, Activation::Gelu), Err("`hidden_act` (OLMo: `activation_type`) is \"gelu\""), Ok(())),
    ("experts of relu", small, |c| moe(c).expert = expert(17, Activation::Relu), Err("\"relu\""), Ok(())),
    ("capacity", small, |c| {
        let moe = moe(c);
        (moe.expert.activation, moe.capacity_factor) = (Activation::Silu, Some(1.25));
        moe.shared_expert = Some(expert(16, Activation::SwiGlu));
    }, Err("`moe_capacity_factor` is 1.25"), Ok(())),
    ("capacity and gelu", small, |c| (moe(c).expert.activation, moe(c).capacity_factor) = (Activation::Gelu, Some(0.0)), Err(TO_OLMO), Ok(())),
    ("dense with gelu", dense, |c| c.feed_forward = FeedForward::Dense(expert(21, Activation::Gelu)), Err("Hugging Face's llama cannot express this model: `hidden_act` (OLMo: `activation_type`) is \"gelu\""), Ok(())),
    ("dense with relu", dense, |c| c.feed_forward = FeedForward::Dense(expert(21, Activation::Relu)), Err(TO_OLMO), Ok(())),
    ("dense with norms", dense, |c| c.qk_norm = Some(c.norm), Err("`attention_layer_norm` is {"), Ok(())),
    ("dense with clamp", dense, |c| c.clip_qkv = clip(ClipOrder::AfterNorm), Err("`clip_qkv` is {"), Ok(())),
    ("dense, norms after", dense, |c| c.norm_after = true, Err(TO_OLMO), Ok(())),
    // In neither.
    ("dropless without gate", small, |c| moe(c).expert.activation = Activation::Silu, Err(NOWHERE), Err(NOWHERE)),
    ("dense without gate", dense, |c| c.feed_forward = FeedForward::Dense(expert(21, Activation::Silu)), Err(NOWHERE), Err(NOWHERE)),
    ("normalised with shared", small, |c| (moe(c).shared_expert, moe(c).normalize_top_k) = (Some(moe(c).expert), true), Err(NOWHERE), Err("`norm_topk_prob` is true, but in that format it could only be false; keep it")),
    ("another shared width", small, |c| moe(c).shared_expert = Some(expert(99, Activation::SwiGlu)), Err(NOWHERE), Err("`moe_shared_expert`, width, is 99, but in that format it could only be 16")),
    ("dense layers of another width", small, |c| c.even_layers = Some(expert(99, Activation::SwiGlu)), Err(NOWHERE), Err("`moe_interleave`, width, is 99, but in that format it could only be 16")),
    ("two eps", small, |c| c.qk_norm = Some(Norm { eps: 1e-3, ..c.norm }), Err("`rms_norm_eps` (OLMo: `layer_norm_eps`) is 0.001, but in that format it could only be 0.00001"), Err(NOWHERE)),
    ("not valid", small, |c| c.n_heads = 3, Err("`n_heads` (3) does not divide"), Err("`n_heads` (3) does not divide")),
];

#[test]
fn every_configuration_is_kept_or_refused() {
    for (name, base, change, hf, olmo) in CASES {
        let mut config = base();
        change(&mut config);
        let check = |format: &str, written: Result<String, ConfigError>, expected: &Result<(), &str>| {
            match (written, expected) {
                (Ok(text), Ok(())) => {
                    let loaded = match format {
                        "hf" => ModelConfig::from_hf_json(&text),
                        _ => ModelConfig::from_olmo_yaml(&text),
                    };
                    let loaded = loaded.unwrap_or_else(|error| panic!("{name}, {format}: {error}\n{text}")).config;
                    loaded.same_function(&config).unwrap_or_else(|error| panic!("{name}, {format}: {error}\n{text}"));
                    // Beyond the function, what the format has.
                    assert_eq!(loaded.init.std, config.init.std, "{name}, {format}");
                    let weight = |config: &ModelConfig| config.moe().map(|_| config.auxiliary.load_balancing_weight);
                    assert_eq!(weight(&loaded), weight(&config), "{name}, {format}");
                    let tokens = |config: &ModelConfig| (config.pad_token_id, config.eos_token_id);
                    assert_eq!(tokens(&loaded), tokens(&config), "{name}, {format}");
                    if format == "olmo" {
                        assert_eq!((loaded.init, loaded.vocab_size), (config.init, config.vocab_size), "{name}");
                    }
                }
                (Err(error), Err(part)) => {
                    let error = error.to_string();
                    assert!(error.contains(part), "{name}, {format}: {error}");
                }
                (Ok(text), Err(part)) => panic!("{name}, {format}: written, but expected {part:?}\n{text}"),
                (Err(error), Ok(())) => panic!("{name}, {format}: {error}"),
            }
        };
        check("hf", config.to_hf_json("bfloat16"), hf);
        check("olmo", config.to_olmo_yaml(), olmo);
    }
}

/// `OlmoeConfig(...).to_json_string()` and `LlamaConfig(...).to_json_string()` of transformers 5.23.
const BY_TRANSFORMERS: [&str; 2] = [
    r#"{
  "attention_bias": true, "attention_dropout": 0.0, "bos_token_id": null, "clip_qkv": 6.5, "eos_token_id": null,
  "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 16,
  "max_position_embeddings": 64, "model_type": "olmoe", "norm_topk_prob": true, "num_attention_heads": 4,
  "num_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2,
  "output_router_logits": false, "pad_token_id": null, "rms_norm_eps": 1e-06,
  "rope_parameters": { "rope_theta": 500000.0, "rope_type": "default" }, "router_aux_loss_coef": 0.01,
  "tie_word_embeddings": true, "transformers_version": "5.23.0", "use_cache": true, "vocab_size": 99 }"#,
    r#"{
  "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8,
  "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 20,
  "max_position_embeddings": 64, "mlp_bias": true, "model_type": "llama", "num_attention_heads": 4,
  "num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": null, "pretraining_tp": 1, "rms_norm_eps": 1e-06,
  "rope_parameters": { "rope_theta": 10000.0, "rope_type": "default" }, "tie_word_embeddings": true,
  "transformers_version": "5.23.0", "use_cache": true, "vocab_size": 99 }"#,
];

/// A file of transformers is read, written and read again to the same configuration; and key for key what we write is
/// what transformers wrote, but for what only names the file or repeats a value for its version 4.
#[test]
fn files_of_transformers_come_out_as_they_went_in() {
    for text in BY_TRANSFORMERS {
        let config = ModelConfig::from_hf_json(text).unwrap().config;
        let written = config.to_hf_json("float32").unwrap();
        assert_eq!(ModelConfig::from_hf_json(&written).unwrap().config, config);
        let keys = |text: &str| -> serde_json::Map<String, serde_json::Value> {
            let mut map: serde_json::Map<_, _> = serde_json::from_str(text).unwrap();
            let other = ["architectures", "pretraining_tp", "rope_scaling", "rope_theta", "torch_dtype"];
            map.retain(|key, _| !other.contains(&key.as_str()) && key != "transformers_version");
            map
        };
        assert_eq!(keys(&written), keys(text));
    }
}

#[test]
fn the_release_as_each_format_writes_it() {
    let release = ModelConfig::release();
    let hf = release.to_hf_json("bfloat16").unwrap();
    for line in [
        "\"architectures\": [\n    \"OlmoeForCausalLM\"\n  ]",
        "\"intermediate_size\": 1024,",
        "\"rms_norm_eps\": 0.00001,",
        "\"rope_theta\": 10000.0,",
        "\"bos_token_id\": null,",
        "\"eos_token_id\": 50279,",
        "\"torch_dtype\": \"bfloat16\",",
        "\"vocab_size\": 50304",
    ] {
        assert!(hf.contains(line), "{line} in {hf}");
    }
    let olmo = release.to_olmo_yaml().unwrap();
    let loaded = ModelConfig::from_olmo_yaml(&olmo).unwrap();
    assert_eq!(loaded.config, release);
    assert!(loaded.notices.is_empty(), "{:?}", loaded.notices);
    for line in ["mlp_hidden_size: 2048", "n_kv_heads: 16"] {
        assert!(olmo.contains(&format!("\n  {line}\n")), "{line} in {olmo}");
    }
    // At the values that every branch takes where it has the key at all.
    for key in ["layer_norm_eps", "rope_theta", "moe_interleave"] {
        assert!(!olmo.contains(key), "{key} in {olmo}");
    }
    let error = release.to_hf_json("fp8").unwrap_err().to_string();
    assert_eq!(error, "`torch_dtype` is `fp8`; it must be one of bfloat16, float16, float32");
}

/// The keys that a branch of OLMo knows, with their defaults.
fn keys_of(branch: &str) -> std::collections::BTreeMap<&'static str, &'static str> {
    const KEYS: &str = include_str!("../../../tests/golden/olmo_model_keys.txt");
    let (_, rest) = KEYS.split_once(&format!("\n[{branch} ")).expect(branch);
    let lines = rest.split("\n[").next().unwrap().lines().skip(1);
    lines.filter_map(|line| line.split_once(' ')).collect()
}

#[test]
fn every_key_written_is_known_to_the_branch_that_reads_it() {
    let (main, moe_branch, shared) = (keys_of("main"), keys_of("Muennighoff/MoE"), keys_of("Muennighoff/OLMoSE"));
    assert!(!main.contains_key("moe_top_k") && moe_branch.contains_key("moe_top_k"));
    assert!(!moe_branch.contains_key("moe_interleave") && shared.contains_key("moe_interleave"));
    let mut written = 0;
    for (name, base, change, _, olmo) in CASES {
        let mut config = base();
        change(&mut config);
        let Ok(text) = config.to_olmo_yaml() else { continue };
        assert!(olmo.is_ok(), "{name}");
        let (branch, known) = match (config.even_layers, config.moe()) {
            (Some(_), _) => ("OLMoSE", &shared),
            (None, Some(_)) => ("MoE", &moe_branch),
            (None, None) => ("main", &main),
        };
        let keys: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(": ")).map(|line| line.0).collect();
        assert!(keys.len() > 25, "{name}: {text}");
        for key in &keys {
            assert!(known.contains_key(key), "{name}: the branch {branch} has no key {key}");
        }
        // What is left out has to mean the same in every branch that reads the file.
        for (key, default) in known.iter().filter(|(key, _)| !keys.contains(key)) {
            let elsewhere = shared.get(key).filter(|_| config.moe().is_some()).unwrap_or(default);
            assert_eq!(default, elsewhere, "{name}: {key} is left out");
        }
        written += 1;
    }
    assert!(written > 30, "{written}");
}
