//! How long to train: the value of `max_duration`.

use olmoe_model::config::shorten;
use serde_json::Value;

use super::error::TrainConfigError;
use super::field::{At, Field, Tree};

/// Most steps, tokens or epochs: what a double counts exactly.
const MAX: f64 = 9_007_199_254_740_992.0;

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duration {
    /// A number of steps: `10000`.
    Steps(u64),
    /// A number of tokens: `2e12T`.
    Tokens(u64),
    /// Whole passes over the data: `2ep`.
    Epochs(u64),
}

impl Field for Duration {
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        // As OLMo: first a double, so that exponents are understood, of which the fraction is cut off.
        let count = |text: &str| {
            let number = text.trim().parse().ok().filter(|x| (0.0..=MAX).contains(x));
            number.map(|x: f64| x as u64)
        };
        let text = match value {
            Value::Number(number) => number.to_string(),
            Value::String(text) => text.trim().to_owned(),
            _ => return Err(at.wrong_type("a number of steps, or tokens such as 2e12T, or epochs such as 1ep", value)),
        };
        let duration = match (text.strip_suffix('T'), text.strip_suffix("ep")) {
            (Some(tokens), _) => count(tokens).map(Duration::Tokens),
            (_, Some(epochs)) => epochs.trim().parse().ok().filter(|x| *x as f64 <= MAX).map(Duration::Epochs),
            _ => count(&text).map(Duration::Steps),
        };
        duration.ok_or_else(|| TrainConfigError::Duration { path: at.to_string(), found: shorten(&text) })
    }

    fn tree(&self) -> Tree {
        match self {
            Duration::Steps(steps) => steps.tree(),
            Duration::Tokens(tokens) => format!("{tokens}T").tree(),
            Duration::Epochs(epochs) => format!("{epochs}ep").tree(),
        }
    }
}
