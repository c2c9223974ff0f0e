//! Sequences one after the other, as a batch of the model, and what is to be predicted in them.

use std::borrow::Cow;
use std::ops::Range;

use olmoe_data::instruct::{Example, Part};
use olmoe_model::batch::{Batch, BatchError, TokenNoise};
use olmoe_tensor::ops::cross_entropy::IGNORE;

/// Tokens with their weights as targets.
pub(super) type Sequence<'a> = (Cow<'a, [u32]>, Cow<'a, [f32]>);

/// Sequences that begin with the same tokens.
pub(super) struct Unit<'a> {
    /// The row that they are of.
    pub(super) row: usize,
    /// The place of their first token in the row.
    pub(super) start: usize,
    /// The tokens at the beginning that are computed once for all of them; none of these predicts a token that is learned.
    pub(super) prefix: usize,
    /// Each with the prefix.
    pub(super) sequences: Vec<Sequence<'a>>,
}

impl<'a> Unit<'a> {
    /// One example.
    pub(super) fn of(row: usize, example: &'a Example) -> Unit<'a> {
        let sequence = (Cow::Borrowed(&example.ids[..]), Cow::Borrowed(&example.weights[..]));
        Unit { row, start: 0, prefix: 0, sequences: vec![sequence] }
    }

    /// A part of an example.
    pub(super) fn part(rows: &'a [Example], part: &Part) -> Unit<'a> {
        let range = part.start..part.start + part.length;
        let (ids, weights) = (&rows[part.row].ids[range.clone()], &rows[part.row].weights[range]);
        let sequence = (Cow::Borrowed(ids), Cow::Borrowed(weights));
        Unit { row: part.row, start: part.start, prefix: 0, sequences: vec![sequence] }
    }

    /// Tokens that are computed.
    pub(super) fn tokens(&self) -> usize {
        self.sequences.iter().fold(self.prefix, |sum, (ids, _)| sum + ids.len() - self.prefix)
    }
}

/// The randomness of the training passes of a step: dropout of adapters, noise on the embeddings. That of a token follows
/// from the step, its row and its place there alone, so that no division into passes changes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct StepNoise {
    /// Of the run.
    pub(super) seed: u64,
    /// The step.
    pub(super) step: u64,
    /// The largest number that is added to an embedding.
    pub(super) amplitude: f32,
}

impl StepNoise {
    fn key(&self, row: usize, place: usize) -> u64 {
        // SplitMix64's output function (Steele, Lea, Flood 2014) over one number after the other.
        [self.step, row as u64, place as u64].into_iter().fold(self.seed, |state, number| {
            let z = (state ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        })
    }
}

/// Sequences as a batch.
pub(super) struct Stack {
    pub(super) batch: Batch,
    /// The token to predict after each token, [`IGNORE`] for none.
    pub(super) targets: Vec<u32>,
    /// The weight of each in the loss; 0 for none.
    pub(super) weights: Vec<f64>,
    /// The tokens of each sequence, without those that it has in common with others.
    pub(super) sequences: Vec<Range<usize>>,
}

impl Stack {
    /// Units in their order, and the randomness of the pass.
    pub(super) fn new<'u, 'a: 'u>(
        units: impl Iterator<Item = &'u Unit<'a>>,
        noise: Option<&StepNoise>,
    ) -> Result<Stack, BatchError> {
        let (mut ids, mut groups, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        let (mut targets, mut weights, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        let (mut keys_t, mut shared) = (Vec::new(), false);
        for unit in units {
            let mut add = |(own, weight): &Sequence<'_>, range: Range<usize>, last: usize| {
                for at in range {
                    ids.push(own[at]);
                    let next = weight.get(at + 1).copied().filter(|weight| *weight != 0.0 && at < last);
                    targets.push(if next.is_some() { own[at + 1] } else { IGNORE });
                    weights.push(f64::from(next.unwrap_or(0.0)));
                    keys_t.extend(noise.map(|noise| noise.key(unit.row, unit.start + at)));
                }
                ids.len()
            };
            if let Some(first) = unit.sequences.first() {
                // What the prefix predicts is the prefix.
                add(first, 0..unit.prefix, 0);
            }
            let mut branches = Vec::new();
            for sequence in &unit.sequences {
                let length = sequence.0.len();
                let end = add(sequence, unit.prefix..length, length);
                sequences.push(end - (length - unit.prefix)..end);
                branches.push(length - unit.prefix);
            }
            shared |= unit.prefix > 0;
            if unit.prefix == 0 {
                lengths.extend_from_slice(&branches);
                groups.extend(branches.into_iter().map(|length| (0, vec![length])));
            } else {
                groups.push((unit.prefix, branches));
            }
        }
        let mut batch = if shared { Batch::branched(&ids, &groups)? } else { Batch::new(&ids, &lengths)? };
        if let Some(noise) = noise {
            batch = batch.with_noise(TokenNoise { keys_t, embedding: noise.amplitude })?;
        }
        Ok(Stack { batch, targets, weights, sequences })
    }

    /// Of each sequence, the numbers of the tokens that are learned.
    pub(super) fn learned(&self, numbers: &[f32]) -> Vec<Vec<f32>> {
        let of = |range: &Range<usize>| {
            let learned = range.clone().filter(|t| self.targets[*t] != IGNORE);
            learned.map(|t| numbers[t]).collect::<Vec<f32>>()
        };
        self.sequences.iter().map(of).collect()
    }

    /// Writes a number for each token that is learned, given the sequence and the place among its learned tokens.
    pub(super) fn spread(&self, number: impl Fn(usize, usize) -> f64) -> Vec<f32> {
        let mut all = vec![0.0; self.targets.len()];
        for (sequence, range) in self.sequences.iter().enumerate() {
            let learned = range.clone().filter(|t| self.targets[*t] != IGNORE);
            learned.enumerate().for_each(|(at, t)| all[t] = number(sequence, at) as f32);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(ids: &[u32], weights: &[f32]) -> Sequence<'static> {
        (Cow::Owned(ids.to_vec()), Cow::Owned(weights.to_vec()))
    }

    #[test]
    fn targets_are_the_next_tokens_within_a_sequence() {
        let sequences =
            [sequence(&[5, 6, 7], &[0.0, 0.0, 1.0]), sequence(&[8], &[0.0]), sequence(&[9, 4, 3], &[0.0, 0.5, 1.0])];
        let units = sequences.map(|own| Unit { row: 0, start: 0, prefix: 0, sequences: vec![own] });
        let stack = Stack::new(units.iter(), None).expect("a batch");
        assert_eq!(stack.targets, [IGNORE, 7, IGNORE, IGNORE, 4, 3, IGNORE]);
        assert_eq!(stack.weights, [0.0, 1.0, 0.0, 0.0, 0.5, 1.0, 0.0]);
        assert_eq!(stack.learned(&[0., 1., 2., 3., 4., 5., 6.]), [vec![1.0], vec![], vec![4.0, 5.0]]);
        assert_eq!(stack.spread(|s, t| (10 * s + t) as f64), [0.0, 0.0, 0.0, 0.0, 20.0, 21.0, 0.0]);
    }

    #[test]
    fn a_prefix_is_there_once() {
        let sequences = vec![
            sequence(&[5, 6, 7, 8], &[0.0, 0.0, 0.0, 1.0]),
            sequence(&[5, 6, 7, 9, 4], &[0.0, 0.0, 0.0, 1.0, 1.0]),
        ];
        let unit = Unit { row: 3, start: 0, prefix: 2, sequences };
        assert_eq!(unit.tokens(), 2 + 2 + 3);
        let noise = StepNoise { seed: 1, step: 2, amplitude: 0.5 };
        let stack = Stack::new([&unit].into_iter(), Some(&noise)).expect("a batch");
        assert_eq!(stack.batch.ids[..], [5, 6, 7, 8, 7, 9, 4]);
        assert_eq!(stack.batch.positions[..], [0, 1, 2, 3, 2, 3, 4]);
        assert_eq!(stack.targets, [IGNORE, IGNORE, 8, IGNORE, 9, 4, IGNORE]);
        assert_eq!(stack.sequences, [2..4, 4..7]);
        let keys = stack.batch.noise.expect("noise").keys_t;
        assert!(keys[2] == keys[4] && keys[3] == keys[5] && keys[0] != keys[1]);
        let other = StepNoise { step: 3, ..noise };
        assert_ne!(other.key(3, 0), keys[0]);
    }
}
