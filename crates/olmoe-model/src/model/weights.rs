//! The parameters of a model, as numbers and as packed factors of products.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use olmoe_tensor::dtype::Element;
use olmoe_tensor::gemm::Operand;
use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::activation;
use olmoe_tensor::ops::cross_entropy::Head;
use olmoe_tensor::ops::linear::{PackedWeight, Weight};
use olmoe_tensor::ops::mlp;
use olmoe_tensor::ops::norm::{Norm, NormKind};
use olmoe_tensor::ops::rope::Rope;
use olmoe_tensor::quant::BlockFormat;
use olmoe_tensor::tensor::Tensor;
use olmoe_tensor::threads::{Shared, parallel};

use super::forms::{Factor, Form, strips};
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

/// Strips read at once by [`Model::fill_blocks`]: a few megabytes.
const STRIPS_AT_ONCE: usize = 64;

/// Numbers drawn at once by [`Model::initialize`]: enough chunks for every thread, and little beside a model.
const DRAWN_AT_ONCE: usize = 64 * CHUNK;

/// A model: configuration, parameters (canonical order) and their packed forms.
///
/// One made for training holds every parameter as f32 numbers and the matrices packed as well. One made for inference
/// holds a matrix only packed, unless its rows are looked up, as those of the embedding are.
pub struct Model {
    pub(super) config: ModelConfig,
    pub(super) precision: Precision,
    specs: Vec<ParameterSpec>,
    values: Vec<Option<Tensor>>,
    factors: Vec<Option<Factor>>,
    pub(super) modules: Modules,
    pub(super) rope: Rope,
}

impl Model {
    /// A model whose parameters are still arbitrary, to be filled by [`Model::set`], [`Model::fill`] or
    /// [`Model::initialize`]. A `trainable` one can run backward passes and be updated.
    ///
    /// # Errors
    /// [`ModelError::Config`].
    pub fn new(config: ModelConfig, precision: Precision, trainable: bool) -> Result<Model, ModelError> {
        Self::with_blocks(config, precision, trainable, &[])
    }

    /// A model made for inference that holds matrices as quantised blocks: those with a format in `blocks`, in canonical
    /// order, that take part in products and whose rows are whole blocks (of the matrices of an MLP all or none);
    /// [`Model::block_format`] tells which. They are filled by [`Model::fill_blocks`].
    ///
    /// # Errors
    /// [`ModelError::Config`].
    pub fn quantized(
        config: ModelConfig,
        precision: Precision,
        blocks: &[Option<BlockFormat>],
    ) -> Result<Model, ModelError> {
        Self::with_blocks(config, precision, false, blocks)
    }

    fn with_blocks(
        config: ModelConfig,
        precision: Precision,
        trainable: bool,
        blocks: &[Option<BlockFormat>],
    ) -> Result<Model, ModelError> {
        config.validate()?;
        let specs = parameters(&config);
        let modules = Modules::new(&config, &specs);
        let forms = Form::all(&specs, &config, precision, trainable, blocks);
        let factors = specs.iter().zip(&forms).map(|(spec, form)| form.factor(spec, trainable)).collect();
        let values = specs.iter().zip(&forms).map(|(spec, form)| form.numbers.then(|| Tensor::zeros(&spec.shape)));
        let values = values.collect();
        let rope = Rope::new(config.head_dim, config.rope.theta, config.max_sequence_length);
        Ok(Model { config, precision, specs, values, factors, modules, rope })
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

    /// The f32 numbers of one parameter; `None` for a matrix of a model made for inference, which is held only packed.
    pub fn value(&self, id: ParameterId) -> Option<&Tensor> {
        self.values[id].as_ref()
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
        if shape != self.specs[id].shape || data.len() != self.specs[id].num_elements() {
            let expected = self.specs[id].shape.clone();
            return Err(ModelError::Shape { name: name.to_owned(), found: shape.to_vec(), expected });
        }
        let Ok(()) = self.fill(id, |range, out| {
            T::widen(&data[range], out);
            Ok::<(), Infallible>(())
        });
        Ok(())
    }

    /// Fills a parameter on all threads, a strip of at most 32 whole rows at a time (a vector comes whole). `read` gets
    /// a range of the parameter's numbers, in canonical order, and where to write them; the ranges cover all of them.
    ///
    /// # Errors
    /// That of `read` for the first strip, in canonical order, for which it failed. It is then called for no strip that
    /// has not begun, and the parameter is arbitrary.
    pub fn fill<E: Send>(
        &mut self,
        id: ParameterId,
        read: impl Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        // The pool hands out strips in order, so all strips before a failed one have begun, and those end.
        let first_failed = AtomicUsize::new(usize::MAX);
        let failure: Mutex<Option<E>> = Mutex::new(None);
        self.change(id, 0..strips(&self.specs[id]).count(), |range, out| {
            let start = range.start;
            if start > first_failed.load(Ordering::Relaxed) {
                return;
            }
            if let Err(error) = read(range, out) {
                let mut failure = failure.lock().unwrap_or_else(|e| e.into_inner());
                if first_failed.fetch_min(start, Ordering::Relaxed) > start {
                    *failure = Some(error);
                }
            }
        });
        failure.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }

    /// The format of a parameter's blocks, if it is held quantised.
    pub fn block_format(&self, id: ParameterId) -> Option<BlockFormat> {
        match &self.factors[id] {
            Some(Factor::Quantized(weight)) => Some(weight.format()),
            _ => None,
        }
    }

    /// Fills a parameter that is held quantised. `read` gives the bytes of a range of its numbers, whole rows, as blocks
    /// of [`Model::block_format`]; the ranges come in order and cover all of them. One that is also looked up by rows, a
    /// tied embedding, is filled by [`Model::fill`] besides.
    ///
    /// # Errors
    /// The first of `read`; the parameter is then arbitrary.
    ///
    /// # Panics
    /// When the parameter is not held quantised.
    pub fn fill_blocks<E>(
        &mut self,
        id: ParameterId,
        mut read: impl FnMut(Range<usize>) -> Result<Buffer<u8>, E>,
    ) -> Result<(), E> {
        let Some(Factor::Quantized(weight)) = &mut self.factors[id] else {
            panic!("`Model::block_format` tells which parameters are held quantised")
        };
        let strips = weight.strips();
        for first in (0..strips.count()).step_by(STRIPS_AT_ONCE) {
            let some = first..(first + STRIPS_AT_ONCE).min(strips.count());
            let numbers = strips.numbers(some.start).start..strips.numbers(some.end - 1).end;
            weight.pack(some, &read(numbers)?);
        }
        Ok(())
    }

    /// Draws every parameter afresh, as the configuration's `init` says.
    pub fn initialize(&mut self, seed: u64) {
        for id in 0..self.specs.len() {
            let strips = strips(&self.specs[id]);
            let at_once = (DRAWN_AT_ONCE / strips.numbers(0).len().max(1)).max(1);
            for first in (0..strips.count()).step_by(at_once) {
                let last = (first + at_once).min(strips.count());
                self.draw(id, first..last, seed);
            }
        }
    }

    /// Draws some strips of a parameter, with the chunks that they begin and end in.
    fn draw(&mut self, id: ParameterId, some: Range<usize>, seed: u64) {
        let (spec, shape) = (&self.specs[id], strips(&self.specs[id]));
        let first = shape.numbers(some.start).start / CHUNK;
        let start = first * CHUNK;
        let len = shape.numbers(some.end - 1).end.next_multiple_of(CHUNK).min(spec.num_elements()) - start;
        let mut drawn = Buffer::scratch(len);
        let shared = Shared::new(&mut drawn);
        parallel(len.div_ceil(CHUNK), |chunk| {
            // SAFETY: each chunk is another range.
            let out = unsafe { shared.range(chunk * CHUNK..((chunk + 1) * CHUNK).min(len)) };
            initialize_chunk(spec, seed, first + chunk, out);
        });
        self.change(id, some, |range, out| out.copy_from_slice(&drawn[range.start - start..range.end - start]));
    }

    /// Changes the numbers of a parameter on all threads and packs them anew. `change` gets a range of the parameter's
    /// numbers, in canonical order, and the numbers there; the ranges cover all of them.
    ///
    /// # Panics
    /// When the parameter is held only packed, as in a model made for inference: [`Model::fill`] writes those.
    pub fn update(&mut self, id: ParameterId, change: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        assert!(self.values[id].is_some(), "an update changes the numbers of a model made for training");
        self.change(id, 0..strips(&self.specs[id]).count(), change);
    }

    /// Changes some strips of a parameter and packs them anew. The numbers of a parameter held only packed arrive
    /// arbitrary.
    fn change(&mut self, id: ParameterId, some: Range<usize>, change: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        let strips = strips(&self.specs[id]);
        let value = self.values[id].as_deref_mut();
        match (&mut self.factors[id], value) {
            (Some(Factor::Packed(packed)), value) => packed.update(value, some, change),
            (None | Some(Factor::Quantized(_)), Some(value)) => {
                let shared = Shared::new(value);
                parallel(some.len(), |task| {
                    let range = strips.numbers(some.start + task);
                    // SAFETY: each strip is another range.
                    change(range.clone(), unsafe { shared.range(range) });
                });
            }
            (Some(Factor::Quantized(_)), None) => panic!("blocks are filled by `Model::fill_blocks`"),
            (None, None) => unreachable!("every parameter has a form"),
        }
    }

    /// Bytes in parameters, packed factors and tables of the rotary embedding.
    pub fn bytes(&self) -> usize {
        let packed: usize = self.factors.iter().flatten().map(Factor::bytes).sum();
        let rope = Rope::table_bytes(self.config.head_dim, self.config.max_sequence_length) as usize;
        rope + packed + self.values.iter().flatten().map(|value| size_of_val(&value[..])).sum::<usize>()
    }

    /// Bytes of the weights that a pass reads in which tokens reach so many different experts of each layer.
    pub fn bytes_read(&self, experts: impl Fn(usize) -> usize) -> u64 {
        let read = |(spec, factor): (&ParameterSpec, &Option<Factor>)| {
            let bytes = factor.as_ref().map_or(0, |factor| factor.bytes() as u64);
            match (spec.kind, spec.layer, self.config.moe()) {
                (ParameterKind::Expert, Some(layer), Some(moe)) => {
                    bytes / moe.num_experts as u64 * experts(layer) as u64
                }
                _ => bytes,
            }
        };
        self.specs.iter().zip(&self.factors).map(read).sum()
    }

    pub(super) fn weight(&self, id: ParameterId) -> Weight<'_> {
        let factor = self.factors[id].as_ref();
        factor.expect("every matrix that takes part in a product was given a form").weight()
    }

    /// The weights of a model made for training.
    pub(super) fn packed(&self, id: ParameterId) -> &PackedWeight {
        self.weight(id).packed()
    }

    pub(super) fn optional(&self, id: Option<ParameterId>) -> Option<&[f32]> {
        id.map(|id| self.numbers(id))
    }

    /// A parameter that takes part as numbers: a vector, or the embedding.
    fn numbers(&self, id: ParameterId) -> &[f32] {
        self.values[id].as_ref().expect("`Form::of` keeps the numbers of what is not only a factor of products")
    }

    pub(super) fn embedding(&self) -> &Tensor {
        self.values[self.modules.embedding].as_ref().expect("`Form::of` keeps the numbers of the embedding")
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
            gate: module.gate.map(|gate| self.weight(gate.weight)),
            up: self.weight(module.up.weight),
            down: self.weight(module.down.weight),
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
        Head { weight: self.weight(self.modules.head.weight), bias: self.optional(self.modules.head.bias), scale }
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
