//! How keys and values of one sequence and one key/value head lie in memory: one stream in the order in which they are read.
//!
//! Tokens come in blocks of [`BLOCK_KEYS`], of a block first the keys, then the values; the last block has room for fewer,
//! a multiple of 32. With rows of `D` numbers, filled up to whole panels of 32 where panels run along the head:
//!
//! | type | keys of a block | values of a block |
//! |---|---|---|
//! | f32, bf16 | right panels of 32 tokens, contraction along the head | right panels of 32 numbers of the head, contraction over the tokens |
//! | q8_0 | panels of 32 tokens as of packed Q8_0 weights | f16 scales `[D / 32, tokens]`, then quants `[tokens, D]` in i8 |

use std::ops::Range;

use crate::gemm::{Operand, PANEL_COLS, Source};
use crate::threads::Shared;

use super::packed::{Layout, put_odd};
use super::{BLOCK_KEYS, q8_0};

/// How a cache keeps keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheType {
    /// f32.
    F32,
    /// Rounded to bf16. Queries and weights are rounded, too.
    Bf16,
    /// Blocks of 32 numbers of a head, whole in −127..=127 with an f16 scale: 8.5 bits a number. Queries are rounded to eight
    /// bits, too; weights stay f32.
    Q8_0,
}

impl CacheType {
    /// Every type.
    pub const ALL: [CacheType; 3] = [CacheType::F32, CacheType::Bf16, CacheType::Q8_0];

    /// Its name: `f32`, `bf16` or `q8_0`.
    pub fn name(self) -> &'static str {
        match self {
            CacheType::F32 => "f32",
            CacheType::Bf16 => "bf16",
            CacheType::Q8_0 => "q8_0",
        }
    }

    /// The type of that name.
    pub fn by_name(name: &str) -> Option<CacheType> {
        CacheType::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl From<Operand> for CacheType {
    /// The type with which a cache gives the bits of the whole sequence.
    fn from(operand: Operand) -> CacheType {
        match operand {
            Operand::F32 => CacheType::F32,
            Operand::Bf16 => CacheType::Bf16,
        }
    }
}

/// The blocks of a sequence. Sizes and places are in units of four bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    /// Numbers in a head.
    pub(super) dim: usize,
    /// Tokens there is room for, a multiple of 32.
    capacity: usize,
    /// How they are kept.
    pub(super) kind: CacheType,
}

impl Blocks {
    pub(super) fn new(dim: usize, tokens: usize, kind: CacheType) -> Blocks {
        Blocks { dim, capacity: tokens.next_multiple_of(PANEL_COLS), kind }
    }

    /// Numbers of a row in whole panels.
    pub(super) fn wide(self) -> usize {
        self.dim.next_multiple_of(PANEL_COLS)
    }

    /// Units of the keys and of the values of 32 tokens.
    fn panel(self) -> [usize; 2] {
        match self.layout(PANEL_COLS) {
            Some(layout) => [layout.len_by_row(), layout.len_by_column()],
            None => [q8_0::panel_bytes(self.wide()) / size_of::<f32>(); 2],
        }
    }

    /// Units of the whole.
    pub(super) fn len(self) -> usize {
        self.capacity / PANEL_COLS * self.panel().iter().sum::<usize>()
    }

    /// The precision of the factors, unless they are quantised.
    pub(super) fn operand(self) -> Option<Operand> {
        match self.kind {
            CacheType::F32 => Some(Operand::F32),
            CacheType::Bf16 => Some(Operand::Bf16),
            CacheType::Q8_0 => None,
        }
    }

    /// The layout of a block with room for `rows` tokens, unless it is quantised.
    fn layout(self, rows: usize) -> Option<Layout> {
        self.operand().map(|operand| Layout::new(self.dim, rows, operand))
    }

    /// The tokens that the block of token `start` has room for, `start` a multiple of [`BLOCK_KEYS`], and where it lies.
    fn place(self, start: usize) -> (usize, Range<usize>) {
        let rows = BLOCK_KEYS.min(self.capacity - start);
        let panel: usize = self.panel().iter().sum();
        (rows, start / PANEL_COLS * panel..(start + rows) / PANEL_COLS * panel)
    }

    /// The block of token `start`, a multiple of [`BLOCK_KEYS`].
    pub(super) fn block(self, data: &[f32], start: usize) -> Block<'_> {
        let (rows, place) = self.place(start);
        let (keys, values) = data[place].split_at(rows / PANEL_COLS * self.panel()[0]);
        Block { blocks: self, layout: self.layout(rows), rows, keys, values }
    }

    /// Writes rows `some` of keys and values as tokens `at…`.
    ///
    /// # Safety
    /// As [`Shared::range`]: nobody else touches the blocks that are written.
    pub(super) unsafe fn write(self, to: &Shared<'_, f32>, at: usize, [k, v]: [Source<'_>; 2], some: Range<usize>) {
        let (mut at, mut row) = (at, some.start);
        while row < some.end {
            let inside = at % BLOCK_KEYS;
            let (rows, place) = self.place(at - inside);
            let part = row..some.end.min(row + rows - inside);
            // SAFETY: the caller's promise.
            let (keys, values) = unsafe { to.range(place) }.split_at_mut(rows / PANEL_COLS * self.panel()[0]);
            match self.layout(rows) {
                // SAFETY: both are borrowed mutably.
                Some(layout) => unsafe {
                    layout.pack_by_row(&Shared::new(keys), inside, k, part.clone());
                    layout.pack_by_column(&Shared::new(values), inside, v, part.clone());
                },
                None => {
                    q8_0::write_keys(self.dim, bytemuck::cast_slice_mut(keys), inside, k, part.clone());
                    q8_0::write_values(self.dim, rows, bytemuck::cast_slice_mut(values), inside, v, part.clone());
                }
            }
            at += part.len();
            row = part.end;
        }
    }

    /// Ends the sequence after `len` tokens, whatever is behind them.
    pub(super) fn cut(self, data: &mut [f32], len: usize) {
        if self.kind != CacheType::Bf16 || len.is_multiple_of(2) {
            return;
        }
        // The value that shares a unit with the last one is read, with weight zero.
        let last = len - 1;
        let (rows, place) = self.place(last / BLOCK_KEYS * BLOCK_KEYS);
        let values = &mut data[place][rows / PANEL_COLS * self.panel()[0]..];
        let layout = Layout::new(self.dim, rows, Operand::Bf16);
        for panel in 0..self.wide() / PANEL_COLS {
            put_odd(&[], &mut values[layout.panel_by_column(panel, last % BLOCK_KEYS)..][..PANEL_COLS]);
        }
    }

    /// Copies the first `len` tokens of `data` to those of another sequence, which differs in its capacity.
    pub(super) fn copy(self, data: &[f32], len: usize, other: Blocks, to: &mut [f32]) {
        for start in (0..len).step_by(BLOCK_KEYS) {
            let count = BLOCK_KEYS.min(len - start);
            let from = self.block(data, start);
            let (rows, place) = other.place(start);
            if rows == from.rows {
                to[place].copy_from_slice(&data[self.place(start).1]);
                continue;
            }
            let whole = count.div_ceil(PANEL_COLS) * self.panel()[0];
            let (keys, values) = to[place].split_at_mut(rows / PANEL_COLS * self.panel()[0]);
            keys[..whole].copy_from_slice(&from.keys[..whole]);
            match (from.layout, other.layout(rows)) {
                (Some(layout), Some(other)) => {
                    let part = layout.operand.units(count) * PANEL_COLS;
                    for panel in 0..self.wide() / PANEL_COLS {
                        let [source, target] = [layout, other].map(|layout| layout.panel_by_column(panel, 0));
                        values[target..target + part].copy_from_slice(&from.values[source..source + part]);
                    }
                }
                _ => {
                    let (source, target) = (bytemuck::cast_slice(from.values), bytemuck::cast_slice_mut(values));
                    q8_0::copy_values(self.wide(), count, (from.rows, source), (rows, target));
                }
            }
        }
        other.cut(to, len);
    }
}

/// One block as the kernels read it.
pub(super) struct Block<'a> {
    pub(super) blocks: Blocks,
    /// Of f32 and bf16.
    pub(super) layout: Option<Layout>,
    /// Tokens there is room for.
    pub(super) rows: usize,
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
}
