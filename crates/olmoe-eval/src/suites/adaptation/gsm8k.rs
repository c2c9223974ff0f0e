//! GSM8K (Cobbe et al. 2021, arXiv 2110.14168): problems in words, whose answers are numbers.

use olmoe_data::random::Mersenne;
use serde_json::json;

use super::asked::{SEED, file, only_shots, question, reply, task, text, wrong};
use crate::answers::{Grading, number};
use crate::error::EvalError;
use crate::metric::Checker;
use crate::metric::Metric;
use crate::source::Roots;
use crate::task::{Gold, Options, Task};

const NAME: &str = "adaptation:gsm8k";
const PATHS: [&str; 4] = ["raw/gsm8k_test.jsonl.gz", "gsm8k_test.jsonl.gz", "gsm/test.jsonl", "gsm8k/test.jsonl"];
const GET: &str = "get https://github.com/openai/grade-school-math/raw/master/grade_school_math/data/test.jsonl as \
                   gsm/test.jsonl";
/// How many questions are drawn.
const QUESTIONS: usize = 200;
const SHOTS: &str = include_str!("gsm8k_shots.json");
const NUM_SHOTS: usize = 8;

#[derive(serde::Deserialize)]
struct Shots {
    shots: Vec<Shot>,
}

#[derive(serde::Deserialize)]
struct Shot {
    question: String,
    answer: String,
}

/// What is before the question.
fn beginning() -> String {
    let Shots { shots } = serde_json::from_str(SHOTS).expect("the file of this project is JSON");
    let shown = shots.iter().map(|shot| format!("Question: {}\nAnswer: {}\n\n", shot.question, shot.answer));
    format!("Answer the following questions.\n\n{}", shown.collect::<String>())
}

pub(super) fn tasks(roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    only_shots(NAME, options, NUM_SHOTS)?;
    let rows = file(roots, &PATHS, GET)?.read()?;
    let beginning = beginning();
    let mut questions = Vec::with_capacity(QUESTIONS);
    let drawn = match rows.rows.len() {
        all @ ..=QUESTIONS => (0..all).collect(),
        all => Mersenne::python(SEED).sample(all, QUESTIONS),
    };
    for place in drawn {
        let row = &rows.rows[place];
        let asked = text(NAME, place, row, "question")?.trim();
        let gold = number::gold(text(NAME, place, row, "answer")?);
        let gold = gold.ok_or_else(|| wrong(NAME, place, "answer", row.get("answer"), "a number after `####`"))?;
        let request = reply(format!("{beginning}Question: {asked}"), "Answer:", 512);
        questions.push(question(place, place.to_string(), row.clone(), Gold::Texts(vec![gold]), request));
    }
    let metrics = [Grading::Ai2, Grading::Strict].map(|grading| Metric::Checked(Checker::Number(grading))).to_vec();
    let how = json!({"sample": QUESTIONS, "seed": SEED, "shots": NUM_SHOTS});
    Ok(vec![task(NAME.to_owned(), questions, metrics, &rows.files, how, options)])
}
