//! `olmoe eval compare`

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use olmoe_eval::compare::{Comparison, Resampling, TaskValues, compare};
use olmoe_eval::score::TaskScore;
use olmoe_eval::statistics::{Average, QuestionValue};
use olmoe_eval::tables::comparison::comparison;
use olmoe_eval::tables::write::terminal;

use crate::flags::positive;
use crate::output::note;

/// Most changed questions of a task that the table names.
const SHOWN: usize = 8;

/// Compare two runs, question by question
///
/// Both answered the same questions, so what counts is the difference at each: its mean with a standard error of the
/// pairs, clustered where questions belong together; an interval by resampling the differences; McNemar's test where
/// values are 0 and 1; and which questions changed.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe eval compare results/base results/tuned
  olmoe eval compare results/bf16 results/q4_k_m --json

Files: reads scores/TASK.json of both folders.

Exit status: 0 done, 1 failed, 2 for wrong usage.")]
pub(super) struct CompareArgs {
    /// The folder of the first run
    #[arg(value_name = "A")]
    first: PathBuf,

    /// The folder of the second run
    #[arg(value_name = "B")]
    second: PathBuf,

    /// Metric to compare [default: the first of each task]
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,

    /// Resamplings of the bootstrap
    #[arg(long, value_name = "N", default_value = "10000", value_parser = positive)]
    resamples: usize,

    /// Seed of the resampling
    #[arg(long, value_name = "N", default_value = "1234")]
    seed: u64,

    /// Print one JSON object, with all changed questions
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let (first, second) = (names(&args.first)?, names(&args.second)?);
    let resampling = Resampling { resamples: args.resamples, seed: args.seed };
    let mut all = Vec::new();
    for name in first.intersection(&second) {
        let [first, second] = [&args.first, &args.second].map(|folder| values(folder, name, args.metric.as_deref()));
        let ((metric, average, first), (other, _, second)) = (first?, second?);
        let task = name.replace('+', ":");
        let of = |metric, values| TaskValues { task: &task, metric, average, values };
        all.push(compare(&of(&metric, &first), &of(&other, &second), resampling)?);
    }
    for name in first.symmetric_difference(&second) {
        note(format_args!("{} is in one run only and is left out", name.replace('+', ":")));
    }
    if all.is_empty() {
        bail!("{} and {} have no task in common", args.first.display(), args.second.display());
    }
    if args.json {
        println!("{}", serde_json::json!({ "tasks": all }));
    } else {
        print(&all);
    }
    Ok(ExitCode::SUCCESS)
}

/// The tasks with scores in a folder.
fn names(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let scores = folder.join("scores");
    let read = || format!("{}: there are no results of `olmoe eval`", folder.display());
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&scores).with_context(read)? {
        let path = entry.with_context(read)?.path();
        if path.extension().is_some_and(|ending| ending == "json") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    Ok(names)
}

/// The values of a metric of a task.
fn values(folder: &Path, name: &str, metric: Option<&str>) -> anyhow::Result<(String, Average, Vec<QuestionValue>)> {
    let path = folder.join("scores").join(format!("{name}.json"));
    let shown = path.display();
    let text = std::fs::read_to_string(&path).with_context(|| format!("{shown}: cannot be read"))?;
    let score: TaskScore = serde_json::from_str(&text).with_context(|| format!("{shown}: not the scores of a task"))?;
    let at = match metric {
        None => 0,
        Some(metric) => score.metrics.iter().position(|found| found.name == metric).with_context(|| {
            let names: Vec<&str> = score.metrics.iter().map(|metric| metric.name.as_str()).collect();
            format!("{shown}: no metric is called {metric:?}; there are {}", names.join(", "))
        })?,
    };
    let found = score.metrics.get(at).with_context(|| format!("{shown}: no metrics"))?;
    let average = if found.macro_average.is_some() { Average::Groups } else { Average::Questions };
    let values = score.questions.iter().map(|question| {
        let value = question.values.get(at).copied();
        let value =
            value.with_context(|| format!("{shown}: question {} has no value of {}", question.id, found.name))?;
        Ok(QuestionValue { id: question.id, value, group: question.group.clone() })
    });
    Ok((found.name.clone(), average, values.collect::<anyhow::Result<_>>()?))
}

fn print(all: &[Comparison]) {
    for line in terminal(&comparison(all)).lines() {
        println!("{line}");
    }
    for one in all.iter().filter(|one| !one.changed.is_empty()) {
        let shown: Vec<String> = one.changed.iter().take(SHOWN).map(|change| change.id.to_string()).collect();
        let rest = one.changed.len().saturating_sub(SHOWN);
        let rest = if rest > 0 { format!(" and {rest} more; --json has all") } else { String::new() };
        println!("{}: questions {} changed{rest}", one.task, shown.join(", "));
    }
    for one in all.iter().filter(|one| one.only_in != [0, 0]) {
        note(format_args!(
            "{}: {} questions only in A and {} only in B are left out",
            one.task, one.only_in[0], one.only_in[1]
        ));
    }
}
