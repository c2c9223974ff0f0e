//! What a model answered.

use serde::{Deserialize, Serialize};

/// The answer to a [`Request`](crate::Request).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// Of a continuation.
    Continuation(Scored),
    /// Of a generation: the texts, one a sample.
    Generation {
        /// The texts, without what ended them.
        texts: Vec<String>,
    },
}

/// The log-probabilities of a continuation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The sum of the log-probabilities of its tokens, natural logarithm.
    pub log_prob: f64,
    /// The number of its tokens.
    pub tokens: usize,
    /// Whether each of its tokens is the most likely one.
    pub greedy: bool,
    /// The log-probability of the continuation after the unconditional context, where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconditional: Option<f64>,
}
