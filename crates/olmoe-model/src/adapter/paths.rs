//! The paths of matrices in peft's model of an OLMoE, and the patterns that choose among them.
//!
//! ```text
//! model.embed_tokens   model.layers.{i}.self_attn.q_proj … o_proj     model.layers.{i}.mlp.gate   (the router)
//! lm_head              model.layers.{i}.mlp.experts.{e}.gate_proj     model.layers.{i}.mlp.gate_proj   (dense)
//! ```
//!
//! Source: `check_target_module_exists` and `get_pattern_key` of peft 0.21.

use regex::Regex;

use crate::config::ModelConfig;
use crate::identity::{MlpMatrix, MlpOf, ModuleId, ModulePart, Projection};
use crate::parameters::{ParameterKind, ParameterSpec, parameters};

/// The name of a part without its layer, as peft has it; `None` for a part that is no matrix.
fn leaf(part: ModulePart) -> Option<&'static str> {
    let matrix = |matrix| match matrix {
        MlpMatrix::Gate => "gate_proj",
        MlpMatrix::Up => "up_proj",
        MlpMatrix::Down => "down_proj",
    };
    Some(match part {
        ModulePart::Embedding => "embed_tokens",
        ModulePart::Head => "lm_head",
        ModulePart::Attention(Projection::Query) => "q_proj",
        ModulePart::Attention(Projection::Key) => "k_proj",
        ModulePart::Attention(Projection::Value) => "v_proj",
        ModulePart::Attention(Projection::Output) => "o_proj",
        ModulePart::Router => "gate",
        ModulePart::Mlp(_, which) => matrix(which),
        _ => return None,
    })
}

/// The path of a matrix, that of one expert for a stack of experts' matrices; `None` for a module that is no matrix.
pub fn peft_path(module: ModuleId, expert: usize) -> Option<String> {
    let leaf = leaf(module.part)?;
    Some(match (module.layer, module.part) {
        (None, ModulePart::Embedding) => format!("model.{leaf}"),
        (None, _) => leaf.to_owned(),
        (Some(layer), ModulePart::Attention(_)) => format!("model.layers.{layer}.self_attn.{leaf}"),
        (Some(layer), ModulePart::Mlp(MlpOf::Experts, _)) => {
            format!("model.layers.{layer}.mlp.experts.{expert}.{leaf}")
        }
        (Some(layer), ModulePart::Mlp(MlpOf::SharedExpert, _)) => {
            format!("model.layers.{layer}.mlp.shared_expert.{leaf}")
        }
        (Some(layer), _) => format!("model.layers.{layer}.mlp.{leaf}"),
    })
}

/// The path of the stack that a matrix of the experts is a part of in transformers 5, such as
/// `model.layers.3.mlp.experts.gate_up_proj`; `None` for other modules.
pub fn fused_path(module: ModuleId) -> Option<String> {
    let (Some(layer), ModulePart::Mlp(MlpOf::Experts, which)) = (module.layer, module.part) else { return None };
    let stack = if which == MlpMatrix::Down { "down_proj" } else { "gate_up_proj" };
    Some(format!("model.layers.{layer}.mlp.experts.{stack}"))
}

/// The matrices of a model that may have an adapter, in canonical order.
pub fn matrices(config: &ModelConfig) -> impl Iterator<Item = ParameterSpec> {
    let is_matrix = |spec: &ParameterSpec| {
        matches!(
            spec.kind,
            ParameterKind::Embedding | ParameterKind::Linear | ParameterKind::Router | ParameterKind::Expert
        )
    };
    parameters(config).into_iter().filter(is_matrix)
}

/// A pattern of peft's that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pattern {pattern:?} cannot be used: {reason}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Longest compiled form of a pattern, in bytes.
const MAX_PATTERN: usize = 1 << 20;

fn compiled(pattern: &str, text: &str) -> Result<Regex, PatternError> {
    let built = regex::RegexBuilder::new(text).size_limit(MAX_PATTERN).build();
    built.map_err(|error| {
        let reason = error.to_string();
        let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        PatternError { pattern: crate::config::shorten(pattern), reason }
    })
}

/// A key of `rank_pattern` or `alpha_pattern`: a regular expression for the end of a path, from one of its names on.
#[derive(Clone, Debug)]
pub struct KeyPattern(Regex);

impl KeyPattern {
    /// # Errors
    /// [`PatternError`].
    pub fn new(pattern: &str) -> Result<KeyPattern, PatternError> {
        compiled(pattern, &format!(r"^(?:.*\.)?(?:{pattern})$")).map(KeyPattern)
    }

    /// Whether it chooses a path.
    pub fn matches(&self, path: &str) -> bool {
        self.0.is_match(path)
    }
}

/// Which paths an adapter is put on: peft's `target_modules`, `target_parameters` and `exclude_modules`.
#[derive(Clone, Debug)]
pub enum Targets {
    /// The ends of paths, from one of their names on.
    Names(Vec<String>),
    /// A regular expression for whole paths.
    Pattern(Regex),
}

impl Targets {
    /// A regular expression for whole paths.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn pattern(pattern: &str) -> Result<Targets, PatternError> {
        compiled(pattern, &format!("^(?:{pattern})$")).map(Targets::Pattern)
    }

    /// Whether a path is chosen.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Targets::Names(names) => names.iter().any(|name| ends_with(path, name)),
            Targets::Pattern(pattern) => pattern.is_match(path),
        }
    }
}

/// Whether a path is `name` or ends with it from one of its names on.
pub fn ends_with(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ends_of_paths() {
        for (path, name, expected) in [
            ("model.layers.0.mlp.gate", "gate", true),
            ("model.layers.0.mlp.experts.0.gate_proj", "gate", false),
            ("model.layers.0.mlp.experts.0.gate_proj", "gate_proj", true),
            ("model.layers.0.mlp.experts.0.gate_proj", "_proj", false),
            ("lm_head", "lm_head", true),
            ("model.layers.11.self_attn.q_proj", "1.self_attn.q_proj", false),
        ] {
            assert_eq!(ends_with(path, name), expected, "{path} {name}");
        }
    }

    #[test]
    fn keys_of_patterns_begin_at_a_name() {
        let matches = |key: &str, path: &str| KeyPattern::new(key).unwrap().matches(path);
        assert!(matches("q_proj", "model.layers.0.self_attn.q_proj"));
        assert!(matches(r".*\.gate_up_proj", "model.layers.0.mlp.experts.gate_up_proj"));
        assert!(matches(r"layers\.1\..*up_proj", "model.layers.1.mlp.experts.0.up_proj"));
        assert!(!matches(r"layers\.1\..*up_proj", "model.layers.11.mlp.experts.0.up_proj"));
        assert!(!matches("up_proj|down_proj", "model.layers.0.mlp.experts.0.gate_up_proj"));
        let error = KeyPattern::new("(?<!x)q_proj").unwrap_err().to_string();
        assert!(error.contains("look-around"), "{error}");
        assert!(Targets::pattern("(((").is_err());
    }
}
