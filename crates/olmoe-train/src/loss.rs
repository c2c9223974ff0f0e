//! The loss of language modelling, on one part of a step at a time.
//!
//! T tokens with a target each, or none; `N` is what the step divides by, `s` the part's share of the step, `w_t` the weight of
//! a token, 1 where none is given:
//!
//! `loss = −Σ_t w_t·f_t·logp_t / N + z · Σ_t lse_t² / N + s · (routers' losses)`
//!
//! with `f = 1`, or `f = p` for dynamic fine-tuning, taken as a constant. An objective ends in the gradient of the loss by each
//! target's log-probability, here `−w_t·f_t/N`, from which [`Model::backward`] goes on.

mod reduction;

use std::ops::AddAssign;

use olmoe_model::auxiliary::AuxiliaryLosses;
use olmoe_model::batch::Batch;
use olmoe_model::model::{Activations, Gradients, Model, ModelError, Objective};
use olmoe_tensor::elementary::exp;
use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::cross_entropy::{IGNORE, LogProbs};

use crate::names::names;

pub use reduction::{Reduction, StepCounts, neftune_amplitude};

names! {
    "loss of a token";
    /// What a token's log-probability counts by.
    pub enum TokenLoss {
        /// 1: cross-entropy.
        Nll = "nll",
        /// The probability itself, without a gradient: dynamic fine-tuning (Wu et al., arXiv 2508.05629). The head is
        /// computed once more, because the gradient depends on what it gives.
        Dft = "dft",
    }
}

/// What a part of a step is to be learned by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// What sums over tokens are divided by, the same for all parts of a step.
    pub denominator: f64,
    /// Weight of a z-loss on the logits, OLMo's `softmax_auxiliary_loss`; 0 for none.
    pub logits_z: f64,
    /// The part's share of the step: the factor on the routers' losses, each of which is a mean over its part.
    pub share: f64,
    /// What a token's log-probability counts by.
    pub token_loss: TokenLoss,
    /// Whether the head computes the statistics of its distributions.
    pub statistics: bool,
}

/// What a loss came to, its parts with their weights. Those of the parts of a step add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// Cross-entropy in nats, or what [`TokenLoss`] makes of it.
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
        Loss { denominator, logits_z: 0.0, share: 1.0, token_loss: TokenLoss::Nll, statistics: false }
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
        self.weighted_step(model, batch, targets, None, activations, gradients)
    }

    /// The same with a weight for each token, `weight_t [T]`: those of [`Reduction::weights`] with a denominator of 1, or
    /// weights of one's own.
    ///
    /// # Errors
    /// As [`Loss::step`].
    ///
    /// # Panics
    /// Unless there is a weight a token.
    pub fn weighted_step(
        &self,
        model: &Model,
        batch: &Batch,
        targets: &[u32],
        weight_t: Option<&[f64]>,
        activations: &mut Activations,
        gradients: &mut Gradients,
    ) -> Result<Losses, ModelError> {
        let (log_probs, routers) = self.passes(model, batch, targets, weight_t, activations, gradients)?;
        Ok(self.losses(&log_probs, targets, weight_t, routers))
    }

    /// The passes of [`Loss::weighted_step`], for what is to be computed from the log-probabilities besides.
    ///
    /// # Errors
    /// As [`Loss::step`].
    ///
    /// # Panics
    /// As [`Loss::weighted_step`].
    pub fn passes(
        &self,
        model: &Model,
        batch: &Batch,
        targets: &[u32],
        weight_t: Option<&[f64]>,
        activations: &mut Activations,
        gradients: &mut Gradients,
    ) -> Result<(LogProbs, AuxiliaryLosses), ModelError> {
        model.forward(batch, activations)?;
        let found = match self.token_loss {
            TokenLoss::Nll => None,
            TokenLoss::Dft => Some(model.log_probs(activations, targets)?),
        };
        let dlogp_t = self.dlogp(targets.len(), weight_t, found.as_ref().map(|found| &found.logp_t[..]));
        let z = (2.0 * self.logits_z / self.denominator) as f32;
        let objective = Objective { targets, dlogp_t: &dlogp_t, z, auxiliary: self.share, statistics: self.statistics };
        model.backward(batch, activations, &objective, gradients)
    }

    /// The loss of a token of this weight.
    pub fn of_token(&self, logp: f32, weight: f64) -> f64 {
        -weight * self.factor(logp) * f64::from(logp) / self.denominator
    }

    /// What a log-probability counts by.
    fn factor(&self, logp: f32) -> f64 {
        match self.token_loss {
            TokenLoss::Nll => 1.0,
            TokenLoss::Dft => exp(f64::from(logp)),
        }
    }

    /// `∂loss/∂logp_t`, given the log-probabilities where it depends on them.
    fn dlogp(&self, tokens: usize, weight_t: Option<&[f64]>, logp_t: Option<&[f32]>) -> Buffer<f32> {
        assert!(weight_t.is_none_or(|weights| weights.len() == tokens), "a weight a token");
        let mut dlogp_t = Buffer::scratch(tokens);
        for (t, dlogp) in dlogp_t.iter_mut().enumerate() {
            let weight = weight_t.map_or(1.0, |weights| weights[t]);
            let factor = logp_t.map_or(1.0, |logp_t| self.factor(logp_t[t]));
            *dlogp = (-weight * factor / self.denominator) as f32;
        }
        dlogp_t
    }

    fn losses(
        &self,
        log_probs: &LogProbs,
        targets: &[u32],
        weight_t: Option<&[f64]>,
        routers: AuxiliaryLosses,
    ) -> Losses {
        let logp_t = &log_probs.logp_t;
        let weighted = |t: usize| weight_t.map_or(1.0, |weights| weights[t]) * self.factor(logp_t[t]);
        let mut losses = Losses {
            cross_entropy: match (weight_t, self.token_loss) {
                (None, TokenLoss::Nll) => cross_entropy(logp_t, self.denominator),
                _ => -(0..logp_t.len()).map(|t| weighted(t) * f64::from(logp_t[t])).sum::<f64>() / self.denominator,
            },
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
