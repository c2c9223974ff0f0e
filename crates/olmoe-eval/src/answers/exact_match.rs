//! Equality of texts but for what does not count.

use super::pattern::{Pattern, PatternError};

/// `exact_match` of Hugging Face's `evaluate`, which lm-evaluation-harness and open-instruct compare texts with.
#[derive(Clone, Debug, Default)]
pub struct ExactMatch {
    /// What is removed from both texts first, one after the other.
    pub ignored: Vec<Pattern>,
    /// Whether upper and lower case are equal.
    pub ignore_case: bool,
    /// Whether ASCII punctuation is removed from both texts; the point of 3.5 and the sign of −5 are among it.
    pub ignore_punctuation: bool,
    /// Whether the digits 0 to 9 are removed from both.
    pub ignore_digits: bool,
}

impl ExactMatch {
    fn left(&self, text: &str) -> Result<String, PatternError> {
        let mut text = text.to_owned();
        for pattern in &self.ignored {
            text = pattern.removed(&text)?;
        }
        if self.ignore_case {
            text = text.to_lowercase();
        }
        text.retain(|letter| {
            !(self.ignore_punctuation && letter.is_ascii_punctuation() || self.ignore_digits && letter.is_ascii_digit())
        });
        Ok(text)
    }

    /// Whether what is left of both texts is equal.
    ///
    /// # Errors
    /// [`PatternError::Search`].
    pub fn same(&self, prediction: &str, reference: &str) -> Result<bool, PatternError> {
        Ok(self.left(prediction)? == self.left(reference)?)
    }
}

/// [`ExactMatch`] as open-instruct calls it: without case and ASCII punctuation.
pub(super) fn same_but_for_case_and_punctuation(prediction: &str, reference: &str) -> bool {
    let left = |text: &str| {
        let mut text = text.to_lowercase();
        text.retain(|letter| !letter.is_ascii_punctuation());
        text
    };
    left(prediction) == left(reference)
}
