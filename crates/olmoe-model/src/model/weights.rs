//! The parameters of a model, as numbers and as packed factors of products.

use std::convert::Infallible;
use std::ops::Range;

use olmoe_tensor::dtype::Element;
use olmoe_tensor::encoding::Encoding;
use olmoe_tensor::gemm::Operand;
use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::activation;
use olmoe_tensor::ops::cross_entropy::Head;
use olmoe_tensor::ops::embedding::{Rows, Table};
use olmoe_tensor::ops::linear::{PackedWeight, Weight};
use olmoe_tensor::ops::mlp;
use olmoe_tensor::ops::norm::{Norm, NormKind};
use olmoe_tensor::ops::rope::Rope;
use olmoe_tensor::tensor::Tensor;
use olmoe_tensor::threads::{Shared, parallel};

use super::failure::Failure;
use super::forms::{Factor, Form, strips};
use crate::config::{self, ConfigError, ModelConfig};
use crate::init::{CHUNK, initialize_chunk};
use crate::modules::{Linear, MlpModule, Modules, NormModule, ParameterId};
use crate::parameters::{ParameterKind, ParameterSpec, registry};

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

/// Numbers drawn at once by [`Model::initialize`]: enough chunks for every thread, and little beside a model.
const DRAWN_AT_ONCE: usize = 64 * CHUNK;

/// A model: configuration, parameters (canonical order) and their packed forms.
///
/// One made for training holds every parameter as f32 numbers and the matrices packed as well. One made for inference
/// holds a matrix only packed; the embedding, whose rows are looked up, it holds as numbers or as the bytes of a file, and
/// packed besides where it is the head, too.
pub struct Model {
    pub(super) config: ModelConfig,
    pub(super) precision: Precision,
    specs: Vec<ParameterSpec>,
    values: Vec<Option<Tensor>>,
    factors: Vec<Option<Factor>>,
    /// The embedding as rows of a file.
    rows: Option<Rows>,
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
        Self::with_encodings(config, precision, trainable, &[])
    }

    /// A model made for inference that holds parameters as they are encoded in a file: those with an encoding in
    /// `encodings`, in canonical order, if they are matrices in blocks that take part in products (of the matrices of an MLP
    /// all or none), or the embedding in any encoding; rows have to be whole blocks. [`Model::encoding`] tells which. They are
    /// filled by [`Model::fill_encoded`].
    ///
    /// # Errors
    /// [`ModelError::Config`].
    pub fn for_inference(
        config: ModelConfig,
        precision: Precision,
        encodings: &[Option<Encoding>],
    ) -> Result<Model, ModelError> {
        Self::with_encodings(config, precision, false, encodings)
    }

    fn with_encodings(
        config: ModelConfig,
        precision: Precision,
        trainable: bool,
        encodings: &[Option<Encoding>],
    ) -> Result<Model, ModelError> {
        config.validate()?;
        let (specs, modules) = registry(&config);
        let forms = Form::all(&specs, &config, precision, trainable, encodings);
        let factors = specs.iter().zip(&forms).map(|(spec, form)| form.factor(spec, trainable)).collect();
        let values = specs.iter().zip(&forms).map(|(spec, form)| form.numbers.then(|| Tensor::zeros(&spec.shape)));
        let values = values.collect();
        let rows = specs.iter().zip(&forms).find_map(|(spec, form)| form.rows(spec));
        let rope = Rope::new(config.head_dim, config.rope.theta, config.max_sequence_length);
        Ok(Model { config, precision, specs, values, factors, rows, modules, rope })
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

    /// The f32 numbers of one parameter; `None` for what a model made for inference holds only packed or encoded.
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
        let failure = Failure::new();
        self.change(id, 0..strips(&self.specs[id]).count(), |range, out| {
            failure.note(range.start, || read(range, out));
        });
        failure.result()
    }

    /// How a parameter is encoded that [`Model::fill_encoded`] fills.
    pub fn encoding(&self, id: ParameterId) -> Option<Encoding> {
        match (self.rows_of(id), &self.factors[id]) {
            (Some(rows), _) => Some(rows.encoding()),
            (None, Some(Factor::Quantized(weight))) => Some(Encoding::Blocks(weight.format())),
            _ => None,
        }
    }

    /// Whether a parameter has a form that [`Model::fill`] fills; a tied embedding may have one of either kind.
    pub fn takes_numbers(&self, id: ParameterId) -> bool {
        self.values[id].is_some() || matches!(self.factors[id], Some(Factor::Packed(_)))
    }

    /// The embedding's rows, if it is this parameter.
    fn rows_of(&self, id: ParameterId) -> Option<&Rows> {
        self.rows.as_ref().filter(|_| id == self.modules.embedding)
    }

    /// Fills what is held encoded of a parameter, on all threads. `read` gets a range of its numbers, whole rows, and where
    /// to write their bytes in [`Model::encoding`]; the ranges cover all of them, those of a tied embedding twice.
    ///
    /// # Errors
    /// As [`Model::fill`].
    ///
    /// # Panics
    /// When nothing of the parameter is held encoded.
    pub fn fill_encoded<E: Send>(
        &mut self,
        id: ParameterId,
        read: impl Fn(Range<usize>, &mut [u8]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        assert!(self.encoding(id).is_some(), "`Model::encoding` tells which parameters are held encoded");
        let failure = Failure::new();
        let read = |range: Range<usize>, out: &mut [u8]| failure.note(range.start, || read(range, out));
        if let Some(rows) = self.rows.as_mut().filter(|_| id == self.modules.embedding) {
            rows.update(read);
        }
        if let Some(Factor::Quantized(weight)) = &mut self.factors[id] {
            weight.update(read);
        }
        failure.result()
    }

    /// All bytes that a parameter is held in, one piece a form, to be kept as they are and put back into a model made in the
    /// same way.
    pub fn held_mut(&mut self, id: ParameterId) -> impl Iterator<Item = &mut [u8]> {
        let numbers = self.values[id].as_deref_mut().map(bytemuck::cast_slice_mut);
        let rows = self.rows.as_mut().filter(|_| id == self.modules.embedding).map(Rows::data_mut);
        let factor = self.factors[id].as_mut().map(Factor::packed_mut);
        [numbers, rows, factor].into_iter().flatten()
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
            (None | Some(Factor::Quantized(_)), None) => {
                panic!("what is held encoded is filled by `Model::fill_encoded`")
            }
        }
    }

    /// Bytes in parameters, encoded or not, packed factors and tables of the rotary embedding.
    pub fn bytes(&self) -> usize {
        let packed: usize = self.factors.iter().flatten().map(Factor::bytes).sum();
        let rope = Rope::table_bytes(self.config.head_dim, self.config.max_sequence_length) as usize;
        let rows = self.rows.as_ref().map_or(0, |rows| rows.data().len());
        rope + rows + packed + self.values.iter().flatten().map(|value| size_of_val(&value[..])).sum::<usize>()
    }

    /// Bytes of the weights that a pass reads in which tokens reach so many different experts of each layer.
    pub fn bytes_read(&self, experts: impl Fn(usize) -> usize) -> u64 {
        let read = |(spec, factor): (&ParameterSpec, &Option<Factor>)| {
            let bytes = factor.as_ref().map_or(0, |factor| factor.bytes() as u64);
            match (spec.kind, spec.module.layer, self.config.moe()) {
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

    pub(super) fn embedding(&self) -> Table<'_> {
        match &self.rows {
            Some(rows) => Table::Rows(rows),
            None => {
                let value = self.values[self.modules.embedding].as_ref();
                Table::Numbers(value.expect("`Form::of` keeps the numbers of an embedding that has no rows"))
            }
        }
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
