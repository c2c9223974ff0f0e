//! The purpose for which each parameter is held, and the stage at which a backward pass ends.
//!
//! A gradient passes through *stages* from the head downwards: the final norm and the head; then for each layer, from
//! the last to the first, the feed-forward layer and attention, each with its norm; and at the bottom the embedding.
//! The backward pass ends at the lowest stage with a trained parameter.

use crate::config::ModelConfig;
use crate::parameters::{ModulePart, ParameterKind, ParameterSpec, parameters};

/// The purpose for which a parameter is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Only forward passes: a matrix is packed once, from numbers or from quantised blocks.
    Inference,
    /// Gradients pass through the parameter, but it has no gradient of its own: a matrix is also packed for the
    /// backward product, or its quantised blocks are dequantised in the backward pass.
    Frozen,
    /// The parameter has a gradient and is updated: it is also held as f32 numbers.
    Trained,
}

impl Held {
    /// The purposes for training the parameters for which `trained` is true, in canonical order, with the least memory:
    /// other parameters are frozen where a gradient passes through them, and for inference below.
    pub fn for_training(config: &ModelConfig, trained: impl Fn(&ParameterSpec) -> bool) -> Vec<Held> {
        Held::of(&parameters(config), config, trained)
    }

    /// The same for a model with adapters, whose parameters are `specs`
    /// ([`parameters_with`](crate::adapter::parameters_with)).
    pub fn of(specs: &[ParameterSpec], config: &ModelConfig, trained: impl Fn(&ParameterSpec) -> bool) -> Vec<Held> {
        let trained: Vec<bool> = specs.iter().map(trained).collect();
        let lowest =
            specs.iter().zip(&trained).filter(|(_, trained)| **trained).map(|(spec, _)| Stage::of(spec, config));
        let lowest = lowest.min();
        let held = specs.iter().zip(trained).map(|(spec, trained)| match lowest {
            _ if trained => Held::Trained,
            Some(lowest) if lowest <= Stage::highest(spec, config) => Held::Frozen,
            _ => Held::Inference,
        });
        held.collect()
    }
}

/// A place in the model that a gradient passes; higher stages are passed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stage(usize);

impl Stage {
    /// The embedding.
    pub(super) const EMBEDDING: Stage = Stage(0);

    pub(super) fn attention(layer: usize) -> Stage {
        Stage(1 + 2 * layer)
    }

    pub(super) fn feed_forward(layer: usize) -> Stage {
        Stage(2 + 2 * layer)
    }

    /// The final norm and the head.
    pub(super) fn head(config: &ModelConfig) -> Stage {
        Stage(1 + 2 * config.n_layers)
    }

    /// The lowest stage in which a parameter takes part.
    pub(super) fn of(spec: &ParameterSpec, config: &ModelConfig) -> Stage {
        match (spec.module.part, spec.module.layer) {
            (ModulePart::FinalNorm | ModulePart::Head, _) => Stage::head(config),
            (_, None) => Stage::EMBEDDING,
            (ModulePart::MlpNorm | ModulePart::Router | ModulePart::Mixture | ModulePart::Mlp(..), Some(layer)) => {
                Stage::feed_forward(layer)
            }
            (_, Some(layer)) => Stage::attention(layer),
        }
    }

    /// The highest stage in which a parameter takes part: a tied embedding is also the head.
    pub(super) fn highest(spec: &ParameterSpec, config: &ModelConfig) -> Stage {
        match spec.kind {
            ParameterKind::Embedding if config.tie_embeddings => Stage::head(config),
            _ => Stage::of(spec, config),
        }
    }
}
