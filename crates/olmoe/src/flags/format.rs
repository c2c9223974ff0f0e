//! What is written of a checkpoint: format, type of the numbers, layout of the experts.

use clap::{Args, ValueEnum};
use olmoe_checkpoint::convert::Target;
use olmoe_checkpoint::gguf::mix::Mix;
use olmoe_checkpoint::huggingface::Experts;
use olmoe_tensor::dtype::DType;

/// What is written.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Form {
    /// Format to write
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: To,

    /// Type of the numbers to write [default: that of each tensor]
    ///
    /// Needed for quantised weights; f32 holds them exactly.
    #[arg(long, value_enum, value_name = "TYPE")]
    dtype: Option<Number>,

    /// How Hugging Face files store experts
    #[arg(long, value_enum, value_name = "HOW", default_value = "separate")]
    experts: ExpertsArg,
}

impl Form {
    pub(crate) fn target(&self) -> Target {
        self.to.target(self.dtype, self.experts)
    }

    /// The type of the numbers, where it is asked for.
    pub(crate) fn dtype(&self) -> Option<DType> {
        self.dtype.map(Number::dtype)
    }
}

/// A format to write.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum To {
    /// A folder that transformers loads
    Hf,
    /// An unsharded checkpoint of OLMo's trainer
    Olmo,
    /// A file that llama.cpp loads
    Gguf,
}

/// A type of plain numbers.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Number {
    /// 4 bytes
    F32,
    /// 2 bytes, the range of f32
    Bf16,
    /// 2 bytes, more digits
    F16,
}

impl Number {
    pub(crate) fn dtype(self) -> DType {
        match self {
            Number::F32 => DType::F32,
            Number::Bf16 => DType::Bf16,
            Number::F16 => DType::F16,
        }
    }

    fn mix(self) -> Mix {
        match self {
            Number::F32 => Mix::F32,
            Number::Bf16 => Mix::Bf16,
            Number::F16 => Mix::F16,
        }
    }
}

/// How experts are stored.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExpertsArg {
    /// Three matrices for each expert, as in published files
    Separate,
    /// Two stacks for each layer, as in the memory of transformers 5
    Fused,
}

impl To {
    /// What to write of this format.
    pub(crate) fn target(self, dtype: Option<Number>, experts: ExpertsArg) -> Target {
        let experts = match experts {
            ExpertsArg::Separate => Experts::Separate,
            ExpertsArg::Fused => Experts::Fused,
        };
        match self {
            To::Hf => Target::HuggingFace { experts, dtype: dtype.map(Number::dtype) },
            To::Olmo => Target::Olmo { dtype: dtype.map(Number::dtype) },
            To::Gguf => Target::Gguf { mix: dtype.map(Number::mix) },
        }
    }
}
