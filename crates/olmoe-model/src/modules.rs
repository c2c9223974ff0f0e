//! The modules of a model, with the ids of their parameters. The registry creates them in the same visit that lists the
//! parameters.

use crate::config::architecture::{Mlp, Norm};

/// Index of a parameter in canonical order.
pub type ParameterId = usize;

/// `y = x·Wᵀ + b`
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: ParameterId,
    pub(crate) bias: Option<ParameterId>,
}

/// A norm and its parameters, if it has any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormModule {
    pub(crate) config: Norm,
    pub(crate) weight: Option<ParameterId>,
    pub(crate) bias: Option<ParameterId>,
}

/// An MLP, or a stack of experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MlpModule {
    pub(crate) config: Mlp,
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionModule {
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) q_norm: Option<NormModule>,
    pub(crate) k_norm: Option<NormModule>,
    pub(crate) o: Linear,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct MoeModule {
    pub(crate) router: ParameterId,
    pub(crate) experts: MlpModule,
    pub(crate) bias: Option<ParameterId>,
    pub(crate) shared_expert: Option<MlpModule>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum FeedForwardModule {
    Dense(MlpModule),
    Moe(MoeModule),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockModule {
    pub(crate) attention_norm: NormModule,
    pub(crate) attention: AttentionModule,
    pub(crate) mlp_norm: NormModule,
    pub(crate) feed_forward: FeedForwardModule,
}

/// All modules of a model.
#[derive(Clone, Debug)]
pub(crate) struct Modules {
    pub(crate) embedding: ParameterId,
    pub(crate) embedding_norm: Option<NormModule>,
    pub(crate) blocks: Vec<BlockModule>,
    pub(crate) norm: NormModule,
    /// With tied embeddings, the weight of the head is the embedding.
    pub(crate) head: Linear,
}
