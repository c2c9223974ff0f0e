//! The metrics of a step, with OLMo's names.

use std::collections::VecDeque;

use super::step::StepReport;
use crate::config::{TrainConfig, count};
use crate::optimizer::metrics::Metrics;

/// Speed over the last steps.
pub struct Speed {
    /// Tokens and seconds of steps, the newest last.
    window: VecDeque<(u64, f64)>,
    size: usize,
}

impl Speed {
    pub(crate) fn new(config: &TrainConfig) -> Speed {
        Speed { window: VecDeque::new(), size: count(config.speed_monitor.window_size) }
    }

    pub(super) fn add(&mut self, report: &StepReport) {
        if self.window.len() >= self.size {
            self.window.pop_front();
        }
        self.window.push_back((report.tokens, report.seconds));
    }

    /// Tokens and batches a second.
    pub(crate) fn rates(&self) -> (f64, f64) {
        let (tokens, seconds) = self.window.iter().fold((0, 0.0), |sum, step| (sum.0 + step.0, sum.1 + step.1));
        let seconds = f64::max(seconds, 1e-9);
        (tokens as f64 / seconds, self.window.len() as f64 / seconds)
    }
}

/// The metrics of a step.
pub(super) fn named(
    config: &TrainConfig,
    report: &StepReport,
    tokens_seen: u64,
    flops_per_token: f64,
    speed: &Speed,
    parameters: Option<&Metrics>,
) -> Vec<(String, f64)> {
    let (tokens_per_second, batches_per_second) = speed.rates();
    let mut all: Vec<(String, f64)> = Vec::new();
    let mut add = |name: &str, value: f64| all.push((name.to_owned(), value));
    add("train/CrossEntropyLoss", report.cross_entropy);
    add("train/Perplexity", report.cross_entropy.exp());
    if config.softmax_auxiliary_loss {
        add("train/ZLoss", report.logits_z);
    }
    if !report.loads.is_empty() {
        if config.model.auxiliary.load_balancing_weight != 0.0 {
            add("train/LoadBalancingLoss", report.load_balancing);
        }
        if config.model.auxiliary.z_weight != 0.0 {
            add("train/MoEZLoss", report.router_z);
        }
    }
    if config.data.instance_filter.is_some() {
        add("train/masked_instances_local_rank", report.masked_instances as f64);
    }
    if parameters.is_none() {
        add("optim/total_grad_norm", report.grad_norm);
    }
    // OLMo has two groups, with and without decay.
    let decay = config.optimizer.decay_norm_and_bias && config.optimizer.decay_embeddings;
    add("optim/learning_rate_group0", report.learning_rate);
    if !decay {
        add("optim/learning_rate_group1", report.learning_rate);
    }
    add("throughput/total_tokens", tokens_seen as f64);
    let gflops = flops_per_token * tokens_seen as f64 / 1e9;
    add("throughput/total_training_Gflops", gflops);
    add("throughput/total_training_log_Gflops", gflops.ln());
    add("throughput/device/tokens_per_second", tokens_per_second);
    add("throughput/device/batches_per_second", batches_per_second);
    for (layer, loads) in report.loads.iter().enumerate() {
        let sum = loads.iter().sum::<u64>().max(1) as f64;
        for (expert, load) in loads.iter().enumerate() {
            add(&format!("train/TokensPercentage/layer{layer}/expert{expert}"), *load as f64 / sum * 100.0);
            add(&format!("train/TokensTotal/layer{layer}/expert{expert}"), *load as f64);
        }
    }
    all.extend(parameters.iter().flat_map(|metrics| metrics.named()));
    all
}
