//! Two files of LLM Foundry made of the data that OLMo evaluates with, byte by byte: `hellaswag.jsonl` and `coqa.jsonl`.
//! The repository is not needed for them then.

use serde_json::{Value, json};

use crate::error::EvalError;
use crate::source::{FileHash, Roots, Row, Rows, SourceError};

/// What a question of CoQA begins with.
const COQA: &str = "Below is a story followed by a series of related questions. Please answer the final question by \
                    referring to the story and the previous questions.";

/// The rows of a file, if it is one of the two and its data is there.
///
/// # Errors
/// [`EvalError`] if the data cannot be read.
pub fn rows(file: &str, roots: &Roots) -> Result<Option<Rows>, EvalError> {
    match file {
        "language_understanding/hellaswag.jsonl" => match roots.rows("hellaswag", None, "validation") {
            Ok(rows) => made(rows.rows, rows.files, hellaswag).map(Some),
            Err(SourceError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        },
        "reading_comprehension/coqa.jsonl" => match roots.file(&["oe_eval_tasks/coqa/bpb_0shot/requests.jsonl.gz"])? {
            Some(file) => {
                let requests = file.read()?;
                let docs = requests.rows.into_iter().filter_map(|mut request| match request.remove("doc") {
                    Some(Value::Object(doc)) => Some(doc),
                    _ => None,
                });
                made(docs.collect(), requests.files, coqa).map(Some)
            }
            None => Ok(None),
        },
        _ => Ok(None),
    }
}

fn made(rows: Vec<Row>, files: Vec<FileHash>, make: fn(&Row) -> Option<Value>) -> Result<Rows, EvalError> {
    let one = |(place, row): (usize, &Row)| match make(row) {
        Some(Value::Object(made)) => Ok(made),
        _ => Err(SourceError::Content {
            file: files.first().map_or_else(String::new, |file| format!("{}, row {}", file.file, place + 1)),
            expected: "the columns of the data set".into(),
            found: format!("{:.80}", Value::Object(row.clone()).to_string()),
        }),
    };
    let rows = rows.iter().enumerate().map(one).collect::<Result<_, _>>()?;
    Ok(Rows { rows, files })
}

fn text<'a>(row: &'a Row, key: &str) -> Option<&'a str> {
    row.get(key)?.as_str()
}

/// `text.strip()`, titles and brackets out, as everybody cleans HellaSwag.
fn cleaned(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    // From `[` to the next `]` in the same line.
    while let Some(start) = rest.find('[') {
        let inner = &rest[start..];
        let end = inner.find([']', '\n']).filter(|end| inner[*end..].starts_with(']')).map(|end| start + end + 1);
        let (kept, next) = end.map_or((start + 1, start + 1), |end| (start, end));
        out.push_str(&rest[..kept]);
        rest = &rest[next..];
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

/// `text.capitalize()`.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters.as_str().to_lowercase().chars()).collect())
}

fn hellaswag(row: &Row) -> Option<Value> {
    let (activity, first, second) = (text(row, "activity_label")?, text(row, "ctx_a")?, text(row, "ctx_b")?);
    let query = cleaned(&format!("{activity}: {first} {}", capitalized(second)));
    let endings = row.get("endings")?.as_array()?;
    let choices: Vec<String> = endings.iter().map(|ending| ending.as_str().map(cleaned)).collect::<Option<_>>()?;
    let label = row.get("label")?;
    let gold = label.as_u64().or_else(|| label.as_str()?.parse().ok())?;
    Some(json!({"query": query, "choices": choices, "gold": gold}))
}

fn coqa(doc: &Row) -> Option<Value> {
    let mut context = format!("{COQA}\nStory: {}", text(doc, "story")?);
    let turn: usize = text(doc, "id")?.rsplit_once("_turn")?.1.parse().ok()?;
    // The list has all turns of the conversation.
    let turns = doc.get("previous_qa").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let before = &turns[..turn.min(turns.len())];
    if !before.is_empty() {
        context += "\nPreceding questions:";
    }
    for turn in before {
        let (question, answer) = (turn.get("question")?.as_str()?, turn.get("answer")?.as_str()?);
        context += &format!("\nQuestion: {question}\nAnswer: {answer}");
    }
    context += &format!("\n\nFinal question:\nQuestion: {}\nAnswer: ", text(doc, "question")?);
    let answer = doc.get("answers")?.as_array()?.first()?.as_str()?;
    Some(json!({"context": context, "continuation": answer}))
}
