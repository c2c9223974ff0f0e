//! Losses of n-gram models: what counting alone predicts, and a language model has to do better than.

use std::collections::HashMap;

/// The absolute discount: taken from each pair that was seen, and distributed by how frequent the second token is.
const DISCOUNT: f64 = 0.75;
/// Added to the count of every token, so that none has probability 0.
const ADDED: f64 = 0.1;

/// Counts of tokens and of pairs of tokens.
///
/// `P(t) = (c_t + 0.1) / (N + 0.1 V)`, and with absolute discounting (Ney, Essen and Kneser, 1994)
/// `P(t | s) = max(c_st − 0.75, 0) / c_s + 0.75 n_s / c_s · P(t)`, where `n_s` is how many different tokens follow `s`;
/// where a token was never followed by another, the probability is `P(t)`.
pub struct NGrams {
    tokens: Vec<u64>,
    total: u64,
    pairs: HashMap<(u32, u32), u64>,
    /// For each token as the first of a pair: how often it occurs, and how many different tokens follow it.
    firsts: Vec<(u64, u64)>,
}

impl NGrams {
    /// No counts yet, for a vocabulary of this size. Ids beyond the vocabulary are not counted and have probability 0.
    pub fn new(vocabulary: usize) -> NGrams {
        NGrams { tokens: vec![0; vocabulary], total: 0, pairs: HashMap::new(), firsts: vec![(0, 0); vocabulary] }
    }

    /// Counts the tokens and pairs of a text.
    pub fn count(&mut self, ids: &[u32]) {
        for id in ids {
            if let Some(count) = self.tokens.get_mut(*id as usize) {
                *count += 1;
                self.total += 1;
            }
        }
        for pair in ids.windows(2) {
            let Some(first) = self.firsts.get_mut(pair[0] as usize) else { continue };
            let seen = self.pairs.entry((pair[0], pair[1])).or_insert(0);
            first.0 += 1;
            first.1 += u64::from(*seen == 0);
            *seen += 1;
        }
    }

    /// Probability of a token, whatever comes before it.
    pub fn unigram(&self, id: u32) -> f64 {
        let Some(count) = self.tokens.get(id as usize) else { return 0.0 };
        (*count as f64 + ADDED) / (self.total as f64 + ADDED * self.tokens.len() as f64)
    }

    /// Probability of a token after another one.
    pub fn bigram(&self, before: u32, id: u32) -> f64 {
        match self.firsts.get(before as usize) {
            Some((times, different)) if *times > 0 => {
                let seen = self.pairs.get(&(before, id)).map_or(0.0, |count| *count as f64 - DISCOUNT);
                (seen + DISCOUNT * *different as f64 * self.unigram(id)) / *times as f64
            }
            _ => self.unigram(id),
        }
    }

    /// Mean losses in nats, of the unigram and of the bigram model, over sequences of `sequence_length` tokens; the
    /// first token of each sequence is not predicted. They are comparable with a language model's loss over the same
    /// sequences. An incomplete sequence at the end is left out; None if there is no complete one.
    pub fn losses(&self, ids: &[u32], sequence_length: usize) -> Option<(f64, f64)> {
        let pairs = ids.chunks_exact(sequence_length.max(1)).flat_map(|sequence| sequence.windows(2));
        let (mut unigram, mut bigram, mut count) = (0.0, 0.0, 0u64);
        for pair in pairs {
            unigram -= self.unigram(pair[1]).ln();
            bigram -= self.bigram(pair[0], pair[1]).ln();
            count += 1;
        }
        (count > 0).then(|| (unigram / count as f64, bigram / count as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one() {
        let mut counted = NGrams::new(5);
        counted.count(&[0, 1, 0, 2, 0, 1, 3]);
        counted.count(&[1, 1]);
        let sum = |p: &dyn Fn(u32) -> f64| (0..5).map(p).sum::<f64>();
        assert!((sum(&|id| counted.unigram(id)) - 1.0).abs() < 1e-12);
        for before in 0..5 {
            assert!((sum(&|id| counted.bigram(before, id)) - 1.0).abs() < 1e-12, "after {before}");
        }
        // 0 is followed by 1 twice and by 2 once; 4 was never seen, and 3 was never followed.
        let expected = (2.0 - 0.75) / 3.0 + 0.75 * 2.0 / 3.0 * counted.unigram(1);
        assert!((counted.bigram(0, 1) - expected).abs() < 1e-12);
        assert_eq!(counted.bigram(3, 2), counted.unigram(2));
        assert!(counted.unigram(4) > 0.0);
        assert_eq!((counted.unigram(5), counted.bigram(5, 0)), (0.0, counted.unigram(0)));
    }

    #[test]
    fn losses_are_those_of_whole_sequences() {
        let mut counted = NGrams::new(3);
        counted.count(&[0, 1, 2, 0, 1, 2, 0, 1]);
        let (unigram, bigram) = counted.losses(&[0, 1, 2, 2, 2], 3).unwrap();
        let expected = -(counted.unigram(1).ln() + counted.unigram(2).ln()) / 2.0;
        assert!((unigram - expected).abs() < 1e-12);
        assert!(bigram < unigram / 2.0);
        assert_eq!(counted.losses(&[0, 1], 3), None);
    }
}
