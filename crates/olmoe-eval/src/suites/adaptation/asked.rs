//! What the tasks of the suite have in common: how texts are asked for, and how rows are read.

use olmoe_data::Message;
use olmoe_engine::Sampling;
use serde_json::{Value, json};

use crate::encoding::Encoding;
use crate::error::EvalError;
use crate::metric::Metric;
use crate::source::{DataFile, FileHash, Roots, Row};
use crate::task::{Gold, Options, Prompt, Question, Request, Task, TaskError};

/// The commit of open-instruct whose prompts these are.
pub(super) const OPEN_INSTRUCT: &str = "0b0b13f61";
/// The seed of its samples.
pub(super) const SEED: u64 = 42;

/// The text that follows what a user says, without randomness and without a stop: a conversation's answer ends by itself.
pub(super) fn reply(content: String, begin: &str, max_tokens: usize) -> Request {
    Request::Generation {
        prompt: Prompt::Chat { messages: vec![Message::new("user", content)], begin: begin.to_owned() },
        stop: Vec::new(),
        max_tokens,
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        samples: 1,
        seed: 0,
    }
}

/// A question with one request.
pub(super) fn question(id: usize, native_id: String, row: Row, gold: Gold, request: Request) -> Question {
    Question { id: id as u64, native_id, group: None, row: Value::Object(row), gold, requests: vec![request] }
}

/// The text of a column.
pub(super) fn text<'r>(task: &str, place: usize, row: &'r Row, key: &str) -> Result<&'r str, TaskError> {
    row.get(key).and_then(Value::as_str).ok_or_else(|| wrong(task, place, key, row.get(key), "a text"))
}

/// The error for a row that is not a question.
pub(super) fn wrong(task: &str, place: usize, key: &str, found: Option<&Value>, expected: &str) -> TaskError {
    TaskError::Row {
        task: task.to_owned(),
        row: format!("row {}", place + 1),
        key: key.to_owned(),
        found: found.map_or_else(|| "nothing".to_owned(), Value::to_string),
        expected: expected.to_owned(),
    }
}

/// A task of questions that are limited already, or are to be.
pub(super) fn task(
    name: String,
    mut questions: Vec<Question>,
    metrics: Vec<Metric>,
    files: &[FileHash],
    how: Value,
    options: &Options,
) -> Task {
    questions.truncate(options.limit.unwrap_or(usize::MAX));
    let settings = json!({
        "suite": "adaptation",
        "prompts": format!("open-instruct {OPEN_INSTRUCT}"),
        "files": files,
        "limit": options.limit,
        "how": how,
    });
    Task { name, settings, encoding: Encoding::Separate, questions, metrics }
}

/// Refuses another number of shots than the task's own.
pub(super) fn only_shots(task: &str, options: &Options, own: usize) -> Result<(), TaskError> {
    match options.shots {
        Some(shots) if shots != own => Err(TaskError::Setting {
            task: task.to_owned(),
            key: "shots".to_owned(),
            found: shots.to_string(),
            expected: format!("{own}: open-instruct asks with as many"),
        }),
        _ => Ok(()),
    }
}

/// The first of the files that is there.
pub(super) fn file(roots: &Roots, paths: &[&str], get: &str) -> Result<DataFile, EvalError> {
    let missing = || roots.missing(paths[0], format!("{get}, and give the folder it is in with --data"));
    Ok(roots.file(paths)?.ok_or_else(missing)?)
}
