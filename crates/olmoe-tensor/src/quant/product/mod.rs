//! Products of quantised weights with activations of eight bits.
//!
//! `y[T, out] (+)= x[T, in]·W[out, in]ᵀ`, for one weight or for groups of rows that each have one of their own. Weights
//! ([`QuantizedWeight`], blocks as in a file, packed once) serve one row and many; activations ([`QuantizedInput`], packed
//! at each product) serve several weights. The integer sums are exact and the order of the others is part of a format's
//! definition (`kernel`), so a row's bits depend neither on the rows beside it nor on threads or instruction set.

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
use crate::work::Work;

use kernel::TILE_ROWS;
use layout::ROWS;

/// Tiles of a piece, at most: their activations stay in the second-level cache while panels pass by.
const PIECE_TILES: usize = 16;
/// Panels of a piece where a group has rows for several: these panels stay in a cache while the rows pass by.
const PIECE_PANELS: usize = 8;

/// Rows of the activations, sorted by group.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Row `index[i]` of the activations takes the place of row `i`.
    pub index: Option<&'a [u32]>,
    /// Where the rows of each group begin, and where the last ends; a group may be empty.
    pub offsets: &'a [u32],
    /// The weight of the first group; the others' follow.
    pub first: usize,
}

/// A factor of a product, and where the product goes.
pub struct Factor<'a> {
    /// A weight for each group of the rows, at least.
    pub weight: &'a QuantizedWeight,
    /// `[rows, out]`
    pub y: &'a mut [f32],
}

/// `y (+)= x·Wᵀ` on all threads; `y` is row-major `[x.rows, out]`.
pub fn product(x: &QuantizedInput, weight: &QuantizedWeight, y: &mut [f32], into: Store) {
    products(x, Rows { index: None, offsets: &[0, x.rows() as u32], first: 0 }, [Factor { weight, y }], into);
}

/// `y_s (+)= W_e·x_s` for the rows `s` of every group `e` and each of some factors, on all threads.
///
/// The work of a single row is divided among the threads as that of many is.
///
/// # Panics
/// Unless shapes, groups, rows and formats fit each other.
pub fn products<const N: usize>(x: &QuantizedInput, rows: Rows<'_>, factors: [Factor<'_>; N], into: Store) {
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
    Work { offsets: rows.offsets, panels: &panels, tiles, piece_tiles, piece_panels }.run(|piece| {
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

/// Tiles of so many rows of a group.
fn tiles(rows: usize) -> usize {
    rows.div_ceil(TILE_ROWS)
}

/// The product of some rows with one panel, on this thread; row `i` of `x` is that of row `first + i` of `y`.
///
/// # Safety
/// The rows are of the weight's contraction and format. Nobody else touches these columns of these rows of `y`.
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
