//! `olmoe convert`

use clap::Args;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::convert::Written;
use olmoe_checkpoint::hub::MODEL_FILES;
use olmoe_data::counted;

use crate::flags::{Beside, Form, InOut, RecordArg, RunArgs, input};

/// Convert a checkpoint between Hugging Face, OLMo and GGUF
///
/// Reads any of the formats, training checkpoints included, and writes one of them. Without --dtype
/// all numbers are kept as they are; with it each is rounded once. The tokenizer, chat template and generation settings are copied. The result is
/// read back and every tensor compared before it gets its name, so a result that exists is right. Memory: the largest
/// matrix and a few megabytes.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe convert OLMoE-1B-7B-0924 olmoe.gguf --to gguf
  olmoe convert step1200000-unsharded OLMoE-hf --to hf --dtype bf16 --tokenizer tokenizer.json
  olmoe convert allenai/OLMoE-1B-7B-0924 OLMoE-native --to olmo
  olmoe convert runs/first/latest first.gguf --to gguf --json

Files: reads IN; writes OUT, a folder with config.json, *.safetensors and the tokenizer (hf), with model.safetensors and \
config.yaml (olmo), or one file (gguf).

OLMo's trainer accepts a folder of --to olmo as its load_path if the folder's name ends in -unsharded, with \
--reset_optimizer_state --reset_trainer_state, since it has no optim.pt and no trainer state. OLMo still opens \
train.pt; an empty one is made by `python -c \"import torch; torch.save({}, 'train.pt')\"`.

Exit status: 0 if the result is there and right, 1 if not, 2 for wrong usage.")]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    files: InOut,

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
    let (from, output) = args.files.get()?;
    let target = args.form.target(&output)?;
    let checkpoint = Checkpoint::open(&input(from, MODEL_FILES, args.run.offline)?)?;
    let companions = args.beside.companions(&checkpoint)?;
    let written = args.run.write(&checkpoint, &companions, target, &output)?;
    args.record.show(&output, &written, format_args!("{}: {}", output.display(), summary(&written)))
}

fn summary(written: &Written) -> String {
    let changed: Vec<_> = written.kinds.values().filter(|kind| kind.squared_error > 0.0).collect();
    let (tensors, bytes) = (counted(written.tensors, "tensor"), counted(written.bytes, "byte"));
    let all = format!("{tensors}, {bytes}, read back and compared");
    if changed.is_empty() {
        return format!("{all}; no number changed");
    }
    let (error, squares) =
        changed.iter().fold((0.0, 0.0), |sum, kind| (sum.0 + kind.squared_error, sum.1 + kind.squares));
    format!("{all}; rounding changed numbers by {:.1e} of their size (root mean square)", (error / squares).sqrt())
}
