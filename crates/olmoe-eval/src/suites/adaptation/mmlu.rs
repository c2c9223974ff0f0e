//! MMLU (Hendrycks et al. 2020, arXiv 2009.03300) in a conversation: the letter of the answer follows "The answer is:".

use olmoe_data::Message;
use serde_json::{Value, json};

use super::asked::{only_shots, task, text, wrong};
use crate::error::EvalError;
use crate::metric::{Metric, Normalization};
use crate::source::{Roots, Row};
use crate::suites::mmlu::{DATA, SUBJECTS};
use crate::task::{Gold, Options, Question, Request, Task, TaskError};

const NAME: &str = "adaptation:mmlu";
const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// What the user says. The two spaces before the subject are in the original, too.
fn asked(subject: &str, place: usize, row: &Row) -> Result<String, TaskError> {
    let mut said =
        format!("The following are multiple choice questions (with answers) about  {}.\n\n", subject.replace('_', " "));
    said += text(NAME, place, row, "question")?;
    let choices = row.get("choices").and_then(Value::as_array).filter(|choices| choices.len() == LETTERS.len());
    let choices = choices.ok_or_else(|| wrong(NAME, place, "choices", row.get("choices"), "four texts"))?;
    for (letter, choice) in LETTERS.iter().zip(choices) {
        let choice = choice.as_str().ok_or_else(|| wrong(NAME, place, "choices", Some(choice), "four texts"))?;
        said += &format!("\n{letter}. {choice}");
    }
    Ok(said + "\nAnswer:")
}

pub(super) fn tasks(roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    only_shots(NAME, options, 0)?;
    let (mut questions, mut files) = (Vec::new(), Vec::new());
    for (subject, _) in SUBJECTS {
        if options.limit.is_some_and(|limit| questions.len() >= limit) {
            break;
        }
        let rows = roots.rows(DATA, Some(subject), "test")?;
        for (place, row) in rows.rows.iter().enumerate() {
            let gold = row.get("answer").and_then(Value::as_u64).filter(|gold| *gold < LETTERS.len() as u64);
            let gold = gold.ok_or_else(|| wrong(NAME, place, "answer", row.get("answer"), "a number from 0 to 3"))?;
            let messages = vec![Message::new("user", asked(subject, place, row)?)];
            let request = |letter: &str| Request::Reply {
                messages: messages.clone(),
                begin: "The answer is:".to_owned(),
                continuation: format!(" {letter}"),
            };
            questions.push(Question {
                id: questions.len() as u64,
                native_id: format!("{subject}/{place}"),
                group: Some(subject.to_owned()),
                row: Value::Object(row.clone()),
                gold: Gold::Choice(gold as usize),
                requests: LETTERS.map(request).to_vec(),
            });
        }
        for file in rows.files {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    let metrics = vec![Metric::Accuracy(Normalization::Raw)];
    Ok(vec![task(NAME.to_owned(), questions, metrics, &files, json!({"shots": 0}), options)])
}
