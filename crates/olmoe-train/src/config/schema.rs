//! The sections of a training configuration: OLMo's keys, in OLMo's order, with OLMo's defaults.
//!
//! The keys are those of OLMo's mixture-of-experts branch and the additional keys of its main branch. Keys whose effect
//! differs from that in OLMo are listed in [`notices`](TrainConfig::notices).

use std::collections::BTreeMap;

use olmoe_model::config::{ConfigError, ModelConfig, parse_yaml};
use serde_json::Value;

use super::duration::Duration;
use super::error::TrainConfigError;
use super::field::{At, Count, Field, Tree, Unsupported, names, sections};

names! {
    /// The rule of the optimizer.
    pub enum OptimizerName {
        /// The sign of a running mean of the gradient.
        LionW = "lionw",
        /// Adam with decoupled weight decay.
        AdamW = "adamw",
        /// The gradient over the root of a running mean of its square, as torch has it. Not a name of OLMo.
        RmsProp = "rmsprop",
    }

    /// The shape of the learning rate's schedule; the formulas are in [`schedule`](crate::schedule).
    pub enum SchedulerName {
        /// Half a cosine.
        CosineWithWarmup = "cosine_with_warmup",
        /// A line.
        LinearWithWarmup = "linear_with_warmup",
        /// One over the root of the position.
        InverseSqrtWithWarmup = "inverse_sqrt_with_warmup",
        /// The larger of the cosine and the inverse root.
        MaxScheduler = "max_scheduler",
        /// Always the same, without warm-up.
        Constant = "constant",
        /// The product of the cosine and the line.
        CosineLinearEnvelope = "cosine_linear_envelope",
        /// Always the same after the warm-up.
        ConstantWithWarmup = "constant_with_warmup",
    }

    /// What the positions of a schedule count.
    pub enum SchedulerUnits {
        /// Steps.
        Steps = "steps",
        /// Tokens.
        Tokens = "tokens",
    }

    /// The side on which sequences that are too short are padded.
    pub enum PaddingDirection {
        /// On the right, after the tokens.
        Right = "right",
        /// On the left, before the tokens.
        Left = "left",
    }

    /// The side on which sequences that are too long are truncated.
    pub enum TruncationDirection {
        /// On the right, after the tokens.
        Right = "right",
        /// On the left, before the tokens.
        Left = "left",
    }

    /// The format of token ids in the files of data.
    pub enum TokenType {
        /// One byte.
        Uint8 = "uint8",
        /// Two bytes, the lower one first.
        Uint16 = "uint16",
        /// Four bytes, the lowest one first.
        Uint32 = "uint32",
        /// Eight bytes, the lowest one first.
        Uint64 = "uint64",
    }

    /// What an evaluator computes.
    pub enum EvaluatorType {
        /// A task with answers to choose from.
        Downstream = "downstream",
        /// The loss on held-out texts.
        Lm = "lm",
    }

    /// Number formats of training.
    pub enum TrainPrecision {
        /// Products of bf16 factors, everything else in f32.
        AmpBf16 = "amp_bf16",
        /// Everything in f32.
        Fp32 = "fp32",
    }

    /// Activation checkpointing: what is recomputed in the backward pass instead of kept.
    pub enum ActivationCheckpointing {
        /// Every block.
        WholeLayer = "whole_layer",
        /// One block of two.
        OneInTwo = "one_in_two",
        /// One block of three.
        OneInThree = "one_in_three",
        /// One block of four.
        OneInFour = "one_in_four",
        /// One block of eight.
        OneInEight = "one_in_eight",
        /// Two blocks of three.
        TwoInThree = "two_in_three",
        /// Three blocks of four.
        ThreeInFour = "three_in_four",
        /// Norms and attention of every block, which are cheap to compute.
        FineGrained = "fine_grained",
    }

    /// How OLMo distributes a run over processes.
    pub enum DistributedStrategy {
        /// Replicas of the whole model (DDP).
        Ddp = "ddp",
        /// Shards.
        Fsdp = "fsdp",
        /// One process.
        Single = "single",
    }

    /// When the replicas of OLMo exchange gradients.
    pub enum DdpGradSyncMode {
        /// After a batch.
        Batch = "batch",
        /// After each part of a batch.
        MicroBatch = "micro_batch",
    }

    /// What OLMo shards.
    pub enum ShardingStrategy {
        /// Parameters, gradients and state.
        FullShard = "FULL_SHARD",
        /// Gradients and state.
        ShardGradOp = "SHARD_GRAD_OP",
        /// Nothing.
        NoShard = "NO_SHARD",
        /// All of it inside a machine.
        HybridShard = "HYBRID_SHARD",
        /// Gradients and state inside a machine.
        HybridShardZero2 = "_HYBRID_SHARD_ZERO2",
    }

    /// The modules that OLMo shards as a unit.
    pub enum FsdpWrapStrategy {
        /// Blocks.
        ByBlock = "by_block",
        /// Blocks, embedding and head.
        ByBlockAndSize = "by_block_and_size",
        /// Groups of blocks.
        ByBlockGroup = "by_block_group",
        /// Groups of blocks, embedding and head.
        ByBlockGroupAndSize = "by_block_group_and_size",
        /// Modules of a size.
        SizeBased = "size_based",
        /// One block of two.
        OneInTwo = "one_in_two",
        /// One block of three.
        OneInThree = "one_in_three",
        /// One block of four.
        OneInFour = "one_in_four",
        /// One block of five.
        OneInFive = "one_in_five",
    }

    /// The number format of OLMo's shards.
    pub enum FsdpPrecision {
        /// That of the products for everything.
        Pure = "pure",
        /// Gradients are summed in f32.
        Mixed = "mixed",
    }

    /// The programs that write OLMo's sharded checkpoints.
    pub enum ShardedCheckpointer {
        /// Of torch.
        TorchNew = "torch_new",
        /// Of torch, before.
        TorchLegacy = "torch_legacy",
        /// A file per process.
        Local = "local",
        /// Of OLMo-core.
        OlmoCore = "olmo_core",
    }
}

sections! {
    /// `optimizer`
    pub struct OptimizerConfig {
        /// The rule.
        pub name: OptimizerName = OptimizerName::LionW,
        /// The learning rate that the schedule starts from.
        pub learning_rate: f64 = 1e-4,
        /// Decoupled weight decay, times the learning rate; of RMSprop the factor on the parameter in the gradient.
        pub weight_decay: f64 = 0.01,
        /// Decays of the first and second moment (AdamW); share in the update and decay of the one moment (LionW).
        /// RMSprop has the second alone: its α, of which torch's default is 0.99.
        pub betas: (f64, f64) = (0.9, 0.95),
        /// Added to the root of the second moment; LionW has none.
        pub eps: f64 = 1e-5,
        /// An older key for both of the next two, to which its value is copied when a configuration is read.
        pub no_decay_norm_and_bias: Option<bool> = None,
        /// Where a gradient is 0, parameter and state stay as they are.
        pub selective_updates: bool = false,
        /// Whether norms and biases decay.
        pub decay_norm_and_bias: bool = false,
        /// Whether the embedding decays.
        pub decay_embeddings: bool = false,
        /// Steps between logs of the metrics of every parameter; null: that of `wandb.log_interval`.
        pub metrics_log_interval: Option<u64> = None,
        /// Whether these metrics include those of the updates.
        pub record_update_metrics: bool = false,
    }

    /// `scheduler`
    pub struct SchedulerConfig {
        /// The shape.
        pub name: SchedulerName = SchedulerName::CosineWithWarmup,
        /// What the positions count.
        pub units: SchedulerUnits = SchedulerUnits::Steps,
        /// Length of the warm-up.
        pub t_warmup: Count = Count(100),
        /// Where the schedule ends; null: at the end of the duration.
        pub t_max: Option<Count> = None,
        /// The share of the learning rate at the end.
        pub alpha_f: f64 = 0.1,
        /// The position until which gradients are clipped at another norm.
        pub grad_clip_warmup_steps: Option<Count> = None,
        /// The factor of that norm.
        pub grad_clip_warmup_factor: Option<f64> = None,
        /// The learning rate that the warm-up starts from; none: a tenth.
        pub warmup_min_lr: Option<f64> = None,
    }

    /// `instance_filter`: sequences with many repetitions are left out of the loss.
    pub struct InstanceFilterConfig {
        /// Longest period looked for, in tokens.
        pub repetition_max_period: u64 = 13,
        /// Shortest period looked for, in tokens.
        pub repetition_min_period: u64 = 1,
        /// How many repetitions are too many.
        pub repetition_max_count: u64 = 32,
    }

    /// `data`, and that of an evaluator.
    pub struct DataConfig {
        /// Files of tokens; either these or `datasets`.
        pub paths: Option<Vec<String>> = None,
        /// How often each file of `paths` is read in a pass, such as 0.5 or 2, to mix them. Not a key of OLMo's.
        pub ratios: Option<Vec<f64>> = None,
        /// How token ids lie in them.
        pub memmap_dtype: TokenType = TokenType::Uint16,
        /// Files of tokens by the name of their set.
        pub datasets: Option<BTreeMap<String, Vec<String>>> = None,
        /// Files beside `paths` with a byte for each token that says whether it is learned.
        pub label_mask_paths: Option<Vec<String>> = None,
        /// At which end short sequences are filled up.
        pub pad_direction: PaddingDirection = PaddingDirection::Right,
        /// Whether padding is hidden from attention.
        pub generate_attention_mask: bool = false,
        /// Whether documents of one sequence are hidden from each other.
        pub generate_doc_lengths: bool = false,
        /// Processes of OLMo that load data.
        pub num_workers: u64 = 0,
        /// Whether a last batch that is not whole is left out.
        pub drop_last: bool = false,
        /// Memory for copies to an accelerator.
        pub pin_memory: bool = false,
        /// Batches that a process of OLMo loads ahead.
        pub prefetch_factor: Option<u64> = None,
        /// Whether these processes outlive an epoch.
        pub persistent_workers: bool = false,
        /// Seconds that OLMo waits for them.
        pub timeout: u64 = 0,
        /// Seed of the order; none: `seed`.
        pub seed: Option<u64> = None,
        /// Which sequences are left out of the loss.
        pub instance_filter: Option<InstanceFilterConfig> = None,
        /// Python code that loads data.
        pub custom_dataset: Unsupported = Unsupported,
    }

    /// One of `evaluators`.
    pub struct EvaluatorConfig {
        /// Its name.
        pub label: String = String::new(),
        /// What it computes.
        pub r#type: EvaluatorType = EvaluatorType::Lm,
        /// The texts, for a loss.
        pub data: DataConfig = DataConfig::default(),
        /// Sequences at once; none: that of the top level.
        pub device_eval_batch_size: Option<u64> = None,
        /// Batches, drawn once for all evaluations; -1 or 0 for all; none: `eval_subset_num_batches`.
        pub subset_num_batches: Option<i64> = None,
    }

    /// `tokenizer`
    pub struct TokenizerConfig {
        /// A file, a name of the hub, or a tokenizer that comes with OLMo.
        pub identifier: String = "gpt2".into(),
        /// At which end long inputs are cut.
        pub truncate_direction: TruncationDirection = TruncationDirection::Right,
    }

    /// `wandb`: where OLMo sends metrics. Here they stay in the folder of the run.
    pub struct WandbConfig {
        /// Project.
        pub project: Option<String> = None,
        /// Account.
        pub entity: Option<String> = Some("ai2-llm".into()),
        /// Group of runs.
        pub group: Option<String> = None,
        /// Name of the run.
        pub name: Option<String> = None,
        /// Labels of the run.
        pub tags: Option<Vec<String>> = Some(vec!["watching".into()]),
        /// Whether files are sent.
        pub log_artifacts: bool = false,
        /// Whether only the first process sends.
        pub rank_zero_only: bool = true,
        /// Steps from one log to the next.
        pub log_interval: u64 = 1,
    }

    /// `speed_monitor`
    pub struct SpeedMonitorConfig {
        /// Steps that the speed is averaged over.
        pub window_size: u64 = 100,
        /// The accelerator's operations a second.
        pub gpu_flops_available: Option<f64> = None,
    }

    /// `compile`: torch's compiler.
    pub struct CompilerConfig {
        /// Its mode.
        pub mode: Option<String> = None,
        /// Whether all has to be one graph.
        pub fullgraph: bool = false,
        /// What it writes for.
        pub backend: String = "inductor".into(),
        /// Whether sizes may change.
        pub dynamic: Option<bool> = None,
    }

    /// `fsdp`: torch's sharded data parallelism.
    pub struct FsdpConfig {
        /// Whether parameters keep their shapes.
        pub use_orig_params: bool = true,
        /// What is sharded.
        pub sharding_strategy: ShardingStrategy = ShardingStrategy::FullShard,
        /// What the shards are cut from.
        pub wrapping_strategy: Option<FsdpWrapStrategy> = None,
        /// Their number format.
        pub precision: Option<FsdpPrecision> = Some(FsdpPrecision::Pure),
        /// Copies of the model.
        pub hybrid_sharding_num_model_replicas: Option<u64> = None,
    }

    /// `ddp`: torch's data parallelism.
    pub struct DdpConfig {
        /// When gradients are exchanged.
        pub grad_sync_mode: DdpGradSyncMode = DdpGradSyncMode::Batch,
        /// Whether parameters may have no gradient.
        pub find_unused_params: bool = false,
    }

    /// `single`: one accelerator.
    pub struct SingleGpuConfig {
        /// Which.
        pub device: String = "auto".into(),
    }

    /// `samples`: texts that the model generates during training. Not a section of OLMo's.
    pub struct SamplesConfig {
        /// The prompts, each continued independently; at least one.
        pub prompts: Vec<String> = Vec::new(),
        /// Steps from one time to the next. The end of the run is one, too.
        pub interval: u64 = 1000,
        /// Most tokens of a text; an end-of-text token or the end of the model's context may end it before.
        pub max_new_tokens: u64 = 64,
        /// Divides the logits before the draw; 0 chooses the most likely token every time.
        pub temperature: f64 = 0.8,
        /// Draws only from this many most likely tokens; 0 for all.
        pub top_k: u64 = 40,
        /// Draws only from the most likely tokens whose probabilities sum to this; 1 for all.
        pub top_p: f64 = 0.95,
        /// Seed of the draws; none: `seed`. The prompt at place i has this plus i, every time.
        pub seed: Option<u64> = None,
    }

    /// A whole training configuration. The defaults are OLMo's, but for the model: OLMo's is a GPT-2 with dropout that
    /// no one trains, here it is that of the release. A file has to have the section `model`.
    pub struct TrainConfig {
        /// The name of the run.
        pub run_name: Option<String> = None,
        /// Seeds all that is random.
        pub seed: u64 = 6198,
        /// The pass over the data to begin with; none: that of the checkpoint.
        pub epoch: Option<u64> = None,
        /// Whether the run is prepared and nothing is trained.
        pub dry_run: bool = false,
        /// The model.
        pub model: ModelConfig = ModelConfig::release(),
        /// The optimizer.
        pub optimizer: OptimizerConfig = OptimizerConfig::default(),
        /// The learning rate over time.
        pub scheduler: SchedulerConfig = SchedulerConfig::default(),
        /// The training data.
        pub data: DataConfig = DataConfig::default(),
        /// Whether the data goes on where the checkpoint left off.
        pub restore_dataloader: bool = true,
        /// Batches to skip when a checkpoint is loaded.
        pub fast_forward_batches: Option<u64> = None,
        /// What is measured while training.
        pub evaluators: Vec<EvaluatorConfig> = Vec::new(),
        /// Folders, wheels and zip files with the data of evaluators of the type `downstream`, which are left out without
        /// any. Not a key of OLMo, whose data comes with its package.
        pub evaluation_data: Option<Vec<String>> = None,
        /// Steps from one evaluation to the next.
        pub eval_interval: u64 = 1000,
        /// The tokenizer, for evaluators and samples.
        pub tokenizer: TokenizerConfig = TokenizerConfig::default(),
        /// The folder of the run.
        pub save_folder: String = "./".into(),
        /// Where OLMo copies checkpoints to.
        pub remote_save_folder: Option<String> = None,
        /// Steps from one look for a cancelled job to the next.
        pub canceled_check_interval: u64 = 50,
        /// Steps from one checkpoint to the next.
        pub save_interval: Option<u64> = Some(1000),
        /// The same for OLMo's unsharded ones.
        pub save_interval_unsharded: Option<u64> = None,
        /// Steps from one checkpoint that is removed again to the next.
        pub save_interval_ephemeral: Option<u64> = None,
        /// How many checkpoints are kept; -1 all, 0: none is saved.
        pub save_num_checkpoints_to_keep: i64 = -1,
        /// The same for OLMo's unsharded ones.
        pub save_num_unsharded_checkpoints_to_keep: i64 = -1,
        /// Whether the folder of the run may hold another run.
        pub save_overwrite: bool = false,
        /// Whether a checkpoint is saved at once when one was loaded.
        pub force_save_unsharded: bool = false,
        /// Whether no checkpoint is saved before the first step.
        pub no_pre_train_checkpoint: bool = false,
        /// The checkpoint to begin from.
        pub load_path: Option<String> = None,
        /// The program that wrote it.
        pub load_path_sharded_checkpointer: Option<ShardedCheckpointer> = None,
        /// Whether the newest checkpoint in the folder of the run takes precedence over `load_path`.
        pub try_load_latest_save: bool = false,
        /// Whether the optimizer begins anew.
        pub reset_optimizer_state: bool = false,
        /// Whether steps, tokens and data begin anew.
        pub reset_trainer_state: bool = false,
        /// The program that writes checkpoints.
        pub sharded_checkpointer: ShardedCheckpointer = ShardedCheckpointer::TorchLegacy,
        /// The older way to say which.
        pub new_style_checkpoints: Option<bool> = None,
        /// How long to train.
        pub max_duration: Duration = Duration::Steps(10_000),
        /// Sequences of a step.
        pub global_train_batch_size: u64 = 512,
        /// OLMo's own figure: sequences of a step and process.
        pub device_train_batch_size: Option<u64> = None,
        /// Sequences of a forward and backward pass.
        pub device_train_microbatch_size: u64 = 16,
        /// Sequences of a forward pass of an evaluation.
        pub device_eval_batch_size: u64 = 16,
        /// Batches of an evaluation, drawn once for all; -1 or 0 all.
        pub eval_subset_num_batches: i64 = -1,
        /// Whether evaluations run at once when a checkpoint was loaded.
        pub eval_on_load: bool = false,
        /// OLMo's own figure: passes of a step and process.
        pub device_train_grad_accum: Option<u64> = None,
        /// Gradients with a larger norm are scaled down to it.
        pub max_grad_norm: Option<f64> = None,
        /// Gradients of a parameter with a norm so many times its running mean are scaled down; goes before the former.
        pub max_grad_norm_ratio: Option<f64> = None,
        /// Number formats.
        pub precision: Option<TrainPrecision> = None,
        /// Where metrics go.
        pub wandb: Option<WandbConfig> = None,
        /// How the speed is measured.
        pub speed_monitor: SpeedMonitorConfig = SpeedMonitorConfig::default(),
        /// Steps from one line on the terminal to the next.
        pub console_log_interval: u64 = 1,
        /// Steps from one of Python's garbage collections to the next.
        pub gen1_gc_interval: Option<u64> = Some(1),
        /// torch's compiler.
        pub compile: Option<CompilerConfig> = None,
        /// How a run is spread over processes.
        pub distributed_strategy: Option<DistributedStrategy> = Some(DistributedStrategy::Fsdp),
        /// Shards.
        pub fsdp: Option<FsdpConfig> = Some(FsdpConfig::default()),
        /// Replicas of the whole model (DDP).
        pub ddp: Option<DdpConfig> = None,
        /// One process.
        pub single: SingleGpuConfig = SingleGpuConfig::default(),
        /// Whether the logarithm of the softmax's normaliser is kept small.
        pub softmax_auxiliary_loss: bool = false,
        /// The weight of that.
        pub auxiliary_loss_multiplier: Option<f64> = Some(1e-4),
        /// Seconds until the run saves and ends.
        pub time_limit: Option<f64> = None,
        /// Steps after the last checkpoint of a cancelled job.
        pub extra_steps_after_cancel: u64 = 10,
        /// After the warm-up, training stops when the loss is so many times its smallest.
        pub early_stopping_factor: Option<f64> = None,
        /// Whether the sequences of each step are written down.
        pub save_data_indices: bool = true,
        /// Python's profiler.
        pub python_profiling: bool = false,
        /// torch's profiler.
        pub torch_profiling: bool = false,
        /// The step after which training stops.
        pub stop_at: Option<u64> = None,
        /// How many steps to train at most.
        pub stop_after: Option<u64> = None,
        /// Activation checkpointing: what is recomputed instead of kept.
        pub activation_checkpointing: Option<ActivationCheckpointing> = None,
        /// Whether OLMo computes the loss in one kernel.
        pub fused_loss: Option<bool> = None,
        /// The folder of OLMo's evaluation sets.
        pub hf_datasets_cache_dir: Option<String> = None,
        /// Steps whose intermediate results OLMo writes down.
        pub module_outputs_save_steps: Option<Vec<u64>> = None,
        /// Texts that the model generates during training. Not a key of OLMo's; it is written only when it is set.
        pub samples: Option<SamplesConfig> = None,
    }
}

/// The section `model` is read and written by the model's own crate.
impl Field for ModelConfig {
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        match value {
            Value::Object(_) => {
                let file = serde_json::json!({ "model": value });
                Ok(ModelConfig::from_olmo_value(&file).map_err(TrainConfigError::Model)?.config)
            }
            _ => Err(at.wrong_type("a section of keys and values", value)),
        }
    }

    fn tree(&self) -> Tree {
        let text = self.to_olmo_yaml();
        let lines =
            text.iter().flat_map(|text| text.lines()).filter_map(|line| line.strip_prefix("  ")?.split_once(": "));
        let parse = |value| parse_yaml(value).unwrap_or(Value::Null);
        Tree::Map(lines.map(|(key, value)| (key.to_owned(), Tree::Value(parse(value)))).collect())
    }
}

/// Whether the model can be written, which [`Field::tree`] cannot say.
pub(super) fn check_model(model: &ModelConfig) -> Result<(), ConfigError> {
    model.to_olmo_yaml().map(drop)
}
