//! Checks of values, alone and together, and of what is needed when training begins.

use std::fs::File;

use olmoe_engine::{Request, Settings};

use super::error::TrainConfigError;
use super::field::count;
use super::interpolation::is_remote;
use super::schema::{DataConfig, EvaluatorType, SamplesConfig, SchedulerName, TrainConfig, check_model};

/// Most sequences of a batch.
const MAX_BATCH: u64 = 1 << 32;

/// The first value that is out of its range or does not fit another.
pub(super) fn check(config: &TrainConfig) -> Result<(), TrainConfigError> {
    check_model(&config.model).map_err(TrainConfigError::Model)?;
    numbers(config)?;
    schedule(config)?;
    counts(config)?;
    data(&config.data, "data")?;
    if let Some(samples) = &config.samples {
        if samples.prompts.is_empty() {
            return Err(value("samples.prompts", "empty", "list the texts to go on from, or leave out `samples`"));
        }
        let mut request = Request::new(Vec::new());
        samples.settings().apply(&mut request);
        request.sampling.check(config.model.embedding_size).map_err(TrainConfigError::Samples)?;
    }
    for (i, evaluator) in config.evaluators.iter().enumerate() {
        let label = evaluator.label.as_str();
        if label.is_empty() {
            return Err(value(format!("evaluators[{i}].label"), "empty", "every evaluator needs a name; set one"));
        }
        if config.evaluators.iter().take(i).any(|other| other.label == label) {
            return Err(value(format!("evaluators[{i}].label"), label, "another evaluator has this name; set another"));
        }
        data(&evaluator.data, &format!("evaluators[{i}].data"))?;
    }
    Ok(())
}

fn value(path: impl Into<String>, found: impl ToString, problem: &'static str) -> TrainConfigError {
    TrainConfigError::Value { path: path.into(), found: found.to_string(), problem }
}

fn numbers(config: &TrainConfig) -> Result<(), TrainConfigError> {
    let optimizer = &config.optimizer;
    for (path, beta) in [("optimizer.betas[0]", optimizer.betas.0), ("optimizer.betas[1]", optimizer.betas.1)] {
        if !(0.0..1.0).contains(&beta) {
            return Err(value(path, beta, "it must be at least 0 and less than 1"));
        }
    }
    let positive = "it must be greater than 0";
    let more_than_0 = [
        ("optimizer.learning_rate", Some(optimizer.learning_rate), positive),
        ("max_grad_norm", config.max_grad_norm, "it must be greater than 0; null turns clipping off"),
        ("max_grad_norm_ratio", config.max_grad_norm_ratio, "it must be greater than 0; null turns it off"),
        ("scheduler.grad_clip_warmup_factor", config.scheduler.grad_clip_warmup_factor, positive),
        ("early_stopping_factor", config.early_stopping_factor, positive),
        ("time_limit", config.time_limit, positive),
    ];
    for (path, number, problem) in more_than_0 {
        if let Some(number) = number.filter(|number| *number <= 0.0) {
            return Err(value(path, number, problem));
        }
    }
    let at_least_0 = [
        ("optimizer.weight_decay", Some(optimizer.weight_decay)),
        ("optimizer.eps", Some(optimizer.eps)),
        ("scheduler.alpha_f", Some(config.scheduler.alpha_f)),
        ("auxiliary_loss_multiplier", config.auxiliary_loss_multiplier),
    ];
    for (path, number) in at_least_0 {
        if let Some(number) = number.filter(|number| *number < 0.0) {
            return Err(value(path, number, "it must be at least 0"));
        }
    }
    if config.softmax_auxiliary_loss && config.auxiliary_loss_multiplier.is_none() {
        return Err(value("auxiliary_loss_multiplier", "null", "`softmax_auxiliary_loss` needs it; OLMo has 1e-4"));
    }
    Ok(())
}

fn schedule(config: &TrainConfig) -> Result<(), TrainConfigError> {
    let (scheduler, lr) = (&config.scheduler, config.optimizer.learning_rate);
    if let Some(start) = scheduler.warmup_min_lr.filter(|start| !(0.0..lr).contains(start)) {
        let problem = "it must be at least 0 and less than `optimizer.learning_rate`, to which the warm-up leads";
        return Err(value("scheduler.warmup_min_lr", start, problem));
    }
    if scheduler.name == SchedulerName::InverseSqrtWithWarmup && scheduler.t_warmup.0 == 0 {
        let problem = "with inverse_sqrt_with_warmup that makes every learning rate 0; set the length of a warm-up";
        return Err(value("scheduler.t_warmup", 0, problem));
    }
    let clip = (scheduler.grad_clip_warmup_steps.is_some(), scheduler.grad_clip_warmup_factor.is_some());
    if clip.0 != clip.1 {
        let path = if clip.0 { "scheduler.grad_clip_warmup_factor" } else { "scheduler.grad_clip_warmup_steps" };
        return Err(value(path, "null", "the other half of the warm-up of clipping is set; set both or none"));
    }
    Ok(())
}

fn counts(config: &TrainConfig) -> Result<(), TrainConfigError> {
    let at_least_1 = [
        ("eval_interval", Some(config.eval_interval)),
        ("save_interval", config.save_interval),
        ("save_interval_unsharded", config.save_interval_unsharded),
        ("save_interval_ephemeral", config.save_interval_ephemeral),
        ("global_train_batch_size", Some(config.global_train_batch_size)),
        ("device_train_microbatch_size", Some(config.device_train_microbatch_size)),
        ("device_eval_batch_size", Some(config.device_eval_batch_size)),
        ("console_log_interval", Some(config.console_log_interval)),
        ("speed_monitor.window_size", Some(config.speed_monitor.window_size)),
        ("samples.interval", config.samples.as_ref().map(|samples| samples.interval)),
        ("samples.max_new_tokens", config.samples.as_ref().map(|samples| samples.max_new_tokens)),
        ("optimizer.metrics_log_interval", config.optimizer.metrics_log_interval),
        ("wandb.log_interval", config.wandb.as_ref().map(|wandb| wandb.log_interval)),
    ];
    for (path, count) in at_least_1 {
        if count == Some(0) {
            return Err(value(path, 0, "it must be at least 1"));
        }
    }
    if config.global_train_batch_size > MAX_BATCH {
        return Err(value("global_train_batch_size", config.global_train_batch_size, "it must be at most 2^32"));
    }
    let from_minus_1 = [
        ("save_num_checkpoints_to_keep", config.save_num_checkpoints_to_keep),
        ("save_num_unsharded_checkpoints_to_keep", config.save_num_unsharded_checkpoints_to_keep),
        ("eval_subset_num_batches", config.eval_subset_num_batches),
    ];
    for (path, count) in from_minus_1 {
        if count < -1 {
            return Err(value(path, count, "it must be at least 0, or -1 for all"));
        }
    }
    Ok(())
}

fn data(data: &DataConfig, path: &str) -> Result<(), TrainConfigError> {
    if data.paths.is_some() && data.datasets.is_some() {
        let problem = "`paths` is set, too; keep one of them";
        return Err(value(format!("{path}.datasets"), "set", problem));
    }
    let (paths, masks) = (data.paths.as_deref().unwrap_or_default(), data.label_mask_paths.as_deref());
    if let Some(ratios) = data.ratios.as_ref().filter(|ratios| ratios.len() != paths.len()) {
        let found = format!("a list of {}", ratios.len());
        return Err(value(format!("{path}.ratios"), found, "it must have one number for each of `paths`"));
    }
    if masks.is_some_and(|masks| masks.len() != paths.len()) {
        let found = masks.unwrap_or_default().len();
        return Err(value(
            format!("{path}.label_mask_paths"),
            format!("a list of {found}"),
            "it must have one file for each of `paths`",
        ));
    }
    if data.generate_attention_mask && data.generate_doc_lengths {
        let problem = "padding and the limits of documents cannot both be hidden from attention, in OLMo neither; set \
                       `generate_doc_lengths` to false, or leave out the padding";
        return Err(value(format!("{path}.generate_attention_mask"), "true", problem));
    }
    if let Some(filter) = &data.instance_filter {
        let (least, most) = (filter.repetition_min_period, filter.repetition_max_period);
        if least == 0 || least > most {
            let problem = "it must be at least 1 and at most `repetition_max_period`";
            return Err(value(format!("{path}.instance_filter.repetition_min_period"), least, problem));
        }
    }
    Ok(())
}

impl TrainConfig {
    /// Checks what only matters when training begins: that a run and a precision are named, and that all files of data
    /// can be read.
    ///
    /// # Errors
    /// The first thing that is missing.
    pub fn check_start(&self) -> Result<(), TrainConfigError> {
        let missing = |path, advice| Err(TrainConfigError::Missing { path, advice });
        if self.run_name.as_deref().is_none_or(str::is_empty) {
            return missing("run_name", "a run needs a name; set --run_name=NAME");
        }
        if self.precision.is_none() {
            return missing("precision", "set amp_bf16 (as OLMoE was trained) or fp32");
        }
        if self.data.paths.is_none() && self.data.datasets.is_none() {
            return missing("data.paths", "list the files of tokens to train on");
        }
        self.data.check_files("data")?;
        for (i, evaluator) in self.evaluators.iter().enumerate() {
            if evaluator.r#type == EvaluatorType::Lm {
                evaluator.data.check_files(&format!("evaluators[{i}].data"))?;
            }
        }
        Ok(())
    }
}

impl SamplesConfig {
    /// How texts are generated, but for their seeds.
    pub fn settings(&self) -> Settings {
        Settings {
            max_tokens: Some(count(self.max_new_tokens)),
            temperature: Some(self.temperature),
            top_k: Some(count(self.top_k)),
            top_p: Some(self.top_p),
            ..Settings::default()
        }
    }
}

impl DataConfig {
    /// All files of tokens in the order of the data: `paths`, or `datasets` by the names of the sets.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let sets = self.datasets.iter().flat_map(|sets| sets.values());
        self.paths.iter().chain(sets).flatten().map(String::as_str)
    }

    fn check_files(&self, path: &str) -> Result<(), TrainConfigError> {
        let masks = self.label_mask_paths.iter().flatten().map(String::as_str);
        let key = if self.paths.is_some() { "paths" } else { "datasets" };
        let (files, masks): (Vec<_>, Vec<_>) = (self.files().collect(), masks.collect());
        for (key, files) in [(key, files), ("label_mask_paths", masks)] {
            let mut first = None;
            let mut missing = 0;
            for file in &files {
                let opened = match is_remote(file) {
                    true => Err(std::io::Error::other("an address; copy it to this machine")),
                    false => File::open(file),
                };
                if let Err(error) = opened {
                    missing += 1;
                    first.get_or_insert((file.to_string(), error));
                }
            }
            if let Some((file, source)) = first {
                let path = format!("{path}.{key}");
                return Err(TrainConfigError::Data { path, file, missing, count: files.len(), source });
            }
        }
        Ok(())
    }
}
