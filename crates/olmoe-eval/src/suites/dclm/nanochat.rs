//! The core as nanochat asks it (`nanochat/core_eval.py`, <https://github.com/karpathy/nanochat>): the same files, but rows
//! shuffled with 1337, a generator per question for its shots, and blank lines between them. Context and continuation are
//! encoded together. Results are not comparable with DCLM's. One rule is left out: nanochat does not score the tokens with
//! which all choices of a question begin.

use olmoe_data::random::Mersenne;
use serde_json::Value;

use super::table::{Kind, Line};
use crate::error::EvalError;
use crate::source::Row;
use crate::task::{Gold, Question, Request, TaskError};

/// The seed of the order of rows.
const ORDER: u64 = 1337;
/// The seed of a question's shots, to which its number is added.
const SHOTS: u64 = 1234;

/// The first `limit` questions of a file.
///
/// # Errors
/// [`TaskError::Row`] if a row is not of the type.
pub fn questions(line: &Line, rows: Vec<Row>, shots: usize, limit: usize) -> Result<Vec<Question>, EvalError> {
    let mut rows: Vec<(usize, Row)> = rows.into_iter().enumerate().collect();
    Mersenne::python(ORDER).shuffle(&mut rows);
    let wrong = |place: usize, row: &Row| TaskError::Row {
        task: format!("core-nanochat:{}", line.name),
        row: format!("line {} of {}", place + 1, line.file),
        key: "row".into(),
        found: format!("{:.60}", Value::Object(row.clone()).to_string()),
        expected: format!("the fields of {:?}", line.kind),
    };
    let mut questions = Vec::new();
    for (index, (place, row)) in rows.iter().enumerate().take(limit) {
        let shots = shots.min(rows.len() - 1);
        let mut context = String::new();
        if shots > 0 {
            // Drawn from the list without the question itself.
            let drawn = Mersenne::python(SHOTS + index as u64).sample(rows.len() - 1, shots);
            for shot in drawn.into_iter().map(|number| number + usize::from(number >= index)) {
                let (place, row) = &rows[shot];
                context += &example(line, row).and_then(|parts| parts.shot(line)).ok_or_else(|| wrong(*place, row))?;
                context += "\n\n";
            }
        }
        let parts = example(line, row).ok_or_else(|| wrong(*place, row))?;
        let (gold, pairs) = parts.pairs(line);
        let request = |(own, continuation): (String, String)| Request::Continuation {
            context: format!("{context}{own}"),
            continuation,
            unconditional: None,
        };
        questions.push(Question {
            id: *place as u64,
            native_id: format!("{}:{}", line.file, place + 1),
            group: None,
            row: Value::Object(row.clone()),
            gold: Gold::Choice(gold),
            requests: pairs.into_iter().map(request).collect(),
        });
    }
    Ok(questions)
}

/// The contexts and continuations of a row, one of each varying, and which is right.
struct Example {
    contexts: Vec<String>,
    continuations: Vec<String>,
    gold: usize,
}

fn example(line: &Line, row: &Row) -> Option<Example> {
    let text = |key: &str| Some(row.get(key)?.as_str()?.to_owned());
    let list = |key: &str| -> Option<Vec<String>> {
        row.get(key)?.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let gold = || usize::try_from(row.get("gold")?.as_u64()?).ok();
    let example = match line.kind {
        Kind::MultipleChoice => {
            Example { contexts: vec![text("query")?], continuations: list("choices")?, gold: gold()? }
        }
        Kind::Schema => {
            Example { contexts: list("context_options")?, continuations: vec![text("continuation")?], gold: gold()? }
        }
        Kind::LanguageModeling => {
            let context = text("context")?.trim().to_owned();
            Example { contexts: vec![context], continuations: vec![text("continuation")?], gold: 0 }
        }
        Kind::Generation => return None,
    };
    (example.gold < example.contexts.len() * example.continuations.len()).then_some(example)
}

impl Example {
    fn pairs(&self, line: &Line) -> (usize, Vec<(String, String)>) {
        let of = |context: &String| {
            let context = format!("{context}{}", line.delimiter);
            self.continuations.iter().map(move |continuation| (context.clone(), continuation.clone()))
        };
        (self.gold, self.contexts.iter().flat_map(of).collect())
    }

    fn shot(&self, line: &Line) -> Option<String> {
        let (gold, pairs) = self.pairs(line);
        pairs.into_iter().nth(gold).map(|(context, continuation)| context + &continuation)
    }
}
