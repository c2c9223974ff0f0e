//! `olmoe train`

mod log;
mod progress;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::convert::Conversion;
use olmoe_checkpoint::save::LATEST;
use olmoe_data::counted;
use olmoe_model::model::Precision;
use olmoe_tensor::gemm::Operand;
use olmoe_tensor::limits::peak_flops;
use olmoe_train::config::{Duration as Length, Loaded, TrainConfig};
use olmoe_train::plan::{Plan, flops_per_token};
use olmoe_train::state::TrainerState;
use olmoe_train::trainer::{Event, Outcome, Trainer, instances};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::flags::{ExpertsArg, Quiet, Threads, To};
use crate::interrupts::interrupts;
use crate::live::duration;
use crate::output::{is_quiet, note};
pub(crate) use log::RunLog;
pub(crate) use progress::Progress;

const PEAK_TIME: Duration = Duration::from_millis(300);
/// The exit status of a run that has saved and is not over.
pub(crate) const SAVED: u8 = 75;
/// The share of the peak that the estimate of a dry run supposes.
const SUPPOSED_SHARE: f64 = 0.5;

/// Train a model as a configuration of OLMo's says
///
/// CONFIG is a YAML file with OLMo's keys; --section.key=value changes one of them, and a bare --section.key is true.
/// Everything is written into save_folder: checkpoints step-N with `latest`, config.yaml, metrics.jsonl with a line of JSON
/// for each step, and the same for TensorBoard; with a section `samples`, also samples.jsonl, texts that the model writes
/// meanwhile. A run that is interrupted goes on with --try_load_latest_save, with the same bits as if it had never
/// stopped. On SIGINT or SIGTERM it saves after the step and exits with 75; a second signal ends it at once.
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

Exit status: 0 if the run is over, 1 if it failed, 2 for wrong usage, 75 if it saved before its end, after a signal or \
at its time_limit, 130 or 143 after a second signal."
)]
pub(crate) struct TrainArgs {
    /// Configuration, a YAML file
    #[arg(value_name = "CONFIG")]
    config: PathBuf,

    /// Changes to the configuration: --section.key=value
    #[arg(value_name = "--KEY=VALUE", last = true)]
    overrides: Vec<String>,

    /// Print the whole configuration with all defaults, and end
    #[arg(long)]
    print_config: bool,

    /// Say what the run needs and how long it is; nothing is trained or written
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
    let sampled = trainer.config().samples.is_some().then(|| trainer.sampled_up_to()).transpose()?;
    let mut log = RunLog::open(&folder, trainer.state().step, sampled, plan.last_step)?;
    // Without progress nobody sees the share of the peak.
    let peak = if is_quiet() { 0.0 } else { peak(trainer.config()) };
    let mut progress = Progress::new(trainer.config(), &plan, peak);
    progress.begin(trainer.state());
    let outcome = trainer.run(&interrupt, &mut |event| {
        notice(&event);
        progress.show(&event);
        log.observe(&event);
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

/// Says what a run has to say.
pub(crate) fn notice(event: &Event<'_>) {
    if let Event::Notice(text) = event {
        note(text);
    }
}

/// Operations a second that the machine can do in the configuration's precision.
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
            println!("enough of it is supposed below");
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
