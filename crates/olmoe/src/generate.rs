//! `olmoe generate`

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, stdin};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::weights::Weights;
use olmoe_data::{Tokenizer, counted};
use olmoe_engine::{Engine, EngineConfig, Event, EventKind, Request, SubmitError};
use olmoe_tensor::memory::resident_peak_bytes;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::flags::{Generator, Line, List, Prompt, SettingsArgs, Work, ids, positive, text_last};
use crate::interrupts::{INTERRUPTED, interrupts};
use crate::output::{is_quiet, note, print};
use crate::text::{prompt_of, text_of, text_of_input, without_mark};
use crate::usage::usage;

mod report;

use report::PromptReport;

/// How many tokens of finished texts a batch keeps, for prompts with a common beginning.
const KEPT_TOKENS: usize = 8192;

/// Continue a text
///
/// The prompt is used as given: no template, no escapes, and no token before it unless the model's tokenizer requires
/// one. The generated text goes to standard output as it comes. Settings apply in the order of llama.cpp: bias,
/// penalties, top-k, typical-p, top-p, min-p, temperature; the defaults are llama.cpp's, too. The same seed gives the
/// same text, whatever the number of threads and whatever else is in the batch.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe generate OLMoE-1B-7B-0924 'Bitcoin is' -n 64
  olmoe generate -m OLMoE-1B-7B-0924 -f notes.txt --temp 0 --stop '\\n\\n' --json --logprobs 5
  olmoe generate -m OLMoE-1B-7B-0924 --batch prompts.jsonl --samples 4 --seed 1 > texts.jsonl

A line of a batch is an object with `prompt`, a string or an array of ids, and any settings that differ: max_tokens, \
min_tokens, temperature, top_k, top_p, min_p, typical_p, repetition_penalty, frequency_penalty, presence_penalty, \
logit_bias {\"ID\": X}, seed, stop, stop_ids, ignore_eos, samples, logprobs, experts. `id` is copied.

Files: reads the model, and FILE of --file or --batch; writes none but the weights of --packed-cache.

Exit status: 0 done, 1 failed, or a prompt of a batch failed, 2 for wrong usage, 130 after an interrupt.")]
#[command(group(clap::ArgGroup::new("source").args(["prompt", "file", "ids", "batch"])))]
pub(crate) struct GenerateArgs {
    /// The model, unless --model gives it
    #[arg(value_name = "MODEL")]
    first: Option<String>,

    /// The text to continue, as with --prompt; the first argument if --model gives the model
    #[arg(value_name = "TEXT")]
    second: Option<String>,

    #[command(flatten)]
    generator: Generator,

    /// The text to continue [default: standard input]
    #[arg(
        short,
        long,
        visible_alias = "text",
        value_name = "TEXT",
        allow_hyphen_values = true,
        help_heading = "Prompt"
    )]
    prompt: Option<String>,

    /// A file with the text; one line break at its end is dropped, as from standard input, and all others become \n
    #[arg(short, long, value_name = "FILE", help_heading = "Prompt")]
    file: Option<PathBuf>,

    /// Token ids to continue, separated by commas or spaces
    #[arg(long, value_name = "ID,…", value_parser = ids, help_heading = "Prompt")]
    ids: Option<List<u32>>,

    /// A file of JSON objects, one per line, each with a `prompt`; - for standard input. Prints one object per line, in
    /// order
    #[arg(long, value_name = "FILE", help_heading = "Prompt")]
    batch: Option<PathBuf>,

    #[command(flatten)]
    settings: SettingsArgs,

    /// Samples to generate for each prompt
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive, help_heading = "Prompt")]
    samples: usize,

    /// With --json: the log-probability of each token, and of K alternatives
    ///
    /// The probabilities are the model's own, before bias, penalties, filters and temperature.
    #[arg(long, value_name = "K", num_args = 0..=1, default_missing_value = "0", help_heading = "Output")]
    logprobs: Option<usize>,

    /// With --json: the experts of each token, by layer
    ///
    /// They are the experts of the pass that generated the token, which reads the token before it.
    #[arg(long, help_heading = "Output")]
    experts: bool,

    /// Most texts to generate at once
    #[arg(long, value_name = "N", default_value = "16", value_parser = positive)]
    parallel: usize,

    /// Print one JSON object: `samples` with `text`, `ids`, `finish_reason`, `usage` and what was asked for
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// A prompt to run.
struct Job {
    report: PromptReport,
    request: Request,
}

pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    if (args.logprobs.is_some() || args.experts) && !args.json && args.batch.is_none() {
        return Err(usage("--logprobs and --experts are shown with --json only; add it"));
    }
    let words: Vec<&str> = [&args.first, &args.second].into_iter().flatten().map(String::as_str).collect();
    let given = args.prompt.is_some() || args.file.is_some() || args.ids.is_some() || args.batch.is_some();
    let rest = args.generator.rest(&words)?;
    let text = text_last(&rest, given, "--prompt, --file, --ids and --batch")?;
    let (checkpoint, companions) = args.generator.open(&words)?;
    let seed = args.settings.seed();
    let jobs = jobs(args, text, (&checkpoint, &companions), seed)?;
    let (limits, beside) = args.generator.limits(&checkpoint, &companions, work(args, &checkpoint, &jobs));
    let limits = EngineConfig { queue: limits.queue.max(args.samples), ..limits };
    let model = Arc::new(args.generator.load(&checkpoint, beside)?);
    let foreseen = args.generator.weight_bytes(&checkpoint) + beside;
    let interrupted = interrupts(&[SIGINT, SIGTERM])?;
    let engine = Engine::new(model, companions.tokenizer().cloned(), limits)?;
    let printer = match args.json || args.batch.is_some() {
        true => Printer::Json,
        false => Printer::plain(args.samples),
    };
    let (reports, requests) = jobs.into_iter().map(|job| (job.report, job.request)).unzip();
    let tokenizer = companions.tokenizer().map(Arc::as_ref);
    let mut run =
        Run { tokenizer, printer, reports, next: 0, begun: 0, first: None, read: 0, made: 0, failures: Vec::new() };
    run.finish(args, engine, requests, &interrupted, seed, foreseen)
}

/// The work of the engine for these prompts.
fn work(args: &GenerateArgs, checkpoint: &Checkpoint, jobs: &[Job]) -> Work {
    let context = Weights::config(checkpoint).max_sequence_length;
    let samples = jobs.iter().flat_map(|job| {
        let prompt = job.request.prompt.len();
        let most = prompt.saturating_add(job.request.max_tokens.unwrap_or(context)).min(context);
        std::iter::repeat_n((most, prompt.min(context)), job.request.samples.min(args.parallel))
    });
    Work {
        running: args.parallel,
        step_tokens: EngineConfig::default().step_tokens.max(args.parallel),
        kept_tokens: if args.batch.is_some() { KEPT_TOKENS } else { 0 },
        samples: samples.collect(),
    }
}

/// The prompts of the arguments.
fn jobs(
    args: &GenerateArgs,
    text: Option<&str>,
    (checkpoint, companions): (&Checkpoint, &Companions),
    seed: u64,
) -> anyhow::Result<Vec<Job>> {
    let tokenizer = companions.tokenizer();
    let tokens = tokenizer.map(|tokenizer| tokenizer.size());
    let request = |ids: Vec<u32>, seed: u64| Request {
        samples: args.samples,
        logprobs: args.logprobs,
        experts: args.experts,
        ..args.settings.request(ids, tokens, seed)
    };
    let name = checkpoint.contents().path.display();
    let without = || format!("{name}: it has no tokenizer; give token ids with --ids");
    let encode = |text: &str| -> anyhow::Result<Vec<u32>> { Ok(companions.encode(text).with_context(without)??) };
    let Some(path) = &args.batch else {
        let (text, ids) = match &args.ids {
            Some(ids) => (None, ids.0.clone()),
            None => {
                let text = text.map_or_else(|| self::text(args), |text| Ok(text.to_owned()))?;
                let ids = encode(&text)?;
                (Some(text), ids)
            }
        };
        let request = with_stop_strings(request(ids, seed), companions);
        return Ok(vec![Job { report: PromptReport::new(None, None, text, &request), request }]);
    };
    let name = if path.as_os_str() == "-" { "standard input".into() } else { path.display().to_string() };
    let reader: Box<dyn BufRead> = match path.as_os_str() == "-" {
        true => Box::new(BufReader::new(stdin())),
        false => Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot read {name}"))?)),
    };
    let mut jobs = Vec::new();
    for (at, line) in reader.lines().enumerate() {
        let place = || format!("{name}, line {}", at + 1);
        let line = line.with_context(place)?;
        let line = if at == 0 { without_mark(&line) } else { &line };
        if line.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(line).with_context(place)?;
        let index = jobs.len();
        let (text, ids) = match &line.prompt {
            Prompt::Text(text) => (Some(text.clone()), encode(text).with_context(place)?),
            Prompt::Ids(ids) => (None, ids.clone()),
        };
        let mut request = request(ids, seed.wrapping_add(index as u64));
        line.settings.apply(&mut request);
        let request = with_stop_strings(request, companions);
        jobs.push(Job { report: PromptReport::new(Some(index), line.id, text, &request), request });
    }
    Ok(jobs)
}

/// Adds the stop strings of the model's own settings to a request.
fn with_stop_strings(mut request: Request, companions: &Companions) -> Request {
    if !request.ignore_eos {
        request.stop.extend_from_slice(companions.stop_strings());
    }
    request
}

/// The text to continue.
fn text(args: &GenerateArgs) -> anyhow::Result<String> {
    match (&args.prompt, &args.file) {
        (Some(text), _) => Ok(text.clone()),
        (None, Some(path)) => Ok(prompt_of(text_of(path)?)),
        (None, None) => {
            if stdin().is_terminal() {
                note("the prompt is read from the terminal; end it with Ctrl-D, or give --prompt");
            }
            Ok(prompt_of(text_of_input()?))
        }
    }
}

/// Prompts that the engine is running.
struct Run<'a> {
    tokenizer: Option<&'a Tokenizer>,
    printer: Printer,
    /// In the order of the prompts; empty once it was printed.
    reports: Vec<PromptReport>,
    /// The next prompt to be printed.
    next: usize,
    /// How many prompts have produced an event.
    begun: usize,
    /// When the first token was generated.
    first: Option<Instant>,
    /// How many tokens were read, and how many generated.
    read: usize,
    made: usize,
    failures: Vec<String>,
}

impl Run<'_> {
    fn finish(
        &mut self,
        args: &GenerateArgs,
        mut engine: Engine,
        requests: Vec<Request>,
        interrupted: &AtomicBool,
        seed: u64,
        foreseen: u64,
    ) -> anyhow::Result<ExitCode> {
        let (start, mut shown) = (Instant::now(), Ok(()));
        let whole = engine.run_all(requests, interrupted, |place, what| {
            if shown.is_ok() {
                shown = self.hear(place, what);
            }
            if shown.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        shown?;
        if !is_quiet() {
            self.summarise(args.samples, start, seed, foreseen);
        }
        match self.failures.first() {
            _ if !whole => Ok(ExitCode::from(INTERRUPTED)),
            Some(error) if args.batch.is_none() => bail!("{error}"),
            Some(error) => {
                let prompts = counted(self.begun, "prompt");
                bail!("{} of {prompts} failed, the first of them: {error}", self.failures.len())
            }
            None => Ok(ExitCode::SUCCESS),
        }
    }

    /// Handles an event of a prompt, and prints its result as soon as it can be printed.
    fn hear(&mut self, place: usize, what: Result<Event, SubmitError>) -> anyhow::Result<()> {
        self.begun = self.begun.max(place + 1);
        match what {
            Err(error) => self.reports[place].refuse(&error),
            Ok(event) => {
                match &event.kind {
                    EventKind::Token(token) => {
                        self.first.get_or_insert_with(Instant::now);
                        self.made += 1;
                        match self.tokenizer {
                            Some(_) => self.printer.text(event.sample, &token.text)?,
                            None => self.printer.text(event.sample, &format!("{} ", token.id))?,
                        }
                    }
                    EventKind::Finished(end) => {
                        self.read += end.usage.prompt_tokens - end.usage.reused_tokens;
                        self.printer.text(event.sample, &end.text)?;
                        self.printer.end(event.sample)?;
                    }
                }
                self.reports[place].add(event.sample, event.kind);
            }
        }
        while let Some(report) = self.reports.get_mut(self.next).filter(|report| report.is_complete()) {
            self.failures.extend(report.failure());
            self.printer.report(report, self.tokenizer)?;
            *report = PromptReport::default();
            self.next += 1;
        }
        Ok(())
    }

    fn summarise(&self, samples: usize, start: Instant, seed: u64, foreseen: u64) {
        let Run { begun, first, read, made, .. } = *self;
        let (total, reading) =
            (start.elapsed().as_secs_f64(), first.map_or(0.0, |first| (first - start).as_secs_f64()));
        let memory = resident_peak_bytes().map_or(String::new(), |peak| {
            format!("; memory: {:.3} GB, {:.3} GB foreseen", peak as f64 / 1e9, foreseen as f64 / 1e9)
        });
        let speed = |tokens: usize, seconds: f64| tokens as f64 / seconds.max(1e-9);
        match begun {
            1 => {
                let (reads, writes) = (speed(read, reading), speed(made.saturating_sub(samples), total - reading));
                let read = counted(read, "token");
                eprintln!(
                    "{read} read, {reads:.1} tokens/s; {made} generated, {writes:.1} tokens/s; seed {seed}{memory}"
                );
            }
            _ => eprintln!(
                "{begun} prompts, {} read, {made} generated in {total:.1} s, {:.1} tokens/s; seed {seed}{memory}",
                counted(read, "token"),
                speed(made, total)
            ),
        }
    }
}

/// The way to print results.
enum Printer {
    /// As an object for each prompt.
    Json,
    /// As the texts of one prompt, one after the other, each while it is generated.
    Plain {
        /// The texts so far of the samples after the present one.
        texts: Vec<String>,
        ended: Vec<bool>,
        present: usize,
    },
}

impl Printer {
    fn plain(samples: usize) -> Printer {
        Printer::Plain { texts: vec![String::new(); samples], ended: vec![false; samples], present: 0 }
    }

    fn text(&mut self, sample: usize, text: &str) -> anyhow::Result<()> {
        let Printer::Plain { texts, present, .. } = self else { return Ok(()) };
        if sample != *present {
            texts[sample].push_str(text);
            return Ok(());
        }
        if text.is_empty() { Ok(()) } else { print(text) }
    }

    fn end(&mut self, sample: usize) -> anyhow::Result<()> {
        let Printer::Plain { texts, ended, present } = self else { return Ok(()) };
        ended[sample] = true;
        while *present < ended.len() && ended[*present] {
            print("\n")?;
            *present += 1;
            if *present < ended.len() {
                print(&format!("\n--- sample {}\n{}", *present + 1, texts[*present]))?;
            }
        }
        Ok(())
    }

    fn report(&self, report: &PromptReport, tokenizer: Option<&Tokenizer>) -> anyhow::Result<()> {
        match self {
            Printer::Json => print(&format!("{}\n", report.json(tokenizer)?)),
            Printer::Plain { .. } => Ok(()),
        }
    }
}
