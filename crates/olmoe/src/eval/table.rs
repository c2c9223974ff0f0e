//! `olmoe eval table`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use olmoe_eval::suites::dclm::Baselines;
use olmoe_eval::tables::{Model, adaptation, dclm, olmes, write};
use serde_json::Value;

use super::report::print_lines;

/// Write the table of a suite for several models
///
/// A row or a column a model, as in the papers: OLMES with the better formulation of each task, DCLM with Core and Extended
/// as OLMoE's script writes them, or the seven numbers after adaptation with their mean. A number is missing where a model
/// was not asked.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe eval table olmes results/base results/tuned
  olmoe eval table dclm results/base --format latex --baselines v1

Files: reads results.json of each folder.

Exit status: 0 done, 1 failed, 2 for wrong usage.")]
pub(super) struct TableArgs {
    /// The suite
    #[arg(value_enum, value_name = "SUITE")]
    suite: Suite,

    /// Folders of results, one for each model
    #[arg(value_name = "DIR", required = true)]
    folders: Vec<PathBuf>,

    /// How the table is written
    #[arg(long, value_enum, value_name = "FORM", default_value = "terminal")]
    format: TableForm,

    /// DCLM: random baselines before or since September 2025; OLMoE's paper has the first
    #[arg(long, value_enum, value_name = "VERSION", default_value = "v1")]
    baselines: Version,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// OLMES v0.1
    Olmes,
    /// DCLM
    Dclm,
    /// After adaptation
    Adaptation,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TableForm {
    /// In columns
    Terminal,
    /// Markdown
    Markdown,
    /// LaTeX
    Latex,
    /// Values between tabs
    Tsv,
    /// One JSON object
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Version {
    /// Before September 2025
    V1,
    /// Since then
    V2,
}

pub(super) fn run(args: &TableArgs) -> anyhow::Result<ExitCode> {
    // The tables of DCLM and of adaptation name tasks without their suite.
    let prefix = match args.suite {
        Suite::Olmes => "",
        Suite::Dclm => "dclm:",
        Suite::Adaptation => "adaptation:",
    };
    let models = args.folders.iter().map(|folder| model(folder, prefix)).collect::<anyhow::Result<Vec<_>>>()?;
    let table = match args.suite {
        Suite::Olmes => olmes::olmes(&models),
        Suite::Adaptation => adaptation::adaptation(&models),
        Suite::Dclm => dclm::dclm(
            &models,
            match args.baselines {
                Version::V1 => Baselines::V1,
                Version::V2 => Baselines::V2,
            },
        ),
    };
    match args.format {
        TableForm::Terminal => print_lines(&write::terminal(&table)),
        TableForm::Markdown => print_lines(&write::markdown(&table)),
        TableForm::Latex => print_lines(&write::latex(&table)),
        TableForm::Tsv => print_lines(&write::tsv(&table)),
        TableForm::Json => println!("{}", write::json(&table)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The numbers of a folder's tasks whose names begin with `prefix`, without it, and of what was made of several.
fn model(folder: &Path, prefix: &str) -> anyhow::Result<Model> {
    let path = folder.join("results.json");
    let shown = path.display();
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("{shown}: there are no results of `olmoe eval`"))?;
    let found: Value =
        serde_json::from_str(&text).with_context(|| format!("{shown}: not the results of `olmoe eval`"))?;
    let mut results = BTreeMap::new();
    for part in ["tasks", "aggregates"] {
        let Some(all) = found[part].as_object() else { bail!("{shown}: it has no {part}") };
        for (name, value) in all {
            let number = if part == "tasks" { value["value"].as_f64() } else { value.as_f64() };
            if let (Some(name), Some(number)) = (name.strip_prefix(prefix), number) {
                results.insert(name.to_owned(), number);
            }
        }
    }
    let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
    Ok(Model { name, results })
}
