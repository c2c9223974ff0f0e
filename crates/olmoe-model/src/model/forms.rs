//! The forms in which a model holds its parameters.

use olmoe_tensor::encoding::Encoding;
use olmoe_tensor::gemm::Operand;
use olmoe_tensor::ops::embedding::EncodedRows;
use olmoe_tensor::ops::linear::{PackedWeight, Strips, Weight};
use olmoe_tensor::ops::rope::RopeTables;
use olmoe_tensor::quant::BlockFormat;
use olmoe_tensor::quant::product::{QuantizedWeight, packed_bytes};

use super::held::Held;
use super::precision::Precision;
use crate::adapter::{Adapter, AdapterError, AdapterIds, add_adapters};
use crate::config::ModelConfig;
use crate::parameters::{ModuleId, ModulePart, ParameterKind, ParameterSpec, parameters};

/// The forms of a parameter; each parameter has at least one.
#[derive(Clone, Copy)]
pub(super) struct ParameterForms {
    /// f32 numbers.
    pub(super) numbers: bool,
    /// Rows in the encoding of a file, to be looked up.
    rows: Option<Encoding>,
    /// A packed factor of products.
    factor: Option<FactorForm>,
    /// Whether the factor is also packed for the backward product, through which gradients pass.
    way_back: bool,
}

#[derive(Clone, Copy)]
enum FactorForm {
    Packed(Operand),
    /// Quantised blocks, and the precision to which the backward product dequantises them.
    Quantized(BlockFormat, Operand),
}

/// A parameter as a packed factor of products.
pub(super) enum ParameterFactor {
    Packed(PackedWeight),
    Quantized(QuantizedWeight, Operand),
}

impl ParameterForms {
    fn of(
        spec: &ParameterSpec,
        config: &ModelConfig,
        precision: Precision,
        held: Held,
        encoding: Option<Encoding>,
    ) -> ParameterForms {
        let matrix = || match encoding {
            Some(Encoding::Blocks(format)) => FactorForm::Quantized(format, precision.operand()),
            _ => FactorForm::Packed(precision.operand()),
        };
        let (looked_up, factor) = match spec.kind {
            // The router is computed in f32 at every precision.
            ParameterKind::Router => (false, Some(FactorForm::Packed(Operand::F32))),
            ParameterKind::Linear | ParameterKind::Expert => (false, Some(matrix())),
            ParameterKind::Embedding => (true, config.tie_embeddings.then(matrix)),
            ParameterKind::Norm | ParameterKind::Bias | ParameterKind::LoraMagnitude => (false, None),
            // The rows of the embedding's A are looked up. An adapter of the router is computed in f32 as the router is.
            ParameterKind::LoraA if spec.module.part == ModulePart::Embedding => (true, None),
            ParameterKind::LoraA | ParameterKind::LoraB => match spec.module.part {
                ModulePart::Router => (false, Some(FactorForm::Packed(Operand::F32))),
                _ => (false, Some(FactorForm::Packed(precision.operand()))),
            },
        };
        let rows = encoding.filter(|_| looked_up);
        let numbers = held == Held::Trained || rows.is_none() && (looked_up || factor.is_none());
        ParameterForms { numbers, rows, factor, way_back: held != Held::Inference }
    }

    /// The forms of the parameters of a DoRA adapter and of the matrix that it adapts: the norms of the rows need the
    /// numbers of A and B, and the rows of the matrix, which its packing for the backward product gives back.
    fn with_norms(mut self, base: bool) -> ParameterForms {
        if base {
            self.way_back = true;
        } else {
            self.numbers = true;
        }
        self
    }

    /// The forms of all parameters, in canonical order. `encodings` are the encodings of the parameters in a file,
    /// which are used where a parameter is not trained. Past the end of `encodings` they count as `None`, and past the
    /// end of `held` parameters are for inference.
    pub(super) fn all(
        specs: &[ParameterSpec],
        config: &ModelConfig,
        precision: Precision,
        held: &[Held],
        encodings: &[Option<Encoding>],
        adapters: &[AdapterIds],
    ) -> Vec<ParameterForms> {
        let held = |index: usize| held.get(index).copied().unwrap_or(Held::Inference);
        let given = |index: usize| encodings.get(index).copied().flatten().filter(|_| held(index) != Held::Trained);
        let quantized = |encoding: Option<Encoding>| matches!(encoding, Some(Encoding::Blocks(_)));
        let encoding = |index: usize| {
            let own = given(index)?;
            let columns = specs[index].shape.last().copied().unwrap_or(0);
            // Either all matrices of an MLP are quantised or none, because its products run over all of them at once.
            let mlp = |spec: &ParameterSpec| match spec.module {
                ModuleId { layer, part: ModulePart::Mlp(of, _) }
                    if matches!(spec.kind, ParameterKind::Linear | ParameterKind::Expert) =>
                {
                    Some((layer, of))
                }
                _ => None,
            };
            let whole = mlp(&specs[index]).is_none_or(|module| {
                let mut siblings = (0..specs.len()).filter(|index| mlp(&specs[*index]) == Some(module));
                siblings.all(|index| quantized(given(index)))
            });
            (whole && columns > 0 && columns.is_multiple_of(own.block_len())).then_some(own)
        };
        let form = |(index, spec)| ParameterForms::of(spec, config, precision, held(index), encoding(index));
        let mut forms: Vec<ParameterForms> = specs.iter().enumerate().map(form).collect();
        for ids in adapters.iter().filter(|ids| ids.magnitude.is_some()) {
            for id in [ids.base, ids.a, ids.b] {
                forms[id] = forms[id].with_norms(id == ids.base);
            }
        }
        forms
    }

    /// The form of rows, with arbitrary contents.
    pub(super) fn rows(self, spec: &ParameterSpec) -> Option<EncodedRows> {
        let Strips { groups, out, input } = strips(spec);
        self.rows.map(|encoding| EncodedRows::new(encoding, [groups * out, input]))
    }

    /// The form of a factor, with arbitrary contents.
    pub(super) fn factor(self, spec: &ParameterSpec) -> Option<ParameterFactor> {
        let Strips { groups, out, input } = strips(spec);
        Some(match self.factor? {
            FactorForm::Packed(operand) => {
                ParameterFactor::Packed(PackedWeight::new(groups, out, input, operand, self.way_back))
            }
            FactorForm::Quantized(format, operand) => {
                ParameterFactor::Quantized(QuantizedWeight::new(format, groups, out, input), operand)
            }
        })
    }

    /// Bytes of all forms of a parameter.
    fn bytes(self, spec: &ParameterSpec) -> u64 {
        let numbers = if self.numbers { spec.num_elements() as u64 * size_of::<f32>() as u64 } else { 0 };
        let rows = self
            .rows
            .map_or(0, |encoding| (spec.num_elements() / encoding.block_len()) as u64 * encoding.block_bytes() as u64);
        numbers.saturating_add(rows).saturating_add(match self.factor {
            None => 0,
            Some(FactorForm::Packed(operand)) => strips(spec).packed_bytes(operand, self.way_back),
            Some(FactorForm::Quantized(format, _)) => packed_bytes(format, strips(spec)),
        })
    }
}

impl ParameterFactor {
    pub(super) fn bytes(&self) -> usize {
        match self {
            ParameterFactor::Packed(weight) => weight.bytes(),
            ParameterFactor::Quantized(weight, _) => weight.bytes(),
        }
    }

    pub(super) fn packed_mut(&mut self) -> &mut [u8] {
        match self {
            ParameterFactor::Packed(weight) => weight.packed_mut(),
            ParameterFactor::Quantized(weight, _) => weight.packed_mut(),
        }
    }

    pub(super) fn weight(&self) -> Weight<'_> {
        match self {
            ParameterFactor::Packed(weight) => Weight::Packed(weight),
            ParameterFactor::Quantized(weight, operand) => Weight::Quantized(weight, *operand),
        }
    }
}

/// The strips in which a parameter is filled; a vector is one.
pub(super) fn strips(spec: &ParameterSpec) -> Strips {
    match spec.shape[..] {
        [groups, out, input] => Strips { groups, out, input },
        [out, input] => Strips { groups: 1, out, input },
        _ => Strips { groups: 1, out: 1, input: spec.num_elements() },
    }
}

impl ModelConfig {
    /// Bytes of the parameters of a model for inference: the result of `Model::bytes` without making the model, to be
    /// compared with the available memory before anything is loaded. `encodings` are as for
    /// [`Model::for_inference`](super::Model::for_inference); empty for none. Caches and activations are not included.
    pub fn inference_bytes(&self, precision: Precision, encodings: &[Option<Encoding>]) -> u64 {
        self.parameter_bytes(precision, &[], encodings)
    }

    /// The same for a model made by [`Model::with`](super::Model::with). Gradients, the state of the optimizer and
    /// activations are not included.
    pub fn parameter_bytes(&self, precision: Precision, held: &[Held], encodings: &[Option<Encoding>]) -> u64 {
        self.bytes_of(parameters(self), precision, held, encodings, &[])
    }

    /// The same for a model made by [`Model::with_adapters`](super::Model::with_adapters).
    ///
    /// # Errors
    /// As [`parameters_with`](crate::adapter::parameters_with).
    pub fn bytes_with_adapters(
        &self,
        precision: Precision,
        held: &[Held],
        encodings: &[Option<Encoding>],
        adapters: &[Adapter],
    ) -> Result<u64, AdapterError> {
        let mut specs = parameters(self);
        let ids = add_adapters(self, adapters, &mut specs)?;
        Ok(self.bytes_of(specs, precision, held, encodings, &ids))
    }

    fn bytes_of(
        &self,
        specs: Vec<ParameterSpec>,
        precision: Precision,
        held: &[Held],
        encodings: &[Option<Encoding>],
        adapters: &[AdapterIds],
    ) -> u64 {
        let forms = ParameterForms::all(&specs, self, precision, held, encodings, adapters);
        let bytes = specs.iter().zip(forms).map(|(spec, form)| form.bytes(spec));
        bytes.fold(RopeTables::table_bytes(self.head_dim, self.max_sequence_length), u64::saturating_add)
    }
}
