//! The parameters of a model, as numbers and as packed factors of products.

use std::ops::Range;

use olmoe_tensor::dtype::Element;
use olmoe_tensor::gemm::Operand;
use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::activation;
use olmoe_tensor::ops::cross_entropy::Head;
use olmoe_tensor::ops::linear::PackedWeight;
use olmoe_tensor::ops::mlp;
use olmoe_tensor::ops::norm::{Norm, NormKind};
use olmoe_tensor::ops::rope::Rope;
use olmoe_tensor::tensor::Tensor;
use olmoe_tensor::threads::{Shared, parallel, parallel_ranges};

use super::modules::{Linear, MlpModule, Modules, NormModule, ParameterId};
use crate::config::{self, ConfigError, ModelConfig};
use crate::init::{CHUNK, initialize_chunk};
use crate::parameters::{ParameterKind, ParameterSpec, parameters};

/// The precision of the matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout.
    Fp32,
    /// bf16 operands, f32 sums; norms, softmax, router and losses in f32, and so are the parameters and gradients.
    AmpBf16,
}

impl Precision {
    /// `fp32` or `amp_bf16`, OLMo's names.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::AmpBf16 => "amp_bf16",
        }
    }

    /// The precision of that name.
    ///
    /// # Errors
    /// [`ModelError::UnknownPrecision`].
    pub fn by_name(name: &str) -> Result<Precision, ModelError> {
        match name {
            "fp32" => Ok(Precision::Fp32),
            "amp_bf16" => Ok(Precision::AmpBf16),
            _ => Err(ModelError::UnknownPrecision { found: name.to_owned() }),
        }
    }

    pub(super) fn operand(self) -> Operand {
        match self {
            Precision::Fp32 => Operand::F32,
            Precision::AmpBf16 => Operand::Bf16,
        }
    }
}

/// Why a model cannot be made or used as asked.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Bad configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No such precision.
    #[error("precision: found {found:?}, expected fp32 or amp_bf16")]
    UnknownPrecision {
        /// What was given.
        found: String,
    },
    /// No such parameter.
    #[error("parameter {name:?}: this model has none of that name; its names are those of `parameters(config)`")]
    UnknownParameter {
        /// What was given.
        name: String,
    },
    /// A tensor does not fit its parameter.
    #[error("parameter {name}: found shape {found:?}, expected {expected:?}")]
    Shape {
        /// The parameter.
        name: String,
        /// The shape given.
        found: Vec<usize>,
        /// The shape of the configuration.
        expected: Vec<usize>,
    },
    /// A token id outside the embedding.
    #[error("token {at}: id {id} is outside the embedding of {rows} rows; check that the tokenizer is the model's")]
    TokenId {
        /// Place in the batch.
        at: usize,
        /// The id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// Not one cache for each sequence.
    #[error("caches: found {found}, expected {expected}, one for each sequence of the batch")]
    CacheCount {
        /// Caches given.
        found: usize,
        /// Sequences of the batch.
        expected: usize,
    },
    /// The tokens do not follow those in the cache.
    #[error(
        "sequence {sequence}: its first token is at position {found}, but its cache holds {held} tokens; give its batch that number in `continued_from`"
    )]
    CachePosition {
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Position of its first token.
        found: usize,
        /// Tokens in the cache.
        held: usize,
    },
    /// No room in the cache.
    #[error(
        "sequence {sequence}: {length} tokens do not fit its cache of {capacity}; make the cache larger or truncate it"
    )]
    CacheFull {
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Tokens it would hold.
        length: usize,
        /// Tokens it has room for.
        capacity: usize,
    },
    /// A sequence longer than the rotary tables.
    #[error("sequence of {length} tokens: the model's max_sequence_length is {limit}; shorten it or raise the limit")]
    TooLong {
        /// Tokens, those in the cache included.
        length: usize,
        /// `max_sequence_length`.
        limit: usize,
    },
}

/// A model: configuration, parameters (f32, canonical order) and their packed forms.
pub struct Model {
    pub(super) config: ModelConfig,
    pub(super) precision: Precision,
    specs: Vec<ParameterSpec>,
    values: Vec<Tensor>,
    packed: Vec<Option<PackedWeight>>,
    pub(super) modules: Modules,
    pub(super) rope: Rope,
}

impl Model {
    /// A model with all parameters zero, ready to be filled by [`Model::set`] or [`Model::initialize`]. A `trainable`
    /// one can run backward passes.
    ///
    /// # Errors
    /// [`ModelError::Config`].
    pub fn new(config: ModelConfig, precision: Precision, trainable: bool) -> Result<Model, ModelError> {
        config.validate()?;
        let specs = parameters(&config);
        let modules = Modules::new(&config, &specs);
        let packed = specs.iter().enumerate().map(|(id, spec)| {
            let operand = match spec.kind {
                // The router decides in f32 at every precision.
                ParameterKind::Router => Operand::F32,
                ParameterKind::Linear | ParameterKind::Expert => precision.operand(),
                ParameterKind::Embedding if id == modules.head.weight => precision.operand(),
                ParameterKind::Embedding | ParameterKind::Norm | ParameterKind::Bias => return None,
            };
            let (groups, out, input) = match spec.shape[..] {
                [groups, out, input] => (groups, out, input),
                [out, input] => (1, out, input),
                _ => return None,
            };
            Some(PackedWeight::new(groups, out, input, operand, trainable))
        });
        let packed = packed.collect();
        let values = specs.iter().map(|spec| Tensor::zeros(&spec.shape)).collect();
        let rope = Rope::new(config.head_dim, config.rope.theta, config.max_sequence_length);
        Ok(Model { config, precision, specs, values, packed, modules, rope })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The precision of its products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The registry, in canonical order: the index of an entry is its [`ParameterId`].
    pub fn parameters(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// The numbers of one parameter.
    pub fn value(&self, id: ParameterId) -> &Tensor {
        &self.values[id]
    }

    /// The parameter of that canonical name.
    ///
    /// # Errors
    /// [`ModelError::UnknownParameter`].
    pub fn find(&self, name: &str) -> Result<ParameterId, ModelError> {
        let found = self.specs.iter().position(|spec| spec.name == name);
        found.ok_or_else(|| ModelError::UnknownParameter { name: name.to_owned() })
    }

    /// Fills a parameter from numbers of any format; `shape` is that of `data`.
    ///
    /// # Errors
    /// [`ModelError::UnknownParameter`], [`ModelError::Shape`].
    pub fn set<T: Element>(&mut self, name: &str, shape: &[usize], data: &[T]) -> Result<(), ModelError> {
        let id = self.find(name)?;
        if shape != self.specs[id].shape || data.len() != self.values[id].len() {
            let expected = self.specs[id].shape.clone();
            return Err(ModelError::Shape { name: name.to_owned(), found: shape.to_vec(), expected });
        }
        self.update(id, |range, value| T::widen(&data[range], value));
        Ok(())
    }

    /// Draws every parameter afresh, as the configuration's `init` says.
    pub fn initialize(&mut self, seed: u64) {
        for id in 0..self.specs.len() {
            let spec = &self.specs[id];
            let len = spec.num_elements();
            let mut drawn = Buffer::scratch(len);
            let shared = Shared::new(&mut drawn);
            parallel(len.div_ceil(CHUNK), |chunk| {
                // SAFETY: each chunk is another range.
                let out = unsafe { shared.range(chunk * CHUNK..((chunk + 1) * CHUNK).min(len)) };
                initialize_chunk(spec, seed, chunk, out);
            });
            self.update(id, |range, value| value.copy_from_slice(&drawn[range]));
        }
    }

    /// Changes the numbers of a parameter on all threads and packs them anew. `change` gets a range of the parameter's
    /// numbers, in canonical order, and the numbers there; the ranges cover all of them.
    pub fn update(&mut self, id: ParameterId, change: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        let value = &mut self.values[id];
        match &mut self.packed[id] {
            Some(packed) => packed.update(value, change),
            None => {
                let len = value.len();
                let shared = Shared::new(value);
                parallel_ranges(len, CHUNK, |range| {
                    // SAFETY: the ranges of a parallel loop are disjoint.
                    change(range.clone(), unsafe { shared.range(range) });
                });
            }
        }
    }

    /// Bytes in parameters and packed factors.
    pub fn bytes(&self) -> usize {
        let packed: usize = self.packed.iter().flatten().map(PackedWeight::bytes).sum();
        packed + self.values.iter().map(|value| size_of_val(&value[..])).sum::<usize>()
    }

    pub(super) fn packed(&self, id: ParameterId) -> &PackedWeight {
        self.packed[id].as_ref().expect("every matrix that takes part in a product was packed by `Model::new`")
    }

    pub(super) fn optional(&self, id: Option<ParameterId>) -> Option<&[f32]> {
        id.map(|id| &self.values[id][..])
    }

    pub(super) fn norm(&self, module: &NormModule) -> Norm<'_> {
        Norm {
            kind: match module.config.kind {
                config::NormKind::Rms => NormKind::Rms,
                config::NormKind::LayerNorm => NormKind::LayerNorm,
            },
            weight: self.optional(module.weight),
            bias: self.optional(module.bias),
            eps: module.config.eps,
        }
    }

    pub(super) fn mlp(&self, module: &MlpModule) -> mlp::Mlp<'_> {
        let bias = |linear: Option<Linear>| linear.and_then(|linear| self.optional(linear.bias));
        mlp::Mlp {
            gate: module.gate.map(|gate| self.packed(gate.weight)),
            up: self.packed(module.up.weight),
            down: self.packed(module.down.weight),
            activation: match module.config.activation {
                config::Activation::SwiGlu | config::Activation::Silu => activation::Activation::Silu,
                config::Activation::Gelu => activation::Activation::Gelu,
                config::Activation::Relu => activation::Activation::Relu,
            },
            biases: mlp::Biases { gate: bias(module.gate), up: bias(Some(module.up)), down: bias(Some(module.down)) },
        }
    }

    pub(super) fn head(&self) -> Head<'_> {
        let scale = if self.config.scale_logits { (self.config.d_model as f32).sqrt().recip() } else { 1.0 };
        Head { weight: self.packed(self.modules.head.weight), bias: self.optional(self.modules.head.bias), scale }
    }

    /// Checks that all ids are rows of the embedding and all positions in the rotary tables.
    pub(super) fn check(&self, ids: &[u32], positions: &Buffer<u32>) -> Result<(), ModelError> {
        let rows = self.config.embedding_size;
        if let Some(at) = ids.iter().position(|id| *id as usize >= rows) {
            return Err(ModelError::TokenId { at, id: ids[at], rows });
        }
        let length = positions.iter().max().map_or(0, |p| *p as usize + 1);
        if length > self.config.max_sequence_length {
            return Err(ModelError::TooLong { length, limit: self.config.max_sequence_length });
        }
        Ok(())
    }
}
