//! The complete result of a sample.

use crate::event::{EventKind, Finished, Token};

/// The result of a sample, collected from its events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// The tokens so far.
    pub tokens: Vec<Token>,
    /// The end of the sample, once it has ended.
    pub end: Option<Finished>,
}

impl Completion {
    /// Adds an event.
    pub fn add(&mut self, kind: EventKind) {
        match kind {
            EventKind::Token(token) => self.tokens.push(token),
            EventKind::Finished(end) => self.end = Some(end),
        }
    }

    /// The ids of the tokens.
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    /// The text of the sample.
    pub fn text(&self) -> String {
        let end = self.end.iter().map(|end| end.text.as_str());
        self.tokens.iter().map(|token| token.text.as_str()).chain(end).collect()
    }
}
