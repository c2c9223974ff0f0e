//! Products of quantised weights with activations of eight bits.
//!
//! `y[T, out] (+)= x[T, in]·W[out, in]ᵀ`, for one weight or for groups of rows that each have one of their own. Weights
//! ([`QuantizedWeight`], blocks as in a file, packed once) serve one row and many; activations ([`QuantizedInput`], packed
//! at each product) serve several weights. The integer sums are exact and the order of the others is part of a format's
//! definition (`kernel`), so a row's bits depend neither on the rows beside it nor on threads or instruction set.

mod input;
mod kernel;
mod layout;
#[cfg(test)]
mod tests;
mod weight;

pub use input::QuantizedInput;
pub use weight::{QuantizedWeight, packed_bytes};

use std::ops::Range;

use crate::gemm::Store;
use crate::threads::{Shared, num_threads, parallel};

use kernel::TILE_ROWS;
use layout::ROWS;

/// Rows of a piece, at most: their activations stay in the second-level cache while panels pass by.
const PIECE_ROWS: usize = 96;
/// The smallest share of the work is one in so many for each thread.
const LEAST_SHARE: usize = 12;
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
    let panels = factors.iter().map(|(weight, ..)| weight.panels()).sum();
    let work = Work { offsets: rows.offsets, panels };
    let total = (0..groups).map(|group| work.cost(group)).sum();
    // Asked once: were it to change, the tasks would divide the work in different ways.
    let threads = num_threads();
    parallel(shares(total, threads).count(), |task| {
        let Some(share) = shares(total, threads).nth(task) else { return };
        work.pieces(share, |group, some, columns| {
            let mut pointers = [std::ptr::null(); PIECE_ROWS];
            for (pointer, row) in pointers.iter_mut().zip(some.clone()) {
                *pointer = x.row(rows.index.map_or(row, |index| index[row] as usize)).as_ptr();
            }
            let (pointers, mut before) = (&pointers[..some.len()], 0);
            for (weight, kernels, y) in &factors {
                let own = columns.start.max(before)..columns.end.min(before + weight.panels());
                for panel in own {
                    // SAFETY: each piece is of other rows or columns, and in one task.
                    unsafe {
                        let (group, panel) = (rows.first + group, panel - before);
                        panel_product(pointers, some.start, weight, group, panel, kernels, y, into)
                    }
                }
                before += weight.panels();
            }
        });
    });
}

/// Work in an order in which neighbours share what they read: group after group, and in a group with many rows some panels
/// after the other with all the rows.
struct Work<'a> {
    offsets: &'a [u32],
    /// Of all factors.
    panels: usize,
}

impl Work<'_> {
    fn rows(&self, group: usize) -> Range<usize> {
        self.offsets[group] as usize..self.offsets[group + 1] as usize
    }

    /// Into how many parts the rows of a group are cut, and how many panels one of them takes at a time.
    fn cut(&self, group: usize) -> (usize, usize) {
        let blocks = self.rows(group).len().div_ceil(PIECE_ROWS);
        (blocks, if blocks > 1 { PIECE_PANELS } else { 1 })
    }

    /// The cost of each piece of a group, in tiles.
    fn piece_cost(&self, group: usize) -> usize {
        let (blocks, span) = self.cut(group);
        self.rows(group).len().div_ceil(TILE_ROWS * blocks.max(1)) * span
    }

    fn cost(&self, group: usize) -> usize {
        let (blocks, span) = self.cut(group);
        self.piece_cost(group) * blocks * self.panels.div_ceil(span)
    }

    /// The pieces (group, rows, panels) that begin in a range of the cost.
    fn pieces(&self, share: Range<usize>, mut run: impl FnMut(usize, Range<usize>, Range<usize>)) {
        let mut before = 0;
        for group in 0..self.offsets.len() - 1 {
            let (cost, each) = (self.cost(group), self.piece_cost(group));
            if cost > 0 && before < share.end && before + cost > share.start {
                let ((blocks, span), rows) = (self.cut(group), self.rows(group));
                let first = share.start.saturating_sub(before).div_ceil(each);
                let last = (share.end - before).min(cost).div_ceil(each);
                for piece in first..last {
                    let (columns, block) = (piece / blocks * span, piece % blocks);
                    let at = |block: usize| rows.start + rows.len() * block / blocks;
                    run(group, at(block)..at(block + 1), columns..(columns + span).min(self.panels));
                }
            }
            before += cost;
        }
    }
}

/// Divides work into shares for threads that take one after the other: large ones first, whose weights stream without a
/// break, then smaller ones, so that no thread waits for long at the end.
fn shares(total: usize, threads: usize) -> impl Iterator<Item = Range<usize>> {
    let least = total.div_ceil(LEAST_SHARE * threads);
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = total - start;
        let share = if threads == 1 { rest } else { (rest * 2 / (3 * threads)).max(least).min(rest) };
        start += share;
        (share > 0).then(|| start - share..start)
    })
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
    y: &Shared<f32>,
    into: Store,
) {
    let shape = weight.strips();
    let w = weight.panel(group, panel);
    let cols = ROWS.min(shape.out - panel * ROWS);
    let tiles = x.len().div_ceil(TILE_ROWS);
    let at = |tile: usize| x.len() * tile / tiles;
    for tile in 0..tiles {
        let (start, end) = (at(tile), at(tile + 1));
        // SAFETY: rows, panel and columns have the sizes of the shape; the columns are this task's.
        unsafe {
            let y = y.pointer((first + start) * shape.out + panel * ROWS, (end - start - 1) * shape.out + cols);
            kernels[end - start](
                shape.input / weight.format().block_len(),
                &x[start..end],
                w.as_ptr(),
                y,
                shape.out,
                cols,
                into == Store::Accumulate,
                kernel::Ahead::new(w, tile, tiles),
            );
        }
    }
}
