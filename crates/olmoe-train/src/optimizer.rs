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

#[cfg(test)]
mod tests {
    use olmoe_model::config::ModelConfig;
    use olmoe_model::model::Precision;

    use super::*;

    fn model() -> Model {
        let json = r#"{
            "model_type": "olmoe", "vocab_size": 40, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_experts": 3, "num_experts_per_tok": 1, "max_position_embeddings": 8,
            "pad_token_id": 1, "eos_token_id": 2
        }"#;
        let config = ModelConfig::from_hf_json(json).expect("a good configuration").config;
        let mut model = Model::new(config, Precision::Fp32, true).expect("a model");
        model.initialize(3);
        model
    }

    fn value(model: &Model, id: usize) -> &[f32] {
        model.value(id).expect("a model made for training has all its numbers")
    }

    fn all(model: &Model) -> Vec<f32> {
        (0..model.parameters().len()).flat_map(|id| value(model, id).to_vec()).collect()
    }

    #[test]
    fn clips_to_the_norm_updates_and_clears() {
        let mut model = model();
        let mut gradients = Gradients::zeros(model.parameters());
        gradients.iter_mut().for_each(|g| g.fill(0.5));
        let count: usize = gradients.iter().map(|g| g.len()).sum();
        let norm = 0.5 * (count as f64).sqrt();
        let config = AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(config, model.parameters());
        let before = all(&model);
        let report = optimizer.step(&mut model, &mut gradients, 1e-3);
        assert!(report.applied && optimizer.steps() == 1);
        assert!((report.grad_norm - norm).abs() < 1e-6 * norm, "{} {norm}", report.grad_norm);
        assert!((report.clip - 1.0 / (norm + 1e-6)).abs() < 1e-9);
        // The first step of Adam is the sign of the gradient, whatever its size.
        for (a, b) in all(&model).iter().zip(&before) {
            assert!((a - b + 1e-3).abs() < 2e-7, "{a} {b}");
        }
        assert!(gradients.iter().all(|g| g.iter().all(|x| *x == 0.0)));
    }

    #[test]
    fn groups_decay_as_they_are_told() {
        let mut model = model();
        let mut gradients = Gradients::zeros(model.parameters());
        let config = AdamWConfig { decay_norm_and_bias: false, decay_embeddings: false, ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(config, model.parameters());
        let before: Vec<Vec<f32>> = (0..model.parameters().len()).map(|id| value(&model, id).to_vec()).collect();
        optimizer.step(&mut model, &mut gradients, 0.5);
        for (id, before) in before.iter().enumerate() {
            let kept = matches!(model.parameters()[id].kind, ParameterKind::Norm | ParameterKind::Embedding);
            let factor = if kept { 1.0 } else { 1.0 - 0.5 * 0.1 };
            for (a, b) in value(&model, id).iter().zip(before) {
                assert!((a - b * factor).abs() <= 1e-7 * b.abs(), "{}", model.parameters()[id].name);
            }
        }
    }

    #[test]
    fn a_gradient_that_is_no_number_changes_nothing() {
        let mut model = model();
        let mut gradients = Gradients::zeros(model.parameters());
        let mut optimizer = AdamW::new(AdamWConfig::default(), model.parameters());
        let before = all(&model);
        for bad in [f32::NAN, f32::INFINITY] {
            gradients.get_mut(4)[1] = bad;
            let report = optimizer.step(&mut model, &mut gradients, 1e-3);
            assert!(!report.applied && optimizer.steps() == 0);
            assert_eq!(all(&model), before);
            gradients.clear();
        }
    }

    #[test]
    fn packed_weights_follow_the_update() {
        // A model that was stepped computes what a model with the same numbers set computes.
        let mut model = model();
        let mut gradients = Gradients::zeros(model.parameters());
        gradients.iter_mut().for_each(|g| g.iter_mut().enumerate().for_each(|(i, g)| *g = (i % 7) as f32 - 3.0));
        let mut optimizer = AdamW::new(AdamWConfig::default(), model.parameters());
        optimizer.step(&mut model, &mut gradients, 1e-2);
        let mut other = Model::new(model.config().clone(), Precision::Fp32, false).expect("a model");
        for (id, spec) in model.parameters().iter().enumerate() {
            other.set(&spec.name, &spec.shape, value(&model, id)).expect("the same parameters");
        }
        let batch = olmoe_model::batch::Batch::uniform(&[3, 5, 7, 11], 4).expect("a batch");
        let mut activations = olmoe_model::model::Activations::new(olmoe_model::model::Keep::Nothing);
        let one = model.logits(&batch, &mut activations).expect("logits");
        let two = other.logits(&batch, &mut activations).expect("logits");
        assert_eq!(one[..], two[..]);
    }
}
