//! The model of a golden state, and one training pass through it.

use olmoe_model::batch::Batch;
use olmoe_model::model::{Activations, Gradients, Held, Keep, Model, ModelError, Precision, RoutingRecord};
use olmoe_tensor::ops::cross_entropy::IGNORE;
use olmoe_tensor::tensor::Tensor;
use olmoe_train::loss::{Loss, Losses};

use crate::golden::Golden;

/// A model that cannot be built or run.
#[derive(Debug, thiserror::Error)]
#[error("golden state {golden}: {source}")]
pub struct VerifyError {
    /// Name of the golden state.
    pub golden: String,
    /// The error of the model.
    pub source: ModelError,
}

impl VerifyError {
    pub(crate) fn of(golden: &Golden) -> impl Fn(ModelError) -> VerifyError + use<> {
        let golden = golden.name.clone();
        move |source| VerifyError { golden: golden.clone(), source }
    }
}

/// The model of a golden state, with its weights.
pub(crate) fn build(golden: &Golden, precision: Precision) -> Result<Model, VerifyError> {
    let error = VerifyError::of(golden);
    let mut model = Model::new(golden.config.clone(), precision, Held::Trained).map_err(&error)?;
    for parameter in &golden.parameters {
        model.set(&parameter.name, &parameter.shape, &parameter.value).map_err(&error)?;
    }
    Ok(model)
}

/// The inputs of a training pass: a batch, its targets, and the number by which the cross-entropy is divided.
pub(crate) struct PassTask {
    pub(crate) batch: Batch,
    pub(crate) targets: Vec<u32>,
    pub(crate) denominator: f64,
}

impl PassTask {
    /// The next tokens of a golden state, of which those that are padding count 0.
    pub(crate) fn of(golden: &Golden) -> PassTask {
        let batch = golden.batch();
        let (mut targets, count) = batch.next_tokens();
        if let Some(padding) = &golden.padding {
            targets.iter_mut().zip(&padding[1..]).filter(|(_, padding)| **padding).for_each(|(t, _)| *t = IGNORE);
        }
        PassTask { batch, targets: targets.to_vec(), denominator: count as f64 }
    }
}

/// The results of one training pass.
pub(crate) struct TrainingPass {
    pub(crate) logits: Tensor,
    pub(crate) losses: Losses,
    pub(crate) gradients: Gradients,
    pub(crate) routing: RoutingRecord,
}

impl TrainingPass {
    pub(crate) fn run(model: &Model, task: &PassTask, keep: Keep) -> Result<TrainingPass, ModelError> {
        let mut activations = Activations::new(keep);
        let mut gradients = model.gradients();
        let (batch, targets) = (&task.batch, &task.targets[..]);
        let loss = Loss::over(task.denominator);
        let losses = loss.step(model, batch, targets, &mut activations, &mut gradients)?;
        let logits = model.logits_of(activations.hidden());
        Ok(TrainingPass { logits, losses, gradients, routing: activations.routing })
    }
}
