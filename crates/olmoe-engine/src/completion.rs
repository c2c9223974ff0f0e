//! What comes of a sample, all together.

use crate::event::{EventKind, Finished, Token};

/// A sample as its events make it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// Its tokens so far.
    pub tokens: Vec<Token>,
    /// Its end, once it has come.
    pub end: Option<Finished>,
}

impl Completion {
    /// Adds what happened.
    pub fn add(&mut self, kind: EventKind) {
        match kind {
            EventKind::Token(token) => self.tokens.push(token),
            EventKind::Finished(end) => self.end = Some(end),
        }
    }

    /// The ids of its tokens.
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    /// Its text.
    pub fn text(&self) -> String {
        let end = self.end.iter().map(|end| end.text.as_str());
        self.tokens.iter().map(|token| token.text.as_str()).chain(end).collect()
    }
}
