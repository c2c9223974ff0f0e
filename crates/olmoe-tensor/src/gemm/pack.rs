//! The layout of matrices for the kernels.
//!
//! A packed matrix is a sequence of panels. A panel holds, unit after unit of the contraction, the numbers of its rows
//! side by side. A left panel has up to 12 rows, a right one has 32 (the last one is padded with zeros). With f32
//! operands a unit is one step of the contraction; with bf16 operands it is two, and packing rounds the numbers. The
//! [`Form`] of a panel says how the two steps of a bf16 unit lie in it.

use std::ops::Range;

use crate::memory::Buffer;
use crate::simd::{LANES, Simd, fetch, kernel};
use crate::threads::{Shared, parallel_ranges};
use crate::work::GroupedWork;

use super::{Form, Operand, PANEL_COLS, PANEL_ROWS};

/// The prefetch distance in the rows of a source, in numbers: a few cache lines.
const FETCH_AHEAD: usize = 128;

/// Where the rows of a packed matrix come from: a row-major source read by rows or by columns.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The numbers.
    pub data: &'a [f32],
    /// Numbers in a row of the source.
    pub stride: usize,
    /// Reads source row `index[i]` in place of row `i`.
    pub index: Option<&'a [u32]>,
}

impl<'a> Source<'a> {
    /// All rows of a row-major matrix with `stride` numbers a row.
    pub fn new(data: &'a [f32], stride: usize) -> Source<'a> {
        Source { data, stride, index: None }
    }

    /// The rows that `index` names, in its order.
    pub fn gather(data: &'a [f32], stride: usize, index: &'a [u32]) -> Source<'a> {
        Source { data, stride, index: Some(index) }
    }

    /// Numbers `range` of row `i`.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize, range: Range<usize>) -> &'a [f32] {
        let i = self.index.map_or(i, |index| index[i] as usize);
        &self.data[i * self.stride..][range]
    }
}

/// Packs a panel of one row: its units in order.
#[inline(always)]
fn pack_row<S: Simd>(s: S, row: &[f32], form: Form, panel: &mut [f32]) {
    match form {
        Form::F32 => panel.copy_from_slice(row),
        Form::Bf16Pairs => {
            for (x, units) in row.chunks(2 * LANES).zip(panel.chunks_mut(LANES)) {
                let (lo, hi) = x.split_at(x.len().min(LANES));
                s.store_partial(s.bf16_pairs(s.load_partial(lo), s.load_partial(hi)), units);
            }
        }
        Form::Bf16Halves => {
            for (x, words) in row.chunks(LANES).zip(panel.chunks_mut(LANES)) {
                s.store_partial(s.round_bf16(s.load_partial(x)), words);
            }
            panel.as_chunks_mut().0.iter_mut().for_each(|[even, odd]| std::mem::swap(even, odd));
        }
    }
}

kernel! {
    /// Packs rows `rows` of a source, contraction `0..k` along the row, as one panel `width` wide (at most 32).
    pub(crate) fn pack_rows[s: S](source: Source<'_>, rows: Range<usize>, k: usize, form: Form, width: usize, panel: &mut [f32]) {
        let words = form.words(k);
        if width == 1 && rows.len() == 1 {
            return pack_row(s, source.row(rows.start, 0..k), form, &mut panel[..words]);
        }
        for half in 0..width.div_ceil(LANES) {
            let lanes = LANES.min(width - half * LANES);
            let first = rows.start + half * LANES;
            let count = rows.end.saturating_sub(first).min(lanes);
            for u in (0..words).step_by(LANES) {
                let mut block = [s.zero(); LANES];
                for (i, vector) in block[..count].iter_mut().enumerate() {
                    // A dozen rows at once are more streams than the hardware prefetcher follows.
                    fetch(source.row(first + i, 0..k).as_ptr().wrapping_add(u * (k / words.max(1)) + FETCH_AHEAD).cast());
                    *vector = match form {
                        Form::F32 if u + LANES <= k => s.load(source.row(first + i, u..k)),
                        Form::F32 => s.load_partial(source.row(first + i, u..k)),
                        Form::Bf16Halves if u + LANES <= k => s.round_bf16(s.load(source.row(first + i, u..k))),
                        Form::Bf16Halves => s.round_bf16(s.load_partial(source.row(first + i, u..k))),
                        Form::Bf16Pairs => {
                            let x = source.row(first + i, 2 * u..k);
                            if x.len() >= 2 * LANES {
                                s.bf16_pairs(s.load(x), s.load(&x[LANES..]))
                            } else {
                                let (lo, hi) = x.split_at(x.len().min(LANES));
                                s.bf16_pairs(s.load_partial(lo), s.load_partial(hi))
                            }
                        }
                    };
                }
                s.transpose(&mut block);
                for (j, vector) in block[..LANES.min(words - u)].iter().enumerate() {
                    let step = if form == Form::Bf16Halves { (u + j) ^ 1 } else { u + j };
                    let at = step * width + half * LANES;
                    if lanes == LANES {
                        s.store(*vector, &mut panel[at..]);
                    } else {
                        s.store_partial(*vector, &mut panel[at..at + lanes]);
                    }
                }
            }
        }
    }
}

kernel! {
    /// The units of a right panel of bf16 pairs as two steps of f32 each, the odd one first.
    pub(super) fn widen[s: S](pairs: &[f32], steps: &mut [f32]) {
        for (unit, steps) in pairs.as_chunks::<PANEL_COLS>().0.iter().zip(steps.as_chunks_mut::<{ 2 * PANEL_COLS }>().0) {
            let (lo, hi) = (s.load(&unit[..LANES]), s.load(&unit[LANES..]));
            s.store(s.bf16_odd(lo), &mut steps[..LANES]);
            s.store(s.bf16_odd(hi), &mut steps[LANES..2 * LANES]);
            s.store(s.bf16_even(lo), &mut steps[2 * LANES..3 * LANES]);
            s.store(s.bf16_even(hi), &mut steps[3 * LANES..]);
        }
    }
}

/// Columns `columns` (at most 16) of row `i` of a source; zeros past the end of the contraction.
#[inline(always)]
fn column_vector<S: Simd>(
    s: S,
    source: Source<'_>,
    i: usize,
    k: usize,
    columns: &Range<usize>,
    scale: Option<&[f32]>,
) -> S::V {
    if i >= k {
        return s.zero();
    }
    let x = source.row(i, columns.clone());
    let v = if x.len() == LANES { s.load(x) } else { s.load_partial(x) };
    match scale {
        Some(scale) => s.mul(v, s.splat(scale[i])),
        None => v,
    }
}

kernel! {
    /// Packs columns `columns` of a source, contraction `0..k` down the rows, as the first words of one panel `width`
    /// wide (at most 32). Row `i` is multiplied by `scale[i]` when there is one.
    pub(crate) fn pack_columns[s: S](
        source: Source<'_>, columns: Range<usize>, k: usize, form: Form, width: usize, scale: Option<&[f32]>, panel: &mut [f32],
    ) {
        let half = |h: usize| (columns.start + h * LANES).min(columns.end)..(columns.start + (h + 1) * LANES).min(columns.end);
        let (first, second) = (half(0), half(1));
        for (u, out) in panel.chunks_exact_mut(width).take(form.words(k)).enumerate() {
            let (lo, hi) = out.split_at_mut(width.min(LANES));
            for (range, out) in [(&first, lo), (&second, hi)] {
                if out.is_empty() {
                    continue;
                }
                let vector = match form {
                    Form::F32 => column_vector(s, source, u, k, range, scale),
                    Form::Bf16Halves => s.round_bf16(column_vector(s, source, u ^ 1, k, range, scale)),
                    Form::Bf16Pairs => {
                        let even = column_vector(s, source, 2 * u, k, range, scale);
                        s.bf16_interleave(even, column_vector(s, source, 2 * u + 1, k, range, scale))
                    }
                };
                if out.len() == LANES {
                    s.store(vector, out);
                } else {
                    s.store_partial(vector, out);
                }
            }
        }
    }
}

/// The number of panels of a left factor: equal parts of at most 12 rows.
pub(crate) fn panel_count(rows: usize) -> usize {
    rows.next_multiple_of(2).div_ceil(PANEL_ROWS)
}

/// Where panel `p` of `count` panels over `rows` rows begins: always at an even row, so that pairs of bf16 numbers down
/// a column never straddle panels.
pub(crate) fn panel_start(rows: usize, count: usize, p: usize) -> usize {
    (rows.next_multiple_of(2) * p / count.max(1) / 2 * 2).min(rows)
}

/// A packed left factor `[M, K]`: rows in even panels of at most 12.
pub struct Left {
    data: Buffer<f32>,
    rows: usize,
    k: usize,
    operand: Operand,
    form: Form,
}

/// Packed right factors `[N, K]`, one or several (the experts): rows in panels of 32. `C = A·Bᵀ` in terms of both
/// row-major matrices.
#[derive(Clone)]
pub struct Right {
    data: Buffer<f32>,
    groups: usize,
    rows: usize,
    k: usize,
    operand: Operand,
}

/// Borrowed panels of one packed factor, or of a part of its contraction.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) k: usize,
    pub(crate) operand: Operand,
    /// The form of the panels.
    pub(super) form: Form,
    /// Units of the whole contraction, as laid out, and the first of this part.
    pub(super) pitch: usize,
    pub(super) first: usize,
}

impl<'a> Panels<'a> {
    /// Panels over a whole contraction.
    pub(crate) fn new(data: &'a [f32], rows: usize, k: usize, operand: Operand, form: Form) -> Panels<'a> {
        Panels { data, rows, k, operand, form, pitch: operand.units(k), first: 0 }
    }

    /// The section `range` of the contraction. It begins at an even index, and ends at one or at the end.
    pub(crate) fn section(self, range: Range<usize>) -> Panels<'a> {
        debug_assert!(range.end <= self.k && range.start.is_multiple_of(2));
        debug_assert!(range.end == self.k || range.end.is_multiple_of(2));
        Panels { k: range.len(), first: self.first + self.operand.units(range.start), ..self }
    }
}

impl Left {
    /// A factor of `rows × k` numbers with arbitrary contents.
    pub(crate) fn scratch(rows: usize, k: usize, operand: Operand) -> Left {
        let form = operand.left();
        Left { data: Buffer::scratch(rows * form.words(k)), rows, k, operand, form }
    }

    /// A factor of `rows × k` numbers with arbitrary contents in a buffer for `most` rows, so that tasks of different
    /// sizes share one size class of the pool.
    pub(crate) fn scratch_of(most: usize, rows: usize, k: usize, operand: Operand) -> Left {
        assert!(rows <= most, "{rows} rows in room for {most}");
        Left { rows, ..Left::scratch(most, k, operand) }
    }

    /// Packs the `rows` rows of a source `[rows, k]` on all threads.
    pub fn from_rows(source: Source<'_>, rows: usize, k: usize, operand: Operand) -> Left {
        Left::from_groups(source, &[0, rows as u32], k, operand)
    }

    /// Packs rows of a source on all threads. Each group of rows begins at one of the `offsets` and ends at the next,
    /// and has panels of its own.
    pub fn from_groups(source: Source<'_>, offsets: &[u32], k: usize, operand: Operand) -> Left {
        let rows = offsets.last().map_or(0, |rows| *rows as usize);
        let mut packed = Left::scratch(rows, k, operand);
        let form = packed.form;
        packed.fill(offsets, |panel, range| pack_rows(source, range.clone(), k, form, range.len(), panel));
        packed
    }

    /// Packs the `rows` columns of a source `[k, rows]` on all threads.
    pub fn from_columns(source: Source<'_>, rows: usize, k: usize, operand: Operand) -> Left {
        let mut packed = Left::scratch(rows, k, operand);
        let form = packed.form;
        packed.fill(&[0, rows as u32], |panel, range| {
            pack_columns(source, range.clone(), k, form, range.len(), None, panel);
        });
        packed
    }

    /// Rows of the factor (rows of the product).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The form of the panels.
    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// The panels of a factor without groups.
    pub(crate) fn panels(&self) -> Panels<'_> {
        self.group(0..self.rows)
    }

    /// The panels of the group with the rows `rows`.
    pub(crate) fn group(&self, rows: Range<usize>) -> Panels<'_> {
        let words = self.form.words(self.k);
        Panels::new(&self.data[rows.start * words..rows.end * words], rows.len(), self.k, self.operand, self.form)
    }

    /// Packs rows `0..rows` of a source on the calling thread, in place of the old contents; `rows` and `k` are
    /// unchanged.
    pub(crate) fn repack_rows(&mut self, source: Source<'_>) {
        let (rows, form) = (self.rows, self.form);
        let words = form.words(self.k);
        let count = panel_count(rows);
        for p in 0..count {
            let range = panel_start(rows, count, p)..panel_start(rows, count, p + 1);
            let panel = &mut self.data[range.start * words..range.end * words];
            pack_rows(source, range.clone(), self.k, form, range.len(), panel);
        }
    }

    /// The packed numbers, for tasks that each write a range of them.
    pub(crate) fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    fn fill(&mut self, offsets: &[u32], pack: impl Fn(&mut [f32], Range<usize>) + Sync) {
        let words = self.form.words(self.k);
        let data = Shared::new(&mut self.data);
        let work = GroupedWork { offsets, panels: &[1], tiles: panel_count, piece_tiles: 1, piece_panels: 1 };
        work.run(|piece| {
            let (first, end) = (offsets[piece.group] as usize, offsets[piece.group + 1] as usize);
            let count = panel_count(end - first);
            for p in piece.tiles {
                let at = |p| first + panel_start(end - first, count, p);
                let rows = at(p)..at(p + 1);
                // SAFETY: each panel is another range.
                pack(unsafe { data.range(rows.start * words..rows.end * words) }, rows);
            }
        });
    }
}

impl Right {
    /// `groups` factors of `rows × k` numbers with arbitrary contents.
    pub fn scratch(groups: usize, rows: usize, k: usize, operand: Operand) -> Right {
        let len = groups * rows.next_multiple_of(PANEL_COLS) * operand.units(k);
        Right { data: Buffer::scratch(len), groups, rows, k, operand }
    }

    /// Packs the `rows` rows of a source `[rows, k]` on all threads.
    pub fn from_rows(source: Source<'_>, rows: usize, k: usize, operand: Operand) -> Right {
        let mut packed = Right::scratch(1, rows, k, operand);
        packed.repack_rows(source);
        packed
    }

    /// Packs the `rows` columns of a source `[k, rows]` on all threads.
    pub fn from_columns(source: Source<'_>, rows: usize, k: usize, operand: Operand) -> Right {
        let mut packed = Right::scratch(1, rows, k, operand);
        packed.repack_columns(source);
        packed
    }

    /// Packs the rows of a source, in place of the old contents, on all threads.
    fn repack_rows(&mut self, source: Source<'_>) {
        let (k, operand) = (self.k, self.operand);
        self.fill(|panel, range| pack_rows(source, range, k, operand.right(), PANEL_COLS, panel));
    }

    /// Packs the columns of a source, in place of the old contents, on all threads.
    fn repack_columns(&mut self, source: Source<'_>) {
        let (k, operand) = (self.k, self.operand);
        self.fill(|panel, range| pack_columns(source, range, k, operand.right(), PANEL_COLS, None, panel));
    }

    /// The packed numbers, for tasks that each write some panels with [`RightShape`].
    pub(crate) fn shared(&mut self) -> (Shared<'_, f32>, RightShape) {
        let shape = RightShape { rows: self.rows, k: self.k, operand: self.operand };
        (Shared::new(&mut self.data), shape)
    }

    /// Factors.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Rows of a factor (columns of the product).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of the contraction.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The precision of the numbers.
    pub fn operand(&self) -> Operand {
        self.operand
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }

    /// The panels of factor `group`.
    pub(crate) fn group(&self, group: usize) -> Panels<'_> {
        let len = self.data.len() / self.groups;
        Panels::new(&self.data[group * len..(group + 1) * len], self.rows, self.k, self.operand, self.operand.right())
    }

    fn fill(&mut self, pack: impl Fn(&mut [f32], Range<usize>) + Sync) {
        let (rows, len) = (self.rows, PANEL_COLS * self.operand.units(self.k));
        let data = Shared::new(&mut self.data);
        parallel_ranges(rows.div_ceil(PANEL_COLS), 1, |some| {
            for p in some {
                // SAFETY: each panel is another range.
                let panel = unsafe { data.range(p * len..(p + 1) * len) };
                pack(panel, p * PANEL_COLS..((p + 1) * PANEL_COLS).min(rows));
            }
        });
    }
}

/// The layout of the factors in a [`Right`].
#[derive(Clone, Copy)]
pub(crate) struct RightShape {
    rows: usize,
    k: usize,
    operand: Operand,
}

impl RightShape {
    /// Where panel `p` of factor `group` begins.
    fn panel(&self, group: usize, p: usize) -> usize {
        (group * self.rows.div_ceil(PANEL_COLS) + p) * PANEL_COLS * self.operand.units(self.k)
    }

    /// Packs the rows of `strip [n, k]`, at most 32, as panel `p` of factor `group`.
    ///
    /// # Safety
    /// No other task packs this panel.
    pub(crate) unsafe fn pack_panel(&self, out: &Shared<'_, f32>, group: usize, p: usize, strip: &[f32]) {
        let at = self.panel(group, p);
        // SAFETY: by the caller's promise.
        let panel = unsafe { out.range(at..at + PANEL_COLS * self.operand.units(self.k)) };
        pack_rows(
            Source::new(strip, self.k),
            0..strip.len() / self.k.max(1),
            self.k,
            self.operand.right(),
            PANEL_COLS,
            panel,
        );
    }

    /// Packs the columns of `strip [n, rows]` as the part of the contraction of factor `group` that begins at `first`,
    /// an even place.
    ///
    /// # Safety
    /// No other task packs this part.
    pub(crate) unsafe fn pack_part(&self, out: &Shared<'_, f32>, group: usize, first: usize, strip: &[f32]) {
        let n = strip.len() / self.rows.max(1);
        let (first, some) = (self.operand.units(first), self.operand.units(n));
        for p in 0..self.rows.div_ceil(PANEL_COLS) {
            let at = self.panel(group, p) + first * PANEL_COLS;
            // SAFETY: by the caller's promise.
            let panel = unsafe { out.range(at..at + some * PANEL_COLS) };
            let columns = p * PANEL_COLS..((p + 1) * PANEL_COLS).min(self.rows);
            pack_columns(Source::new(strip, self.rows), columns, n, self.operand.right(), PANEL_COLS, None, panel);
        }
    }
}
