//! One step: micro-batches forward and back, then the update.

use olmoe_data::pretrain::Batch;
use olmoe_model::auxiliary::AuxiliaryLosses;
use olmoe_model::model::{Activations, Gradients, Model, RoutingRecord};

use super::data;
use super::error::TrainError;
use crate::config::TrainConfig;
use crate::loss::Loss;
use crate::optimizer::{Optimizer, Step};

/// The results of a training step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Its number.
    pub step: u64,
    /// The pass over the data, from 0.
    pub epoch: u64,
    /// Its tokens.
    pub tokens: u64,
    /// Cross-entropy in nats: the sum over the targets divided by all tokens of the batch, as OLMo has it.
    pub cross_entropy: f64,
    /// The load-balancing loss of the routers, with its weight.
    pub load_balancing: f64,
    /// The z-loss of the routers, with its weight.
    pub router_z: f64,
    /// The z-loss of the logits, with its weight: `softmax_auxiliary_loss`.
    pub logits_z: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The factor by which the gradients were clipped.
    pub clip: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Sequences that a filter kept out of the loss.
    pub masked_instances: u64,
    /// Choices of each expert, by layer; none for a layer that is dense.
    pub loads: Vec<Vec<u64>>,
    /// What the kind of training measured besides, by name.
    pub named: Vec<(String, f64)>,
    /// Seconds it took.
    pub seconds: f64,
}

impl StepReport {
    /// What the gradients are of.
    pub fn total_loss(&self) -> f64 {
        self.cross_entropy + self.load_balancing + self.router_z + self.logits_z
    }

    /// The largest share of an expert, over all layers, as a multiple of an even share; 1 is perfect balance. None for
    /// a dense model.
    pub fn imbalance(&self) -> Option<f64> {
        let layer = |loads: &Vec<u64>| {
            let (most, sum) = (loads.iter().max().copied().unwrap_or(0), loads.iter().sum::<u64>());
            most as f64 * loads.len() as f64 / sum.max(1) as f64
        };
        self.loads.iter().map(layer).reduce(f64::max)
    }

    /// Takes in the auxiliary losses and the choices of the routers in a pass.
    pub(crate) fn add_routers(&mut self, losses: &AuxiliaryLosses, record: &RoutingRecord) {
        self.load_balancing += losses.load_balancing;
        self.router_z += losses.z;
        self.add_loads(record);
    }

    /// Takes in the choices of a pass.
    pub(super) fn add_loads(&mut self, record: &RoutingRecord) {
        for routing in &record.layers {
            self.loads.resize(self.loads.len().max(routing.layer + 1), Vec::new());
            let loads = &mut self.loads[routing.layer];
            loads.resize(routing.load_e.len(), 0);
            for (sum, load) in loads.iter_mut().zip(&routing.load_e[..]) {
                *sum += u64::from(*load);
            }
        }
    }
}

/// Forward and backward passes of a whole batch; adds to the gradients.
pub(super) fn passes(
    config: &TrainConfig,
    model: &Model,
    batch: &Batch,
    activations: &mut Activations,
    gradients: &mut Gradients,
    report: &mut StepReport,
) -> Result<(), TrainError> {
    let targets = batch.targets();
    let length = batch.sequence_length;
    // OLMo divides by all tokens of the batch, though the last of each sequence, and those that are masked, have no
    // target.
    let tokens = batch.ids.len() as f64;
    let logits_z = match config.softmax_auxiliary_loss {
        true => config.auxiliary_loss_multiplier.unwrap_or(0.0),
        false => 0.0,
    };
    let size = usize::try_from(config.device_train_microbatch_size).unwrap_or(usize::MAX).clamp(1, batch.size.max(1));
    let loss = Loss { logits_z, share: 1.0 / batch.size.div_ceil(size) as f64, ..Loss::over(tokens) };
    report.masked_instances = batch.instance_mask.iter().flatten().filter(|counts| !**counts).count() as u64;
    for start in (0..batch.size).step_by(size) {
        let some = start..(start + size).min(batch.size);
        let targets = &targets[some.start * length..some.end * length];
        let micro = data::micro_batch(batch, some)?;
        let losses = loss.step(model, &micro, targets, activations, gradients)?;
        report.cross_entropy += losses.cross_entropy;
        report.load_balancing += losses.load_balancing;
        report.router_z += losses.router_z;
        report.logits_z += losses.logits_z;
        report.add_loads(&activations.routing);
        check_loss(report, model, activations)?;
    }
    Ok(())
}

/// Ends the step if its loss so far is NaN or infinite.
pub(crate) fn check_loss(report: &StepReport, model: &Model, activations: &Activations) -> Result<(), TrainError> {
    if report.total_loss().is_finite() {
        return Ok(());
    }
    let what = format!("the loss is {}", report.total_loss());
    Err(TrainError::NotFinite { step: report.step, what, place: forward_place(model, activations) })
}

/// The update.
pub(super) fn update(
    optimizer: &mut Optimizer,
    model: &mut Model,
    gradients: &mut Gradients,
    step: &Step,
    report: &mut StepReport,
) -> Result<(), TrainError> {
    let done = optimizer.step(model, gradients, step);
    (report.grad_norm, report.clip, report.learning_rate) = (done.grad_norm, done.clip, step.learning_rate);
    if done.applied {
        return Ok(());
    }
    // The backward pass begins at the end of the model.
    let bad = (0..model.parameters().len()).rev().find_map(|id| Some((id, bad_number(gradients.get(id)?)?)));
    let place = match bad {
        Some((id, (at, number))) => {
            let spec = &model.parameters()[id];
            format!(
                "coming from the loss, the gradient of {} ({}) is the first: {number} at {at}",
                spec.name,
                layer(spec.module.layer)
            )
        }
        None => {
            let sizes = gradients.iter().map(|(id, g)| (id, g.iter().fold(0f32, |a, b| a.max(b.abs()))));
            let most = sizes.max_by(|a, b| a.1.total_cmp(&b.1));
            let of = most.map(|(id, size)| (&model.parameters()[id], size));
            of.map_or(String::new(), |(spec, size)| {
                format!("the largest gradient is {size:e}, of {} ({})", spec.name, layer(spec.module.layer))
            })
        }
    };
    Err(TrainError::NotFinite {
        step: step.number,
        what: format!("the norm of the gradients is {}", done.grad_norm),
        place,
    })
}

fn layer(layer: Option<usize>) -> String {
    layer.map_or("outside the layers".to_owned(), |layer| format!("layer {layer}"))
}

fn bad_number(numbers: &[f32]) -> Option<(usize, f32)> {
    numbers.iter().enumerate().find(|(_, x)| !x.is_finite()).map(|(at, x)| (at, *x))
}

/// The first weight that is NaN or infinite.
pub(super) fn bad_weight(model: &Model) -> Option<String> {
    model.parameters().iter().enumerate().find_map(|(id, spec)| {
        let (at, number) = bad_number(model.value(id)?)?;
        Some(format!("the parameter {} ({}) holds {number} at {at}", spec.name, layer(spec.module.layer)))
    })
}

/// The first NaN or infinity of a forward pass.
fn forward_place(model: &Model, activations: &Activations) -> String {
    if let Some(weight) = bad_weight(model) {
        return weight;
    }
    let bad = activations.routing.layers.iter().find(|mixture| bad_number(&mixture.routing.lse_t).is_some());
    match (bad, bad_number(activations.hidden())) {
        (Some(mixture), _) => {
            let layer = mixture.layer;
            format!("all parameters are finite; the input of layer {layer}'s experts is the first that is not")
        }
        (None, Some(_)) => "all parameters are finite, the hidden states after the last layer are not".to_owned(),
        (None, None) => {
            "all parameters and hidden states are finite, the logits of lm_head.weight are too large".to_owned()
        }
    }
}
