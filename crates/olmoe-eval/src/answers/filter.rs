//! lm-evaluation-harness' filter by regular expression.

use olmoe_data::white_space::stripped;

use super::pattern::{Pattern, PatternError};

/// Takes one match of a pattern out of a text: `RegexFilter` of lm-evaluation-harness.
#[derive(Clone, Debug)]
pub struct RegexFilter {
    /// The pattern.
    pub pattern: Pattern,
    /// Which of the matches, from 0; negative ones count from the last, which is −1.
    pub select: isize,
    /// What is taken where nothing matches; `[invalid]` by default there.
    pub fallback: String,
}

impl RegexFilter {
    /// The filter's text of an answer: the first group of the match that matched anything, or the whole match of a
    /// pattern without groups, without white space around it.
    ///
    /// # Errors
    /// [`PatternError::Search`].
    pub fn taken(&self, text: &str) -> Result<String, PatternError> {
        let found = self.pattern.matches(text)?;
        let index =
            if self.select < 0 { found.len().checked_add_signed(self.select) } else { Some(self.select as usize) };
        let Some(found) = index.and_then(|index| found.get(index)) else { return Ok(self.fallback.clone()) };
        let group = |index: usize| found.get(index).map_or("", |group| group.as_str());
        let taken = match self.pattern.groups() {
            0 => group(0),
            1 => group(1),
            groups => (1..=groups).map(group).find(|group| !group.is_empty()).unwrap_or(&self.fallback),
        };
        Ok(stripped(taken).to_owned())
    }
}
