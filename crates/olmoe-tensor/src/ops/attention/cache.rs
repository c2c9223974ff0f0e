//! Keys and values kept between calls, and attention to them.

use std::ops::Range;

use crate::gemm::PANEL_COLS;
use crate::memory::Buffer;
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel};

use super::blocks::{Blocks, CacheType};
use super::forward::{Packed, Queries, State};
use super::packed::head_rows;
use super::{Heads, SPAN_KEYS};

/// Keys and values of one sequence in one layer, as the kernels read them: head after head, each one stream.
#[derive(Debug, Clone)]
pub struct Cache {
    heads: Heads,
    blocks: Blocks,
    capacity: usize,
    len: usize,
    data: Buffer<f32>,
}

impl Cache {
    /// Memory is for a multiple of so many tokens.
    pub const GRAIN: usize = PANEL_COLS;

    /// An empty cache with room for `capacity` tokens.
    pub fn new(heads: Heads, capacity: usize, kind: CacheType) -> Cache {
        heads.check();
        let blocks = Blocks::new(heads.dim, capacity, kind);
        Cache { heads, blocks, capacity, len: 0, data: Buffer::scratch(heads.key_value * blocks.len()) }
    }

    /// Bytes of a cache with room for `capacity` tokens.
    pub fn bytes_of(heads: Heads, capacity: usize, kind: CacheType) -> usize {
        heads.key_value * Blocks::new(heads.dim, capacity, kind).len() * size_of::<f32>()
    }

    /// How it keeps keys and values.
    pub fn kind(&self) -> CacheType {
        self.blocks.kind
    }

    /// Tokens it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens it has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of memory it holds.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }

    /// Adds rows `rows` of keys and values, `[T, G·D]` each.
    ///
    /// # Panics
    /// When the shapes do not fit or there is no room.
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

    /// Forgets all tokens but the first `len`; does nothing when there are no more.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.len = len;
        for part in self.data.chunks_exact_mut(self.blocks.len()) {
            self.blocks.cut(part, len);
        }
    }

    /// A cache with room for `capacity` tokens that holds the first `len` of this one.
    ///
    /// # Panics
    /// When this one holds fewer, or there is no room.
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

    /// What head `head` holds.
    fn packed(&self, head: usize) -> Packed<'_> {
        let len = self.blocks.len();
        Packed { blocks: self.blocks, data: &self.data[head * len..(head + 1) * len] }
    }
}

/// Attention of rows `rows` of `q_td`, the last `rows.len()` tokens of the cache, which were appended before; writes
/// those rows of `o_td`, with the bits that [`super::forward`] gives for the whole sequence if the cache is of its operand's
/// type.
///
/// # Panics
/// When the shapes do not fit or the cache holds fewer tokens.
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
            // The longest rows of each head first.
            let (head, i) = (task / count, count - 1 - task % count);
            queries.attend(cache.packed(head), &entries(head, i));
        });
    }
    // Few rows and many keys: the spans are tasks, too.
    let wide = cache.blocks.wide();
    let len = State::len(n * heads.group(), wide);
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
