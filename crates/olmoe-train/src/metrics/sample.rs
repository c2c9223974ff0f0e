//! A text that the model has written, and how it is a line of JSON.

use serde::{Deserialize, Serialize};

use super::Line;

/// What the model made of a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The step after which.
    pub step: u64,
    /// What it went on from.
    pub prompt: String,
    /// What it wrote.
    pub text: String,
    /// Its tokens, the one that ended it included.
    pub ids: Vec<u32>,
    /// What ended it: `stop` for an end-of-text token, `length`, or an error, such as logits that are NaN.
    pub finish_reason: String,
}

impl Line for Sample {
    const FILE_NAME: &str = "samples.jsonl";
    const EXAMPLE: &str = r#"{"step":1,"prompt":"a","text":"b","ids":[2],"finish_reason":"length"}"#;

    fn step(&self) -> u64 {
        self.step
    }
}
