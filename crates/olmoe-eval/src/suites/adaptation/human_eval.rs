//! HumanEval (Chen et al. 2021, arXiv 2107.03374): beginnings of functions, completed 20 times each, without a conversation.

use olmoe_engine::Sampling;
use serde_json::json;

use super::asked::{file, only_shots, question, task, text};
use crate::answers::program::STOPS;
use crate::error::EvalError;
use crate::metric::Checker;
use crate::metric::Metric;
use crate::source::Roots;
use crate::task::{Gold, Options, Prompt, Request, Task};

const NAME: &str = "adaptation:codex_humaneval";
const PATHS: [&str; 3] = ["raw/HumanEval.jsonl.gz", "HumanEval.jsonl.gz", "codex_humaneval/HumanEval.jsonl.gz"];
const GET: &str = "get https://github.com/openai/human-eval/raw/master/data/HumanEval.jsonl.gz";
const SAMPLES: usize = 20;
const TEMPERATURE: f64 = 0.8;
const TOP_P: f64 = 0.95;
/// The numbers of programs of which one is to pass; the one that OLMoE's paper has is first.
const OF_PROGRAMS: [usize; 4] = [10, 1, 5, 20];

pub(super) fn tasks(roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    only_shots(NAME, options, 0)?;
    let rows = file(roots, &PATHS, GET)?.read()?;
    let mut questions = Vec::with_capacity(rows.rows.len());
    for (place, row) in rows.rows.iter().enumerate() {
        for key in ["test", "entry_point"] {
            text(NAME, place, row, key)?;
        }
        let request = Request::Generation {
            prompt: Prompt::Text(text(NAME, place, row, "prompt")?.to_owned()),
            stop: STOPS.map(str::to_owned).to_vec(),
            max_tokens: 512,
            sampling: Sampling { temperature: TEMPERATURE, top_p: TOP_P, ..Sampling::default() },
            samples: SAMPLES,
            seed: place as u64,
        };
        let native_id = text(NAME, place, row, "task_id")?.to_owned();
        questions.push(question(place, native_id, row.clone(), Gold::Row, request));
    }
    let metrics = OF_PROGRAMS.map(|k| Metric::Checked(Checker::Passed(k))).to_vec();
    let how = json!({"samples": SAMPLES, "temperature": TEMPERATURE, "top_p": TOP_P});
    Ok(vec![task(NAME.to_owned(), questions, metrics, &rows.files, how, options)])
}
