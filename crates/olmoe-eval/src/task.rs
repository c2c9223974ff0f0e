//! Tasks as they are asked, and as they are described.

mod build;
mod description;
mod error;
mod shots;
mod template;

pub use build::{Options, build, parse};
pub use description::{
    Choices, Description, Draw, EncodingName, FileSource, Generation, Sample, SetSource, ShotSource, Shots, Source,
    Templates, named_metrics,
};
pub use error::TaskError;

use olmoe_data::Message;
use olmoe_engine::Sampling;
use serde_json::Value;

use crate::encoding::Encoding;
use crate::metric::Metric;

/// A set of questions, and how the answers are judged.
#[derive(Clone, Debug)]
pub struct Task {
    /// The name in results, such as `arc_easy_mc_5shot`; unique in a run.
    pub name: String,
    /// Everything that determined the questions and how they are judged, for whoever reads the results: the description, the
    /// files with their hashes, limits, seeds. Whether an answer is reused depends on its request alone.
    pub settings: Value,
    /// How contexts and continuations become tokens.
    pub encoding: Encoding,
    /// The questions in the order of the suite.
    pub questions: Vec<Question>,
    /// What is computed of the answers; the first one is the task's own.
    pub metrics: Vec<Metric>,
}

/// A question: one or more requests whose answers are judged together.
#[derive(Clone, Debug)]
pub struct Question {
    /// The number of the question in its suite, unique in the task.
    pub id: u64,
    /// The identifier in the data set, for people.
    pub native_id: String,
    /// Questions of one group are not independent, such as those about one passage: standard errors are clustered by it,
    /// and macro averages are over it.
    pub group: Option<String>,
    /// The row that the question was made of, for checkers and for whoever reads the results.
    pub row: Value,
    /// The right answer.
    pub gold: Gold,
    /// The requests in the order of the choices.
    pub requests: Vec<Request>,
}

/// The right answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Gold {
    /// The choice with this index.
    Choice(usize),
    /// One of these texts.
    Texts(Vec<String>),
    /// What the metric itself reads from the row, such as the tests of a program.
    Row,
}

/// What is asked of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// The log-probability of a continuation.
    Continuation {
        /// The text before it.
        context: String,
        /// The text that is scored.
        continuation: String,
        /// The context with which its unconditional log-probability is computed, where a metric needs that.
        unconditional: Option<String>,
    },
    /// The log-probability of how a reply in a conversation goes on.
    Reply {
        /// The messages.
        messages: Vec<Message>,
        /// The beginning of the reply, as in [`Prompt::Chat`].
        begin: String,
        /// The text that is scored.
        continuation: String,
    },
    /// Text from the model.
    Generation {
        /// What it is made from.
        prompt: Prompt,
        /// Texts that end it; not part of the answer.
        stop: Vec<String>,
        /// Most tokens.
        max_tokens: usize,
        /// How tokens are chosen.
        sampling: Sampling,
        /// How many independent texts.
        samples: usize,
        /// The seed of the draws; the request's own, so that no other request changes it.
        seed: u64,
    },
}

/// The beginning of a generation.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Text as it is.
    Text(String),
    /// A conversation, written with the chat template of the model.
    Chat {
        /// The messages.
        messages: Vec<Message>,
        /// The beginning of the answer, such as `Answer:`, which follows the template's text as [`begun`] joins them; empty
        /// for none.
        begin: String,
    },
}

/// A conversation's text with the beginning of the reply: a space is between them unless the text ends with a space or a
/// newline, as in open-instruct.
pub fn begun(mut rendered: String, begin: &str) -> String {
    if !begin.is_empty() && !rendered.ends_with([' ', '\n']) {
        rendered.push(' ');
    }
    rendered.push_str(begin);
    rendered
}
