//! What OLMoE was judged by after adaptation, asked as open-instruct asks it (commit 0b0b13f61).
//!
//! | name | questions | answers |
//! |---|---|---|
//! | `adaptation:mmlu` | 14,042 of 57 subjects, no shots, in a conversation | letters, by their log-probabilities |
//! | `adaptation:gsm8k` | 200, eight demonstrations with reasoning | the last number |
//! | `adaptation:bbh` | 40 of each of 27 tasks, three demonstrations with reasoning | what follows "the answer is" |
//! | `adaptation:codex_humaneval` | 164 beginnings of functions, 20 completions of each | programs that run |
//! | `adaptation:ifeval` | 541 prompts | instructions that a program can check |
//! | `adaptation:xstest` | 450 requests, some to refuse | refusals |
//! | `adaptation:xstest_judged` | the same | the same, told by a judge |
//! | `adaptation:alpaca_eval` | 805 instructions | a judge prefers them to another model's, by rank |
//! | `adaptation:alpaca_eval_2` | the same, against another model | the same, by probability |
//!
//! Conversations are written with the template of the model. Orders and samples are Python's; where open-instruct takes
//! files in the order of the file system (BIG-Bench Hard), they are sorted by name here.

mod alpaca_eval;
mod asked;
mod bbh;
mod gsm8k;
mod human_eval;
mod ifeval;
mod mmlu;
mod tar;
mod xstest;

use super::Listed;
use crate::error::EvalError;
use crate::score::{Aggregate, Part, Rule};
use crate::source::Roots;
use crate::task::{Options, Task};

/// The suite's name.
pub const NAME: &str = "adaptation";

/// Makes the tasks of a part.
type Make = fn(&Roots, &Options) -> Result<Vec<Task>, EvalError>;

/// The parts: name, what it is, and how it is made.
const PARTS: [(&str, &str, Make); 9] = [
    ("mmlu", "MMLU in a conversation, no shots", mmlu::tasks),
    ("gsm8k", "GSM8K with eight demonstrations, 200 questions", gsm8k::tasks),
    ("bbh", "BIG-Bench Hard with demonstrations, 40 questions of each of 27 tasks", bbh::tasks),
    ("codex_humaneval", "HumanEval, 20 completions of each function; needs the sandbox", human_eval::tasks),
    ("ifeval", "IFEval: instructions that a program can check", ifeval::tasks),
    ("xstest", "XSTest: refusals of requests that are and that only look unsafe", xstest::tasks),
    ("alpaca_eval", "AlpacaEval 1; needs a judge", alpaca_eval::first),
    ("alpaca_eval_2", "AlpacaEval 2; needs a judge", alpaca_eval::second),
    ("xstest_judged", "XSTest, with refusals told by a judge", xstest::judged),
];
/// The parts of the whole suite: the others are second versions.
const WHOLE: usize = 7;

/// The names of the suite and its parts.
pub fn list() -> Vec<Listed> {
    let whole = Listed {
        name: NAME.to_owned(),
        about: "what OLMoE was judged by after adaptation, as open-instruct asks it".to_owned(),
    };
    let part =
        |(name, about, _): &(&str, &str, Make)| Listed { name: format!("{NAME}:{name}"), about: (*about).to_owned() };
    [whole].into_iter().chain(PARTS.iter().map(part)).collect()
}

/// Whether the suite has such a part; none is the whole.
pub fn is_part(part: Option<&str>) -> bool {
    part.is_none_or(|part| PARTS.iter().any(|(name, ..)| *name == part))
}

/// The tasks of a part, or of the whole suite.
///
/// # Errors
/// [`EvalError`] if data is missing or is not what it has to be.
pub fn tasks(part: Option<&str>, roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    let mut tasks = Vec::new();
    for (at, (name, _, make)) in PARTS.iter().enumerate() {
        if part.map_or(at < WHOLE, |part| part == *name) {
            tasks.extend(make(roots, options)?);
        }
    }
    Ok(tasks)
}

/// The mean of the tasks of BIG-Bench Hard, where they are among those of a part.
pub fn aggregates(part: Option<&str>) -> Vec<Aggregate> {
    if part.is_some_and(|part| part != "bbh") {
        return Vec::new();
    }
    let parts = bbh::TASKS.iter().map(|task| Part::Task(bbh::task_name(task))).collect();
    vec![Aggregate { name: format!("{NAME}:bbh"), rule: Rule::Mean, parts }]
}
