//! `olmoe soup`

use std::path::PathBuf;

use clap::Args;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::hub::MODEL_FILES;
use olmoe_checkpoint::soup::Soup;
use olmoe_data::counted;

use crate::flags::{Beside, Form, List, RecordArg, RunArgs, input, weights};
use crate::output::note;

/// Average checkpoints of one model
///
/// Every number is the average over the checkpoints, summed in f64 in the given order and rounded once, so equal
/// checkpoints give the same bits again. Formats may differ; architectures and vocabularies may not. The number types,
/// and the files beside the weights, are those of the first checkpoint. OLMoE-1B-7B-0125 is the soup of three annealing
/// runs. Memory: the largest matrix and some ten megabytes, however many checkpoints there are.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe soup anneal-42 anneal-43 anneal-44 --out soup --to hf
  olmoe soup base.gguf finetuned.gguf --weights 1,3 --out mixed.gguf --to gguf

Files: reads each IN; writes OUT as `olmoe convert` does.

Exit status: 0 if the result is there and right, 1 if not, 2 for wrong usage.")]
pub(crate) struct SoupArgs {
    /// Checkpoints, two or more: folders, GGUF files, or models of the hub (REPO or REPO@REVISION)
    #[arg(value_name = "IN", required = true, num_args = 2..)]
    inputs: Vec<String>,

    /// Folder (hf, olmo) or file (gguf) to write; must not exist yet
    #[arg(short, long = "out", value_name = "OUT", help_heading = "Output")]
    output: PathBuf,

    #[command(flatten)]
    form: Form,

    /// Weight above 0 for each checkpoint; only their ratios count [default: all equal]
    #[arg(long, value_name = "X,X,…", value_parser = weights)]
    weights: Option<List<f64>>,

    #[command(flatten)]
    beside: Beside,

    #[command(flatten)]
    record: RecordArg,

    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &SoupArgs) -> anyhow::Result<()> {
    let target = args.form.target(&args.output)?;
    let mut checkpoints = Vec::with_capacity(args.inputs.len());
    for name in &args.inputs {
        checkpoints.push(Checkpoint::open(&input(name, MODEL_FILES, args.run.offline)?)?);
    }
    let soup = Soup::new(checkpoints, args.weights.as_ref().map_or(&[][..], |list| &list.0[..]), args.form.dtype())?
        .clamping(args.run.clamp);
    let companions = args.beside.companions_of(soup.checkpoints())?;
    soup.same_tokenizer(&companions)?.iter().for_each(note);
    let written = args.run.write(&soup, &companions[0], target, &args.output)?;
    let (count, bytes) = (counted(args.inputs.len(), "checkpoint"), counted(written.bytes, "byte"));
    let tensors = counted(written.tensors, "tensor");
    let out = args.output.display();
    let text = format!("{out}: the average of {count}, {tensors}, {bytes}, read back and compared");
    args.record.show(&args.output, &written, text)
}
