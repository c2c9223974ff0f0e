//! The store of the parameters of a model, in the forms that its passes read: numbers, encoded rows, packed factors.

use std::ops::Range;

use olmoe_tensor::encoding::Encoding;
use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::activation;
use olmoe_tensor::ops::cross_entropy::Head;
use olmoe_tensor::ops::embedding::{EmbeddingTable, EncodedRows};
use olmoe_tensor::ops::linear::{PackedWeight, Weight};
use olmoe_tensor::ops::mlp;
use olmoe_tensor::ops::norm::{NormFormula, NormParameters};
use olmoe_tensor::ops::rope::RopeTables;
use olmoe_tensor::tensor::Tensor;
use olmoe_tensor::threads::{Shared, parallel};

use super::adapters::AdapterSet;
use super::failure::FirstFailure;
use super::forms::{ParameterFactor, ParameterForms, strips};
use super::held::{Held, Stage};
use super::precision::Precision;
use crate::batch::TokenNoise;
use crate::config::{self, ModelConfig};
use crate::init::{CHUNK, initialize_chunk};
use crate::intervention::Intervention;
use crate::modules::{Linear, MlpModule, NormModule, ParameterId};
use crate::parameters::{ParameterKind, ParameterSpec};

/// Numbers that [`Weights::initialize`] draws at once: enough chunks for every thread, and little memory compared with
/// a model.
const DRAWN_AT_ONCE: usize = 64 * CHUNK;

/// The parameters of a model in canonical order, each in the forms that the passes need. A pass also reads the
/// configuration and the tables of the rotary embedding.
pub(super) struct Weights {
    pub(super) config: ModelConfig,
    pub(super) precision: Precision,
    pub(super) specs: Vec<ParameterSpec>,
    pub(super) held: Vec<Held>,
    /// The lowest stage that has a trained parameter.
    lowest: Option<Stage>,
    values: Vec<Option<Tensor>>,
    factors: Vec<Option<ParameterFactor>>,
    /// The parameter that is the embedding.
    embedding: ParameterId,
    /// The embedding in the encoding of a file.
    rows: Option<EncodedRows>,
    pub(super) rope: RopeTables,
    pub(super) adapters: AdapterSet,
    /// The experts that are switched off.
    pub(super) interventions: Vec<Intervention>,
}

impl Weights {
    /// Parameters with arbitrary values.
    pub(super) fn new(
        config: ModelConfig,
        precision: Precision,
        specs: Vec<ParameterSpec>,
        embedding: ParameterId,
        held: Vec<Held>,
        encodings: &[Option<Encoding>],
        adapters: AdapterSet,
    ) -> Weights {
        let forms = ParameterForms::all(&specs, &config, precision, &held, encodings, adapters.ids());
        let factors = specs.iter().zip(&forms).map(|(spec, form)| form.factor(spec)).collect();
        let values = specs.iter().zip(&forms).map(|(spec, form)| form.numbers.then(|| Tensor::zeros(&spec.shape)));
        let values = values.collect();
        let rows = specs.iter().zip(&forms).find_map(|(spec, form)| form.rows(spec));
        let rope = RopeTables::new(config.head_dim, config.rope.theta, config.max_sequence_length);
        let trained = specs.iter().zip(&held).filter(|(_, held)| **held == Held::Trained);
        let lowest = trained.map(|(spec, _)| Stage::of(spec, &config)).min();
        let interventions = Vec::new();
        Weights {
            config,
            precision,
            specs,
            held,
            lowest,
            values,
            factors,
            embedding,
            rows,
            rope,
            adapters,
            interventions,
        }
    }

    /// The f32 numbers of one parameter, if it has that form.
    pub(super) fn value(&self, id: ParameterId) -> Option<&Tensor> {
        self.values[id].as_ref()
    }

    /// As `Model::fill`.
    pub(super) fn fill<E: Send>(
        &mut self,
        id: ParameterId,
        read: impl Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let failure = FirstFailure::new();
        self.change(id, 0..strips(&self.specs[id]).count(), |range, out| {
            failure.note(range.start, || read(range, out));
        });
        failure.result()
    }

    /// As `Model::encoding`.
    pub(super) fn encoding(&self, id: ParameterId) -> Option<Encoding> {
        match (self.rows_of(id), &self.factors[id]) {
            (Some(rows), _) => Some(rows.encoding()),
            (None, Some(ParameterFactor::Quantized(weight, _))) => Some(Encoding::Blocks(weight.format())),
            _ => None,
        }
    }

    /// As `Model::takes_numbers`.
    pub(super) fn takes_numbers(&self, id: ParameterId) -> bool {
        self.values[id].is_some() || matches!(self.factors[id], Some(ParameterFactor::Packed(_)))
    }

    /// The encoded rows of the embedding, if it is this parameter.
    fn rows_of(&self, id: ParameterId) -> Option<&EncodedRows> {
        self.rows.as_ref().filter(|_| id == self.embedding)
    }

    /// As `Model::fill_encoded`.
    pub(super) fn fill_encoded<E: Send>(
        &mut self,
        id: ParameterId,
        read: impl Fn(Range<usize>, &mut [u8]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        assert!(self.encoding(id).is_some(), "`Model::encoding` returns which parameters are held encoded");
        self.adapters.changed(id);
        let failure = FirstFailure::new();
        let read = |range: Range<usize>, out: &mut [u8]| failure.note(range.start, || read(range, out));
        if let Some(rows) = self.rows.as_mut().filter(|_| id == self.embedding) {
            rows.update(read);
        }
        if let Some(ParameterFactor::Quantized(weight, _)) = &mut self.factors[id] {
            weight.update(read);
        }
        failure.result()
    }

    /// As `Model::held_mut`.
    pub(super) fn held_mut(&mut self, id: ParameterId) -> impl Iterator<Item = &mut [u8]> {
        self.adapters.changed(id);
        let numbers = self.values[id].as_deref_mut().map(bytemuck::cast_slice_mut);
        let rows = self.rows.as_mut().filter(|_| id == self.embedding).map(EncodedRows::data_mut);
        let factor = self.factors[id].as_mut().map(ParameterFactor::packed_mut);
        [numbers, rows, factor].into_iter().flatten()
    }

    /// As `Model::initialize`.
    pub(super) fn initialize(&mut self, ids: Range<ParameterId>, seed: u64) {
        for id in ids {
            let strips = strips(&self.specs[id]);
            let at_once = (DRAWN_AT_ONCE / strips.numbers(0).len().max(1)).max(1);
            for first in (0..strips.count()).step_by(at_once) {
                let last = (first + at_once).min(strips.count());
                self.draw(id, first..last, seed);
            }
        }
    }

    /// Draws some strips of a parameter, from the chunks that contain them.
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

    /// As `Model::update`.
    pub(super) fn update(&mut self, id: ParameterId, change: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        assert!(self.values[id].is_some(), "an update changes the numbers of a parameter that was made for training");
        self.change(id, 0..strips(&self.specs[id]).count(), change);
    }

    /// Changes some strips of a parameter and packs them again. Where a parameter is held only packed, `change` gets
    /// arbitrary numbers.
    fn change(&mut self, id: ParameterId, some: Range<usize>, change: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        self.adapters.changed(id);
        let strips = strips(&self.specs[id]);
        let value = self.values[id].as_deref_mut();
        match (&mut self.factors[id], value) {
            (Some(ParameterFactor::Packed(packed)), value) => packed.update(value, some, change),
            (None | Some(ParameterFactor::Quantized(..)), Some(value)) => {
                let shared = Shared::new(value);
                parallel(some.len(), |task| {
                    let range = strips.numbers(some.start + task);
                    // SAFETY: each strip is another range.
                    change(range.clone(), unsafe { shared.range(range) });
                });
            }
            (None | Some(ParameterFactor::Quantized(..)), None) => {
                panic!("`Model::fill_encoded` fills a parameter that is held encoded")
            }
        }
    }

    /// As `Model::bytes`.
    pub(super) fn bytes(&self) -> usize {
        let packed: usize = self.factors.iter().flatten().map(ParameterFactor::bytes).sum();
        let rope = RopeTables::table_bytes(self.config.head_dim, self.config.max_sequence_length) as usize;
        let rows = self.rows.as_ref().map_or(0, |rows| rows.data().len());
        rope + rows + packed + self.values.iter().flatten().map(|value| size_of_val(&value[..])).sum::<usize>()
    }

    /// As `Model::bytes_read`.
    pub(super) fn bytes_read(&self, experts: impl Fn(usize) -> usize) -> u64 {
        let read = |(spec, factor): (&ParameterSpec, &Option<ParameterFactor>)| {
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

    /// Whether a gradient has to reach a stage.
    pub(super) fn reaches(&self, stage: Stage) -> bool {
        self.lowest.is_some_and(|lowest| lowest <= stage)
    }

    /// Whether a gradient has to pass a stage to those below it.
    pub(super) fn passes(&self, stage: Stage) -> bool {
        self.lowest.is_some_and(|lowest| lowest < stage)
    }

    pub(super) fn weight(&self, id: ParameterId) -> Weight<'_> {
        let factor = self.factors[id].as_ref();
        factor.expect("every matrix that takes part in a product has a packed form").weight()
    }

    /// A matrix of an adapter.
    pub(super) fn packed(&self, id: ParameterId) -> &PackedWeight {
        self.weight(id).packed()
    }

    pub(super) fn optional(&self, id: Option<ParameterId>) -> Option<&[f32]> {
        id.map(|id| self.numbers(id))
    }

    /// The numbers of a vector or of the embedding.
    pub(super) fn numbers(&self, id: ParameterId) -> &[f32] {
        self.values[id]
            .as_ref()
            .expect("`ParameterForms::of` keeps the numbers of every parameter that is not only a factor of products")
    }

    pub(super) fn embedding(&self) -> EmbeddingTable<'_> {
        match &self.rows {
            Some(rows) => EmbeddingTable::Encoded(rows),
            None => {
                let value = self.values[self.embedding].as_ref();
                EmbeddingTable::Numbers(
                    value.expect("`ParameterForms::of` keeps the numbers of an embedding without encoded rows"),
                )
            }
        }
    }

    pub(super) fn norm(&self, module: &NormModule) -> NormParameters<'_> {
        NormParameters {
            kind: match module.config.kind {
                config::NormKind::Rms => NormFormula::Rms,
                config::NormKind::LayerNorm => NormFormula::LayerNorm,
            },
            weight: self.optional(module.weight),
            bias: self.optional(module.bias),
            eps: module.config.eps,
        }
    }

    pub(super) fn mlp<'a>(&'a self, module: &MlpModule, noise: Option<&'a TokenNoise>) -> mlp::MlpWeights<'a> {
        let bias = |linear: Option<Linear>| linear.and_then(|linear| self.optional(linear.bias));
        mlp::MlpWeights {
            gate: module.gate.map(|gate| self.weight(gate.weight)),
            up: self.weight(module.up.weight),
            down: self.weight(module.down.weight),
            activation: match module.config.activation {
                config::Activation::SwiGlu | config::Activation::Silu => activation::Nonlinearity::Silu,
                config::Activation::Gelu => activation::Nonlinearity::Gelu,
                config::Activation::Relu => activation::Nonlinearity::Relu,
            },
            biases: mlp::PerMatrix {
                gate: bias(module.gate),
                up: bias(Some(module.up)),
                down: bias(Some(module.down)),
            },
            adapters: mlp::PerMatrix {
                gate: module.gate.and_then(|gate| self.low_rank(gate.weight, noise)),
                up: self.low_rank(module.up.weight, noise),
                down: self.low_rank(module.down.weight, noise),
            },
        }
    }

    pub(super) fn head<'a>(&'a self, head: &Linear, noise: Option<&'a TokenNoise>) -> Head<'a> {
        let scale = if self.config.scale_logits { (self.config.d_model as f32).sqrt().recip() } else { 1.0 };
        Head {
            weight: self.weight(head.weight),
            bias: self.optional(head.bias),
            scale,
            adapter: self.low_rank(head.weight, noise).filter(|_| !self.config.tie_embeddings),
        }
    }
}
