//! A model that judges answers: which of two is better, as AlpacaEval asks it (Li et al. 2023; Dubois et al. 2024, arXiv
//! 2404.04475), or whether one refuses, as open-instruct asks it for XSTest.
//!
//! Any server with OpenAI's protocol can judge. Which answer it is shown first is drawn by a hash of the instruction, the
//! same in every run. What it said is kept as JSON lines and not asked again; a reply that is none of those asked for is
//! kept as a failure, asked again in the next run, and never guessed at.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use olmoe_data::Message;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::endpoint::{Endpoint, EndpointError};
use crate::lines::{self, Appended};
use crate::metric::{Checker, Metric};
use crate::score::Verdicts;
use crate::task::Task;

/// The prompts.
const TEMPLATES: &str = include_str!("suites/adaptation/judges.json");
/// Requests that are under way at a time.
const AT_ONCE: usize = 8;
/// How many of the most likely tokens are asked for.
const TOP_TOKENS: u64 = 5;

/// How a judge is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// For a list of ranks: AlpacaEval 1.
    Ranks,
    /// For the letter of the better answer, whose probability counts where the server gives it: AlpacaEval 2.
    Letter,
    /// For a class: refusal or following. XSTest.
    Class,
}

impl Protocol {
    /// That of a task, if a judge is needed for it.
    pub fn of(task: &Task) -> Option<Protocol> {
        match task.metrics.first()? {
            Metric::Checked(Checker::PreferredDiscretely) => Some(Protocol::Ranks),
            Metric::Checked(Checker::Preferred) => Some(Protocol::Letter),
            Metric::Checked(Checker::JudgedRefusalF1) => Some(Protocol::Class),
            _ => None,
        }
    }

    fn template(self) -> &'static str {
        match self {
            Protocol::Ranks => "alpaca_eval",
            Protocol::Letter => "alpaca_eval_2",
            Protocol::Class => "xstest",
        }
    }

    /// The column of the rows that the answers are to.
    fn column(self) -> &'static str {
        match self {
            Protocol::Ranks | Protocol::Letter => "instruction",
            Protocol::Class => "prompt",
        }
    }

    /// The column of the answers that they are compared with.
    fn compared(self) -> Option<&'static str> {
        (self != Protocol::Class).then_some("output")
    }

    fn max_tokens(self) -> usize {
        match self {
            Protocol::Ranks => 100,
            Protocol::Letter => 1,
            Protocol::Class => 16,
        }
    }
}

/// The messages that ask for the better of two answers, or for the class of the first.
pub fn messages(protocol: Protocol, instruction: &str, first: &str, second: &str) -> Vec<Message> {
    static MARK: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\{(instruction|output_1|output_2)\}").expect("a constant pattern"));
    let templates: Value = serde_json::from_str(TEMPLATES).expect("the file of this project is JSON");
    let parts = templates[protocol.template()].as_array().into_iter().flatten();
    parts
        .map(|part| {
            let content = part["content"].as_str().unwrap_or_default();
            let filled = MARK.replace_all(content, |found: &regex::Captures<'_>| match &found[1] {
                "instruction" => instruction.to_owned(),
                "output_1" => first.to_owned(),
                _ => second.to_owned(),
            });
            Message::new(part["role"].as_str().unwrap_or_default(), filled)
        })
        .collect()
}

/// What a judge replied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The text.
    pub text: String,
    /// The most likely first tokens with the logarithms of their probabilities, if the server gives them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<(String, f64)>,
}

impl Reply {
    /// The probability that the first answer is the better one, or whether it refuses; nothing if the reply does not tell.
    pub fn verdict(&self, protocol: Protocol) -> Option<f64> {
        static RANK: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(r#"\{[^{}]*?['"]model['"]\s*:\s*['"]model_1['"]\s*,\s*['"]rank['"]\s*:\s*(\d+)\s*,?\s*\}"#)
                .expect("a constant pattern")
        });
        match protocol {
            Protocol::Ranks => {
                let text = self.text.trim();
                let list = text.starts_with('[') && text.ends_with(']');
                match &RANK.captures(text).filter(|_| list)?[1] {
                    "1" => Some(1.0),
                    "2" => Some(0.0),
                    _ => None,
                }
            }
            Protocol::Letter if !self.tokens.is_empty() => {
                let of = |letter: &str| {
                    self.tokens.iter().find(|(token, _)| token == letter).map_or(0.0, |(_, log_prob)| log_prob.exp())
                };
                let (first, second) = (of("m"), of("M"));
                (first + second > 0.0).then(|| first / (first + second))
            }
            Protocol::Letter => match self.text.trim() {
                "m" => Some(1.0),
                "M" => Some(0.0),
                _ => None,
            },
            Protocol::Class => match (self.text.contains("refusal"), self.text.contains("following")) {
                (true, false) => Some(1.0),
                (false, true) => Some(0.0),
                _ => None,
            },
        }
    }

    fn read(answer: &Value) -> Option<Reply> {
        let choice = answer.pointer("/choices/0")?;
        let text = choice.pointer("/message/content")?.as_str()?.to_owned();
        let top = choice.pointer("/logprobs/content/0/top_logprobs").and_then(Value::as_array);
        let token = |token: &Value| Some((token["token"].as_str()?.to_owned(), token["logprob"].as_f64()?));
        Some(Reply { text, tokens: top.into_iter().flatten().filter_map(token).collect() })
    }
}

/// Whether the answer of the model that is judged is shown first, drawn by a hash of the instruction.
pub fn is_shown_first(instruction: &str) -> bool {
    let hash = blake3::Hasher::new_derive_key("olmoe eval: which answer a judge is shown first")
        .update(instruction.as_bytes())
        .finalize();
    hash.as_bytes()[0] & 1 == 1
}

/// A line of what a judge said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Annotation {
    /// What it depends on.
    key: String,
    /// The question's number.
    question: u64,
    /// The index of its text.
    text: usize,
    /// Whether that text was shown first.
    shown_first: bool,
    /// The probability that the text is the better one, or whether it refuses; nothing after a failure.
    verdict: Option<f64>,
    /// What was replied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply: Option<Reply>,
    /// Why there is no verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

/// Why nothing was judged.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// The task needs no judge, or its rows have no answers to compare with.
    #[error("task {task}: {reason}")]
    Task {
        /// The task.
        task: String,
        /// What is wrong.
        reason: String,
    },
    /// The server.
    #[error("the judge: {0}")]
    Endpoint(#[from] EndpointError),
    /// The file.
    #[error("cannot write what the judge says to {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// What a judge said of the answers to a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// By question and text.
    pub verdicts: Verdicts,
    /// How many of them were in the file before.
    pub before: usize,
    /// How many are unknown, because the judge refused or replied something else.
    pub failures: usize,
}

/// A judge.
#[derive(Clone, Debug)]
pub struct Judge {
    /// The server.
    pub endpoint: Endpoint,
    /// The name of its model.
    pub model: String,
}

/// What is to be asked.
struct Pair<'a> {
    question: u64,
    text: usize,
    instruction: &'a str,
    answer: &'a str,
    other: Option<&'a str>,
}

impl Judge {
    /// The verdicts on the answers to a task: those in the file, and the others from the judge. Nothing if `interrupt` was
    /// set before all were there; what was said by then is kept. `progress` gets how many of how many are there.
    ///
    /// # Errors
    /// [`JudgeError`]. A request that is refused for what it holds, and a reply that does not tell, are failures of that
    /// request alone.
    pub fn verdicts(
        &self,
        task: &Task,
        answers: &[Vec<Answer>],
        file: &Path,
        interrupt: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<Judged>, JudgeError> {
        let wrong = |reason: &str| JudgeError::Task { task: task.name.clone(), reason: reason.to_owned() };
        let protocol = Protocol::of(task).ok_or_else(|| wrong("no judge is needed for it"))?;
        let pairs = pairs(protocol, task, answers).ok_or_else(|| {
            let other = protocol.compared().map_or(String::new(), |other| format!(" and `{other}`"));
            wrong(&format!(
                "each row has to have the text `{}`{other}, and each question one generated answer",
                protocol.column()
            ))
        })?;
        let broken = |error| JudgeError::File { path: file.to_owned(), error };
        let (annotations, _) = lines::read::<Annotation>(file).map_err(broken)?;
        let verdict = |one: Annotation| one.verdict.map(|verdict| (one.key, verdict));
        let mut known: HashMap<String, f64> = annotations.into_iter().filter_map(verdict).collect();
        let mut appended = Appended::at(file);
        let keys: Vec<String> = pairs.iter().map(|pair| self.key(protocol, pair)).collect();
        let open: Vec<usize> = (0..pairs.len()).filter(|at| !known.contains_key(&keys[*at])).collect();
        let (total, before) = (pairs.len(), pairs.len() - open.len());
        progress(before, total);
        let mut failures = 0;
        let mut done = before;
        for group in open.chunks(AT_ONCE) {
            if interrupt.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let asked: Vec<_> = thread::scope(|scope| {
                let ask = |at: &usize| {
                    let (pair, key) = (&pairs[*at], &keys[*at]);
                    scope.spawn(move || self.ask(protocol, pair, key, interrupt))
                };
                let threads: Vec<_> = group.iter().map(ask).collect();
                threads.into_iter().map(|thread| thread.join().unwrap_or(Err(EndpointError::Interrupted))).collect()
            });
            let mut failed = None;
            for annotation in asked {
                let annotation = match annotation {
                    Ok(annotation) => annotation,
                    Err(error) => {
                        failed.get_or_insert(error);
                        continue;
                    }
                };
                appended.push(&annotation).map_err(broken)?;
                match annotation.verdict {
                    Some(verdict) => {
                        known.insert(annotation.key, verdict);
                    }
                    None => failures += 1,
                }
                done += 1;
                progress(done, total);
            }
            appended.sync().map_err(broken)?;
            match failed {
                Some(EndpointError::Interrupted) => return Ok(None),
                Some(error) => return Err(error.into()),
                None => {}
            }
        }
        let mut verdicts: Verdicts = Vec::with_capacity(answers.len());
        for (pair, key) in pairs.iter().zip(&keys) {
            if pair.text == 0 {
                verdicts.push(Vec::new());
            }
            if let Some(of_question) = verdicts.last_mut() {
                of_question.push(known.get(key).copied());
            }
        }
        Ok(Some(Judged { verdicts, before, failures }))
    }

    /// What a verdict depends on.
    fn key(&self, protocol: Protocol, pair: &Pair<'_>) -> String {
        let fields = json!([
            self.endpoint.address(),
            self.model,
            protocol.template(),
            pair.instruction,
            pair.answer,
            pair.other
        ]);
        blake3::hash(fields.to_string().as_bytes()).to_hex()[..32].to_owned()
    }

    fn ask(
        &self,
        protocol: Protocol,
        pair: &Pair<'_>,
        key: &str,
        interrupt: &AtomicBool,
    ) -> Result<Annotation, EndpointError> {
        let shown_first = pair.other.is_none() || is_shown_first(pair.instruction);
        let other = pair.other.unwrap_or_default();
        let (first, second) = if shown_first { (pair.answer, other) } else { (other, pair.answer) };
        let messages: Vec<Value> = messages(protocol, pair.instruction, first, second)
            .iter()
            .map(|message| json!({"role": message.role, "content": message.content}))
            .collect();
        let mut body =
            json!({"model": self.model, "messages": messages, "temperature": 0, "max_tokens": protocol.max_tokens()});
        if protocol == Protocol::Letter {
            body["logprobs"] = json!(true);
            body["top_logprobs"] = json!(TOP_TOKENS);
        }
        let mut annotation = Annotation {
            key: key.to_owned(),
            question: pair.question,
            text: pair.text,
            shown_first,
            verdict: None,
            reply: None,
            failure: None,
        };
        match self.endpoint.post("/chat/completions", &body, interrupt) {
            Ok(answer) => match Reply::read(&answer) {
                Some(reply) => {
                    let first = reply.verdict(protocol);
                    annotation.verdict = first.map(|first| if shown_first { first } else { 1.0 - first });
                    if first.is_none() {
                        annotation.failure = Some("the reply is none of those asked for".to_owned());
                    }
                    annotation.reply = Some(reply);
                }
                None => annotation.failure = Some("the reply has no text".to_owned()),
            },
            // Of what is asked, such as a text that is too long for the judge.
            Err(error @ EndpointError::Refused { status: 400 | 413 | 422, .. }) => {
                annotation.failure = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
        Ok(annotation)
    }
}

/// The texts of a task with what they are compared with.
fn pairs<'a>(protocol: Protocol, task: &'a Task, answers: &'a [Vec<Answer>]) -> Option<Vec<Pair<'a>>> {
    if task.questions.len() != answers.len() {
        return None;
    }
    let mut pairs = Vec::with_capacity(answers.len());
    for (question, answers) in task.questions.iter().zip(answers) {
        let [Answer::Generation { texts }] = answers.as_slice() else { return None };
        if texts.is_empty() {
            return None;
        }
        for (text, answer) in texts.iter().enumerate() {
            pairs.push(Pair {
                question: question.id,
                text,
                instruction: question.row[protocol.column()].as_str()?,
                answer,
                other: match protocol.compared() {
                    Some(column) => Some(question.row[column].as_str()?),
                    None => None,
                },
            });
        }
    }
    Some(pairs)
}
