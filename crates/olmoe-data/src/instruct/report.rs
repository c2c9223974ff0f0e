//! [`Report`]: what became of the rows.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What became of rows: counted while they are encoded, and printed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Rows that came in.
    pub rows: u64,
    /// Rows that are kept.
    pub kept: u64,
    /// Sequences that were cut off at the greatest length.
    pub truncated: u64,
    /// Rows that were dropped for their length.
    pub too_long: u64,
    /// Rows that were dropped because no token is a target, in pairs on one of the sides.
    pub untrained: u64,
    /// Rows that were dropped because the places of their targets cannot be told.
    pub unknown: u64,
    /// What was wrong with the first of those.
    pub first_unknown: Option<String>,
    /// Sequences whose targets were found by lengths, since beginnings of their text are rendered otherwise.
    pub by_lengths: u64,
    /// Targets that begin before what is trained.
    pub straddling: u64,
    /// Pairs whose sides are the same.
    pub same_sides: u64,
    /// Sequences that are kept; a pair has two.
    pub sequences: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Those that are targets.
    pub targets: u64,
    /// Tokens of the longest sequence.
    pub longest: u64,
    /// Sequences in which the token that ends a text is a target.
    pub ends: u64,
    /// Sequences that begin with the token that begins a text.
    pub begins: u64,
    /// Sequences that begin with that token twice.
    pub begins_twice: u64,
}

impl Report {
    /// Adds the counts of rows that come behind.
    pub fn add(&mut self, other: Report) {
        let pairs = [
            (&mut self.rows, other.rows),
            (&mut self.kept, other.kept),
            (&mut self.truncated, other.truncated),
            (&mut self.too_long, other.too_long),
            (&mut self.untrained, other.untrained),
            (&mut self.unknown, other.unknown),
            (&mut self.by_lengths, other.by_lengths),
            (&mut self.straddling, other.straddling),
            (&mut self.same_sides, other.same_sides),
            (&mut self.sequences, other.sequences),
            (&mut self.tokens, other.tokens),
            (&mut self.targets, other.targets),
            (&mut self.ends, other.ends),
            (&mut self.begins, other.begins),
            (&mut self.begins_twice, other.begins_twice),
        ];
        for (count, more) in pairs {
            *count += more;
        }
        self.longest = self.longest.max(other.longest);
        self.first_unknown = self.first_unknown.take().or(other.first_unknown);
    }

    /// What users should know before they train.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut warn = |count: u64, text: String| {
            if count > 0 {
                warnings.push(text);
            }
        };
        warn(
            u64::from(self.sequences > 0 && self.ends == 0),
            "the token that ends a text is a target nowhere, so the model will not learn to stop; look at the template and at \
             the greatest length"
                .to_owned(),
        );
        let Report { begins_twice, truncated, too_long, untrained, unknown, straddling, same_sides, .. } = self;
        warn(
            *begins_twice,
            format!(
                "{begins_twice} sequences begin with the token that begins a text twice; take it out of the template or of the texts"
            ),
        );
        warn(*truncated, format!("{truncated} sequences were cut off at the greatest length"));
        warn(*too_long, format!("{too_long} rows were dropped for their length"));
        warn(*untrained, format!("{untrained} rows were dropped because none of their tokens is a target"));
        let first = self.first_unknown.as_deref().unwrap_or("");
        warn(*unknown, format!("{unknown} rows were dropped because their targets cannot be told; the first: {first}"));
        warn(
            *straddling,
            format!(
                "{straddling} targets begin before what is trained: the text before it and its first letters are one token"
            ),
        );
        warn(*same_sides, format!("{same_sides} pairs have the same answer on both sides, and teach nothing"));
        warnings
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { rows, kept, sequences, tokens, targets, longest, .. } = self;
        write!(
            f,
            "{kept} of {rows} rows kept: {sequences} sequences of {tokens} tokens, {targets} of them targets; the longest has {longest}"
        )
    }
}
