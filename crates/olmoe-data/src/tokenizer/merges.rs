//! Byte-pair encoding of single words, with a cache of words encoded before.
//!
//! The pair with the lowest rank is merged first, the leftmost of equal ones. The cache returns only what merging gave,
//! so it does not affect the result.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ahash::AHashMap;

/// Words of at most this many bytes are cached, if they have at most [`REMEMBERED_TOKENS`] tokens.
const REMEMBERED_BYTES: usize = 24;
const REMEMBERED_TOKENS: usize = 8;
/// The number of entries of the cache; a word has one entry, where it replaces the word before.
const PLACES: usize = 1 << 14;
/// No neighbour.
const NONE: usize = usize::MAX;
/// The id of a symbol that has gone into the one before it.
const GONE: u32 = u32::MAX;

/// The merges of a vocabulary.
#[derive(Debug)]
pub(super) struct Merges {
    /// The token of each byte.
    pub(super) bytes: [u32; 256],
    /// A pair of tokens to its rank and the token it becomes.
    pub(super) pairs: AHashMap<(u32, u32), (u32, u32)>,
    /// Words that are tokens as a whole, where the vocabulary requires a look-up before merging.
    pub(super) whole: Option<AHashMap<Vec<u8>, u32>>,
}

/// Scratch memory of encoding: one for each encoding thread.
pub(super) struct Work {
    memory: Vec<Remembered>,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<(u32, usize)>>,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Remembered {
    word: [u64; 3],
    tokens: [u32; REMEMBERED_TOKENS],
    bytes: u8,
    count: u8,
}

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    previous: usize,
    next: usize,
}

impl Work {
    pub(super) fn new() -> Work {
        let empty = Remembered { word: [0; 3], tokens: [0; REMEMBERED_TOKENS], bytes: 0, count: 0 };
        Work { memory: vec![empty; PLACES], symbols: Vec::new(), queue: BinaryHeap::new() }
    }
}

impl Merges {
    /// Appends the tokens of a word.
    pub(super) fn encode(&self, word: &[u8], work: &mut Work, ids: &mut Vec<u32>) {
        if word.len() > REMEMBERED_BYTES {
            return self.look_up_or_merge(word, work, ids);
        }
        let mut padded = [0u8; REMEMBERED_BYTES];
        padded[..word.len()].copy_from_slice(word);
        let part = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&padded[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        let key = [part(0), part(8), part(16)];
        let place = place_of(key, word.len());
        let found = &work.memory[place];
        if usize::from(found.bytes) == word.len() && found.word == key {
            ids.extend_from_slice(&found.tokens[..usize::from(found.count)]);
            return;
        }
        let start = ids.len();
        self.look_up_or_merge(word, work, ids);
        let new = &ids[start..];
        if new.len() <= REMEMBERED_TOKENS {
            let mut tokens = [0; REMEMBERED_TOKENS];
            tokens[..new.len()].copy_from_slice(new);
            work.memory[place] = Remembered { word: key, tokens, bytes: word.len() as u8, count: new.len() as u8 };
        }
    }

    fn look_up_or_merge(&self, word: &[u8], work: &mut Work, ids: &mut Vec<u32>) {
        match self.whole.as_ref().and_then(|whole| whole.get(word)) {
            Some(id) => ids.push(*id),
            None => self.merge(word, work, ids),
        }
    }

    fn merge(&self, word: &[u8], work: &mut Work, ids: &mut Vec<u32>) {
        let Work { symbols, queue, .. } = work;
        symbols.clear();
        queue.clear();
        symbols.extend(word.iter().enumerate().map(|(at, byte)| Symbol {
            id: self.bytes[usize::from(*byte)],
            previous: at.wrapping_sub(1),
            next: if at + 1 < word.len() { at + 1 } else { NONE },
        }));
        let enqueue = |queue: &mut BinaryHeap<_>, symbols: &[Symbol], left: usize, right: usize| {
            if let Some((rank, _)) = self.pairs.get(&(symbols[left].id, symbols[right].id)) {
                queue.push(Reverse((*rank, left)));
            }
        };
        for left in 0..symbols.len().saturating_sub(1) {
            enqueue(queue, symbols, left, left + 1);
        }
        while let Some(Reverse((rank, left))) = queue.pop() {
            let Symbol { id, previous, next: right } = symbols[left];
            if id == GONE || right == NONE {
                continue;
            }
            // The pair may have changed since it was queued.
            let Some((_, merged)) = self.pairs.get(&(id, symbols[right].id)).filter(|(now, _)| *now == rank) else {
                continue;
            };
            let next = symbols[right].next;
            symbols[left] = Symbol { id: *merged, previous, next };
            symbols[right].id = GONE;
            if previous != NONE {
                enqueue(queue, symbols, previous, left);
            }
            if next != NONE {
                symbols[next].previous = left;
                enqueue(queue, symbols, left, next);
            }
        }
        ids.extend(symbols.iter().map(|symbol| symbol.id).filter(|id| *id != GONE));
    }
}

fn place_of(word: [u64; 3], bytes: usize) -> usize {
    let mixed = [0x9E37_79B9_7F4A_7C15, 0xC2B2_AE3D_27D4_EB4F, 0x1656_67B1_9E37_79F9];
    let sum =
        word.iter().zip(mixed).fold(bytes as u64, |sum, (part, by)| (sum.rotate_left(23) ^ part).wrapping_mul(by));
    (sum ^ sum >> 32).wrapping_mul(mixed[0]) as usize >> (usize::BITS - PLACES.trailing_zeros())
}
