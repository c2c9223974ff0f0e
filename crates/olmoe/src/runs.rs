//! `olmoe runs`

mod plot;
mod run;
mod table;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use olmoe_analysis::Picture;
use olmoe_train::metrics::{EXPERT_LOAD, FILE_NAME, LEARNING_RATE, LOSS};

use crate::flags::positive;
use run::Run;

/// How many levels of folders below the given one are searched for runs.
const MAX_DEPTH: usize = 4;
/// How many names are suggested for an unknown one.
const SUGGESTIONS: usize = 5;

/// Show training runs: a table, or curves as a picture
///
/// A run is a folder with a metrics.jsonl; a folder without one is searched for runs. A run may still be in progress.
/// The loss and other metrics are the mean of the last --smooth records; `best eval` is the lowest cross-entropy of an
/// evaluation, the mean over its data sets.
///
/// Any name in metrics.jsonl is a metric, such as optim/total_grad_norm or eval/c4_en-validation/Perplexity.
/// train/MaxExpertLoad is computed from the shares of the experts: the share of the busiest expert over the mean, in
/// the worst layer, so 1 is balanced.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe runs
  olmoe runs runs/ --metric train/CrossEntropyLoss --metric optim/total_grad_norm
  olmoe runs runs/a runs/b --plot loss.svg --x tokens
  olmoe runs runs/a --plot load.png --metric train/MaxExpertLoad --log y --smooth 50
  olmoe runs runs/ --json

Files: reads metrics.jsonl of each run; writes FILE of --plot.

Exit status: 0 done, 1 if there is no run or one could not be read, 2 for wrong usage.")]
pub(crate) struct RunsArgs {
    /// Folders of runs, or folders that contain such folders
    #[arg(value_name = "DIR", default_value = ".")]
    folders: Vec<PathBuf>,

    /// Metric to show; may be given several times [default: the loss, and in a picture learning rate and expert load]
    #[arg(long = "metric", value_name = "NAME")]
    metrics: Vec<String>,

    /// Number of last records whose mean is shown at each place; 1 shows the values themselves
    #[arg(long, value_name = "N", default_value = "20", value_parser = positive)]
    smooth: usize,

    /// Draw curves into this file, .svg or .png
    #[arg(long, value_name = "FILE", conflicts_with = "json", help_heading = "Picture")]
    plot: Option<PathBuf>,

    /// Horizontal axis of the picture
    #[arg(long, value_name = "AXIS", default_value = "steps", requires = "plot", help_heading = "Picture")]
    x: XAxis,

    /// Axes of the picture with a logarithmic scale
    #[arg(long, value_name = "AXIS", value_delimiter = ',', requires = "plot", help_heading = "Picture")]
    log: Vec<LogAxis>,

    /// Title of the picture
    #[arg(long, value_name = "TEXT", requires = "plot", help_heading = "Picture")]
    title: Option<String>,

    /// Print one JSON object: runs, an array
    #[arg(long)]
    json: bool,
}

/// The horizontal axis of curves.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum XAxis {
    /// Steps of the optimizer
    Steps,
    /// Tokens seen
    Tokens,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogAxis {
    /// The horizontal axis
    X,
    /// The vertical axis of every panel
    Y,
}

pub(crate) fn run(args: &RunsArgs) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.plot {
        Picture::check_name(path)?;
    }
    let folders = find(&args.folders)?;
    let defaults: &[&str] = if args.plot.is_some() { &[LOSS, LEARNING_RATE, EXPERT_LOAD] } else { &[LOSS] };
    let chosen = !args.metrics.is_empty();
    let mut metrics = if chosen { args.metrics.clone() } else { defaults.iter().map(|name| (*name).into()).collect() };
    let mut seen = BTreeSet::new();
    metrics.retain(|name| seen.insert(name.clone()));

    let (mut runs, mut failed) = (Vec::new(), false);
    for folder in &folders {
        match Run::read(folder, &metrics) {
            Ok(run) => runs.push(run),
            // The other runs can still be shown.
            Err(error) => {
                eprintln!("error: {error}");
                failed = true;
            }
        }
    }
    // The message is printed already.
    if runs.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    if chosen {
        metrics.iter().try_for_each(|name| check_metric(name, &runs))?;
    }
    match &args.plot {
        Some(path) => {
            let title = args.title.clone().unwrap_or_default();
            let (x, log) = (args.x, &args.log);
            let picture = plot::draw(&runs, &metrics, args.smooth, title, x, log)?;
            picture.write(path)?;
            println!("{}", path.display());
        }
        None if args.json => println!("{}", serde_json::to_string_pretty(&table::json(&runs, &metrics, args.smooth))?),
        None => table::lines(&runs, &metrics, args.smooth).iter().for_each(|line| println!("{line}")),
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The folders of runs, in the given order and below that by name, each once.
fn find(folders: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in folders {
        let before = found.len();
        if folder.ends_with(FILE_NAME) && folder.is_file() {
            let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
            found.push(parent.unwrap_or(Path::new(".")).to_owned());
        } else {
            // An error matters for the given folder only; a folder below it that cannot be read is not a run.
            std::fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
            search(folder, 0, &mut found);
        }
        if found.len() == before {
            anyhow::bail!(
                "no run in {}: neither it nor a folder below it has a {FILE_NAME}; training writes one into its save_folder",
                folder.display()
            );
        }
    }
    let mut seen = BTreeSet::new();
    found.retain(|folder| seen.insert(std::fs::canonicalize(folder).unwrap_or_else(|_| folder.clone())));
    Ok(found)
}

fn search(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    if folder.join(FILE_NAME).exists() {
        found.push(folder.to_owned());
        return;
    }
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    // A link may lead back to a folder above.
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut folders: Vec<PathBuf> = folders.map(|entry| entry.path()).collect();
    folders.sort();
    if depth < MAX_DEPTH {
        folders.iter().for_each(|folder| search(folder, depth + 1, found));
    }
}

/// Fails if no run has a metric of that name.
fn check_metric(name: &str, runs: &[Run]) -> anyhow::Result<()> {
    if runs.iter().any(|run| run.series.iter().any(|series| series.name == name && !series.values.is_empty())) {
        return Ok(());
    }
    let lower = name.to_lowercase();
    let known: BTreeSet<&str> = runs.iter().flat_map(|run| run.names.iter().map(String::as_str)).collect();
    // Names that contain the given one come first, then the most similar.
    let mut ranked: Vec<(f64, &str)> = (known.iter())
        .map(|&name| {
            let candidate = name.to_lowercase();
            (if candidate.contains(&lower) { 2.0 } else { strsim::jaro_winkler(&candidate, &lower) }, name)
        })
        .filter(|(likeness, _)| *likeness > 0.6)
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.len().cmp(&b.1.len())).then(a.1.cmp(b.1)));
    let names: Vec<&str> = ranked.iter().take(SUGGESTIONS).map(|(_, name)| *name).collect();
    let hint = match (names.is_empty(), known.is_empty()) {
        (false, _) => format!("similar ones are {}", names.join(", ")),
        (true, false) => format!("there are {}", known.into_iter().take(SUGGESTIONS).collect::<Vec<_>>().join(", ")),
        (true, true) => "the runs have no records yet".to_owned(),
    };
    anyhow::bail!("no run has the metric `{name}`; {hint}")
}
