//! Experts that are switched off, to see what a model is without them.
//!
//! With the logits `r_te` of a router, [`SwitchedOff::Banned`] sets `r_te = −∞` before the softmax: the expert is never
//! chosen, the next one of the token takes its place, and the probabilities of the others grow. [`SwitchedOff::Silent`]
//! leaves the routing as it is and sets the weight of the expert's output to 0: nothing takes its place.

use olmoe_tensor::ops::router::Routing;
use olmoe_tensor::tensor::Tensor;

use crate::config::ModelConfig;

/// How an expert is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SwitchedOff {
    /// The router does not choose it.
    Banned,
    /// It is chosen as before, and its output is left out.
    Silent,
}

impl SwitchedOff {
    /// `ban` or `zero`.
    pub fn name(self) -> &'static str {
        match self {
            SwitchedOff::Banned => "ban",
            SwitchedOff::Silent => "zero",
        }
    }
}

/// An expert that is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Intervention {
    /// The layer of the model, counted from 0.
    pub layer: usize,
    /// The expert, counted from 0.
    pub expert: usize,
    /// How.
    pub how: SwitchedOff,
}

/// Why experts cannot be switched off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterventionError {
    /// No such expert.
    #[error(
        "layer {layer}, expert {expert}: the model has no such expert; {experts} of its experts are in a layer, and layers with experts are {layers:?}"
    )]
    NoExpert {
        /// The layer given.
        layer: usize,
        /// The expert given.
        expert: usize,
        /// Experts of a mixture.
        experts: usize,
        /// The layers with experts.
        layers: Vec<usize>,
    },
    /// Too few experts are left.
    #[error("layer {layer}: {left} of its experts would be left, but its router chooses {top_k}; ban fewer")]
    TooFew {
        /// The layer.
        layer: usize,
        /// Experts left.
        left: usize,
        /// Experts that are chosen.
        top_k: usize,
    },
}

/// Checks that the model has these experts, and that enough are left.
pub(crate) fn check(config: &ModelConfig, interventions: &[Intervention]) -> Result<(), InterventionError> {
    let layers: Vec<usize> = config.mixture_layers().collect();
    let (experts, top_k) = config.moe().map_or((0, 0), |moe| (moe.num_experts, moe.top_k));
    for Intervention { layer, expert, .. } in interventions.iter().copied() {
        if !layers.contains(&layer) || expert >= experts {
            return Err(InterventionError::NoExpert { layer, expert, experts, layers });
        }
        let mut banned: Vec<usize> = interventions
            .iter()
            .filter(|one| one.layer == layer && one.how == SwitchedOff::Banned)
            .map(|one| one.expert)
            .collect();
        banned.sort_unstable();
        banned.dedup();
        let left = experts.saturating_sub(banned.len());
        if left < top_k {
            return Err(InterventionError::TooFew { layer, left, top_k });
        }
    }
    Ok(())
}

/// The experts of a layer that are switched off in this way.
fn of_layer(interventions: &[Intervention], layer: usize, how: SwitchedOff) -> impl Iterator<Item = usize> {
    interventions.iter().filter(move |one| one.layer == layer && one.how == how).map(|one| one.expert)
}

/// Takes the banned experts from the logits `[T, E]` of a router.
pub(crate) fn ban(interventions: &[Intervention], layer: usize, logits_te: &mut Tensor) {
    for expert in of_layer(interventions, layer, SwitchedOff::Banned) {
        (0..logits_te.rows()).for_each(|t| logits_te.row_mut(t)[expert] = f32::NEG_INFINITY);
    }
}

/// Takes the weight from the silent experts where they were chosen.
pub(crate) fn silence(interventions: &[Intervention], layer: usize, routing: &mut Routing) {
    for expert in of_layer(interventions, layer, SwitchedOff::Silent) {
        let Routing { ids_tk, weights_tk, .. } = routing;
        let chosen = weights_tk.iter_mut().zip(ids_tk.iter()).filter(|(_, id)| **id as usize == expert);
        chosen.for_each(|(weight, _)| *weight = 0.0);
    }
}
