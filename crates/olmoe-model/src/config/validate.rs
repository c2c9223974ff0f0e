//! The rules that every configuration satisfies, in any format. Order: sizes against named limits, then how sizes fit
//! together, then numbers, then the parameter count.

use super::error::ConfigError;
use super::names::Names;
use super::{FeedForward, Init, InitMethod, ModelConfig, Moe, Norm};
use crate::parameters::ParameterCount;

/// Most bytes of a configuration file: 16 MiB, for training files that list many thousand data paths.
pub const MAX_CONFIG_BYTES: usize = 1 << 24;
/// Most layers.
pub const MAX_LAYERS: usize = 1 << 12;
/// Most heads.
pub const MAX_HEADS: usize = 1 << 12;
/// Largest width of the residual stream or of an MLP, in elements.
pub const MAX_WIDTH: usize = 1 << 20;
/// Most rows of the embedding.
pub const MAX_VOCABULARY: usize = 1 << 24;
/// Longest sequence, in tokens.
pub const MAX_SEQUENCE_LENGTH: usize = 1 << 28;
/// Most experts in a layer.
pub const MAX_EXPERTS: usize = 1 << 16;

/// Rejects text that is too long to be a configuration.
pub(super) fn length(text: &str) -> Result<(), ConfigError> {
    match text.len() > MAX_CONFIG_BYTES {
        true => Err(ConfigError::TooLong { limit: MAX_CONFIG_BYTES }),
        false => Ok(()),
    }
}

/// Checks all rules; errors use the key names of the format that the configuration was read from.
pub(super) fn check(config: &ModelConfig, names: &Names) -> Result<(), ConfigError> {
    sizes(config, names)?;
    heads(config, names)?;
    if config.embedding_size < config.vocab_size {
        return Err(ConfigError::EmbeddingSmallerThanVocabulary {
            embedding_key: names.embedding_size,
            embedding: config.embedding_size,
            vocabulary_key: names.vocab_size,
            vocabulary: config.vocab_size,
        });
    }
    if let FeedForward::Moe(moe) = &config.feed_forward {
        mixture(moe, names)?;
        dense_only(&config.init)?;
    }
    interleave(config, names)?;
    let norms = [("norm", Some(config.norm)), ("qk_norm", config.qk_norm), ("embedding_norm", config.embedding_norm)];
    for (key, norm) in norms {
        norm.map_or(Ok(()), |norm| check_norm(key, norm, names))?;
    }
    if config.head_bias && config.tie_embeddings {
        return Err(ConfigError::TiedHeadBias);
    }
    numbers(config, names)?;
    tokens(config)?;
    ParameterCount::of(config).map(|_| ())
}

fn sizes(config: &ModelConfig, names: &Names) -> Result<(), ConfigError> {
    size(names.d_model, config.d_model, MAX_WIDTH)?;
    size(names.n_layers, config.n_layers, MAX_LAYERS)?;
    size(names.n_heads, config.n_heads, MAX_HEADS)?;
    size(names.n_kv_heads, config.n_kv_heads, MAX_HEADS)?;
    size(names.vocab_size, config.vocab_size, MAX_VOCABULARY)?;
    size(names.embedding_size, config.embedding_size, MAX_VOCABULARY)?;
    size(names.max_sequence_length, config.max_sequence_length, MAX_SEQUENCE_LENGTH)?;
    config.even_layers.map_or(Ok(()), |mlp| size(names.mlp_width, mlp.width, MAX_WIDTH))?;
    match &config.feed_forward {
        FeedForward::Dense(mlp) => size(names.mlp_width, mlp.width, MAX_WIDTH),
        FeedForward::Moe(moe) => {
            size(names.num_experts, moe.num_experts, MAX_EXPERTS)?;
            size(names.top_k, moe.top_k, usize::MAX)?;
            size(names.mlp_width, moe.expert.width, MAX_WIDTH)?;
            moe.shared_expert.map_or(Ok(()), |shared| size(names.shared_width, shared.width, MAX_WIDTH))
        }
    }
}

/// Checks that a size is at least 1 and at most its limit.
pub(super) fn size(key: &'static str, found: usize, limit: usize) -> Result<(), ConfigError> {
    match found {
        0 => Err(ConfigError::Zero { key }),
        _ if found > limit => Err(ConfigError::TooLarge { key, found, limit }),
        _ => Ok(()),
    }
}

fn heads(config: &ModelConfig, names: &Names) -> Result<(), ConfigError> {
    if !config.d_model.is_multiple_of(config.n_heads) {
        return Err(ConfigError::HeadsDoNotDivideWidth {
            heads_key: names.n_heads,
            heads: config.n_heads,
            width_key: names.d_model,
            width: config.d_model,
        });
    }
    let head_dim = config.d_model / config.n_heads;
    if config.head_dim != head_dim {
        return Err(ConfigError::HeadDim { key: names.head_dim, found: config.head_dim, expected: head_dim });
    }
    if !head_dim.is_multiple_of(2) {
        return Err(ConfigError::OddHeadDim { head_dim, width_key: names.d_model, heads_key: names.n_heads });
    }
    if !config.n_heads.is_multiple_of(config.n_kv_heads) {
        return Err(ConfigError::KvHeadsDoNotDivideHeads {
            kv_key: names.n_kv_heads,
            kv_heads: config.n_kv_heads,
            heads_key: names.n_heads,
            heads: config.n_heads,
        });
    }
    Ok(())
}

fn mixture(moe: &Moe, names: &Names) -> Result<(), ConfigError> {
    if moe.top_k > moe.num_experts {
        return Err(ConfigError::TopKAboveExperts {
            top_k_key: names.top_k,
            top_k: moe.top_k,
            experts_key: names.num_experts,
            experts: moe.num_experts,
        });
    }
    if let Some(factor) = moe.capacity_factor {
        not_negative(names.capacity_factor, factor)?;
        if moe.expert.activation.is_gated() {
            return Err(ConfigError::GateWithCapacity);
        }
    }
    Ok(())
}

/// Only a model with experts has layers of two kinds, and it has at least one layer of each kind.
fn interleave(config: &ModelConfig, names: &Names) -> Result<(), ConfigError> {
    let key = names.even_layers;
    match (config.even_layers, &config.feed_forward) {
        (Some(_), FeedForward::Dense(_)) => Err(ConfigError::InterleavedWithoutExperts { key }),
        (Some(_), _) if config.n_layers < 2 => {
            Err(ConfigError::OneInterleavedLayer { key, layers_key: names.n_layers })
        }
        _ => Ok(()),
    }
}

fn dense_only(init: &Init) -> Result<(), ConfigError> {
    let method = match init.method {
        InitMethod::Normal | InitMethod::FullMegatron => return Ok(()),
        InitMethod::Mitchell => "mitchell",
        InitMethod::KaimingNormal => "kaiming_normal",
        InitMethod::FanIn => "fan_in",
    };
    Err(ConfigError::InitWithExperts { method })
}

fn check_norm(key: &'static str, norm: Norm, names: &Names) -> Result<(), ConfigError> {
    if norm.bias && !norm.affine {
        return Err(ConfigError::NormBiasWithoutWeight { key });
    }
    positive(names.norm_eps, norm.eps, None)
}

fn numbers(config: &ModelConfig, names: &Names) -> Result<(), ConfigError> {
    let theta = config.rope.theta;
    if !theta.is_finite() || theta < 1.0 {
        return Err(ConfigError::RopeTheta { key: names.rope_theta, found: theta });
    }
    if let Some(clip) = config.clip_qkv {
        positive(names.clip_qkv, clip.limit, Some(", or null for no clamp"))?;
    }
    not_negative(names.init_std, config.init.std)?;
    if let Some(factor) = config.init.cutoff_factor {
        positive(names.init_cutoff, factor, Some(", or null for that of the method"))?;
    }
    if let Some(std) = config.init.embedding_std {
        positive(names.embedding_std, std, Some(", or null for that of the method"))?;
    }
    not_negative(names.load_balancing_weight, config.auxiliary.load_balancing_weight)?;
    not_negative(names.z_weight, config.auxiliary.z_weight)
}

fn positive(key: &'static str, found: f32, hint: Option<&'static str>) -> Result<(), ConfigError> {
    match found.is_finite() && found > 0.0 {
        true => Ok(()),
        false => Err(ConfigError::NotPositive { key, found, hint }),
    }
}

fn not_negative(key: &'static str, found: f32) -> Result<(), ConfigError> {
    match found.is_finite() && found >= 0.0 {
        true => Ok(()),
        false => Err(ConfigError::Negative { key, found }),
    }
}

fn tokens(config: &ModelConfig) -> Result<(), ConfigError> {
    let ids = [
        ("pad_token_id", config.pad_token_id),
        ("bos_token_id", config.bos_token_id),
        ("eos_token_id", config.eos_token_id),
    ];
    let rows = config.embedding_size;
    for (key, id) in ids {
        if let Some(found) = id.filter(|&id| id as usize >= rows) {
            return Err(ConfigError::TokenOutsideVocabulary { key, found, rows });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Activation, ClipOrder, ClipQkv, Mlp};
    use super::*;

    /// The release model with one change, and the error that this gives.
    fn rejected(change: impl FnOnce(&mut ModelConfig)) -> String {
        let mut config = ModelConfig::release();
        change(&mut config);
        let error = config.validate().unwrap_err();
        // Deserialising must apply the same rules.
        let json = serde_json::to_string(&config).unwrap();
        assert!(
            serde_json::from_str::<ModelConfig>(&json).is_err(),
            "deserialising {json} did not give the error {error}"
        );
        error.to_string()
    }

    fn moe(config: &mut ModelConfig) -> &mut Moe {
        match &mut config.feed_forward {
            FeedForward::Moe(moe) => moe,
            FeedForward::Dense(_) => panic!("the release model has experts"),
        }
    }

    #[test]
    fn the_release_is_valid() {
        ModelConfig::release().validate().unwrap();
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(rejected(|c| c.n_layers = 0), "`n_layers` is 0; set it to at least 1");
        assert!(rejected(|c| c.d_model = 1 << 60).contains("`d_model` is 1152921504606846976; the largest size"));
        assert!(rejected(|c| c.n_heads = usize::MAX).contains("`n_heads`"));
        assert!(rejected(|c| moe(c).expert.width = 1 << 21).contains("width"));
        assert!(rejected(|c| moe(c).top_k = 0).contains("`top_k` is 0"));
        let wide = Some(Mlp { width: 1 << 21, activation: Activation::SwiGlu });
        assert!(rejected(|c| c.even_layers = wide).contains("`feed_forward width` is 2097152"));
        let huge = rejected(|c| {
            c.n_layers = MAX_LAYERS;
            moe(c).num_experts = MAX_EXPERTS;
            moe(c).expert.width = MAX_WIDTH;
        });
        assert!(huge.contains("more than 17592186044416 parameters"), "{huge}");
    }

    #[test]
    fn sizes_fit_together() {
        assert!(rejected(|c| c.n_heads = 3).contains("`n_heads` (3) does not divide `d_model` (2048)"));
        assert!(rejected(|c| c.n_kv_heads = 3).contains("`n_kv_heads` (3) does not divide `n_heads` (16)"));
        assert!(rejected(|c| c.head_dim = 64).contains("it must be 128"));
        let odd = rejected(|c| (c.d_model, c.head_dim) = (48, 3));
        assert!(odd.contains("3 elements"), "{odd}");
        assert!(rejected(|c| moe(c).top_k = 65).contains("`top_k` (65) is greater than `num_experts` (64)"));
        assert!(rejected(|c| c.embedding_size = 50279).contains("set it to at least 50280"));
        assert!(rejected(|c| c.eos_token_id = Some(50304)).contains("`eos_token_id` is 50304"));
        assert!(rejected(|c| moe(c).capacity_factor = Some(1.0)).contains("have no gate"));
    }

    #[test]
    fn numbers_are_finite_and_in_range() {
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            // JSON has no NaN and no infinity, so these are checked only directly.
            let check = |change: &dyn Fn(&mut ModelConfig)| {
                let mut config = ModelConfig::release();
                change(&mut config);
                config.validate().unwrap_err()
            };
            let limit = ClipQkv { limit: bad, order: ClipOrder::BeforeNorm };
            assert!(matches!(check(&|c| c.norm.eps = bad), ConfigError::NotPositive { key: "eps", .. }));
            assert!(matches!(check(&|c| c.rope.theta = bad), ConfigError::RopeTheta { .. }));
            assert!(matches!(check(&|c| c.clip_qkv = Some(limit)), ConfigError::NotPositive { .. }));
            assert!(matches!(check(&|c| c.init.cutoff_factor = Some(bad)), ConfigError::NotPositive { .. }));
            assert!(matches!(check(&|c| c.init.embedding_std = Some(bad)), ConfigError::NotPositive { .. }));
            if bad != 0.0 {
                assert!(matches!(check(&|c| c.init.std = bad), ConfigError::Negative { .. }));
                assert!(matches!(check(&|c| c.auxiliary.z_weight = bad), ConfigError::Negative { .. }));
                assert!(matches!(check(&|c| c.auxiliary.load_balancing_weight = bad), ConfigError::Negative { .. }));
            }
        }
    }

    #[test]
    fn switches_exclude_each_other() {
        assert!(rejected(|c| (c.norm.affine, c.norm.bias) = (false, true)).contains("`norm` has a bias"));
        assert!(rejected(|c| (c.head_bias, c.tie_embeddings) = (true, true)).contains("`head_bias`"));
        assert!(rejected(|c| c.init.method = InitMethod::Mitchell).contains("mitchell"));
        assert!(rejected(|c| c.init.method = InitMethod::KaimingNormal).contains("kaiming_normal"));
        assert!(rejected(|c| c.init.method = InitMethod::FanIn).contains("fan_in"));
        let even = Some(Mlp { width: 8, activation: Activation::SwiGlu });
        let one = rejected(|c| (c.n_layers, c.even_layers) = (1, even));
        assert!(one.contains("`even_layers` is set, but there is only one layer"), "{one}");
        let mut dense = ModelConfig::release();
        dense.feed_forward = FeedForward::Dense(Mlp { width: 8192, activation: Activation::SwiGlu });
        dense.init.method = InitMethod::Mitchell;
        dense.validate().unwrap();
        dense.even_layers = even;
        let error = dense.validate().unwrap_err().to_string();
        assert!(error.contains("`even_layers` is set, but the model has no experts"), "{error}");
    }
}
