//! `olmoe bench decode`, `batch` and `prefill`: a model against the limits of the machine, measured in the same run.

use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::weights::Weights;
use olmoe_engine::Engine;
use olmoe_model::batch::Batch;
use olmoe_model::model::{Activations, Keep, KvCache, Model};
use olmoe_tensor::limits::read_bandwidth;
use olmoe_tensor::ops::attention::CacheType;
use olmoe_tensor::simd::Isa;
use olmoe_tensor::tensor::Tensor;
use olmoe_tensor::threads::num_threads;
use serde_json::json;

use super::READ_BYTES;
use super::figure::{Figure, Peak, Work};
use crate::flags::{CacheArg, List, LoadingArgs, OnePrecision, Threads, beside, counts, no_more, positive};

const LIMIT_TIME: Duration = Duration::from_millis(300);
const PEAK_TIME: Duration = Duration::from_millis(100);

/// The flags that these measurements share.
#[derive(Args)]
pub(crate) struct InferenceArgs {
    /// The model, unless --model gives it
    #[arg(value_name = "MODEL")]
    first: Option<String>,

    #[command(flatten)]
    loading: LoadingArgs,

    /// Precision of the matrices that are not quantised, and of attention
    #[arg(long, value_enum, default_value = "amp_bf16", help_heading = "Model")]
    precision: OnePrecision,

    /// Rounds; the median is reported
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive)]
    rounds: usize,

    #[command(flatten)]
    cache: CacheArg,

    #[command(flatten)]
    threads: Threads,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl InferenceArgs {
    /// Opens the checkpoint, without its weights.
    pub(super) fn open(&self) -> anyhow::Result<Checkpoint> {
        self.threads.apply();
        let words: Vec<&str> = self.first.iter().map(String::as_str).collect();
        no_more(&self.loading.rest(&words)?)?;
        self.loading.open(&words)
    }

    /// Loads the model if it fits memory with caches for this many sequences and tokens, and with passes over `tokens`
    /// tokens of each.
    pub(super) fn load(
        &self,
        checkpoint: &Checkpoint,
        sequences: usize,
        length: usize,
        tokens: usize,
    ) -> anyhow::Result<Model> {
        let precision = self.precision.into();
        let config = Weights::config(checkpoint);
        let limit = config.max_sequence_length;
        let name = checkpoint.contents().path.display();
        ensure!(length <= limit, "{length} tokens do not fit the context of {name}, which is {limit}; ask for fewer");
        let kind = self.cache.kind(precision);
        let caches = config.cache_bytes(kind, &[length]).saturating_mul(sequences as u64);
        let pass = (tokens.max(sequences), sequences);
        let beside = beside(checkpoint, (precision, true), (kind, &[]), pass).saturating_add(caches);
        self.loading.load(checkpoint, precision, true, beside.saturating_add(READ_BYTES as u64))
    }

    /// The number of rounds.
    pub(super) fn rounds(&self) -> usize {
        self.rounds
    }

    /// Whether one JSON object is printed.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// The type of keys and values that was asked for.
    pub(super) fn cache_type(&self) -> Option<CacheType> {
        self.cache.cache_type
    }

    fn caches(&self, model: &Model, sequences: usize, length: usize) -> Vec<KvCache> {
        let kind = self.cache.kind(model.precision());
        (0..sequences).map(|_| KvCache::of_type(model, length, kind)).collect()
    }

    fn cache_bytes_per_token(&self, model: &Model) -> usize {
        Engine::cache_bytes_per_token(model, self.cache.cache_type)
    }

    fn print(&self, figure: &Figure) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(&figure.json())?);
        } else {
            println!("{figure}");
        }
        Ok(())
    }
}

/// Measure decoding, a token at a time
///
/// A decoding step reads all weights except those of the experts that are not chosen, so the limit is the memory's read
/// bandwidth, measured before every round. Tokens are random.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe bench decode -m olmoe-q4_0.gguf
  olmoe bench decode -m olmoe-q4_0.gguf --depth 2048 --tokens 64 --json

Exit status: 0 done, 1 if the model could not be read or does not fit the memory, 2 for wrong usage.")]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    common: InferenceArgs,

    /// Tokens in the cache before the first one
    #[arg(long, value_name = "N", default_value = "0")]
    depth: usize,

    /// Tokens per round
    #[arg(long, value_name = "N", default_value = "32", value_parser = positive)]
    tokens: usize,
}

/// Measure decoding of several sequences at once
///
/// A step decodes a token of each sequence. It reads every expert that any of them chooses, so the limit is the lower
/// of two: what the bandwidth allows for the experts that were chosen, and the multiply-add peak. Both are measured
/// before every round. Prompts and tokens are random and differ between sequences.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe bench batch -m olmoe-q4_0.gguf
  olmoe bench batch -m olmoe-q4_0.gguf --sequences 4,8,16 --depth 512 --json

Exit status: 0 done, 1 if the model could not be read or does not fit the memory, 2 for wrong usage.")]
pub(crate) struct BatchArgs {
    #[command(flatten)]
    common: InferenceArgs,

    /// Sequences per step; each number is measured
    #[arg(long, value_name = "N,…", default_value = "1,4,8,16", value_parser = counts)]
    sequences: List<usize>,

    /// Tokens in each cache before the first step
    #[arg(long, value_name = "N", default_value = "32")]
    depth: usize,

    /// Steps per round
    #[arg(long, value_name = "N", default_value = "32", value_parser = positive)]
    tokens: usize,
}

/// Measure prefill, the reading of a prompt
///
/// The limit is the multiply-add peak (of eight bits for a quantised model) or, for a very short prompt, what the
/// bandwidth allows; both are measured before every round. Tokens are random.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe bench prefill -m olmoe-q4_0.gguf
  olmoe bench prefill -m olmoe-q4_0.gguf --length 2048 --json

Exit status: 0 done, 1 if the model could not be read or does not fit the memory, 2 for wrong usage.")]
pub(crate) struct PrefillArgs {
    #[command(flatten)]
    common: InferenceArgs,

    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value = "512", value_parser = positive)]
    length: usize,
}

pub(super) fn decode(args: &DecodeArgs) -> anyhow::Result<()> {
    let model = args.common.load(&args.common.open()?, 1, args.depth.saturating_add(args.tokens), args.depth)?;
    let figure = decoding(&model, "decode", 1, args.depth, args.tokens, &args.common)?;
    args.common.print(&figure)
}

pub(super) fn batch(args: &BatchArgs) -> anyhow::Result<()> {
    let most = args.sequences.0.iter().copied().max().unwrap_or(1);
    let model = args.common.load(&args.common.open()?, most, args.depth.saturating_add(args.tokens), args.depth)?;
    let mut rows = Vec::new();
    for &sequences in &args.sequences.0 {
        let figure = decoding(&model, "batch", sequences, args.depth, args.tokens, &args.common)?;
        if args.common.json {
            rows.push(figure.json());
        } else {
            println!("{figure}");
        }
    }
    if args.common.json {
        let report = json!({ "what": "batch", "isa": Isa::current().name(), "threads": num_threads(), "rows": rows });
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(())
}

pub(super) fn prefill(args: &PrefillArgs) -> anyhow::Result<()> {
    let model = args.common.load(&args.common.open()?, 1, args.length, args.length)?;
    let mut caches = args.common.caches(&model, 1, args.length);
    let ids = ids(&model, args.length);
    let work = Work { sequences: 1, tokens: args.length, keys: args.length as f64 / 2.0, held: 0 };
    let figure = measure(&model, ("prefill", args.length), &args.common, work, &mut caches, 0, &[ids])?;
    args.common.print(&figure)
}

/// Measures steps of one token of each of `sequences` sequences, after prompts of `depth` tokens.
fn decoding(
    model: &Model,
    what: &'static str,
    sequences: usize,
    depth: usize,
    tokens: usize,
    common: &InferenceArgs,
) -> anyhow::Result<Figure> {
    let length = depth.saturating_add(tokens);
    let mut caches = common.caches(model, sequences, length);
    let ids = ids(model, sequences * length);
    if depth > 0 {
        let mut activations = Activations::new(Keep::Nothing);
        for (cache, ids) in caches.iter_mut().zip(ids.chunks_exact(length)) {
            read(model, &ids[..depth], std::slice::from_mut(cache), &mut activations)?;
        }
    }
    let steps: Vec<Vec<u32>> =
        (depth..length).map(|at| ids.iter().copied().skip(at).step_by(length).collect()).collect();
    let held = depth + tokens / 2;
    let work = Work { sequences, tokens: 1, keys: held as f64, held };
    measure(model, (what, depth), common, work, &mut caches, depth, &steps)
}

/// Ids that spread over the vocabulary and the experts.
fn ids(model: &Model, len: usize) -> Vec<u32> {
    let rows = model.config().embedding_size as u64;
    (0..len as u64).map(|i| ((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) % rows) as u32).collect()
}

/// Runs the model over ids, the same number for each sequence, after the tokens in the caches, and computes the logits
/// of each sequence's last token.
fn read(model: &Model, ids: &[u32], caches: &mut [KvCache], activations: &mut Activations) -> anyhow::Result<()> {
    let held: Vec<usize> = caches.iter().map(KvCache::len).collect();
    let length = ids.len() / caches.len();
    let batch = Batch::uniform(ids, length)?.continued_from(&held)?;
    model.forward_cached(&batch, caches, activations)?;
    let hidden = activations.hidden();
    let last: Vec<f32> = (1..=held.len()).flat_map(|s| hidden.row(s * length - 1)).copied().collect();
    drop(model.logits_of(&Tensor::new(&last, &[held.len(), hidden.cols()])));
    Ok(())
}

/// Measures the steps after the first `depth` tokens, round after round, each beside the limits of the machine.
fn measure(
    model: &Model,
    (what, length): (&'static str, usize),
    common: &InferenceArgs,
    work: Work,
    caches: &mut [KvCache],
    depth: usize,
    steps: &[Vec<u32>],
) -> anyhow::Result<Figure> {
    let mut activations = Activations::new(Keep::Nothing);
    // The first round is a warm-up that also counts the bytes read: later rounds route the same tokens to the same
    // experts.
    let (mut weights, mut experts, mut layers) = (0.0, 0, 0);
    for ids in steps {
        read(model, ids, caches, &mut activations)?;
        let routing = &activations.routing.layers;
        let mut reached = vec![0; model.config().n_layers];
        for mixture in routing {
            reached[mixture.layer] = mixture.load_e.iter().filter(|load| **load > 0).count();
        }
        weights += model.bytes_read(|layer| reached[layer]) as f64;
        experts += reached.iter().sum::<usize>();
        layers += routing.len();
    }
    let cache = (common.cache_bytes_per_token(model) * work.held * work.sequences) as f64;
    let bytes = weights / steps.len() as f64 + cache;
    let peak = Peak::of(model);
    let mut figure = Figure::new(what, length, work, peak, bytes, model.config())?;
    figure.experts = (layers > 0).then(|| experts as f64 / layers as f64);
    let tokens = steps.iter().map(Vec::len).sum::<usize>() as f64;
    for _ in 0..common.rounds {
        let (bandwidth, peak) = (read_bandwidth(READ_BYTES, LIMIT_TIME), peak.measure(PEAK_TIME));
        caches.iter_mut().for_each(|cache| cache.truncate(depth));
        let start = Instant::now();
        for ids in steps {
            read(model, ids, caches, &mut activations)?;
        }
        figure.add(tokens / start.elapsed().as_secs_f64(), bandwidth, peak);
    }
    Ok(figure)
}
