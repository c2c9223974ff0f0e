//! The keys of a run of fine-tuning, with open-instruct's names where it has one, and their defaults.
//!
//! Keys that are none here are what the file does not say, or what depends on the task: see [`FinetuneConfig::read`].

use std::collections::BTreeMap;

use olmoe_data::instruct::{AlpacaPrompt, Format, Overlong, Packing, Spans};
use serde_json::Value;

use super::super::settings::EsftScore;
use crate::config::field::{At, Field, Tree, named_field, names, sections};
use crate::config::{OptimizerName, TrainConfigError, TrainPrecision, Words};
use crate::loss::{Reduction, TokenLoss};
use crate::preference::kto::{KlBatch, KtoLoss};
use crate::preference::{FDivergence, LossType, Mismatch};

named_field! { Reduction TokenLoss LossType FDivergence KtoLoss KlBatch Mismatch EsftScore }

crate::names::names! {
    "packing";
    /// How rows are packed into sequences.
    pub enum PackingMode {
        /// A row is a sequence.
        Off = "off" | "none",
        /// Into the sequence that a row fills best.
        BestFit = "best_fit" | "bfd",
        /// The same; a row that is too long is cut into several.
        BestFitSplit = "best_fit_split" | "bfd_split",
        /// Into the first sequence with room.
        FirstFit = "first_fit" | "ffd",
    }
}

/// The key alone means the usual way.
impl Field for PackingMode {
    const WORDS: Words = Words::Flag;

    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        let text = value.as_str().ok_or_else(|| at.wrong_type("a name", value))?;
        text.parse().map_err(|unknown: crate::names::UnknownName| TrainConfigError::UnknownName {
            path: at.to_string(),
            found: unknown.found,
            allowed: unknown.known,
        })
    }

    fn tree(&self) -> Tree {
        Tree::Value(self.name().into())
    }
}

names! {
    /// The learning rate over time.
    pub enum LrScheduler {
        /// A line to `min_lr`.
        Linear = "linear",
        /// Half a cosine to `min_lr`.
        Cosine = "cosine" | "cosine_with_min_lr",
        /// Always the same.
        Constant = "constant",
        /// Always the same after the warm-up.
        ConstantWithWarmup = "constant_with_warmup",
    }

    /// Whose words are learned.
    pub enum TrainOn {
        /// All answers of the assistant.
        Answers = "answers" | "assistant" | "all",
        /// The last answer of the assistant.
        LastAnswer = "last_answer" | "last",
        /// Every token, the prompt included.
        Everything = "everything",
    }

    /// How the words that are learned are found in the tokens.
    pub enum LabelSpans {
        /// By places in the text.
        Offsets = "offsets",
        /// By the `{% generation %}` blocks of the template.
        Blocks = "blocks",
        /// By numbers of tokens, as open-instruct in October 2024.
        Lengths = "lengths",
        /// By numbers of tokens, as the released model was trained.
        Released = "released",
    }

    /// What becomes of rows that are too long.
    pub enum Truncation {
        /// The first tokens are kept.
        KeepStart = "keep_start" | "truncate",
        /// The row is dropped.
        Drop = "drop",
        /// It is an error.
        Refuse = "refuse" | "raise",
    }

    /// Words around the instructions of Alpaca's format.
    pub enum AlpacaWords {
        /// Those of Alpaca.
        Standard = "standard",
        /// None.
        Plain = "plain",
    }

    /// What the adapters of a layer's experts have in common.
    pub enum ExpertSharing {
        /// Nothing: each expert has its own.
        PerExpert = "per_expert" | "none",
        /// A and B: all experts have the same.
        Shared = "shared" | "both",
        /// The sides towards the residual stream: A of gate and up, B of down.
        Outer = "outer",
    }

    /// The beginning of an adapter's matrices; the second, B, is 0 but for PiSSA.
    pub enum LoraInit {
        /// Uniform, as torch's linear layer.
        Kaiming = "kaiming" | "default",
        /// Normal, by both widths.
        Xavier = "xavier",
        /// Normal, by the rank.
        Gaussian = "gaussian",
        /// The largest singular vectors of the matrix.
        Pissa = "pissa",
    }

    /// How the files of an adapter name experts.
    pub enum AdapterLayout {
        /// A matrix for each expert.
        Separate = "separate" | "per_expert",
        /// Stacks, as transformers 5 has experts.
        Fused = "fused",
    }

    /// What a run leaves when it is over.
    pub enum OutputFormat {
        /// The folder of a model, or of an adapter in peft's layout.
        Hf = "hf" | "peft",
        /// An unsharded checkpoint of OLMo.
        Olmo = "olmo",
        /// A file of llama.cpp.
        Gguf = "gguf",
        /// Nothing but the checkpoints.
        None = "none",
    }

    /// What a forward pass keeps for the backward pass.
    pub enum ActivationMode {
        /// As much as fits into the memory.
        Auto = "auto",
        /// Everything.
        Keep = "keep",
        /// The input of each block; the rest is computed again.
        Recompute = "recompute",
    }

    /// Whose definition the routers' load-balancing loss has.
    pub enum BalancingDefinition {
        /// Of transformers, over all layers together; that of open-instruct and trl.
        HuggingFace = "huggingface" | "hf",
        /// Of OLMo's trainer.
        Olmo = "olmo",
        /// Of Megatron.
        Megatron = "megatron",
    }
}

impl Field for Format {
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        const NAMES: &[&str] = &[
            "messages",
            "sharegpt",
            "alpaca",
            "prompt-completion",
            "question-answer",
            "text",
            "raw",
            "tokens",
            "preference",
            "hh",
            "labelled",
        ];
        let text = value.as_str().ok_or_else(|| at.wrong_type("the name of a format", value))?;
        let unknown = || TrainConfigError::UnknownName { path: at.to_string(), found: text.to_owned(), allowed: NAMES };
        text.replace('_', "-").parse().map_err(|_| unknown())
    }

    fn tree(&self) -> Tree {
        Tree::Value(self.to_string().into())
    }
}

sections! {
    /// A set of rows, in the list `datasets`.
    pub struct SourceConfig {
        /// A file, or a folder of files.
        pub path: String = String::new(),
        /// How much of it: a number of rows, a fraction such as 0.5, or times such as 2x.
        pub amount: Option<String> = None,
        /// Its format; none: recognised by the columns of its first row.
        pub format: Option<Format> = None,
        /// The columns of fields that have other names in it.
        pub columns: BTreeMap<String, String> = BTreeMap::new(),
    }

    /// The settings of a run. Its fields are the keys of a file and the flags of a command.
    pub struct FinetuneConfig {
        /// The model to begin from: a folder or file of any format, or a model of the hub.
        pub model_name_or_path: Option<String> = None,
        /// A branch, tag or commit of a model of the hub.
        pub model_revision: Option<String> = None,
        /// A tokenizer to use in place of the model's own: a tokenizer.json, a folder, or a model of the hub.
        pub tokenizer_name: Option<String> = None,
        /// The chat template: tulu, a Jinja file, or a folder that has one; none: that of the model, else tulu.
        pub chat_template_name: Option<String> = None,
        /// Whether conversations begin with the token that begins a text; none: as the template says.
        pub add_bos: Option<bool> = None,
        /// The number format of matrix products.
        pub precision: TrainPrecision = TrainPrecision::AmpBf16,

        /// Sources and amounts in turn: a.jsonl 1.0 b.parquet 500.
        pub dataset_mixer_list: Vec<String> = Vec::new(),
        /// The same as a mapping of sources to amounts.
        pub dataset_mixer: BTreeMap<String, String> = BTreeMap::new(),
        /// A source, taken whole.
        pub dataset_name: Option<String> = None,
        /// Files of rows, taken whole.
        pub train_file: Vec<String> = Vec::new(),
        /// Sources with a format or columns of their own.
        pub datasets: Vec<SourceConfig> = Vec::new(),
        /// At most so many rows, the first ones of the mixture.
        pub max_train_samples: Option<u64> = None,
        /// The format of all files that do not have one of their own.
        pub dataset_format: Option<Format> = None,
        /// The columns of fields that have other names in all files: messages is chat.
        pub columns: BTreeMap<String, String> = BTreeMap::new(),
        /// The words around the instructions of Alpaca's format.
        pub alpaca_prompt: AlpacaWords = AlpacaWords::Standard,
        /// Whether every epoch has an order of its own; false: that of the mixture.
        pub shuffle: bool = true,
        /// Whether rows are encoded anew though they have been before.
        pub overwrite_cache: bool = false,

        /// Most tokens of a sequence; none: 4096, or what the model has if that is less.
        pub max_seq_length: Option<u64> = None,
        /// What becomes of longer rows.
        pub truncation: Truncation = Truncation::KeepStart,
        /// Keeps the last so many tokens of a prompt that is too long, and then the beginning of the answer.
        pub max_prompt_length: Option<u64> = None,
        /// Whose words are learned: answers, last_answer, everything, or names of roles.
        pub train_on: Vec<String> = vec!["answers".to_owned()],
        /// How these words are found in the tokens; none: by blocks where the template has them, else by offsets.
        pub label_spans: Option<LabelSpans> = None,
        /// Several rows in a sequence, each hidden from the others.
        pub packing: PackingMode = PackingMode::Off,

        /// Low-rank adapters in place of the weights.
        pub use_lora: bool = false,
        /// Adapters with a magnitude for each row, DoRA.
        pub use_dora: bool = false,
        /// Adapters with the scale alpha over the root of the rank.
        pub use_rslora: bool = false,
        /// The rank of adapters.
        pub lora_rank: u64 = 16,
        /// The alpha of adapters: their scale is alpha over rank; none: twice the rank.
        pub lora_alpha: Option<f64> = None,
        /// The share of inputs of adapters that is dropped in training.
        pub lora_dropout: f64 = 0.0,
        /// The matrices with adapters, by name or pattern: q_proj, attention, experts, all-linear; none: attention and experts.
        pub lora_target: Vec<String> = Vec::new(),
        /// Matrices without adapters among these.
        pub lora_exclude: Vec<String> = Vec::new(),
        /// Ranks of some matrices, by pattern.
        pub rank_pattern: BTreeMap<String, u64> = BTreeMap::new(),
        /// Alphas of some matrices, by pattern.
        pub alpha_pattern: BTreeMap<String, f64> = BTreeMap::new(),
        /// The layers with adapters; empty: all.
        pub layers_to_transform: Vec<u64> = Vec::new(),
        /// What the adapters of a layer's experts have in common.
        pub lora_sharing: ExpertSharing = ExpertSharing::PerExpert,
        /// How the matrices of adapters begin.
        pub lora_init: LoraInit = LoraInit::Kaiming,
        /// How many times the learning rate of A that of B is (LoRA+).
        pub loraplus_lr_ratio: Option<f64> = None,
        /// Parameters that are trained whole beside the adapters, and kept in their files.
        pub modules_to_save: Vec<String> = Vec::new(),
        /// An adapter to begin from.
        pub adapter_name_or_path: Option<String> = None,
        /// The parameters that are trained, by pattern: router, norms, layers.3.experts.17; empty: all.
        pub train: Vec<String> = Vec::new(),
        /// Trains the experts that the data uses most, by the score token or gate (ESFT).
        pub esft: Option<EsftScore> = None,
        /// The share of the scores that the experts of a layer have together; none: 0.2 of token, 0.1 of gate.
        pub esft_threshold: Option<f64> = None,
        /// The examples that this is measured on; 0: all.
        pub esft_examples: u64 = 0,

        /// Rows of a forward and backward pass; none: 8, for dpo and kto 4, with packing 1 sequence.
        pub per_device_train_batch_size: Option<u64> = None,
        /// Passes of a step.
        pub gradient_accumulation_steps: Option<u64> = None,
        /// Rows of a step, in place of the passes.
        pub global_batch_size: Option<u64> = None,
        /// Passes over the data; none: 2, for dpo and kto 1.
        pub num_train_epochs: Option<f64> = None,
        /// Steps, in place of the passes over the data.
        pub max_train_steps: Option<u64> = None,
        /// The rule of the optimizer; none: adamw, for kto rmsprop.
        pub optim: Option<OptimizerName> = None,
        /// The learning rate; none: 2e-5, of adapters 1e-4; for dpo and kto 5e-7, of adapters 5e-6.
        pub learning_rate: Option<f64> = None,
        /// The learning rate over time.
        pub lr_scheduler_type: LrScheduler = LrScheduler::Linear,
        /// The share of the steps in which the learning rate rises; none: 0.03, for dpo 0.1, for kto 0.
        pub warmup_ratio: Option<f64> = None,
        /// The steps of that, in place of a share.
        pub warmup_steps: Option<u64> = None,
        /// The learning rate at the end, which is 0.
        pub min_lr: f64 = 0.0,
        /// The step at which the schedule ends; none: the last.
        pub lr_decay_steps: Option<u64> = None,
        /// Steps of the schedule for each step of training, as accelerate counts with several processes.
        pub lr_scheduler_processes: u64 = 1,
        /// Decoupled weight decay.
        pub weight_decay: f64 = 0.0,
        /// Decay of AdamW's first moment.
        pub adam_beta1: f64 = 0.9,
        /// Decay of AdamW's second moment, and α of RMSprop; none: 0.999, for rmsprop 0.99.
        pub adam_beta2: Option<f64> = None,
        /// Added to the root of the second moment.
        pub adam_epsilon: f64 = 1e-8,
        /// Gradients with a larger norm are scaled down to it; -1: never.
        pub clip_grad_norm: f64 = -1.0,
        /// Seed of mixture, order, adapters, dropout and noise.
        pub seed: u64 = 42,

        /// What the loss of a step is of those of its tokens.
        pub reduce_loss: Reduction = Reduction::Token,
        /// The loss of a token.
        pub loss: TokenLoss = TokenLoss::Nll,
        /// Noise on the embeddings of training (NEFTune).
        pub neftune_noise_alpha: Option<f64> = None,
        /// The routers' load-balancing loss; none: off.
        pub load_balancing_loss: Option<bool> = None,
        /// Its weight; none: 0.5 for the reduction sum, else 0.01, and 0.001 for dpo and kto.
        pub load_balancing_weight: Option<f64> = None,
        /// Whose definition it has.
        pub load_balancing_definition: BalancingDefinition = BalancingDefinition::HuggingFace,

        /// β: how much the model is held to the reference.
        pub dpo_beta: f64 = 0.1,
        /// The loss of a pair, or several to be added.
        pub dpo_loss_type: Vec<LossType> = vec![LossType::Sigmoid],
        /// The weights of several losses.
        pub loss_weights: Option<Vec<f64>> = None,
        /// The share of labels that are taken to be wrong.
        pub dpo_label_smoothing: f64 = 0.0,
        /// γ/β of SimPO.
        pub dpo_gamma_beta_ratio: Option<f64> = None,
        /// γ of SimPO, in place of γ/β.
        pub simpo_gamma: Option<f64> = None,
        /// α of LD-DPO: the weight of the tokens that the longer answer has more.
        pub ld_alpha: Option<f64> = None,
        /// The divergence from the reference.
        pub f_divergence_type: FDivergence = FDivergence::ReverseKl,
        /// α of the alpha divergence.
        pub f_alpha_divergence_coef: f64 = 0.5,
        /// τ of DiscoPOP.
        pub discopop_tau: f64 = 0.05,
        /// WPO's weights on every loss.
        pub use_weighting: bool = false,
        /// The weight of cross-entropy in CPO.
        pub cpo_alpha: f64 = 1.0,

        /// β: how much the model is held to the reference.
        pub kto_beta: f64 = 0.1,
        /// The loss of an answer.
        pub kto_loss_type: KtoLoss = KtoLoss::Kto,
        /// The weight of desirable answers.
        pub desirable_weight: f64 = 1.0,
        /// The weight of undesirable answers.
        pub undesirable_weight: f64 = 1.0,
        /// What the estimate of the divergence is over: micro-batches, as in trl, or steps.
        pub kl_batch: KlBatch = KlBatch::Step,
        /// Which answers the prompts of that estimate get.
        pub kto_mismatch: Mismatch = Mismatch::Rotated,

        /// The reference: a folder or file of a model; none: the model at the start of the run.
        pub ref_model_name_or_path: Option<String> = None,
        /// Whether the log-probabilities of the reference are computed before the first step, and kept in a file.
        pub precompute_ref_log_probs: bool = true,
        /// Whether the prompt of a pair is computed once for both answers, with the same bits.
        pub share_prompts: bool = true,

        /// Files of rows to evaluate on.
        pub eval_file: Vec<String> = Vec::new(),
        /// Rows taken from the data to evaluate on: a fraction, or a number of rows.
        pub eval_split: Option<f64> = None,
        /// Steps from one evaluation to the next; none: once in an epoch.
        pub eval_steps: Option<u64> = None,
        /// Whether there is an evaluation before the first step.
        pub eval_on_start: bool = true,
        /// Ends the run after so many evaluations without a lower loss.
        pub early_stopping_patience: Option<u64> = None,
        /// Tokens whose choices of experts are compared with those at the start, at every evaluation; 0: none.
        pub drift_tokens: u64 = 2048,
        /// A file with prompts that are answered meanwhile, one a line, or rows of a JSON file.
        pub sample_prompts: Option<String> = None,
        /// Steps from one such time to the next; none: at every evaluation.
        pub sample_steps: Option<u64> = None,
        /// Most tokens of such an answer.
        pub sample_max_new_tokens: u64 = 128,

        /// The folder of the run.
        pub output_dir: String = "output/".to_owned(),
        /// The name of the run.
        pub run_name: Option<String> = None,
        /// Whether a run in that folder is begun anew.
        pub overwrite_output_dir: bool = false,
        /// Steps from one checkpoint to the next, or epoch; none: at the end and when interrupted.
        pub checkpointing_steps: Option<String> = None,
        /// How many checkpoints are kept; -1: all.
        pub keep_last_n_checkpoints: i64 = 3,
        /// Whether a run in that folder goes on; none and latest: it does.
        pub resume_from_checkpoint: Option<String> = None,
        /// Steps from one line on the terminal to the next.
        pub logging_steps: u64 = 1,
        /// What the run leaves: hf, olmo, gguf, or none.
        pub output_format: OutputFormat = OutputFormat::Hf,
        /// Whether the adapters become part of the weights in that.
        pub merge_adapter: bool = false,
        /// How the files of an adapter name experts.
        pub adapter_layout: AdapterLayout = AdapterLayout::Separate,

        /// What a pass keeps for the backward pass.
        pub activations: ActivationMode = ActivationMode::Auto,
        /// Memory that may be used: 12GB.
        pub max_memory: Option<String> = None,
    }
}

/// Headings, and the first key under each.
pub(super) const GROUPS: [(&str, &str); 11] = [
    ("Model", "model_name_or_path"),
    ("Data", "dataset_mixer_list"),
    ("Conversations", "max_seq_length"),
    ("What is trained", "use_lora"),
    ("Steps", "per_device_train_batch_size"),
    ("Loss", "reduce_loss"),
    ("DPO", "dpo_beta"),
    ("KTO", "kto_beta"),
    ("Reference", "ref_model_name_or_path"),
    ("Evaluation", "eval_file"),
    ("Run", "output_dir"),
];

impl From<LabelSpans> for Spans {
    fn from(spans: LabelSpans) -> Spans {
        match spans {
            LabelSpans::Offsets => Spans::Offsets,
            LabelSpans::Blocks => Spans::Blocks,
            LabelSpans::Lengths => Spans::Lengths,
            LabelSpans::Released => Spans::Released,
        }
    }
}

impl From<AlpacaWords> for AlpacaPrompt {
    fn from(words: AlpacaWords) -> AlpacaPrompt {
        match words {
            AlpacaWords::Standard => AlpacaPrompt::Standard,
            AlpacaWords::Plain => AlpacaPrompt::Plain,
        }
    }
}

impl PackingMode {
    /// How rows are packed; none: not at all.
    pub fn packing(self) -> Option<Packing> {
        match self {
            PackingMode::Off => None,
            PackingMode::BestFit => Some(Packing::BestFit),
            PackingMode::BestFitSplit => Some(Packing::BestFitSplit),
            PackingMode::FirstFit => Some(Packing::FirstFit),
        }
    }
}

impl Truncation {
    /// What becomes of rows that are too long, of whose prompts so many tokens are kept if that is said.
    pub fn overlong(self, prompt: Option<usize>) -> Overlong {
        match (self, prompt) {
            (Truncation::KeepStart, Some(prompt)) => Overlong::KeepEnds(prompt),
            (Truncation::KeepStart, None) => Overlong::KeepStart,
            (Truncation::Drop, _) => Overlong::Drop,
            (Truncation::Refuse, _) => Overlong::Refuse,
        }
    }
}
