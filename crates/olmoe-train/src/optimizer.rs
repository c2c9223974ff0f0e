//! The optimizer of a run: AdamW, LionW or RMSprop over the trained parameters of a model, with clipping, and what a log
//! says of a step.
//!
//! | module | contents |
//! |---|---|
//! | `clip` | the bound on the gradients |
//! | [`metrics`] | norms, means and extremes of parameters, gradients, moments and updates |
//! | [`state`] | saving and restoring |
//!
//! Weight decay is applied as in OLMo: to linears, routers and experts; to norms and biases if `decay_norm_and_bias` is
//! set; to the embedding if `decay_embeddings` is set. All sums have a fixed order, so that a step has the same bits on
//! any number of threads.

mod clip;
pub mod metrics;
pub mod state;

use std::ops::Range;

use olmoe_checkpoint::olmo::tensor_names;
use olmoe_model::model::{Gradients, Held, Model, ParameterId};
use olmoe_model::parameters::{ParameterKind, ParameterSpec};
use olmoe_tensor::ops::adamw::{self, Leave};
use olmoe_tensor::ops::global_norm::sum_of_squares;
use olmoe_tensor::ops::lionw;
use olmoe_tensor::ops::rmsprop;
use olmoe_tensor::ops::summary::{Summary, summary};
use olmoe_tensor::tensor::Tensor;
use olmoe_tensor::threads::Shared;

use crate::config::{OptimizerConfig, OptimizerName};
use clip::Clipping;
use metrics::{Metrics, ParameterMetrics};

pub use clip::Clip;

impl OptimizerConfig {
    /// AdamW as the release was trained with it.
    pub fn release() -> OptimizerConfig {
        OptimizerConfig {
            name: OptimizerName::AdamW,
            learning_rate: 4e-4,
            weight_decay: 0.1,
            betas: (0.9, 0.95),
            eps: 1e-8,
            decay_norm_and_bias: true,
            decay_embeddings: true,
            metrics_log_interval: Some(10),
            ..OptimizerConfig::default()
        }
    }

    /// RMSprop with torch's defaults at the learning rate that OLMoE's models were aligned with by KTO.
    pub fn kto() -> OptimizerConfig {
        OptimizerConfig {
            name: OptimizerName::RmsProp,
            learning_rate: 5e-7,
            weight_decay: 0.0,
            betas: (0.0, 0.99),
            eps: 1e-8,
            ..OptimizerConfig::default()
        }
    }

    fn decays(&self, kind: ParameterKind) -> bool {
        match kind {
            ParameterKind::Norm | ParameterKind::Bias => self.decay_norm_and_bias,
            ParameterKind::Embedding => self.decay_embeddings,
            ParameterKind::Linear | ParameterKind::Router | ParameterKind::Expert => true,
            ParameterKind::LoraA | ParameterKind::LoraB | ParameterKind::LoraMagnitude => true,
        }
    }
}

/// The optimizer and its state.
pub struct Optimizer {
    config: OptimizerConfig,
    /// Steps taken since the state was zeros.
    steps: u64,
    /// The trained parameters, in canonical order; everything else that is one a parameter is in their order.
    ids: Vec<ParameterId>,
    /// The tensor of OLMo that each is, or is a part of.
    names: Vec<String>,
    /// Weight decay of each.
    weight_decay: Vec<f64>,
    /// How each is updated.
    rules: Vec<UpdateRule>,
    /// Of AdamW and LionW.
    exp_avg: Vec<Tensor>,
    /// Of AdamW and RMSprop.
    exp_avg_sq: Vec<Tensor>,
    clipping: Clipping,
    metrics: Option<Metrics>,
    recorded: bool,
}

/// How a parameter is updated.
#[derive(Clone, Debug, PartialEq)]
pub struct UpdateRule {
    /// The factor on the learning rate.
    pub rate: f64,
    /// Of a stack of matrices, the ones that are trained; none: all. The others have no gradient, no moments and no decay.
    pub slices: Option<Slices>,
}

impl Default for UpdateRule {
    fn default() -> Self {
        UpdateRule { rate: 1.0, slices: None }
    }
}

/// The trained matrices of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slices {
    /// The place of each among those that are trained.
    places: Vec<Option<usize>>,
}

impl Slices {
    /// Those with a flag.
    pub fn new(trained: &[bool]) -> Slices {
        let mut count = 0;
        let place = |trained: &bool| {
            count += usize::from(*trained);
            trained.then(|| count - 1)
        };
        Slices { places: trained.iter().map(place).collect() }
    }

    /// How many are trained.
    pub fn count(&self) -> usize {
        self.places.iter().flatten().count()
    }

    /// The place of a range of the stack's numbers, which is within one matrix, among the numbers of those that are trained;
    /// `numbers` are those of the stack.
    fn range(&self, range: &Range<usize>, numbers: usize) -> Option<Range<usize>> {
        let each = (numbers / self.places.len().max(1)).max(1);
        let at = range.start / each;
        let start = (*self.places.get(at)?)? * each + (range.start - at * each);
        Some(start..start + range.len())
    }

    /// Sets the numbers of the others to zero.
    fn clear_others(&self, numbers: &mut [f32]) {
        let each = (numbers.len() / self.places.len().max(1)).max(1);
        let others = numbers.chunks_mut(each).zip(&self.places).filter(|(_, place)| place.is_none());
        others.for_each(|(slice, _)| slice.fill(0.0));
    }
}

/// The settings of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Its number in the run, from 1.
    pub number: u64,
    /// The learning rate: [`Schedule::learning_rate`](crate::schedule::Schedule::learning_rate).
    pub learning_rate: f64,
    /// The bound on the gradients: [`Schedule::clip`](crate::schedule::Schedule::clip).
    pub clip: Clip,
    /// Whether to record [`Optimizer::metrics`]:
    /// [`TrainConfig::records_metrics`](crate::config::TrainConfig::records_metrics).
    pub record: bool,
}

/// The results of an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateReport {
    /// Global L2 norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The factor by which the gradients were clipped; of several factors, the smallest.
    pub clip: f64,
    /// Whether the update was applied; it is not when the norm is NaN or infinite.
    pub applied: bool,
}

impl Optimizer {
    /// No step taken yet.
    pub fn new(config: OptimizerConfig, model: &Model) -> Optimizer {
        Self::with_rules(config, model, |_| UpdateRule::default())
    }

    /// The same with a rule for each trained parameter.
    pub fn with_rules(config: OptimizerConfig, model: &Model, rule: impl Fn(ParameterId) -> UpdateRule) -> Optimizer {
        let ids = (0..model.parameters().len()).filter(|id| model.held(*id) == Held::Trained);
        let ids: Vec<ParameterId> = ids.collect();
        let specs = || ids.iter().map(|id| &model.parameters()[*id]);
        let all = tensor_names(model.config(), model.parameters());
        let names: Vec<String> = ids.iter().map(|id| all[*id].clone()).collect();
        let rules: Vec<UpdateRule> = ids.iter().map(|id| rule(*id)).collect();
        let moment = |(spec, rule): (&ParameterSpec, &UpdateRule)| {
            let mut shape = spec.shape.clone();
            if let (Some(slices), Some(count)) = (&rule.slices, shape.first_mut()) {
                assert_eq!(slices.places.len(), *count, "a flag for each matrix of a stack");
                *count = slices.count();
            }
            Tensor::zeros(&shape)
        };
        let zeros = |held: bool| match held {
            true => specs().zip(&rules).map(moment).collect(),
            false => Vec::new(),
        };
        let decay = |spec: &ParameterSpec| if config.decays(spec.kind) { config.weight_decay } else { 0.0 };
        Optimizer {
            steps: 0,
            weight_decay: specs().map(decay).collect(),
            exp_avg: zeros(config.name != OptimizerName::RmsProp),
            exp_avg_sq: zeros(config.name != OptimizerName::LionW),
            clipping: Clipping::new(names.iter().map(String::as_str)),
            names,
            metrics: None,
            recorded: false,
            ids,
            rules,
            config,
        }
    }

    /// One step: clips the gradients, updates and packs the weights, and sets the gradients to zero. If a gradient is
    /// NaN or infinite, neither parameters nor state change.
    ///
    /// # Panics
    /// When the model has other trained parameters than the one that the optimizer was made for.
    pub fn step(&mut self, model: &mut Model, gradients: &mut Gradients, step: &Step) -> UpdateReport {
        assert!(gradients.iter().map(|(id, _)| id).eq(self.ids.iter().copied()), "an optimizer belongs to one model");
        self.recorded = false;
        for ((_, gradient), rule) in gradients.iter_mut().zip(&self.rules) {
            if let Some(slices) = &rule.slices {
                slices.clear_others(gradient);
            }
        }
        let grad_norm = self.clipping.measure(gradients.iter().map(|(_, g)| sum_of_squares(g)));
        if !grad_norm.is_finite() {
            return UpdateReport { grad_norm, clip: 1.0, applied: false };
        }
        let clip = self.clipping.apply(step.clip, grad_norm, self.config.betas, step.number);
        if step.record {
            self.record_before(model, gradients, grad_norm);
        }
        self.steps += 1;
        let (metrics, recorded) = (&mut self.metrics, step.record && self.config.record_update_metrics);
        let leave = if recorded { Leave::Update } else { Leave::Zero };
        for ((at, id), (_, gradient)) in self.ids.iter().copied().enumerate().zip(gradients.iter_mut()) {
            let scale = self.clipping.coefficient(at);
            let (beta1, beta2) = self.config.betas;
            let UpdateRule { rate, slices } = &self.rules[at];
            let lr = step.learning_rate * rate;
            let (weight_decay, selective) = (self.weight_decay[at], self.config.selective_updates);
            let numbers = gradient.len();
            // The place of a range of the parameter among the moments; none where it is not trained.
            let kept = |range: &Range<usize>| match slices {
                None => Some(range.clone()),
                Some(slices) => slices.range(range, numbers),
            };
            let g = Shared::new(&mut *gradient);
            match self.config.name {
                OptimizerName::AdamW => {
                    let (m, v) = (Shared::new(&mut self.exp_avg[at]), Shared::new(&mut self.exp_avg_sq[at]));
                    let rule = adamw::AdamW { lr, beta1, beta2, eps: self.config.eps, weight_decay, selective };
                    let steps = self.steps;
                    model.update(id, |range, p| {
                        let Some(kept) = kept(&range) else { return };
                        // SAFETY: the ranges of an update are disjoint, and so are those of the moments.
                        let [g, m, v] =
                            [(&g, range), (&m, kept.clone()), (&v, kept)].map(|(x, r)| unsafe { x.range(r) });
                        rule.step(steps, scale, p, g, m, v, leave);
                    });
                }
                OptimizerName::LionW => {
                    let m = Shared::new(&mut self.exp_avg[at]);
                    let rule = lionw::LionW { lr, beta1, beta2, weight_decay, selective };
                    model.update(id, |range, p| {
                        let Some(kept) = kept(&range) else { return };
                        // SAFETY: the ranges of an update are disjoint, and so are those of the moments.
                        let [g, m] = [(&g, range), (&m, kept)].map(|(x, r)| unsafe { x.range(r) });
                        rule.step(scale, p, g, m, leave);
                    });
                }
                OptimizerName::RmsProp => {
                    let v = Shared::new(&mut self.exp_avg_sq[at]);
                    let rule = rmsprop::RmsProp { lr, alpha: beta2, eps: self.config.eps, weight_decay, selective };
                    model.update(id, |range, p| {
                        let Some(kept) = kept(&range) else { return };
                        // SAFETY: the ranges of an update are disjoint, and so are those of the moments.
                        let [g, v] = [(&g, range), (&v, kept)].map(|(x, r)| unsafe { x.range(r) });
                        rule.step(scale, p, g, v, leave);
                    });
                }
            }
            if let (true, Some(metrics)) = (recorded, metrics.as_mut()) {
                metrics.parameters[at].update = Some(summary(gradient));
            }
        }
        if recorded {
            gradients.clear();
            if let Some(metrics) = metrics.as_mut() {
                metrics.update_cosine = (self.config.name == OptimizerName::LionW).then(|| metrics.cosine());
            }
        }
        UpdateReport { grad_norm, clip, applied: true }
    }

    /// What is known before the update: OLMo's log has the gradients before clipping, and parameters and moments before
    /// the step.
    fn record_before(&mut self, model: &Model, gradients: &Gradients, grad_norm: f64) {
        let metrics = self.metrics.get_or_insert_with(|| Metrics::new(&self.names));
        metrics.total_grad_norm = grad_norm;
        metrics.clipping_rate = self.clipping.rate();
        metrics.update_cosine = None;
        let adaptive = self.clipping.is_adaptive();
        for (at, (id, gradient)) in gradients.iter().enumerate() {
            metrics.parameters[at] = ParameterMetrics {
                grad: summary(gradient),
                param: model.value(id).map_or(Summary::EMPTY, |value| summary(value)),
                exp_avg: self.exp_avg.get(at).map(|m| summary(m)),
                exp_avg_sq: self.exp_avg_sq.get(at).map(|v| summary(v)),
                grad_norm_exp_avg: adaptive.then(|| self.clipping.running_mean(at).into()),
                update: None,
            };
        }
        self.recorded = true;
    }

    /// What the last step recorded, if it was to.
    pub fn metrics(&self) -> Option<&Metrics> {
        self.metrics.as_ref().filter(|_| self.recorded)
    }

    /// The settings.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Steps taken since the state was zeros.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

#[cfg(test)]
mod tests {
    use olmoe_model::config::ModelConfig;
    use olmoe_model::model::Precision;

    use super::*;

    fn step(learning_rate: f64) -> Step {
        Step { number: 1, learning_rate, clip: Clip::Norm(1.0), record: false }
    }

    fn model() -> Model {
        let json = r#"{
            "model_type": "olmoe", "vocab_size": 40, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_experts": 3, "num_experts_per_tok": 1, "max_position_embeddings": 8,
            "pad_token_id": 1, "eos_token_id": 2
        }"#;
        let config = ModelConfig::from_hf_json(json).expect("a good configuration").config;
        let mut model = Model::new(config, Precision::Fp32, Held::Trained).expect("a model");
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
        let mut gradients = model.gradients();
        gradients.iter_mut().for_each(|(_, g)| g.fill(0.5));
        let count: usize = gradients.iter().map(|(_, g)| g.len()).sum();
        let norm = 0.5 * (count as f64).sqrt();
        let config = OptimizerConfig { weight_decay: 0.0, ..OptimizerConfig::release() };
        let mut optimizer = Optimizer::new(config, &model);
        let before = all(&model);
        let report = optimizer.step(&mut model, &mut gradients, &step(1e-3));
        assert!(report.applied && optimizer.steps() == 1);
        assert!((report.grad_norm - norm).abs() < 1e-6 * norm, "{} {norm}", report.grad_norm);
        assert!((report.clip - 1.0 / (norm + 1e-6)).abs() < 1e-9);
        // The first step of Adam is the sign of the gradient, whatever its size.
        for (a, b) in all(&model).iter().zip(&before) {
            assert!((a - b + 1e-3).abs() < 2e-7, "{a} {b}");
        }
        assert!(gradients.iter().all(|(_, g)| g.iter().all(|x| *x == 0.0)));
    }

    #[test]
    fn groups_decay_as_they_are_told() {
        let mut model = model();
        let mut gradients = model.gradients();
        let config =
            OptimizerConfig { decay_norm_and_bias: false, decay_embeddings: false, ..OptimizerConfig::release() };
        let mut optimizer = Optimizer::new(config, &model);
        let before: Vec<Vec<f32>> = (0..model.parameters().len()).map(|id| value(&model, id).to_vec()).collect();
        optimizer.step(&mut model, &mut gradients, &step(0.5));
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
        let mut gradients = model.gradients();
        let mut optimizer = Optimizer::new(OptimizerConfig::release(), &model);
        let before = all(&model);
        for bad in [f32::NAN, f32::INFINITY] {
            gradients.get_mut(4).expect("all are trained")[1] = bad;
            let report = optimizer.step(&mut model, &mut gradients, &step(1e-3));
            assert!(!report.applied && optimizer.steps() == 0);
            assert_eq!(all(&model), before);
            gradients.clear();
        }
    }

    #[test]
    fn packed_weights_follow_the_update() {
        // A model that was stepped computes what a model with the same numbers set computes.
        let mut model = model();
        let mut gradients = model.gradients();
        gradients.iter_mut().for_each(|(_, g)| g.iter_mut().enumerate().for_each(|(i, g)| *g = (i % 7) as f32 - 3.0));
        let mut optimizer = Optimizer::new(OptimizerConfig::release(), &model);
        optimizer.step(&mut model, &mut gradients, &step(1e-2));
        let mut other = Model::new(model.config().clone(), Precision::Fp32, Held::Inference).expect("a model");
        for (id, spec) in model.parameters().iter().enumerate() {
            other.set(&spec.name, &spec.shape, value(&model, id)).expect("the same parameters");
        }
        let batch = olmoe_model::batch::Batch::uniform(&[3, 5, 7, 11], 4).expect("a batch");
        let mut activations = olmoe_model::model::Activations::new(olmoe_model::model::Keep::Nothing);
        let one = model.logits(&batch, &mut activations).expect("logits");
        let two = other.logits(&batch, &mut activations).expect("logits");
        assert_eq!(one[..], two[..]);
    }

    #[test]
    fn frozen_parameters_stay_and_take_no_state() {
        let whole = model();
        let held = Held::for_training(whole.config(), |spec| spec.kind == ParameterKind::Router);
        let mut model = Model::with(whole.config().clone(), Precision::Fp32, held, &[]).expect("a model");
        model.initialize(3);
        let mut optimizer = Optimizer::new(OptimizerConfig::release(), &model);
        let mut gradients = model.gradients();
        gradients.iter_mut().for_each(|(_, g)| g.fill(0.5));
        let before = value(&model, model.find("layers.0.moe.router.weight").expect("a router")).to_vec();
        assert!(optimizer.step(&mut model, &mut gradients, &Step { record: true, ..step(1e-3) }).applied);
        // Two moments of the only router, 3 experts by 8.
        assert_eq!(optimizer.state_bytes(), 2 * 3 * 8 * 4);
        assert_eq!(optimizer.metrics().expect("recorded").parameters.len(), 1);
        for (id, spec) in model.parameters().iter().enumerate() {
            match spec.kind {
                ParameterKind::Router => assert_ne!(value(&model, id), before),
                _ => assert!(model.value(id).is_none_or(|x| x[..] == *value(&whole, id))),
            }
        }
    }
}
