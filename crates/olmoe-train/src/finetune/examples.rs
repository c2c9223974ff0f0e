//! The examples of fine-tuning, their order, and how they are divided into steps and passes.
//!
//! An epoch is a list of units, each of which is a conversation, a packed sequence of several, a pair or a labelled answer. The
//! list is a function of the data, the seed and the epoch alone, so that a position in it means the same units always.

use std::ops::Range;

use olmoe_data::instruct::{Encoded, Example, InstructError, LabelledExample, PairExample, Part, epoch_order, pack};
use serde::{Deserialize, Serialize};

use super::error::FinetuneError;
use super::settings::{FinetuneSettings, MicroBatch, PackingSettings};
use crate::trainer::DataPosition;

/// Examples as tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Examples {
    /// Conversations and texts.
    Conversations(Vec<Example>),
    /// Pairs of answers.
    Pairs(Vec<PairExample>),
    /// Labelled answers.
    Labelled(Vec<LabelledExample>),
}

/// The data of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct FinetuneData {
    /// What it learns from.
    pub train: Examples,
    /// What it is evaluated on.
    pub evaluation: Option<Examples>,
}

impl Examples {
    /// Encoded rows, which have to be of one kind.
    ///
    /// # Errors
    /// The kinds that were found, where there are several.
    pub fn of(rows: Vec<Encoded>) -> Result<Examples, FinetuneError> {
        let kind = |row: &Encoded| match row {
            Encoded::Example(_) => CONVERSATIONS,
            Encoded::Pair(_) => PAIRS,
            Encoded::Labelled(_) => LABELLED,
        };
        let first = rows.first().map_or(CONVERSATIONS, kind);
        if let Some(other) = rows.iter().find(|row| kind(row) != first) {
            return Err(FinetuneError::Mixed { first, other: kind(other) });
        }
        let (mut examples, mut pairs, mut labelled) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            match row {
                Encoded::Example(example) => examples.push(example),
                Encoded::Pair(pair) => pairs.push(pair),
                Encoded::Labelled(answer) => labelled.push(answer),
            }
        }
        Ok(match first {
            PAIRS => Examples::Pairs(pairs),
            LABELLED => Examples::Labelled(labelled),
            _ => Examples::Conversations(examples),
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Examples::Conversations(rows) => rows.len(),
            Examples::Pairs(rows) => rows.len(),
            Examples::Labelled(rows) => rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes out a held-out part: this share of the examples, rounded down, drawn by the seed. Both parts keep the order of
    /// the data.
    pub fn split(self, share: f64, seed: u64) -> Result<(Examples, Examples), InstructError> {
        let rows = self.len();
        let held = (rows as f64 * share.clamp(0.0, 1.0)) as usize;
        let order = epoch_order(u32::try_from(rows).unwrap_or(u32::MAX), seed, 0, true).map_err(order_error)?;
        let mut out = vec![false; rows];
        order.iter().take(held).for_each(|row| out[*row as usize] = true);
        fn divide<T>(rows: Vec<T>, out: &[bool]) -> (Vec<T>, Vec<T>) {
            let (held, kept): (Vec<_>, Vec<_>) = rows.into_iter().zip(out).partition(|(_, out)| **out);
            (kept.into_iter().map(|(row, _)| row).collect(), held.into_iter().map(|(row, _)| row).collect())
        }
        Ok(match self {
            Examples::Conversations(rows) => {
                let (kept, held) = divide(rows, &out);
                (Examples::Conversations(kept), Examples::Conversations(held))
            }
            Examples::Pairs(rows) => {
                let (kept, held) = divide(rows, &out);
                (Examples::Pairs(kept), Examples::Pairs(held))
            }
            Examples::Labelled(rows) => {
                let (kept, held) = divide(rows, &out);
                (Examples::Labelled(kept), Examples::Labelled(held))
            }
        })
    }

    /// What they are called.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Examples::Conversations(_) => CONVERSATIONS,
            Examples::Pairs(_) => PAIRS,
            Examples::Labelled(_) => LABELLED,
        }
    }

    /// The sequences of a row.
    pub(super) fn sequences(&self, row: usize) -> Vec<&Example> {
        match self {
            Examples::Conversations(rows) => vec![&rows[row]],
            Examples::Pairs(rows) => vec![&rows[row].chosen, &rows[row].rejected],
            Examples::Labelled(rows) => vec![&rows[row].example],
        }
    }

    /// Checks that the model can take them, and that each has something to learn.
    pub(super) fn check(&self, what: &'static str, vocabulary: usize, longest: usize) -> Result<(), FinetuneError> {
        for at in 0..self.len() {
            for example in self.sequences(at) {
                let fault = |problem: String, advice| Err(FinetuneError::Example { what, at, problem, advice });
                let (ids, weights) = (example.ids.len(), example.weights.len());
                if ids != weights {
                    return fault(format!("{ids} tokens and {weights} weights"), "encode it again");
                }
                if ids > longest {
                    let advice = "encode with a smaller max_length";
                    return fault(format!("{ids} tokens, and the model's longest sequence has {longest}"), advice);
                }
                if let Some(id) = example.ids.iter().find(|id| **id as usize >= vocabulary) {
                    let advice = "encode with the tokenizer of the model";
                    return fault(format!("the token {id}, and the model has {vocabulary}"), advice);
                }
                if example.num_targets() == 0 || example.weights.first().is_some_and(|weight| *weight != 0.0) {
                    let advice = "leave it out: the first token is no target, and one of the others has to be";
                    return fault("no token is learned".to_owned(), advice);
                }
                if let Some(weight) = example.weights.iter().find(|weight| !weight.is_finite()) {
                    return fault(format!("the weight {weight}"), "give it finite weights");
                }
            }
        }
        Ok(())
    }

    /// A hash of all tokens and weights.
    pub(super) fn hash(&self) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(self.kind().as_bytes());
        for row in 0..self.len() {
            for example in self.sequences(row) {
                let length = (example.ids.len() as u64).to_le_bytes();
                let ids = example.ids.iter().flat_map(|id| id.to_le_bytes());
                let weights = example.weights.iter().flat_map(|weight| weight.to_le_bytes());
                hash.update(&length.into_iter().chain(ids).chain(weights).collect::<Vec<u8>>());
            }
            if let Examples::Labelled(rows) = self {
                hash.update(&[u8::from(rows[row].desirable)]);
            }
        }
        hash.finalize().to_string()
    }
}

pub(super) const CONVERSATIONS: &str = "conversations";
pub(super) const PAIRS: &str = "pairs of answers";
pub(super) const LABELLED: &str = "labelled answers";

pub(super) fn order_error(error: olmoe_data::pretrain::DataError) -> InstructError {
    InstructError::Setting { key: "data", value: error.to_string(), expected: "fewer examples".to_owned() }
}

/// What the order of the units depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitOrder {
    seed: u64,
    shuffle: bool,
    /// Whether all epochs have the order of the first.
    fixed: bool,
    examples: u64,
    hash: String,
    packing: Option<(usize, olmoe_data::instruct::Packing)>,
}

impl UnitOrder {
    pub(super) fn new(settings: &FinetuneSettings, examples: &Examples, fixed: bool) -> UnitOrder {
        UnitOrder {
            seed: settings.seed,
            shuffle: settings.shuffle,
            fixed,
            examples: examples.len() as u64,
            hash: examples.hash(),
            packing: settings.packing.map(|packing| (packing.length, packing.rule)),
        }
    }

    /// The hash of the examples.
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    /// The rows of an epoch.
    pub(super) fn rows(&self, epoch: u64) -> Result<Vec<u32>, InstructError> {
        let rows = u32::try_from(self.examples).unwrap_or(u32::MAX);
        let epoch = if self.fixed { 0 } else { epoch };
        epoch_order(rows, self.seed, epoch, self.shuffle).map_err(order_error)
    }

    /// The units of an epoch, each of parts of rows; `lengths` are those of the rows.
    pub(super) fn units(&self, lengths: &[usize], epoch: u64) -> Result<Vec<Vec<Part>>, InstructError> {
        let order = self.rows(epoch)?;
        let Some((length, rule)) = self.packing else {
            let whole = |row: &u32| vec![Part { row: *row as usize, start: 0, length: lengths[*row as usize] }];
            return Ok(order.iter().map(whole).collect());
        };
        let mut packed: Vec<Option<Vec<Part>>> = pack(&order, lengths, length, rule)?.into_iter().map(Some).collect();
        // Packing puts the longest first.
        let rows = u32::try_from(packed.len()).unwrap_or(u32::MAX);
        let order = epoch_order(rows, self.seed, epoch, self.shuffle).map_err(order_error)?;
        Ok(order.iter().filter_map(|at| packed[*at as usize].take()).collect())
    }

    /// How many units an epoch has, which is the same for all: packing sorts by length, and which of equally long rows
    /// comes first does not matter to the number of sequences.
    pub(super) fn count(&self, lengths: &[usize]) -> Result<u64, InstructError> {
        match self.packing {
            None => Ok(self.examples),
            Some((length, rule)) => {
                let rows: Vec<u32> = (0..u32::try_from(self.examples).unwrap_or(u32::MAX)).collect();
                Ok(pack(&rows, lengths, length, rule)?.len() as u64)
            }
        }
    }
}

impl DataPosition for UnitOrder {
    const ADVICE: &str = "train into another folder";

    fn differences(&self, now: &UnitOrder) -> Vec<String> {
        let mut all = Vec::new();
        let mut differ = |what: &str, then: String, now: String| {
            if then != now {
                all.push(format!("{what} was {then} and is {now}"));
            }
        };
        differ("the seed of the order", self.seed.to_string(), now.seed.to_string());
        differ("whether epochs are shuffled", self.shuffle.to_string(), now.shuffle.to_string());
        differ("whether all epochs have one order", self.fixed.to_string(), now.fixed.to_string());
        differ("the number of examples", self.examples.to_string(), now.examples.to_string());
        let packing = |order: &UnitOrder| order.packing.map_or("none".to_owned(), |packing| format!("{packing:?}"));
        differ("packing", packing(self), packing(now));
        if all.is_empty() && self.hash != now.hash {
            all.push(format!("the hash of the examples was {} and is {}", self.hash, now.hash));
        }
        all
    }
}

/// Consecutive units that pass at once, given the tokens of each.
pub(super) fn micro_batches(tokens: &[usize], rule: MicroBatch) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = Vec::new();
    let mut held = 0;
    for (at, own) in tokens.iter().enumerate() {
        let full = match (rule, all.last()) {
            (_, None) => true,
            (MicroBatch::Examples(most), Some(last)) => last.len() >= most,
            (MicroBatch::Tokens(most), Some(_)) => held + own > most,
        };
        match all.last_mut().filter(|_| !full) {
            Some(last) => last.end = at + 1,
            None => {
                all.push(at..at + 1);
                held = 0;
            }
        }
        held += own;
    }
    all
}

/// Whether a row is packed in whole, or its end is left out.
pub(super) fn cut(lengths: &[usize], packing: &PackingSettings) -> usize {
    use olmoe_data::instruct::Packing::BestFitSplit;
    if packing.rule == BestFitSplit { 0 } else { lengths.iter().filter(|length| **length > packing.length).count() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_divided_by_examples_or_tokens() {
        let tokens = [3, 4, 2, 9, 1, 1];
        assert_eq!(micro_batches(&tokens, MicroBatch::Examples(4)), [0..4, 4..6]);
        assert_eq!(micro_batches(&tokens, MicroBatch::Tokens(7)), [0..2, 2..3, 3..4, 4..6]);
        assert_eq!(micro_batches(&tokens, MicroBatch::Tokens(100)), std::iter::once(0..6).collect::<Vec<_>>());
        assert_eq!(micro_batches(&[], MicroBatch::Tokens(1)), [0..0; 0]);
    }
}
