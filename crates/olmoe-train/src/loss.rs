//! The loss of language modelling, on one part of a step at a time.
//!
//! T tokens with a target each, or none; `N` is what the step divides by, `s` the part's share of the step:
//!
//! `loss = −Σ_t logp_t / N + z · Σ_t lse_t² / N + s · (routers' losses)`
//!
//! An objective ends in the gradient of the loss by each target's log-probability, here −1/N, from which
//! [`Model::backward`] goes on.

use std::ops::AddAssign;

use olmoe_model::auxiliary::AuxiliaryLosses;
use olmoe_model::batch::Batch;
use olmoe_model::model::{Activations, Gradients, Model, ModelError, Objective};
use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::cross_entropy::{IGNORE, LogProbs};

/// What a part of a step is to be learned by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// What sums over tokens are divided by, the same for all parts of a step.
    pub denominator: f64,
    /// Weight of a z-loss on the logits, OLMo's `softmax_auxiliary_loss`; 0 for none.
    pub logits_z: f64,
    /// The part's share of the step: the factor on the routers' losses, each of which is a mean over its part.
    pub share: f64,
}

/// What a loss came to, its parts with their weights. Those of the parts of a step add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// Cross-entropy in nats.
    pub cross_entropy: f64,
    /// The load-balancing loss of the routers.
    pub load_balancing: f64,
    /// The z-loss of the routers.
    pub router_z: f64,
    /// The z-loss of the logits.
    pub logits_z: f64,
}

impl Losses {
    /// What the gradients are of.
    pub fn total(&self) -> f64 {
        self.cross_entropy + self.load_balancing + self.router_z + self.logits_z
    }
}

impl AddAssign for Losses {
    fn add_assign(&mut self, other: Losses) {
        self.cross_entropy += other.cross_entropy;
        self.load_balancing += other.load_balancing;
        self.router_z += other.router_z;
        self.logits_z += other.logits_z;
    }
}

impl Loss {
    /// Of a step in one part, without a z-loss on the logits.
    pub fn over(denominator: f64) -> Loss {
        Loss { denominator, logits_z: 0.0, share: 1.0 }
    }

    /// Forward and backward pass of a part; `targets [T]` are [`IGNORE`] where there is nothing to learn. The gradients are
    /// added to.
    ///
    /// # Errors
    /// [`ModelError::TokenId`], [`ModelError::TooLong`].
    pub fn step(
        &self,
        model: &Model,
        batch: &Batch,
        targets: &[u32],
        activations: &mut Activations,
        gradients: &mut Gradients,
    ) -> Result<Losses, ModelError> {
        model.forward(batch, activations)?;
        let mut dlogp_t = Buffer::scratch(targets.len());
        dlogp_t.fill((-1.0 / self.denominator) as f32);
        let z = (2.0 * self.logits_z / self.denominator) as f32;
        let objective = Objective { targets, dlogp_t: &dlogp_t, z, auxiliary: self.share };
        let (log_probs, routers) = model.backward(batch, activations, &objective, gradients)?;
        Ok(self.losses(&log_probs, targets, routers))
    }

    fn losses(&self, log_probs: &LogProbs, targets: &[u32], routers: AuxiliaryLosses) -> Losses {
        let mut losses = Losses {
            cross_entropy: cross_entropy(&log_probs.logp_t, self.denominator),
            load_balancing: routers.load_balancing,
            router_z: routers.z,
            logits_z: 0.0,
        };
        if self.logits_z != 0.0 {
            let learned = log_probs.lse_t.iter().zip(targets).filter(|(_, target)| **target != IGNORE);
            let squares: f64 = learned.map(|(lse, _)| f64::from(*lse) * f64::from(*lse)).sum();
            losses.logits_z = self.logits_z * squares / self.denominator;
        }
        losses
    }
}

/// `−Σ logp / N`: the log-probabilities of ignored tokens are 0.
pub fn cross_entropy(logp_t: &[f32], denominator: f64) -> f64 {
    -logp_t.iter().map(|x| f64::from(*x)).sum::<f64>() / denominator
}
