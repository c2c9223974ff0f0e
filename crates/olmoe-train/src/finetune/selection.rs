//! Which parameters are trained: patterns, and single experts of a stack.
//!
//! | pattern | what it means |
//! |---|---|
//! | `all` | every parameter |
//! | `embedding`, `head`, `norms`, `biases`, `attention`, `router`, `experts`, `shared_expert`, `mlp` | those of that kind, in all layers |
//! | `layers.3`, `layers.3.attention`, `layers.3.attention.q_proj` | everything of a layer, of a part of it, of a module |
//! | `layers.3.experts.17`, `layers.0-3.experts.5-7`, `layers.*.experts.0` | single experts |
//! | `layers.*.attention.?_proj.weight` | canonical names, with `*`, `?` and `[…]` |

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use glob::Pattern;
use olmoe_model::config::{ModelConfig, closest};
use olmoe_model::model::ParameterId;
use olmoe_model::parameters::{MlpOf, ModulePart, ParameterKind, ParameterSpec};

use super::error::FinetuneError;

/// The words for kinds of parameters.
const WORDS: [&str; 10] =
    ["all", "embedding", "head", "norms", "biases", "attention", "router", "experts", "shared_expert", "mlp"];

/// The parameters that are trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    trained: Vec<bool>,
    /// Of stacks of which only some experts are trained, which ones.
    experts: BTreeMap<ParameterId, Vec<bool>>,
}

impl Selection {
    /// Resolves patterns for the parameters of a model, those of its adapters included, which are all trained.
    ///
    /// # Errors
    /// [`FinetuneError::Pattern`]: a pattern that means no parameter.
    pub fn resolve(
        patterns: &[String],
        config: &ModelConfig,
        specs: &[ParameterSpec],
    ) -> Result<Selection, FinetuneError> {
        let trained = specs.iter().map(|spec| spec.kind.is_of_adapter()).collect();
        let mut selection = Selection { trained, experts: BTreeMap::new() };
        for pattern in patterns {
            selection.add(pattern.trim(), config, specs)?;
        }
        Ok(selection)
    }

    /// Whether a parameter is trained, in whole or in part.
    pub fn is_trained(&self, id: ParameterId) -> bool {
        self.trained.get(id).copied().unwrap_or(false)
    }

    /// Of a stack of which only some experts are trained, which ones.
    pub fn experts(&self, id: ParameterId) -> Option<&[bool]> {
        self.experts.get(&id).map(|experts| &experts[..])
    }

    /// Whether every parameter is trained in whole.
    pub fn is_everything(&self) -> bool {
        self.experts.is_empty() && self.trained.iter().all(|trained| *trained)
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        !self.trained.contains(&true)
    }

    /// Trains experts of a layer besides.
    pub fn add_experts(&mut self, layer: usize, experts: impl Iterator<Item = usize> + Clone, specs: &[ParameterSpec]) {
        let of_layer = |spec: &ParameterSpec| spec.kind == ParameterKind::Expert && spec.module.layer == Some(layer);
        for (id, spec) in specs.iter().enumerate().filter(|(_, spec)| of_layer(spec)) {
            let count = spec.shape.first().copied().unwrap_or(0);
            if self.trained[id] && !self.experts.contains_key(&id) {
                continue;
            }
            let stack = self.experts.entry(id).or_insert_with(|| vec![false; count]);
            experts.clone().filter(|expert| *expert < count).for_each(|expert| stack[expert] = true);
            self.trained[id] = stack.contains(&true);
            if !stack.contains(&false) || !self.trained[id] {
                self.experts.remove(&id);
            }
        }
    }

    fn add(&mut self, pattern: &str, config: &ModelConfig, specs: &[ParameterSpec]) -> Result<(), FinetuneError> {
        let fault = |problem: String, advice: String| FinetuneError::Pattern {
            pattern: olmoe_model::config::shorten(pattern),
            problem,
            advice,
        };
        if let Some((layers, experts)) = single_experts(pattern) {
            let most = config.moe().map_or(0, |moe| moe.num_experts);
            let span = |text: &str, count: usize, what: &str| {
                let span = if text == "*" { (count > 0).then(|| 0..=count - 1) } else { span(text) };
                span.filter(|span| *span.end() < count && span.start() <= span.end()).ok_or_else(|| {
                    let problem = format!("names {what} {text}, of {count}");
                    fault(problem, format!("write a number below {count}, a span such as 0-3, or *"))
                })
            };
            let layers = span(layers, config.n_layers, "layers")?;
            let experts = span(experts, most, "experts")?;
            let before = self.clone();
            layers.for_each(|layer| self.add_experts(layer, experts.clone(), specs));
            let fresh = specs.iter().any(|spec| spec.kind == ParameterKind::Expert);
            return if *self != before || fresh {
                Ok(())
            } else {
                Err(fault("means no parameter".to_owned(), "these layers have no experts".to_owned()))
            };
        }
        let glob = match pattern.contains(['*', '?', '[']) {
            true => Some(Pattern::new(pattern).map_err(|error| {
                fault(format!("is no pattern: {error}"), "write *, ? or [abc] within a canonical name".to_owned())
            })?),
            false => None,
        };
        let matches = |spec: &ParameterSpec| match (&glob, word(pattern)) {
            (Some(glob), _) => glob.matches(&spec.name) || glob.matches(&spec.module.to_string()),
            (None, Some(of)) => of(spec),
            (None, None) => {
                let name = pattern.replace(".experts", ".moe.experts").replace(".moe.moe.", ".moe.");
                let name = name.replace(".router", ".moe.router").replace(".moe.moe.", ".moe.");
                spec.name == name || spec.name.strip_prefix(&name[..]).is_some_and(|rest| rest.starts_with('.'))
            }
        };
        let mut found = false;
        for (id, spec) in specs.iter().enumerate() {
            if !spec.kind.is_of_adapter() && matches(spec) {
                found = true;
                self.trained[id] = true;
                self.experts.remove(&id);
            }
        }
        if found {
            return Ok(());
        }
        let suggestion = closest(pattern, &WORDS).map_or(String::new(), |word| format!("did you mean {word}? "));
        let advice = format!(
            "{suggestion}write one of {}, the beginning of a canonical name such as layers.3.attention, single experts such as \
             layers.3.experts.17, or a name with * in it",
            WORDS.join(", ")
        );
        Err(fault("means no parameter of this model".to_owned(), advice))
    }
}

/// What a word for a kind of parameters means.
fn word(pattern: &str) -> Option<fn(&ParameterSpec) -> bool> {
    Some(match pattern {
        "all" => |_| true,
        "embedding" | "embed_tokens" => |spec| spec.kind == ParameterKind::Embedding,
        "head" | "lm_head" => |spec| spec.module.part == ModulePart::Head,
        "norms" | "norm" => |spec| {
            use ModulePart::{AttentionNorm, EmbeddingNorm, FinalNorm, KeyNorm, MlpNorm, QueryNorm};
            matches!(spec.module.part, AttentionNorm | EmbeddingNorm | FinalNorm | KeyNorm | MlpNorm | QueryNorm)
        },
        "biases" | "bias" => |spec| spec.kind == ParameterKind::Bias,
        "attention" => |spec| matches!(spec.module.part, ModulePart::Attention(_)),
        "router" | "routers" => |spec| spec.module.part == ModulePart::Router,
        "experts" => |spec| matches!(spec.module.part, ModulePart::Mlp(MlpOf::Experts, _)),
        "shared_expert" => |spec| matches!(spec.module.part, ModulePart::Mlp(MlpOf::SharedExpert, _)),
        "mlp" => |spec| matches!(spec.module.part, ModulePart::Mlp(MlpOf::Dense, _)),
        _ => return None,
    })
}

/// Layers and experts of `layers.3.experts.17` or `layers.3.moe.experts.17`.
fn single_experts(pattern: &str) -> Option<(&str, &str)> {
    let (layers, experts) = pattern.strip_prefix("layers.")?.split_once(".experts.")?;
    let counted = |text: &str| text == "*" || text.starts_with(|letter: char| letter.is_ascii_digit());
    let layers = layers.strip_suffix(".moe").unwrap_or(layers);
    (counted(layers) && counted(experts)).then_some((layers, experts))
}

/// `3` or `0-3`.
fn span(text: &str) -> Option<RangeInclusive<usize>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use olmoe_model::parameters::parameters;

    use super::*;

    fn config() -> ModelConfig {
        ModelConfig { n_layers: 4, ..ModelConfig::release() }
    }

    fn resolve(patterns: &[&str]) -> Result<Selection, FinetuneError> {
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        Selection::resolve(&patterns, &config(), &parameters(&config()))
    }

    fn names(patterns: &[&str]) -> Vec<String> {
        let selection = resolve(patterns).expect("good patterns");
        let specs = parameters(&config());
        let all = specs.iter().enumerate().filter(|(id, _)| selection.is_trained(*id));
        all.map(|(_, spec)| spec.name.clone()).collect()
    }

    #[test]
    fn patterns_name_parameters() {
        assert_eq!(names(&["all"]).len(), parameters(&config()).len());
        assert!(resolve(&["all"]).expect("good").is_everything() && resolve(&[]).expect("good").is_empty());
        assert_eq!(names(&["head"]), ["lm_head.weight"]);
        assert_eq!(names(&["embedding"]), ["embed_tokens.weight"]);
        assert_eq!(names(&["norms"]).len(), 4 * 4 + 1);
        assert_eq!(names(&["attention"]).len(), 4 * 4);
        let router = ["layers.2.moe.router.weight"];
        for pattern in ["layers.2.moe.router", "layers.2.router", "layers.2.moe.router.weight", "*.2.*.router*"] {
            assert_eq!(names(&[pattern]), router, "{pattern}");
        }
        assert_eq!(names(&["router", "layers.2.router"]).len(), 4);
        assert_eq!(names(&["layers.1"]).len(), 12);
        assert_eq!(names(&["layers.1.attention"]).len(), 6, "its norms included");
        assert_eq!(names(&["layers.*.attention.?_proj.weight"]).len(), 16);
        assert_eq!(names(&["layers.3.experts"]).len(), 3);
    }

    #[test]
    fn single_experts_are_a_part_of_their_stacks() {
        let selection = resolve(&["layers.3.experts.17", "layers.0-1.moe.experts.5-7"]).expect("good");
        let specs = parameters(&config());
        let mut trained = BTreeMap::new();
        for (id, spec) in specs.iter().enumerate().filter(|(id, _)| selection.is_trained(*id)) {
            let experts = selection.experts(id).expect("a part of it");
            let which: Vec<usize> = (0..64).filter(|expert| experts[*expert]).collect();
            assert_eq!((experts.len(), spec.kind), (64, ParameterKind::Expert));
            trained.entry(spec.module.layer.expect("in a layer")).or_insert_with(Vec::new).push(which);
        }
        let (five, one) = (vec![vec![5, 6, 7]; 3], vec![vec![17]; 3]);
        assert_eq!(trained, BTreeMap::from([(0, five.clone()), (1, five), (3, one)]));
        assert!(!selection.is_everything());
        // A whole stack is more than some of it, whichever comes first.
        for patterns in [["experts", "layers.3.experts.17"], ["layers.3.experts.17", "experts"]] {
            let selection = resolve(&patterns).expect("good");
            assert!((0..specs.len()).all(|id| selection.experts(id).is_none()));
        }
        assert!(resolve(&["layers.*.experts.*"]).expect("good") == resolve(&["experts"]).expect("good"));
    }

    #[test]
    fn patterns_without_a_meaning_are_refused() {
        for (pattern, expected) in [
            ("routr", "did you mean router?"),
            ("layers.4", "means no parameter"),
            ("layers.3.experts.64", "names experts 64, of 64"),
            ("layers.4.experts.1", "names layers 4, of 4"),
            ("layers.0.experts.5-2", "names experts 5-2"),
            ("shared_expert", "means no parameter"),
            ("layers.[", "is no pattern"),
            ("", "means no parameter"),
        ] {
            let error = resolve(&[pattern]).expect_err(pattern).to_string();
            assert!(error.contains(expected), "{pattern}: {error}");
        }
    }
}
