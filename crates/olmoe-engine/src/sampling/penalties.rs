//! Penalties on tokens of the prompt and the text.

use std::collections::BTreeMap;

use super::{Candidate, Sampling};

/// The tokens of a sample: which of them have occurred, and how often each was generated.
#[derive(Clone, Debug, Default)]
pub(crate) struct History(BTreeMap<u32, u32>);

impl History {
    /// The history after a prompt.
    pub(crate) fn new(prompt: &[u32]) -> History {
        History(prompt.iter().map(|id| (*id, 0)).collect())
    }

    /// Adds a generated token.
    pub(crate) fn add(&mut self, id: u32) {
        *self.0.entry(id).or_default() += 1;
    }

    /// Lowers the logits of `list`, in which the token `v` is at `v`.
    pub(super) fn penalize(&self, sampling: &Sampling, list: &mut [Candidate]) {
        let r = sampling.repetition_penalty;
        for (&id, &count) in &self.0 {
            let logit = &mut list[id as usize].logit;
            *logit = if *logit > 0.0 { *logit / r } else { *logit * r };
            if count > 0 {
                *logit -= sampling.frequency_penalty * f64::from(count) + sampling.presence_penalty;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_by_their_formulas() {
        let mut history = History::new(&[0, 1, 1, 4]);
        [4, 2, 2, 2].into_iter().for_each(|id| history.add(id));
        let logits = [3.0, -3.0, 2.0, 1.0, -1.0, 0.0];
        let penalized = |sampling: Sampling| {
            let candidate = |(id, logit): (usize, &f64)| Candidate { id: id as u32, logit: *logit, weight: 0.0 };
            let mut list: Vec<Candidate> = logits.iter().enumerate().map(candidate).collect();
            history.penalize(&sampling, &mut list);
            list.iter().map(|candidate| candidate.logit).collect::<Vec<f64>>()
        };
        let none = Sampling::default();
        assert_eq!(penalized(none.clone()), logits);
        // Prompt and text, however often.
        let repetition = Sampling { repetition_penalty: 2.0, ..none.clone() };
        assert_eq!(penalized(repetition.clone()), [1.5, -6.0, 1.0, 1.0, -2.0, 0.0]);
        assert_eq!(penalized(Sampling { repetition_penalty: 0.5, ..none.clone() }), [6.0, -1.5, 4.0, 1.0, -0.5, 0.0]);
        // Only the text.
        assert_eq!(penalized(Sampling { presence_penalty: 0.5, ..none.clone() }), [3.0, -3.0, 1.5, 1.0, -1.5, 0.0]);
        assert_eq!(penalized(Sampling { frequency_penalty: 0.5, ..none }), [3.0, -3.0, 0.5, 1.0, -1.5, 0.0]);
        // The repetition first, then the others.
        let all = Sampling { frequency_penalty: 0.25, presence_penalty: -1.0, ..repetition };
        assert_eq!(penalized(all), [1.5, -6.0, 1.0 - 0.75 + 1.0, 1.0, -2.0 - 0.25 + 1.0, 0.0]);
    }
}
