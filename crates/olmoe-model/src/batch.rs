//! The tokens of one forward pass.

use std::ops::Range;

use olmoe_tensor::memory::Buffer;

/// T tokens of several sequences, one after the other.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids, `[T]`.
    pub ids: Buffer<u32>,
    /// Position of each token in its sequence, for the rotary embedding, `[T]`.
    pub positions: Buffer<u32>,
    /// The first token of each sequence, followed by T.
    pub sequences: Buffer<u32>,
    /// The first token of each segment, followed by T. Attention is restricted to a segment, which is a sequence or one
    /// of its documents. Positions are not reset at documents. With caches, a segment is a sequence or a part of a
    /// [walk](Batch::walk), and attention runs over the path that it goes on from, too.
    pub segments: Buffer<u32>,
    /// Whether a token is hidden from the attention of the others, as padding is, `[T]`; none: no token is. Without a cache.
    pub hidden: Option<Vec<bool>>,
    /// The sequences that attention runs over, where several of them have a prefix in common.
    pub branches: Option<Branches>,
    /// The randomness of a training pass; none: nothing is random.
    pub noise: Option<TokenNoise>,
}

/// Sequences that begin with the same tokens, which the batch has once: attention runs over whole sequences, everything
/// else over the tokens of the batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Branches {
    /// The token of the batch that each token of the whole sequences is.
    pub tokens: Vec<u32>,
    /// For each token of the batch, its first place among those of the whole sequences.
    pub places: Vec<u32>,
    /// The first token of each whole sequence, followed by their number.
    pub segments: Vec<u32>,
}

/// The randomness of a training pass: the dropout of adapters, and noise on the embeddings. It depends on the key of a
/// token and its place in the model alone, so that it is the same in any batch and when a block is recomputed.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenNoise {
    /// A key for each token, `[T]`.
    pub keys_t: Vec<u64>,
    /// Uniform numbers between minus this and this are added to the embeddings (NEFTune); 0 for none.
    pub embedding: f32,
}

/// Why the lengths of a batch were rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A sequence length does not divide the number of tokens.
    #[error("batch: {tokens} tokens are not a multiple of the sequence length {length}; pass a multiple of it")]
    Uneven {
        /// Number of tokens.
        tokens: usize,
        /// The sequence length.
        length: usize,
    },
    /// Lengths do not sum to the tokens.
    #[error("batch: the {what} lengths sum to {sum}, but there are {tokens} tokens; they have to cover every token")]
    Sum {
        /// `sequence`, `document` or `part`.
        what: &'static str,
        /// Sum of the lengths.
        sum: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// A number that does not fit 32 bits.
    #[error("batch: {what} {found}, expected at most {}; make the batches smaller", u32::MAX)]
    TooMany {
        /// What is counted: `tokens:`, or the position after the previous tokens.
        what: &'static str,
        /// The number.
        found: usize,
    },
    /// The number of previous lengths is not the number of sequences.
    #[error("batch: found {found} lengths of previous tokens, expected {expected}, one for each sequence")]
    Held {
        /// Number of lengths.
        found: usize,
        /// Sequences of the batch.
        expected: usize,
    },
    /// Not one flag for each token.
    #[error("batch: {found} flags of hidden tokens, expected {tokens}, one for each token")]
    Flags {
        /// Flags given.
        found: usize,
        /// Tokens of the batch.
        tokens: usize,
    },
    /// Not one key for each token.
    #[error("batch: {found} keys of random numbers, expected {tokens}, one for each token")]
    Keys {
        /// Keys given.
        found: usize,
        /// Tokens of the batch.
        tokens: usize,
    },
    /// A document runs over the end of a sequence.
    #[error("batch: a document runs over the end of the sequence at token {at}; end it there")]
    Straddles {
        /// First token of the next sequence.
        at: usize,
    },
}

/// A number of tokens or a position, which the operations take as 32 bits.
fn counted(what: &'static str, found: usize) -> Result<u32, BatchError> {
    u32::try_from(found).map_err(|_| BatchError::TooMany { what, found })
}

/// Whether lengths cover all tokens.
fn check_sum(what: &'static str, lengths: &[usize], tokens: usize) -> Result<(), BatchError> {
    counted("tokens:", tokens)?;
    let sum = lengths.iter().fold(0, |sum: usize, length| sum.saturating_add(*length));
    if sum == tokens { Ok(()) } else { Err(BatchError::Sum { what, sum, tokens }) }
}

/// Running sums, from 0 to the total, which was counted; lengths of zero are left out.
fn boundaries(lengths: impl Iterator<Item = usize> + Clone) -> Buffer<u32> {
    let lengths = lengths.filter(|length| *length > 0);
    let mut all = Buffer::zeroed(lengths.clone().count() + 1);
    for (i, length) in lengths.enumerate() {
        all[i + 1] = all[i] + length as u32;
    }
    all
}

impl Batch {
    /// Sequences of equal length.
    ///
    /// # Errors
    /// [`BatchError::Uneven`], [`BatchError::TooMany`].
    pub fn uniform(ids: &[u32], length: usize) -> Result<Batch, BatchError> {
        if length == 0 && !ids.is_empty() || length > 0 && !ids.len().is_multiple_of(length) {
            return Err(BatchError::Uneven { tokens: ids.len(), length });
        }
        counted("tokens:", ids.len())?;
        Ok(Batch::build(ids, std::iter::repeat_n(length, ids.len() / length.max(1))))
    }

    /// Sequences of the given lengths.
    ///
    /// # Errors
    /// [`BatchError::Sum`], [`BatchError::TooMany`].
    pub fn new(ids: &[u32], lengths: &[usize]) -> Result<Batch, BatchError> {
        check_sum("sequence", lengths, ids.len())?;
        Ok(Batch::build(ids, lengths.iter().copied()))
    }

    fn build(ids: &[u32], lengths: impl Iterator<Item = usize> + Clone) -> Batch {
        let sequences = boundaries(lengths);
        let mut positions = Buffer::scratch(ids.len());
        for pair in sequences.windows(2) {
            for t in pair[0]..pair[1] {
                positions[t as usize] = t - pair[0];
            }
        }
        Batch {
            ids: Buffer::copy_of(ids),
            positions,
            segments: sequences.clone(),
            sequences,
            hidden: None,
            branches: None,
            noise: None,
        }
    }

    /// Groups of sequences with a common prefix, which is there once. `groups` are the length of the prefix and those of
    /// what follows it in each sequence, at least one, in the order of the tokens. Each token has the results that it has
    /// in its whole sequence, bit for bit. A sequence of the batch is a group.
    ///
    /// A token predicts one other: the token after which sequences differ belongs to each of them, not to the prefix.
    ///
    /// # Errors
    /// [`BatchError::Sum`], [`BatchError::TooMany`].
    pub fn branched(ids: &[u32], groups: &[(usize, Vec<usize>)]) -> Result<Batch, BatchError> {
        let length = |(prefix, branches): &(usize, Vec<usize>)| {
            branches.iter().fold(*prefix, |sum: usize, length| sum.saturating_add(*length))
        };
        let lengths: Vec<usize> = groups.iter().map(length).collect();
        let mut batch = Batch::new(ids, &lengths)?;
        let mut all = Branches { places: vec![0; ids.len()], segments: vec![0], ..Branches::default() };
        let mut start = 0;
        for (prefix, lengths) in groups {
            let shared = start..start + prefix;
            start += prefix;
            for (branch, length) in lengths.iter().enumerate() {
                let own = start..start + length;
                start += length;
                for (position, token) in shared.clone().chain(own).enumerate() {
                    if branch == 0 || position >= *prefix {
                        all.places[token] = all.tokens.len() as u32;
                        batch.positions[token] = position as u32;
                    }
                    all.tokens.push(token as u32);
                }
                all.segments.push(counted("tokens of whole sequences:", all.tokens.len())?);
            }
        }
        batch.branches = Some(all);
        Ok(batch)
    }

    /// A walk through a tree of sequences, depth first, for a pass with one cache: each part, so many tokens before it and
    /// its own length, goes on from the first tokens of the path so far, which are those of the cache and then of the parts
    /// before it. So what sequences have in common is there once, and each token has the results that it has in its whole
    /// sequence, bit for bit. Afterwards the cache has the path of the last part.
    ///
    /// # Errors
    /// [`BatchError::Sum`], [`BatchError::TooMany`]. A part that does not go on from the path is refused by the pass.
    pub fn walk(ids: &[u32], parts: &[(usize, usize)]) -> Result<Batch, BatchError> {
        let lengths: Vec<usize> = parts.iter().map(|(_, length)| *length).collect();
        check_sum("part", &lengths, ids.len())?;
        let mut batch = Batch::build(ids, std::iter::once(ids.len()));
        let mut token = 0;
        for (held, length) in parts {
            counted("a sequence of tokens up to position", held.saturating_add(*length))?;
            for place in 0..*length {
                batch.positions[token] = (held + place) as u32;
                token += 1;
            }
        }
        batch.segments = boundaries(lengths.iter().copied());
        Ok(batch)
    }

    /// The same tokens with attention restricted to documents of the given lengths.
    ///
    /// # Errors
    /// [`BatchError::Sum`], [`BatchError::Straddles`].
    pub fn with_documents(mut self, lengths: &[usize]) -> Result<Batch, BatchError> {
        check_sum("document", lengths, self.ids.len())?;
        let segments = boundaries(lengths.iter().copied());
        if let Some(at) = self.sequences.iter().find(|at| segments.binary_search(at).is_err()) {
            return Err(BatchError::Straddles { at: *at as usize });
        }
        self.segments = segments;
        Ok(self)
    }

    /// The same tokens, of which those with a flag are hidden from the attention of the others. What they see themselves is
    /// said with the operation ([`attention`](olmoe_tensor::ops::attention::forward)).
    ///
    /// # Errors
    /// [`BatchError::Flags`].
    pub fn with_hidden(mut self, hidden: Vec<bool>) -> Result<Batch, BatchError> {
        if hidden.len() != self.tokens() {
            return Err(BatchError::Flags { found: hidden.len(), tokens: self.tokens() });
        }
        self.hidden = hidden.contains(&true).then_some(hidden);
        Ok(self)
    }

    /// The same tokens with the randomness of a training pass.
    ///
    /// # Errors
    /// [`BatchError::Keys`].
    pub fn with_noise(mut self, noise: TokenNoise) -> Result<Batch, BatchError> {
        if noise.keys_t.len() != self.tokens() {
            return Err(BatchError::Keys { found: noise.keys_t.len(), tokens: self.tokens() });
        }
        self.noise = Some(noise);
        Ok(self)
    }

    /// The tokens continue sequences that already have so many tokens, a number for each: moves their positions on.
    ///
    /// # Errors
    /// [`BatchError::Held`], [`BatchError::TooMany`].
    pub fn continued_from(mut self, held: &[usize]) -> Result<Batch, BatchError> {
        if held.len() != self.num_sequences() {
            return Err(BatchError::Held { found: held.len(), expected: self.num_sequences() });
        }
        for (pair, held) in self.sequences.windows(2).zip(held) {
            counted("a sequence of tokens up to position", held.saturating_add((pair[1] - pair[0]) as usize))?;
            self.positions[pair[0] as usize..pair[1] as usize].iter_mut().for_each(|p| *p += *held as u32);
        }
        Ok(self)
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The tokens of each segment of a sequence.
    pub(crate) fn segments_of(&self, sequence: usize) -> impl Iterator<Item = Range<usize>> {
        let [start, end] = [self.sequences[sequence], self.sequences[sequence + 1]];
        let first = self.segments.partition_point(|at| *at < start);
        let pairs = self.segments[first..].windows(2).take_while(move |pair| pair[0] < end);
        pairs.map(|pair| pair[0] as usize..pair[1] as usize)
    }

    /// Sequences.
    pub fn num_sequences(&self) -> usize {
        self.sequences.len() - 1
    }

    /// The next token of each within its sequence as its target, [`IGNORE`] for the last, `[T]`; and how many there
    /// are.
    ///
    /// [`IGNORE`]: olmoe_tensor::ops::cross_entropy::IGNORE
    pub fn next_tokens(&self) -> (Buffer<u32>, usize) {
        let mut targets = Buffer::scratch(self.tokens());
        for pair in self.sequences.windows(2) {
            let (start, end) = (pair[0] as usize, pair[1] as usize);
            targets[start..end - 1].copy_from_slice(&self.ids[start + 1..end]);
            targets[end - 1] = olmoe_tensor::ops::cross_entropy::IGNORE;
        }
        (targets, self.tokens() - self.num_sequences())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_documents_and_targets() {
        let ids: Vec<u32> = (10..20).collect();
        let batch = Batch::uniform(&ids, 5).unwrap().with_documents(&[2, 3, 0, 5]).unwrap();
        assert_eq!(batch.sequences[..], [0, 5, 10]);
        assert_eq!(batch.segments[..], [0, 2, 5, 10]);
        assert_eq!(batch.positions[..], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
        let (targets, count) = batch.next_tokens();
        assert_eq!((targets[3], targets[4], targets[9], count), (14, u32::MAX, u32::MAX, 8));
        assert_eq!(Batch::uniform(&[], 0).unwrap().tokens(), 0);
    }

    #[test]
    fn lengths_that_do_not_fit() {
        let ids = [1, 2, 3, 4];
        assert_eq!(Batch::uniform(&ids, 3).unwrap_err(), BatchError::Uneven { tokens: 4, length: 3 });
        assert_eq!(Batch::uniform(&ids, 0).unwrap_err(), BatchError::Uneven { tokens: 4, length: 0 });
        let sum = BatchError::Sum { what: "sequence", sum: 5, tokens: 4 };
        assert_eq!(Batch::new(&ids, &[2, 3]).unwrap_err(), sum);
        let batch = Batch::uniform(&ids, 2).unwrap();
        assert_eq!(batch.clone().with_documents(&[3, 1]).unwrap_err(), BatchError::Straddles { at: 2 });
        assert_eq!(batch.clone().with_hidden(vec![true]).unwrap_err(), BatchError::Flags { found: 1, tokens: 4 });
        assert_eq!(batch.clone().with_hidden(vec![false; 4]).unwrap().hidden, None);
        let held = BatchError::Held { found: 1, expected: 2 };
        assert_eq!(batch.clone().continued_from(&[7]).unwrap_err(), held);
        assert_eq!(batch.clone().continued_from(&[7, 0]).unwrap().positions[..], [7, 8, 0, 1]);
        assert!(matches!(batch.with_documents(&[1]), Err(BatchError::Sum { what: "document", .. })));
    }

    #[test]
    fn what_32_bits_do_not_count() {
        let most = u32::MAX as usize;
        assert_eq!(counted("tokens:", most), Ok(u32::MAX));
        assert_eq!(counted("tokens:", most + 1), Err(BatchError::TooMany { what: "tokens:", found: most + 1 }));
        // A sum that wraps around to the number of tokens.
        let sum = |what| BatchError::Sum { what, sum: usize::MAX, tokens: 1 };
        assert_eq!(Batch::new(&[7], &[usize::MAX, 2]).unwrap_err(), sum("sequence"));
        let batch = || Batch::new(&[7], &[1]).unwrap();
        assert_eq!(batch().with_documents(&[usize::MAX, 2]).unwrap_err(), sum("document"));
        assert_eq!(batch().continued_from(&[most - 1]).unwrap().positions[..], [u32::MAX - 1]);
        for held in [most, most + 2, usize::MAX] {
            let found = held.saturating_add(1);
            let what = "a sequence of tokens up to position";
            assert_eq!(batch().continued_from(&[held]).unwrap_err(), BatchError::TooMany { what, found });
        }
    }
}
