//! `adapter_config.json`: the settings that are followed, those that have no effect, and those that are refused because an
//! adapter with them means something else.
//!
//! Source: `LoraConfig` of peft 0.21.

use olmoe_model::adapter::paths::{KeyPattern, Targets};
use olmoe_model::adapter::settings::{ALL_LINEAR, MAX_RANK, scale};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::error::AdapterFileError;

type Result<T> = std::result::Result<T, AdapterFileError>;

/// Settings without an effect on what an adapter computes.
const WITHOUT_EFFECT: &[&str] = &[
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Settings that are followed.
const FOLLOWED: &[&str] = &[
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "peft_version",
    "r",
    "rank_pattern",
    "target_modules",
    "target_parameters",
    "use_dora",
    "use_rslora",
];

/// Settings with which an adapter means something else, and the reason.
const REFUSED: &[(&str, &str)] = &[
    ("alora_invocation_tokens", "the adapter acts from certain tokens on, which is not computed here"),
    ("arrow_config", "a mixture of adapters with a router of its own is not computed here"),
    ("kasa_config", "KaSA has singular values of its own, which are not computed here"),
    ("monteclora_config", "MonteCLoRA is not computed here"),
    ("velora_config", "VeLoRA is not computed here"),
    ("layer_replication", "the adapter belongs to a model some of whose layers occur several times"),
    ("use_qalora", "QALoRA pools its inputs, which is not computed here"),
    ("use_bdlora", "matrices of diagonal blocks are not read"),
    ("lora_bias", "the adapter has biases, which are not computed here"),
    ("fan_in_fan_out", "no matrix of this model is stored transposed"),
    ("trainable_token_indices", "single rows of the embedding are not read; train the whole embedding"),
];

/// Initialisations after which the base is not the one that the adapter belongs to.
const ALTERED_BASE: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

/// What an adapter's settings ask for.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    rank: usize,
    alpha: f64,
    rslora: bool,
    pub(super) dora: bool,
    ranks: Vec<(KeyPattern, usize)>,
    alphas: Vec<(KeyPattern, f64)>,
    modules: Option<Targets>,
    parameters: Vec<String>,
    exclude: Option<Targets>,
    all_linear: bool,
    layers: Vec<usize>,
    /// Names of modules that are stored whole.
    pub(super) whole: Vec<String>,
    pub(super) base: Option<String>,
    pub(super) peft_version: Option<String>,
    /// Whether peft has turned it from the names of each expert to those of stacks.
    pub(super) converted: bool,
}

/// The rank pattern that peft adds when it turns an adapter of each expert into one of stacks.
const CONVERTED: &str = r".*\.gate_up_proj";

impl AdapterConfig {
    /// Reads the text of the file.
    pub(super) fn parse(text: &[u8]) -> Result<AdapterConfig> {
        let value: Value = serde_json::from_slice(text).map_err(AdapterFileError::Json)?;
        let ordered: Patterns = serde_json::from_slice(text).unwrap_or_default();
        let Value::Object(map) = value else {
            return Err(wrong("adapter_config.json", &value, "an object"));
        };
        for (key, value) in map.iter().filter(|(_, value)| !is_nothing(value)) {
            check(key, value)?;
        }
        let get = |key: &str| map.get(key).filter(|value| !value.is_null());
        match get("peft_type") {
            None => {}
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(other) => return refused("peft_type", other, "only LoRA, rsLoRA and DoRA are computed here"),
        }
        if let Some(init) = get("init_lora_weights").and_then(Value::as_str) {
            let lower = init.to_lowercase();
            if ALTERED_BASE.iter().any(|name| lower.starts_with(name)) {
                let reason = "the adapter belongs to a base that this initialisation has changed; save it with peft's \
                              `path_initial_model_for_weight_conversion`, which makes it one of the original base";
                return refused("init_lora_weights", &Value::from(init), reason);
            }
        }
        match get("bias") {
            None => {}
            Some(Value::String(bias)) if bias == "none" => {}
            Some(other) => {
                return refused("bias", other, "trained biases of the base are not read; merge it with peft");
            }
        }
        let rank = rank("r", get("r").unwrap_or(&Value::from(8)))?;
        let alpha = number("lora_alpha", get("lora_alpha").unwrap_or(&Value::from(8)))?;
        let all_linear =
            get("target_modules").and_then(Value::as_str).is_some_and(|name| name.eq_ignore_ascii_case(ALL_LINEAR));
        Ok(AdapterConfig {
            rank,
            alpha,
            rslora: flag("use_rslora", get("use_rslora"))?,
            dora: flag("use_dora", get("use_dora"))?,
            ranks: patterns("rank_pattern", get("rank_pattern"), ordered.rank_pattern, self::rank)?,
            alphas: patterns("alpha_pattern", get("alpha_pattern"), ordered.alpha_pattern, number)?,
            modules: if all_linear { None } else { targets("target_modules", get("target_modules"))? },
            parameters: texts("target_parameters", get("target_parameters"))?,
            exclude: targets("exclude_modules", get("exclude_modules"))?,
            all_linear,
            layers: layers(get("layers_to_transform"))?,
            whole: texts("modules_to_save", get("modules_to_save"))?,
            base: get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
            peft_version: get("peft_version").and_then(Value::as_str).map(str::to_owned),
            converted: get("rank_pattern").and_then(Value::as_object).is_some_and(|map| map.contains_key(CONVERTED)),
        })
    }

    /// The rank and the scale of the adapter of a path.
    pub(super) fn rank_and_scale(&self, path: &str) -> (usize, f32) {
        let rank = self.ranks.iter().find(|(pattern, _)| pattern.matches(path)).map_or(self.rank, |found| found.1);
        let alpha = self.alphas.iter().find(|(pattern, _)| pattern.matches(path)).map_or(self.alpha, |found| found.1);
        (rank, scale(alpha, rank, self.rslora))
    }

    /// Whether the settings name any matrices.
    pub(super) fn names_any(&self) -> bool {
        self.all_linear || self.modules.is_some() || !self.parameters.is_empty()
    }

    /// Whether they choose the module of a path, which is in a layer or not; with `linear` it is one of "all-linear".
    pub(super) fn chooses_module(&self, path: &str, layer: Option<usize>, linear: bool) -> bool {
        if self.exclude.as_ref().is_some_and(|exclude| exclude.matches(path)) {
            return false;
        }
        let named = self.modules.as_ref().is_some_and(|modules| modules.matches(path));
        let in_layer = self.layers.is_empty()
            || matches!(self.modules, Some(Targets::Pattern(_)))
            || layer.is_some_and(|layer| self.layers.contains(&layer));
        (named || self.all_linear && linear) && in_layer
    }

    /// Whether they choose the parameter of a path.
    pub(super) fn chooses_parameter(&self, path: &str) -> bool {
        self.parameters.iter().any(|name| olmoe_model::adapter::paths::ends_with(path, name))
    }

    /// The name by which a module is stored whole.
    pub(super) fn stores_whole(&self, path: &str) -> Option<&str> {
        let part = |name: &&String| {
            path.ends_with(name.as_str())
                || path.starts_with(&format!("{name}."))
                || path.contains(&format!(".{name}."))
        };
        self.whole.iter().find(part).map(String::as_str)
    }
}

/// Refuses a setting that is not followed here; its value is not null, false or empty.
fn check(key: &str, value: &Value) -> Result<()> {
    if let Some((_, reason)) = REFUSED.iter().find(|entry| entry.0 == key) {
        return refused(key, value, reason);
    }
    if FOLLOWED.contains(&key) || WITHOUT_EFFECT.contains(&key) {
        return Ok(());
    }
    let reason = "the setting is not known here, and it may change what the adapter computes; if you know that it does \
                  not, take it out of adapter_config.json";
    refused(key, value, reason)
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn refused<T>(key: &str, value: &Value, reason: &str) -> Result<T> {
    Err(AdapterFileError::Refused {
        key: olmoe_model::config::shorten(key),
        found: shown(value),
        reason: reason.to_owned(),
    })
}

fn wrong(key: &str, value: &Value, expected: &'static str) -> AdapterFileError {
    AdapterFileError::Value { key: olmoe_model::config::shorten(key), found: shown(value), expected }
}

fn shown(value: &Value) -> String {
    olmoe_model::config::shorten(&value.to_string())
}

fn flag(key: &str, value: Option<&Value>) -> Result<bool> {
    match value {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(wrong(key, other, "true or false")),
    }
}

fn rank(key: &str, value: &Value) -> Result<usize> {
    let found = value.as_u64().filter(|rank| (1..=MAX_RANK as u64).contains(rank));
    found.map(|rank| rank as usize).ok_or_else(|| wrong(key, value, "a whole number from 1 to 65536"))
}

fn number(key: &str, value: &Value) -> Result<f64> {
    value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| wrong(key, value, "a number"))
}

/// The patterns in the order of the file, in which the first that fits counts.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Patterns {
    rank_pattern: Ordered,
    alpha_pattern: Ordered,
}

/// The members of an object in the order of the file; nothing for another kind of value.
#[derive(Default)]
struct Ordered(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Ordered;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E>(self) -> std::result::Result<Ordered, E> {
                Ok(Ordered::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Ordered, A::Error> {
                let mut all = Vec::new();
                while let Some(member) = map.next_entry()? {
                    all.push(member);
                }
                Ok(Ordered(all))
            }
        }

        deserializer.deserialize_any(Members)
    }
}

fn patterns<T>(
    key: &'static str,
    value: Option<&Value>,
    ordered: Ordered,
    read: impl Fn(&str, &Value) -> Result<T>,
) -> Result<Vec<(KeyPattern, T)>> {
    if let Some(other) = value.filter(|value| !value.is_object()) {
        return Err(wrong(key, other, "an object"));
    }
    let entry = |(pattern, value): &(String, Value)| {
        let compiled = KeyPattern::new(pattern).map_err(|source| AdapterFileError::Pattern { key, source })?;
        Ok((compiled, read(&format!("{key}.{pattern}"), value)?))
    };
    ordered.0.iter().map(entry).collect()
}

fn texts(key: &str, value: Option<&Value>) -> Result<Vec<String>> {
    let expected = "a list of names";
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => {
            let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| wrong(key, value, expected));
            values.iter().map(text).collect()
        }
        Some(other) => Err(wrong(key, other, expected)),
    }
}

/// A list of names, or one pattern.
fn targets(key: &'static str, value: Option<&Value>) -> Result<Option<Targets>> {
    match value {
        Some(Value::String(pattern)) => {
            Targets::pattern(pattern).map(Some).map_err(|source| AdapterFileError::Pattern { key, source })
        }
        other => {
            let names = texts(key, other)?;
            Ok(other.is_some().then_some(Targets::Names(names)))
        }
    }
}

fn layers(value: Option<&Value>) -> Result<Vec<usize>> {
    let layer = |value: &Value| {
        let found = value.as_u64().and_then(|layer| usize::try_from(layer).ok());
        found.ok_or_else(|| wrong("layers_to_transform", value, "numbers of layers"))
    };
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(layer).collect(),
        Some(one) => Ok(vec![layer(one)?]),
    }
}
