//! `olmoe train`

mod progress;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Command};
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::convert::Conversion;
use olmoe_checkpoint::save::LATEST;
use olmoe_data::counted;
use olmoe_model::model::Precision;
use olmoe_tensor::gemm::Operand;
use olmoe_tensor::limits::peak_flops;
use olmoe_train::config::{Duration as Length, Loaded, TrainConfig};
use olmoe_train::metrics::{EventFile, MAX_STEPS, MetricsError, MetricsLog, Record, Sample, SampleLog};
use olmoe_train::plan::{Plan, flops_per_token};
use olmoe_train::state::TrainerState;
use olmoe_train::trainer::{Event, Outcome, Trainer, instances};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::flags::{ExpertsArg, Quiet, Threads, To};
use crate::interrupts::interrupts;
use crate::live::duration;
use crate::output::{is_quiet, note, warn};
use progress::Progress;

const PEAK_TIME: Duration = Duration::from_millis(300);
/// The exit status of a run that has saved before its end.
const SAVED: u8 = 75;
/// The share of the peak that the estimate of a dry run assumes.
const SUPPOSED_SHARE: f64 = 0.5;

/// Train a model by an OLMo configuration
///
/// CONFIG is a YAML file with OLMo's keys; --section.key=value changes one of them, and a bare --section.key is true.
/// All files go into save_folder: checkpoints step-N and `latest`, config.yaml, metrics.jsonl with a JSON object for
/// each step, and the same metrics for TensorBoard; with a section `samples`, also samples.jsonl, texts that the model
/// generates during training. An interrupted run resumes with --try_load_latest_save, with the same bits as if it had
/// never stopped. On SIGINT or SIGTERM it saves after the step and exits with 75; a second signal ends it at once.
#[derive(Args)]
#[command(
    override_usage = "olmoe train [OPTIONS] CONFIG [--KEY=VALUE]...",
    after_long_help = "\
Examples:
  olmoe train configs/tiny-train.yml --run_name=first --save_folder=runs/first
  olmoe train configs/tiny-train.yml --save_folder=runs/first --try_load_latest_save \\
      --optimizer.learning_rate=1e-3
  olmoe train configs/tiny-train.yml --dry-run
  olmoe train configs/tiny-train.yml --samples='{prompts: [Once upon a time], interval: 100}'
  olmoe convert runs/first/latest first-hf --to hf

Files: reads CONFIG and the token files that it names; writes save_folder.

Exit status: 0 if the run is finished, 1 if it failed, 2 for wrong usage, 75 if it saved before its end, after a signal or \
at its time_limit, 130 or 143 after a second signal."
)]
pub(crate) struct TrainArgs {
    /// Configuration, a YAML file
    #[arg(value_name = "CONFIG")]
    config: PathBuf,

    /// Changes to the configuration: --section.key=value
    #[arg(value_name = "--KEY=VALUE", last = true)]
    overrides: Vec<String>,

    /// Print the whole configuration with all defaults, and exit
    #[arg(long)]
    print_config: bool,

    /// Print what the run needs and how long it takes; nothing is trained or written
    #[arg(long)]
    dry_run: bool,

    /// Convert the last checkpoint when the run is over, to save_folder/step-N-FORMAT
    #[arg(long, value_enum, value_name = "FORMAT")]
    export: Option<To>,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    _quiet: Quiet,
}

/// Moves changes of the configuration, which look like flags, to the end, after `--`.
pub(crate) fn keys_last(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.collect::<Vec<_>>();
    if arguments.get(1).is_none_or(|command| command != "train") {
        return arguments;
    }
    let rest = arguments.split_off(2);
    let command = TrainArgs::augment_args(Command::new("train"));
    let is_flag = |text: &str| {
        let name = text.trim_start_matches('-').split('=').next().unwrap_or_default();
        name == "help" || command.get_arguments().any(|argument| argument.get_long() == Some(name))
    };
    let is_key = |argument: &OsString| {
        argument.to_str().is_some_and(|text| text.starts_with("--") && text.len() > 2 && !is_flag(text))
    };
    let (keys, others): (Vec<_>, Vec<_>) = rest.into_iter().filter(|argument| argument != "--").partition(is_key);
    arguments.extend(others);
    if !keys.is_empty() {
        arguments.push("--".into());
        arguments.extend(keys);
    }
    arguments
}

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let Loaded { config, notices } = TrainConfig::read(&args.config, &args.overrides)?;
    if args.print_config {
        println!("{}", config.to_yaml()?.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    args.threads.apply();
    notices.iter().for_each(note);
    if args.dry_run || config.dry_run {
        dry_run(&args.config, &config)?;
        return Ok(ExitCode::SUCCESS);
    }
    let interrupt = interrupts(&[SIGINT, SIGTERM])?;
    let mut early = |event: Event<'_>| notice(&event);
    let mut trainer = Trainer::new(config, &mut early).map_err(|error| error.in_file(&args.config))?;
    let plan = trainer.plan()?;
    let folder = PathBuf::from(&trainer.config().save_folder);
    let mut metrics = Metrics::open(&folder, &trainer, plan.last_step)?;
    // Without progress output, the share of the peak is not needed.
    let peak = if is_quiet() { 0.0 } else { peak(trainer.config()) };
    let mut progress = Progress::new(trainer.config(), &plan, peak);
    progress.begin(trainer.state());
    let mut failed = None;
    let outcome = trainer.run(&interrupt, &mut |event| {
        notice(&event);
        progress.show(&event);
        let recorded = match &event {
            Event::Step(report, values) => metrics.record(report.step, values),
            Event::Evaluated(step, values) => metrics.record(*step, values),
            Event::Sampled(samples) => metrics.record_samples(samples),
            Event::Saved(..) => metrics.sync(),
            Event::Notice(_) => Ok(()),
        };
        if let Err(error) = recorded {
            // A full disk should cost the run its log only.
            if failed.is_none() {
                warn(format_args!("{error}; no further metrics are written"));
            }
            failed.get_or_insert(());
        }
    })?;
    progress.end(outcome, trainer.state());
    let saved = folder.join(LATEST).exists();
    match (outcome, args.export) {
        (Outcome::Finished | Outcome::EarlyStop, Some(format)) => export(&folder, trainer.state().step, format)?,
        (Outcome::Finished | Outcome::EarlyStop, None) => {}
        (Outcome::Interrupted | Outcome::TimeLimit, _) => {
            anyhow::ensure!(
                saved,
                "the run ended before its time, and save_num_checkpoints_to_keep=0 kept it from saving"
            );
            return Ok(ExitCode::from(SAVED));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the metrics of a run's steps, as JSON Lines and for TensorBoard.
struct Metrics {
    lines: MetricsLog,
    samples: Option<SampleLog>,
    events: EventFile,
    /// Metrics of the run's steps that are not written yet.
    max_steps: Option<u64>,
}

impl Metrics {
    /// Continues after `step`. Metrics of later steps, from before an end without a checkpoint, are removed.
    fn open(folder: &Path, trainer: &Trainer, max_steps: u64) -> anyhow::Result<Metrics> {
        let step = trainer.state().step;
        let lines = MetricsLog::open(folder, step)?;
        let events = EventFile::create(folder, step, SystemTime::now())?;
        let samples = match trainer.config().samples {
            Some(_) => Some(SampleLog::open(folder, trainer.sampled_up_to()?)?),
            None => None,
        };
        Ok(Metrics { lines, samples, events, max_steps: Some(max_steps) })
    }

    fn record_samples(&mut self, samples: &[Sample]) -> Result<(), MetricsError> {
        for (i, sample) in samples.iter().enumerate() {
            self.samples.as_mut().map_or(Ok(()), |log| log.append(sample))?;
            self.events.append_text(&format!("samples/{i}"), sample, SystemTime::now())?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), MetricsError> {
        self.lines.sync()?;
        self.samples.as_ref().map_or(Ok(()), SampleLog::sync)
    }

    fn record(&mut self, step: u64, values: &[(String, f64)]) -> Result<(), MetricsError> {
        if values.is_empty() {
            return Ok(());
        }
        let mut record = Record::new(step);
        for (name, value) in values {
            record.push(name.clone(), *value);
        }
        if let Some(steps) = self.max_steps.take() {
            record.push(MAX_STEPS, steps as f64);
        }
        self.lines.append(&record)?;
        self.events.append(&record, SystemTime::now())
    }
}

fn notice(event: &Event<'_>) {
    if let Event::Notice(text) = event {
        note(text);
    }
}

/// The operations per second that the machine can do in the configuration's precision.
fn peak(config: &TrainConfig) -> f64 {
    let operand = match config.precision() {
        Some(Precision::AmpBf16) => Operand::Bf16,
        Some(Precision::Fp32) | None => Operand::F32,
    };
    peak_flops(operand, PEAK_TIME)
}

fn dry_run(path: &Path, config: &TrainConfig) -> anyhow::Result<()> {
    let state = TrainerState::start(config);
    let known = instances(config).map_err(|error| error.in_file(path));
    let plan = Plan::new(config, &state, known.as_ref().map_or(u64::from(u32::MAX), |count| *count))?;
    println!("{}, {} of them for each token", counted(plan.parameters.total, "parameter"), plan.parameters.active);
    println!("{:.2} GB of memory at least; activations come on top", plan.memory as f64 / 1e9);
    println!("{:.2} GB a checkpoint", plan.checkpoint as f64 / 1e9);
    match &known {
        Ok(instances) => println!(
            "{} of {}, {} an epoch",
            counted(instances, "sequence"),
            counted(config.model.max_sequence_length, "token"),
            counted(plan.batches_per_epoch, "batch")
        ),
        Err(problem) => {
            println!("data cannot be read: {problem}");
            let ends = config.stop_at.is_some() || config.stop_after.is_some();
            if let (Length::Epochs(epochs), false) = (config.max_duration, ends) {
                println!(
                    "steps of {}; the length of the data is not known, and so neither is that of {}; nothing was written",
                    counted(plan.tokens_per_step, "token"),
                    counted(epochs, "epoch")
                );
                return Ok(());
            }
            println!("the estimate below assumes enough of it");
        }
    }
    let tokens = plan.steps.saturating_mul(plan.tokens_per_step);
    println!(
        "{} of {}, {} in all",
        counted(plan.steps, "step"),
        counted(plan.tokens_per_step, "token"),
        counted(tokens, "token")
    );
    let flops = flops_per_token(&config.model, config.model.max_sequence_length)?;
    let seconds = tokens as f64 * flops / (peak(config) * SUPPOSED_SHARE);
    println!(
        "about {} at {:.0} % of the multiply-add peak measured now; nothing was written",
        Duration::try_from_secs_f64(seconds).map_or("forever".into(), duration),
        SUPPOSED_SHARE * 100.0
    );
    Ok(())
}

fn export(folder: &Path, step: u64, format: To) -> anyhow::Result<()> {
    let name = match format {
        To::Hf => "hf",
        To::Olmo => "olmo",
        To::Gguf => "gguf",
    };
    let checkpoint = Checkpoint::open(&folder.join(LATEST))?;
    let companions = Companions::of(&checkpoint, None, false)?;
    let conversion = Conversion::plan(&checkpoint, &companions, format.target(None, ExpertsArg::Separate))?;
    companions.notices.iter().chain(&conversion.notices).for_each(note);
    let separator = if format == To::Gguf { '.' } else { '-' };
    let out = folder.join(format!("step-{step}{separator}{name}"));
    conversion.run(&out, false, &|_| {})?;
    if !is_quiet() {
        eprintln!("exported to {}", out.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_flags_come_in_any_order() {
        for (given, expected) in [
            ("olmoe train c.yml", "olmoe train c.yml"),
            ("olmoe train c.yml --a.b=1 --quiet --c", "olmoe train c.yml --quiet -- --a.b=1 --c"),
            (
                "olmoe train --a=--b c.yml --threads 2 --export=hf",
                "olmoe train c.yml --threads 2 --export=hf -- --a=--b",
            ),
            ("olmoe train c.yml -- --a=1 -h", "olmoe train c.yml -h -- --a=1"),
            ("olmoe bench --a=1", "olmoe bench --a=1"),
            ("olmoe", "olmoe"),
        ] {
            let arranged = keys_last(given.split(' ').map(Into::into));
            let text: Vec<&str> = arranged.iter().filter_map(|argument| argument.to_str()).collect();
            assert_eq!(text.join(" "), expected);
        }
    }
}
