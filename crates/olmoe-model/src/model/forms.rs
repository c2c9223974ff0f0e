//! The forms in which a model holds its parameters.

use olmoe_tensor::encoding::Encoding;
use olmoe_tensor::gemm::Operand;
use olmoe_tensor::ops::embedding::Rows;
use olmoe_tensor::ops::linear::{PackedWeight, Strips, Weight};
use olmoe_tensor::ops::rope::Rope;
use olmoe_tensor::quant::BlockFormat;
use olmoe_tensor::quant::product::{QuantizedWeight, packed_bytes};

use super::held::Held;
use super::precision::Precision;
use crate::config::ModelConfig;
use crate::parameters::{ModuleId, ParameterKind, ParameterSpec, Part, parameters};

/// The forms of a parameter: at least one.
#[derive(Clone, Copy)]
pub(super) struct Form {
    /// As f32 numbers.
    pub(super) numbers: bool,
    /// As rows of a file, to be looked up.
    rows: Option<Encoding>,
    /// As a factor of products.
    factor: Option<FactorForm>,
    /// Packed for gradients that pass through, too.
    way_back: bool,
}

#[derive(Clone, Copy)]
enum FactorForm {
    Packed(Operand),
    /// And the precision of the numbers that the way back makes of the blocks.
    Quantized(BlockFormat, Operand),
}

/// A factor of products.
pub(super) enum Factor {
    Packed(PackedWeight),
    Quantized(QuantizedWeight, Operand),
}

impl Form {
    fn of(
        spec: &ParameterSpec,
        config: &ModelConfig,
        precision: Precision,
        held: Held,
        encoding: Option<Encoding>,
    ) -> Form {
        let matrix = || match encoding {
            Some(Encoding::Blocks(format)) => FactorForm::Quantized(format, precision.operand()),
            _ => FactorForm::Packed(precision.operand()),
        };
        let (looked_up, factor) = match spec.kind {
            // The router decides in f32 at every precision.
            ParameterKind::Router => (false, Some(FactorForm::Packed(Operand::F32))),
            ParameterKind::Linear | ParameterKind::Expert => (false, Some(matrix())),
            ParameterKind::Embedding => (true, config.tie_embeddings.then(matrix)),
            ParameterKind::Norm | ParameterKind::Bias => (false, None),
        };
        let rows = encoding.filter(|_| looked_up);
        let numbers = held == Held::Trained || rows.is_none() && (looked_up || factor.is_none());
        Form { numbers, rows, factor, way_back: held != Held::Inference }
    }

    /// The forms of all parameters, in canonical order. `encodings` are those in which a model may hold them where they are
    /// not trained; those of parameters past its end are none, and past the end of `held` they are for inference.
    pub(super) fn all(
        specs: &[ParameterSpec],
        config: &ModelConfig,
        precision: Precision,
        held: &[Held],
        encodings: &[Option<Encoding>],
    ) -> Vec<Form> {
        let held = |index: usize| held.get(index).copied().unwrap_or(Held::Inference);
        let given = |index: usize| encodings.get(index).copied().flatten().filter(|_| held(index) != Held::Trained);
        let quantized = |encoding: Option<Encoding>| matches!(encoding, Some(Encoding::Blocks(_)));
        let encoding = |index: usize| {
            let own = given(index)?;
            let columns = specs[index].shape.last().copied().unwrap_or(0);
            // The matrices of an MLP are quantised all or none: its products run over all of them at once.
            let mlp = |spec: &ParameterSpec| match spec.module {
                ModuleId { layer, part: Part::Mlp(of, _) } if spec.kind != ParameterKind::Bias => Some((layer, of)),
                _ => None,
            };
            let whole = mlp(&specs[index]).is_none_or(|module| {
                let mut siblings = (0..specs.len()).filter(|index| mlp(&specs[*index]) == Some(module));
                siblings.all(|index| quantized(given(index)))
            });
            (whole && columns > 0 && columns.is_multiple_of(own.unit())).then_some(own)
        };
        let form = |(index, spec)| Form::of(spec, config, precision, held(index), encoding(index));
        specs.iter().enumerate().map(form).collect()
    }

    /// Room for the rows.
    pub(super) fn rows(self, spec: &ParameterSpec) -> Option<Rows> {
        let Strips { groups, out, input } = strips(spec);
        self.rows.map(|encoding| Rows::new(encoding, [groups * out, input]))
    }

    /// Room for the factor.
    pub(super) fn factor(self, spec: &ParameterSpec) -> Option<Factor> {
        let Strips { groups, out, input } = strips(spec);
        Some(match self.factor? {
            FactorForm::Packed(operand) => {
                Factor::Packed(PackedWeight::new(groups, out, input, operand, self.way_back))
            }
            FactorForm::Quantized(format, operand) => {
                Factor::Quantized(QuantizedWeight::new(format, groups, out, input), operand)
            }
        })
    }

    /// Bytes of all forms of a parameter.
    fn bytes(self, spec: &ParameterSpec) -> u64 {
        let numbers = if self.numbers { spec.num_elements() as u64 * size_of::<f32>() as u64 } else { 0 };
        let rows = self
            .rows
            .map_or(0, |encoding| (spec.num_elements() / encoding.unit()) as u64 * encoding.unit_bytes() as u64);
        numbers.saturating_add(rows).saturating_add(match self.factor {
            None => 0,
            Some(FactorForm::Packed(operand)) => strips(spec).packed_bytes(operand, self.way_back),
            Some(FactorForm::Quantized(format, _)) => packed_bytes(format, strips(spec)),
        })
    }
}

impl Factor {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Factor::Packed(weight) => weight.bytes(),
            Factor::Quantized(weight, _) => weight.bytes(),
        }
    }

    pub(super) fn packed_mut(&mut self) -> &mut [u8] {
        match self {
            Factor::Packed(weight) => weight.packed_mut(),
            Factor::Quantized(weight, _) => weight.packed_mut(),
        }
    }

    pub(super) fn weight(&self) -> Weight<'_> {
        match self {
            Factor::Packed(weight) => Weight::Packed(weight),
            Factor::Quantized(weight, operand) => Weight::Quantized(weight, *operand),
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
    /// Bytes that the parameters of this model take when it is made for inference: `Model::bytes` without making it, to
    /// be held against the memory there is before anything is loaded. `encodings` are as for
    /// [`Model::for_inference`](super::Model::for_inference); empty for none. Caches and activations come on top.
    pub fn inference_bytes(&self, precision: Precision, encodings: &[Option<Encoding>]) -> u64 {
        self.parameter_bytes(precision, &[], encodings)
    }

    /// The same for a model whose parameters are held as [`Model::with`](super::Model::with) is told. Gradients, the state of
    /// the optimizer and activations come on top.
    pub fn parameter_bytes(&self, precision: Precision, held: &[Held], encodings: &[Option<Encoding>]) -> u64 {
        let specs = parameters(self);
        let forms = Form::all(&specs, self, precision, held, encodings);
        let bytes = specs.iter().zip(forms).map(|(spec, form)| form.bytes(spec));
        bytes.fold(Rope::table_bytes(self.head_dim, self.max_sequence_length), u64::saturating_add)
    }
}
