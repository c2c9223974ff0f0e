//! The function that a configuration defines, and whether a file format can express it.

use serde_json::Value;

use super::error::ConfigError;
use super::{Auxiliary, AuxiliaryDefinition, ClipOrder, Init, InitMethod, LoadedConfig, ModelConfig};

/// The configuration with fixed values in all fields that do not affect the function of the model. The order of clamp
/// and norm is such a field unless `ordered` is set.
fn essence(config: &ModelConfig, ordered: bool) -> ModelConfig {
    let mut essence = ModelConfig {
        vocab_size: config.embedding_size,
        init: Init {
            method: InitMethod::Normal,
            std: 0.02,
            cutoff_factor: None,
            embedding_std: None,
            scale_embedding: false,
        },
        auxiliary: Auxiliary { definition: AuxiliaryDefinition::Olmo, load_balancing_weight: 0.0, z_weight: 0.0 },
        pad_token_id: None,
        bos_token_id: None,
        eos_token_id: None,
        ..config.clone()
    };
    if let (Some(clip), false) = (&mut essence.clip_qkv, ordered) {
        clip.order = ClipOrder::BeforeNorm;
    }
    essence
}

/// A field in which two functions differ, and both of its values.
struct FieldDifference {
    field: Box<str>,
    this: Box<str>,
    other: Box<str>,
}

/// Finds the first difference below a field, in alphabetical order.
fn difference(field: &str, this: &Value, other: &Value) -> Option<FieldDifference> {
    if this == other {
        return None;
    }
    if let (Value::Object(ours), Value::Object(theirs)) = (this, other)
        && ours.keys().eq(theirs.keys())
    {
        return ours.iter().zip(theirs.values()).find_map(|((key, ours), theirs)| {
            let field = if field.is_empty() { key.clone() } else { format!("{field}.{key}") };
            difference(&field, ours, theirs)
        });
    }
    // The name alone of a variant with fields.
    let shown = |value: &Value| match value {
        Value::Object(kind) if kind.len() == 1 => {
            kind.keys().next().map_or_else(String::new, |name| format!("{name:?}"))
        }
        value => value.to_string(),
    };
    Some(FieldDifference { field: field.into(), this: shown(this).into(), other: shown(other).into() })
}

fn first_difference(this: &ModelConfig, other: &ModelConfig) -> Result<Option<FieldDifference>, ConfigError> {
    // Where one model has no such norm, the norm is the difference to report, and not the default order.
    let ordered = this.qk_norm.is_some() && other.qk_norm.is_some();
    // Through JSON text, in which an f32 is its shortest decimal and not the nearest f64.
    let value = |config: &ModelConfig| -> Result<Value, ConfigError> {
        serde_json::to_string(&essence(config, ordered))
            .and_then(|text| serde_json::from_str(&text))
            .map_err(|error| ConfigError::Syntax { format: "JSON", message: error.to_string() })
    };
    Ok(difference("", &value(this)?, &value(other)?))
}

/// See [`ModelConfig::same_function`].
pub(super) fn same(this: &ModelConfig, other: &ModelConfig) -> Result<(), ConfigError> {
    match first_difference(this, other)? {
        None => Ok(()),
        Some(FieldDifference { field, this, other }) => Err(ConfigError::OtherFunction { field, this, other }),
    }
}

/// A file format that configurations are written in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ConfigFormat {
    HuggingFace,
    Olmo,
}

impl ConfigFormat {
    fn write(self, config: &ModelConfig) -> Result<String, ConfigError> {
        match self {
            // The format of the stored numbers does not affect the function.
            ConfigFormat::HuggingFace => super::hf::write::text(config, "float32"),
            ConfigFormat::Olmo => Ok(super::olmo::write::text(config)),
        }
    }

    fn read(self, text: &str) -> Result<LoadedConfig, ConfigError> {
        match self {
            ConfigFormat::HuggingFace => super::hf::read(text),
            ConfigFormat::Olmo => ModelConfig::from_olmo_yaml(text),
        }
    }

    /// The name of the format in errors, for this configuration.
    fn name(self, config: &ModelConfig) -> &'static str {
        match (self, config.moe()) {
            (ConfigFormat::HuggingFace, Some(_)) => "Hugging Face's olmoe",
            (ConfigFormat::HuggingFace, None) => "Hugging Face's llama",
            (ConfigFormat::Olmo, _) => "OLMo",
        }
    }

    /// The first field that differs after writing and reading.
    fn lost(self, config: &ModelConfig, text: &str) -> Result<Option<FieldDifference>, ConfigError> {
        first_difference(config, &self.read(text)?.config)
    }

    /// Returns an error if reading `text`, which was written for `config`, gives another function.
    pub(super) fn check(self, config: &ModelConfig, text: &str) -> Result<(), ConfigError> {
        let Some(FieldDifference { field, this, other }) = self.lost(config, text)? else { return Ok(()) };
        let alternative = match self {
            ConfigFormat::HuggingFace => ConfigFormat::Olmo,
            ConfigFormat::Olmo => ConfigFormat::HuggingFace,
        };
        let written = alternative.write(config);
        let possible = written.is_ok_and(|text| alternative.lost(config, &text).is_ok_and(|lost| lost.is_none()));
        Err(ConfigError::Inexpressible {
            format: self.name(config),
            field,
            found: this,
            instead: other,
            alternative: possible.then(|| alternative.name(config)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ClipQkv, FeedForward, Mlp};
    use super::*;

    #[test]
    fn what_does_not_decide_the_function_is_ignored() {
        let release = ModelConfig::release();
        let mut other = release.clone();
        other.vocab_size = 99;
        other.init = Init { method: InitMethod::FullMegatron, std: 1.0, ..other.init };
        other.auxiliary.definition = AuxiliaryDefinition::Megatron;
        (other.pad_token_id, other.bos_token_id, other.eos_token_id) = (None, Some(3), None);
        release.same_function(&other).unwrap();
        // The order of norm and clamp matters only where there is a norm.
        let clip = |order| Some(ClipQkv { limit: 8.0, order });
        let mut clipped = ModelConfig { clip_qkv: clip(ClipOrder::AfterNorm), ..release };
        let mut other = ModelConfig { clip_qkv: clip(ClipOrder::BeforeNorm), ..clipped.clone() };
        assert!(
            clipped.same_function(&other).unwrap_err().to_string().contains("`clip_qkv`, order, is \"after_norm\"")
        );
        (clipped.qk_norm, other.qk_norm) = (None, None);
        clipped.same_function(&other).unwrap();
    }

    #[test]
    fn the_first_difference_is_named_with_both_values() {
        let release = ModelConfig::release();
        let difference = |change: &dyn Fn(&mut ModelConfig)| {
            let mut other = release.clone();
            change(&mut other);
            release.same_function(&other).unwrap_err().to_string()
        };
        let moe = |config: &mut ModelConfig, change: &dyn Fn(&mut super::super::Moe)| match &mut config.feed_forward {
            FeedForward::Moe(moe) => change(moe),
            FeedForward::Dense(_) => panic!("the release model has experts"),
        };
        type FunctionCase<'a> = (&'a dyn Fn(&mut ModelConfig), &'a str);
        #[rustfmt::skip]
        let cases: [FunctionCase<'_>; 9] = [
            (&|c| c.d_model = 4096, "`hidden_size` (OLMo: `d_model`) is 2048 in one model and 4096 in the other"),
            (&|c| c.max_sequence_length = 8192, "`max_position_embeddings` (OLMo: `max_sequence_length`) is 4096 in one model and 8192"),
            (&|c| c.norm.eps = 0.5, "`rms_norm_eps` (OLMo: `layer_norm_eps`) is"),
            (&|c| c.qk_norm = None, "`attention_layer_norm` is {"),
            (&|c| c.tie_embeddings = true, "`tie_word_embeddings` (OLMo: `weight_tying`) is false in one model and true"),
            (&|c| moe(c, &|moe| moe.top_k = 2), "`num_experts_per_tok` (OLMo: `moe_top_k`) is 8 in one model and 2"),
            (&|c| moe(c, &|moe| moe.shared_expert = Some(moe.expert)), "`moe_shared_expert` is null in one"),
            (&|c| moe(c, &|moe| moe.capacity_factor = Some(1.25)), "`moe_capacity_factor` is null in one"),
            (&|c| c.feed_forward = FeedForward::Dense(Mlp { ..c.moe().unwrap().expert }), "`model_type` (OLMo: `block_type`) is \"moe\" in one model and \"dense\" in the other"),
        ];
        for (change, expected) in cases {
            let error = difference(change);
            assert!(error.contains(expected), "{error}");
        }
    }
}
