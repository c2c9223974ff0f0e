//! The layout of the keys and values of one sequence and one key/value head: one stream in the order in which it is
//! read.
//!
//! Tokens are divided into blocks of [`BLOCK_KEYS`]; a block has first its keys, then its values. The last block has
//! room for fewer tokens, a multiple of 32. With rows of `D` numbers, padded to whole panels of 32 where panels run
//! along the head:
//!
//! | type | keys of a block | values of a block |
//! |---|---|---|
//! | f32, bf16 | right panels of 32 tokens, contraction along the head | right panels of 32 numbers of the head, contraction over the tokens |
//! | q8_0 | panels of 32 tokens as of packed Q8_0 weights | f16 scales `[D / 32, tokens]`, then quants `[tokens, D]` in i8 |

use std::ops::Range;

use crate::gemm::{Operand, PANEL_COLS, Source};
use crate::threads::Shared;

use super::packed::{PanelLayout, put_odd};
use super::{BLOCK_KEYS, q8_0};

/// The number format in which a cache holds keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheType {
    /// f32.
    F32,
    /// bf16. Queries and weights are rounded to bf16, too.
    Bf16,
    /// Blocks of 32 numbers of a head: integers in −127..=127 with an f16 scale, 8.5 bits for each number. Queries are
    /// quantised to eight bits, too; weights stay f32.
    Q8_0,
}

impl CacheType {
    /// Every type.
    pub const ALL: [CacheType; 3] = [CacheType::F32, CacheType::Bf16, CacheType::Q8_0];

    /// The name of the type: `f32`, `bf16` or `q8_0`.
    pub fn name(self) -> &'static str {
        match self {
            CacheType::F32 => "f32",
            CacheType::Bf16 => "bf16",
            CacheType::Q8_0 => "q8_0",
        }
    }

    /// The type with that name, or `None` if there is none.
    pub fn by_name(name: &str) -> Option<CacheType> {
        CacheType::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl From<Operand> for CacheType {
    /// The type with which a cache gives the bits of the forward pass over the whole sequence.
    fn from(operand: Operand) -> CacheType {
        match operand {
            Operand::F32 => CacheType::F32,
            Operand::Bf16 => CacheType::Bf16,
        }
    }
}

/// The layout of the blocks of a sequence. Sizes and places are in words of four bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvLayout {
    /// Numbers in a head.
    pub(super) dim: usize,
    /// The number of tokens that the stream has room for, a multiple of 32.
    capacity: usize,
    /// The number format.
    pub(super) kind: CacheType,
}

impl KvLayout {
    pub(super) fn new(dim: usize, tokens: usize, kind: CacheType) -> KvLayout {
        KvLayout { dim, capacity: tokens.next_multiple_of(PANEL_COLS), kind }
    }

    /// Numbers of a row, padded to whole panels.
    pub(super) fn wide(self) -> usize {
        self.dim.next_multiple_of(PANEL_COLS)
    }

    /// Words of the keys and of the values of 32 tokens.
    fn panel(self) -> [usize; 2] {
        match self.layout(PANEL_COLS) {
            Some(layout) => [layout.len_by_row(), layout.len_by_column()],
            None => [q8_0::panel_bytes(self.wide()) / size_of::<f32>(); 2],
        }
    }

    /// Words of the whole stream.
    pub(super) fn len(self) -> usize {
        self.capacity / PANEL_COLS * self.panel().iter().sum::<usize>()
    }

    /// The precision of the factors; `None` where they are quantised.
    pub(super) fn operand(self) -> Option<Operand> {
        match self.kind {
            CacheType::F32 => Some(Operand::F32),
            CacheType::Bf16 => Some(Operand::Bf16),
            CacheType::Q8_0 => None,
        }
    }

    /// The layout of the panels of a block with room for `rows` tokens; `None` where it is quantised.
    fn layout(self, rows: usize) -> Option<PanelLayout> {
        self.operand().map(|operand| PanelLayout::new(self.dim, rows, operand))
    }

    /// The number of tokens that the block of token `start` has room for, and where the block lies; `start` is a
    /// multiple of [`BLOCK_KEYS`].
    fn place(self, start: usize) -> (usize, Range<usize>) {
        let rows = BLOCK_KEYS.min(self.capacity - start);
        let panel: usize = self.panel().iter().sum();
        (rows, start / PANEL_COLS * panel..(start + rows) / PANEL_COLS * panel)
    }

    /// The block of token `start`, a multiple of [`BLOCK_KEYS`].
    pub(super) fn block(self, data: &[f32], start: usize) -> KvBlock<'_> {
        let (rows, place) = self.place(start);
        let (keys, values) = data[place].split_at(rows / PANEL_COLS * self.panel()[0]);
        KvBlock { blocks: self, layout: self.layout(rows), rows, keys, values }
    }

    /// Writes rows `some` of keys and values as tokens `at…`.
    ///
    /// # Safety
    /// As [`Shared::range`]: no other task touches the blocks that are written.
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

    /// Ends the sequence after `len` tokens and discards the ones behind them.
    pub(super) fn cut(self, data: &mut [f32], len: usize) {
        if self.kind != CacheType::Bf16 || len.is_multiple_of(2) {
            return;
        }
        // The value that shares a unit with the last one is read, with weight zero, so it has to be finite.
        let last = len - 1;
        let (rows, place) = self.place(last / BLOCK_KEYS * BLOCK_KEYS);
        let values = &mut data[place][rows / PANEL_COLS * self.panel()[0]..];
        let layout = PanelLayout::new(self.dim, rows, Operand::Bf16);
        for panel in 0..self.wide() / PANEL_COLS {
            put_odd(&[], &mut values[layout.panel_by_column(panel, last % BLOCK_KEYS)..][..PANEL_COLS]);
        }
    }

    /// Copies the first `len` tokens of `data` to another sequence, which may have another capacity.
    pub(super) fn copy(self, data: &[f32], len: usize, other: KvLayout, to: &mut [f32]) {
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
pub(super) struct KvBlock<'a> {
    pub(super) blocks: KvLayout,
    /// The layout of the panels in f32 and bf16; `None` where the block is quantised.
    pub(super) layout: Option<PanelLayout>,
    /// The number of tokens that the block has room for.
    pub(super) rows: usize,
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
}
