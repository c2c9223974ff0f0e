use super::*;
use crate::config::FeedForward;

fn names(adapters: &[Adapter], layer: Option<usize>) -> Vec<&'static str> {
    adapters.iter().filter(|adapter| adapter.module.layer == layer).map(|adapter| adapter.module.part.name()).collect()
}

fn with(targets: &[&str]) -> AdapterSettings {
    AdapterSettings { targets: targets.iter().map(|&name| name.to_owned()).collect(), ..AdapterSettings::default() }
}

const EXPERTS: [&str; 3] = ["moe.experts.gate_proj", "moe.experts.up_proj", "moe.experts.down_proj"];
const ATTENTION: [&str; 4] = ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"];

#[test]
fn names_of_peft_and_of_megatron_bridge() {
    let config = ModelConfig::release();
    let layer = |targets: &[&str]| names(&with(targets).resolve(&config).unwrap(), Some(3));
    let all: Vec<&str> = ATTENTION.into_iter().chain(EXPERTS).collect();
    assert_eq!(names(&AdapterSettings::default().resolve(&config).unwrap(), Some(15)), all);
    assert_eq!(layer(BRIDGE), all);
    assert_eq!(layer(&["gate"]), ["moe.router"]);
    assert_eq!(layer(&["router", "linear_fc2"]), ["moe.router", "moe.experts.down_proj"]);
    assert_eq!(layer(&["experts.gate_up_proj"]), EXPERTS[..2]);
    assert_eq!(layer(&["layers.3.attention.q_proj", "layers.4.self_attn.k_proj"]), ["attention.q_proj"]);
    assert_eq!(layer(&["*.layers.3.*.linear_qkv"]), ATTENTION[..3]);
    assert_eq!(layer(&[r".*layers\.3\.self_attn\.(q|o)_proj"]), ["attention.q_proj", "attention.o_proj"]);
    let linear = with(&[ALL_LINEAR]).resolve(&config).unwrap();
    assert_eq!(linear.len(), 16 * 8);
    assert_eq!(names(&linear, None), [""; 0]);
    assert_eq!(names(&with(&["embed_tokens", "lm_head"]).resolve(&config).unwrap(), None), ["embed_tokens", "lm_head"]);
}

#[test]
fn a_name_that_no_matrix_has_is_an_error_with_those_there_are() {
    let config = ModelConfig::release();
    let error = |settings: AdapterSettings| settings.resolve(&config).unwrap_err().to_string();
    let text = error(with(&["q_proj", "qproj"]));
    assert!(text.contains("\"qproj\", did you mean \"q_proj\"?; there are q_proj, k_proj"), "{text}");
    assert!(text.contains("embed_tokens, lm_head, all-linear"), "{text}");
    let text = error(with(&["layers.1.mlp.experts.2.down_proj"]));
    assert!(text.contains("matrix of one expert"), "{text}");
    let text = error(with(&["layers.16.self_attn.q_proj"]));
    assert!(text.contains("no matrix of this model"), "{text}");
    let text = error(with(&["c_attn(.*"]));
    assert!(text.contains("cannot be used"), "{text}");
    assert!(error(with(&[])).contains("no names are given"));
    let text = error(AdapterSettings { exclude: vec!["q_proj".into()], ..with(&["q_proj"]) });
    assert!(text.contains("excluded"), "{text}");
    let text = error(AdapterSettings { exclude: vec!["w1".into()], ..with(&["q_proj"]) });
    assert!(text.contains("\"w1\""), "{text}");
    let text = error(AdapterSettings { rank_pattern: vec![("w1".into(), 3)], ..with(&["q_proj"]) });
    assert!(text.contains("rank_pattern: \"w1\" fits no matrix"), "{text}");
    let text = error(AdapterSettings { layers: Some(vec![16]), ..with(&["q_proj"]) });
    assert!(text.contains("no layer 16; the model has 16"), "{text}");
    let text = error(AdapterSettings { layers: Some(vec![1]), ..with(&["lm_head"]) });
    assert!(text.contains("choose no matrix"), "{text}");
    for (settings, expected) in [
        (AdapterSettings { rank: 0, ..with(&["q_proj"]) }, "the rank is 0"),
        (AdapterSettings { alpha: f64::NAN, ..with(&["q_proj"]) }, "alpha is NaN"),
        (AdapterSettings { dropout: 1.0, ..with(&["q_proj"]) }, "the dropout is 1"),
        (AdapterSettings { b_rate_factor: 0.0, ..with(&["q_proj"]) }, "learning rate is 0"),
        (AdapterSettings { init: InitName::Pissa, ..with(&["q_proj"]) }, "pissa takes"),
        (AdapterSettings { rank: 12, rank_by_top_k: true, ..with(&["up_proj"]) }, "no multiple of 8"),
    ] {
        let text = error(settings);
        assert!(text.contains(expected), "{text}");
    }
}

/// vllm#6909, TensorRT-LLM#1669: at rank 16 the scale of rsLoRA is four times that of LoRA.
#[test]
fn rslora_divides_by_the_root_of_the_rank() {
    let config = ModelConfig::release();
    let scale = |rslora| {
        let settings = AdapterSettings { rank: 16, alpha: 32.0, rslora, ..with(&["q_proj"]) };
        settings.resolve(&config).unwrap()[0].scale
    };
    assert_eq!((scale(false), scale(true)), (2.0, 8.0));
}

#[test]
fn ranks_and_alphas_by_pattern() {
    let settings = AdapterSettings {
        rank: 8,
        alpha: 16.0,
        rank_pattern: vec![(r"layers\.1\..*up_proj".into(), 2), ("up_proj".into(), 4)],
        alpha_pattern: vec![(r"experts\.\d+\.down_proj".into(), 1.0)],
        ..AdapterSettings::default()
    };
    let adapters = settings.resolve(&ModelConfig::release()).unwrap();
    let of = |layer: usize, name: &str| {
        let found = adapters.iter().find(|adapter| adapter.module.to_string() == format!("layers.{layer}.{name}"));
        (found.unwrap().rank, found.unwrap().scale)
    };
    assert_eq!(of(1, EXPERTS[1]), (2, 8.0));
    assert_eq!(of(11, EXPERTS[1]), (4, 4.0));
    assert_eq!(of(1, EXPERTS[2]), (8, 0.125));
    assert_eq!(of(1, ATTENTION[0]), (8, 2.0));
}

#[test]
fn sharing_and_ranks_of_megatron_bridge() {
    let config = ModelConfig::release();
    let shares = |sharing| {
        let settings = AdapterSettings { sharing, layers: Some(vec![0]), ..AdapterSettings::bridge() };
        settings.resolve(&config).unwrap().iter().map(|adapter| adapter.share).collect::<Vec<_>>()
    };
    let all = |share| [vec![Sharing::PerExpert; 4], vec![share; 3]].concat();
    assert_eq!(shares(ExpertSharing::Shared), all(Sharing::Both));
    assert_eq!(shares(ExpertSharing::PerExpert), all(Sharing::PerExpert));
    assert_eq!(shares(ExpertSharing::Outer)[4..], [Sharing::A, Sharing::A, Sharing::B]);
    // The rank of experts is divided by the experts of a token, and their scale grows.
    let settings = AdapterSettings { rank_by_top_k: true, ..AdapterSettings::bridge() };
    let adapters = settings.resolve(&config).unwrap();
    assert_eq!((adapters[0].rank, adapters[0].scale), (32, 1.0));
    assert_eq!((adapters[4].rank, adapters[4].scale), (4, 8.0));
    // LoRA+
    let settings = AdapterSettings { b_rate_factor: 16.0, ..settings };
    assert_eq!(settings.rate_factor(ParameterKind::LoraB), 16.0);
    assert_eq!(settings.rate_factor(ParameterKind::LoraA), 1.0);
    for (at, name) in InitName::NAMES.iter().enumerate() {
        assert_eq!(InitName::by_name(name).unwrap() as usize, at);
    }
    for (at, name) in ExpertSharing::NAMES.iter().enumerate() {
        assert_eq!(ExpertSharing::by_name(name).unwrap() as usize, at);
    }
}

#[test]
fn a_dense_model_has_other_matrices() {
    let mut config = ModelConfig::release();
    let FeedForward::Moe(moe) = &config.feed_forward else { panic!() };
    config.feed_forward = FeedForward::Dense(moe.expert);
    let adapters = AdapterSettings::default().resolve(&config).unwrap();
    assert_eq!(names(&adapters, Some(0))[4..], ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]);
    let text = with(&["gate"]).resolve(&config).unwrap_err().to_string();
    assert!(text.contains("\"gate\"") && !text.contains("there are q_proj, k_proj, v_proj, o_proj, gate,"), "{text}");
}
