//! `olmoe bench decode` and `olmoe bench prefill`: a model against the limits of the machine, measured in the same run.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use olmoe_checkpoint::weights::Weights;
use olmoe_model::batch::Batch;
use olmoe_model::config::ModelConfig;
use olmoe_model::model::{Activations, Keep, KvCache, Model};
use olmoe_model::parameters::ParameterCount;
use olmoe_tensor::limits::{peak_int8, read_bandwidth};
use olmoe_tensor::simd::Isa;
use olmoe_tensor::threads::num_threads;
use serde_json::json;

use super::median;
use crate::arguments::{OnePrecision, Threads, positive};
use crate::loading::{LoadingArgs, beside};

const LIMIT_TIME: Duration = Duration::from_millis(300);
/// Larger than every cache.
const READ_BYTES: usize = 1 << 30;

/// Operations of a token of a prompt, two to a multiply-add: matrices by the parameters that it passes (the embedding is
/// a look-up, the head is for the last token only), attention by the half of the scores that causality leaves.
fn operations_per_token(config: &ModelConfig, length: usize) -> anyhow::Result<f64> {
    let vocabulary = config.embedding_size * config.d_model;
    let outer = if config.tie_embeddings { vocabulary } else { 2 * vocabulary };
    let active = ParameterCount::of(config)?.active as f64 - outer as f64;
    Ok(2.0 * active + 2.0 * (config.n_layers * config.query_width() * length) as f64)
}

/// What both measurements need.
#[derive(Args)]
pub(crate) struct InferenceArgs {
    #[command(flatten)]
    loading: LoadingArgs,

    /// Precision of the matrices that are not quantised, and of attention
    #[arg(long, value_enum, default_value = "amp_bf16")]
    precision: OnePrecision,

    /// Rounds; the median counts
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive)]
    rounds: usize,

    #[command(flatten)]
    threads: Threads,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl InferenceArgs {
    /// The model, with room for a cache of `length` tokens and for passes over `tokens`.
    fn load(&self, length: usize, tokens: usize) -> anyhow::Result<Model> {
        self.threads.apply();
        let (checkpoint, precision) = (self.loading.open()?, self.precision.into());
        let config = Weights::config(&checkpoint);
        let limit = config.max_sequence_length;
        if length > limit {
            bail!("{length} tokens do not fit the context of this model, {limit}; ask for fewer");
        }
        let beside = beside(config, precision, &[length], tokens, 1) + READ_BYTES as u64;
        self.loading.load(&checkpoint, precision, true, beside, self.json)
    }
}

/// Measure decoding, a token at a time
///
/// Each token reads all weights but those of the experts that it does not choose, so the yardstick is the memory's read
/// bandwidth, measured before every round. Tokens are random.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe bench decode -m olmoe-q4_0.gguf
  olmoe bench decode -m olmoe-q4_0.gguf --depth 2048 --tokens 64 --json")]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    common: InferenceArgs,

    /// Tokens in the cache before the first one
    #[arg(long, value_name = "N", default_value = "0")]
    depth: usize,

    /// Tokens in a round
    #[arg(long, value_name = "N", default_value = "32", value_parser = positive)]
    tokens: usize,
}

/// Measure the reading of a prompt
///
/// The yardstick is the peak of eight-bit multiply-adds, measured before every round, which only quantised models can
/// come near. Tokens are random.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe bench prefill -m olmoe-q4_0.gguf
  olmoe bench prefill -m olmoe-q4_0.gguf --length 2048 --json")]
pub(crate) struct PrefillArgs {
    #[command(flatten)]
    common: InferenceArgs,

    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value = "512", value_parser = positive)]
    length: usize,
}

/// Ids that spread over the vocabulary and the experts.
fn ids(model: &Model, len: usize) -> Vec<u32> {
    let rows = model.config().embedding_size as u64;
    (0..len as u64).map(|i| ((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) % rows) as u32).collect()
}

/// Reads the ids after what the cache holds, and gives the logits of the last one.
fn read(model: &Model, ids: &[u32], cache: &mut [KvCache; 1], activations: &mut Activations) -> anyhow::Result<()> {
    let held = cache[0].len();
    let batch = Batch::uniform(ids, ids.len())?.continued_from(&[held])?;
    model.forward_cached(&batch, cache, activations)?;
    let hidden = activations.hidden();
    let last = olmoe_tensor::tensor::Tensor::new(hidden.row(hidden.rows() - 1), &[1, hidden.cols()]);
    drop(model.logits_of(&last));
    Ok(())
}

pub(super) fn decode(args: &DecodeArgs) -> anyhow::Result<()> {
    let length = args.depth + args.tokens;
    let model = args.common.load(length, args.depth.max(1))?;
    let ids = ids(&model, length);
    let mut activations = Activations::new(Keep::Nothing);
    let mut cache = [KvCache::new(&model, length)];
    if args.depth > 0 {
        read(&model, &ids[..args.depth], &mut cache, &mut activations)?;
    }
    let (mut speeds, mut shares) = (Vec::new(), Vec::new());
    let middle = args.depth + args.tokens / 2;
    let bytes = model.bytes_per_token() + (cache[0].bytes() * middle / length) as u64;
    for round in 0..=args.common.rounds {
        let bandwidth = read_bandwidth(READ_BYTES, LIMIT_TIME);
        cache[0].truncate(args.depth);
        let start = Instant::now();
        for id in &ids[args.depth..] {
            read(&model, std::slice::from_ref(id), &mut cache, &mut activations)?;
        }
        let speed = args.tokens as f64 / start.elapsed().as_secs_f64();
        // The first round is a warm-up.
        if round > 0 {
            speeds.push(speed);
            shares.push(speed * bytes as f64 / bandwidth);
        }
    }
    report(&args.common, "decode", args.depth, bytes, speeds, shares, "read bandwidth")
}

pub(super) fn prefill(args: &PrefillArgs) -> anyhow::Result<()> {
    let model = args.common.load(args.length, args.length)?;
    let ids = ids(&model, args.length);
    let mut activations = Activations::new(Keep::Nothing);
    let mut cache = [KvCache::new(&model, args.length)];
    let (mut speeds, mut shares) = (Vec::new(), Vec::new());
    let operations = operations_per_token(model.config(), args.length)?;
    for round in 0..=args.common.rounds {
        let peak = peak_int8(LIMIT_TIME);
        cache[0].truncate(0);
        let start = Instant::now();
        read(&model, &ids, &mut cache, &mut activations)?;
        let speed = args.length as f64 / start.elapsed().as_secs_f64();
        if round > 0 {
            speeds.push(speed);
            shares.push(speed * operations / peak);
        }
    }
    report(&args.common, "prefill", args.length, model.bytes_per_token(), speeds, shares, "8-bit multiply-add peak")
}

fn report(
    args: &InferenceArgs,
    what: &str,
    length: usize,
    bytes: u64,
    speeds: Vec<f64>,
    shares: Vec<f64>,
    limit: &str,
) -> anyhow::Result<()> {
    let range = |values: &[f64]| {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        (least, values.iter().copied().fold(0.0, f64::max))
    };
    let ((slow, fast), (low, high)) = (range(&speeds), range(&shares));
    let (speed, share) = (median(speeds), median(shares));
    if args.json {
        let report = json!({
            "what": what, "length": length, "threads": num_threads(), "isa": Isa::current().name(),
            "tokens_per_second": speed, "tokens_per_second_range": [slow, fast],
            "bytes_per_token": bytes, "limit": limit, "share": share, "share_range": [low, high],
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!(
            "{what} {length}: {speed:.1} tokens/s ({slow:.1} to {fast:.1}), {:.0} % ({:.0} to {:.0}) of the {limit}; \
             {:.1} MB of weights and cache a token alone; {} threads, {}",
            share * 100.0,
            low * 100.0,
            high * 100.0,
            bytes as f64 / 1e6,
            num_threads(),
            Isa::current().name()
        );
    }
    Ok(())
}
