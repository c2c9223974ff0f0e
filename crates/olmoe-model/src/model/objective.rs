//! From the final hidden states to losses, and all the way back.

use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::cross_entropy::{self, IGNORE, LogProbs};
use olmoe_tensor::tensor::Tensor;

use super::feed_forward::RouterGradients;
use super::gradients::Gradients;
use super::pass::Activations;
use super::weights::{Model, ModelError};
use crate::auxiliary::{self, AuxiliaryLosses};
use crate::batch::Batch;

/// What to learn from a batch.
#[derive(Clone, Copy, Debug)]
pub struct Objective<'a> {
    /// The token to predict at each place, [`IGNORE`] for none, `[T]`.
    pub targets: &'a [u32],
    /// Gradient of the loss by each target's log-probability, `[T]`; cross-entropy over `N` targets has −1/N.
    pub dlogp_t: &'a [f32],
    /// Weight of a z-loss on the logits: the loss has `z/2 · Σ_t lse_t²`; 0 for none.
    pub z: f32,
    /// Factor on the auxiliary losses: the share of this batch in a step; 0 turns them off.
    pub auxiliary: f64,
}

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
    /// Logits of every token, `[T, V]`, without keeping anything.
    ///
    /// # Errors
    /// [`ModelError::TokenId`], [`ModelError::TooLong`].
    pub fn logits(&self, batch: &Batch, activations: &mut Activations) -> Result<Tensor, ModelError> {
        self.forward(batch, activations)?;
        Ok(self.logits_of(activations.hidden()))
    }

    /// Logits of hidden states, `[T, V]` of `[T, D]`.
    pub fn logits_of(&self, hidden_td: &Tensor) -> Tensor {
        cross_entropy::logits(hidden_td, self.head())
    }

    /// Log-probabilities of `targets [T]` after a forward pass.
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for a target outside the vocabulary.
    pub fn log_probs(&self, activations: &Activations, targets: &[u32]) -> Result<LogProbs, ModelError> {
        self.check_targets(targets)?;
        Ok(cross_entropy::forward(activations.hidden(), self.head(), targets))
    }

    /// Backward pass after a forward pass that kept what it needs: adds the gradients of the objective, and returns the
    /// targets' log-probabilities and the auxiliary losses.
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for a target outside the vocabulary.
    pub fn backward(
        &self,
        batch: &Batch,
        activations: &mut Activations,
        objective: &Objective<'_>,
        gradients: &mut Gradients,
    ) -> Result<(LogProbs, AuxiliaryLosses), ModelError> {
        self.check_targets(objective.targets)?;
        let head = self.modules.head;
        let (log_probs, mut dh_td) = {
            let [dweight, dbias] = gradients.several([Some(head.weight), head.bias]);
            let into = cross_entropy::Gradients { dlogp_t: objective.dlogp_t, z: objective.z, dweight, dbias };
            cross_entropy::forward_backward(activations.hidden(), self.head(), objective.targets, into)
        };
        let (losses, auxiliary) =
            auxiliary::losses(&activations.routing, batch, &self.config.auxiliary, objective.auxiliary);
        dh_td = self.final_norm_backward(activations, &dh_td, gradients);
        for layer in (0..self.config.n_layers).rev() {
            let dprobs = activations.routing.position(layer).and_then(|at| auxiliary.layer(at));
            let router = RouterGradients { dprobs, z: auxiliary.z };
            self.block_backward(layer, batch, activations, router, &mut dh_td, gradients);
        }
        self.embedding_backward(batch, activations, &dh_td, gradients);
        Ok((log_probs, losses))
    }

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
        let (auxiliary, _) = auxiliary::losses(&activations.routing, batch, &self.config.auxiliary, 1.0);
        Ok(Losses { cross_entropy: mean_loss(&log_probs, denominator), auxiliary })
    }

    fn check_targets(&self, targets: &[u32]) -> Result<(), ModelError> {
        let rows = self.config.embedding_size;
        match targets.iter().position(|id| *id != IGNORE && *id as usize >= rows) {
            Some(at) => Err(ModelError::TokenId { at, id: targets[at], rows }),
            None => Ok(()),
        }
    }
}

fn mean_loss(log_probs: &LogProbs, denominator: f64) -> f64 {
    -log_probs.logp_t.iter().map(|x| f64::from(*x)).sum::<f64>() / denominator
}
