//! Products of quantised weights with activations of eight bits.
//!
//! `y[T, out] (+)= x[T, in]·W[out, in]ᵀ`, for one weight, or for groups of rows that each have a weight of their own.
//! Weights ([`QuantizedWeight`], the blocks of a file, packed once) serve products with one row and with many.
//! Activations ([`QuantizedInput`], packed for each product) serve several weights. Sums of integers are exact, and the
//! order of the f32 sums is part of the definition of a format (`kernel`), so the bits of a row depend neither on the
//! other rows, nor on the number of threads, nor on the instruction set.

pub(crate) mod backward;
pub(crate) mod input;
pub(crate) mod kernel;
mod layout;
#[cfg(test)]
mod tests;
mod weight;

pub use input::QuantizedInput;
pub use weight::{QuantizedWeight, packed_bytes};

use crate::gemm::Store;
use crate::threads::Shared;
use crate::work::GroupedWork;

use kernel::TILE_ROWS;
use layout::ROWS;

/// Most tiles of a piece: their activations stay in the second-level cache while the panels are read.
const PIECE_TILES: usize = 16;
/// Panels of a piece where a group has rows for several tiles: the panels stay in a cache while the rows are read.
const PIECE_PANELS: usize = 8;

/// The rows of a grouped product: which rows of the activations it reads, and the groups that they form.
#[derive(Clone, Copy)]
pub struct GroupedRows<'a> {
    /// Where present, row `i` of the product reads row `index[i]` of the activations; else row `i`.
    pub index: Option<&'a [u32]>,
    /// Where the rows of each group begin, and where the last group ends; a group may be empty.
    pub offsets: &'a [u32],
    /// The index of the weight of the first group; the weights of the other groups follow it.
    pub first: usize,
}

/// A quantised right factor of a product, and where the product is written.
pub struct QuantizedFactor<'a> {
    /// At least one weight for each group of rows.
    pub weight: &'a QuantizedWeight,
    /// `[rows, out]`
    pub y: &'a mut [f32],
}

/// `y (+)= x·Wᵀ` on all threads; `y` is row-major `[x.rows, out]`.
pub fn product(x: &QuantizedInput, weight: &QuantizedWeight, y: &mut [f32], into: Store) {
    products(
        x,
        GroupedRows { index: None, offsets: &[0, x.rows() as u32], first: 0 },
        [QuantizedFactor { weight, y }],
        into,
    );
}

/// `y_s (+)= W_e·x_s` for the rows `s` of every group `e` and for each of the factors, on all threads.
///
/// All threads take part even where there is a single row.
///
/// # Panics
/// When shapes, groups, rows or formats do not fit each other.
pub fn products<const N: usize>(
    x: &QuantizedInput,
    rows: GroupedRows<'_>,
    factors: [QuantizedFactor<'_>; N],
    into: Store,
) {
    let groups = rows.offsets.len().saturating_sub(1);
    let count = rows.offsets.last().map_or(0, |count| *count as usize);
    assert!(rows.offsets.is_sorted(), "groups one after the other");
    match rows.index {
        Some(index) => assert!(index.len() == count && index.iter().all(|i| (*i as usize) < x.rows()), "rows of x"),
        None => assert!(count <= x.rows(), "{count} rows of {}", x.rows()),
    }
    let factors = factors.map(|factor| {
        let shape = factor.weight.strips();
        assert!(rows.first + groups <= shape.groups, "{groups} groups of {} from {} on", shape.groups, rows.first);
        assert_eq!(shape.input, x.k(), "contraction of a factor");
        assert_eq!(factor.weight.format().block_len(), x.block(), "numbers in a block of both factors");
        assert_eq!(factor.y.len(), count * shape.out, "y is [{count}, {}]", shape.out);
        (factor.weight, kernel::kernels(factor.weight.format()), Shared::new(factor.y))
    });
    let panels = factors.each_ref().map(|(weight, ..)| weight.panels());
    let (piece_tiles, piece_panels) = (PIECE_TILES, PIECE_PANELS);
    GroupedWork { offsets: rows.offsets, panels: &panels, tiles, piece_tiles, piece_panels }.run(|piece| {
        let (weight, kernels, y) = &factors[piece.factor];
        let group = rows.offsets[piece.group] as usize..rows.offsets[piece.group + 1] as usize;
        let count = tiles(group.len());
        let some = [piece.tiles.start, piece.tiles.end].map(|tile| group.start + group.len() * tile / count);
        let mut pointers = [std::ptr::null(); PIECE_TILES * TILE_ROWS];
        for (pointer, row) in pointers.iter_mut().zip(some[0]..some[1]) {
            *pointer = x.row(rows.index.map_or(row, |index| index[row] as usize)).as_ptr();
        }
        let pointers = &pointers[..some[1] - some[0]];
        for panel in piece.panels {
            // SAFETY: each piece is of other rows or columns, and in one task.
            unsafe { panel_product(pointers, some[0], weight, rows.first + piece.group, panel, kernels, y, into) }
        }
    });
}

/// The number of tiles for `rows` rows of a group.
fn tiles(rows: usize) -> usize {
    rows.div_ceil(TILE_ROWS)
}

/// The product of some rows with one panel, on the calling thread; row `i` of `x` gives row `first + i` of `y`.
///
/// # Safety
/// The rows have the contraction and the format of the weight. No other task touches these columns of these rows of
/// `y`.
unsafe fn panel_product(
    x: &[*const u8],
    first: usize,
    weight: &QuantizedWeight,
    group: usize,
    panel: usize,
    kernels: &[kernel::Kernel; TILE_ROWS + 1],
    y: &Shared<'_, f32>,
    into: Store,
) {
    let shape = weight.strips();
    let w = weight.panel(group, panel);
    let cols = ROWS.min(shape.out - panel * ROWS);
    let tiles = tiles(x.len());
    let at = |tile: usize| x.len() * tile / tiles;
    for tile in 0..tiles {
        let (start, end) = (at(tile), at(tile + 1));
        // SAFETY: rows, panel and columns have the sizes of the shape; the columns are this task's.
        unsafe {
            let blocks = shape.input / weight.format().block_len();
            let y = y.pointer((first + start) * shape.out + panel * ROWS, (end - start - 1) * shape.out + cols);
            kernels[end - start](
                blocks,
                &x[start..end],
                w.as_ptr(),
                y,
                shape.out,
                cols,
                into == Store::Accumulate,
                kernel::Ahead::new(w, blocks, tile, tiles),
            );
        }
    }
}
