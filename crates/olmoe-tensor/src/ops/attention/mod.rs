//! Causal multi-head attention without a matrix of all scores: forward, backward, with hidden rows, and with a key/value
//! cache.
//!
//! For query row `t` of head `h`, with the key/value head `g = h / (H / G)` and the rows `s ≤ t` of its own sequence:
//!
//! ```text
//! S[t, s] = q[t, h] · k[s, g] / √D      L[t] = log Σ_s exp S[t, s]      P = exp(S − L)      o[t, h] = Σ_s P[t, s] v[s, g]
//! ```
//!
//! (Vaswani et al. 2017; query heads share key/value heads as in Ainslie et al. 2023; blocks of keys with a running
//! maximum and sum as in Dao 2023, FlashAttention-2.)
//!
//! Shapes: T rows, H query heads, G key/value heads, D numbers a head. `q_td`, `o_td` and their gradients are
//! `[T, H·D]`, `k_td`, `v_td` and theirs `[T, G·D]`, heads side by side in a row.
//!
//! # The same bits every time
//! The keys of a row are divided into spans of [`SPAN_KEYS`], and these into blocks of [`BLOCK_KEYS`], from the start
//! of the sequence on. Inside a span every product is one chain in the order of the contraction, sums of probabilities
//! run in sixteen fixed lanes, and a masked key has the weight +0, which changes no sum. The spans are merged in order.
//! As long as the values are finite, the bits of a row therefore do not depend on the rows that are computed with it,
//! on the number of threads, on its place in the batch, or on whether the keys come from the batch or from a [`Cache`]
//! of the same type.

mod backward;
mod blocks;
mod cache;
mod forward;
mod packed;
mod q8_0;
mod single;
#[cfg(test)]
mod tests;
mod tile;
mod whole;

pub use blocks::CacheType;
pub use cache::{Cache, forward_cached};
pub use forward::AttentionSaved;
pub use whole::{backward, forward};

use std::ops::Range;

use crate::tensor::Tensor;
use crate::threads::{num_threads, parallel};

/// Keys of a block: the running maximum is updated after each block. The number is part of the definition of the
/// result: another number gives other bits.
pub const BLOCK_KEYS: usize = 128;

/// Keys of a span; the spans of a long sequence are divided among the threads. Part of the definition of the result,
/// too.
pub const SPAN_KEYS: usize = 512;

/// The heads of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads H, a multiple of `key_value`.
    pub query: usize,
    /// Key/value heads G; query head `h` reads head `h / (query / key_value)`.
    pub key_value: usize,
    /// Numbers D in a head.
    pub dim: usize,
}

impl Heads {
    /// Query heads for each key/value head.
    fn group(self) -> usize {
        self.query / self.key_value
    }

    /// The factor of the scores, 1/√D.
    fn scale(self) -> f32 {
        (1.0 / (self.dim as f64).sqrt()) as f32
    }

    fn check(self) {
        let whole = self.key_value > 0 && self.query > 0 && self.query.is_multiple_of(self.key_value);
        assert!(whole && self.dim > 0, "{self:?}: the key/value heads divide the query heads, and none is empty");
    }

    /// Checks the shapes of a call over whole sequences and returns the number of rows.
    fn check_call(self, q_td: &Tensor, k_td: &Tensor, v_td: &Tensor, sight: Sight<'_>) -> usize {
        self.check();
        let (t, keys) = (q_td.rows(), k_td.rows());
        assert_eq!(q_td.shape(), [t, self.query * self.dim], "queries of {self:?}");
        assert_eq!(k_td.shape(), [keys, self.key_value * self.dim], "keys of {self:?}");
        assert_eq!(v_td.shape(), k_td.shape(), "values of {self:?}");
        let segments = sight.segments;
        assert!(segments.is_sorted_by(|a, b| a < b), "segments begin one after the other");
        assert_eq!(segments.first().copied().unwrap_or(0), 0, "the first segment begins at row 0");
        assert_eq!(segments.last().copied().unwrap_or(0) as usize, t, "the last segment ends at row {t}");
        assert_eq!(sight.keys.last().copied().unwrap_or(0) as usize, keys, "there are {keys} keys");
        assert!(
            sight.keys.len() == segments.len() && sight.seen.is_none_or(|seen| seen.len() == t),
            "keys of each row"
        );
        t
    }
}

/// Which keys each row sees: so many of its segment, from the first one on, and never fewer than the row before.
#[derive(Clone, Copy)]
struct Sight<'a> {
    /// Where segments begin, then T.
    segments: &'a [u32],
    /// Where the keys of each segment begin, then their number.
    keys: &'a [u32],
    /// How many keys each row sees; none: as many as it has rows up to itself.
    seen: Option<&'a [u32]>,
}

impl<'a> Sight<'a> {
    /// Every row is a key, too, and sees those up to itself.
    fn causal(segments: &'a [u32]) -> Sight<'a> {
        Sight { segments, keys: segments, seen: None }
    }

    /// The rows of a segment, and its keys.
    fn segment(self, i: usize) -> [Range<usize>; 2] {
        [self.segments, self.keys].map(|bounds| bounds[i] as usize..bounds[i + 1] as usize)
    }
}

/// Runs `one(segment, key/value head, whether alone)` for every pair of segment and key/value head.
///
/// Each pair is a task. A pair so large that the other threads would wait for it is run alone, and divides its own work
/// among all threads.
fn for_each_sequence(segments: &[u32], key_value: usize, one: impl Fn(usize, usize, bool) + Sync) {
    let count = segments.len().saturating_sub(1);
    let work = |i: usize| u64::from(segments[i + 1] - segments[i]).pow(2);
    let total = (0..count).map(work).sum::<u64>() * key_value as u64;
    // Read once, because another thread may change it. Dividing a pair costs the backward pass 7 products in place of
    // 5.
    let threads = num_threads() as u64;
    let alone = |i: usize| 5 * work(i) * threads > 7 * total;
    for i in (0..count).filter(|i| alone(*i)) {
        (0..key_value).for_each(|head| one(i, head, true));
    }
    parallel(count * key_value, |task| {
        let (i, head) = (task / key_value, task % key_value);
        if !alone(i) {
            one(i, head, false);
        }
    });
}
