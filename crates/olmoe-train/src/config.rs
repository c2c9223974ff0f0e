//! The configuration of a training run: OLMo's YAML files as they are, and one section more, [`SamplesConfig`].
//!
//! | module | what it holds |
//! |---|---|
//! | `schema` | the sections: every key of OLMo's, with its default |
//! | `field` | how a section is declared, read and written |
//! | [`duration`] | how long to train |
//! | [`progress`] | `max_duration`, `stop_at`, and what they come to in a run |
//! | `interpolation` | `${…}` |
//! | `overrides` | `--section.key=value` |
//! | `check` | which values make no sense; what has to be there when training begins |
//! | `notices` | what keys come to here, where that is not what they say |
//! | `yaml` | writing it all out |

mod check;
pub mod duration;
mod error;
pub(crate) mod field;
pub(crate) mod interpolation;
mod notices;
mod overrides;
pub mod progress;
mod schema;
pub(crate) mod yaml;

pub use duration::Duration;
pub use error::TrainConfigError;
pub(crate) use field::count;
pub use field::{Count, Key, Unsupported, Words};
pub use interpolation::Environment;
pub use notices::Notice;
pub use progress::Progress;
pub use schema::{
    ActivationCheckpointing, CompilerConfig, DataConfig, DdpConfig, DdpGradSyncMode, DistributedStrategy,
    EvaluatorConfig, EvaluatorType, FsdpConfig, FsdpPrecision, FsdpWrapStrategy, InstanceFilterConfig, OptimizerConfig,
    OptimizerName, PaddingDirection, SamplesConfig, SchedulerConfig, SchedulerName, SchedulerUnits,
    ShardedCheckpointer, ShardingStrategy, SingleGpuConfig, SpeedMonitorConfig, TokenType, TokenizerConfig,
    TrainConfig, TrainPrecision, TruncationDirection, WandbConfig,
};

use std::collections::BTreeMap;
use std::path::Path;

use olmoe_data::expanded;
use olmoe_model::config::{ModelConfig, parse_yaml, read_text};
use olmoe_model::model::Precision;
use serde_json::Value;

use field::{At, Field, Tree};

/// A configuration and what there is to say about how it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded<C = TrainConfig> {
    /// The configuration, checked.
    pub config: C,
    /// Everything that was accepted and does nothing here, or not what it says; show it once.
    pub notices: Vec<Notice>,
}

impl TrainConfig {
    /// Reads a file, changes it as the overrides say, resolves interpolations, and checks the result. Files of data are not
    /// looked for: [`check_start`](Self::check_start).
    ///
    /// # Errors
    /// What [`TrainConfigError`] says.
    pub fn read(path: impl AsRef<Path>, overrides: &[impl AsRef<str>]) -> Result<Loaded, TrainConfigError> {
        let path = path.as_ref();
        let text = read_text(path).map_err(TrainConfigError::File)?;
        Self::from_yaml(&text, overrides, &|name| std::env::var(name).ok())
            .map_err(|source| TrainConfigError::InFile { path: path.into(), source: Box::new(source) })
    }

    /// As [`read`](Self::read), of a text, with another environment.
    ///
    /// # Errors
    /// What [`TrainConfigError`] says.
    pub fn from_yaml(
        text: &str,
        overrides: &[impl AsRef<str>],
        environment: Environment<'_>,
    ) -> Result<Loaded, TrainConfigError> {
        let mut file = parse_yaml(text).map_err(TrainConfigError::File)?;
        let mut notices = Vec::new();
        older_settings(&mut file);
        for text in overrides {
            overrides::apply(&mut file, text.as_ref())?;
        }
        if file.as_object().is_some_and(|top| top.get("model").is_none_or(Value::is_null)) {
            // A misspelled key says more than the missing model.
            field::section(&file, &At::Top, Self::KEYS)?;
            return Err(TrainConfigError::NoModel);
        }
        // The model's defaults are another branch's, so that none stands for a key of it.
        let mut defaults = Self::default().tree().value();
        defaults.as_object_mut().map(|top| top.remove("model"));
        let file = interpolation::resolve(&file, &defaults, environment, &mut notices)?;

        let mut config = Self::read_value(&file)?;
        let model = ModelConfig::from_olmo_value(&file).map_err(TrainConfigError::Model)?;
        notices.extend(
            model.notices.into_iter().map(|notice| Notice { key: format!("model.{}", notice.key), text: notice.text }),
        );
        if let Some(no_decay) = config.optimizer.no_decay_norm_and_bias.take() {
            config.optimizer.decay_norm_and_bias = !no_decay;
            config.optimizer.decay_embeddings = !no_decay;
            notices.push(Notice {
                key: "optimizer.no_decay_norm_and_bias".into(),
                text: "an older key: it decides over `decay_norm_and_bias` and `decay_embeddings`; set those".into(),
            });
        }
        config.expand_paths();
        check::check(&config)?;
        notices.extend(config.notices());
        Ok(Loaded { config, notices })
    }

    /// Puts the home directory and variables into the paths, which no shell saw.
    fn expand_paths(&mut self) {
        let evaluators = self.evaluators.iter_mut().map(|evaluator| &mut evaluator.data);
        let data = std::iter::once(&mut self.data).chain(evaluators).flat_map(|data| {
            let lists = data.paths.iter_mut().chain(&mut data.label_mask_paths);
            lists.chain(data.datasets.iter_mut().flat_map(BTreeMap::values_mut)).flatten()
        });
        let single = [&mut self.save_folder, &mut self.tokenizer.identifier];
        for path in single.into_iter().chain(&mut self.load_path).chain(data) {
            *path = expanded(Path::new(path)).to_string_lossy().into_owned();
        }
    }

    fn read_value(file: &Value) -> Result<Self, TrainConfigError> {
        <Self as Field>::read(file, &At::Top)
    }

    /// All keys in OLMo's order, for OLMo's trainer as well as for this one; reading it gives the same configuration again.
    ///
    /// OLMo refuses keys that it does not know, and its main branch and that for mixtures of experts do not know the same ones.
    /// A key that one of them does not have is left out where its value is the default, which what reads the file has anyway.
    ///
    /// # Errors
    /// [`TrainConfigError::Model`] for a model that a section cannot describe, as one that was made from other files.
    pub fn to_yaml(&self) -> Result<String, TrainConfigError> {
        schema::check_model(&self.model).map_err(TrainConfigError::Model)?;
        let mut tree = self.tree();
        let unset = Tree::Value(Value::Null);
        // This program's own, and those of the main branch.
        for key in ["samples", "evaluation_data", "ratios", "custom_dataset", "dynamic"] {
            tree.remove(key, &unset);
        }
        tree.remove("single", &SingleGpuConfig::default().tree());
        // Of a third branch, for layers that are not all mixtures.
        tree.remove("moe_interleave", &Tree::Value(false.into()));
        if self.model.moe().is_none() {
            // The main branch has no mixtures.
            tree.remove("moe_loss_weight", &Tree::Value(0.1.into()));
            tree.remove("moe_zloss_weight", &unset);
        }
        Ok(yaml::write(&tree))
    }

    /// The seed of the order of the training data.
    pub fn data_seed(&self) -> u64 {
        self.data.seed.unwrap_or(self.seed)
    }

    /// The number formats of training, if they are set.
    pub fn precision(&self) -> Option<Precision> {
        self.precision.map(|precision| match precision {
            TrainPrecision::AmpBf16 => Precision::AmpBf16,
            TrainPrecision::Fp32 => Precision::Fp32,
        })
    }

    /// Whether the metrics of every parameter are recorded at a step.
    ///
    /// OLMo records them only for `wandb`, and at most as often as it logs there; without that section the optimizer's own
    /// interval decides, and none means never.
    pub fn records_metrics(&self, step: u64) -> bool {
        let interval = match (&self.wandb, self.optimizer.metrics_log_interval) {
            (Some(wandb), own) => Some(wandb.log_interval.max(own.unwrap_or(1))),
            (None, own) => own,
        };
        interval.is_some_and(|interval| step.is_multiple_of(interval))
    }
}

/// Settings of older files that later ones write differently.
fn older_settings(file: &mut Value) {
    if let Some(mode @ Value::Bool(_)) = file.get_mut("activation_checkpointing") {
        *mode = if *mode == Value::Bool(true) { "whole_layer".into() } else { Value::Null };
    }
    if let Some(optimizer) = file.get_mut("optimizer").and_then(Value::as_object_mut)
        && optimizer.get("name").is_some_and(|name| name == "decoupled_lionw")
    {
        optimizer.insert("name".into(), "lionw".into());
        optimizer.remove("eps");
    }
}
