//! A filter of repetitive instances, such as a page of dashes: they make the loss spike and teach nothing.

/// Keeps instances out of the loss in which a short sequence of tokens is repeated many times in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepetitionFilter {
    /// The longest period to look for, in tokens.
    pub max_period: usize,
    /// The shortest period to look for, in tokens.
    pub min_period: usize,
    /// The number of repetitions in a row from which on an instance is kept out. Fewer than three do not count as
    /// repetition.
    pub max_count: usize,
}

impl Default for RepetitionFilter {
    fn default() -> RepetitionFilter {
        RepetitionFilter { max_period: 13, min_period: 1, max_count: 32 }
    }
}

/// A run of repeated tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repetition {
    /// The first token.
    pub start: usize,
    /// One past the last token.
    pub end: usize,
    /// The length of the repeated sequence.
    pub period: usize,
}

impl Repetition {
    /// How many times the whole sequence occurs.
    pub fn times(&self) -> usize {
        (self.end - self.start) / self.period.max(1)
    }
}

impl RepetitionFilter {
    /// Whether an instance counts in the loss.
    pub fn passes(&self, ids: &[u32]) -> bool {
        let mut passes = true;
        self.each(ids, |repetition| {
            passes = repetition.times() < self.max_count;
            passes
        });
        passes
    }

    /// All runs of at least three repetitions, by period and position.
    pub fn find(&self, ids: &[u32]) -> Vec<Repetition> {
        let mut found = Vec::new();
        self.each(ids, |repetition| {
            found.push(repetition);
            true
        });
        found
    }

    /// Calls `tell` with each repetition until it returns false.
    fn each(&self, ids: &[u32], mut tell: impl FnMut(Repetition) -> bool) {
        for period in self.min_period.max(1)..=self.max_period.min(ids.len() / 3) {
            // As long as each token equals the one a period before, the repetition goes on.
            let mut run = 0;
            for at in period..=ids.len() {
                if at < ids.len() && ids[at] == ids[at - period] {
                    run += 1;
                    continue;
                }
                let repetition = Repetition { start: at - run - period, end: at, period };
                run = 0;
                if repetition.times() > 2 && !tell(repetition) {
                    return;
                }
            }
        }
    }
}
