//! A task as it is described: where its rows come from, and how they become questions.
//!
//! Descriptions are written in YAML. Templates are those of Jinja; an expression is what stands between its braces. Both
//! see the columns of the row, `row` itself, its place in the data set as `number`, from 0, and `letters`, the capital letters,
//! and have the filters `index` (the place of a value in a list), `shuffled(seed)` (as Python's `random` does),
//! `regex_replace` (of lm-evaluation-harness), and `unbracketed` and `detokenized`, which clean texts of HellaSwag and GLUE.
//!
//! ```yaml
//! name: capitals
//! source: {file: capitals.jsonl}
//! prompt: "Question: What is the capital of {{ country }}?\nAnswer:"
//! choices: cities                      # an expression, or a list of templates
//! gold: cities | index(capital)        # an expression: the number of the right choice
//! shots: {count: 2, draw: sample, seed: 1234, separator: "\n\n"}
//! metrics: [acc, acc_per_char, bits_per_byte]
//! ```

use serde::{Deserialize, Serialize};

use crate::encoding::Encoding;
use crate::metric::{LeadingSpace, Metric, Normalization};

/// A task as it is described.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The name in results.
    pub name: String,
    /// Where the rows come from.
    pub source: Source,
    /// An expression: the rows for which it is true are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The rows that are asked, of those kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
    /// An expression: what the data set calls the row; by default its place in the data set, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// An expression: the group of the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// A template before everything else, such as an instruction.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// A template: what is asked; or one a choice, where choices differ in what is before the same continuation.
    pub prompt: Templates,
    /// The choices: an expression that gives a list, or templates. Without them, text is generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices: Option<Choices>,
    /// An expression, or a template with braces: the number of the right choice, from 0, or its text; for generated text
    /// the right text, or a list of such.
    pub gold: String,
    /// The text between a prompt and its answer.
    #[serde(default = "space")]
    pub delimiter: String,
    /// A template: the context of the unconditional log-probabilities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconditional: Option<String>,
    /// Whether only the right choice is asked, for metrics that need no other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_gold: bool,
    /// Answered questions before the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots: Option<Shots>,
    /// How contexts and continuations become tokens.
    #[serde(default)]
    pub encoding: EncodingName,
    /// The metrics by their [names](Metric::name); the first is the task's own.
    pub metrics: Vec<String>,
    /// How text is generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
}

fn space() -> String {
    " ".to_owned()
}

/// Where rows come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// A data set by its name.
    Set(SetSource),
    /// A file, relative to the description's folder.
    File(FileSource),
}

/// A split of a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSource {
    /// The name, such as `ai2_arc`.
    pub data: String,
    /// The configuration, such as `ARC-Easy`; several are read one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Templates>,
    /// The split.
    pub split: String,
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    /// The file.
    pub file: String,
}

/// One text or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Templates {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Templates {
    /// The texts.
    pub fn all(&self) -> &[String] {
        match self {
            Templates::One(one) => std::slice::from_ref(one),
            Templates::Many(many) => many,
        }
    }
}

/// The choices of a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Choices {
    /// An expression that gives a list.
    Expression(String),
    /// A template a choice.
    Templates(Vec<String>),
}

/// A part of the rows: `random.Random(seed).sample(range(n), count)` of Python, in the order drawn. Sets of at most
/// `above` rows are asked as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// How many.
    pub count: usize,
    /// The seed.
    pub seed: u64,
    /// The most rows of which all are asked; by default `count`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<usize>,
}

/// Answered questions before the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shots {
    /// How many.
    pub count: usize,
    /// The rows that they are made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ShotSource>,
    /// Which of the rows are taken.
    #[serde(default)]
    pub draw: Draw,
    /// The seed of the draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// A column: only rows that have the question's value in it are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same: Option<String>,
    /// The text between a shot's prompt and its answer; by default that of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<String>,
    /// The text after each.
    #[serde(default = "blank_line")]
    pub separator: String,
    /// Whether rows that are equal to the question's are left out, for which one more is drawn; by default where the shots
    /// are taken from the questions' own rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_question: Option<bool>,
}

fn blank_line() -> String {
    "\n\n".to_owned()
}

/// Rows for shots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ShotSource {
    /// The rows themselves.
    Rows(Vec<serde_json::Map<String, serde_json::Value>>),
    /// Another split, or a file.
    Source(Source),
}

/// Which rows become shots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Draw {
    /// The first ones.
    #[default]
    First,
    /// A sample that is drawn anew for each question, by one generator for the whole task: `random.sample(rows, count)` of
    /// Python, as lm-evaluation-harness does.
    Sample,
    /// A sample that is the same for every question, but for the question itself.
    SameSample,
}

/// How text is generated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Texts that end it.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Most tokens.
    pub max_tokens: usize,
    /// The temperature; 0 takes the most likely token.
    #[serde(default)]
    pub temperature: f64,
    /// The share of probability that is drawn from; 1 for all.
    #[serde(default = "one")]
    pub top_p: f64,
    /// How many texts a question.
    #[serde(default = "one_text")]
    pub samples: usize,
    /// Whether the prompt is a message of a user, written with the chat template of the model.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chat: bool,
}

fn one() -> f64 {
    1.0
}

fn one_text() -> usize {
    1
}

/// [`Encoding`] by its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncodingName {
    /// [`Encoding::Separate`].
    Separate,
    /// [`Encoding::Joint`].
    #[default]
    Joint,
    /// [`Encoding::Foundry`].
    Foundry,
}

impl From<EncodingName> for Encoding {
    fn from(name: EncodingName) -> Encoding {
        match name {
            EncodingName::Separate => Encoding::Separate,
            EncodingName::Joint => Encoding::Joint,
            EncodingName::Foundry => Encoding::Foundry,
        }
    }
}

/// All metrics that a description can name.
pub fn named_metrics() -> Vec<Metric> {
    use LeadingSpace::{Counted, Dropped};
    use Normalization::{Bytes, Characters, Raw, Tokens, Unconditional, UnconditionalRatio};
    let normalizations = [
        Raw,
        Characters(Counted),
        Characters(Dropped),
        Bytes(Counted),
        Bytes(Dropped),
        Tokens,
        Unconditional,
        UnconditionalRatio,
    ];
    let mut metrics = vec![Metric::F1, Metric::Greedy];
    for space in [Counted, Dropped] {
        metrics.extend([Metric::CrossEntropy(space), Metric::BitsPerByte(space)]);
    }
    for normalization in normalizations {
        metrics.extend([Metric::Accuracy(normalization), Metric::Soft(normalization), Metric::SoftLog(normalization)]);
    }
    metrics
}
