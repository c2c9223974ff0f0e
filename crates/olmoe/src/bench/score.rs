//! `olmoe bench score`: requests of an evaluation per second, with and without sharing what they have in common.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use flate2::read::MultiGzDecoder;
use olmoe_checkpoint::companions::Companions;
use olmoe_engine::{Pair, Scorer, ScorerConfig};
use olmoe_eval::{Beginning, Encoding, TokenPair, encode};
use olmoe_model::model::Model;
use serde_json::{Value, json};

use super::inference::InferenceArgs;
use super::median;
use crate::flags::positive;

/// Measure the scoring of continuations, as evaluations do it
///
/// Requests are lines of JSON with `context` and `continuation`, at the top or in `request`, as OLMo's evaluation has them;
/// a file may be compressed with gzip. The same requests are scored with what they have in common computed once, and each
/// alone, one after the other in every round.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe bench score -m olmoe-q4_k_m.gguf --requests arc_easy/rc_5shot/requests.jsonl.gz
  olmoe bench score -m olmoe-q4_k_m.gguf --requests hellaswag.jsonl --limit 400 --sharing on --json

Exit status: 0 done, 1 if the model or the requests could not be read, 2 for wrong usage.")]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    common: InferenceArgs,

    /// A file of requests
    #[arg(long, value_name = "FILE")]
    requests: PathBuf,

    /// The tokenizer.json to use [default: the model's own]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Most requests, from the first on
    #[arg(long, value_name = "N", default_value = "200", value_parser = positive)]
    limit: usize,

    /// Most tokens of a pass
    #[arg(long, value_name = "N", default_value = "512", value_parser = positive)]
    step_tokens: usize,

    /// Whether what requests have in common is computed once
    #[arg(long, value_enum, default_value = "both")]
    sharing: SharingChoice,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SharingChoice {
    /// With and without, one after the other
    Both,
    /// Computed once
    On,
    /// Computed for each request
    Off,
}

pub(crate) fn run(args: &ScoreArgs) -> anyhow::Result<()> {
    let checkpoint = args.common.open()?;
    let companions = Companions::of(&checkpoint, args.tokenizer.as_deref(), false)?;
    let tokenizer = companions.tokenizer().with_context(|| {
        format!(
            "{}: it has no tokenizer, which requests need; give one with --tokenizer",
            checkpoint.contents().path.display()
        )
    })?;
    let special = companions.special_tokens().cloned().unwrap_or_default();
    let beginning = Beginning { before: companions.before_text().to_vec(), bos: special.bos, eos: special.eos };
    let texts = requests(&args.requests, args.limit)?;
    let start = Instant::now();
    let pairs: Vec<TokenPair> = texts
        .iter()
        .map(|(context, continuation)| encode(tokenizer, Encoding::Separate, context, continuation, &beginning))
        .collect::<Result<_, _>>()?;
    let encoding = start.elapsed().as_secs_f64();
    let longest = pairs.iter().map(|pair| pair.context.len() + pair.continuation.len()).max().unwrap_or(1);
    let limit = olmoe_checkpoint::weights::Weights::config(&checkpoint).max_sequence_length;
    let model = Arc::new(args.common.load(&checkpoint, 1, longest.min(limit), args.step_tokens)?);
    let mut figures = Vec::new();
    for share in [true, false] {
        let excluded = if share { SharingChoice::Off } else { SharingChoice::On };
        if args.sharing != excluded {
            figures.push(Figure { share, seconds: Vec::new(), computed: 0, read: 0, sum: 0.0 });
        }
    }
    for _ in 0..args.common.rounds() {
        figures.iter_mut().try_for_each(|figure| figure.measure(args, &model, &pairs))?;
    }
    if args.common.is_json() {
        let rows: Vec<Value> = figures.iter().map(|figure| figure.json(pairs.len())).collect();
        let json = json!({ "requests": pairs.len(), "encoding_seconds": encoding, "rows": rows });
        println!("{}", serde_json::to_string_pretty(&json)?);
    } else {
        figures.iter().for_each(|figure| println!("{}", figure.line(pairs.len())));
    }
    Ok(())
}

/// A way to score the requests.
struct Figure {
    share: bool,
    seconds: Vec<f64>,
    /// Tokens that the model read, and those that it would read without sharing.
    computed: usize,
    read: usize,
    /// The sum of all log-probabilities.
    sum: f64,
}

impl Figure {
    fn measure(&mut self, args: &ScoreArgs, model: &Arc<Model>, pairs: &[TokenPair]) -> anyhow::Result<()> {
        let config = ScorerConfig {
            step_tokens: args.step_tokens,
            cache_type: args.common.cache_type(),
            share: self.share,
            ..ScorerConfig::default()
        };
        let mut scorer = Scorer::new(model.clone(), config)?;
        let start = Instant::now();
        let pairs: Vec<Pair> =
            pairs.iter().map(|pair| Pair { context: &pair.context, continuation: &pair.continuation }).collect();
        let plan = scorer.plan(&pairs)?;
        // Summed in the order of the list: the sums of both ways are the same bits.
        let mut sums = vec![0.0; pairs.len()];
        scorer.run(&plan, &AtomicBool::new(false), |pair, score| {
            sums[pair] = score.sum();
            ControlFlow::Continue(())
        })?;
        self.seconds.push(start.elapsed().as_secs_f64());
        (self.computed, self.read, self.sum) = (plan.computed_tokens(), plan.pair_tokens(), sums.iter().sum());
        Ok(())
    }

    fn per_second(&self, count: usize) -> f64 {
        median(self.seconds.iter().map(|seconds| count as f64 / seconds).collect())
    }

    fn json(&self, count: usize) -> Value {
        json!({
            "sharing": self.share, "requests_per_second": self.per_second(count), "seconds": self.seconds,
            "computed_tokens": self.computed, "request_tokens": self.read, "sum": self.sum,
        })
    }

    fn line(&self, count: usize) -> String {
        let Figure { computed, read, sum, .. } = self;
        let (way, speed) = (if self.share { "shared" } else { "each alone" }, self.per_second(count));
        let tokens = speed / count as f64 * *computed as f64;
        format!(
            "score, {way}: {speed:.2} requests/s, {tokens:.1} tokens/s; {computed} tokens computed for {read} of {count} \
             requests; sum of log-probabilities {sum:.4}"
        )
    }
}

/// Contexts and continuations.
fn requests(path: &Path, limit: usize) -> anyhow::Result<Vec<(String, String)>> {
    let name = path.display();
    let mut file = BufReader::new(File::open(path).with_context(|| format!("cannot read {name}"))?);
    let compressed = file.fill_buf().with_context(|| format!("cannot read {name}"))?.starts_with(&[0x1f, 0x8b]);
    let plain: Box<dyn Read> = if compressed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut all = Vec::new();
    for (at, line) in BufReader::new(plain).lines().enumerate().take(limit) {
        let place = || format!("{name}, line {}", at + 1);
        let line: Value = serde_json::from_str(&line.with_context(place)?).with_context(place)?;
        let request = line.get("request").unwrap_or(&line);
        let text = |key: &str| {
            let found = request[key].as_str().map(str::to_owned);
            found.with_context(|| format!("{}: no text `{key}`; expected `context` and `continuation`", place()))
        };
        all.push((text("context")?, text("continuation")?));
    }
    ensure!(!all.is_empty(), "{name} has no requests");
    Ok(all)
}
