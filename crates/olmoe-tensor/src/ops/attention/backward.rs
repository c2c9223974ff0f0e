//! The backward pass: the weights of a block are recomputed from the log-sum-exps and used for all gradients at once.
//!
//! ```text
//! P = exp(S − L)   dP = dO·Vᵀ   dS = P∘(dP − Δ)/√D   Δ[t] = Σ_d dO[t, d] o[t, d]
//! dV = Pᵀ·dO       dK = dSᵀ·Q   dQ = dS·K
//! ```
//!
//! A number of dQ is one chain over the keys in order; a number of dK or dV is one chain over the rows in order, query
//! head after query head of the group. A sequence is one task, which visits its blocks once. A sequence that is run
//! alone visits them twice, by keys for dK and dV and by rows for dQ; each column or row of blocks is a task, with the
//! same chains.

use std::ops::Range;

use crate::gemm::pack::{pack_columns, pack_rows, panel_count, panel_start};
use crate::gemm::{Form, Operand, PANEL_COLS, PANEL_ROWS, Source};
use crate::memory::Buffer;
use crate::simd::{LANES, exp, kernel};
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel, parallel_ranges};

use super::forward::AttentionSaved;
use super::packed::{PanelLayout, head_rows};
use super::tile::{LANE, multiply};
use super::{Heads, Sight, for_each_sequence};

/// Query rows of a block: an even number, so that pairs of bf16 lie inside it.
const BACKWARD_ROWS: usize = 8 * PANEL_ROWS;
/// Rows of a sequence that one task packs.
const PACK_ROWS: usize = 128;
/// Keys of a block: whole panels.
const BACKWARD_KEYS: usize = 3 * PANEL_COLS;

/// The gradients of [`super::forward::forward_sight`]. A row that has no key gets none and adds none.
pub(super) fn backward_sight(
    q_td: &Tensor,
    k_td: &Tensor,
    v_td: &Tensor,
    o_td: &Tensor,
    saved: &AttentionSaved,
    d_o_td: &Tensor,
    heads: Heads,
    sight: Sight<'_>,
    operand: Operand,
) -> (Tensor, Tensor, Tensor) {
    let t = heads.check_call(q_td, k_td, v_td, sight);
    assert_eq!(o_td.shape(), q_td.shape(), "output of {heads:?}");
    assert_eq!(d_o_td.shape(), q_td.shape(), "gradient of the output of {heads:?}");
    assert_eq!(saved.lse_ht.shape(), [heads.query, t], "log-sum-exps of {heads:?}");
    let mut delta_ht = Buffer::scratch(heads.query * t);
    let delta = Shared::new(&mut delta_ht);
    parallel_ranges(t, 16, |rows| {
        for head in 0..heads.query {
            // SAFETY: each task has rows of its own.
            let delta = unsafe { delta.range(head * t + rows.start..head * t + rows.end) };
            for (row, delta) in rows.clone().zip(delta) {
                let range = head * heads.dim..(head + 1) * heads.dim;
                *delta = dot(&o_td.row(row)[range.clone()], &d_o_td.row(row)[range]);
            }
        }
    });
    let (mut dq, mut dk, mut dv) =
        (Tensor::scratch(q_td.shape()), Tensor::scratch(k_td.shape()), Tensor::scratch(v_td.shape()));
    let call = Call {
        heads,
        operand,
        inputs: [q_td, k_td, v_td, d_o_td],
        lse_ht: &saved.lse_ht,
        delta_ht: &delta_ht,
        gradients: [Shared::new(&mut dq), Shared::new(&mut dk), Shared::new(&mut dv)],
    };
    for_each_sequence(sight.segments, heads.key_value, |i, head, alone| call.sequence(sight, i, head, alone));
    (dq, dk, dv)
}

/// The arguments that all sequences of a call share.
struct Call<'a> {
    heads: Heads,
    operand: Operand,
    /// q, k, v and the gradient of o.
    inputs: [&'a Tensor; 4],
    lse_ht: &'a [f32],
    delta_ht: &'a [f32],
    /// dq, dk, dv.
    gradients: [Shared<'a, f32>; 3],
}

/// Packed rows of a sequence for one query head and its key/value head.
struct PackedHead<'a> {
    /// Of what the queries have.
    layout: PanelLayout,
    /// Of keys and values.
    key_layout: PanelLayout,
    /// The form of left panels.
    form: Form,
    scale: f32,
    /// Rows of the sequence, and its keys.
    n: usize,
    num_keys: usize,
    /// Keys that each row sees, never fewer than the one before.
    seen: &'a [u32],
    keys_by_row: &'a [f32],
    keys_by_column: &'a [f32],
    values_by_row: &'a [f32],
    /// Left panels of the tiles of all blocks.
    queries_left: &'a [f32],
    queries_by_column: &'a [f32],
    /// The gradient of the output, packed as the queries are.
    d_left: &'a [f32],
    d_by_column: &'a [f32],
    lse: &'a [f32],
    delta: &'a [f32],
}

impl Call<'_> {
    /// Computes the gradients of one sequence and one key/value head.
    fn sequence(&self, sight: Sight<'_>, i: usize, head: usize, alone: bool) {
        let [rows, keys] = sight.segment(i);
        let [q, k, v, d_o] = self.inputs;
        let (n, num_keys, t, dim, group) = (rows.len(), keys.len(), q.rows(), self.heads.dim, self.heads.group());
        let mut causal = Buffer::<u32>::scratch(if sight.seen.is_none() { n } else { 0 });
        causal.iter_mut().zip(1..).for_each(|(seen, row)| *seen = row);
        let seen = sight.seen.map_or(&causal[..], |seen| &seen[rows.clone()]);
        let [layout, key_layout] = [n, num_keys].map(|rows| PanelLayout::new(dim, rows, self.operand));
        let (wide, form) = (layout.wide(), self.operand.left());
        let words = form.words(dim);
        let part = |i: usize, n: usize| i * PACK_ROWS..((i + 1) * PACK_ROWS).min(n);

        let by_row = || Buffer::<f32>::scratch(key_layout.len_by_row());
        let (mut keys_by_row, mut values_by_row) = (by_row(), by_row());
        let mut keys_by_column = Buffer::<f32>::scratch(key_layout.len_by_column());
        let to = [&mut keys_by_row, &mut keys_by_column, &mut values_by_row].map(|x| Shared::new(x));
        parallel(num_keys.div_ceil(PACK_ROWS), |i| {
            let part = part(i, num_keys);
            // SAFETY: each task packs whole panels of its own.
            unsafe {
                key_layout.pack_by_row(&to[0], part.start, head_rows(k, keys.start, head, dim), part.clone());
                key_layout.pack_by_column(&to[1], part.start, head_rows(k, keys.start, head, dim), part.clone());
                key_layout.pack_by_row(&to[2], part.start, head_rows(v, keys.start, head, dim), part);
            }
        });
        let (mut dk, mut dv) = (Buffer::zeroed(num_keys * wide), Buffer::zeroed(num_keys * wide));
        let mut dq = Buffer::<f32>::scratch(n * wide);
        let by_column = || Buffer::<f32>::scratch(layout.len_by_column());
        let (mut queries_by_column, mut d_by_column) = (by_column(), by_column());
        let (mut queries_left, mut d_left) = (Buffer::scratch(n * words), Buffer::scratch(n * words));
        for query in head * group..(head + 1) * group {
            dq.fill(0.0);
            let to = [&mut queries_by_column, &mut d_by_column].map(|x| Shared::new(x));
            parallel(n.div_ceil(PACK_ROWS), |i| {
                let part = part(i, n);
                // SAFETY: each task packs whole panels of its own.
                unsafe {
                    layout.pack_by_column(&to[0], part.start, head_rows(q, rows.start, query, dim), part.clone());
                    layout.pack_by_column(&to[1], part.start, head_rows(d_o, rows.start, query, dim), part);
                }
            });
            let to = [&mut queries_left, &mut d_left].map(|x| Shared::new(x));
            parallel(n.div_ceil(BACKWARD_ROWS), |i| {
                for tile in tiles(block_rows(n, i)) {
                    for (x, to) in [q, d_o].into_iter().zip(&to) {
                        // SAFETY: each task has rows of its own.
                        let panel = unsafe { to.range(tile.start * words..tile.end * words) };
                        pack_rows(head_rows(x, rows.start, query, dim), tile.clone(), dim, form, tile.len(), panel);
                    }
                }
            });
            let packed = PackedHead {
                layout,
                key_layout,
                form,
                scale: self.heads.scale(),
                n,
                num_keys,
                seen,
                keys_by_row: &keys_by_row,
                keys_by_column: &keys_by_column,
                values_by_row: &values_by_row,
                queries_left: &queries_left,
                queries_by_column: &queries_by_column,
                d_left: &d_left,
                d_by_column: &d_by_column,
                lse: &self.lse_ht[query * t + rows.start..query * t + rows.end],
                delta: &self.delta_ht[query * t + rows.start..query * t + rows.end],
            };
            let sums = [&mut dq, &mut dk, &mut dv].map(|x| Shared::new(x));
            packed.walk(&sums, alone);
            self.write(0, &dq, rows.start, query);
        }
        self.write(1, &dk, keys.start, head);
        self.write(2, &dv, keys.start, head);
    }

    /// Copies the gradient of a head to its columns of the result, from row `first` on.
    fn write(&self, which: usize, from: &[f32], first: usize, head: usize) {
        let dim = self.heads.dim;
        let cols = self.inputs[which].cols();
        for (i, row) in from.chunks_exact(dim.next_multiple_of(PANEL_COLS)).enumerate() {
            let at = (first + i) * cols + head * dim;
            // SAFETY: each sequence and head has places of its own.
            unsafe { self.gradients[which].range(at..at + dim) }.copy_from_slice(&row[..dim]);
        }
    }
}

/// The rows of block `i` of a sequence of `n`.
fn block_rows(n: usize, i: usize) -> Range<usize> {
    i * BACKWARD_ROWS..((i + 1) * BACKWARD_ROWS).min(n)
}

/// Divides a block of rows into even tiles of at most 12.
fn tiles(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let count = panel_count(rows.len());
    let at = move |i: usize| rows.start + panel_start(rows.len(), count, i);
    (0..count).map(move |i| at(i)..at(i + 1))
}

/// The first of some rows that sees a key.
fn first_seeing(seen: &[u32], key: usize) -> usize {
    seen.partition_point(|seen| *seen as usize <= key)
}

impl PackedHead<'_> {
    /// Adds the contribution of this query head to `[dq, dk, dv]`, rows `wide` numbers long.
    fn walk(&self, sums: &[Shared<'_, f32>; 3], divide: bool) {
        let row_blocks = self.n.div_ceil(BACKWARD_ROWS);
        let key_blocks = self.num_keys.div_ceil(BACKWARD_KEYS);
        let keys = |j: usize| j * BACKWARD_KEYS..((j + 1) * BACKWARD_KEYS).min(self.num_keys);
        // The blocks of rows that attend to a block of keys, and the reverse.
        let seen_by = |j: usize| first_seeing(self.seen, keys(j).start) / BACKWARD_ROWS..row_blocks;
        let seeing = |i: usize| 0..(self.seen[block_rows(self.n, i).end - 1] as usize).div_ceil(BACKWARD_KEYS);
        let wide = self.layout.wide();
        let own = |which: usize, rows: Range<usize>| {
            // SAFETY: no two tasks below use the same range of a gradient at the same time.
            unsafe { sums[which].range(rows.start * wide..rows.end * wide) }
        };
        if divide {
            parallel(key_blocks, |j| {
                let mut scratch = Scratch::new();
                for i in seen_by(j) {
                    let (rows, keys) = (block_rows(self.n, i), keys(j));
                    self.weights(&mut scratch, rows.clone(), keys.clone());
                    self.by_keys(&mut scratch, rows, keys.clone(), own(1, keys.clone()), own(2, keys));
                }
            });
            parallel(row_blocks, |i| {
                // The rows with the most keys first.
                let i = row_blocks - 1 - i;
                let mut scratch = Scratch::new();
                for j in seeing(i) {
                    let (rows, keys) = (block_rows(self.n, i), keys(j));
                    self.weights(&mut scratch, rows.clone(), keys.clone());
                    self.by_rows(&mut scratch, rows.clone(), keys, own(0, rows));
                }
            });
        } else {
            let mut scratch = Scratch::new();
            for j in 0..key_blocks {
                for i in seen_by(j) {
                    let (rows, keys) = (block_rows(self.n, i), keys(j));
                    self.weights(&mut scratch, rows.clone(), keys.clone());
                    self.by_keys(&mut scratch, rows.clone(), keys.clone(), own(1, keys.clone()), own(2, keys.clone()));
                    self.by_rows(&mut scratch, rows.clone(), keys, own(0, rows));
                }
            }
        }
    }

    /// How many keys of a block the last row of a tile sees.
    fn seen_of(&self, tile: &Range<usize>, keys: &Range<usize>) -> usize {
        (self.seen[tile.end - 1] as usize).min(keys.end).saturating_sub(keys.start)
    }

    /// P and dS of a block.
    fn weights(&self, scratch: &mut Scratch, rows: Range<usize>, keys: Range<usize>) {
        let (layout, form, units) = (self.key_layout, self.form, self.layout.units());
        let words = units * form.unit_words();
        let (p, ds, _) = scratch.parts();
        for tile in tiles(rows.clone()) {
            let seen = self.seen_of(&tile, &keys);
            let first = (tile.start - rows.start) * BACKWARD_KEYS;
            let panel = tile.start * words..tile.end * words;
            for key in (0..seen).step_by(PANEL_COLS) {
                let right = layout.panel_by_row(keys.start + key)..;
                let (left, to) = (&self.queries_left[panel.clone()], &mut p[first + key..]);
                multiply(form, units, left, tile.len(), &self.keys_by_row[right.clone()], to, BACKWARD_KEYS, false);
                let (left, to) = (&self.d_left[panel.clone()], &mut ds[first + key..]);
                multiply(form, units, left, tile.len(), &self.values_by_row[right], to, BACKWARD_KEYS, false);
            }
        }
        let (seen, lse, delta) = (&self.seen[rows.clone()], &self.lse[rows.clone()], &self.delta[rows]);
        softmax_backward(p, ds, seen, keys.start, keys.len(), self.scale, lse, delta);
    }

    /// Adds the block to the rows of dK and dV of its keys.
    fn by_keys(&self, scratch: &mut Scratch, rows: Range<usize>, keys: Range<usize>, dk: &mut [f32], dv: &mut [f32]) {
        let (layout, wide) = (self.layout, self.layout.wide());
        let (p, ds, left) = scratch.parts();
        let count = panel_count(keys.len());
        for i in 0..count {
            let panel = panel_start(keys.len(), count, i)..panel_start(keys.len(), count, i + 1);
            // Rows before the first key of the panel do not attend to it.
            let skip = first_seeing(&self.seen[rows.clone()], keys.start + panel.start);
            if skip == rows.len() {
                continue;
            }
            let skip = skip & !1;
            let length = rows.len() - skip;
            for (from, right, to) in [(&*p, self.d_by_column, &mut *dv), (&*ds, self.queries_by_column, &mut *dk)] {
                let source = Source::new(&from[skip * BACKWARD_KEYS..], BACKWARD_KEYS);
                pack_columns(source, panel.clone(), length, self.form, panel.len(), None, left);
                for j in 0..wide / PANEL_COLS {
                    let right = &right[layout.panel_by_column(j, rows.start + skip)..];
                    let to = &mut to[panel.start * wide + j * PANEL_COLS..];
                    multiply(self.form, layout.operand.units(length), left, panel.len(), right, to, wide, true);
                }
            }
        }
    }

    /// Adds the block to its rows of dQ.
    fn by_rows(&self, scratch: &mut Scratch, rows: Range<usize>, keys: Range<usize>, dq: &mut [f32]) {
        let (layout, wide) = (self.key_layout, self.layout.wide());
        let (_, ds, left) = scratch.parts();
        for tile in tiles(rows.clone()) {
            let seen = self.seen_of(&tile, &keys);
            if seen == 0 {
                continue;
            }
            let first = tile.start - rows.start;
            let source = Source::new(&ds[first * BACKWARD_KEYS..], BACKWARD_KEYS);
            pack_rows(source, 0..tile.len(), seen, self.form, tile.len(), left);
            for j in 0..wide / PANEL_COLS {
                let right = &self.keys_by_column[layout.panel_by_column(j, keys.start)..];
                let to = &mut dq[first * wide + j * PANEL_COLS..];
                multiply(self.form, layout.operand.units(seen), left, tile.len(), right, to, wide, true);
            }
        }
    }
}

/// P and dS of a block, `[BACKWARD_ROWS, BACKWARD_KEYS]` each, and scratch for a left panel of either direction.
struct Scratch {
    data: Buffer<f32>,
}

impl Scratch {
    const BLOCK_NUMBERS: usize = BACKWARD_ROWS * BACKWARD_KEYS;

    fn new() -> Scratch {
        let longest = if BACKWARD_ROWS > BACKWARD_KEYS { BACKWARD_ROWS } else { BACKWARD_KEYS };
        Scratch { data: Buffer::scratch(2 * Scratch::BLOCK_NUMBERS + PANEL_ROWS * longest) }
    }

    fn parts(&mut self) -> (&mut [f32], &mut [f32], &mut [f32]) {
        let (p, rest) = self.data.split_at_mut(Scratch::BLOCK_NUMBERS);
        let (ds, left) = rest.split_at_mut(Scratch::BLOCK_NUMBERS);
        (p, ds, left)
    }
}

kernel! {
    /// Scores to P and dP to dS, in place, for a block of `lse.len()` rows and the keys from `first` on; +0 for keys that a
    /// row does not attend to.
    fn softmax_backward[s: S](
        p: &mut [f32], ds: &mut [f32], seen: &[u32], first: usize, keys: usize, scale: f32, lse: &[f32], delta: &[f32],
    ) {
        let (lane, factor) = (s.load(&LANE), s.splat(scale));
        for r in 0..lse.len() {
            let visible = (seen[r] as usize).saturating_sub(first).min(keys);
            let (offset, delta) = (s.splat(-lse[r]), s.splat(delta[r]));
            let range = r * BACKWARD_KEYS..r * BACKWARD_KEYS + keys.next_multiple_of(LANES);
            let (p, ds) = (&mut p[range.clone()], &mut ds[range]);
            for (i, (p, ds)) in p.chunks_exact_mut(LANES).zip(ds.chunks_exact_mut(LANES)).enumerate() {
                if i * LANES >= visible {
                    s.store(s.zero(), p);
                    s.store(s.zero(), ds);
                    continue;
                }
                let weight = exp(s, s.fma(s.load(p), factor, offset));
                let change = s.mul(s.mul(weight, s.sub(s.load(ds), delta)), factor);
                if (i + 1) * LANES <= visible {
                    s.store(weight, p);
                    s.store(change, ds);
                } else {
                    let limit = s.splat((visible - i * LANES) as f32);
                    s.store(s.select_lt(lane, limit, weight, s.zero()), p);
                    s.store(s.select_lt(lane, limit, change, s.zero()), ds);
                }
            }
        }
    }
}

kernel! {
    /// The inner product of two rows, in sixteen lanes.
    fn dot[s: S](a: &[f32], b: &[f32]) -> f32 {
        let mut sum = s.zero();
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            sum = s.fma(s.load_partial(a), s.load_partial(b), sum);
        }
        s.reduce_add(sum)
    }
}
