//! What comes back from the engine.

use std::fmt;

use crate::request::RequestId;

/// Something that happened to a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The request.
    pub request: RequestId,
    /// Which of its samples, from 0.
    pub sample: usize,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// A token was generated.
    Token(Token),
    /// Nothing more comes of this sample.
    Finished(Finished),
}

/// A generated token. One that ends its sample comes, too.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that is certain now: nothing while a character is not complete, or while the text could still become a
    /// stop string; then all that was held back. Always empty without a tokenizer.
    pub text: String,
    /// Natural log-probability in the model's own distribution, if asked for.
    pub logprob: Option<f64>,
    /// The likeliest tokens in its place, from the likeliest on, of equal ones the lower id first; the token itself may
    /// be among them.
    pub alternatives: Vec<Alternative>,
    /// The experts of each layer that is a mixture, in falling order of probability, if asked for.
    pub experts: Vec<Vec<u32>>,
}

/// A token that could have come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternative {
    /// Its id.
    pub id: u32,
    /// Natural log-probability.
    pub logprob: f64,
}

/// The end of a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Text that was held back and turned out to belong to the sample.
    pub text: String,
    /// What it took.
    pub usage: Usage,
}

/// Why a sample ended.
#[derive(Clone, Debug, PartialEq)]
pub enum FinishReason {
    /// A stop token or a stop string came.
    Stop(Stop),
    /// It has as many tokens as it may have.
    Length,
    /// [`Engine::cancel`](crate::Engine::cancel).
    Cancelled,
    /// It cannot go on.
    Error(GenerationError),
}

impl FinishReason {
    /// `stop`, `length`, `cancelled` or `error`.
    pub fn name(&self) -> &'static str {
        match self {
            FinishReason::Stop(_) => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Error(_) => "error",
        }
    }
}

/// What ended a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A token.
    Id(u32),
    /// A stop string.
    Text(String),
}

/// What a sample took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those among them whose keys and values were there already. The one number that other requests have a part in.
    pub reused_tokens: usize,
    /// Tokens generated, the one that ended the sample included.
    pub completion_tokens: usize,
}

/// Why a sample cannot go on. The others do, but for those that ran beside it in a step that panicked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    /// Logits that are no numbers.
    #[error("the logits after {tokens} tokens are {}; the weights, or the precision, do not hold this text", NotFinite(*nan))]
    NotFinite {
        /// Tokens read.
        tokens: usize,
        /// Whether there is a NaN, else an infinity.
        nan: bool,
    },
    /// Every token is excluded.
    #[error("after {tokens} tokens the settings exclude every token; lift a bias of -inf or lower min_tokens")]
    NothingLeft {
        /// Tokens read.
        tokens: usize,
    },
    /// The model refused the step.
    #[error("the model: {0}")]
    Model(String),
    /// The step that it took part in panicked.
    #[error(
        "the program failed in the middle of a step: {0}; this is an error in the program, and the request can be tried again"
    )]
    Panic(String),
}

struct NotFinite(bool);

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "not numbers" } else { "infinite" })
    }
}
