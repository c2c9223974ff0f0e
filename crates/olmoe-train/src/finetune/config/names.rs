//! Keys of other programs: further names of keys, keys that say the same in another way, keys that do nothing here, and keys
//! that ask for what there is not.
//!
//! The other programs are open-instruct, trl and peft, transformers' trainer, axolotl, LLaMA-Factory, accelerate, and
//! Megatron-Bridge, whose recipe has its own names in [`recipe`](super::recipe).

use serde_json::{Value, json};

use super::Task;
use crate::config::Words;

/// Keys of the program and their values; or what is wrong with a value.
type Meant = Result<Vec<(&'static str, Value)>, &'static str>;

/// What becomes of a key that is none of the program's.
#[derive(Clone, Copy)]
pub(super) enum Meaning {
    /// A key of the program, by the task where that decides.
    Same(fn(Task) -> Option<&'static str>),
    /// Keys of the program that say what its value says; or why it cannot be.
    Says(Words, fn(&Value) -> Meant),
    /// Nothing, with a note.
    NoEffect(Words, &'static str),
    /// It is refused, unless its value is the second, which means that it is off.
    Refused(Words, fn(&Value) -> bool, &'static str),
}

use Meaning::{NoEffect, Refused, Same, Says};
use Words::{Flag, Many, One};

/// Expands to a key by another name, for all tasks.
macro_rules! same {
    ($key:literal) => {
        Same(|_| Some($key))
    };
}

const UPLOAD: &str = "nothing is uploaded; `huggingface-cli upload` takes the folder that the run leaves";
const TRACKING: &str =
    "nothing is sent anywhere; metrics are in metrics.jsonl and for TensorBoard in the folder of the run";
const PROCESSES: &str = "one process computes the whole batch; multiply `gradient_accumulation_steps` by the number of processes for the same one";
const LAUNCHER: &str = "no effect; it is for the launcher of several processes";
const CODE: &str = "no effect; no code of a model is run";
const KERNEL: &str = "no effect; attention never stores its scores, and the head is computed a part at a time";
const WORKERS: &str = "no effect; rows are encoded by all threads of the process";
const CLUSTER: &str = "no effect; it is for AllenAI's cluster";
const PREPARED: &str = "no effect; rows are encoded as `train_on`, `label_spans` and `truncation` say";
const CACHE: &str = "no effect; encoded rows are kept in the folder of the run";
const RECOMPUTE: &str = "no effect; `activations` says what is computed again";
const PARALLEL: &str = "no effect; one process holds the model, and the result does not depend on how many would";
const GPU: &str = "no effect; the model is trained on the processor";
const OPTIMIZER_MEMORY: &str =
    "optimizer states are f32 here; train fewer parameters (`use_lora`, `train`), which is what it saves memory for";
const QUANTISE: &str = "the base stays as its file has it: quantise it first (olmoe quantize BASE base.gguf --type q4_k_m) and name that file";

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => {
            matches!(text.to_ascii_lowercase().as_str(), "" | "false" | "no" | "off" | "0" | "none" | "null")
        }
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    }
}

/// Whether a value is that of the training split, which is the only one that files are of.
fn is_train_split(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().all(is_train_split),
        Value::String(text) => text == "train",
        other => is_off(other),
    }
}

fn is_adapter_off(value: &Value) -> bool {
    value.as_str().is_some_and(|text| matches!(text.to_ascii_lowercase().as_str(), "none" | "null" | "full"))
}

/// Every such key, by program and purpose.
pub(super) const NAMES: &[(&str, Meaning)] = &[
    // The model.
    ("model", same!("model_name_or_path")),
    ("base_model", same!("model_name_or_path")),
    ("model_id", same!("model_name_or_path")),
    ("revision", same!("model_revision")),
    ("tokenizer", same!("tokenizer_name")),
    ("tokenizer_name_or_path", same!("tokenizer_name")),
    ("tokenizer_path", same!("tokenizer_name")),
    ("chat_template", same!("chat_template_name")),
    ("chat_template_path", same!("chat_template_name")),
    (
        "config_name",
        Refused(One, is_off, "the configuration is the model's own; change the model's config.json instead"),
    ),
    (
        "tokenizer_revision",
        Refused(
            One,
            |value| is_off(value) || value == "main",
            "write it behind the name: `tokenizer_name: REPO@REVISION`",
        ),
    ),
    ("bf16", Says(Flag, |value| Ok(vec![("precision", if is_off(value) { "fp32" } else { "amp_bf16" }.into())]))),
    ("fp16", Refused(Flag, is_off, "there is no fp16; leave it out for bf16, or set `precision: fp32`")),
    ("tf32", NoEffect(Flag, GPU)),
    (
        "mixed_precision",
        Says(One, |value| match value.as_str() {
            Some("bf16") => Ok(vec![("precision", "amp_bf16".into())]),
            Some("no") | None => Ok(vec![("precision", "fp32".into())]),
            Some(_) => Err("it must be bf16 or no; there is no fp16 and no fp8"),
        }),
    ),
    (
        "torch_dtype",
        Says(One, |value| match value.as_str() {
            Some("bfloat16" | "auto") | None => Ok(vec![]),
            Some("float32") => Ok(vec![("precision", "fp32".into())]),
            Some(_) => Err("it must be bfloat16, float32 or auto"),
        }),
    ),
    // Data.
    ("train_files", same!("train_file")),
    ("data_files", same!("train_file")),
    ("train_data_path", same!("train_file")),
    ("data_path", same!("train_file")),
    ("data", same!("train_file")),
    ("dataset", same!("train_file")),
    ("max_samples", same!("max_train_samples")),
    ("data_format", same!("dataset_format")),
    ("type", same!("dataset_format")),
    ("dataset_mixer_list_splits", Refused(Many, is_train_split, "a file is taken whole; name the files of the split")),
    ("dataset_train_split", Refused(One, is_train_split, "a file is taken whole; name the files of the split")),
    ("dataset_config_name", Refused(One, is_off, "a source is a file or folder; name the files of the subset")),
    ("dataset_config", Refused(One, is_off, "a source is a file or folder; name the files of the subset")),
    (
        "sanity_check",
        Says(Flag, |value| Ok(if is_off(value) { vec![] } else { vec![("max_train_samples", 1000.into())] })),
    ),
    ("streaming", Refused(Flag, is_off, "rows are encoded before the first step, and kept; leave it out")),
    ("preprocessing_num_workers", NoEffect(One, WORKERS)),
    ("dataset_num_proc", NoEffect(One, WORKERS)),
    ("dataset_processes", NoEffect(One, WORKERS)),
    ("dataloader_num_workers", NoEffect(One, WORKERS)),
    ("dataset_transform_fn", NoEffect(Many, PREPARED)),
    ("dataset_target_columns", NoEffect(Many, PREPARED)),
    ("remove_unused_columns", NoEffect(Flag, PREPARED)),
    ("dataset_cache_mode", NoEffect(One, CACHE)),
    ("dataset_local_cache_dir", NoEffect(One, CACHE)),
    ("dataset_config_hash", NoEffect(One, CACHE)),
    ("dataset_mix_dir", NoEffect(One, CACHE)),
    ("dataset_prepared_path", NoEffect(One, CACHE)),
    ("dataset_skip_cache", same!("overwrite_cache")),
    // Conversations.
    ("max_length", same!("max_seq_length")),
    ("seq_length", same!("max_seq_length")),
    ("sequence_len", same!("max_seq_length")),
    ("cutoff_len", same!("max_seq_length")),
    ("model_max_length", same!("max_seq_length")),
    ("truncation_mode", same!("truncation")),
    ("excess_length_strategy", same!("truncation")),
    ("pack", same!("packing")),
    ("sample_packing", same!("packing")),
    ("packed_sequence", same!("packing")),
    ("packing_strategy", same!("packing")),
    ("padding_free", NoEffect(Flag, "no effect; nothing is ever padded")),
    (
        "group_by_length",
        NoEffect(Flag, "no effect; nothing is padded, so that the lengths of neighbours do not matter"),
    ),
    ("train_on_inputs", Says(Flag, train_on_prompt)),
    ("train_on_prompt", Says(Flag, train_on_prompt)),
    ("completion_only_loss", Says(Flag, |value| train_on_prompt(&Value::Bool(is_off(value))))),
    ("assistant_only_loss", Says(Flag, |value| train_on_prompt(&Value::Bool(is_off(value))))),
    (
        "mask_history",
        Says(Flag, |value| Ok(if is_off(value) { vec![] } else { vec![("train_on", json!(["last_answer"]))] })),
    ),
    ("roles_to_train", same!("train_on")),
    // What is trained.
    ("lora_r", same!("lora_rank")),
    ("lora_dim", same!("lora_rank")),
    ("r", same!("lora_rank")),
    ("target_modules", same!("lora_target")),
    ("lora_target_modules", same!("lora_target")),
    ("exclude_modules", same!("lora_exclude")),
    ("lora_modules_to_save", same!("modules_to_save")),
    ("init_lora_weights", same!("lora_init")),
    ("loraplus_lr_b_ratio", same!("loraplus_lr_ratio")),
    ("adapter_path", same!("adapter_name_or_path")),
    ("lora_model_dir", same!("adapter_name_or_path")),
    ("use_peft", same!("use_lora")),
    ("trainable", same!("train")),
    (
        "share_expert_adapters",
        Says(Flag, |value| Ok(vec![("lora_sharing", if is_off(value) { "per_expert" } else { "shared" }.into())])),
    ),
    (
        "peft",
        Says(One, |value| match value.as_str() {
            Some("lora") => Ok(vec![("use_lora", true.into())]),
            Some("dora") => Ok(vec![("use_lora", true.into()), ("use_dora", true.into())]),
            None => Ok(vec![("use_lora", false.into())]),
            Some(_) if is_adapter_off(value) => Ok(vec![("use_lora", false.into())]),
            Some(_) => Err("it must be lora, dora or none"),
        }),
    ),
    (
        "finetuning_type",
        Says(One, |value| match value.as_str() {
            Some("lora") => Ok(vec![("use_lora", true.into())]),
            Some("full") => Ok(vec![]),
            _ => Err("it must be lora or full; `train` names chosen parameters"),
        }),
    ),
    ("use_qlora", Says(Flag, |value| Ok(if is_off(value) { vec![] } else { vec![("use_lora", true.into())] }))),
    ("load_in_4bit", Refused(Flag, is_off, QUANTISE)),
    ("load_in_8bit", Refused(Flag, is_off, QUANTISE)),
    ("bnb_4bit_quant_type", NoEffect(One, QUANTISE)),
    ("use_bnb_nested_quant", NoEffect(Flag, QUANTISE)),
    ("lora_task_type", NoEffect(One, "no effect; the model is a causal language model")),
    (
        "lora_bias",
        Refused(One, |value| is_off(value) || is_adapter_off(value), "adapters have no bias here; leave it out"),
    ),
    // Steps.
    ("micro_batch_size", same!("per_device_train_batch_size")),
    ("total_batch_size", same!("global_batch_size")),
    ("train_batch_size", same!("global_batch_size")),
    ("epochs", same!("num_train_epochs")),
    ("num_epochs", same!("num_train_epochs")),
    ("max_steps", same!("max_train_steps")),
    ("optimizer", same!("optim")),
    ("lr", same!("learning_rate")),
    ("lr_scheduler", same!("lr_scheduler_type")),
    ("num_warmup_steps", same!("warmup_steps")),
    ("max_grad_norm", same!("clip_grad_norm")),
    ("adam_eps", same!("adam_epsilon")),
    ("data_seed", Refused(One, is_off, "one seed is for everything; set `seed`")),
    ("use_8bit_optimizer", Refused(Flag, is_off, OPTIMIZER_MEMORY)),
    ("dpo_use_paged_optimizer", Refused(Flag, is_off, OPTIMIZER_MEMORY)),
    ("fused_optimizer", NoEffect(Flag, "no effect; the optimizer is always fused")),
    // Megatron-Bridge's recipes.
    ("pretrained_checkpoint", same!("model_name_or_path")),
    ("finetune_lr", same!("learning_rate")),
    ("train_iters", same!("max_train_steps")),
    ("lr_warmup_iters", same!("warmup_steps")),
    ("lr_decay_iters", same!("lr_decay_steps")),
    (
        "recompute_granularity",
        Says(One, |value| match value.as_str() {
            Some("full") => Ok(vec![("activations", "recompute".into())]),
            Some("selective") | None => Ok(vec![]),
            Some(_) => Err("it must be full or selective"),
        }),
    ),
    ("recompute_modules", NoEffect(Many, RECOMPUTE)),
    ("recompute_method", NoEffect(One, RECOMPUTE)),
    ("recompute_num_layers", NoEffect(One, RECOMPUTE)),
    ("tensor_model_parallel_size", NoEffect(One, PARALLEL)),
    ("pipeline_model_parallel_size", NoEffect(One, PARALLEL)),
    ("virtual_pipeline_model_parallel_size", NoEffect(One, PARALLEL)),
    ("context_parallel_size", NoEffect(One, PARALLEL)),
    ("expert_model_parallel_size", NoEffect(One, PARALLEL)),
    ("sequence_parallel", NoEffect(Flag, PARALLEL)),
    ("pipeline_dtype", NoEffect(One, PARALLEL)),
    ("apply_rope_fusion", NoEffect(Flag, KERNEL)),
    ("precision_config", Refused(One, is_off, "set `precision`: amp_bf16 or fp32")),
    ("comm_overlap_config", NoEffect(One, PARALLEL)),
    // Loss.
    ("loss_reduction", same!("reduce_loss")),
    ("neftune_alpha", same!("neftune_noise_alpha")),
    (
        "loss_type",
        Same(|task| {
            Some(match task {
                Task::Sft => "loss",
                Task::Dpo => "dpo_loss_type",
                Task::Kto => "kto_loss_type",
            })
        }),
    ),
    ("pref_loss", same!("dpo_loss_type")),
    ("router_aux_loss_coef", Says(One, balancing)),
    ("moe_aux_loss_coef", Says(One, balancing)),
    (
        "beta",
        Same(|task| match task {
            Task::Sft => None,
            Task::Dpo => Some("dpo_beta"),
            Task::Kto => Some("kto_beta"),
        }),
    ),
    ("pref_beta", same!("dpo_beta")),
    ("label_smoothing", same!("dpo_label_smoothing")),
    ("gamma_beta_ratio", same!("dpo_gamma_beta_ratio")),
    ("kto_chosen_weight", same!("desirable_weight")),
    ("kto_rejected_weight", same!("undesirable_weight")),
    ("ref_model", same!("ref_model_name_or_path")),
    ("concatenated_forward", NoEffect(Flag, "no effect; the prompt of a pair is computed once for both answers")),
    ("reference_free", Refused(Flag, is_off, "set a loss without a reference: `dpo_loss_type: simpo`, orpo or cpo")),
    ("sync_ref_model", Refused(Flag, is_off, "the reference stays as it is; leave it out")),
    ("rpo_alpha", Refused(One, is_off, "set `dpo_loss_type: [sigmoid, sft]` and `loss_weights: [1, ALPHA]`")),
    // Evaluation.
    ("validation_file", same!("eval_file")),
    ("eval_dataset", same!("eval_file")),
    ("eval_data_path", same!("eval_file")),
    ("test_datasets", same!("eval_file")),
    ("val_set_size", same!("eval_split")),
    ("val_size", same!("eval_split")),
    ("eval_interval", same!("eval_steps")),
    ("patience", same!("early_stopping_patience")),
    ("eval_strategy", NoEffect(One, "no effect; `eval_steps` says when, none once in an epoch")),
    ("evaluation_strategy", NoEffect(One, "no effect; `eval_steps` says when, none once in an epoch")),
    (
        "per_device_eval_batch_size",
        NoEffect(One, "no effect; no result depends on it, and batches are as large as in training"),
    ),
    ("generate_during_eval", NoEffect(Flag, "no effect; `sample_prompts` names a file of prompts to answer")),
    ("do_train", NoEffect(Flag, "no effect; the command trains")),
    ("do_eval", NoEffect(Flag, "no effect; `eval_file` and `eval_split` name what is evaluated on")),
    // The run.
    ("save_folder", same!("output_dir")),
    ("exp_name", same!("run_name")),
    ("save_steps", same!("checkpointing_steps")),
    ("save_interval", same!("checkpointing_steps")),
    ("save_total_limit", same!("keep_last_n_checkpoints")),
    ("keep", same!("keep_last_n_checkpoints")),
    ("log_interval", same!("logging_steps")),
    ("format", same!("output_format")),
    (
        "save_strategy",
        Says(One, |value| match value.as_str() {
            Some("epoch") => Ok(vec![("checkpointing_steps", "epoch".into())]),
            Some("steps" | "no") | None => Ok(vec![]),
            Some(_) => Err("it must be epoch, steps or no"),
        }),
    ),
    (
        "gradient_checkpointing",
        Says(Flag, |value| Ok(if is_off(value) { vec![] } else { vec![("activations", "recompute".into())] })),
    ),
    ("gradient_checkpointing_kwargs", NoEffect(One, "no effect; `activations` says what is computed again")),
    ("do_not_randomize_output_dir", NoEffect(Flag, "no effect; the folder is the one that is named")),
    ("cache_dataset_only", Refused(Flag, is_off, "`--plan` encodes the data, shows the plan and ends")),
    // Tracking and sending.
    ("with_tracking", NoEffect(Flag, TRACKING)),
    ("report_to", NoEffect(Many, TRACKING)),
    ("wandb_project_name", NoEffect(One, TRACKING)),
    ("wandb_project", NoEffect(One, TRACKING)),
    ("wandb_entity", NoEffect(One, TRACKING)),
    ("wandb_exp_name", NoEffect(One, TRACKING)),
    ("logging_dir", NoEffect(One, TRACKING)),
    ("push_to_hub", NoEffect(Flag, UPLOAD)),
    ("save_to_hub", NoEffect(One, UPLOAD)),
    ("hf_entity", NoEffect(One, UPLOAD)),
    ("hf_repo_id", NoEffect(One, UPLOAD)),
    ("hf_repo_revision", NoEffect(One, UPLOAD)),
    ("hf_repo_url", NoEffect(One, UPLOAD)),
    ("hub_model_id", NoEffect(One, UPLOAD)),
    ("hf_metadata_dataset", NoEffect(One, UPLOAD)),
    ("gs_bucket_path", NoEffect(One, UPLOAD)),
    ("try_auto_save_to_beaker", NoEffect(Flag, CLUSTER)),
    ("try_launch_beaker_eval_jobs", NoEffect(Flag, CLUSTER)),
    ("beaker_eval_freq", NoEffect(One, CLUSTER)),
    ("oe_eval_tasks", NoEffect(Many, CLUSTER)),
    ("oe_eval_max_length", NoEffect(One, CLUSTER)),
    ("timeout", NoEffect(One, LAUNCHER)),
    ("ddp_timeout", NoEffect(One, LAUNCHER)),
    // Launchers.
    ("num_processes", NoEffect(One, PROCESSES)),
    ("num_machines", NoEffect(One, PROCESSES)),
    ("machine_rank", NoEffect(One, LAUNCHER)),
    ("main_process_ip", NoEffect(One, LAUNCHER)),
    ("main_process_port", NoEffect(One, LAUNCHER)),
    ("rdzv_backend", NoEffect(One, LAUNCHER)),
    ("config_file", NoEffect(One, LAUNCHER)),
    ("use_deepspeed", NoEffect(Flag, LAUNCHER)),
    ("deepspeed_config_file", NoEffect(One, LAUNCHER)),
    ("deepspeed_multinode_launcher", NoEffect(One, LAUNCHER)),
    ("deepspeed", NoEffect(One, LAUNCHER)),
    ("zero_stage", NoEffect(One, LAUNCHER)),
    ("fsdp", NoEffect(One, LAUNCHER)),
    ("local_rank", NoEffect(One, LAUNCHER)),
    ("dynamo_backend", NoEffect(One, LAUNCHER)),
    // Kernels and loading.
    ("use_flash_attn", NoEffect(Flag, KERNEL)),
    ("attn_implementation", NoEffect(One, KERNEL)),
    ("use_liger_kernel", NoEffect(Flag, KERNEL)),
    ("use_slow_tokenizer", NoEffect(Flag, "no effect; there is one tokenizer")),
    ("low_cpu_mem_usage", NoEffect(Flag, "no effect; a model is never in memory twice")),
    ("trust_remote_code", NoEffect(Flag, CODE)),
    ("use_cache", NoEffect(Flag, "no effect; training has no cache")),
    (
        "additional_model_arguments",
        Refused(One, is_off, "the configuration is the model's own; change the model's config.json instead"),
    ),
];

fn train_on_prompt(value: &Value) -> Meant {
    Ok(vec![("train_on", json!([if is_off(value) { "answers" } else { "everything" }]))])
}

/// A weight that is 0 where there is no loss.
fn balancing(value: &Value) -> Meant {
    let on = !is_off(value) && value.as_str().and_then(|text| text.parse().ok()) != Some(0.0);
    let mut keys = vec![("load_balancing_loss", on.into())];
    keys.extend(on.then(|| ("load_balancing_weight", value.clone())));
    Ok(keys)
}

/// Other words for values of keys: of transformers' optimizers, and where true and false say which.
pub(super) const VALUES: &[(&str, &[&str], &str)] = &[
    ("optim", &["adamw_torch", "adamw_torch_fused", "adamw_hf", "adam"], "adamw"),
    ("optim", &["lion", "lion_32bit"], "lionw"),
    ("packing", &["true"], "best_fit"),
    ("packing", &["false"], "off"),
    ("lora_init", &["true"], "kaiming"),
    ("chat_template_name", &["tokenizer_default", "default"], "null"),
    ("kto_loss_type", &["apo_zero"], "apo_zero_unpaired"),
];

/// Names that begin a whole family of keys without effect.
pub(super) const PREFIXES: &[(&str, &str)] =
    &[("deepspeed_", LAUNCHER), ("fsdp_", LAUNCHER), ("beaker_", CLUSTER), ("wandb_", TRACKING), ("hub_", UPLOAD)];

/// What a key of another program means here.
pub(super) fn meaning(key: &str) -> Option<Meaning> {
    let found = NAMES.iter().find(|(name, _)| *name == key).map(|(_, meaning)| *meaning);
    found.or_else(|| {
        let prefix = PREFIXES.iter().find(|(prefix, _)| key.starts_with(prefix));
        prefix.map(|(_, note)| NoEffect(One, note))
    })
}
