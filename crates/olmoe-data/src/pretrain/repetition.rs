//! Instances that repeat themselves, such as a page of dashes: they make a loss jump and teach nothing.

/// Keeps instances out of the loss in which few tokens are repeated many times in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepetitionFilter {
    /// Longest period looked for, in tokens.
    pub max_period: usize,
    /// Shortest period looked for.
    pub min_period: usize,
    /// So many times in a row are too many. Below three times nothing counts as repeated.
    pub max_count: usize,
}

impl Default for RepetitionFilter {
    fn default() -> RepetitionFilter {
        RepetitionFilter { max_period: 13, min_period: 1, max_count: 32 }
    }
}

/// Tokens that come again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repetition {
    /// The first token.
    pub start: usize,
    /// One past the last token.
    pub end: usize,
    /// After so many tokens they come again.
    pub period: usize,
}

impl Repetition {
    /// How often the period is there in full.
    pub fn times(&self) -> usize {
        (self.end - self.start) / self.period.max(1)
    }
}

impl RepetitionFilter {
    /// Whether an instance may be learnt from.
    pub fn passes(&self, ids: &[u32]) -> bool {
        let mut passes = true;
        self.each(ids, |repetition| {
            passes = repetition.times() < self.max_count;
            passes
        });
        passes
    }

    /// All repetitions of at least three times, by period and place.
    pub fn find(&self, ids: &[u32]) -> Vec<Repetition> {
        let mut found = Vec::new();
        self.each(ids, |repetition| {
            found.push(repetition);
            true
        });
        found
    }

    /// Tells of the repetitions as long as it is answered with true.
    fn each(&self, ids: &[u32], mut tell: impl FnMut(Repetition) -> bool) {
        for period in self.min_period.max(1)..=self.max_period.min(ids.len() / 3) {
            // As long as tokens equal those a period before, the repetition goes on.
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
