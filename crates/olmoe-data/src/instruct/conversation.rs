//! What the rows of files are read as, and what they are encoded to.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::json::Json;

/// Where a row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Arc<Path>,
    /// The row, from 1; 0 is the header.
    pub row: u64,
    /// The line of the file, from 1, where the file has lines.
    pub line: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.row == 0 {
            return write!(f, "{} header", self.path.display());
        }
        write!(f, "{} row {}", self.path.display(), self.row)?;
        match self.line {
            Some(line) if line != self.row => write!(f, " (line {line})"),
            _ => Ok(()),
        }
    }
}

/// What one side says at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// What is said; nothing where a turn is calls of tools only.
    pub content: Option<String>,
    /// The weight of its tokens in the loss; none: what the policy says of its role.
    pub weight: Option<f32>,
    /// Its other fields, such as `tool_calls`, for the template.
    pub more: Vec<(String, Json)>,
}

impl Turn {
    /// What somebody says.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Turn {
        Turn { role: role.into(), content: Some(content.into()), weight: None, more: Vec::new() }
    }

    /// Whether the model says it.
    pub fn is_answer(&self) -> bool {
        self.role == "assistant"
    }
}

/// As a template sees it: without the weight.
impl Serialize for Turn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2 + self.more.len()))?;
        map.serialize_entry("role", &self.role)?;
        map.serialize_entry("content", &self.content)?;
        for (key, value) in &self.more {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// Turns, and the tools that they may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// In their order.
    pub turns: Vec<Turn>,
    /// Definitions of tools, for the template; empty: none.
    pub tools: Vec<Json>,
}

/// What is trained on: a conversation, which a template makes a text of, or a text as it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// A conversation.
    Conversation(Conversation),
    /// A text of which only the completion is trained.
    Text {
        /// What comes before; may be empty.
        prompt: String,
        /// What follows.
        completion: String,
    },
}

/// Two answers to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferencePair {
    /// The prompt and the better answer.
    pub chosen: Sample,
    /// The prompt and the worse answer.
    pub rejected: Sample,
}

/// An answer and whether it is a good one.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledCompletion {
    /// The prompt and the answer.
    pub sample: Sample,
    /// Whether the answer is desirable.
    pub desirable: bool,
}

/// What a row holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// For supervised fine-tuning.
    Sample(Sample),
    /// The same, as tokens.
    Tokens(Example),
    /// For preference tuning.
    Pair(PreferencePair),
    /// For tuning on single answers.
    Labelled(LabelledCompletion),
}

/// A row.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where it is.
    pub place: Place,
    /// What it holds.
    pub content: Content,
}

/// Tokens and how much each counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The weight of each token as a target of the loss, 0 where it is none; the first token never is one.
    pub weights: Vec<f32>,
}

impl Example {
    /// How many tokens are targets.
    pub fn num_targets(&self) -> usize {
        self.weights.iter().filter(|weight| **weight != 0.0).count()
    }

    /// The first target.
    pub fn first_target(&self) -> Option<usize> {
        self.weights.iter().position(|weight| *weight != 0.0)
    }
}

/// A pair as tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct PairExample {
    /// The better one.
    pub chosen: Example,
    /// The worse one.
    pub rejected: Example,
    /// Tokens at the beginning that are the same on both sides and targets on neither.
    pub prompt: usize,
}

impl PairExample {
    /// Two encoded sides.
    pub fn new(chosen: Example, rejected: Example) -> PairExample {
        let same = chosen.ids.iter().zip(&rejected.ids).take_while(|(chosen, rejected)| chosen == rejected).count();
        let sides = [&chosen, &rejected];
        let prompt = sides.iter().filter_map(|side| side.first_target()).fold(same, usize::min);
        PairExample { chosen, rejected, prompt }
    }
}

/// A labelled completion as tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledExample {
    /// Prompt and answer.
    pub example: Example,
    /// Whether the answer is desirable.
    pub desirable: bool,
    /// Tokens before the first target.
    pub prompt: usize,
}

impl LabelledExample {
    /// An encoded answer and its label.
    pub fn new(example: Example, desirable: bool) -> LabelledExample {
        let prompt = example.first_target().unwrap_or(0);
        LabelledExample { example, desirable, prompt }
    }
}

/// A row as tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Encoded {
    /// Of a sample, or of tokens.
    Example(Example),
    /// Of a pair.
    Pair(PairExample),
    /// Of a labelled completion.
    Labelled(LabelledExample),
}
