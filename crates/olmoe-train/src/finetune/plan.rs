//! The memory of a run, computed before anything is loaded.

use std::fmt;

use olmoe_data::counted;
use olmoe_model::adapter::parameters_with;
use olmoe_model::config::{FeedForward, ModelConfig};
use olmoe_model::model::{Held, Keep, ModelError};
use olmoe_model::parameters::{ParameterKind, ParameterSpec};
use olmoe_tensor::memory::available_bytes;
use olmoe_tensor::ops::cross_entropy::CHUNK_BYTES;

use super::base_model::BaseModel;
use super::examples::{Examples, micro_batches};
use super::selection::Selection;
use super::settings::{FinetuneSettings, Method, ReferenceModel, ReferenceSettings, ReferenceTime};
use crate::config::OptimizerName;
use crate::trainer::TrainError;

const F32: u64 = size_of::<f32>() as u64;

/// The memory of a run, in bytes, and what it trains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Parameters in all their forms, those of adapters included.
    pub parameters: u64,
    /// Gradients of what is trained.
    pub gradients: u64,
    /// Moments of the optimizer.
    pub moments: u64,
    /// A reference that is another model.
    pub reference: u64,
    /// What the largest pass keeps and works with.
    pub activations: u64,
    /// What forward passes keep.
    pub keep: Keep,
    /// Tokens of the largest pass.
    pub tokens: usize,
    /// Bytes of a checkpoint.
    pub checkpoint: u64,
    /// By kind, numbers that are trained and numbers that there are.
    pub trained: Vec<(&'static str, u64, u64)>,
}

impl MemoryPlan {
    /// All bytes together.
    pub fn total(&self) -> u64 {
        self.parameters + self.gradients + self.moments + self.reference + self.activations
    }
}

/// A table of what is trained and a line of what it takes.
impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, trained, all) in &self.trained {
            writeln!(f, "{kind:<14} {trained:>14} of {all:>14} trained")?;
        }
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        write!(
            f,
            "{:.2} GB: parameters {:.2}, gradients {:.2}, moments {:.2}, reference {:.2}, activations of {} {:.2} ({})",
            gigabytes(self.total()),
            gigabytes(self.parameters),
            gigabytes(self.gradients),
            gigabytes(self.moments),
            gigabytes(self.reference),
            counted(self.tokens as u64, "token"),
            gigabytes(self.activations),
            match self.keep {
                Keep::Everything => "all kept",
                Keep::FeedForward => "those of experts kept, the others recomputed",
                Keep::BlockInputs | Keep::Nothing => "recomputed",
            }
        )
    }
}

/// The memory of a run. `keep` of the settings decides what passes keep; without it, the most that `max_memory`, or else the
/// free memory, has room for, and the least where nothing fits. Experts chosen by the data are not known before it is looked
/// at, so none are counted.
///
/// # Errors
/// Patterns that mean no parameter, adapters of matrices that there are not.
pub fn plan(settings: &FinetuneSettings, base: &BaseModel<'_>, train: &Examples) -> Result<MemoryPlan, TrainError> {
    let specs = parameters_with(&base.config, &settings.adapters).map_err(ModelError::from)?;
    let selection = Selection::resolve(&settings.train, &base.config, &specs)?;
    of(settings, base, train, &specs, &selection)
}

pub(super) fn of(
    settings: &FinetuneSettings,
    base: &BaseModel<'_>,
    train: &Examples,
    specs: &[ParameterSpec],
    selection: &Selection,
) -> Result<MemoryPlan, TrainError> {
    let config = &base.config;
    let numbers = |id: usize| specs[id].num_elements() as u64;
    // Of a stack of which some experts are trained, only these have moments.
    let trained = |id: usize| match selection.experts(id) {
        Some(experts) => {
            numbers(id) / experts.len().max(1) as u64 * experts.iter().filter(|trained| **trained).count() as u64
        }
        None => numbers(id),
    };
    let ids = || (0..specs.len()).filter(|id| selection.is_trained(*id));
    let held = held(specs, config, selection);
    let encodings: Vec<_> =
        base.encodings.iter().enumerate().map(|(id, own)| own.filter(|_| !selection.is_trained(id))).collect();
    let parameters = config
        .bytes_with_adapters(settings.precision, &held, &encodings, &settings.adapters)
        .map_err(ModelError::from)?;
    let moments = match settings.optimizer.name {
        OptimizerName::AdamW => 2,
        OptimizerName::LionW | OptimizerName::RmsProp => 1,
    };
    let only_adapters = ids().all(|id| specs[id].kind.is_of_adapter());
    // Another checkpoint is in memory also where it is only read before the first step.
    let reference = match &settings.method {
        Method::Sft(_) => None,
        Method::Dpo(dpo) => Some(&dpo.reference),
        Method::Kto(kto) => Some(&kto.reference),
    };
    let is_second = |reference: &ReferenceSettings| match reference.model {
        ReferenceModel::Checkpoint(_) => true,
        ReferenceModel::Start => reference.when == ReferenceTime::Live && (!only_adapters || base.has_adapters()),
    };
    let second = reference.is_some_and(is_second);
    let reference = if second { config.inference_bytes(settings.precision, &encodings) } else { 0 };
    let tokens = largest_pass(settings, train);
    let mut plan = MemoryPlan {
        parameters,
        gradients: F32 * ids().map(numbers).sum::<u64>(),
        moments: F32 * moments * ids().map(trained).sum::<u64>(),
        reference,
        activations: 0,
        keep: Keep::Everything,
        tokens,
        checkpoint: F32 * (ids().map(numbers).sum::<u64>() + moments * ids().map(trained).sum::<u64>()),
        trained: kinds(specs, |id| if selection.is_trained(id) { trained(id) } else { 0 }),
    };
    let limit = settings.max_memory.or_else(available_bytes).unwrap_or(u64::MAX);
    let choices = match &settings.keep {
        Some(keep) => std::slice::from_ref(keep),
        None => &[Keep::Everything, Keep::FeedForward, Keep::BlockInputs][..],
    };
    for keep in choices {
        plan.keep = *keep;
        plan.activations = activation_bytes(config, tokens as u64, *keep);
        if plan.total() <= limit {
            break;
        }
    }
    Ok(plan)
}

/// What the parameters are held for.
pub(super) fn held(specs: &[ParameterSpec], config: &ModelConfig, selection: &Selection) -> Vec<Held> {
    let trained: std::collections::HashSet<&str> = specs
        .iter()
        .enumerate()
        .filter(|(id, _)| selection.is_trained(*id))
        .map(|(_, spec)| spec.name.as_str())
        .collect();
    Held::of(specs, config, |spec| trained.contains(spec.name.as_str()))
}

/// By kind of parameter, numbers that are trained and numbers that there are.
fn kinds(specs: &[ParameterSpec], trained: impl Fn(usize) -> u64) -> Vec<(&'static str, u64, u64)> {
    let name = |spec: &ParameterSpec| match spec.kind {
        ParameterKind::Embedding => "embedding",
        ParameterKind::Linear if spec.module.layer.is_none() => "head",
        ParameterKind::Linear => "linear",
        ParameterKind::Router => "router",
        ParameterKind::Expert => "experts",
        ParameterKind::Norm | ParameterKind::Bias => "norms, biases",
        ParameterKind::LoraA | ParameterKind::LoraB | ParameterKind::LoraMagnitude => "adapters",
    };
    let mut all: Vec<(&'static str, u64, u64)> = Vec::new();
    for (id, spec) in specs.iter().enumerate() {
        let (own, kind) = ((trained(id), spec.num_elements() as u64), name(spec));
        match all.iter_mut().find(|(known, ..)| *known == kind) {
            Some((_, trained, numbers)) => (*trained, *numbers) = (*trained + own.0, *numbers + own.1),
            None => all.push((kind, own.0, own.1)),
        }
    }
    all
}

/// An upper bound of the tokens of a pass: that of the longest examples.
fn largest_pass(settings: &FinetuneSettings, train: &Examples) -> usize {
    let mut tokens: Vec<usize> =
        (0..train.len()).map(|row| train.sequences(row).iter().map(|one| one.ids.len()).sum()).collect();
    if let Some(packing) = settings.packing {
        tokens.fill(packing.length);
    }
    tokens.sort_unstable_by(|a, b| b.cmp(a));
    tokens.truncate(settings.batch_size);
    let passes = micro_batches(&tokens, settings.micro_batch);
    passes.into_iter().map(|some| tokens[some].iter().sum()).max().unwrap_or(0)
}

/// Bytes that a training pass over so many tokens keeps and works with: of each layer what `keep` says, and of the one in
/// work all of it, the gradients beside it, and the logits of a chunk with their gradient.
pub fn activation_bytes(config: &ModelConfig, tokens: u64, keep: Keep) -> u64 {
    let (d, q, kv) = (config.d_model as u64, config.query_width() as u64, config.key_value_width() as u64);
    let norms = if config.qk_norm.is_some() { q + kv } else { 0 };
    // The norm before, projections before and after their norms, the output, and a sum for each head.
    let attention = d + 1 + norms + 2 * q + 2 * kv + config.n_heads as u64;
    let mut kept = 2 * d;
    let mut work = 0;
    for layer in 0..config.n_layers {
        let (mlp, beside, routing, slots) = match config.feed_forward_of(layer) {
            FeedForward::Dense(mlp) => {
                let inner = mlp.width as u64 * if mlp.activation.is_gated() { 2 } else { 1 };
                (inner, 0, 0, d)
            }
            FeedForward::Moe(moe) => {
                let (k, gates) = (moe.top_k as u64, if moe.expert.activation.is_gated() { 2 } else { 1 });
                let shared = moe.shared_expert.map_or(0, |shared| gates * shared.width as u64);
                (k * gates * moe.expert.width as u64 + shared, 3 * k, moe.num_experts as u64 + 2 * k + 1, k * d)
            }
        };
        let all = d + attention + d + d + 1 + mlp + beside;
        kept += routing
            + match keep {
                Keep::Everything => all,
                Keep::FeedForward => d + mlp + beside,
                Keep::BlockInputs => d,
                Keep::Nothing => 0,
            };
        let recomputed = match keep {
            Keep::Everything => 0,
            Keep::FeedForward => all - mlp,
            Keep::BlockInputs | Keep::Nothing => all,
        };
        // Gradients of the stream, of queries, keys and values, and of the slots of the experts.
        work = work.max(recomputed + 4 * d + 2 * q + 2 * kv + slots);
    }
    let logits = (CHUNK_BYTES as u64).min(F32 * tokens.saturating_mul(config.embedding_size as u64));
    F32.saturating_mul(tokens).saturating_mul(kept + work).saturating_add(2 * logits)
}
