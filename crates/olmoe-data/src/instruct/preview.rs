//! An example as a table, token by token.

use super::conversation::Example;
use crate::Tokenizer;

/// A token of an example, for a table.
#[derive(Clone, Debug, PartialEq)]
pub struct PreviewRow {
    /// The token.
    pub id: u32,
    /// The text of the token; bytes that are only part of a character as `<0xE2>`.
    pub text: String,
    /// Whether it is a target.
    pub target: bool,
    /// Its weight in the loss.
    pub weight: f32,
}

/// The rows of a table of an example's tokens.
pub fn preview(example: &Example, tokenizer: &Tokenizer) -> Vec<PreviewRow> {
    let row = |(id, weight): (&u32, &f32)| {
        let bytes = tokenizer.token_bytes(*id);
        let text = match bytes.map(String::from_utf8) {
            None => "<no such token>".to_owned(),
            Some(Ok(text)) => text,
            Some(Err(error)) => error.as_bytes().iter().map(|byte| format!("<0x{byte:02X}>")).collect(),
        };
        PreviewRow { id: *id, text, target: *weight != 0.0, weight: *weight }
    };
    example.ids.iter().zip(&example.weights).map(row).collect()
}
