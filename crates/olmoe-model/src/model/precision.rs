//! The precision of the matrix products.

use olmoe_tensor::gemm::Operand;

use super::error::ModelError;

/// The precision of the matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout.
    Fp32,
    /// bf16 operands and f32 sums; norms, softmax, router, losses, parameters and gradients are in f32.
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

    /// The precision with that name.
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
