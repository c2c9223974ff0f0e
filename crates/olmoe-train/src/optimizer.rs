//! AdamW over all parameters of a model, with clipping by the global norm.

use olmoe_model::model::{Gradients, Model};
use olmoe_model::parameters::{ParameterKind, ParameterSpec};
use olmoe_tensor::ops::adamw;
use olmoe_tensor::ops::global_norm::sum_of_squares;
use olmoe_tensor::tensor::Tensor;
use olmoe_tensor::threads::Shared;

/// Settings of AdamW; the defaults are the release run's.
#[derive(Clone, Copy, Debug)]
pub struct AdamWConfig {
    /// Decay of the first moment (0.9).
    pub beta1: f64,
    /// Decay of the second moment (0.95).
    pub beta2: f64,
    /// Added to the root of the second moment (1e-8).
    pub eps: f64,
    /// Decoupled weight decay, times the learning rate (0.1).
    pub weight_decay: f64,
    /// Whether norms and biases decay (true).
    pub decay_norm_and_bias: bool,
    /// Whether the embedding decays (true).
    pub decay_embeddings: bool,
    /// Gradients with a larger global norm are scaled down to it; none for no clipping (1.0).
    pub max_grad_norm: Option<f64>,
}

impl Default for AdamWConfig {
    fn default() -> AdamWConfig {
        AdamWConfig {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            decay_norm_and_bias: true,
            decay_embeddings: true,
            max_grad_norm: Some(1.0),
        }
    }
}

/// The moments of every parameter.
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Global L2 norm of the gradients before clipping.
    pub grad_norm: f64,
    /// What they were multiplied by.
    pub clip: f64,
    /// Whether the update was applied: not when the norm is infinite or not a number.
    pub applied: bool,
}

impl AdamW {
    /// No step taken yet.
    pub fn new(config: AdamWConfig, specs: &[ParameterSpec]) -> AdamW {
        let zeros = || specs.iter().map(|spec| Tensor::zeros(&spec.shape)).collect();
        AdamW { config, steps: 0, exp_avg: zeros(), exp_avg_sq: zeros() }
    }

    fn decays(&self, kind: ParameterKind) -> bool {
        match kind {
            ParameterKind::Norm | ParameterKind::Bias => self.config.decay_norm_and_bias,
            ParameterKind::Embedding => self.config.decay_embeddings,
            ParameterKind::Linear | ParameterKind::Router | ParameterKind::Expert => true,
        }
    }

    /// One step at the learning rate `lr`: clips, updates, packs the new weights, and sets the gradients to zero. With a
    /// gradient that is no finite number nothing changes, neither parameters nor moments.
    pub fn step(&mut self, model: &mut Model, gradients: &mut Gradients, lr: f64) -> StepReport {
        let grad_norm = gradients.iter().map(|g| sum_of_squares(g)).sum::<f64>().sqrt();
        // torch's clip_grad_norm_: the norm plus 1e-6.
        let clip = self.config.max_grad_norm.map_or(1.0, |most| (most / (grad_norm + 1e-6)).min(1.0));
        if !grad_norm.is_finite() {
            return StepReport { grad_norm, clip, applied: false };
        }
        self.steps += 1;
        for id in 0..self.exp_avg.len() {
            let kind = model.parameters()[id].kind;
            let step = adamw::AdamW {
                lr,
                beta1: self.config.beta1,
                beta2: self.config.beta2,
                eps: self.config.eps,
                weight_decay: if self.decays(kind) { self.config.weight_decay } else { 0.0 },
            };
            let steps = self.steps;
            let (g, m, v) = (gradients.get_mut(id), &mut self.exp_avg[id], &mut self.exp_avg_sq[id]);
            let (g, m, v) = (Shared::new(g), Shared::new(m), Shared::new(v));
            model.update(id, |range, p| {
                // SAFETY: the ranges of an update are disjoint.
                let [g, m, v] = [&g, &m, &v].map(|x| unsafe { x.range(range.clone()) });
                step.step(steps, clip as f32, p, g, m, v, true);
            });
        }
        StepReport { grad_norm, clip, applied: true }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}
