//! `olmoe convert`

use std::path::PathBuf;

use clap::Args;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::convert::Written;
use olmoe_checkpoint::hub::MODEL_FILES;

use crate::flags::{Beside, Form, RecordArg, RunArgs, input};

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

pub(crate) fn run(args: &ConvertArgs) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&input(&args.input, MODEL_FILES, args.run.offline)?)?;
    let companions = args.beside.companions(&checkpoint)?;
    let target = args.form.target();
    let written = args.run.write(&checkpoint, &companions, target, &args.output)?;
    args.record.show(&args.output, &written, format_args!("{}: {}", args.output.display(), summary(&written)))
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
