//! The forward pass: tiles of up to 12 query rows against blocks of keys, in spans that are merged in order.

use std::ops::Range;

use crate::elementary::ln;
use crate::gemm::pack::{pack_rows, panel_count, panel_start};
use crate::gemm::{Form, Operand, PANEL_COLS, PANEL_ROWS, Source};
use crate::memory::Buffer;
use crate::simd::{LANES, exp, kernel};
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel};

use super::blocks::{KvBlock, KvLayout};
use super::packed::head_rows;
use super::single::{multiply_row, pack_row};
use super::tile::{LANE, multiply};
use super::{BLOCK_KEYS, Heads, SPAN_KEYS, Sight, for_each_sequence, q8_0};

/// Most entries of a block; they share a block of keys while the keys are in the cache.
const BLOCK_ENTRIES: usize = 4 * PANEL_ROWS;

/// What the backward pass needs in addition to the inputs and the output.
pub struct AttentionSaved {
    /// The natural logarithm of `Σ_s exp S[t, s]` of each head and row, `[H, T]`.
    pub lse_ht: Tensor,
}

/// Attention of each row to the keys that `sight` gives it; the output of a row that has none is zero.
pub(super) fn forward_sight(
    q_td: &Tensor,
    k_td: &Tensor,
    v_td: &Tensor,
    heads: Heads,
    sight: Sight<'_>,
    operand: Operand,
) -> (Tensor, AttentionSaved) {
    let t = heads.check_call(q_td, k_td, v_td, sight);
    let mut o_td = Tensor::scratch(&[t, heads.query * heads.dim]);
    let mut lse_ht = Tensor::scratch(&[heads.query, t]);
    let lse = Some((Shared::new(&mut lse_ht), t));
    let queries = Queries { heads, q: q_td, o: Shared::new(&mut o_td), lse, seen: sight.seen };
    for_each_sequence(sight.segments, heads.key_value, |i, head, _| {
        let [rows, keys] = sight.segment(i);
        let blocks = KvLayout::new(heads.dim, keys.len(), operand.into());
        let mut data = Buffer::scratch(blocks.len());
        let to = Shared::new(&mut data);
        parallel(keys.len().div_ceil(BLOCK_KEYS), |i| {
            let part = i * BLOCK_KEYS..((i + 1) * BLOCK_KEYS).min(keys.len());
            let sources = [k_td, v_td].map(|x| head_rows(x, keys.start, head, heads.dim));
            // SAFETY: each task writes a block of its own.
            unsafe { blocks.write(&to, part.start, sources, part) }
        });
        let packed = PackedKv { blocks, data: &data };
        let n = rows.len();
        let count = queries.blocks(n);
        // The rows with the most keys first.
        parallel(count, |i| {
            let some = queries.block(n, count - 1 - i);
            queries.attend(packed, &queries.entries(head, rows.start, 0, some));
        });
    });
    (o_td, AttentionSaved { lse_ht })
}

/// The packed keys and values of one sequence and one key/value head.
#[derive(Clone, Copy)]
pub(super) struct PackedKv<'a> {
    pub(super) blocks: KvLayout,
    pub(super) data: &'a [f32],
}

/// The queries of a call, and where their results are written.
///
/// An *entry* is one query head of one row. The entries of `n` rows for one key/value head are the `group` query heads
/// of the first row, then those of the second row, and so on. In decoding, a single row so fills a tile with the heads
/// that read the same keys.
pub(super) struct Queries<'a> {
    pub(super) heads: Heads,
    pub(super) q: &'a [f32],
    pub(super) o: Shared<'a, f32>,
    /// The log-sum-exps `[H, T]`, and T.
    pub(super) lse: Option<(Shared<'a, f32>, usize)>,
    /// How many keys each row of `q` sees, if not those up to itself.
    pub(super) seen: Option<&'a [u32]>,
}

/// A block of entries.
pub(super) struct Entries {
    count: usize,
    /// Rows of `q` seen as `[T·H, D]`.
    index: [u32; BLOCK_ENTRIES],
    /// Keys that each sees, never fewer than the one before.
    seen: [usize; BLOCK_ENTRIES],
}

impl Entries {
    fn index(&self) -> &[u32] {
        &self.index[..self.count]
    }

    fn tiles(&self) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let (n, tiles) = (self.count, panel_count(self.count));
        (0..tiles).map(move |i| (i, panel_start(n, tiles, i)..panel_start(n, tiles, i + 1)))
    }

    /// The number of spans that the last entry attends to.
    pub(super) fn spans(&self) -> usize {
        self.seen[self.count - 1].div_ceil(SPAN_KEYS)
    }
}

/// The running softmax of some entries after some keys: outputs that are not yet divided by the sum of weights, `[n,
/// wide]`, sums of weights in lanes, `[n, 16]`, and maxima of the scores, 16 for each tile.
pub(super) struct SoftmaxState<'a> {
    out: &'a mut [f32],
    sums: &'a mut [f32],
    max: &'a mut [f32],
}

/// Places for maxima.
const MAX_LEN: usize = LANES * (BLOCK_ENTRIES / PANEL_ROWS);

impl SoftmaxState<'_> {
    /// Numbers of a state.
    pub(super) fn len(entries: usize, wide: usize) -> usize {
        entries * (wide + LANES) + MAX_LEN
    }

    /// The state that lies in `data`.
    pub(super) fn of(data: &mut [f32], wide: usize) -> SoftmaxState<'_> {
        let n = (data.len() - MAX_LEN) / (wide + LANES);
        let (max, rest) = data.split_at_mut(MAX_LEN);
        let (sums, out) = rest.split_at_mut(n * LANES);
        SoftmaxState { out, sums, max }
    }
}

impl Queries<'_> {
    /// Blocks of entries of `n` rows.
    pub(super) fn blocks(&self, n: usize) -> usize {
        (n * self.heads.group()).div_ceil(BLOCK_ENTRIES)
    }

    /// The entries of block `i` of `n` rows.
    pub(super) fn block(&self, n: usize, i: usize) -> Range<usize> {
        i * BLOCK_ENTRIES..((i + 1) * BLOCK_ENTRIES).min(n * self.heads.group())
    }

    /// Some entries; the rows they count from begin at row `first` of `q`, which sees `past + 1` keys unless it is said how
    /// many.
    pub(super) fn entries(&self, head: usize, first: usize, past: usize, some: Range<usize>) -> Entries {
        let group = self.heads.group();
        let mut entries = Entries { count: some.len(), index: [0; BLOCK_ENTRIES], seen: [0; BLOCK_ENTRIES] };
        for (e, entry) in some.enumerate() {
            let (row, query) = (entry / group, head * group + entry % group);
            entries.index[e] = ((first + row) * self.heads.query + query) as u32;
            entries.seen[e] = self.seen.map_or(past + row + 1, |seen| seen[first + row] as usize);
        }
        entries
    }

    /// Computes the attention of some entries.
    pub(super) fn attend(&self, packed: PackedKv<'_>, entries: &Entries) {
        let wide = packed.blocks.wide();
        let len = SoftmaxState::len(entries.count, wide);
        let several = entries.spans() > 1;
        let mut data = Buffer::<f32>::scratch(len * (1 + usize::from(several)));
        let (total, part) = data.split_at_mut(len);
        let mut total = SoftmaxState::of(total, wide);
        let mut work = PackedEntries::new(self, packed, entries);
        work.span(0, &mut total);
        if several {
            let mut part = SoftmaxState::of(part, wide);
            for span in 1..entries.spans() {
                work.span(span, &mut part);
                add_span(entries, span, &mut total, &part);
            }
        }
        self.finish(entries, &total);
    }

    /// Computes one span of the attention of some entries, for [`Queries::merge`].
    pub(super) fn attend_span(&self, packed: PackedKv<'_>, entries: &Entries, span: usize, state: &mut [f32]) {
        PackedEntries::new(self, packed, entries).span(span, &mut SoftmaxState::of(state, packed.blocks.wide()));
    }

    /// Merges the states of all spans of some entries, in order, and writes their results.
    pub(super) fn merge(&self, entries: &Entries, wide: usize, states: &mut [f32]) {
        let (total, parts) = states.split_at_mut(SoftmaxState::len(entries.count, wide));
        let mut total = SoftmaxState::of(total, wide);
        for (i, part) in parts.chunks_exact_mut(SoftmaxState::len(entries.count, wide)).enumerate() {
            add_span(entries, i + 1, &mut total, &SoftmaxState::of(part, wide));
        }
        self.finish(entries, &total);
    }

    fn finish(&self, entries: &Entries, state: &SoftmaxState<'_>) {
        let dim = self.heads.dim;
        let wide = state.out.len() / entries.count;
        for (i, tile) in entries.tiles() {
            for (e, max) in tile.zip(&state.max[i * LANES..]) {
                let at = entries.index[e] as usize;
                // SAFETY: each entry has a place of its own in the output.
                let o = unsafe { self.o.range(at * dim..(at + 1) * dim) };
                let lse = match entries.seen[e] {
                    // Nothing was added up: what lies in the state is not of this call.
                    0 => {
                        o.fill(0.0);
                        f32::NEG_INFINITY
                    }
                    _ => {
                        let sums = &state.sums[e * LANES..(e + 1) * LANES];
                        let sum = finish(&state.out[e * wide..e * wide + dim], sums, o);
                        (f64::from(*max) + ln(f64::from(sum))) as f32
                    }
                };
                if let Some((all, t)) = &self.lse {
                    let place = at % self.heads.query * t + at / self.heads.query;
                    // SAFETY: as above.
                    let place = unsafe { all.range(place..place + 1) };
                    place[0] = lse;
                }
            }
        }
    }
}

/// Some entries with their packed queries, and scratch memory for their attention.
struct PackedEntries<'a> {
    packed: PackedKv<'a>,
    entries: &'a Entries,
    scale: f32,
    /// The form of the packed queries and weights; `None` where they are quantised.
    form: Option<Form>,
    /// Words of a packed query.
    words: usize,
    scratch: Buffer<f32>,
}

impl<'a> PackedEntries<'a> {
    fn new(queries: &Queries<'_>, packed: PackedKv<'a>, entries: &'a Entries) -> PackedEntries<'a> {
        let (dim, wide) = (queries.heads.dim, packed.blocks.wide());
        let form = packed.blocks.operand().map(Operand::left);
        let (words, extra) = match form {
            Some(form) => (form.words(dim), PANEL_ROWS * BLOCK_KEYS),
            None => (q8_0::query_units(wide), q8_0::scratch_units(wide)),
        };
        let mut scratch = Buffer::scratch(entries.count * words + PANEL_ROWS * BLOCK_KEYS + extra);
        let left = &mut scratch[..entries.count * words];
        match packed.blocks.operand().zip(form) {
            Some((operand, form)) => {
                let source = Source::gather(queries.q, dim, entries.index());
                for (_, tile) in entries.tiles() {
                    let panel = &mut left[tile.start * words..tile.end * words];
                    let one = &queries.q[entries.index[tile.start] as usize * dim..][..dim];
                    match (tile.len(), operand) {
                        (1, Operand::F32) => panel.copy_from_slice(one),
                        (1, Operand::Bf16) => pack_row(one, &mut panel[..operand.units(dim)]),
                        _ => pack_rows(source, tile.clone(), dim, form, tile.len(), panel),
                    }
                }
            }
            None => q8_0::pack_queries(queries.q, dim, entries.index(), bytemuck::cast_slice_mut(left)),
        }
        PackedEntries { packed, entries, scale: queries.heads.scale(), form, words, scratch }
    }

    /// Computes the state after the keys of a span.
    fn span(&mut self, span: usize, state: &mut SoftmaxState<'_>) {
        let PackedKv { blocks, data } = self.packed;
        let (entries, words, form, wide) = (self.entries, self.words, self.form, blocks.wide());
        let (left, rest) = self.scratch.split_at_mut(entries.count * words);
        let (scores, scratch) = rest.split_at_mut(PANEL_ROWS * BLOCK_KEYS);
        let (begin, end) = (span * SPAN_KEYS, ((span + 1) * SPAN_KEYS).min(entries.seen[entries.count - 1]));
        state.sums.fill(0.0);
        state.max.fill(f32::NEG_INFINITY);
        for start in (begin..end).step_by(BLOCK_KEYS) {
            let block = blocks.block(data, start);
            for (i, tile) in entries.tiles() {
                if entries.seen[tile.end - 1] <= start {
                    continue;
                }
                let count = (entries.seen[tile.end - 1] - start).min(BLOCK_KEYS);
                let mut visible = [0; PANEL_ROWS];
                for (visible, seen) in visible.iter_mut().zip(&entries.seen[tile.clone()]) {
                    *visible = seen.saturating_sub(start).min(count);
                }
                let sums = &mut state.sums[tile.start * LANES..tile.end * LANES];
                let out = &mut state.out[tile.start * wide..tile.end * wide];
                let max = &mut state.max[i * LANES..(i + 1) * LANES];
                let (first, rows) = (start == begin, tile.len());
                score(&block, form, &left[tile.start * words..tile.end * words], rows, count, scores);
                softmax(scores, &visible[..rows], count, self.scale, max, sums, out, first);
                add_values(&block, form, scores, rows, count, out, scratch, first);
            }
        }
    }
}

/// Computes the scores of some packed queries and the first `count` keys of a block, in rows of [`BLOCK_KEYS`].
fn score(block: &KvBlock<'_>, form: Option<Form>, queries: &[f32], rows: usize, count: usize, scores: &mut [f32]) {
    let Some((layout, form)) = block.layout.zip(form) else {
        let (queries, keys) = (bytemuck::cast_slice(queries), bytemuck::cast_slice(block.keys));
        return q8_0::scores(queries, block.blocks.wide(), keys, count, scores);
    };
    let (panel, columns) = (layout.panel_by_row(PANEL_COLS), count.next_multiple_of(PANEL_COLS));
    if rows == 1 {
        let queries = &queries[..layout.units()];
        return multiply_row(layout.operand, queries, block.keys, panel, &mut scores[..columns], false);
    }
    for (right, j) in block.keys.chunks_exact(panel).zip((0..columns).step_by(PANEL_COLS)) {
        multiply(form, layout.units(), queries, rows, right, &mut scores[j..], BLOCK_KEYS, false);
    }
}

/// Adds the first `count` values of a block, weighted by rows of [`BLOCK_KEYS`] weights, to `out`; overwrites `out`
/// where the values are the `first` ones.
fn add_values(
    block: &KvBlock<'_>,
    form: Option<Form>,
    weights: &[f32],
    rows: usize,
    count: usize,
    out: &mut [f32],
    scratch: &mut [f32],
    first: bool,
) {
    let wide = block.blocks.wide();
    let Some((layout, form)) = block.layout.zip(form) else {
        let (values, weights) = (bytemuck::cast_slice(block.values), &weights[..rows * BLOCK_KEYS]);
        return q8_0::add_values(weights, values, (block.rows, count), wide, out, scratch, first);
    };
    let (units, panel) = (layout.operand.units(count), layout.panel_by_column(1, 0));
    if rows == 1 {
        let left = &mut scratch[..units];
        let left = match layout.operand {
            Operand::F32 => &weights[..units],
            Operand::Bf16 => {
                pack_row(&weights[..count], left);
                left
            }
        };
        return multiply_row(layout.operand, left, block.values, panel, out, !first);
    }
    let left = &mut scratch[..form.words(count) * rows];
    pack_rows(Source::new(weights, BLOCK_KEYS), 0..rows, count, form, rows, left);
    for (right, j) in block.values.chunks_exact(panel).zip((0..wide).step_by(PANEL_COLS)) {
        multiply(form, units, left, rows, right, &mut out[j..], wide, !first);
    }
}

/// Merges the state of span `span` into that of the spans before, for the entries that attend to any of its keys.
fn add_span(entries: &Entries, span: usize, total: &mut SoftmaxState<'_>, part: &SoftmaxState<'_>) {
    let wide = total.out.len() / entries.count;
    for (i, tile) in entries.tiles() {
        let unseen = entries.seen[tile.clone()].iter().take_while(|seen| **seen <= span * SPAN_KEYS).count();
        let rows = tile.start + unseen..tile.end;
        merge(
            &mut total.max[i * LANES + unseen..][..rows.len()],
            &part.max[i * LANES + unseen..][..rows.len()],
            &mut total.sums[rows.start * LANES..rows.end * LANES],
            &part.sums[rows.start * LANES..rows.end * LANES],
            &mut total.out[rows.start * wide..rows.end * wide],
            &part.out[rows.start * wide..rows.end * wide],
        );
    }
}

kernel! {
    /// Merges maxima, sums and outputs of some rows with those of other keys.
    fn merge[s: S](max: &mut [f32], new: &[f32], sums: &mut [f32], new_sums: &[f32], out: &mut [f32], new_out: &[f32]) {
        if max.is_empty() {
            return;
        }
        let (old, more) = (s.load_partial(max), s.load_partial(new));
        let most = s.max(old, more);
        s.store_partial(most, max);
        let (mut ours, mut theirs) = ([0.0; LANES], [0.0; LANES]);
        s.store(exp(s, s.sub(old, most)), &mut ours);
        s.store(exp(s, s.sub(more, most)), &mut theirs);
        let wide = out.len() / max.len();
        let rows = sums.chunks_exact_mut(LANES).zip(new_sums.chunks_exact(LANES));
        let rows = rows.zip(out.chunks_exact_mut(wide).zip(new_out.chunks_exact(wide)));
        for (i, ((sums, new_sums), (out, new_out))) in rows.enumerate() {
            let (ours, theirs) = (s.splat(ours[i]), s.splat(theirs[i]));
            let both = out.chunks_exact_mut(LANES).zip(new_out.chunks_exact(LANES));
            for (to, new) in both.chain([(sums, new_sums)]) {
                s.store(s.fma(s.load(new), theirs, s.mul(s.load(to), ours)), to);
            }
        }
    }
}

kernel! {
    /// Turns the scores of a block into weights `exp(s·scale − max)`, row by row, in place. Only the first `visible[r]`
    /// scores of row `r` count; the weights of the others up to `count` are zero. Updates the maxima, the sums (16
    /// lanes for each row) and the previous output.
    fn softmax[s: S](
        scores: &mut [f32], visible: &[usize], count: usize, scale: f32, max: &mut [f32], sums: &mut [f32], out: &mut [f32],
        first: bool,
    ) {
        let (lane, lowest) = (s.load(&LANE), s.splat(f32::NEG_INFINITY));
        let old = s.load(max);
        for (r, visible) in visible.iter().enumerate() {
            let row = &scores[r * BLOCK_KEYS..(r + 1) * BLOCK_KEYS];
            let whole = visible / LANES * LANES;
            let mut most = lowest;
            for part in row[..whole].chunks_exact(LANES) {
                most = s.max(most, s.load(part));
            }
            if whole < *visible {
                let limit = s.splat((visible - whole) as f32);
                most = s.max(most, s.select_lt(lane, limit, s.load(&row[whole..]), lowest));
            }
            max[r] = max[r].max(s.reduce_max(most) * scale);
        }
        let mut shrink = [1.0; LANES];
        s.store(exp(s, s.sub(old, s.load(max))), &mut shrink);
        let wide = out.len() / visible.len();
        for (r, visible) in visible.iter().enumerate() {
            let row = &mut scores[r * BLOCK_KEYS..][..count.next_multiple_of(LANES)];
            let (scale, offset) = (s.splat(scale), s.splat(-max[r]));
            let mut sum = s.zero();
            let whole = visible / LANES;
            for (i, part) in row.chunks_exact_mut(LANES).enumerate() {
                if i < whole {
                    let p = exp(s, s.fma(s.load(part), scale, offset));
                    sum = s.add(sum, p);
                    s.store(p, part);
                } else {
                    let limit = s.splat(visible.saturating_sub(i * LANES) as f32);
                    let p = exp(s, s.fma(s.load(part), scale, offset));
                    let p = s.select_lt(lane, limit, p, s.zero());
                    sum = s.add(sum, p);
                    s.store(p, part);
                }
            }
            let total = &mut sums[r * LANES..(r + 1) * LANES];
            s.store(s.fma(s.load(total), s.splat(shrink[r]), sum), total);
            if !first && shrink[r] != 1.0 {
                for part in out[r * wide..(r + 1) * wide].chunks_exact_mut(LANES) {
                    s.store(s.mul(s.load(part), s.splat(shrink[r])), part);
                }
            }
        }
    }
}

kernel! {
    /// `o = out / sum`, without negative zeros, whose sign would depend on whether a key is masked or absent. Returns
    /// the sum.
    fn finish[s: S](out: &[f32], sums: &[f32], o: &mut [f32]) -> f32 {
        let sum = s.reduce_add(s.load(sums));
        for (part, o) in out.chunks(LANES).zip(o.chunks_mut(LANES)) {
            s.store_partial(s.add(s.div(s.load_partial(part), s.splat(sum)), s.zero()), o);
        }
        sum
    }
}
