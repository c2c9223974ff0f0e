//! The resources and the length of a run, computed before it begins.

use olmoe_model::config::{ConfigError, ModelConfig};
use olmoe_model::model::Precision;
use olmoe_model::parameters::ParameterCount;
use olmoe_tensor::memory;

use crate::config::{OptimizerName, TrainConfig};
use crate::state::TrainerState;

/// A run, from its configuration and the number of instances of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Parameters.
    pub parameters: ParameterCount,
    /// The least bytes of memory: parameters, gradients, moments and packed matrices, without activations.
    pub memory: u64,
    /// Bytes of a checkpoint.
    pub checkpoint: u64,
    /// Instances of the data.
    pub instances: u64,
    /// Batches of one pass over the data.
    pub batches_per_epoch: u64,
    /// Tokens of a step.
    pub tokens_per_step: u64,
    /// The step at which the run ends.
    pub last_step: u64,
    /// Steps that are left.
    pub steps: u64,
}

impl Plan {
    /// The plan of a run that is at `state`.
    ///
    /// # Errors
    /// More parameters than any model has.
    pub fn new(config: &TrainConfig, state: &TrainerState, instances: u64) -> Result<Plan, ConfigError> {
        let parameters = ParameterCount::of(&config.model)?;
        let batches_per_epoch = instances / config.global_train_batch_size.max(1);
        let at = state.progress(batches_per_epoch);
        // The epochs may end before the last step.
        let left = config.max_epochs(&at).saturating_sub(state.epoch).saturating_mul(batches_per_epoch);
        let done = state.examples_seen_this_epoch / config.global_train_batch_size.max(1);
        let left = left.saturating_sub(done.min(batches_per_epoch));
        let last_step = config.stop_step(&at).min(state.step.saturating_add(left)).max(state.step);
        Ok(Plan {
            parameters,
            memory: least_memory(&parameters, config.optimizer.name, config.precision().unwrap_or(Precision::Fp32)),
            checkpoint: checkpoint_bytes(&parameters, config.optimizer.name),
            instances,
            batches_per_epoch,
            tokens_per_step: config.tokens_per_batch(),
            last_step,
            steps: last_step - state.step,
        })
    }
}

fn moments(optimizer: OptimizerName) -> u64 {
    match optimizer {
        OptimizerName::AdamW => 2,
        OptimizerName::LionW | OptimizerName::RmsProp => 1,
    }
}

/// Bytes that training takes at least: parameters, gradients and moments in f32, and every weight packed for both
/// directions.
pub fn least_memory(count: &ParameterCount, optimizer: OptimizerName, precision: Precision) -> u64 {
    let packed = match precision {
        Precision::Fp32 => 2 * 4,
        Precision::AmpBf16 => 2 * 2,
    };
    count.total.saturating_mul((2 + moments(optimizer)) * 4 + packed)
}

/// Bytes of the numbers of a checkpoint: parameters and moments.
pub fn checkpoint_bytes(count: &ParameterCount, optimizer: OptimizerName) -> u64 {
    count.total.saturating_mul((1 + moments(optimizer)) * 4)
}

/// The bytes that are free, if they are known and too few.
pub fn too_little_memory(needed: u64) -> Option<u64> {
    memory::available_bytes().filter(|available| needed > *available)
}

/// Multiply-adds of one token's training step, as operations: forward once, backward twice. Matrices by the parameters
/// that a token passes (not the embedding, which is a look-up), attention by the half of the scores that causality
/// leaves.
///
/// # Errors
/// More parameters than any model has.
pub fn flops_per_token(config: &ModelConfig, sequence: usize) -> Result<f64, ConfigError> {
    let active = ParameterCount::of(config)?.active as f64;
    let embedding = if config.tie_embeddings { 0.0 } else { (config.embedding_size * config.d_model) as f64 };
    let scores = (config.n_layers * config.query_width() * sequence) as f64;
    Ok(3.0 * (2.0 * (active - embedding) + 2.0 * scores))
}

/// The same as OLMo's log has it, which counts all experts, whichever a token passes, and all scores.
///
/// # Errors
/// More parameters than any model has.
pub fn olmo_flops_per_token(config: &ModelConfig, sequence: usize) -> Result<f64, ConfigError> {
    let total = ParameterCount::of(config)?.total as f64;
    let embedding = (config.embedding_size * config.d_model) as f64;
    let scores = (config.n_layers * config.d_model * sequence) as f64;
    Ok(2.0 * (total - embedding) + 4.0 * total + 12.0 * scores)
}
