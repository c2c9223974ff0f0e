//! The forward pass: tiles of up to 14 query rows against blocks of keys.

use std::ops::Range;

use crate::gemm::micro::{self, Ahead, Kernel};
use crate::gemm::pack::{pack_rows, panel_count, panel_start};
use crate::gemm::{Operand, PANEL_COLS, PANEL_ROWS, Source};
use crate::memory::Buffer;
use crate::simd::{LANES, exp, kernel};
use crate::tensor::Tensor;
use crate::threads::{Shared, parallel};

use super::packed::{Layout, head_rows};
use super::{BLOCK_KEYS, Heads, for_each_sequence};

/// Query rows that share a block of keys while it is near.
const BLOCK_ROWS: usize = 4 * PANEL_ROWS;
/// Rows of a sequence that one task packs.
pub(super) const PACK_ROWS: usize = 128;

/// What the backward pass needs beside the inputs and the output.
pub struct Saved {
    /// The natural logarithm of `Σ_s exp S[t, s]` of each head and row, `[H, T]`.
    pub lse_ht: Tensor,
}

/// Attention of each row of `q_td` to the rows up to it in its segment; see the module for formula and shapes.
///
/// `segments` holds the boundaries of the independent sequences: `0 = s_0 < s_1 < … = T`. `operand` is the precision of
/// the factors of both products; sums and softmax are f32.
///
/// # Panics
/// When the shapes or the boundaries do not fit.
pub fn forward(
    q_td: &Tensor,
    k_td: &Tensor,
    v_td: &Tensor,
    heads: Heads,
    segments: &[u32],
    operand: Operand,
) -> (Tensor, Saved) {
    let t = heads.check_call(q_td, k_td, v_td, segments);
    let mut o_td = Tensor::scratch(&[t, heads.query * heads.dim]);
    let mut lse_ht = Tensor::scratch(&[heads.query, t]);
    let queries = Queries { heads, q: q_td, o: Shared::new(&mut o_td), lse: Some((Shared::new(&mut lse_ht), t)) };
    for_each_sequence(segments, heads.key_value, |rows, head, _| {
        let n = rows.len();
        let layout = Layout::new(heads.dim, n, operand);
        let (mut keys, mut values) = (Buffer::scratch(layout.len_by_row()), Buffer::scratch(layout.len_by_column()));
        let (to_keys, to_values) = (Shared::new(&mut keys), Shared::new(&mut values));
        parallel(n.div_ceil(PACK_ROWS), |i| {
            let part = i * PACK_ROWS..((i + 1) * PACK_ROWS).min(n);
            // SAFETY: each task packs whole panels of its own.
            unsafe {
                layout.pack_by_row(&to_keys, part.start, head_rows(k_td, rows.start, head, heads.dim), part.clone());
                layout.pack_by_column(&to_values, part.start, head_rows(v_td, rows.start, head, heads.dim), part);
            }
        });
        let packed = Packed { layout, keys: &keys, values: &values };
        let count = queries.blocks(n);
        // The longest rows first.
        parallel(count, |i| queries.attend(packed, head, rows.start, 0, queries.block(n, count - 1 - i)));
    });
    (o_td, Saved { lse_ht })
}

/// Packed keys and values of one sequence and one key/value head.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    pub(super) layout: Layout,
    /// Keys by row.
    pub(super) keys: &'a [f32],
    /// Values by column.
    pub(super) values: &'a [f32],
}

/// The queries of a call and where their results go.
///
/// The *entries* of `n` rows for one key/value head are its `group` query heads of the first row, then of the second and
/// so on: a single row (decoding) so fills a tile with the heads that read the same keys.
pub(super) struct Queries<'a> {
    pub(super) heads: Heads,
    pub(super) q: &'a [f32],
    pub(super) o: Shared<f32>,
    /// The log-sum-exps `[H, T]`, and T.
    pub(super) lse: Option<(Shared<f32>, usize)>,
}

impl Queries<'_> {
    /// Blocks of entries of `n` rows.
    pub(super) fn blocks(&self, n: usize) -> usize {
        (n * self.heads.group()).div_ceil(BLOCK_ROWS)
    }

    /// The entries of block `i` of `n` rows.
    pub(super) fn block(&self, n: usize, i: usize) -> Range<usize> {
        i * BLOCK_ROWS..((i + 1) * BLOCK_ROWS).min(n * self.heads.group())
    }

    /// Attention of a block of entries; the rows they count from begin at row `first` of `q`, which sees `past + 1` keys.
    pub(super) fn attend(&self, packed: Packed<'_>, head: usize, first: usize, past: usize, entries: Range<usize>) {
        let Packed { layout, keys, values } = packed;
        let (operand, units, wide) = (layout.operand, layout.units(), layout.wide());
        let (n, group) = (entries.len(), self.heads.group());
        let kernels = micro::kernels(operand);
        // Of each entry: the row of `q` seen as `[T·H, D]`, and the keys it sees.
        let (mut index, mut seen) = ([0; BLOCK_ROWS], [0; BLOCK_ROWS]);
        for (e, entry) in entries.enumerate() {
            let (row, query) = (entry / group, head * group + entry % group);
            index[e] = ((first + row) * self.heads.query + query) as u32;
            seen[e] = past + row + 1;
        }
        let tiles = panel_count(n);
        let tile = |i: usize| panel_start(n, tiles, i)..panel_start(n, tiles, i + 1);

        let mut scratch = Buffer::<f32>::scratch(n * (units + wide + LANES) + 2 * PANEL_ROWS * BLOCK_KEYS);
        let (left, rest) = scratch.split_at_mut(n * units);
        let (out, rest) = rest.split_at_mut(n * wide);
        let (sums, rest) = rest.split_at_mut(n * LANES);
        let (scores, weights) = rest.split_at_mut(PANEL_ROWS * BLOCK_KEYS);
        sums.fill(0.0);
        let mut max = [[f32::NEG_INFINITY; LANES]; BLOCK_ROWS / PANEL_ROWS];

        let source = Source::gather(self.q, self.heads.dim, &index[..n]);
        for tile in (0..tiles).map(tile) {
            let panel = &mut left[tile.start * units..tile.end * units];
            pack_rows(source, tile.clone(), self.heads.dim, operand, tile.len(), panel);
        }

        for start in (0..seen[n - 1]).step_by(BLOCK_KEYS) {
            for (i, tile) in (0..tiles).map(tile).enumerate() {
                if seen[tile.end - 1] <= start {
                    continue;
                }
                let count = (seen[tile.end - 1] - start).min(BLOCK_KEYS);
                let panel = &left[tile.start * units..tile.end * units];
                let out = &mut out[tile.start * wide..tile.end * wide];
                for j in (0..count).step_by(PANEL_COLS) {
                    let right = &keys[layout.panel_by_row(start + j)..];
                    multiply(&kernels, units, panel, tile.len(), right, &mut scores[j..], BLOCK_KEYS, false);
                }
                let mut visible = [0; PANEL_ROWS];
                for (visible, seen) in visible.iter_mut().zip(&seen[tile.clone()]) {
                    *visible = seen.saturating_sub(start).min(count);
                }
                let sums = &mut sums[tile.start * LANES..tile.end * LANES];
                softmax(scores, &visible[..tile.len()], count, self.heads.scale(), &mut max[i], sums, out, start == 0);
                pack_rows(Source::new(scores, BLOCK_KEYS), 0..tile.len(), count, operand, tile.len(), weights);
                for j in 0..wide / PANEL_COLS {
                    let right = &values[layout.panel_by_column(j, start)..];
                    let out = &mut out[j * PANEL_COLS..];
                    multiply(&kernels, operand.units(count), weights, tile.len(), right, out, wide, start > 0);
                }
            }
        }

        for (i, tile) in (0..tiles).map(tile).enumerate() {
            for (e, max) in tile.zip(max[i]) {
                let (at, dim) = (index[e] as usize, self.heads.dim);
                // SAFETY: each entry has a place of its own in the output.
                let o = unsafe { self.o.range(at * dim..(at + 1) * dim) };
                let sum = finish(&out[e * wide..e * wide + dim], &sums[e * LANES..(e + 1) * LANES], o);
                if let Some((lse, t)) = &self.lse {
                    let place = at % self.heads.query * t + at / self.heads.query;
                    // SAFETY: as above.
                    let lse = unsafe { lse.range(place..place + 1) };
                    lse[0] = (f64::from(max) + f64::from(sum).ln()) as f32;
                }
            }
        }
    }
}

/// `C (+)= A·B` for a left panel of `rows` rows and a right panel, over `units` units, to whole panels of C.
pub(super) fn multiply(
    kernels: &[Kernel; PANEL_ROWS + 1],
    units: usize,
    left: &[f32],
    rows: usize,
    right: &[f32],
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    assert!(left.len() >= units * rows && right.len() >= units * PANEL_COLS, "panels of {units} units");
    assert!(rows > 0 && c.len() >= (rows - 1) * ldc + PANEL_COLS && ldc >= PANEL_COLS, "a tile of {rows} rows");
    // SAFETY: the panels and the tile are inside their slices; a kernel exists for 1..=14 rows.
    unsafe {
        let (left, right) = (left.as_ptr().cast(), right.as_ptr().cast());
        kernels[rows](units, left, rows, right, c.as_mut_ptr(), ldc, PANEL_COLS, accumulate, Ahead::nothing(left));
    }
}

/// The lanes' own numbers.
pub(super) const LANE: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

kernel! {
    /// Scores of a block to weights `exp(s·scale − max)`, row by row, in place; only the first `visible[r]` of row `r`
    /// count, the others up to `count` become zero. Brings maxima, sums (16 lanes a row) and the output so far up to date.
    fn softmax[s: S](
        scores: &mut [f32], visible: &[usize], count: usize, scale: f32, max: &mut [f32; LANES], sums: &mut [f32], out: &mut [f32],
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
    /// `o = out / sum`, without negative zeros: their sign would tell masked keys from absent ones. Gives the sum.
    fn finish[s: S](out: &[f32], sums: &[f32], o: &mut [f32]) -> f32 {
        let sum = s.reduce_add(s.load(sums));
        for (part, o) in out.chunks(LANES).zip(o.chunks_mut(LANES)) {
            s.store_partial(s.add(s.div(s.load_partial(part), s.splat(sum)), s.zero()), o);
        }
        sum
    }
}
