//! `olmoe merge`

use std::fmt;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::adapter::{AdapterWeights, FileLayout};
use olmoe_checkpoint::convert::{Target, Written};
use olmoe_checkpoint::gguf::mix::Mix;
use olmoe_checkpoint::hub::MODEL_FILES;
use olmoe_checkpoint::merge::{Merged, MergedType, Survival};
use olmoe_checkpoint::weights::Weights;
use olmoe_data::counted;

use crate::flags::{AdapterArg, Beside, Form, RecordArg, RunArgs, To, input, mix};
use crate::output::{is_quiet, note};
use crate::usage::usage;

/// Merge adapters into the weights of their model
///
/// LoRA and DoRA, computed in f32 from the numbers that the model's weights stand for, and rounded once to the type that is
/// written. The table says for each kind of matrix how large the change is, by the Frobenius norm of the matrix, which share
/// of it survives the rounding, and how large the rounding is by the change: in bf16 small changes get lost. Formats are
/// those of `olmoe convert`. Memory: the largest matrix, the adapter and some ten megabytes.
///
/// With --as-adapter nothing is merged: the adapters, added up, become one adapter in peft's form or llama.cpp's.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe merge -m OLMoE-1B-7B-0924 --adapter my-lora -o OLMoE-mine --to hf
  olmoe merge -m olmoe-q4_k_m.gguf --adapter my-lora -o mine.gguf --into original
  olmoe merge -m OLMoE-1B-7B-0924 --adapter style@0.5 --adapter facts -o both.gguf --as-adapter

Files: reads the model and the adapters; writes OUT as `olmoe convert` does, or with --as-adapter a folder with \
adapter_config.json and adapter_model.safetensors, or a GGUF adapter where OUT ends in .gguf.

Exit status: 0 if the result is there and right, 1 if not, 2 for wrong usage.")]
pub(crate) struct MergeArgs {
    /// The model: a file, a folder, or one of the hub (REPO or REPO@REVISION)
    #[arg(short, long, value_name = "PATH|REPO[@REVISION]", help_heading = "Model")]
    model: String,

    #[command(flatten)]
    adapter: AdapterArg,

    /// Folder (hf, olmo) or file (gguf) to write; must not exist yet
    #[arg(short, long = "out", value_name = "OUT", help_heading = "Output")]
    output: PathBuf,

    #[command(flatten)]
    form: Form,

    /// Write a quantised GGUF file: `original` for the types of a quantised model, or one of `olmoe quantize --type`
    #[arg(long, value_name = "TYPE", value_parser = into, conflicts_with = "dtype", help_heading = "Output")]
    into: Option<Into>,

    /// Write the adapters, added up, as one adapter, and leave the model as it is
    #[arg(long, conflicts_with_all = ["to", "dtype", "into", "experts"], help_heading = "Output")]
    as_adapter: bool,

    /// How peft's files store the adapters of experts, with --as-adapter
    #[arg(long, value_enum, value_name = "HOW", default_value = "separate", help_heading = "Output")]
    layout: LayoutArg,

    #[command(flatten)]
    beside: Beside,

    #[command(flatten)]
    record: RecordArg,

    #[command(flatten)]
    run: RunArgs,
}

/// The types of a quantised result.
#[derive(Clone, Copy)]
enum Into {
    Original,
    Mix(Mix),
}

fn into(name: &str) -> Result<Into, String> {
    match name {
        "original" => Ok(Into::Original),
        name => mix(name).map(Into::Mix).map_err(|error| format!("{error}, or original")),
    }
}

/// How peft's files store the adapters of experts.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LayoutArg {
    /// Two matrices for each expert's, which every version of peft loads, and vLLM
    Separate,
    /// Two stacks for each layer, as peft 0.19 and later save them with transformers 5
    Fused,
}

pub(crate) fn run(args: &MergeArgs) -> anyhow::Result<()> {
    if args.adapter.is_empty() {
        return Err(usage("no adapter is given; name it with --adapter"));
    }
    let path = input(&args.model, MODEL_FILES, args.run.offline)?;
    if args.as_adapter {
        let checkpoint = Checkpoint::open(&path)?;
        return as_adapter(args, &adapter(args, &checkpoint)?);
    }
    let target = match args.into {
        None => args.form.target(&args.output)?,
        Some(_) if args.form.format().is_some_and(|to| to != To::Gguf) => {
            return Err(usage("--into writes a GGUF file, but --to asks for a folder; leave one of them out"));
        }
        Some(into) => {
            To::of(Some(To::Gguf), &args.output)?;
            Target::Gguf { mix: if let Into::Mix(mix) = into { Some(mix) } else { None } }
        }
    };
    let checkpoint = Checkpoint::open(&path)?;
    let adapter = adapter(args, &checkpoint)?;
    let keeps = matches!(target, Target::Gguf { mix: None });
    if keeps && args.into.is_none() && checkpoint.main_encoding().is_quantized() {
        return Err(usage(format_args!(
            "{} is quantised; say what the result is to be: --into original (the same types), --into with a type, or --dtype",
            path.display()
        )));
    }
    let explicit = matches!(args.into, Some(Into::Mix(_))) || args.form.dtype().is_some();
    let merged = Merged::new(&checkpoint, &adapter, if explicit { MergedType::Written } else { MergedType::Kept })?;
    let companions = args.beside.companions(&checkpoint)?;
    let written = args.run.write(&merged, &companions, target, &args.output)?;
    let survival: Vec<(String, Survival)> = merged.survival().into_iter().collect();
    args.record.show(&args.output, &written, Table { args, written: &written, survival: &survival })
}

fn adapter(args: &MergeArgs, checkpoint: &Checkpoint) -> anyhow::Result<AdapterWeights> {
    args.adapter.read(checkpoint, args.run.offline)?.context("no adapter is given")
}

/// Writes the sum of the adapters.
fn as_adapter(args: &MergeArgs, adapter: &AdapterWeights) -> anyhow::Result<()> {
    let is_gguf = args.output.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    if is_gguf {
        adapter.write_gguf(&args.output, args.run.force)?;
    } else {
        let layout = match args.layout {
            LayoutArg::Separate => FileLayout::Separate,
            LayoutArg::Fused => FileLayout::Fused,
        };
        adapter.write(&args.output, layout, args.run.force)?.iter().for_each(note);
    }
    if !is_quiet() {
        let (matrices, bytes) = (counted(adapter.parts.len(), "matrix"), counted(adapter.bytes(), "byte"));
        println!("{}: an adapter of {matrices}, {bytes}, read back and compared", args.output.display());
    }
    Ok(())
}

/// What of the change is left, by kind of matrix.
struct Table<'a> {
    args: &'a MergeArgs,
    written: &'a Written,
    survival: &'a [(String, Survival)],
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<28} {:>8} {:>10} {:>10} {:>10}", "matrices", "changed", "change", "survives", "rounding")?;
        let mut all = Survival::default();
        let rows = self.survival.iter().map(|(kind, survival)| (kind.as_str(), *survival));
        for (kind, survival) in rows {
            all.add(&survival);
            row(f, kind, &survival)?;
        }
        row(f, "all", &all)?;
        let (tensors, bytes) = (counted(self.written.tensors, "tensor"), counted(self.written.bytes, "byte"));
        let (out, model) = (self.args.output.display(), &self.args.model);
        write!(f, "{out}: {model} with its adapter merged into it, {tensors}, {bytes}, read back and compared")
    }
}

fn row(f: &mut fmt::Formatter<'_>, kind: &str, survival: &Survival) -> fmt::Result {
    writeln!(
        f,
        "{kind:<28} {:>8} {:>10.2e} {:>9.2}% {:>9.2}%",
        survival.matrices,
        survival.relative(),
        survival.kept() * 100.0,
        survival.rounding() * 100.0
    )
}
