//! Quantised weights packed for the kernels: the quants and scales of a file in another order.

use std::ops::Range;

use crate::memory::Buffer;
use crate::strips::Strips;
use crate::threads::{Shared, parallel};

use super::super::BlockFormat;
use super::layout::{self, Layout, ROWS, with_layout};

mod pack;

/// Bytes of a file that a thread reads at once: they stay in its second-level cache until they are packed.
const AT_ONCE: usize = 256 << 10;

/// Weights `[out, in]` of one format, one or several (the experts), as panels of 32 rows.
pub struct QuantizedWeight {
    data: Buffer<u8>,
    format: BlockFormat,
    shape: Strips,
}

impl QuantizedWeight {
    /// `groups` weights `[out, in]` with arbitrary contents, to be filled by [`QuantizedWeight::pack`] or
    /// [`QuantizedWeight::update`].
    ///
    /// # Panics
    /// When `in` is not a multiple of the block length of the format.
    pub fn new(format: BlockFormat, groups: usize, out: usize, input: usize) -> QuantizedWeight {
        let block = format.block_len();
        assert!(input.is_multiple_of(block) && input > 0, "rows of {input} numbers in blocks of {block}");
        let shape = Strips { groups, out, input };
        let bytes = usize::try_from(packed_bytes(format, shape)).expect("packed weights fit the address space");
        QuantizedWeight { data: Buffer::scratch(bytes), format, shape }
    }

    /// Packs the strips `some` of the weights, on all threads; `blocks` are the bytes of their rows as in a file, in
    /// order.
    ///
    /// # Panics
    /// When `blocks` has not exactly the bytes of these strips.
    pub fn pack(&mut self, some: Range<usize>, blocks: &[u8]) {
        let (shape, format, panel_bytes) = (self.shape, self.format, self.panel_bytes());
        assert!(some.start <= some.end && some.end <= shape.count(), "strips {some:?} of {}", shape.count());
        let bytes = |some: &Range<usize>| bytes_of(format, numbers(shape, some));
        let all = bytes(&some);
        assert_eq!(blocks.len(), all.len(), "bytes of strips {some:?} in {} blocks", format.name());
        let data = Shared::new(&mut self.data);
        parallel(some.len(), |task| {
            let strip = some.start + task;
            let rows = bytes(&(strip..strip + 1));
            // SAFETY: each task packs another panel.
            let panel = unsafe { data.range(strip * panel_bytes..(strip + 1) * panel_bytes) };
            pack::panel(format, &blocks[rows.start - all.start..rows.end - all.start], panel);
        });
    }

    /// Packs all of the weights, on all threads. `read` is called with a range of the numbers of `[groups, out, in]`,
    /// whole rows, and a buffer for their blocks, which it has to overwrite; the ranges cover all numbers and are
    /// disjoint.
    pub fn update(&mut self, read: impl Fn(Range<usize>, &mut [u8]) + Sync) {
        let (shape, format, panel_bytes) = (self.shape, self.format, self.panel_bytes());
        let count = shape.count();
        let at_once = (AT_ONCE / panel_bytes.max(1)).max(1);
        let data = Shared::new(&mut self.data);
        parallel(count.div_ceil(at_once), |task| {
            let some = task * at_once..((task + 1) * at_once).min(count);
            let range = numbers(shape, &some);
            let first = bytes_of(format, range.clone());
            let mut blocks = Buffer::scratch(first.len());
            read(range, &mut blocks);
            for strip in some {
                let rows = bytes_of(format, shape.numbers(strip));
                // SAFETY: each task packs other panels.
                let panel = unsafe { data.range(strip * panel_bytes..(strip + 1) * panel_bytes) };
                pack::panel(format, &blocks[rows.start - first.start..rows.end - first.start], panel);
            }
        });
    }

    /// The packed bytes, which can be stored and later written back to a weight of the same format and shape.
    pub fn packed_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// The format of the blocks.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// The shape of the weights, cut into strips; a strip is a panel.
    pub fn strips(&self) -> Strips {
        self.shape
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Panels of a weight.
    pub(super) fn panels(&self) -> usize {
        self.shape.out.div_ceil(ROWS)
    }

    /// Bytes of a panel.
    pub(super) fn panel_bytes(&self) -> usize {
        block_bytes(self.format) * (self.shape.input / self.format.block_len())
    }

    /// Panel `p` of weight `group`.
    pub(super) fn panel(&self, group: usize, p: usize) -> &[u8] {
        let bytes = self.panel_bytes();
        let at = (group * self.panels() + p) * bytes;
        &self.data[at..at + bytes]
    }
}

/// Bytes that weights take when packed, the padding of the last panels included; saturating.
pub fn packed_bytes(format: BlockFormat, shape: Strips) -> u64 {
    let panels = (shape.groups as u64).saturating_mul(shape.out.div_ceil(ROWS) as u64);
    panels.saturating_mul((shape.input / format.block_len()) as u64).saturating_mul(block_bytes(format) as u64)
}

/// Bytes of a packed block of 32 rows.
fn block_bytes(format: BlockFormat) -> usize {
    with_layout!(format, L => L::BLOCK_BYTES)
}

/// The numbers of consecutive strips.
fn numbers(shape: Strips, some: &Range<usize>) -> Range<usize> {
    if some.is_empty() { 0..0 } else { shape.numbers(some.start).start..shape.numbers(some.end - 1).end }
}

/// Where the blocks of a range of whole rows lie.
fn bytes_of(format: BlockFormat, numbers: Range<usize>) -> Range<usize> {
    let byte = |number: usize| number / format.block_len() * format.block_bytes();
    byte(numbers.start)..byte(numbers.end)
}
