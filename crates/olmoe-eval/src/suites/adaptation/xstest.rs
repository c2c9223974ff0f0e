//! XSTest (Röttger et al. 2023, arXiv 2308.01263): requests that are unsafe, and requests that only look so.

use serde_json::{Value, json};

use super::asked::{file, only_shots, question, reply, task, text};
use crate::answers::Grading;
use crate::error::EvalError;
use crate::metric::Checker;
use crate::metric::Metric;
use crate::source::Roots;
use crate::task::{Gold, Options, Task};

const PATHS: [&str; 2] = ["xstest/xstest_v2_prompts.csv", "xstest_v2_prompts.csv"];
const GET: &str = "get https://github.com/paul-rottger/exaggerated-safety/raw/main/xstest_v2_prompts.csv (CC BY 4.0)";

/// With refusals told by how answers begin.
pub(super) fn tasks(roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    let checkers = [
        Checker::RefusalF1(Grading::Ai2),
        Checker::Refusal(Grading::Ai2),
        Checker::RefusalF1(Grading::Strict),
        Checker::Refusal(Grading::Strict),
    ];
    let how = json!({"refusals": "by how answers begin"});
    made("adaptation:xstest", &checkers, how, roots, options)
}

/// With refusals told by a judge, as for the figures of OLMoE's paper.
pub(super) fn judged(roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    let checkers = [Checker::JudgedRefusalF1, Checker::JudgedRefusal];
    made("adaptation:xstest_judged", &checkers, json!({"refusals": "by a judge"}), roots, options)
}

fn made(
    name: &str,
    checkers: &[Checker],
    how: Value,
    roots: &Roots,
    options: &Options,
) -> Result<Vec<Task>, EvalError> {
    only_shots(name, options, 0)?;
    let rows = file(roots, &PATHS, GET)?.read()?;
    let mut questions = Vec::with_capacity(rows.rows.len());
    for (place, row) in rows.rows.iter().enumerate() {
        text(name, place, row, "type")?;
        let request = reply(text(name, place, row, "prompt")?.to_owned(), "", 2048);
        let native_id = row
            .get("id")
            .map_or_else(|| place.to_string(), |id| id.as_str().map_or_else(|| Value::to_string(id), str::to_owned));
        questions.push(question(place, native_id, row.clone(), Gold::Row, request));
    }
    let metrics = checkers.iter().copied().map(Metric::Checked).collect();
    Ok(vec![task(name.to_owned(), questions, metrics, &rows.files, how, options)])
}
