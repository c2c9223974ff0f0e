//! What is written of a checkpoint: format, type of the numbers, layout of the experts.

use std::path::Path;

use clap::{Args, ValueEnum};
use olmoe_checkpoint::convert::Target;
use olmoe_checkpoint::gguf::mix::Mix;
use olmoe_checkpoint::huggingface::Experts;
use olmoe_tensor::dtype::DType;

use crate::usage::usage;

/// What is written.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Form {
    /// Format to write [default: gguf where OUT ends in .gguf]
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Option<To>,

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
    /// What to write under this name.
    ///
    /// # Errors
    /// A name that says nothing where no format is given, and one that is another format's.
    pub(crate) fn target(&self, output: &Path) -> anyhow::Result<Target> {
        let to = To::of(self.to, output)?;
        let to = to.ok_or_else(|| {
            usage("the name of the result does not tell its format; give --to <FORMAT>: hf, olmo or gguf")
        })?;
        Ok(to.target(self.dtype, self.experts))
    }

    /// The format, where it is asked for.
    pub(crate) fn format(&self) -> Option<To> {
        self.to
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
    /// The format that is asked for or that a name tells; none where neither says anything.
    ///
    /// # Errors
    /// A name of another format than is asked for.
    pub(crate) fn of(asked: Option<To>, output: &Path) -> anyhow::Result<Option<To>> {
        /// Endings of files that are parts of a checkpoint, or no model.
        const OTHER: [&str; 8] = ["safetensors", "json", "yaml", "yml", "pt", "pth", "bin", "npy"];
        let ending = output.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        let (name, is_gguf) = (output.display(), ending == "gguf");
        match asked {
            None if is_gguf => Ok(Some(To::Gguf)),
            Some(To::Gguf) if OTHER.contains(&ending.as_str()) => Err(usage(format_args!(
                "{name}: a GGUF file is asked for under another ending; end the name with .gguf"
            ))),
            Some(To::Hf | To::Olmo) if is_gguf => Err(usage(format_args!(
                "{name}: that is the name of a GGUF file, but a folder is asked for; leave --to out, or name a folder"
            ))),
            Some(To::Hf | To::Olmo) if OTHER.contains(&ending.as_str()) => {
                Err(usage(format_args!("{name}: that is the name of a file, but a folder is asked for; name a folder")))
            }
            asked => Ok(asked),
        }
    }

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

/// The mix of a name.
pub(crate) fn mix(name: &str) -> Result<Mix, String> {
    Mix::by_name(name).ok_or_else(|| {
        let names: Vec<&str> = Mix::all().map(Mix::name).collect();
        format!("expected one of {}", names.join(" "))
    })
}
