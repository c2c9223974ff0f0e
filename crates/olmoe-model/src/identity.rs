//! Which module of a model a parameter belongs to.

use std::fmt;

/// A module: what it is, and in which layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModuleId {
    /// The layer, counted from 0; `None` for the embedding, its norm, the final norm and the head.
    pub layer: Option<usize>,
    /// What it is there.
    pub part: Part,
}

/// What a module is, in its layer or outside of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The token embedding.
    Embedding,
    /// The norm of the embedding's rows.
    EmbeddingNorm,
    /// The norm beside attention.
    AttentionNorm,
    /// A projection of attention.
    Attention(Projection),
    /// The norm of the queries.
    QueryNorm,
    /// The norm of the keys.
    KeyNorm,
    /// The norm beside the feed-forward layer.
    MlpNorm,
    /// The router of a mixture.
    Router,
    /// A mixture as a whole; the bias of its output.
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
    /// That of a dense layer.
    Dense,
    /// The routed experts of a mixture, stacked.
    Experts,
    /// The expert of a mixture that every token passes.
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

impl Part {
    /// Its name inside its layer, such as `attention.q_proj`.
    pub fn name(self) -> &'static str {
        use MlpMatrix::{Down, Gate, Up};
        match self {
            Part::Embedding => "embed_tokens",
            Part::EmbeddingNorm => "embedding_norm",
            Part::AttentionNorm => "attention_norm",
            Part::Attention(Projection::Query) => "attention.q_proj",
            Part::Attention(Projection::Key) => "attention.k_proj",
            Part::Attention(Projection::Value) => "attention.v_proj",
            Part::Attention(Projection::Output) => "attention.o_proj",
            Part::QueryNorm => "attention.q_norm",
            Part::KeyNorm => "attention.k_norm",
            Part::MlpNorm => "mlp_norm",
            Part::Router => "moe.router",
            Part::Mixture => "moe",
            Part::Mlp(MlpOf::Dense, Gate) => "mlp.gate_proj",
            Part::Mlp(MlpOf::Dense, Up) => "mlp.up_proj",
            Part::Mlp(MlpOf::Dense, Down) => "mlp.down_proj",
            Part::Mlp(MlpOf::Experts, Gate) => "moe.experts.gate_proj",
            Part::Mlp(MlpOf::Experts, Up) => "moe.experts.up_proj",
            Part::Mlp(MlpOf::Experts, Down) => "moe.experts.down_proj",
            Part::Mlp(MlpOf::SharedExpert, Gate) => "moe.shared_expert.gate_proj",
            Part::Mlp(MlpOf::SharedExpert, Up) => "moe.shared_expert.up_proj",
            Part::Mlp(MlpOf::SharedExpert, Down) => "moe.shared_expert.down_proj",
            Part::FinalNorm => "norm",
            Part::Head => "lm_head",
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
