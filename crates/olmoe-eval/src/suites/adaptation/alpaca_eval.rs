//! AlpacaEval (Li et al. 2023; Dubois et al. 2024, arXiv 2404.04475): whether a judge prefers an answer to that of another
//! model. The rows have that model's answers as `output`.

use serde_json::json;

use super::asked::{file, only_shots, question, reply, task, text};
use crate::error::EvalError;
use crate::metric::Checker;
use crate::metric::Metric;
use crate::source::Roots;
use crate::task::{Gold, Options, Task};

/// Most tokens of an answer. open-instruct allows 8,192, more than OLMoE's context has.
const MAX_TOKENS: usize = 2048;

/// AlpacaEval 1: against text-davinci-003.
pub(super) fn first(roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    let metrics = [Checker::PreferredDiscretely, Checker::Preferred];
    tasks("adaptation:alpaca_eval", "alpaca_eval.json", metrics, roots, options)
}

/// AlpacaEval 2: against GPT-4, by probability.
pub(super) fn second(roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    let metrics = [Checker::Preferred, Checker::PreferredDiscretely];
    tasks("adaptation:alpaca_eval_2", "alpaca_eval_gpt4_baseline.json", metrics, roots, options)
}

fn tasks(
    name: &str,
    data: &str,
    metrics: [Checker; 2],
    roots: &Roots,
    options: &Options,
) -> Result<Vec<Task>, EvalError> {
    only_shots(name, options, 0)?;
    let paths = [format!("tatsu-lab/alpaca_eval/{data}"), format!("alpaca_eval/{data}"), data.to_owned()];
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let get = "get it with `hf download --repo-type dataset tatsu-lab/alpaca_eval --local-dir tatsu-lab/alpaca_eval` (CC BY-NC \
               4.0)";
    let rows = file(roots, &paths, get)?.read()?;
    let mut questions = Vec::with_capacity(rows.rows.len());
    for (place, row) in rows.rows.iter().enumerate() {
        text(name, place, row, "output")?;
        let request = reply(text(name, place, row, "instruction")?.to_owned(), "", MAX_TOKENS);
        questions.push(question(place, place.to_string(), row.clone(), Gold::Row, request));
    }
    let metrics = metrics.map(Metric::Checked).to_vec();
    let how = json!({"max_tokens": MAX_TOKENS});
    Ok(vec![task(name.to_owned(), questions, metrics, &rows.files, how, options)])
}
