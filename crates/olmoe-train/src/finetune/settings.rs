//! The settings of a run of fine-tuning. They are plain data: a configuration or a program fills them, and
//! [`FinetuneSettings::check`] says what does not go together.

use std::path::PathBuf;

use olmoe_data::instruct::Packing;
use olmoe_model::adapter::Adapter;
use olmoe_model::config::Auxiliary;
use olmoe_model::model::{Keep, Precision};

use super::error::FinetuneError;
use crate::config::{OptimizerConfig, OptimizerName, SamplesConfig};
use crate::loss::{Reduction, TokenLoss};
use crate::names::names;
use crate::preference::PreferenceSettings;
use crate::preference::kto::KtoSettings;

/// A run of fine-tuning. [`FinetuneSettings::new`] has the defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct FinetuneSettings {
    /// What is learned, and its own settings.
    pub method: Method,
    /// Seeds the order of the data, the packing, the initial values of adapters, and NEFTune's noise. Default 42.
    pub seed: u64,
    /// How long the run is. Default one epoch.
    pub length: RunLength,
    /// Examples of a step: conversations, packed sequences where [`packing`](Self::packing) is set, pairs for DPO, labelled
    /// answers for KTO. Default 8.
    pub batch_size: usize,
    /// How a step is divided into forward and backward passes. No result but the order of the sums of gradients depends on
    /// it, and the routers' auxiliary losses, which are means over passes. Default one example.
    pub micro_batch: MicroBatch,
    /// Several conversations in a sequence; only for supervised fine-tuning. Without it, sequences of a micro-batch lie one
    /// after the other without padding. Default none.
    pub packing: Option<PackingSettings>,
    /// Whether each epoch has an order of its own, drawn from the seed; else all have the order of the data. Default true.
    pub shuffle: bool,
    /// Whether the last examples of an epoch are left out if they are fewer than a step has. Default false.
    pub drop_last: bool,
    /// Most tokens of the sequences that KTO makes by itself, of a prompt and the answer of another row, whose end is cut.
    /// Default none: the longest sequence of the model.
    pub max_length: Option<usize>,
    /// The rule of the updates, with the learning rate. Default AdamW, 2e-5, without weight decay.
    pub optimizer: OptimizerConfig,
    /// The learning rate over time. Default linear, without a warm-up.
    pub schedule: ScheduleSettings,
    /// The bound on the norm of all gradients together; none: no clipping. Default 1.
    pub max_grad_norm: Option<f64>,
    /// Alpha of NEFTune's noise on the embeddings of training passes; none: no noise. Default none.
    pub neftune_alpha: Option<f64>,
    /// Whether the prompt of a pair is computed once for both answers; the log-probabilities have the same bits either way.
    /// With auxiliary losses it is there twice. Default true.
    pub share_prompts: bool,
    /// The routers' auxiliary losses; none: off. Default none.
    pub auxiliary: Option<Auxiliary>,
    /// The parameters that are trained, as [`Selection`](super::Selection) reads them; adapters are trained besides. Default
    /// `all`; with adapters, leave it empty for adapters alone.
    pub train: Vec<String>,
    /// Adapters, which are trained. Default none.
    pub adapters: Vec<Adapter>,
    /// Experts that are trained besides because the data uses them most. Default none.
    pub esft: Option<EsftSettings>,
    /// The factor on the learning rate of `lora_b`: LoRA+ (Hayou et al., arXiv 2402.12354). Default 1.
    pub lora_plus: f64,
    /// The number formats of the matrix products. Default bf16 operands.
    pub precision: Precision,
    /// What a forward pass keeps for the backward pass; none: the most that [`max_memory`](Self::max_memory), or else the
    /// free memory, has room for. Default none.
    pub keep: Option<Keep>,
    /// Most bytes of memory; none: what is free. Default none.
    pub max_memory: Option<u64>,
    /// Evaluation on held-out examples.
    pub evaluation: EvaluationSettings,
    /// The folder of the run and its checkpoints.
    pub saving: SaveSettings,
    /// Tokens of the probe whose routing is compared with that at the start of the run; 0: none. Default 0.
    pub drift_tokens: usize,
    /// Texts that the model writes meanwhile. Default none.
    pub samples: Option<SamplesConfig>,
    /// The `tokenizer.json` of the model, for the samples and to be put beside saved weights. Default none.
    pub tokenizer: Option<PathBuf>,
    /// Steps from one record of metrics to the next. Default 1.
    pub log_interval: u64,
    /// Seconds after which the run saves and ends; it goes on later. Default none.
    pub time_limit: Option<f64>,
    /// The text of the configuration, to be put into the folder of the run and into checkpoints. Default empty: none.
    pub configuration: String,
}

/// What is learned.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// Supervised fine-tuning on conversations.
    Sft(SftSettings),
    /// DPO and its relatives on pairs of answers.
    Dpo(DpoSettings),
    /// KTO and its relatives on labelled answers.
    Kto(KtoTraining),
}

impl Method {
    /// `sft`, `dpo` or `kto`.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Sft(_) => "sft",
            Method::Dpo(_) => "dpo",
            Method::Kto(_) => "kto",
        }
    }
}

/// The loss of supervised fine-tuning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SftSettings {
    /// What the loss of a step is of those of its tokens. Default `token`.
    pub reduction: Reduction,
    /// What the log-probability of a token counts by. Default `nll`.
    pub token_loss: TokenLoss,
}

impl Default for SftSettings {
    fn default() -> Self {
        SftSettings { reduction: Reduction::Token, token_loss: TokenLoss::Nll }
    }
}

/// Preference tuning on pairs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DpoSettings {
    /// The loss.
    pub preference: PreferenceSettings,
    /// What the policy is compared with; without effect for losses without a reference.
    pub reference: ReferenceSettings,
}

/// Preference tuning on labelled answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KtoTraining {
    /// The loss.
    pub kto: KtoSettings,
    /// What the policy is compared with.
    pub reference: ReferenceSettings,
}

/// The reference model of preference tuning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceSettings {
    /// Which model it is. Default that at the start of the run.
    pub model: ReferenceModel,
    /// When its log-probabilities are computed; they have the same bits either way. Default before the first step.
    pub when: ReferenceTime,
    /// The file that holds those computed before the first step, under a key of data, model and settings; none:
    /// `reference.bin` in the folder of the run.
    pub cache: Option<PathBuf>,
}

/// Which model the reference is.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ReferenceModel {
    /// The model at the start of the run, the adapters that it began with included.
    #[default]
    Start,
    /// Another checkpoint, of the same architecture.
    Checkpoint(PathBuf),
}

names! {
    "time of the reference";
    /// When the log-probabilities of the reference are computed.
    #[derive(Default)]
    pub enum ReferenceTime {
        /// Before the first step, once; the reference takes no memory afterwards.
        #[default]
        Before = "before",
        /// In each step. It takes the memory of a second model, unless the reference is the model with its adapters off.
        Live = "live",
    }
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RunLength {
    /// Passes over the data, also parts of one, rounded up to a whole step.
    Epochs(f64),
    /// Steps.
    Steps(u64),
}

/// How a step is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MicroBatch {
    /// So many examples at once.
    Examples(usize),
    /// As many examples at once as have so many tokens together, and at least one.
    Tokens(usize),
}

/// Packing of conversations into sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackingSettings {
    /// Most tokens of a sequence.
    pub length: usize,
    /// Where a conversation goes, and what becomes of one that is longer.
    pub rule: Packing,
}

names! {
    "schedule";
    /// The learning rate after the warm-up. The formulas are those of transformers, in f64 and in its order of operations,
    /// but for the cosine, which is our own: every machine has the same bits.
    pub enum ScheduleShape {
        /// Straight down to 0 at the end of the run.
        Linear = "linear",
        /// Half a cosine down to 0 at the end of the run.
        Cosine = "cosine",
        /// Constant.
        Constant = "constant" | "constant_with_warmup",
    }
}

/// The learning rate over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScheduleSettings {
    /// The course after the warm-up.
    pub shape: ScheduleShape,
    /// The warm-up, straight up from 0.
    pub warmup: Warmup,
    /// How far the schedule goes on with each step. Default 1. AI2's runs had 32: accelerate counts a step for each of its
    /// processes, and the length that the schedule is told is that of one process.
    pub stride: u64,
    /// The length of the schedule in its own units; none: `stride` times the steps of the run.
    pub total: Option<u64>,
}

impl Default for ScheduleSettings {
    fn default() -> Self {
        ScheduleSettings { shape: ScheduleShape::Linear, warmup: Warmup::Steps(0), stride: 1, total: None }
    }
}

/// The length of the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// In the units of the schedule.
    Steps(u64),
    /// A share of the schedule, rounded down as open-instruct does.
    Ratio(f64),
    /// A share of the schedule, rounded up as transformers does.
    RatioUp(f64),
}

names! {
    "score of experts";
    /// How experts are scored by the data (ESFT, Wang et al., arXiv 2407.01906).
    pub enum EsftScore {
        /// The share of the tokens' choices: ESFT-Token.
        Token = "token",
        /// The share of the weights of the router: ESFT-Gate.
        Gate = "gate",
    }
}

/// Training of the experts that the data uses most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EsftSettings {
    /// The score.
    pub score: EsftScore,
    /// In each layer, the experts with the largest scores are trained, as few as have this sum. The paper has 0.2 for
    /// `token` and 0.1 for `gate`, of shares that sum to 1.
    pub threshold: f64,
    /// Examples that are looked at, the first of the first epoch's order; 0: all.
    pub examples: usize,
}

/// Evaluation on held-out examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaluationSettings {
    /// Steps from one evaluation to the next; none: only after the last step. Default none.
    pub interval: Option<u64>,
    /// Whether to evaluate before the first step, too. Default false.
    pub at_start: bool,
    /// How the examples are divided into passes; the results do not depend on it. Default 8 examples.
    pub micro_batch: MicroBatch,
    /// Evaluations without a smaller loss after which the run ends; none: it does not. Default none.
    pub patience: Option<u64>,
    /// Whether the checkpoint with the smallest loss is kept. Default false.
    pub keep_best: bool,
}

impl Default for EvaluationSettings {
    fn default() -> Self {
        EvaluationSettings {
            interval: None,
            at_start: false,
            micro_batch: MicroBatch::Examples(8),
            patience: None,
            keep_best: false,
        }
    }
}

/// The folder of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveSettings {
    /// The folder.
    pub folder: PathBuf,
    /// Steps from one checkpoint to the next; none: only at the end. Default none.
    pub interval: Option<u64>,
    /// Checkpoints that are kept; -1: all; 0: none is saved. Default 1.
    pub keep: i64,
    /// Whether a run that is there is gone on with. Default true.
    pub resume: bool,
    /// Whether checkpoints of another run that are there are moved aside. Default false.
    pub overwrite: bool,
}

impl FinetuneSettings {
    /// The defaults, for a method and the folder of the run.
    pub fn new(method: Method, folder: impl Into<PathBuf>) -> FinetuneSettings {
        FinetuneSettings {
            method,
            seed: 42,
            length: RunLength::Epochs(1.0),
            batch_size: 8,
            micro_batch: MicroBatch::Examples(1),
            packing: None,
            shuffle: true,
            drop_last: false,
            max_length: None,
            optimizer: default_optimizer(),
            schedule: ScheduleSettings::default(),
            max_grad_norm: Some(1.0),
            neftune_alpha: None,
            share_prompts: true,
            auxiliary: None,
            train: vec!["all".to_owned()],
            adapters: Vec::new(),
            esft: None,
            lora_plus: 1.0,
            precision: Precision::AmpBf16,
            keep: None,
            max_memory: None,
            evaluation: EvaluationSettings::default(),
            saving: SaveSettings { folder: folder.into(), interval: None, keep: 1, resume: true, overwrite: false },
            drift_tokens: 0,
            samples: None,
            tokenizer: None,
            log_interval: 1,
            time_limit: None,
            configuration: String::new(),
        }
    }

    /// The first setting that is out of its range or does not go with the others.
    ///
    /// # Errors
    /// [`FinetuneError::Setting`], [`FinetuneError::Preference`].
    pub fn check(&self) -> Result<(), FinetuneError> {
        let wrong = |key, found: String, expected| Err(FinetuneError::Setting { key, found, expected });
        let at_least_1 = [
            ("batch_size", self.batch_size as u64),
            ("log_interval", self.log_interval),
            ("schedule.stride", self.schedule.stride),
            ("saving.interval", self.saving.interval.unwrap_or(1)),
            ("evaluation.interval", self.evaluation.interval.unwrap_or(1)),
            ("evaluation.patience", self.evaluation.patience.unwrap_or(1)),
            ("packing.length", self.packing.map_or(1, |packing| packing.length as u64)),
            ("micro_batch", self.micro_batch.size() as u64),
            ("evaluation.micro_batch", self.evaluation.micro_batch.size() as u64),
            ("max_length", self.max_length.unwrap_or(1) as u64),
        ];
        if let Some((key, _)) = at_least_1.into_iter().find(|(_, number)| *number == 0) {
            return wrong(key, "0".to_owned(), "at least 1");
        }
        let finite = |x: f64, low: f64| x.is_finite() && x >= low;
        let numbers = [
            ("optimizer.learning_rate", self.optimizer.learning_rate),
            ("optimizer.weight_decay", self.optimizer.weight_decay),
            ("neftune_alpha", self.neftune_alpha.unwrap_or(0.0)),
            ("lora_plus", self.lora_plus),
            ("time_limit", self.time_limit.unwrap_or(0.0)),
        ];
        if let Some((key, found)) = numbers.into_iter().find(|(_, number)| !finite(*number, 0.0)) {
            return wrong(key, found.to_string(), "a finite number that is at least 0");
        }
        if let Some(norm) = self.max_grad_norm.filter(|norm| !(norm.is_finite() && *norm > 0.0)) {
            return wrong("max_grad_norm", norm.to_string(), "a finite number above 0, or none for no clipping");
        }
        if let RunLength::Epochs(epochs) = self.length
            && !finite(epochs, 0.0)
        {
            return wrong("length", format!("{epochs} epochs"), "a finite number of epochs that is at least 0");
        }
        let ratio = match self.schedule.warmup {
            Warmup::Steps(_) => 0.0,
            Warmup::Ratio(ratio) | Warmup::RatioUp(ratio) => ratio,
        };
        if !(0.0..=1.0).contains(&ratio) {
            return wrong("schedule.warmup", ratio.to_string(), "a share from 0 to 1, or a number of steps");
        }
        if let Some(esft) = self.esft
            && !(esft.threshold > 0.0 && esft.threshold <= 1.0)
        {
            return wrong("esft.threshold", esft.threshold.to_string(), "above 0 and at most 1");
        }
        if self.packing.is_some() && !matches!(self.method, Method::Sft(_)) {
            let expected = "none: pairs and labelled answers are compared as wholes, and lie without padding anyway";
            return wrong("packing", "set".to_owned(), expected);
        }
        if let Some(auxiliary) = self.auxiliary
            && ![auxiliary.load_balancing_weight, auxiliary.z_weight].into_iter().all(|x| finite(f64::from(x), 0.0))
        {
            let expected = "finite weights that are at least 0";
            return wrong("auxiliary", format!("{auxiliary:?}"), expected);
        }
        if self.samples.is_some() && self.tokenizer.is_none() {
            let expected = "the tokenizer.json of the model, which the samples are read and written with";
            return wrong("tokenizer", "none".to_owned(), expected);
        }
        Ok(())
    }
}

impl MicroBatch {
    fn size(self) -> usize {
        match self {
            MicroBatch::Examples(size) | MicroBatch::Tokens(size) => size,
        }
    }
}

/// AdamW with torch's moments, at the rate that AI2 tuned OLMoE with.
fn default_optimizer() -> OptimizerConfig {
    OptimizerConfig {
        name: OptimizerName::AdamW,
        learning_rate: 2e-5,
        weight_decay: 0.0,
        betas: (0.9, 0.999),
        eps: 1e-8,
        decay_norm_and_bias: false,
        decay_embeddings: true,
        metrics_log_interval: None,
        ..OptimizerConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let good = || FinetuneSettings::new(Method::Sft(SftSettings::default()), "run");
        assert_eq!(good().check(), Ok(()));
        type Change = fn(&mut FinetuneSettings);
        let mut wrong: Vec<(&str, Change)> = vec![
            ("`batch_size` is 0", |s| s.batch_size = 0),
            ("`micro_batch` is 0", |s| s.micro_batch = MicroBatch::Tokens(0)),
            ("`optimizer.learning_rate` is NaN", |s| s.optimizer.learning_rate = f64::NAN),
            ("`max_grad_norm` is 0", |s| s.max_grad_norm = Some(0.0)),
            ("`length` is -1 epochs", |s| s.length = RunLength::Epochs(-1.0)),
            ("`schedule.warmup` is 1.5", |s| s.schedule.warmup = Warmup::Ratio(1.5)),
            ("`lora_plus` is -1", |s| s.lora_plus = -1.0),
            ("`tokenizer` is none", |s| s.samples = Some(SamplesConfig::default())),
        ];
        wrong.push(("`packing` is set", |s| {
            s.method = Method::Dpo(DpoSettings::default());
            s.packing = Some(PackingSettings { length: 8, rule: Packing::BestFit });
        }));
        for (expected, change) in wrong {
            let mut settings = good();
            change(&mut settings);
            let error = settings.check().expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
