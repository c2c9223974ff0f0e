//! What the keys of a configuration come to: sources of rows, how they are encoded, adapters, and the settings of the loop.

use std::path::{Path, PathBuf};

use olmoe_data::expanded;
use olmoe_data::instruct::{
    Amount, EncodeOptions, InstructError, Purpose, ReadOptions, Share, Source, Spans, Trained, pack, shares,
};
use olmoe_model::adapter::settings::{AdapterSettings, ExpertSharing as Sharing, InitName, OPEN_INSTRUCT};
use olmoe_model::config::{Auxiliary, AuxiliaryDefinition, ModelConfig};
use olmoe_model::model::{Keep, Precision};

use super::Task;
use super::schema::{
    ActivationMode, BalancingDefinition, ExpertSharing, FinetuneConfig, LoraInit, LrScheduler, TrainOn,
};
use crate::config::{OptimizerConfig, OptimizerName, TrainConfigError, TrainPrecision};
use crate::finetune::settings::{
    DpoSettings, EsftScore, EsftSettings, EvaluationSettings, FinetuneSettings, KtoTraining, Method, MicroBatch,
    PackingSettings, ReferenceModel, ReferenceSettings, ReferenceTime, RunLength, SaveSettings, ScheduleSettings,
    ScheduleShape, SftSettings, Warmup,
};
use crate::loss::Reduction;
use crate::preference::PreferenceSettings;
use crate::preference::kto::KtoSettings;

/// Most tokens of a sequence where nothing is said and the model takes more.
const USUAL_LENGTH: usize = 4096;
/// The names of several matrices with adapters, and theirs.
const GROUPS: [(&str, &[&str]); 3] = [
    ("attention", &["q_proj", "k_proj", "v_proj", "o_proj"]),
    ("experts", &["gate_proj", "up_proj", "down_proj"]),
    ("mlp", &["gate_proj", "up_proj", "down_proj"]),
];

/// How much data a run has, which intervals in epochs depend on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DataSize<'a> {
    /// Tokens of each row that is learned.
    pub lengths: &'a [usize],
    /// Whether there are rows to evaluate on.
    pub evaluates: bool,
}

/// A name of data: an existing file or folder as it is, with the home directory put in.
///
/// # Errors
/// A name that nothing here has; what to do if it is a data set of the hub.
pub fn file_of_rows(key: &'static str, name: &str) -> Result<PathBuf, TrainConfigError> {
    let path = expanded(Path::new(name));
    let pattern = path.file_name().is_some_and(|name| name.to_string_lossy().contains('*'));
    if path.exists() || pattern {
        return Ok(path);
    }
    let is_of_hub = name.split('/').count() == 2 && !name.starts_with(['.', '/', '~']);
    let problem = match is_of_hub {
        true => {
            "no file or folder of this name is here; a data set of the hub has to be downloaded first \
             (huggingface-cli download --repo-type dataset NAME --local-dir FOLDER), and its folder named"
        }
        false => "there is no such file or folder; check the name",
    };
    Err(TrainConfigError::Value { path: key.to_owned(), found: name.to_owned(), problem })
}

impl Task {
    /// What rows are for.
    pub fn purpose(self) -> Purpose {
        match self {
            Task::Sft => Purpose::Samples,
            Task::Dpo => Purpose::Pairs,
            Task::Kto => Purpose::Judged,
        }
    }
}

impl FinetuneConfig {
    /// Whether adapters are trained.
    pub fn has_adapters(&self) -> bool {
        self.use_lora || self.use_dora || self.use_rslora || self.adapter_name_or_path.is_some()
    }

    /// The sources of the training data.
    ///
    /// # Errors
    /// No data, names that nothing has, amounts that are none.
    pub fn sources(&self, task: Task) -> Result<Vec<Source>, TrainConfigError> {
        let whole = || Amount::Fraction(1.0);
        let source = |key, name: &str, amount, options| Ok(Source { path: file_of_rows(key, name)?, amount, options });
        let amounts = |key: &'static str, list: &[String]| {
            shares(list).map_err(|error| match error {
                InstructError::Setting { value, .. } => TrainConfigError::Value {
                    path: key.to_owned(),
                    found: value,
                    problem: "expected sources and amounts in turn: a fraction such as 0.5, rows such as 1000, or times such as 2x",
                },
                other => TrainConfigError::Value { path: key.to_owned(), found: other.to_string(), problem: "correct it" },
            })
        };
        let of_shares = |key, shares: Vec<Share>| {
            shares.into_iter().map(|share| source(key, &share.source, share.amount, self.read_options())).collect()
        };
        if !self.dataset_mixer_list.is_empty() {
            return of_shares("dataset_mixer_list", amounts("dataset_mixer_list", &self.dataset_mixer_list)?);
        }
        if !self.dataset_mixer.is_empty() {
            let list: Vec<String> =
                self.dataset_mixer.iter().flat_map(|(name, amount)| [name.clone(), amount.clone()]).collect();
            return of_shares("dataset_mixer", amounts("dataset_mixer", &list)?);
        }
        if let Some(name) = &self.dataset_name {
            return Ok(vec![source("dataset_name", name, whole(), self.read_options())?]);
        }
        if !self.train_file.is_empty() {
            return self
                .train_file
                .iter()
                .map(|name| source("train_file", name, whole(), self.read_options()))
                .collect();
        }
        if !self.datasets.is_empty() {
            let one = |own: &super::SourceConfig| {
                let amount = match &own.amount {
                    None => whole(),
                    Some(amount) => {
                        let list = [own.path.clone(), amount.clone()];
                        amounts("datasets", &list)?.first().map_or(whole(), |share| share.amount)
                    }
                };
                let mut options = self.read_options();
                options.format = own.format.or(options.format);
                options.columns.extend(own.columns.clone());
                source("datasets", &own.path, amount, options)
            };
            return self.datasets.iter().map(one).collect();
        }
        let advice = match task {
            Task::Kto => {
                "name files or folders of rows, such as --train_file answers.jsonl; the script of OLMoE's README has its own \
                 built in: train_prefs of HuggingFaceH4/ultrafeedback_binarized, whose files can be named here"
            }
            _ => "name files or folders of rows, such as --train_file chats.jsonl",
        };
        Err(TrainConfigError::Missing { path: "dataset_mixer_list", advice })
    }

    /// The files of rows to evaluate on.
    ///
    /// # Errors
    /// Names that nothing has.
    pub fn evaluation_sources(&self) -> Result<Vec<Source>, TrainConfigError> {
        let source = |name: &String| {
            let path = file_of_rows("eval_file", name)?;
            Ok(Source { path, amount: Amount::Fraction(1.0), options: self.read_options() })
        };
        self.eval_file.iter().map(source).collect()
    }

    /// How files are read that have no options of their own.
    pub fn read_options(&self) -> ReadOptions {
        ReadOptions { format: self.dataset_format, columns: self.columns.clone(), alpaca: self.alpaca_prompt.into() }
    }

    /// Most tokens of a sequence.
    ///
    /// # Errors
    /// More than the model takes.
    pub fn length(&self, model: &ModelConfig) -> Result<usize, TrainConfigError> {
        let most = model.max_sequence_length;
        match self.max_seq_length.map(|length| usize::try_from(length).unwrap_or(usize::MAX)) {
            None => Ok(most.min(USUAL_LENGTH)),
            Some(length) if length <= most => Ok(length),
            Some(length) => Err(TrainConfigError::Value {
                path: "max_seq_length".to_owned(),
                found: format!("{length}, and the model takes {most} tokens"),
                problem: "set it to that at most",
            }),
        }
    }

    /// How rows are encoded for a model; `marks` is whether the template marks answers.
    ///
    /// # Errors
    /// A length that the model does not take.
    pub fn encode_options(&self, model: &ModelConfig, marks: bool) -> Result<EncodeOptions, TrainConfigError> {
        let trained = match &self.train_on[..] {
            [one] => match one.parse() {
                Ok(TrainOn::Answers) => Trained::Answers,
                Ok(TrainOn::LastAnswer) => Trained::LastAnswer,
                Ok(TrainOn::Everything) => Trained::Everything,
                Err(_) => Trained::Roles(vec![one.clone()]),
            },
            roles => Trained::Roles(roles.to_vec()),
        };
        let usual = if marks && trained == Trained::Answers { Spans::Blocks } else { Spans::Offsets };
        let prompt = self.max_prompt_length.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        Ok(EncodeOptions {
            spans: self.label_spans.map_or(usual, Spans::from),
            trained,
            max_length: Some(self.length(model)?),
            overlong: self.truncation.overlong(prompt),
            begin_texts: self.add_bos == Some(true),
        })
    }

    /// The adapters that are asked for; none: none are.
    pub fn adapter_settings(&self) -> Option<AdapterSettings> {
        if !self.has_adapters() {
            return None;
        }
        let names = |list: &[String]| -> Vec<String> {
            // A regular expression may have commas.
            let is_list = |name: &str| !name.contains(['(', '[', '{', '\\']);
            let words = list.iter().flat_map(|name| match is_list(name) {
                true => name.split(',').map(str::trim).filter(|word| !word.is_empty()).collect(),
                false => vec![name.as_str()],
            });
            let group = |word: &str| GROUPS.iter().find(|(name, _)| *name == word).map(|(_, all)| *all);
            let mut all: Vec<String> = Vec::new();
            for word in words {
                let own =
                    group(word).map_or(vec![word.to_owned()], |all| all.iter().map(|&name| name.into()).collect());
                own.into_iter().for_each(|name| {
                    if !all.contains(&name) {
                        all.push(name);
                    }
                });
            }
            all
        };
        let targets = match names(&self.lora_target) {
            none if none.is_empty() => OPEN_INSTRUCT.iter().map(|&name| name.to_owned()).collect(),
            some => some,
        };
        let number = |x: u64| usize::try_from(x).unwrap_or(usize::MAX);
        Some(AdapterSettings {
            rank: number(self.lora_rank),
            alpha: self.lora_alpha.unwrap_or(2.0 * self.lora_rank as f64),
            rslora: self.use_rslora,
            dora: self.use_dora,
            dropout: self.lora_dropout as f32,
            rank_pattern: self.rank_pattern.iter().map(|(key, rank)| (key.clone(), number(*rank))).collect(),
            alpha_pattern: self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), *alpha)).collect(),
            targets,
            exclude: names(&self.lora_exclude),
            layers: match &self.layers_to_transform[..] {
                [] => None,
                layers => Some(layers.iter().map(|layer| number(*layer)).collect()),
            },
            sharing: match self.lora_sharing {
                ExpertSharing::PerExpert => Sharing::PerExpert,
                ExpertSharing::Shared => Sharing::Shared,
                ExpertSharing::Outer => Sharing::Outer,
            },
            rank_by_top_k: false,
            init: match self.lora_init {
                LoraInit::Kaiming => InitName::Kaiming,
                LoraInit::Xavier => InitName::Xavier,
                LoraInit::Gaussian => InitName::Gaussian,
                LoraInit::Pissa => InitName::Pissa,
            },
            b_rate_factor: self.loraplus_lr_ratio.unwrap_or(1.0),
        })
    }

    /// Rows of a forward and backward pass, and passes of a step.
    pub fn batch(&self, task: Task) -> (u64, u64) {
        let usual = match task {
            _ if self.packing.packing().is_some() => 1,
            Task::Sft => 8,
            Task::Dpo | Task::Kto => 4,
        };
        match (self.per_device_train_batch_size, self.global_batch_size) {
            (Some(part), Some(all)) => (part, (all / part).max(1)),
            (None, Some(all)) => {
                // The largest part of a step that is not above the usual.
                let part = (1..=usual.min(all)).rev().find(|part| all.is_multiple_of(*part)).unwrap_or(1);
                (part, all / part)
            }
            (part, None) => (part.unwrap_or(usual), self.gradient_accumulation_steps.unwrap_or(1)),
        }
    }

    /// The settings of the loop, without adapters, samples and files, which are found out elsewhere.
    ///
    /// # Errors
    /// Lengths that the model does not take.
    pub fn settings(
        &self,
        task: Task,
        model: &ModelConfig,
        data: DataSize<'_>,
    ) -> Result<FinetuneSettings, TrainConfigError> {
        let (part, passes) = self.batch(task);
        let number = |x: u64| usize::try_from(x).unwrap_or(usize::MAX);
        let length = self.length(model)?;
        let batch_size = number(part.saturating_mul(passes));
        let packing = self.packing.packing().map(|rule| PackingSettings { length, rule });
        let units = match packing {
            None => data.lengths.len(),
            Some(PackingSettings { length, rule }) => {
                let order: Vec<u32> = (0..u32::try_from(data.lengths.len()).unwrap_or(u32::MAX)).collect();
                pack(&order, data.lengths, length, rule).map_or(data.lengths.len(), |sequences| sequences.len())
            }
        };
        let steps_of_epoch = (units.div_ceil(batch_size.max(1)) as u64).max(1);
        let epochs = self.num_train_epochs.unwrap_or(if task == Task::Sft { 2.0 } else { 1.0 });

        let reference = ReferenceSettings {
            model: match &self.ref_model_name_or_path {
                None => ReferenceModel::Start,
                Some(path) => ReferenceModel::Checkpoint(expanded(Path::new(path))),
            },
            when: if self.precompute_ref_log_probs { ReferenceTime::Before } else { ReferenceTime::Live },
            cache: None,
        };
        let method = match task {
            Task::Sft => Method::Sft(SftSettings { reduction: self.reduce_loss, token_loss: self.loss }),
            Task::Dpo => Method::Dpo(DpoSettings { preference: self.preference(), reference }),
            Task::Kto => Method::Kto(KtoTraining { kto: self.kto(), reference }),
        };
        let mut settings = FinetuneSettings::new(method, expanded(Path::new(&self.output_dir)));
        settings.seed = self.seed;
        settings.length = self.max_train_steps.map_or(RunLength::Epochs(epochs), RunLength::Steps);
        settings.batch_size = batch_size;
        settings.micro_batch = MicroBatch::Examples(number(part));
        settings.packing = packing;
        settings.shuffle = self.shuffle;
        settings.max_length = Some(length);
        settings.optimizer = self.optimizer(task);
        settings.schedule = self.schedule(task, units as u64, part, passes, epochs);
        settings.max_grad_norm = (self.clip_grad_norm > 0.0).then_some(self.clip_grad_norm);
        settings.neftune_alpha = self.neftune_noise_alpha;
        settings.share_prompts = self.share_prompts;
        settings.auxiliary = self.auxiliary(task);
        settings.train = match (self.has_adapters(), self.esft, &self.train[..]) {
            (true, ..) => self.train.iter().chain(&self.modules_to_save).cloned().collect(),
            (false, None, []) => vec!["all".to_owned()],
            (false, _, patterns) => patterns.to_vec(),
        };
        settings.esft = self.esft.map(|score| EsftSettings {
            score,
            threshold: self.esft_threshold.unwrap_or(if score == EsftScore::Token { 0.2 } else { 0.1 }),
            examples: number(self.esft_examples),
        });
        settings.lora_plus = self.loraplus_lr_ratio.unwrap_or(1.0);
        settings.precision = match self.precision {
            TrainPrecision::AmpBf16 => Precision::AmpBf16,
            TrainPrecision::Fp32 => Precision::Fp32,
        };
        settings.keep = match self.activations {
            ActivationMode::Auto => None,
            ActivationMode::Keep => Some(Keep::Everything),
            ActivationMode::Recompute => Some(Keep::BlockInputs),
        };
        settings.evaluation = EvaluationSettings {
            interval: Some(self.eval_steps.unwrap_or(steps_of_epoch)),
            at_start: self.eval_on_start,
            micro_batch: settings.micro_batch,
            patience: self.early_stopping_patience,
            keep_best: self.early_stopping_patience.is_some(),
        };
        settings.saving = SaveSettings {
            interval: match self.checkpointing_steps.as_deref() {
                None => None,
                Some("epoch") => Some(steps_of_epoch),
                Some(steps) => steps.parse().ok(),
            },
            keep: self.keep_last_n_checkpoints,
            resume: !self.overwrite_output_dir && self.resume_from_checkpoint.as_deref() != Some("false"),
            overwrite: self.overwrite_output_dir,
            ..settings.saving
        };
        settings.drift_tokens = if data.evaluates { number(self.drift_tokens) } else { 0 };
        settings.log_interval = self.logging_steps;
        settings.configuration = self.to_yaml(task);
        Ok(settings)
    }

    fn optimizer(&self, task: Task) -> OptimizerConfig {
        let name = self.optim.unwrap_or(if task == Task::Kto { OptimizerName::RmsProp } else { OptimizerName::AdamW });
        let second = self.adam_beta2.unwrap_or(match name {
            OptimizerName::AdamW => 0.999,
            OptimizerName::LionW | OptimizerName::RmsProp => 0.99,
        });
        let learning_rate = self.learning_rate.unwrap_or(match (task, self.has_adapters()) {
            (Task::Sft, false) => 2e-5,
            (Task::Sft, true) => 1e-4,
            (Task::Dpo | Task::Kto, false) => 5e-7,
            (Task::Dpo | Task::Kto, true) => 5e-6,
        });
        OptimizerConfig {
            name,
            learning_rate,
            weight_decay: self.weight_decay,
            betas: (if name == OptimizerName::RmsProp { 0.0 } else { self.adam_beta1 }, second),
            eps: self.adam_epsilon,
            // The names that open-instruct and trl except are of no parameter of OLMoE.
            decay_norm_and_bias: true,
            decay_embeddings: true,
            metrics_log_interval: None,
            ..OptimizerConfig::default()
        }
    }

    /// With several processes, accelerate tells the schedule the length of a run of one of them.
    fn schedule(&self, task: Task, units: u64, part: u64, passes: u64, epochs: f64) -> ScheduleSettings {
        let stride = self.lr_scheduler_processes;
        let of_one = || {
            let batches = units.div_ceil(part.max(1));
            let steps = batches.div_ceil((passes / stride).max(1));
            (epochs * steps as f64).ceil() as u64
        };
        let ratio = self.warmup_ratio.unwrap_or(match task {
            _ if self.lr_scheduler_type == LrScheduler::Constant => 0.0,
            Task::Sft => 0.03,
            Task::Dpo => 0.1,
            Task::Kto => 0.0,
        });
        ScheduleSettings {
            shape: match self.lr_scheduler_type {
                LrScheduler::Linear => ScheduleShape::Linear,
                LrScheduler::Cosine => ScheduleShape::Cosine,
                LrScheduler::Constant | LrScheduler::ConstantWithWarmup => ScheduleShape::Constant,
            },
            warmup: match (self.warmup_steps, task) {
                (Some(steps), _) => Warmup::Steps(steps.saturating_mul(stride)),
                (None, Task::Kto) => Warmup::RatioUp(ratio),
                (None, _) => Warmup::Ratio(ratio),
            },
            stride,
            total: match (self.lr_decay_steps, self.max_train_steps) {
                (Some(steps), _) => Some(steps.saturating_mul(stride)),
                (None, None) if stride > 1 => Some(of_one()),
                (None, _) => None,
            },
        }
    }

    fn auxiliary(&self, task: Task) -> Option<Auxiliary> {
        if self.load_balancing_loss != Some(true) {
            return None;
        }
        let usual = match (task, self.reduce_loss) {
            (Task::Sft, Reduction::Sum) => 0.5,
            (Task::Sft, _) => 0.01,
            (Task::Dpo | Task::Kto, _) => 0.001,
        };
        Some(Auxiliary {
            definition: match self.load_balancing_definition {
                BalancingDefinition::HuggingFace => AuxiliaryDefinition::HuggingFace,
                BalancingDefinition::Olmo => AuxiliaryDefinition::Olmo,
                BalancingDefinition::Megatron => AuxiliaryDefinition::Megatron,
            },
            load_balancing_weight: self.load_balancing_weight.unwrap_or(usual) as f32,
            z_weight: 0.0,
        })
    }

    fn preference(&self) -> PreferenceSettings {
        let usual = PreferenceSettings::default();
        let margin = self.simpo_gamma.map(|gamma| gamma / self.dpo_beta);
        PreferenceSettings {
            loss_type: self.dpo_loss_type.clone(),
            loss_weights: self.loss_weights.clone(),
            beta: self.dpo_beta,
            label_smoothing: self.dpo_label_smoothing,
            ld_alpha: self.ld_alpha,
            f_divergence_type: self.f_divergence_type,
            f_alpha_divergence_coef: self.f_alpha_divergence_coef,
            discopop_tau: self.discopop_tau,
            use_weighting: self.use_weighting,
            gamma_beta_ratio: margin.or(self.dpo_gamma_beta_ratio).unwrap_or(usual.gamma_beta_ratio),
            cpo_alpha: self.cpo_alpha,
        }
    }

    fn kto(&self) -> KtoSettings {
        KtoSettings {
            loss_type: self.kto_loss_type,
            beta: self.kto_beta,
            desirable_weight: self.desirable_weight,
            undesirable_weight: self.undesirable_weight,
            kl_batch: self.kl_batch,
            mismatch: self.kto_mismatch,
        }
    }
}
