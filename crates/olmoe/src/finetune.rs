//! `olmoe sft`, `olmoe dpo` and `olmoe kto`

mod data;
mod keys;
mod opening;
mod output;
mod preview;
mod prompts;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use olmoe_checkpoint::save::LATEST;
use olmoe_data::counted;
use olmoe_data::instruct::Encoded;
use olmoe_model::adapter::parameters_with;
use olmoe_train::config::Loaded;
use olmoe_train::finetune::config::{DataSize, FinetuneConfig};
use olmoe_train::finetune::{self, BaseModel, Examples, FinetuneData, FinetuneSettings, RunLength, Selection};
use olmoe_train::trainer::{Event, Outcome};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::flags::{Quiet, Threads, size};
use crate::interrupts::interrupts;
use crate::live::short;
use crate::output::{is_quiet, note};
use crate::train::{Progress, RunLog, SAVED, notice};
use crate::usage::usage;
use keys::{Dpo, Keys, Kto, OfTask, Sft};
use opening::Opened;
use table::Table;

/// Flags of the commands themselves, which are no keys.
pub(crate) const OWN_FLAGS: [&str; 9] =
    ["plan", "dry-run", "preview", "print-config", "offline", "threads", "quiet", "help", "version"];

/// Fine-tune a model on conversations: all weights, chosen ones, or adapters
///
/// CONFIG is a YAML file with open-instruct's names as keys; every key is a flag, too. The base may be a folder of Hugging
/// Face's format or OLMo's, a checkpoint of `olmoe train`, or a GGUF file, whose quantised weights stay so under adapters.
/// Rows are conversations (messages, ShareGPT, Alpaca, prompt and completion), texts or tokens, in .json, .jsonl, .csv or
/// .parquet files; only answers are learned. In output_dir there are checkpoints, metrics.jsonl, the same for TensorBoard,
/// and in the end the model, or the adapter in peft's layout. A run that was interrupted goes on with the same command, with
/// the same bits as if it had never stopped; on SIGINT or SIGTERM it saves after the step and exits with 75.
///
/// The command lines of OLMoE's README are taken as they stand behind `olmoe sft`.
#[derive(Args)]
#[command(
    override_usage = "olmoe sft [OPTIONS] [CONFIG] [--KEY VALUE]...",
    after_long_help = "\
Examples:
  olmoe sft -m allenai/OLMoE-1B-7B-0924 --train_file chats.jsonl --preview 2
  olmoe sft configs/olmoe-sft-lora.yml -m olmoe-q4_k_m.gguf --train_file chats.jsonl --plan
  olmoe sft configs/olmoe-sft-lora.yml -m olmoe-q4_k_m.gguf --train_file chats.jsonl
  olmoe sft -m base --dataset_mixer_list chats.jsonl 1.0 maths.parquet 500 --num_train_epochs 2
  olmoe sft --recipe olmoe_7b_finetune -m base --peft lora --train_file chats.jsonl

Files: reads CONFIG, the model and the files of rows; writes output_dir.

Exit status: 0 if the run is over, 1 if it failed, 2 for wrong usage, 75 if it saved before its end, after a signal, 130 or \
143 after a second signal."
)]
pub(crate) struct SftArgs {
    #[command(flatten)]
    pub(crate) run: TuneArgs<Sft>,
}

/// Tune a model on pairs of a better and a worse answer: DPO and its relatives
///
/// As `olmoe sft`, on rows with chosen and rejected answers; `olmoe help sft` has more. The reference is the model at the
/// start of the run; what it gives is computed before the first step and kept in a file.
#[derive(Args)]
#[command(
    override_usage = "olmoe dpo [OPTIONS] [CONFIG] [--KEY VALUE]...",
    after_long_help = "\
Examples:
  olmoe dpo -m tuned --train_file pairs.jsonl --preview 2
  olmoe dpo configs/olmoe-dpo-lora.yml -m olmoe-sft-q4_k_m.gguf --train_file pairs.jsonl
  olmoe dpo -m tuned --train_file pairs.jsonl --dpo_loss_type dpo_norm --dpo_beta 5 --eval_split 0.1

Files: reads CONFIG, the model and the files of rows; writes output_dir.

Exit status: 0 if the run is over, 1 if it failed, 2 for wrong usage, 75 if it saved before its end, after a signal, 130 or \
143 after a second signal."
)]
pub(crate) struct DpoArgs {
    #[command(flatten)]
    pub(crate) run: TuneArgs<Dpo>,
}

/// Tune a model on answers that are good or bad: KTO and its relatives
///
/// As `olmoe sft`, on rows with a column `label` beside the answer; `olmoe help sft` has more. Pairs are taken as two
/// answers.
#[derive(Args)]
#[command(
    override_usage = "olmoe kto [OPTIONS] [CONFIG] [--KEY VALUE]...",
    after_long_help = "\
Examples:
  olmoe kto -m tuned --train_file answers.jsonl --preview 2
  olmoe kto configs/olmoe-kto.yml -m tuned --train_file answers.jsonl --optim adamw

Files: reads CONFIG, the model and the files of rows; writes output_dir.

Exit status: 0 if the run is over, 1 if it failed, 2 for wrong usage, 75 if it saved before its end, after a signal, 130 or \
143 after a second signal."
)]
pub(crate) struct KtoArgs {
    #[command(flatten)]
    pub(crate) run: TuneArgs<Kto>,
}

/// What the commands have in common.
#[derive(Args)]
pub(crate) struct TuneArgs<T: OfTask> {
    /// Configuration, a YAML file
    #[arg(value_name = "CONFIG")]
    config: Option<PathBuf>,

    /// Say what is trained, what the run needs and how long it is; nothing is trained or written
    #[arg(long, visible_alias = "dry-run")]
    plan: bool,

    /// Show the first N rows as tokens, with what is learned of them, and end
    #[arg(long, value_name = "N", value_parser = crate::flags::positive)]
    preview: Option<usize>,

    /// Print the whole configuration with all defaults, and end
    #[arg(long)]
    print_config: bool,

    /// Use only files of the hub downloaded before; an error if one is missing
    #[arg(long)]
    offline: bool,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    quiet: Quiet,

    #[command(flatten)]
    keys: Keys<T>,
}

pub(crate) fn run<T: OfTask>(args: &TuneArgs<T>) -> anyhow::Result<ExitCode> {
    let task = T::TASK;
    let Loaded { config, notices } = FinetuneConfig::read(task, args.config.as_deref(), &args.keys.given)?;
    if args.print_config {
        println!("{}", config.to_yaml(task).trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    args.threads.apply();
    notices.iter().for_each(note);
    let max_memory = match config.max_memory.as_deref().map(size) {
        None => None,
        Some(Ok(bytes)) => Some(bytes),
        Some(Err(expected)) => return Err(usage(format_args!("`max_memory`: {expected}"))),
    };
    // What is missing is said before a model is loaded.
    config.sources(task)?;
    config.evaluation_sources()?;
    let opened = Opened::new(&config, args.offline)?;
    let model = opened.config();
    let options = config.encode_options(model, opened.template.marks_answers())?;
    let ends_here = args.plan || args.preview.is_some();
    let rows = data::rows(task, &config, &opened, &options, !ends_here)?;
    if let Some(count) = args.preview {
        preview::show(&rows.train[..count.min(rows.train.len())], &opened.tokenizer)?;
        return Ok(ExitCode::SUCCESS);
    }

    let lengths: Vec<usize> = rows.train.iter().map(length).collect();
    let size = DataSize { lengths: &lengths, evaluates: rows.evaluation.is_some() };
    let mut settings = config.settings(task, model, size)?;
    settings.max_memory = max_memory;
    let adapters = output::adapters(&config, model, args.offline)?;
    settings.adapters = adapters.as_ref().map_or(Vec::new(), |adapters| adapters.list.clone());
    settings.check()?;
    let specs = parameters_with(model, &settings.adapters)?;
    let selection = Selection::resolve(&settings.train, model, &specs)?;
    let mut base = BaseModel::open(&opened.path)?;
    if let Some(adapters) = adapters {
        base = adapters.over(base);
    }
    let table = Table::new(model, &specs, &selection, &base.encodings, settings.precision);
    let say = |text: &str| match args.plan {
        true => println!("{text}"),
        false if is_quiet() => {}
        false => eprintln!("{text}"),
    };
    table.lines.iter().for_each(|line| say(line));
    table::adapters(&settings.adapters).iter().for_each(|text| say(text));
    say(&in_words(&settings, rows.train.len()));
    let data =
        FinetuneData { train: Examples::of(rows.train)?, evaluation: rows.evaluation.map(Examples::of).transpose()? };
    let memory = finetune::plan(&settings, &base, &data.train)?;
    // The table above has its first lines, in more detail.
    memory.to_string().lines().last().into_iter().for_each(|line| say(&format!("memory: {line}")));
    if args.plan {
        println!("nothing was written");
        return Ok(ExitCode::SUCCESS);
    }

    let folder = settings.saving.folder.clone();
    std::fs::create_dir_all(&folder)
        .map_err(|error| anyhow::anyhow!("cannot make the folder {}: {error}", folder.display()))?;
    prompts::set(&config, &opened, &mut settings)?;
    let interrupt = interrupts(&[SIGINT, SIGTERM])?;
    let mut early = |event: Event<'_>| notice(&event);
    let mut trainer = finetune::begin(settings, base, data, &interrupt, &mut early)?;
    let last_step = trainer.task().steps();
    let sampled = trainer.config().samples.is_some().then(|| trainer.sampled_up_to()).transpose()?;
    let mut log = RunLog::open(&folder, trainer.state().step, sampled, last_step)?;
    let what = format!("{} of {} trained", short(table.trained as f64), counted(table.all, "parameter"));
    let mut progress = Progress::of_tuning(config.logging_steps, last_step, what);
    progress.begin(trainer.state());
    let outcome = trainer.run(&interrupt, &mut |event| {
        notice(&event);
        progress.show(&event);
        log.observe(&event);
    })?;
    progress.end(outcome, trainer.state());
    match outcome {
        Outcome::Finished | Outcome::EarlyStop => {
            output::write(&config, &opened, &trainer, outcome)?;
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted | Outcome::TimeLimit => {
            anyhow::ensure!(folder.join(LATEST).exists(), "the run ended before its time and has not saved");
            Ok(ExitCode::from(SAVED))
        }
    }
}

/// Tokens of a row.
fn length(row: &Encoded) -> usize {
    match row {
        Encoded::Example(example) => example.ids.len(),
        Encoded::Pair(pair) => pair.chosen.ids.len() + pair.rejected.ids.len(),
        Encoded::Labelled(labelled) => labelled.example.ids.len(),
    }
}

/// The run in a line.
fn in_words(settings: &FinetuneSettings, rows: usize) -> String {
    let optimizer = &settings.optimizer;
    let length = match settings.length {
        RunLength::Epochs(epochs) => format!("{epochs} epochs"),
        RunLength::Steps(steps) => counted(steps, "step"),
    };
    let what = if settings.packing.is_some() { "packed sequence" } else { "row" };
    format!(
        "{} of {}, {length}, {} a step; {}, learning rate {:e}",
        settings.method.name(),
        counted(rows as u64, "row"),
        counted(settings.batch_size as u64, what),
        optimizer.name,
        optimizer.learning_rate,
    )
}
