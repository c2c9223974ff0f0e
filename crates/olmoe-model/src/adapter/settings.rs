//! The settings of adapters as people write them, and the adapters of a model that they ask for.
//!
//! The names of settings and of matrices are peft's; those of Megatron-Bridge's fused matrices and of its options are
//! understood too. The numbers: `scale = α/r`, with rsLoRA `α/√r` (Kalajdzievski, arXiv 2312.03732).

use serde::{Deserialize, Serialize};

use super::paths::{KeyPattern, PatternError, Targets, ends_with, fused_path, matrices, peft_path};
use super::{Adapter, AdapterInit, Sharing};
use crate::config::{ModelConfig, closest, shorten};
use crate::identity::{MlpMatrix, MlpOf, ModuleId, ModulePart};
use crate::parameters::{ParameterKind, ParameterSpec};

/// peft's name for every matrix but the embedding and the head.
pub const ALL_LINEAR: &str = "all-linear";
/// The matrices that open-instruct adapts unless told otherwise.
pub const OPEN_INSTRUCT: &[&str] = &["q_proj", "o_proj", "v_proj", "k_proj", "gate_proj", "up_proj", "down_proj"];
/// The matrices that Megatron-Bridge adapts unless told otherwise.
pub const BRIDGE: &[&str] = &["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"];
/// Highest rank.
pub const MAX_RANK: usize = 1 << 16;

/// Names of several matrices, and of matrices by other programs: the name, and the names that it stands for.
const ALIASES: &[(&str, &[&str])] = &[
    ("linear_qkv", &["q_proj", "k_proj", "v_proj"]),
    ("linear_q", &["q_proj"]),
    ("linear_k", &["k_proj"]),
    ("linear_v", &["v_proj"]),
    ("linear_proj", &["o_proj"]),
    ("linear_fc1", &["gate_proj", "up_proj"]),
    ("linear_fc1_gate", &["gate_proj"]),
    ("linear_fc1_up", &["up_proj"]),
    ("linear_fc2", &["down_proj"]),
    ("router", &["gate"]),
    ("gate_up_proj", &["gate_proj", "up_proj"]),
];

/// What the experts of a layer have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertSharing {
    /// Nothing: each expert has its own A and B.
    #[default]
    PerExpert,
    /// A and B: Megatron-Bridge's `share_expert_adapters`.
    Shared,
    /// The sides towards the residual stream, which are A of gate and up and B of down: Megatron-Bridge's
    /// `experts_shared_outer_loras`.
    Outer,
}

impl ExpertSharing {
    /// The names, in the order of the variants.
    pub const NAMES: &[&str] = &["per_expert", "shared", "outer"];

    /// The sharing of a name.
    pub fn by_name(name: &str) -> Option<ExpertSharing> {
        let all = [ExpertSharing::PerExpert, ExpertSharing::Shared, ExpertSharing::Outer];
        Self::NAMES.iter().position(|known| *known == name).map(|at| all[at])
    }

    /// The sides that the adapter of a matrix shares.
    fn of(self, module: ModuleId) -> Sharing {
        let ModulePart::Mlp(MlpOf::Experts, which) = module.part else { return Sharing::PerExpert };
        match (self, which) {
            (ExpertSharing::PerExpert, _) => Sharing::PerExpert,
            (ExpertSharing::Shared, _) => Sharing::Both,
            (ExpertSharing::Outer, MlpMatrix::Down) => Sharing::B,
            (ExpertSharing::Outer, _) => Sharing::A,
        }
    }
}

/// The initialisation of adapters by its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitName {
    /// [`AdapterInit::Kaiming`], which peft calls `true`.
    #[default]
    Kaiming,
    /// [`AdapterInit::Xavier`].
    Xavier,
    /// [`AdapterInit::Gaussian`].
    Gaussian,
    /// The r largest singular values of the matrix, which the base loses (Meng et al., arXiv 2404.02948).
    Pissa,
}

impl InitName {
    /// The names, in the order of the variants.
    pub const NAMES: &[&str] = &["kaiming", "xavier", "gaussian", "pissa"];

    /// The initialisation of a name.
    pub fn by_name(name: &str) -> Option<InitName> {
        let all = [InitName::Kaiming, InitName::Xavier, InitName::Gaussian, InitName::Pissa];
        let name = if name == "true" { "kaiming" } else { name };
        Self::NAMES.iter().position(|known| *known == name).map(|at| all[at])
    }

    /// The distribution of A; `pissa` is refused before.
    fn drawn(self) -> AdapterInit {
        match self {
            InitName::Kaiming | InitName::Pissa => AdapterInit::Kaiming,
            InitName::Xavier => AdapterInit::Xavier,
            InitName::Gaussian => AdapterInit::Gaussian,
        }
    }
}

/// The settings of adapters. The defaults are peft's, and the matrices are those of open-instruct.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSettings {
    /// Rank r (peft `r`, Megatron-Bridge `dim`); default 8.
    pub rank: usize,
    /// α (peft `lora_alpha`); default 8.
    pub alpha: f64,
    /// Whether the scale is α/√r in place of α/r (peft `use_rslora`).
    pub rslora: bool,
    /// Whether the adapters have magnitudes (peft `use_dora`).
    pub dora: bool,
    /// The share of the inputs of A that is dropped in training (peft `lora_dropout`); default 0.
    pub dropout: f32,
    /// Ranks of some matrices by peft's patterns; of several that fit, the first counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// α of some matrices, in the same way.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Names of matrices: peft's, Megatron-Bridge's, canonical ones, ends of paths, names with `*`; [`ALL_LINEAR`]; or one
    /// regular expression for whole paths.
    pub targets: Vec<String>,
    /// Matrices among them that have no adapter, by the same names.
    pub exclude: Vec<String>,
    /// The layers to adapt (peft `layers_to_transform`); `None` for all. With layers, embedding and head have no adapter.
    pub layers: Option<Vec<usize>>,
    /// What the experts of a layer have in common.
    pub sharing: ExpertSharing,
    /// Whether the rank of the experts' adapters is divided by the experts that a token chooses (Megatron-Bridge
    /// `normalize_moe_lora`).
    pub rank_by_top_k: bool,
    /// The initial values of A.
    pub init: InitName,
    /// Factor on the learning rate of B (LoRA+, arXiv 2402.12354; peft `loraplus_lr_ratio`); default 1.
    pub b_rate_factor: f64,
}

impl Default for AdapterSettings {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 8.0,
            rslora: false,
            dora: false,
            dropout: 0.0,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            targets: OPEN_INSTRUCT.iter().map(|&name| name.to_owned()).collect(),
            exclude: Vec::new(),
            layers: None,
            sharing: ExpertSharing::PerExpert,
            rank_by_top_k: false,
            init: InitName::Kaiming,
            b_rate_factor: 1.0,
        }
    }
}

/// Settings that no adapters can be made by.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdapterSettingsError {
    /// A number out of range.
    #[error("{setting} is {found}, expected {expected}")]
    Number {
        /// The setting.
        setting: String,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A name that no matrix has.
    #[error("no matrix of this model is called {name:?}{}; there are {}", suggestion(name, known), known.join(", "))]
    NoMatrix {
        /// The name.
        name: String,
        /// The names of its matrices.
        known: Vec<&'static str>,
    },
    /// Nothing is chosen, or all of it is excluded.
    #[error("the settings choose no matrix: {reason}")]
    Nothing {
        /// Why.
        reason: String,
    },
    /// A layer that the model lacks.
    #[error("there is no layer {found}; the model has {layers}, counted from 0")]
    NoLayer {
        /// The layer.
        found: usize,
        /// Layers.
        layers: usize,
    },
    /// A name of one expert's matrix.
    #[error(
        "{name:?} is the matrix of one expert; an adapter is put on all experts of a layer, so leave the number out"
    )]
    OneExpert {
        /// The name.
        name: String,
    },
    /// A rank that the experts cannot divide.
    #[error(
        "the rank {rank} is no multiple of {top_k}, the experts that a token chooses; give one, or do not divide it"
    )]
    Rank {
        /// r
        rank: usize,
        /// K
        top_k: usize,
    },
    /// An initialisation that changes the base.
    #[error("pissa takes the largest singular values out of the base, which stays as it is here; use kaiming, xavier or gaussian")]
    Pissa,
    /// A pattern that cannot be used.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A pattern of ranks or alphas that fits no adapter.
    #[error("{setting}: {pattern:?} fits no matrix that has an adapter; take it out, or correct it")]
    Idle {
        /// `rank_pattern` or `alpha_pattern`.
        setting: &'static str,
        /// The pattern.
        pattern: String,
    },
}

fn suggestion(name: &str, known: &[&'static str]) -> String {
    closest(name, known).map_or(String::new(), |name| format!(", did you mean {name:?}?"))
}

/// A matrix, and the paths by which patterns may find it.
struct Candidate {
    spec: ParameterSpec,
    paths: Vec<String>,
}

impl Candidate {
    fn all(config: &ModelConfig) -> Vec<Candidate> {
        let paths = |spec: &ParameterSpec| {
            let mut paths: Vec<String> = peft_path(spec.module, 0).into_iter().collect();
            paths.extend(fused_path(spec.module));
            paths.push(spec.module.to_string());
            paths
        };
        matrices(config).map(|spec| Candidate { paths: paths(&spec), spec }).collect()
    }

    fn any(&self, fits: impl Fn(&str) -> bool) -> bool {
        self.paths.iter().any(|path| fits(path))
    }

    /// Whether a name, with or without `*`, or a canonical part of it fits.
    fn is_called(&self, name: &str) -> bool {
        match name.contains('*') {
            true => self.any(|path| wildcard(name.as_bytes(), path.as_bytes())),
            false => self.any(|path| ends_with(path, name)),
        }
    }
}

/// Whether a name with `*` for any letters fits a whole text.
fn wildcard(name: &[u8], text: &[u8]) -> bool {
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for &letter in name {
        if letter == b'*' {
            let first = reached.iter().position(|at| *at).unwrap_or(reached.len());
            reached[first..].fill(true);
        } else {
            for at in (0..text.len()).rev() {
                reached[at + 1] = reached[at] && text[at] == letter;
            }
            reached[0] = false;
        }
    }
    reached[text.len()]
}

/// Whether a text is a regular expression rather than a name, in which dots stand for themselves and `*` may stand for whole
/// names.
fn is_pattern(text: &str) -> bool {
    let within = |(at, _): (usize, &str)| !matches!(text.as_bytes().get(at + 2), None | Some(b'.'));
    text.contains(['\\', '(', '[', '|', '^', '$', '+', '?'])
        || text.starts_with(".*")
        || text.match_indices(".*").any(within)
}

impl AdapterSettings {
    /// Megatron-Bridge's defaults: rank and α 32, A initialised by Xavier's rule, adapters of attention and experts,
    /// shared by all experts of a layer.
    pub fn bridge() -> AdapterSettings {
        AdapterSettings {
            rank: 32,
            alpha: 32.0,
            targets: BRIDGE.iter().map(|&name| name.to_owned()).collect(),
            sharing: ExpertSharing::Shared,
            init: InitName::Xavier,
            ..AdapterSettings::default()
        }
    }

    /// The factor on the learning rate of a parameter.
    pub fn rate_factor(&self, kind: ParameterKind) -> f64 {
        if kind == ParameterKind::LoraB { self.b_rate_factor } else { 1.0 }
    }

    /// The adapters of a model, in canonical order of their matrices.
    ///
    /// # Errors
    /// [`AdapterSettingsError`]: a number out of range, and a name or pattern that fits nothing.
    pub fn resolve(&self, config: &ModelConfig) -> Result<Vec<Adapter>, AdapterSettingsError> {
        self.check()?;
        let candidates = Candidate::all(config);
        let mut chosen = self.chosen(&candidates, &self.targets)?;
        if !self.exclude.is_empty() {
            let excluded = self.chosen(&candidates, &self.exclude)?;
            chosen.iter_mut().zip(excluded).for_each(|(chosen, excluded)| *chosen &= !excluded);
        }
        if let Some(layers) = &self.layers {
            if let Some(&found) = layers.iter().find(|layer| **layer >= config.n_layers) {
                return Err(AdapterSettingsError::NoLayer { found, layers: config.n_layers });
            }
            for (chosen, candidate) in chosen.iter_mut().zip(&candidates) {
                *chosen &= candidate.spec.module.layer.is_some_and(|layer| layers.contains(&layer));
            }
        }
        let chosen: Vec<&Candidate> =
            candidates.iter().zip(&chosen).filter(|pair| *pair.1).map(|pair| pair.0).collect();
        if chosen.is_empty() {
            let reason = match (&self.layers, self.exclude.is_empty()) {
                (Some(_), _) => "in the layers given there is none of them".to_owned(),
                (None, false) => "all of them are excluded".to_owned(),
                (None, true) => "no names are given".to_owned(),
            };
            return Err(AdapterSettingsError::Nothing { reason });
        }
        let ranks = patterns("rank_pattern", &self.rank_pattern, &chosen)?;
        let alphas = patterns("alpha_pattern", &self.alpha_pattern, &chosen)?;
        let top_k = config.moe().map_or(1, |moe| moe.top_k.max(1));
        let adapter = |candidate: &&Candidate| {
            let first = |patterns: &[KeyPattern]| {
                patterns.iter().position(|pattern| candidate.any(|path| pattern.matches(path)))
            };
            let mut rank = first(&ranks).map_or(self.rank, |at| self.rank_pattern[at].1);
            let alpha = first(&alphas).map_or(self.alpha, |at| self.alpha_pattern[at].1);
            if self.rank_by_top_k && candidate.spec.kind == ParameterKind::Expert {
                if !rank.is_multiple_of(top_k) {
                    return Err(AdapterSettingsError::Rank { rank, top_k });
                }
                rank /= top_k;
            }
            Ok(Adapter {
                module: candidate.spec.module,
                rank,
                scale: scale(alpha, rank, self.rslora),
                dora: self.dora,
                share: self.sharing.of(candidate.spec.module),
                dropout: self.dropout,
                init: self.init.drawn(),
            })
        };
        chosen.iter().map(adapter).collect()
    }

    /// Which of the candidates any of the names chooses.
    fn chosen(&self, candidates: &[Candidate], names: &[String]) -> Result<Vec<bool>, AdapterSettingsError> {
        let mut chosen = vec![false; candidates.len()];
        for name in names {
            let mut found = false;
            let targets = if is_pattern(name) { Some(Targets::pattern(name)?) } else { None };
            for (chosen, candidate) in chosen.iter_mut().zip(candidates) {
                let fits = match &targets {
                    Some(targets) => candidate.any(|path| targets.matches(path)),
                    None if name == ALL_LINEAR => {
                        !matches!(candidate.spec.module.part, ModulePart::Embedding | ModulePart::Head)
                    }
                    None => meanings(name).iter().any(|name| candidate.is_called(name)),
                };
                (*chosen, found) = (*chosen || fits, found || fits);
            }
            if !found {
                if name
                    .split('.')
                    .collect::<Vec<_>>()
                    .windows(2)
                    .any(|pair| pair[0] == "experts" && pair[1].parse::<usize>().is_ok())
                {
                    return Err(AdapterSettingsError::OneExpert { name: shorten(name) });
                }
                return Err(AdapterSettingsError::NoMatrix { name: shorten(name), known: known(candidates) });
            }
        }
        Ok(chosen)
    }

    /// Checks the numbers.
    fn check(&self) -> Result<(), AdapterSettingsError> {
        let number = |setting: &str, found: String, expected| {
            Err(AdapterSettingsError::Number { setting: setting.to_owned(), found, expected })
        };
        let ranks = self.rank_pattern.iter().map(|(key, rank)| (format!("rank_pattern {key:?}"), *rank));
        for (setting, rank) in [("the rank".to_owned(), self.rank)].into_iter().chain(ranks) {
            if !(1..=MAX_RANK).contains(&rank) {
                return number(&setting, rank.to_string(), "a whole number from 1 to 65536");
            }
        }
        let alphas = self.alpha_pattern.iter().map(|(key, alpha)| (format!("alpha_pattern {key:?}"), *alpha));
        for (setting, alpha) in [("alpha".to_owned(), self.alpha)].into_iter().chain(alphas) {
            if !alpha.is_finite() || alpha <= 0.0 {
                return number(&setting, alpha.to_string(), "a finite number above 0");
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return number("the dropout", self.dropout.to_string(), "a number from 0 up to, but not including, 1");
        }
        if !self.b_rate_factor.is_finite() || self.b_rate_factor <= 0.0 {
            return number(
                "the factor on B's learning rate",
                self.b_rate_factor.to_string(),
                "a finite number above 0",
            );
        }
        if self.init == InitName::Pissa {
            return Err(AdapterSettingsError::Pissa);
        }
        if self.targets.is_empty() {
            return Err(AdapterSettingsError::Nothing { reason: "no names are given".to_owned() });
        }
        Ok(())
    }
}

/// α/r, or α/√r.
pub fn scale(alpha: f64, rank: usize, rslora: bool) -> f32 {
    let rank = rank as f64;
    (alpha / if rslora { rank.sqrt() } else { rank }) as f32
}

/// The names that a name stands for. Only the last part of a path has other names.
fn meanings(name: &str) -> Vec<String> {
    let (before, last) = name.rsplit_once('.').map_or(("", name), |(before, last)| (before, last));
    let joined = |last: &str| if before.is_empty() { last.to_owned() } else { format!("{before}.{last}") };
    let known = ALIASES.iter().find(|alias| alias.0 == last);
    let mut names = vec![name.to_owned()];
    names.extend(known.into_iter().flat_map(|alias| alias.1).map(|last| joined(last)));
    names
}

/// The last names of the paths of the matrices, each once.
fn known(candidates: &[Candidate]) -> Vec<&'static str> {
    let all = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate",
        "gate_proj",
        "up_proj",
        "down_proj",
        "embed_tokens",
        "lm_head",
    ];
    let exists = |name: &&str| candidates.iter().any(|candidate| candidate.paths[0].rsplit('.').next() == Some(name));
    all.into_iter().filter(exists).chain([ALL_LINEAR]).collect()
}

/// The patterns of a setting, each of which has to fit one of the matrices.
fn patterns<T>(
    setting: &'static str,
    pairs: &[(String, T)],
    chosen: &[&Candidate],
) -> Result<Vec<KeyPattern>, AdapterSettingsError> {
    let pattern = |(key, _): &(String, T)| {
        let pattern = KeyPattern::new(key)?;
        match chosen.iter().any(|candidate| candidate.any(|path| pattern.matches(path))) {
            true => Ok(pattern),
            false => Err(AdapterSettingsError::Idle { setting, pattern: shorten(key) }),
        }
    };
    pairs.iter().map(pattern).collect()
}

#[cfg(test)]
mod tests;
