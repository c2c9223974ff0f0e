//! Keys and values kept between calls, and attention to them.

use std::ops::Range;

use crate::gemm::{Operand, PANEL_COLS};
use crate::memory::Buffer;
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel};

use super::Heads;
use super::forward::{Packed, Queries};
use super::packed::{Layout, head_rows, put_odd};

/// Keys and values of one sequence in one layer, in the packed layout that the kernels read.
///
/// The rows of a head lie together, keys before values, so that decoding reads each head as two streams.
#[derive(Debug, Clone)]
pub struct Cache {
    heads: Heads,
    layout: Layout,
    capacity: usize,
    len: usize,
    data: Buffer<f32>,
}

impl Cache {
    /// An empty cache with room for `capacity` tokens; `operand` is the precision it keeps.
    pub fn new(heads: Heads, capacity: usize, operand: Operand) -> Cache {
        heads.check();
        let layout = Layout::new(heads.dim, capacity, operand);
        let numbers = layout.len_by_row() + layout.len_by_column();
        Cache { heads, layout, capacity, len: 0, data: Buffer::scratch(heads.key_value * numbers) }
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
        let (len, layout, stride) = (self.len, self.layout, key_value * dim);
        assert_eq!(k_td.shape(), [k_td.rows(), stride], "keys of {:?}", self.heads);
        assert_eq!(v_td.shape(), k_td.shape(), "values of {:?}", self.heads);
        assert!(rows.end <= k_td.rows(), "{rows:?} of {} rows", k_td.rows());
        assert!(rows.len() <= self.capacity - len, "{} more tokens in a cache of {len}/{}", rows.len(), self.capacity);
        if rows.is_empty() {
            return;
        }
        let numbers = self.data.len() / key_value;
        let data = Shared::new(&mut self.data);
        parallel(key_value, |head| {
            // SAFETY: each task writes the part of its head.
            unsafe {
                let (keys, values) = data.range(head * numbers..(head + 1) * numbers).split_at_mut(layout.len_by_row());
                layout.pack_by_row(&Shared::new(keys), len, head_rows(k_td, 0, head, dim), rows.clone());
                layout.pack_by_column(&Shared::new(values), len, head_rows(v_td, 0, head, dim), rows.clone());
            }
        });
        self.len += rows.len();
    }

    /// Forgets all tokens but the first `len`; does nothing when there are no more.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.cut(len);
    }

    /// Ends after the first `len` tokens, whatever is behind them.
    fn cut(&mut self, len: usize) {
        self.len = len;
        if self.layout.operand == Operand::Bf16 && len % 2 == 1 {
            // The value that shares a unit with the last one is read, with weight zero.
            let numbers = self.data.len() / self.heads.key_value;
            for part in self.data.chunks_exact_mut(numbers) {
                let values = &mut part[self.layout.len_by_row()..];
                for panel in 0..self.layout.wide() / PANEL_COLS {
                    put_odd(&[], &mut values[self.layout.panel_by_column(panel, len - 1)..][..PANEL_COLS]);
                }
            }
        }
    }

    /// A cache with room for `capacity` tokens that holds the first `len` of this one.
    ///
    /// # Panics
    /// When this one holds fewer, or there is no room.
    pub fn prefix(&self, len: usize, capacity: usize) -> Cache {
        assert!(len <= self.len && len <= capacity, "the first {len} of {} tokens in a cache of {capacity}", self.len);
        let mut copy = Cache::new(self.heads, capacity, self.layout.operand);
        let (from, to) = (self.layout, copy.layout);
        let [numbers, copied] = [&self.data, &copy.data].map(|data| data.len() / self.heads.key_value);
        let data = Shared::new(&mut copy.data);
        parallel(self.heads.key_value, |head| {
            let (keys, values) = self.data[head * numbers..(head + 1) * numbers].split_at(from.len_by_row());
            // SAFETY: each task writes the part of its head.
            let part = unsafe { data.range(head * copied..(head + 1) * copied) };
            let (to_keys, to_values) = part.split_at_mut(to.len_by_row());
            let panels = from.panel_by_row(len.next_multiple_of(PANEL_COLS));
            to_keys[..panels].copy_from_slice(&keys[..panels]);
            let rows = from.operand.units(len) * PANEL_COLS;
            for panel in 0..from.wide() / PANEL_COLS {
                let (source, target) = (from.panel_by_column(panel, 0), to.panel_by_column(panel, 0));
                to_values[target..target + rows].copy_from_slice(&values[source..source + rows]);
            }
        });
        copy.cut(len);
        copy
    }

    /// What head `head` holds.
    fn packed(&self, head: usize) -> Packed<'_> {
        let numbers = self.data.len() / self.heads.key_value;
        let (keys, values) = self.data[head * numbers..(head + 1) * numbers].split_at(self.layout.len_by_row());
        Packed { layout: self.layout, keys, values }
    }
}

/// Attention of rows `rows` of `q_td`, the last `rows.len()` tokens of the cache, which were appended before; writes
/// those rows of `o_td`, with the bits that [`super::forward`] gives for the whole sequence.
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
    let queries = Queries { heads, q: q_td, o: Shared::new(o_td), lse: None };
    let count = queries.blocks(n);
    parallel(heads.key_value * count, |task| {
        // The longest rows of each head first.
        let (head, i) = (task / count, count - 1 - task % count);
        queries.attend(cache.packed(head), head, rows.start, past, queries.block(n, i));
    });
}
