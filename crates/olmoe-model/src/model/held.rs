//! What each parameter is held for, and how far down a backward pass has to go.
//!
//! A gradient comes down from the head through *stages*: the final norm and the head, then of each layer, from the last to
//! the first, the feed-forward layer and attention, each with its norm, and at the bottom the embedding. It goes no further
//! than the lowest stage that has a trained parameter.

use crate::config::ModelConfig;
use crate::parameters::{ParameterKind, ParameterSpec, Part, parameters};

/// What a parameter is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Forward passes alone: a matrix in one packed form or in the blocks of a file.
    Inference,
    /// Gradients pass through it, and it has none of its own: a matrix is packed for the way back as well, and blocks are made
    /// numbers again on the way.
    Frozen,
    /// It has a gradient and is updated: it is held as f32 numbers besides.
    Trained,
}

impl Held {
    /// For training those parameters for which `trained` is true, with as little as that needs: what lies above them is
    /// frozen, and what lies below them is for inference. In canonical order.
    pub fn for_training(config: &ModelConfig, trained: impl Fn(&ParameterSpec) -> bool) -> Vec<Held> {
        let specs = parameters(config);
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

/// A place that a gradient passes on its way down; the higher, the earlier.
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

    /// Where a parameter takes part, the lowest if there are two such places.
    pub(super) fn of(spec: &ParameterSpec, config: &ModelConfig) -> Stage {
        match (spec.module.part, spec.module.layer) {
            (Part::FinalNorm | Part::Head, _) => Stage::head(config),
            (_, None) => Stage::EMBEDDING,
            (Part::MlpNorm | Part::Router | Part::Mixture | Part::Mlp(..), Some(layer)) => Stage::feed_forward(layer),
            (_, Some(layer)) => Stage::attention(layer),
        }
    }

    /// The highest place where it takes part: a tied embedding is the head, too.
    pub(super) fn highest(spec: &ParameterSpec, config: &ModelConfig) -> Stage {
        match spec.kind {
            ParameterKind::Embedding if config.tie_embeddings => Stage::head(config),
            _ => Stage::of(spec, config),
        }
    }
}
