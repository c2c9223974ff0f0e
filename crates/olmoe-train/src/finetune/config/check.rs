//! Checks of values, alone and together.

use serde_json::{Map, Value};

use super::schema::{FinetuneConfig, LoraInit, LrScheduler, Truncation};
use super::{Task, says_something, shown};
use crate::config::field::Field;
use crate::config::{Notice, TrainConfigError};

/// Keys that are of adapters alone.
const OF_ADAPTERS: [&str; 13] = [
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_target",
    "lora_exclude",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "lora_sharing",
    "lora_init",
    "loraplus_lr_ratio",
    "modules_to_save",
    "merge_adapter",
];
/// Those that an adapter does not say itself.
const WITH_PATH: [&str; 4] = ["lora_dropout", "loraplus_lr_ratio", "modules_to_save", "merge_adapter"];
/// What `resume_from_checkpoint` may be.
const RESUME: [&str; 4] = ["true", "latest", "auto", "false"];
/// The ways to name data; one is taken.
const OF_DATA: [&str; 5] = ["dataset_mixer_list", "dataset_mixer", "dataset_name", "train_file", "datasets"];

/// The first value that is out of its range or does not go with another. `given` is what file and flags say.
pub(super) fn check(
    task: Task,
    config: &FinetuneConfig,
    given: &Map<String, Value>,
    notices: &mut Vec<Notice>,
) -> Result<(), TrainConfigError> {
    numbers(config)?;
    counts(config)?;
    together(config, given)?;
    adapters(config, given, notices)?;
    if task == Task::Kto && config.optim.is_none() {
        notices.push(Notice {
            key: "optim".to_owned(),
            text: "rmsprop, as the released model; adamw is the other".to_owned(),
        });
    }
    Ok(())
}

fn value(path: &str, found: impl ToString, problem: &'static str) -> TrainConfigError {
    TrainConfigError::Value { path: path.to_owned(), found: found.to_string(), problem }
}

fn numbers(config: &FinetuneConfig) -> Result<(), TrainConfigError> {
    let positive = [
        ("learning_rate", config.learning_rate),
        ("num_train_epochs", config.num_train_epochs),
        ("lora_alpha", config.lora_alpha),
        ("loraplus_lr_ratio", config.loraplus_lr_ratio),
        ("neftune_noise_alpha", config.neftune_noise_alpha),
        ("eval_split", config.eval_split),
        ("dpo_beta", Some(config.dpo_beta)),
        ("kto_beta", Some(config.kto_beta)),
    ];
    for (path, number) in positive {
        if let Some(number) = number.filter(|number| !(*number > 0.0 && number.is_finite())) {
            return Err(value(path, number, "it must be greater than 0"));
        }
    }
    let at_least_0 = [
        ("min_lr", Some(config.min_lr)),
        ("weight_decay", Some(config.weight_decay)),
        ("adam_epsilon", Some(config.adam_epsilon)),
        ("load_balancing_weight", config.load_balancing_weight),
        ("desirable_weight", Some(config.desirable_weight)),
        ("undesirable_weight", Some(config.undesirable_weight)),
        ("simpo_gamma", config.simpo_gamma),
    ];
    for (path, number) in at_least_0 {
        if let Some(number) = number.filter(|number| *number < 0.0) {
            return Err(value(path, number, "it must be at least 0"));
        }
    }
    let below_1 = [
        ("warmup_ratio", config.warmup_ratio),
        ("lora_dropout", Some(config.lora_dropout)),
        ("adam_beta1", Some(config.adam_beta1)),
        ("adam_beta2", config.adam_beta2),
    ];
    for (path, number) in below_1 {
        if let Some(number) = number.filter(|number| !(0.0..1.0).contains(number)) {
            return Err(value(path, number, "it must be at least 0 and less than 1"));
        }
    }
    if config.clip_grad_norm != -1.0 && config.clip_grad_norm <= 0.0 {
        return Err(value("clip_grad_norm", config.clip_grad_norm, "it must be greater than 0; -1 turns clipping off"));
    }
    if let Some(share) = config.esft_threshold.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
        return Err(value("esft_threshold", share, "it must be greater than 0 and at most 1"));
    }
    if config.esft_threshold.is_some() && config.esft.is_none() {
        return Err(value("esft_threshold", "set", "it goes with `esft`; set it to token or gate"));
    }
    if config.min_lr > 0.0 {
        return Err(value(
            "min_lr",
            config.min_lr,
            "schedules end at 0; leave it out, or set `lr_decay_steps` beyond the end",
        ));
    }
    if let Some(split) = config.eval_split.filter(|split| *split >= 1.0 && split.fract() != 0.0) {
        return Err(value("eval_split", split, "it must be a fraction below 1 or a number of rows"));
    }
    Ok(())
}

fn counts(config: &FinetuneConfig) -> Result<(), TrainConfigError> {
    let at_least_1 = [
        ("lora_rank", Some(config.lora_rank)),
        ("per_device_train_batch_size", config.per_device_train_batch_size),
        ("gradient_accumulation_steps", config.gradient_accumulation_steps),
        ("global_batch_size", config.global_batch_size),
        ("max_train_steps", config.max_train_steps),
        ("max_train_samples", config.max_train_samples),
        ("lr_scheduler_processes", Some(config.lr_scheduler_processes)),
        ("lr_decay_steps", config.lr_decay_steps),
        ("eval_steps", config.eval_steps),
        ("sample_steps", config.sample_steps),
        ("sample_max_new_tokens", Some(config.sample_max_new_tokens)),
        ("early_stopping_patience", config.early_stopping_patience),
        ("logging_steps", Some(config.logging_steps)),
        ("max_prompt_length", config.max_prompt_length),
    ];
    for (path, count) in at_least_1 {
        if count == Some(0) {
            return Err(value(path, 0, "it must be at least 1"));
        }
    }
    if let Some(length @ ..2) = config.max_seq_length {
        return Err(value("max_seq_length", length, "it must be at least 2: a token and the one that follows it"));
    }
    if config.keep_last_n_checkpoints != -1 && config.keep_last_n_checkpoints < 1 {
        return Err(value(
            "keep_last_n_checkpoints",
            config.keep_last_n_checkpoints,
            "it must be at least 1, or -1 for all",
        ));
    }
    if let Some(text) = &config.checkpointing_steps
        && text != "epoch"
        && !text.parse::<u64>().is_ok_and(|steps| steps > 0)
    {
        return Err(value("checkpointing_steps", text, "it must be a number of steps, at least 1, or epoch"));
    }
    Ok(())
}

fn together(config: &FinetuneConfig, given: &Map<String, Value>) -> Result<(), TrainConfigError> {
    let is_given = |key: &str| given.get(key).is_some_and(says_something);
    let pairs = [
        ("max_train_steps", "num_train_epochs", "both say how long the run is; keep one"),
        ("warmup_steps", "warmup_ratio", "both say how long the warm-up is; keep one"),
        ("global_batch_size", "gradient_accumulation_steps", "both say how many rows a step has; keep one"),
        ("simpo_gamma", "dpo_gamma_beta_ratio", "both say how large the margin is; keep one"),
        ("esft", "use_lora", "experts are trained as they are, or adapters; keep one"),
    ];
    for (key, other, problem) in pairs {
        if is_given(key) && is_given(other) {
            return Err(value(key, format!("set beside `{other}`"), problem));
        }
    }
    let data: Vec<&str> = OF_DATA.into_iter().filter(|key| is_given(key)).collect();
    if let [first, second, ..] = data[..] {
        return Err(value(second, format!("set beside `{first}`"), "both say what the data is; keep one"));
    }
    if let (Some(all), Some(part)) = (config.global_batch_size, config.per_device_train_batch_size)
        && !all.is_multiple_of(part)
    {
        return Err(value("global_batch_size", all, "it must be a multiple of `per_device_train_batch_size`"));
    }
    if config.max_prompt_length.is_some() && config.truncation != Truncation::KeepStart {
        let problem = "it is one way to shorten rows that are too long, and `truncation` names another; keep one";
        return Err(value("max_prompt_length", "set", problem));
    }
    let constant = matches!(config.lr_scheduler_type, LrScheduler::Constant);
    if constant
        && (is_given("warmup_ratio") && config.warmup_ratio != Some(0.0)
            || config.warmup_steps.is_some_and(|steps| steps > 0))
    {
        let problem = "it has no warm-up, and one is asked for; set constant_with_warmup, or leave out the warm-up";
        return Err(value("lr_scheduler_type", "constant", problem));
    }
    if config.early_stopping_patience.is_some() && config.eval_file.is_empty() && config.eval_split.is_none() {
        return Err(value(
            "early_stopping_patience",
            "set",
            "there is nothing to evaluate on; set `eval_split` or `eval_file`",
        ));
    }
    if let Some(from) = &config.resume_from_checkpoint {
        if !RESUME.contains(&from.to_ascii_lowercase().as_str()) {
            let problem =
                "a run goes on from the newest checkpoint of `output_dir`; leave it out, or set true or false";
            return Err(value("resume_from_checkpoint", from, problem));
        }
        if config.overwrite_output_dir {
            return Err(value(
                "overwrite_output_dir",
                "true",
                "`resume_from_checkpoint` is set, too; keep one of them",
            ));
        }
    }
    if config.use_dora && config.lora_dropout > 0.0 {
        return Err(value("lora_dropout", config.lora_dropout, "DoRA has no dropout here; set 0"));
    }
    Ok(())
}

fn adapters(
    config: &FinetuneConfig,
    given: &Map<String, Value>,
    notices: &mut Vec<Notice>,
) -> Result<(), TrainConfigError> {
    let on = config.use_lora || config.use_dora || config.use_rslora || config.adapter_name_or_path.is_some();
    let usual = FinetuneConfig::default().tree().value();
    let said = |key: &str| {
        let found = given.get(key).filter(|value| says_something(value) && **value != Value::Bool(false));
        found.filter(|value| usual.get(key) != Some(value))
    };
    if config.adapter_name_or_path.is_some() {
        for key in OF_ADAPTERS.into_iter().filter(|key| !WITH_PATH.contains(key) && said(key).is_some()) {
            let text = "no effect; the adapter that the run begins from has its own".to_owned();
            notices.push(Notice { key: key.to_owned(), text });
        }
    }
    if config.lora_init == LoraInit::Pissa {
        return Err(value("lora_init", "pissa", "runs begin with random matrices; set kaiming, xavier or gaussian"));
    }
    if on {
        return Ok(());
    }
    let said_no = given.contains_key("use_lora");
    for key in OF_ADAPTERS {
        let Some(found) = said(key) else { continue };
        if !said_no {
            return Err(value(
                key,
                shown(found),
                "it is a setting of adapters, and none are asked for; set `use_lora: true`",
            ));
        }
        notices.push(Notice { key: key.to_owned(), text: "no effect without adapters (`use_lora`)".to_owned() });
    }
    Ok(())
}
