//! Questions as LLM Foundry 0.22 asks them (`llmfoundry/eval/datasets/in_context_learning_evaluation.py`).
//!
//! White space at both ends of a field goes, that of items of lists stays. Shots are other questions of the same set: one
//! generator, seeded with 1234, goes through the questions in their order and draws the shots of each, which are written in
//! the order of CPython's set of their numbers.

use olmoe_data::random::{IntegerSet, Mersenne};
use olmoe_data::white_space::is_space;
use olmoe_engine::Sampling;
use serde_json::Value;

use super::table::{Kind, Line};
use crate::source::Row;
use crate::task::{Gold, Prompt, Question, Request, TaskError};

/// The seed of the shots.
const SEED: u64 = 1234;
/// Tokens that an answer with a chain of thought may be longer than the longest one.
const ROOM: usize = 10;

/// What is asked of a row.
#[derive(Clone, Debug)]
pub(super) struct Example {
    row: Row,
    part: ExamplePart,
}

#[derive(Clone, Debug)]
enum ExamplePart {
    Choices { query: String, choices: Vec<String>, gold: usize },
    Schema { contexts: Vec<String>, continuation: String, gold: usize },
    Continuation { context: String, continuation: String },
    Answer { context: String, answer: String, aliases: Vec<String>, chain: Option<String> },
}

/// Reads a row.
///
/// # Errors
/// [`TaskError::Row`] if a field is missing or of another type.
pub(super) fn example(line: &Line, place: usize, row: Row) -> Result<Example, TaskError> {
    let wrong = |key: &str, expected: &str| TaskError::Row {
        task: line.name.to_owned(),
        row: format!("line {} of {}", place + 1, line.file),
        key: key.to_owned(),
        found: row.get(key).map_or_else(|| "nothing".to_owned(), |value| format!("{:.60}", value.to_string())),
        expected: expected.to_owned(),
    };
    let text = |key: &str| match row.get(key) {
        Some(Value::String(text)) => Ok(text.trim_matches(is_space).to_owned()),
        _ => Err(wrong(key, "a text")),
    };
    let list = |key: &str| {
        let items = row.get(key).and_then(Value::as_array).ok_or_else(|| wrong(key, "a list of texts"))?;
        let texts: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
        texts.filter(|texts| !texts.is_empty()).ok_or_else(|| wrong(key, "a list of texts"))
    };
    let gold = |choices: usize| {
        let gold = row.get("gold").and_then(Value::as_u64).and_then(|gold| usize::try_from(gold).ok());
        gold.filter(|gold| *gold < choices).ok_or_else(|| wrong("gold", "the number of a choice, from 0"))
    };
    let part = match line.kind {
        Kind::MultipleChoice => {
            let choices = list("choices")?;
            ExamplePart::Choices { query: text("query")?, gold: gold(choices.len())?, choices }
        }
        Kind::Schema => {
            let contexts = list("context_options")?;
            ExamplePart::Schema { continuation: text("continuation")?, gold: gold(contexts.len())?, contexts }
        }
        Kind::LanguageModeling => {
            ExamplePart::Continuation { context: text("context")?, continuation: text("continuation")? }
        }
        Kind::Generation => {
            let mut aliases = vec![text("answer")?];
            if row.contains_key("aliases") {
                aliases.extend(list("aliases")?);
            }
            let chain = row.contains_key("chain_of_thought").then(|| text("chain_of_thought")).transpose()?;
            ExamplePart::Answer { context: text("context")?, answer: text("answer")?, aliases, chain }
        }
    };
    Ok(Example { row, part })
}

impl Example {
    /// The category of the row.
    pub(super) fn category(&self) -> Option<&str> {
        self.row.get("category").and_then(Value::as_str)
    }

    /// The example as a shot.
    fn shot(&self, line: &Line, first: bool) -> String {
        let (context, answer) = match &self.part {
            ExamplePart::Choices { query, choices, gold } => (query, choices[*gold].clone()),
            ExamplePart::Continuation { context, continuation } => (context, continuation.clone()),
            ExamplePart::Answer { context, answer, chain, .. } => (
                context,
                match chain {
                    Some(chain) => format!("{chain}{}{answer}", line.chain_delimiter),
                    None => answer.clone(),
                },
            ),
            ExamplePart::Schema { contexts, continuation, gold } => {
                // Here the text before a question comes before the line break, too.
                let context = &contexts[*gold];
                let between = if first { "" } else { "\n" };
                return format!("{}{between}{context}{}{continuation}", line.before, line.delimiter);
            }
        };
        self.with_delimiters(line, first, context) + &answer
    }

    fn with_delimiters(&self, line: &Line, first: bool, context: &str) -> String {
        format!("{}{}{context}{}", if first { "" } else { "\n" }, line.before, line.delimiter)
    }

    fn requests(&self, line: &Line, shots: &str, max_tokens: usize) -> (Gold, Vec<Request>) {
        let scored = |context: String, continuation: &str| Request::Continuation {
            context,
            continuation: continuation.to_owned(),
            unconditional: None,
        };
        let question = |context: &str| {
            let question = self.with_delimiters(line, shots.is_empty(), context);
            format!("{shots}{}", question.trim_end_matches(is_space))
        };
        match &self.part {
            ExamplePart::Choices { query, choices, gold } => {
                let context = question(query);
                (Gold::Choice(*gold), choices.iter().map(|choice| scored(context.clone(), choice)).collect())
            }
            ExamplePart::Continuation { context, continuation } => {
                (Gold::Choice(0), vec![scored(question(context), continuation)])
            }
            ExamplePart::Schema { contexts, continuation, gold } => {
                let whole = |context: &String| match shots {
                    "" => format!("{}{context}", line.before),
                    _ => format!("{shots}{}\n{context}{}", line.before, line.delimiter.trim_end_matches(is_space)),
                };
                (Gold::Choice(*gold), contexts.iter().map(|context| scored(whole(context), continuation)).collect())
            }
            ExamplePart::Answer { context, aliases, .. } => {
                let request = Request::Generation {
                    prompt: Prompt::Text(question(context)),
                    stop: line.stop.iter().map(|stop| (*stop).to_owned()).collect(),
                    max_tokens,
                    sampling: Sampling { temperature: 0.0, ..Sampling::default() },
                    samples: 1,
                    seed: 0,
                };
                (Gold::Texts(aliases.clone()), vec![request])
            }
        }
    }
}

/// The most tokens of an answer: those of the longest one with its chain of thought, and some more where one is written.
/// `count` is the number of tokens of a text.
pub(super) fn longest_answer(line: &Line, examples: &[(usize, Example)], count: &dyn Fn(&str) -> usize) -> usize {
    let answers = examples.iter().flat_map(|(_, example)| match &example.part {
        ExamplePart::Answer { aliases, chain, .. } => aliases
            .iter()
            .map(|alias| match chain {
                Some(chain) => count(&format!("{chain}{}{alias}", line.chain_delimiter)),
                None => count(alias),
            })
            .collect(),
        _ => Vec::new(),
    });
    let room = if line.chain_delimiter.is_empty() { 0 } else { ROOM };
    (answers.max().unwrap_or(0) + room).max(1)
}

/// The questions of a set of examples, of which each can be a shot of the others: the first `limit`.
pub(super) fn questions(
    line: &Line,
    examples: &[(usize, Example)],
    shots: usize,
    limit: usize,
    max_tokens: usize,
) -> Vec<Question> {
    let mut random = Mersenne::python(SEED);
    let mut questions = Vec::new();
    for (index, (place, example)) in examples.iter().enumerate().take(limit) {
        let mut text = String::new();
        for shot in shot_numbers(&mut random, examples.len(), shots, index) {
            text += &examples[shot].1.shot(line, text.is_empty());
        }
        let (gold, requests) = example.requests(line, &text, max_tokens);
        questions.push(Question {
            id: *place as u64,
            native_id: format!("{}:{}", line.file, place + 1),
            group: if line.categories { example.category().map(str::to_owned) } else { None },
            row: Value::Object(example.row.clone()),
            gold,
            requests,
        });
    }
    questions
}

/// The numbers of the shots of question `own` of `count`, in their order.
fn shot_numbers(random: &mut Mersenne, count: usize, shots: usize, own: usize) -> Vec<usize> {
    let shots = shots.min(count.saturating_sub(1));
    if shots == 0 {
        // Nothing is drawn then.
        return Vec::new();
    }
    let mut set: IntegerSet = random.sample(count, shots).into_iter().map(|number| number as u64).collect();
    if set.contains(own as u64) {
        set.remove(own as u64);
        if set.len() < count - 1 {
            let mut other = random.below(count as u64);
            while set.contains(other) || other == own as u64 {
                other = random.below(count as u64);
            }
            set.insert(other);
        }
    }
    set.iter().map(|number| number as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shots_are_those_of_python() {
        // llmfoundry.eval.datasets.utils.get_fewshot_sample_idxs(2376, 10, i, random.Random(1234)), one after the other.
        let mut random = Mersenne::python(SEED);
        for (own, expected) in SHOTS.iter().enumerate() {
            assert_eq!(shot_numbers(&mut random, 2376, 10, own), expected);
        }
        assert_eq!(shot_numbers(&mut random, 1, 10, 0), [0usize; 0]);
        let mut few = shot_numbers(&mut random, 3, 10, 1);
        few.sort_unstable();
        assert_eq!(few, [0, 2]);
    }

    const SHOTS: [[usize; 10]; 3] = [
        [71, 969, 1452, 1805, 143, 371, 343, 403, 30, 478],
        [64, 608, 1417, 1898, 749, 468, 373, 59, 126, 1983],
        [2371, 264, 1993, 2216, 2060, 364, 1908, 280, 2109, 1023],
    ];
}
