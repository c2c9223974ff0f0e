//! `olmoe convert`

use std::collections::HashSet;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::convert::{Conversion, Manner, Step, Target, Written};
use olmoe_checkpoint::gguf::mix::Mix;
use olmoe_checkpoint::hub::MODEL_FILES;
use olmoe_checkpoint::huggingface::Experts;
use olmoe_checkpoint::weights::Weights;
use olmoe_tensor::dtype::DType;

use crate::arguments::{Threads, bytes, input};
use crate::output::note;
use crate::progress::Progress;
use crate::record::RecordArg;

/// Convert a checkpoint between Hugging Face, OLMo and GGUF
///
/// Reads any of the formats, a training checkpoint too, and writes one of them. Without --dtype no number changes; with it
/// each is rounded once. Tokenizer, chat template and generation settings travel along. The result is read back and every
/// tensor compared before it gets its name, so a result that is there is right. Memory: the largest matrix and a few
/// megabytes.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe convert OLMoE-1B-7B-0924 olmoe.gguf --to gguf
  olmoe convert step1200000-unsharded OLMoE-hf --to hf --dtype bf16 --tokenizer tokenizer.json
  olmoe convert allenai/OLMoE-1B-7B-0924 OLMoE-native --to olmo
  olmoe convert runs/first/latest first.gguf --to gguf --json

Files: reads IN; writes OUT, a folder with config.json, *.safetensors and the tokenizer (hf), with model.safetensors and \
config.yaml (olmo), or one file (gguf).

Exit status: 0 if the result is there and right, 1 if not, 2 for wrong usage.")]
pub(crate) struct ConvertArgs {
    /// A checkpoint: a folder, a GGUF file, or a model of the hub (REPO or REPO@REVISION)
    #[arg(value_name = "IN")]
    input: String,

    /// Folder (hf, olmo) or file (gguf) to write; must not exist yet
    #[arg(value_name = "OUT")]
    output: PathBuf,

    #[command(flatten)]
    form: Form,

    #[command(flatten)]
    beside: Beside,

    #[command(flatten)]
    record: RecordArg,

    #[command(flatten)]
    run: RunArgs,
}

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

/// What goes beside the weights.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Beside {
    /// A tokenizer.json to use instead of the checkpoint's own
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Keep an end-of-text id of 0
    ///
    /// OLMoE's training files say 0, but their tokenizer ends documents with 50279; without this flag that is corrected.
    #[arg(long)]
    keep_eos: bool,
}

impl Beside {
    /// What goes beside the weights of a checkpoint. The user is told what is remarkable about either.
    pub(crate) fn companions(&self, checkpoint: &Checkpoint) -> anyhow::Result<Companions> {
        let (companions, notices) = self.silently(checkpoint)?;
        notices.iter().for_each(note);
        Ok(companions)
    }

    /// Those of several checkpoints, in order. What is remarkable about more than one is said once.
    pub(crate) fn companions_of(&self, checkpoints: &[Checkpoint]) -> anyhow::Result<Vec<Companions>> {
        let (mut all, mut said) = (Vec::new(), HashSet::new());
        for checkpoint in checkpoints {
            let (companions, notices) = self.silently(checkpoint)?;
            for notice in notices {
                if !said.contains(&notice) {
                    note(&notice);
                    said.insert(notice);
                }
            }
            all.push(companions);
        }
        Ok(all)
    }

    fn silently(&self, checkpoint: &Checkpoint) -> anyhow::Result<(Companions, Vec<String>)> {
        let companions = Companions::of(checkpoint, self.tokenizer.as_deref(), self.keep_eos)?;
        let notices = checkpoint.contents().notices.iter().chain(&companions.notices).cloned().collect();
        Ok((companions, notices))
    }
}

/// How results are written.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// Replace OUT: a file, or the folder of a checkpoint
    #[arg(long, help_heading = "Output")]
    force: bool,

    /// Most bytes of tensors in a file, such as 5GB, 500MB or a number [default: 5GB for hf, one file for gguf]
    ///
    /// Several GGUF files get names such as OUT-00001-of-00003.gguf; any of them stands for all.
    #[arg(long, visible_alias = "split-max-size", value_name = "SIZE", value_parser = bytes, help_heading = "Output")]
    shard_size: Option<u64>,

    /// Bring numbers beyond the range of the type that is written into it; without this they are an error
    ///
    /// For --dtype f16, which ends at 65504, and bf16.
    #[arg(long, help_heading = "Output")]
    pub(crate) clamp: bool,

    /// Use files of the hub downloaded before; an error if one is missing
    #[arg(long)]
    pub(crate) offline: bool,

    #[command(flatten)]
    threads: Threads,

    /// No progress, no notes and no summary
    #[arg(long, help_heading = "Output")]
    pub(crate) quiet: bool,
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

pub(crate) fn run(args: &ConvertArgs) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&input(&args.input, MODEL_FILES, args.run.offline)?)?;
    let companions = args.beside.companions(&checkpoint)?;
    let target = args.form.target();
    let written = args.run.write(&checkpoint, &companions, target, &args.output)?;
    args.record.show(&args.output, &written, format_args!("{}: {}", args.output.display(), summary(&written)))
}

impl RunArgs {
    /// Writes the weights, with progress.
    pub(crate) fn write(
        &self,
        source: &dyn Weights,
        companions: &Companions,
        target: Target,
        output: &std::path::Path,
    ) -> anyhow::Result<Written> {
        self.threads.apply();
        let manner = Manner { shard_bytes: self.shard_size, clamp: self.clamp };
        let conversion = Conversion::plan(source, companions, target)?.manner(manner)?;
        conversion.notices.iter().for_each(note);
        let writing = Progress::new("writing", conversion.bytes(), self.quiet);
        let comparing = std::sync::OnceLock::new();
        let total = conversion.bytes();
        let written = conversion.run(output, self.force, &|step| match step {
            Step::Written(bytes) => writing.advance(bytes),
            Step::Compared(bytes) => {
                comparing.get_or_init(|| Progress::new("comparing", total, self.quiet)).advance(bytes);
            }
        });
        let written = written?;
        if written.clamped > 0 {
            note(format_args!("numbers beyond the range of their type, brought into it: {}", written.clamped));
        }
        Ok(written)
    }
}

fn summary(written: &Written) -> String {
    let changed: Vec<_> = written.kinds.values().filter(|kind| kind.squared_error > 0.0).collect();
    let all = format!("{} tensors, {} bytes, read back and compared", written.tensors, written.bytes);
    if changed.is_empty() {
        return format!("{all}; no number changed");
    }
    let (error, squares) =
        changed.iter().fold((0.0, 0.0), |sum, kind| (sum.0 + kind.squared_error, sum.1 + kind.squares));
    format!("{all}; rounding changed numbers by {:.1e} of their size (root mean square)", (error / squares).sqrt())
}
