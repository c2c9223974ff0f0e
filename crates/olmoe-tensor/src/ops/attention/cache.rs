//! The key/value cache, and attention to it.

use std::ops::Range;

use crate::gemm::PANEL_COLS;
use crate::memory::Buffer;
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel};

use super::blocks::{CacheType, KvLayout};
use super::forward::{PackedKv, Queries, SoftmaxState};
use super::packed::head_rows;
use super::{Heads, SPAN_KEYS};

/// Keys and values of one sequence in one layer, as the kernels read them: one stream for each head.
#[derive(Debug, Clone)]
pub struct Cache {
    heads: Heads,
    blocks: KvLayout,
    capacity: usize,
    len: usize,
    data: Buffer<f32>,
}

impl Cache {
    /// The capacity is rounded up to a multiple of so many tokens.
    pub const GRAIN: usize = PANEL_COLS;

    /// An empty cache with room for `capacity` tokens.
    pub fn new(heads: Heads, capacity: usize, kind: CacheType) -> Cache {
        heads.check();
        let blocks = KvLayout::new(heads.dim, capacity, kind);
        Cache { heads, blocks, capacity, len: 0, data: Buffer::scratch(heads.key_value * blocks.len()) }
    }

    /// Bytes of a cache with room for `capacity` tokens.
    pub fn bytes_of(heads: Heads, capacity: usize, kind: CacheType) -> usize {
        heads.key_value * KvLayout::new(heads.dim, capacity, kind).len() * size_of::<f32>()
    }

    /// The number format of keys and values.
    pub fn kind(&self) -> CacheType {
        self.blocks.kind
    }

    /// The number of tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the cache has no tokens.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of tokens that the cache has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of memory of the cache.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }

    /// Appends rows `rows` of keys and values, `[T, G·D]` each.
    ///
    /// # Panics
    /// When the shapes do not fit, or the cache has no room for these tokens.
    pub fn append(&mut self, k_td: &Tensor, v_td: &Tensor, rows: Range<usize>) {
        let Heads { key_value, dim, .. } = self.heads;
        let (len, blocks, stride) = (self.len, self.blocks, key_value * dim);
        assert_eq!(k_td.shape(), [k_td.rows(), stride], "keys of {:?}", self.heads);
        assert_eq!(v_td.shape(), k_td.shape(), "values of {:?}", self.heads);
        assert!(rows.end <= k_td.rows(), "{rows:?} of {} rows", k_td.rows());
        assert!(rows.len() <= self.capacity - len, "{} more tokens in a cache of {len}/{}", rows.len(), self.capacity);
        if rows.is_empty() {
            return;
        }
        let data = Shared::new(&mut self.data);
        parallel(key_value, |head| {
            let sources = [k_td, v_td].map(|x| head_rows(x, 0, head, dim));
            // SAFETY: each task writes the part of its head.
            unsafe {
                let part = data.range(head * blocks.len()..(head + 1) * blocks.len());
                blocks.write(&Shared::new(part), len, sources, rows.clone());
            }
        });
        self.len += rows.len();
    }

    /// Discards all tokens but the first `len`; does nothing when there are not more.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.len = len;
        for part in self.data.chunks_exact_mut(self.blocks.len()) {
            self.blocks.cut(part, len);
        }
    }

    /// A cache with room for `capacity` tokens and a copy of the first `len` tokens of this one.
    ///
    /// # Panics
    /// When this cache has fewer than `len` tokens, or `capacity` is below `len`.
    pub fn prefix(&self, len: usize, capacity: usize) -> Cache {
        assert!(len <= self.len && len <= capacity, "the first {len} of {} tokens in a cache of {capacity}", self.len);
        let mut copy = Cache::new(self.heads, capacity, self.kind());
        let blocks = copy.blocks;
        let data = Shared::new(&mut copy.data);
        parallel(self.heads.key_value, |head| {
            // SAFETY: each task writes the part of its head.
            let part = unsafe { data.range(head * blocks.len()..(head + 1) * blocks.len()) };
            self.blocks.copy(self.packed(head).data, len, blocks, part);
        });
        copy.len = len;
        copy
    }

    /// The keys and values of head `head`.
    fn packed(&self, head: usize) -> PackedKv<'_> {
        let len = self.blocks.len();
        PackedKv { blocks: self.blocks, data: &self.data[head * len..(head + 1) * len] }
    }
}

/// Attention of rows `rows` of `q_td`, which are the last `rows.len()` tokens of the cache: the caller has appended
/// their keys and values. Writes those rows of `o_td`. Where the cache has the type of the operand, the bits are those
/// that [`super::forward`] gives for the whole sequence.
///
/// # Panics
/// When the shapes do not fit, or the cache has fewer tokens.
pub fn forward_cached(q_td: &Tensor, rows: Range<usize>, cache: &Cache, heads: Heads, o_td: &mut Tensor) {
    assert_eq!(heads, cache.heads, "heads of the cache");
    assert_eq!(q_td.shape(), [q_td.rows(), heads.query * heads.dim], "queries of {heads:?}");
    assert_eq!(o_td.shape(), q_td.shape(), "output of {heads:?}");
    assert!(rows.end <= q_td.rows(), "{rows:?} of {} rows", q_td.rows());
    assert!(rows.len() <= cache.len, "the cache holds {} tokens, fewer than {rows:?}", cache.len);
    let n = rows.len();
    let past = cache.len - n;
    let queries = Queries { heads, q: q_td, o: Shared::new(o_td), lse: None, seen: None };
    let count = queries.blocks(n);
    let entries = |head, i| queries.entries(head, rows.start, past, queries.block(n, i));
    let spans = cache.len.div_ceil(SPAN_KEYS);
    if count != 1 || spans == 1 {
        return parallel(heads.key_value * count, |task| {
            // The rows of each head with the most keys first.
            let (head, i) = (task / count, count - 1 - task % count);
            queries.attend(cache.packed(head), &entries(head, i));
        });
    }
    // With few rows and many keys, the spans are tasks, too.
    let wide = cache.blocks.wide();
    let len = SoftmaxState::len(n * heads.group(), wide);
    let mut states = Buffer::scratch(heads.key_value * spans * len);
    let parts = Shared::new(&mut states);
    parallel(heads.key_value * spans, |task| {
        let (head, span) = (task / spans, task % spans);
        // SAFETY: each task has a state of its own.
        let state = unsafe { parts.range(task * len..(task + 1) * len) };
        queries.attend_span(cache.packed(head), &entries(head, 0), span, state);
    });
    for (head, states) in states.chunks_exact_mut(spans * len).enumerate() {
        queries.merge(&entries(head, 0), wide, states);
    }
}

#[cfg(test)]
mod tests;
