//! The losses of language modelling.

use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::cross_entropy::LogProbs;

use super::{Activations, Gradients, Model, ModelError, Objective};
use crate::auxiliary::{self, AuxiliaryLosses};
use crate::batch::Batch;

/// The losses of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// `−Σ_t logp_t` over the targets divided by the denominator, in nats.
    pub cross_entropy: f64,
    /// The routers' losses, weights applied.
    pub auxiliary: AuxiliaryLosses,
}

impl Losses {
    /// What the gradient is of.
    pub fn total(&self) -> f64 {
        self.cross_entropy + self.auxiliary.load_balancing + self.auxiliary.z
    }
}

impl Model {
    /// One step of language modelling: forward, cross-entropy of the next tokens over `denominator`, auxiliary losses
    /// times `auxiliary`, backward. The gradients are added to.
    ///
    /// # Errors
    /// [`ModelError::TokenId`], [`ModelError::TooLong`].
    pub fn language_model_step(
        &self,
        batch: &Batch,
        targets: &[u32],
        denominator: f64,
        auxiliary: f64,
        activations: &mut Activations,
        gradients: &mut Gradients,
    ) -> Result<Losses, ModelError> {
        self.forward(batch, activations)?;
        let mut dlogp_t = Buffer::scratch(targets.len());
        dlogp_t.fill((-1.0 / denominator) as f32);
        let objective = Objective { targets, dlogp_t: &dlogp_t, z: 0.0, auxiliary };
        let (log_probs, auxiliary) = self.backward(batch, activations, &objective, gradients)?;
        Ok(Losses { cross_entropy: mean_loss(&log_probs, denominator), auxiliary })
    }

    /// The losses of a forward pass alone.
    ///
    /// # Errors
    /// As [`Model::language_model_step`].
    pub fn language_model_loss(
        &self,
        batch: &Batch,
        targets: &[u32],
        denominator: f64,
        activations: &mut Activations,
    ) -> Result<Losses, ModelError> {
        self.forward(batch, activations)?;
        let log_probs = self.log_probs(activations, targets)?;
        let (auxiliary, _) = auxiliary::losses(&activations.routing, batch, &self.config().auxiliary, 1.0);
        Ok(Losses { cross_entropy: mean_loss(&log_probs, denominator), auxiliary })
    }
}

fn mean_loss(log_probs: &LogProbs, denominator: f64) -> f64 {
    -log_probs.logp_t.iter().map(|x| f64::from(*x)).sum::<f64>() / denominator
}
