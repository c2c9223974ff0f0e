//! IFEval (Zhou et al. 2023, arXiv 2311.07911): prompts with instructions that a program can check.

use serde_json::json;

use super::asked::{file, only_shots, question, reply, task, text};
use crate::answers::Grading;
use crate::error::EvalError;
use crate::metric::Metric;
use crate::metric::{Checker, Versions};
use crate::score::instructions;
use crate::source::Roots;
use crate::task::{Gold, Options, Task, TaskError};

const NAME: &str = "adaptation:ifeval";
const PATHS: [&str; 4] = [
    "raw/ifeval_input_data.jsonl",
    "ifeval_input_data.jsonl",
    "ifeval/input_data.jsonl",
    "google/IFEval/ifeval_input_data.jsonl",
];
const GET: &str = "get https://github.com/google-research/google-research/raw/master/instruction_following_eval/data/\
                   input_data.jsonl as ifeval/input_data.jsonl";

pub(super) fn tasks(roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    only_shots(NAME, options, 0)?;
    let rows = file(roots, &PATHS, GET)?.read()?;
    let mut questions = Vec::with_capacity(rows.rows.len());
    for (place, row) in rows.rows.iter().enumerate() {
        let request = reply(text(NAME, place, row, "prompt")?.to_owned(), "", 2048);
        let native_id = row.get("key").map_or_else(|| place.to_string(), ToString::to_string);
        let question = question(place, native_id, row.clone(), Gold::Row, request);
        if let Err((expected, found)) = instructions(&question.row) {
            return Err(TaskError::Row {
                task: NAME.to_owned(),
                row: format!("row {}", place + 1),
                key: "instruction_id_list".to_owned(),
                found,
                expected,
            }
            .into());
        }
        questions.push(question);
    }
    // The first is the one that open-instruct reports.
    let metrics = vec![
        Metric::Checked(Checker::AllInstructions(Versions::Loose, Grading::Ai2)),
        Metric::Checked(Checker::AllInstructions(Versions::Whole, Grading::Ai2)),
        Metric::Checked(Checker::Instructions(Versions::Loose, Grading::Ai2)),
        Metric::Checked(Checker::Instructions(Versions::Whole, Grading::Ai2)),
        Metric::Checked(Checker::AllInstructions(Versions::Loose, Grading::Strict)),
    ];
    Ok(vec![task(NAME.to_owned(), questions, metrics, &rows.files, json!({"languages": "whatlang"}), options)])
}
