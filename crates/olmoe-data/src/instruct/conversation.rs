//! The contents of rows as they are read, and the examples they are encoded to.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::json::Json;

/// The place of a row in its file.
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

/// A message of one side of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// `system`, `user`, `assistant` or any other role that the template knows.
    pub role: String,
    /// The text; None where the turn consists of tool calls only.
    pub content: Option<String>,
    /// The weight of its tokens in the loss; None: the weight that the policy gives its role.
    pub weight: Option<f32>,
    /// Its other fields, such as `tool_calls`, which are passed to the template.
    pub more: Vec<(String, Json)>,
}

impl Turn {
    /// A turn with a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Turn {
        Turn { role: role.into(), content: Some(content.into()), weight: None, more: Vec::new() }
    }

    /// Whether the turn is the model's.
    pub fn is_answer(&self) -> bool {
        self.role == "assistant"
    }
}

/// A turn as a template sees it: without the weight.
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

/// Turns, and the tools that the model may call in them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The turns, in order.
    pub turns: Vec<Turn>,
    /// Definitions of tools, for the template.
    pub tools: Vec<Json>,
}

/// A training sample: a conversation, which a template turns into text, or a text as it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// A conversation.
    Conversation(Conversation),
    /// A text of which only the completion is trained on.
    Text {
        /// The text before the completion; may be empty.
        prompt: String,
        /// The completion.
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

/// An answer and its label.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledCompletion {
    /// The prompt and the answer.
    pub sample: Sample,
    /// Whether the answer is desirable.
    pub desirable: bool,
}

/// The content of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// For supervised fine-tuning.
    Sample(Sample),
    /// For supervised fine-tuning, tokenized already.
    Tokens(Example),
    /// For preference tuning.
    Pair(PreferencePair),
    /// For tuning on single labelled answers.
    Labelled(LabelledCompletion),
}

/// A row and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The place of the row.
    pub place: Place,
    /// The content of the row.
    pub content: Content,
}

/// Tokens with the weight of each in the loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The weight of each token as a target of the loss, 0 where it is no target; the first token never is a target.
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

/// A preference pair as tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct PairExample {
    /// The better side.
    pub chosen: Example,
    /// The worse side.
    pub rejected: Example,
    /// The number of tokens at the beginning that are the same on both sides and targets on neither.
    pub prompt: usize,
}

impl PairExample {
    /// A pair of two encoded sides.
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
    /// The tokens of the prompt and the answer.
    pub example: Example,
    /// Whether the answer is desirable.
    pub desirable: bool,
    /// The number of tokens before the first target.
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
    /// Of a sample, or of a row that holds tokens.
    Example(Example),
    /// Of a pair.
    Pair(PairExample),
    /// Of a labelled completion.
    Labelled(LabelledExample),
}
