//! `olmoe quantize`

use std::fmt;
use std::path::Path;

use clap::Args;
use olmoe_checkpoint::convert::{Target, Written};
use olmoe_checkpoint::gguf::mix::Mix;
use olmoe_checkpoint::hub::MODEL_FILES;
use olmoe_checkpoint::weights::Weights;
use olmoe_checkpoint::{Checkpoint, CheckpointError};

use crate::flags::{Beside, InOut, RecordArg, RunArgs, To, input, mix};

/// Quantise a checkpoint to a GGUF file
///
/// Weights become blocks of small whole numbers that share scales, chosen for the least squared error. Which tensor gets
/// which type follows llama.cpp: norms and routers stay f32, the head gets q6_k, and the _m mixes give some layers more
/// bits. Uses all cores. The table says for each kind of tensor what it became and how far it is from what it was.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe quantize OLMoE-1B-7B-0924 olmoe-q4_k_m.gguf --type q4_k_m
  olmoe quantize olmoe-bf16.gguf olmoe-q8_0.gguf --type q8_0
  olmoe quantize allenai/OLMoE-1B-7B-0924 small.gguf --type q4_0 --json

Files: reads IN; writes OUT, a GGUF file with the tokenizer in it.

Exit status: 0 if the result is there and right, 1 if not, 2 for wrong usage.")]
pub(crate) struct QuantizeArgs {
    #[command(flatten)]
    files: InOut,

    /// Kind of file: q4_0 q4_1 q5_0 q5_1 q8_0 q4_k_s q4_k_m q5_k_s q5_k_m q6_k, or bf16 f16 f32
    #[arg(long = "type", value_name = "TYPE", value_parser = mix, help_heading = "Output")]
    mix: Mix,

    /// Quantise what is quantised already
    #[arg(long)]
    allow_requantize: bool,

    #[command(flatten)]
    beside: Beside,

    #[command(flatten)]
    record: RecordArg,

    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &QuantizeArgs) -> anyhow::Result<()> {
    let (from, output) = args.files.get()?;
    To::of(Some(To::Gguf), &output)?;
    let checkpoint = Checkpoint::open(&input(from, MODEL_FILES, args.run.offline)?)?;
    let found = checkpoint.main_encoding();
    if found.is_quantized() && !args.allow_requantize {
        return Err(CheckpointError::Requantize { path: checkpoint.origin().to_owned(), found: found.name() }.into());
    }
    let companions = args.beside.companions(&checkpoint)?;
    let target = Target::Gguf { mix: Some(args.mix) };
    let written = args.run.write(&checkpoint, &companions, target, &output)?;
    args.record.show(&output, &written, Table { path: &output, written: &written })
}

/// What each kind of tensor became.
struct Table<'a> {
    path: &'a Path,
    written: &'a Written,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Table { path, written } = self;
        writeln!(
            f,
            "{:<28} {:<18} {:>14} {:>14} {:>10} {:>10}",
            "tensors", "types", "bytes before", "bytes after", "rmse", "relative"
        )?;
        for (kind, fidelity) in &written.kinds {
            let types: Vec<String> = fidelity.encodings.iter().map(|(name, count)| format!("{name}×{count}")).collect();
            writeln!(
                f,
                "{kind:<28} {:<18} {:>14} {:>14} {:>10.2e} {:>9.3}%",
                types.join(" "),
                fidelity.bytes_before,
                fidelity.bytes_after,
                fidelity.rmse(),
                fidelity.relative() * 100.0
            )?;
        }
        let before: u64 = written.kinds.values().map(|kind| kind.bytes_before).sum();
        let numbers: u64 = written.kinds.values().map(|kind| kind.numbers).sum();
        let bits = written.bytes as f64 * 8.0 / numbers.max(1) as f64;
        write!(f, "{}: {before} bytes became {} ({bits:.2} bits a number)", path.display(), written.bytes)
    }
}
