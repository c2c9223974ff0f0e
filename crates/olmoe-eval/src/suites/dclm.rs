//! DCLM (Li et al., arXiv 2406.11794): the 22 tasks of the core and the 53 of the extended set, asked as LLM Foundry asks
//! them.
//!
//! The data is the folder `scripts/eval/local_data` of <https://github.com/mosaicml/llm-foundry>, for GPQA the folder
//! `gpqa_data` that DCLM's own script makes; two files can also be [`rebuilt`] of OLMo's. Results are centred,
//! `(accuracy − baseline) / (1 − baseline)`, so that guessing gets 0, and averaged. There are two tables of [`Baselines`]:
//! numbers by one cannot be compared with those by the other.
//!
//! LLM Foundry cuts contexts so that they have 2,048 tokens with their continuation, whatever the model takes: [`CONTEXT`]. It
//! encodes shots and question apart; here they are one text. Both are the same for tokenizers that never join a line break
//! with what stands before it, such as OLMoE's.

mod nanochat;
mod prompts;
pub mod rebuilt;
mod table;

use std::collections::BTreeMap;

use serde_json::json;

use super::Listed;
use crate::encoding::Encoding;
use crate::error::EvalError;
use crate::metric::{ChainOfThought, Metric, Normalization};
use crate::score::{Aggregate, Part, Rule, TaskScore};
use crate::source::{Roots, Rows};
use crate::task::{Options, Task, TaskError};

pub use nanochat::questions as nanochat_questions;
pub use table::{Baselines, Kind, Line, lines};

/// The suite's name.
pub const NAME: &str = "dclm";
/// The name of the core as nanochat asks it.
pub const NANOCHAT: &str = "core-nanochat";
/// The most tokens of a context with its continuation, or with what may be generated.
pub const CONTEXT: usize = 2048;

/// Counts the tokens of a text.
pub type TokenCount<'a> = &'a dyn Fn(&str) -> usize;

/// The most tokens of generated answers with OLMoE's tokenizer and LLM Foundry's files.
const LONGEST: [(&str, usize); 5] =
    [("triviaqa_sm_sub", 11), ("gsm8k_cot", 314), ("agi_eval_sat_math_cot", 616), ("aqua_cot", 290), ("svamp_cot", 31)];

/// Whether there is such a part of the suite: none and `core`, `extended`, or the name of a task.
pub fn is_part(part: Option<&str>) -> bool {
    part.is_none_or(|part| ["core", "extended"].contains(&part) || line(part).is_some())
}

fn line(name: &str) -> Option<Line> {
    lines().find(|line| line.name == name)
}

/// All names of the suite.
pub fn list() -> Vec<Listed> {
    let listed = |name: String, about: String| Listed { name, about };
    let mut list = vec![
        listed(NAME.into(), "DCLM, the 22 tasks of the core".into()),
        listed("dclm:extended".into(), "DCLM, all 53 tasks".into()),
        listed(NANOCHAT.into(), "the core as nanochat asks it; not comparable with DCLM's".into()),
    ];
    let about = |line: &Line| format!("DCLM: {}, {} shots, {:?}", line.label, line.shots, line.kind);
    list.extend(lines().map(|line| listed(format!("{NAME}:{}", line.name), about(&line))));
    list
}

/// The tasks of a part. `count` is used for how long generated answers may be; without it, the lengths are those with
/// OLMoE's tokenizer.
///
/// # Errors
/// [`EvalError`] if data is missing, or a row is not of its task's type.
pub fn tasks(
    part: Option<&str>,
    roots: &Roots,
    options: &Options,
    count: Option<TokenCount<'_>>,
) -> Result<Vec<Task>, EvalError> {
    let wanted = |line: &Line| match part {
        None | Some("core") => line.core,
        Some("extended") => true,
        Some(name) => line.name == name,
    };
    lines().filter(wanted).map(|line| task(&line, roots, options, count)).collect()
}

/// The tasks of the core as nanochat asks them.
///
/// # Errors
/// As [`tasks`].
pub fn nanochat_tasks(roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    let task = |line: Line| {
        let read = rows(&line, roots)?;
        let shots = options.shots.unwrap_or(line.shots);
        let questions = nanochat::questions(&line, read.rows, shots, options.limit.unwrap_or(usize::MAX))?;
        Ok(Task {
            name: format!("{NANOCHAT}:{}", line.name),
            settings: json!({
                "suite": NANOCHAT, "task": line.name, "shots": shots, "files": read.files, "limit": options.limit,
            }),
            encoding: Encoding::Joint,
            questions,
            metrics: vec![metric(&line)],
        })
    };
    lines().filter(|line| line.core).map(task).collect()
}

fn rows(line: &Line, roots: &Roots) -> Result<Rows, EvalError> {
    let places = [format!("local_data/{}", line.file), format!("scripts/eval/local_data/{}", line.file)];
    let all = [line.file, &places[0], &places[1]];
    match roots.file(&all)? {
        Some(file) => Ok(file.read()?),
        None => rebuilt::rows(line.file, roots)?.ok_or_else(|| {
            let get = match line.file.starts_with("gpqa_data") {
                true => "DCLM's eval/eval_openlm_ckpt.py makes the folder gpqa_data; give its parent with --data",
                false => {
                    "clone https://github.com/mosaicml/llm-foundry and give its folder scripts/eval/local_data with --data"
                }
            };
            roots.missing(format!("{} of the task {NAME}:{}", line.file, line.name), get).into()
        }),
    }
}

fn metric(line: &Line) -> Metric {
    match line.kind {
        Kind::MultipleChoice | Kind::Schema => Metric::Accuracy(Normalization::Tokens),
        Kind::LanguageModeling => Metric::Greedy,
        Kind::Generation if line.chain_delimiter.is_empty() => Metric::AnswerPrefix(ChainOfThought::None),
        Kind::Generation => Metric::AnswerPrefix(ChainOfThought::BeforeHashes),
    }
}

fn task(line: &Line, roots: &Roots, options: &Options, count: Option<TokenCount<'_>>) -> Result<Task, EvalError> {
    let read = rows(line, roots)?;
    let shots = options.shots.unwrap_or(line.shots);
    let mut examples = Vec::with_capacity(read.rows.len());
    for (place, row) in read.rows.into_iter().enumerate() {
        examples.push((place, prompts::example(line, place, row)?));
    }
    if examples.is_empty() {
        let (key, found, expected) = ("file".to_owned(), format!("{} without rows", line.file), "rows".to_owned());
        return Err(TaskError::Setting { task: line.name.to_owned(), key, found, expected }.into());
    }
    let max_tokens = match (line.kind, count) {
        (Kind::Generation, Some(count)) => prompts::longest_answer(line, &examples, count),
        _ => LONGEST.iter().find(|(name, _)| *name == line.name).map_or(1, |(_, longest)| *longest),
    };
    // Categories are sets of their own, in the order of their names.
    let mut sets: BTreeMap<String, Vec<(usize, prompts::Example)>> = BTreeMap::new();
    for (place, example) in examples {
        let category = match line.categories {
            true => example.category().ok_or_else(|| TaskError::Row {
                task: line.name.to_owned(),
                row: format!("line {} of {}", place + 1, line.file),
                key: "category".to_owned(),
                found: "nothing".to_owned(),
                expected: "the name of a category".to_owned(),
            })?,
            false => "",
        };
        sets.entry(category.to_owned()).or_default().push((place, example));
    }
    let mut questions = Vec::new();
    for set in sets.values() {
        let left = options.limit.unwrap_or(usize::MAX).saturating_sub(questions.len());
        questions.extend(prompts::questions(line, set, shots, left, max_tokens));
    }
    Ok(Task {
        name: format!("{NAME}:{}", line.name),
        settings: json!({
            "suite": NAME, "task": line.name, "shots": shots, "files": read.files, "limit": options.limit,
            "max_tokens": max_tokens, "context": CONTEXT,
        }),
        encoding: Encoding::Foundry,
        questions,
        metrics: vec![metric(line)],
    })
}

/// The result of a task as DCLM reports it: the mean over its questions, or of its categories' means.
pub fn value(score: &TaskScore) -> Option<f64> {
    let metric = score.metrics.first()?;
    Some(metric.macro_average.unwrap_or(metric.value))
}

/// The averages of a part: `core` of the 22 tasks, `extended` of all 53, by both tables of baselines. The values are to be
/// those of [`value`].
pub fn aggregates(part: Option<&str>) -> Vec<Aggregate> {
    let of = |name: &str, baselines: Baselines| {
        let wanted = |line: &Line| name == "extended" || line.core;
        let part =
            |line: Line| Part::Centred { task: format!("{NAME}:{}", line.name), baseline: line.baseline(baselines) };
        let version = match baselines {
            Baselines::V1 => "v1",
            Baselines::V2 => "v2",
        };
        Aggregate {
            name: format!("{name}_{version}"),
            rule: Rule::Mean,
            parts: lines().filter(wanted).map(part).collect(),
        }
    };
    let both = |name| [Baselines::V1, Baselines::V2].map(|baselines| of(name, baselines));
    match part {
        None | Some("core") => both("core").into(),
        Some("extended") => [both("core"), both("extended")].concat(),
        Some(_) => Vec::new(),
    }
}
