//! `olmoe init`

use std::path::PathBuf;

use clap::Args;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::weights::Random;
use olmoe_data::counted;
use olmoe_model::config::ModelConfig;

use crate::flags::{ExpertsArg, Number, RecordArg, RunArgs, To};
use crate::output::note;

/// Write a checkpoint with fresh random weights
///
/// The weights are drawn as the configuration's `init` defines, from the seed alone: the same bits on every machine,
/// and the initial weights of a training run with that seed. Useful to try out full-size models without downloading
/// weights.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe init --config configs/tiny.yml --seed 1 tiny
  olmoe init --config configs/olmoe-1b-7b.yml --seed 1 random.gguf --to gguf \\
      --tokenizer tokenizer.json

Files: reads the configuration and the tokenizer; writes OUT as `olmoe convert` does.

Exit status: 0 if the result is there and right, 1 if not, 2 for wrong usage.")]
pub(crate) struct InitArgs {
    /// Configuration: an OLMo YAML, a Hugging Face config.json, or this program's own JSON
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Seed of the draws; the same bits on every machine
    #[arg(long, value_name = "N")]
    seed: u64,

    /// Folder (hf, olmo) or file (gguf) to write; must not exist yet
    #[arg(value_name = "OUT")]
    output: PathBuf,

    /// Format to write [default: gguf where OUT ends in .gguf, else hf]
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Output")]
    to: Option<To>,

    /// Type of the numbers to write
    #[arg(long, value_enum, value_name = "TYPE", default_value = "bf16", help_heading = "Output")]
    dtype: Number,

    /// How Hugging Face files store experts
    #[arg(long, value_enum, value_name = "HOW", default_value = "separate", help_heading = "Output")]
    experts: ExpertsArg,

    /// A tokenizer.json to put beside the weights
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    tokenizer: Option<PathBuf>,

    #[command(flatten)]
    record: RecordArg,

    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &InitArgs) -> anyhow::Result<()> {
    let to = To::of(args.to, &args.output)?.unwrap_or(To::Hf);
    let loaded = ModelConfig::read(&args.config)?;
    loaded.notices.iter().for_each(note);
    let name = args.config.file_stem().map_or("model".into(), |name| name.to_string_lossy().into_owned());
    let companions = match &args.tokenizer {
        None => Companions::named(name),
        Some(path) => Companions::with_tokenizer(name, path, &loaded.config)?,
    };
    companions.notices.iter().for_each(note);
    let random = Random::new(loaded.config, args.seed, args.dtype.dtype());
    let target = to.target(Some(args.dtype), args.experts);
    let written = args.run.write(&random, &companions, target, &args.output)?;
    let (tensors, bytes) = (counted(written.tensors, "tensor"), counted(written.bytes, "byte"));
    let text = format!("{}: {tensors}, {bytes}", args.output.display());
    args.record.show(&args.output, &written, text)
}
