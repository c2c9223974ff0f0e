//! `olmoe logits`

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::safetensors::{SafeType, Spec, Writer};
use olmoe_data::counted;
use olmoe_model::batch::Batch;
use olmoe_model::model::{Activations, Keep, KvCache};
use olmoe_tensor::tensor::Tensor;

use crate::files::make_whole;
use crate::flags::{List, LoadingArgs, OnePrecision, Quiet, Threads, beside, ids, text_last};
use crate::output::{is_quiet, note};
use crate::text::{prompt_of, text_of};
use crate::usage::usage;

/// How many tokens' logits are computed at once.
const ROWS: usize = 256;

/// Write the logits of a text, to compare with another implementation
///
/// Runs the model once over the tokens and writes a safetensors file: `logits` (T x V), `logprobs` (T-1) of the given
/// tokens (the first has none) and `ids` (T). With --routing, `routing.ids` and `routing.probs` (L x T x K) are the
/// chosen experts of each token in each mixture-of-experts layer, and their probabilities. The text is read as in
/// `olmoe generate`: after the tokens that the model's tokenizer puts before a text, which for OLMoE are none.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe logits -m OLMoE-1B-7B-0924 --text 'Bitcoin is' --out logits.safetensors
  olmoe logits -m tiny --ids 5,17,42 --out logits.safetensors --routing --precision fp32

Files: reads the model and the text; writes FILE of --out.

Exit status: 0 if the file was written, 1 if not, 2 for wrong usage.")]
#[command(group(clap::ArgGroup::new("tokens").args(["ids", "text", "file"])))]
pub(crate) struct LogitsArgs {
    /// The model, unless --model gives it
    #[arg(value_name = "MODEL")]
    first: Option<String>,

    /// The text, as with --text; the first argument if --model gives the model
    #[arg(value_name = "TEXT")]
    second: Option<String>,

    #[command(flatten)]
    loading: LoadingArgs,

    /// Token ids, separated by commas or spaces
    #[arg(long, value_name = "ID,…", value_parser = ids, help_heading = "Text")]
    ids: Option<List<u32>>,

    /// A text
    #[arg(
        short = 'p',
        long,
        visible_alias = "prompt",
        value_name = "TEXT",
        allow_hyphen_values = true,
        help_heading = "Text"
    )]
    text: Option<String>,

    /// A file with a text; one line break at its end is dropped, and all others become \n
    #[arg(short, long, value_name = "FILE", help_heading = "Text")]
    file: Option<PathBuf>,

    /// File to write; an existing file is replaced
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    out: PathBuf,

    /// Write the experts of each token as well
    #[arg(long, help_heading = "Output")]
    routing: bool,

    /// Precision of the matrix products
    #[arg(long, value_enum, default_value = "fp32", help_heading = "Model")]
    precision: OnePrecision,

    #[command(flatten)]
    threads: Threads,

    /// Print one JSON object: path, tokens, and logits per token
    #[arg(long, help_heading = "Output")]
    json: bool,

    #[command(flatten)]
    _quiet: Quiet,
}

pub(crate) fn run(args: &LogitsArgs) -> anyhow::Result<()> {
    args.threads.apply();
    let words: Vec<&str> = [&args.first, &args.second].into_iter().flatten().map(String::as_str).collect();
    let given = args.text.is_some() || args.file.is_some() || args.ids.is_some();
    let rest = args.loading.rest(&words)?;
    let text = text_last(&rest, given, "--text, --file and --ids")?;
    if text.is_none() && !given {
        return Err(usage("no text is given; name it after the model, or give --text, --file or --ids"));
    }
    let checkpoint = args.loading.open(&words)?;
    let ids = tokens(args, text, &checkpoint)?;
    if ids.is_empty() {
        bail!("there are no tokens; give a text with at least one");
    }
    if args.routing && olmoe_checkpoint::weights::Weights::config(&checkpoint).moe().is_none() {
        bail!("--routing: {} is a dense model, which has no router", checkpoint.contents().path.display());
    }
    let precision = args.precision.into();
    let (caches, pass) = ((KvCache::default_type(precision), &[][..]), (ids.len(), ROWS.min(ids.len())));
    let beside = beside(&checkpoint, (precision, false), caches, pass);
    let model = args.loading.load(&checkpoint, precision, false, beside)?;
    let mut activations = Activations::new(Keep::Nothing);
    model.forward(&Batch::uniform(&ids, ids.len())?, &mut activations)?;

    let (num_tokens, rows) = (ids.len(), model.config().embedding_size);
    let mut specs = vec![
        Spec::new("ids", SafeType::I32, [num_tokens]),
        Spec::new("logits", SafeType::F32, [num_tokens, rows]),
        Spec::new("logprobs", SafeType::F32, [num_tokens - 1]),
    ];
    let layers = &activations.routing.layers;
    if args.routing {
        let shape = [layers.len(), num_tokens, model.config().moe().map_or(0, |moe| moe.top_k)];
        specs.push(Spec::new("routing.ids", SafeType::I32, shape));
        specs.push(Spec::new("routing.probs", SafeType::F32, shape));
    }
    let write = |file: &mut File| -> anyhow::Result<()> {
        let mut writer = Writer::new(BufWriter::new(file), &specs, &BTreeMap::new())?;
        writer.write(&bytes(ids.iter().map(|id| id.to_le_bytes())))?;
        let hidden_td = activations.hidden();
        for first in (0..num_tokens).step_by(ROWS) {
            let count = ROWS.min(num_tokens - first);
            let some = Tensor::new(hidden_td.row_range(first..first + count), &[count, hidden_td.cols()]);
            writer.write(&bytes(model.logits_of(&some).iter().map(|x| x.to_le_bytes())))?;
        }
        // No token follows the last one.
        let rows: Vec<u32> = (0..).take(num_tokens - 1).collect();
        let log_probs = model.log_probs_at(&activations, &rows, &ids[1..])?;
        writer.write(&bytes(log_probs.logp_t.iter().map(|x| x.to_le_bytes())))?;
        if args.routing {
            for layer in layers {
                writer.write(&bytes(layer.routing.ids_tk.iter().map(|id| id.to_le_bytes())))?;
            }
            for layer in layers {
                let routing = &layer.routing;
                for token in 0..num_tokens {
                    let probs = routing.ids_tk.row(token).iter().map(|&id| routing.probs_te.row(token)[id as usize]);
                    writer.write(&bytes(probs.map(f32::to_le_bytes)))?;
                }
            }
        }
        writer.finish()?.flush()?;
        Ok(())
    };
    make_whole(&args.out, write).with_context(|| format!("{}: could not be written", args.out.display()))?;
    if args.json {
        let path = args.out.display().to_string();
        println!("{}", serde_json::json!({ "path": path, "tokens": num_tokens, "logits": rows }));
    } else if !is_quiet() {
        println!("{}: {}, {rows} logits each", args.out.display(), counted(num_tokens, "token"));
    }
    Ok(())
}

fn bytes(numbers: impl Iterator<Item = [u8; 4]>) -> Vec<u8> {
    numbers.flatten().collect()
}

fn tokens(args: &LogitsArgs, text: Option<&str>, checkpoint: &Checkpoint) -> anyhow::Result<Vec<u32>> {
    let text = match (text.or(args.text.as_deref()), &args.file) {
        (Some(text), _) => text.to_owned(),
        (None, Some(path)) => prompt_of(text_of(path)?),
        (None, None) => return Ok(args.ids.as_ref().map(|ids| ids.0.clone()).unwrap_or_default()),
    };
    let companions = Companions::of(checkpoint, None, false)?;
    companions.notices.iter().for_each(note);
    let Some(ids) = companions.encode(&text) else {
        bail!("{}: this model has no tokenizer; give --ids", checkpoint.contents().path.display());
    };
    Ok(ids?)
}
