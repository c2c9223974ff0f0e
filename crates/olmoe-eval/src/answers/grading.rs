//! Whose rules an answer is graded by.

use serde::{Deserialize, Serialize};

/// Whose rules take an answer out of a text and compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grading {
    /// Those of open-instruct at commit 0b0b13f61, as they are: for numbers that compare with OLMoE's.
    Ai2,
    /// What a careful reader would count.
    Strict,
}

impl Grading {
    /// The name in results: `ai2` or `strict`.
    pub fn name(self) -> &'static str {
        match self {
            Grading::Ai2 => "ai2",
            Grading::Strict => "strict",
        }
    }
}
