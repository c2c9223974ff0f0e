//! The identity of the modules of a model: the layer, and the part of the layer.

use std::fmt;

/// A module: the layer, and the part of the layer or of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModuleId {
    /// The layer, counted from 0; `None` for the embedding, its norm, the final norm and the head.
    pub layer: Option<usize>,
    /// The part of the layer, or of the model outside of its layers.
    pub part: ModulePart,
}

/// A part of a layer, or of the model outside of its layers, that has parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModulePart {
    /// The token embedding.
    Embedding,
    /// The norm of the rows of the embedding.
    EmbeddingNorm,
    /// The norm before attention, or after it with `norm_after`.
    AttentionNorm,
    /// A projection of attention.
    Attention(Projection),
    /// The norm of the queries.
    QueryNorm,
    /// The norm of the keys.
    KeyNorm,
    /// The norm before the feed-forward layer, or after it with `norm_after`.
    MlpNorm,
    /// The router of a mixture of experts.
    Router,
    /// A mixture of experts as a whole, which may have a bias of its output.
    Mixture,
    /// A matrix of an MLP.
    Mlp(MlpOf, MlpMatrix),
    /// The norm after the last layer.
    FinalNorm,
    /// The head, where it is not the embedding.
    Head,
}

/// The projections of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Projection {
    /// `q_proj`
    Query,
    /// `k_proj`
    Key,
    /// `v_proj`
    Value,
    /// `o_proj`
    Output,
}

/// The MLPs that a layer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MlpOf {
    /// The MLP of a dense layer.
    Dense,
    /// The routed experts, stacked.
    Experts,
    /// The shared expert, which every token passes.
    SharedExpert,
}

/// The matrices of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MlpMatrix {
    /// `gate_proj`
    Gate,
    /// `up_proj`
    Up,
    /// `down_proj`
    Down,
}

impl ModulePart {
    /// Its name inside its layer, such as `attention.q_proj`.
    pub fn name(self) -> &'static str {
        use MlpMatrix::{Down, Gate, Up};
        match self {
            ModulePart::Embedding => "embed_tokens",
            ModulePart::EmbeddingNorm => "embedding_norm",
            ModulePart::AttentionNorm => "attention_norm",
            ModulePart::Attention(Projection::Query) => "attention.q_proj",
            ModulePart::Attention(Projection::Key) => "attention.k_proj",
            ModulePart::Attention(Projection::Value) => "attention.v_proj",
            ModulePart::Attention(Projection::Output) => "attention.o_proj",
            ModulePart::QueryNorm => "attention.q_norm",
            ModulePart::KeyNorm => "attention.k_norm",
            ModulePart::MlpNorm => "mlp_norm",
            ModulePart::Router => "moe.router",
            ModulePart::Mixture => "moe",
            ModulePart::Mlp(MlpOf::Dense, Gate) => "mlp.gate_proj",
            ModulePart::Mlp(MlpOf::Dense, Up) => "mlp.up_proj",
            ModulePart::Mlp(MlpOf::Dense, Down) => "mlp.down_proj",
            ModulePart::Mlp(MlpOf::Experts, Gate) => "moe.experts.gate_proj",
            ModulePart::Mlp(MlpOf::Experts, Up) => "moe.experts.up_proj",
            ModulePart::Mlp(MlpOf::Experts, Down) => "moe.experts.down_proj",
            ModulePart::Mlp(MlpOf::SharedExpert, Gate) => "moe.shared_expert.gate_proj",
            ModulePart::Mlp(MlpOf::SharedExpert, Up) => "moe.shared_expert.up_proj",
            ModulePart::Mlp(MlpOf::SharedExpert, Down) => "moe.shared_expert.down_proj",
            ModulePart::FinalNorm => "norm",
            ModulePart::Head => "lm_head",
        }
    }
}

/// The canonical name, such as `layers.3.attention.q_proj`.
impl fmt::Display for ModuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "layers.{layer}.{}", self.part.name()),
            None => f.write_str(self.part.name()),
        }
    }
}
