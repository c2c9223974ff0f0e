//! The events that the engine returns.

use std::fmt;

use crate::request::RequestId;

/// An event of a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The request.
    pub request: RequestId,
    /// The sample of the request, counted from 0.
    pub sample: usize,
    /// The kind of event.
    pub kind: EventKind,
}

/// The kind of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// A token was generated.
    Token(Token),
    /// The sample has ended.
    Finished(Finished),
}

/// A generated token, which may be the one that ends its sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// The id of the token.
    pub id: u32,
    /// The text that this token completes. It is empty while a character is incomplete or the text may still become a
    /// stop string; the next token then brings all text that was held back. Always empty without a tokenizer.
    pub text: String,
    /// Natural log-probability in the distribution of the model, if requested.
    pub logprob: Option<f64>,
    /// The most likely tokens at this place in descending order of probability; of equal ones the lower id comes first.
    /// The token itself may be among them.
    pub alternatives: Vec<Alternative>,
    /// The experts of each mixture-of-experts layer, in descending order of probability, if requested.
    pub experts: Vec<Vec<u32>>,
}

/// An alternative token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternative {
    /// The id of the token.
    pub id: u32,
    /// Natural log-probability.
    pub logprob: f64,
}

/// The end of a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why the sample ended.
    pub reason: FinishReason,
    /// Text that was held back and belongs to the sample.
    pub text: String,
    /// The tokens that the sample used.
    pub usage: Usage,
}

/// Why a sample ended.
#[derive(Clone, Debug, PartialEq)]
pub enum FinishReason {
    /// A stop token or a stop string was generated.
    Stop(Stop),
    /// The sample has the most tokens that it may have.
    Length,
    /// [`Engine::cancel`](crate::Engine::cancel).
    Cancelled,
    /// The sample cannot continue.
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

/// The token or text that ended a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A token.
    Id(u32),
    /// A stop string.
    Text(String),
}

/// The tokens that a sample used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt whose keys and values were reused from another sample. The only number that depends on
    /// other requests.
    pub reused_tokens: usize,
    /// Tokens generated, the one that ended the sample included.
    pub completion_tokens: usize,
}

/// Why a sample cannot continue. Other samples continue, except those that were running in a step that panicked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    /// Logits that are NaN or infinite.
    #[error("the logits after {tokens} tokens are {}; the weights may be damaged, or the precision too low", NotFinite(*nan))]
    NotFinite {
        /// Tokens read.
        tokens: usize,
        /// Whether a logit is NaN; otherwise one is infinite.
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
    /// The step in which the sample took part panicked.
    #[error(
        "the program failed in the middle of a step: {0}; this is an error in the program, and the request can be tried again"
    )]
    Panic(String),
}

struct NotFinite(bool);

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "NaN" } else { "infinite" })
    }
}
