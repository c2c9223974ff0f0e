//! A text that the model generated, and its line of JSON.

use serde::{Deserialize, Serialize};

use super::Line;

/// The text that the model generated for a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The step after which it was generated.
    pub step: u64,
    /// The prompt.
    pub prompt: String,
    /// The generated text.
    pub text: String,
    /// The generated tokens, including the one that ended the text.
    pub ids: Vec<u32>,
    /// Why generation ended: `stop` for an end-of-text token, `length`, or an error, such as logits that are NaN.
    pub finish_reason: String,
}

impl Line for Sample {
    const FILE_NAME: &str = "samples.jsonl";
    const EXAMPLE: &str = r#"{"step":1,"prompt":"a","text":"b","ids":[2],"finish_reason":"length"}"#;

    fn step(&self) -> u64 {
        self.step
    }
}
