//! Where each module finds its parameters.

use std::collections::HashMap;

use crate::config::{FeedForward, Mlp, ModelConfig, Norm};
use crate::parameters::ParameterSpec;

/// Index of a parameter in canonical order.
pub type ParameterId = usize;

/// `y = x·Wᵀ + b`
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    pub(super) weight: ParameterId,
    pub(super) bias: Option<ParameterId>,
}

/// A norm and its parameters, if it has any.
#[derive(Clone, Copy, Debug)]
pub(super) struct NormModule {
    pub(super) config: Norm,
    pub(super) weight: Option<ParameterId>,
    pub(super) bias: Option<ParameterId>,
}

/// An MLP, or a stack of experts.
#[derive(Clone, Copy, Debug)]
pub(super) struct MlpModule {
    pub(super) config: Mlp,
    pub(super) gate: Option<Linear>,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct AttentionModule {
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    pub(super) q_norm: Option<NormModule>,
    pub(super) k_norm: Option<NormModule>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct MoeModule {
    pub(super) router: ParameterId,
    pub(super) experts: MlpModule,
    pub(super) bias: Option<ParameterId>,
    pub(super) shared_expert: Option<MlpModule>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum FeedForwardModule {
    Dense(MlpModule),
    Moe(MoeModule),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct BlockModule {
    pub(super) attention_norm: NormModule,
    pub(super) attention: AttentionModule,
    pub(super) mlp_norm: NormModule,
    pub(super) feed_forward: FeedForwardModule,
}

/// All modules of a model.
#[derive(Clone, Debug)]
pub(super) struct Modules {
    pub(super) embedding: ParameterId,
    pub(super) embedding_norm: Option<NormModule>,
    pub(super) blocks: Vec<BlockModule>,
    pub(super) norm: NormModule,
    pub(super) head: Linear,
}

/// Looks parameters up by name. The registry and this file name the same ones; a test builds every variant.
struct Names<'a>(HashMap<&'a str, ParameterId>);

impl Names<'_> {
    fn find(&self, name: &str) -> Option<ParameterId> {
        self.0.get(name).copied()
    }

    fn weight(&self, module: &str) -> ParameterId {
        let name = format!("{module}.weight");
        self.find(&name).unwrap_or_else(|| panic!("the registry lists {name} for every model that uses it"))
    }

    fn linear(&self, module: &str) -> Linear {
        Linear { weight: self.weight(module), bias: self.find(&format!("{module}.bias")) }
    }

    fn norm(&self, module: &str, config: Norm) -> NormModule {
        let weight = self.find(&format!("{module}.weight"));
        NormModule { config, weight, bias: self.find(&format!("{module}.bias")) }
    }

    fn mlp(&self, module: &str, config: Mlp) -> MlpModule {
        MlpModule {
            config,
            gate: config.activation.is_gated().then(|| self.linear(&format!("{module}.gate_proj"))),
            up: self.linear(&format!("{module}.up_proj")),
            down: self.linear(&format!("{module}.down_proj")),
        }
    }

    fn block(&self, config: &ModelConfig, layer: usize) -> BlockModule {
        let name = |module: &str| format!("layers.{layer}.{module}");
        let qk_norm = |module: &str| config.qk_norm.map(|norm| self.norm(&name(module), norm));
        BlockModule {
            attention_norm: self.norm(&name("attention_norm"), config.norm),
            attention: AttentionModule {
                q: self.linear(&name("attention.q_proj")),
                k: self.linear(&name("attention.k_proj")),
                v: self.linear(&name("attention.v_proj")),
                o: self.linear(&name("attention.o_proj")),
                q_norm: qk_norm("attention.q_norm"),
                k_norm: qk_norm("attention.k_norm"),
            },
            mlp_norm: self.norm(&name("mlp_norm"), config.norm),
            feed_forward: match config.feed_forward_of(layer) {
                FeedForward::Dense(mlp) => FeedForwardModule::Dense(self.mlp(&name("mlp"), mlp)),
                FeedForward::Moe(moe) => FeedForwardModule::Moe(MoeModule {
                    router: self.weight(&name("moe.router")),
                    experts: self.mlp(&name("moe.experts"), moe.expert),
                    bias: self.find(&name("moe.bias")),
                    shared_expert: moe.shared_expert.map(|mlp| self.mlp(&name("moe.shared_expert"), mlp)),
                }),
            },
        }
    }
}

impl Modules {
    pub(super) fn new(config: &ModelConfig, specs: &[ParameterSpec]) -> Modules {
        let names = Names(specs.iter().enumerate().map(|(id, spec)| (spec.name.as_str(), id)).collect());
        let embedding = names.weight("embed_tokens");
        Modules {
            embedding,
            embedding_norm: config.embedding_norm.map(|norm| names.norm("embedding_norm", norm)),
            blocks: (0..config.n_layers).map(|layer| names.block(config, layer)).collect(),
            norm: names.norm("norm", config.norm),
            head: if config.tie_embeddings {
                Linear { weight: embedding, bias: None }
            } else {
                names.linear("lm_head")
            },
        }
    }
}
