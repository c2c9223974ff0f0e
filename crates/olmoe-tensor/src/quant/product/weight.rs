//! Weights packed for the kernels: the numbers of a file in another order.

use std::ops::Range;

use crate::memory::Buffer;
use crate::ops::linear::Strips;
use crate::simd::LANES;
use crate::threads::{Shared, parallel};

use super::super::{BlockFormat, k, legacy};
use super::layout::{self, Layout, ROWS, with_layout};

/// Numbers of the longest block.
const LONGEST: usize = 256;

/// Weights `[out, in]` of one format, one or several (the experts), as panels of 32 rows.
pub struct QuantizedWeight {
    data: Buffer<u8>,
    format: BlockFormat,
    shape: Strips,
}

impl QuantizedWeight {
    /// Room for `groups` weights `[out, in]`; [`QuantizedWeight::pack`] fills it.
    ///
    /// # Panics
    /// Unless `in` is a multiple of the format's block.
    pub fn new(format: BlockFormat, groups: usize, out: usize, input: usize) -> QuantizedWeight {
        let block = format.block_len();
        assert!(input.is_multiple_of(block) && input > 0, "rows of {input} numbers in blocks of {block}");
        let shape = Strips { groups, out, input };
        let bytes = usize::try_from(packed_bytes(format, shape)).expect("packed weights fit the address space");
        QuantizedWeight { data: Buffer::scratch(bytes), format, shape }
    }

    /// Packs the strips `some` of the weights, on all threads; `blocks` are the bytes of their rows as in a file, in order.
    ///
    /// # Panics
    /// Unless there are as many bytes as the strips have.
    pub fn pack(&mut self, some: Range<usize>, blocks: &[u8]) {
        let (shape, format, panel_bytes) = (self.shape, self.format, self.panel_bytes());
        assert!(some.start <= some.end && some.end <= shape.count(), "strips {some:?} of {}", shape.count());
        if some.is_empty() {
            return assert!(blocks.is_empty(), "no strips have no bytes");
        }
        let first = shape.numbers(some.start).start;
        let bytes_of = |numbers: usize| numbers / format.block_len() * format.block_bytes();
        let expected = bytes_of(shape.numbers(some.end - 1).end - first);
        assert_eq!(blocks.len(), expected, "bytes of strips {some:?} in {} blocks", format.name());
        let row_bytes = bytes_of(shape.input);
        let data = Shared::new(&mut self.data);
        parallel(some.len(), |task| {
            let strip = some.start + task;
            let numbers = shape.numbers(strip);
            let rows = &blocks[bytes_of(numbers.start - first)..bytes_of(numbers.end - first)];
            // SAFETY: each task packs another panel.
            let panel = unsafe { data.range(strip * panel_bytes..(strip + 1) * panel_bytes) };
            pack_panel(format, rows, row_bytes, panel);
        });
    }

    /// The format of the blocks.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// The shape of the weights, in strips: those of packed rows.
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

/// Bytes that weights take when packed, the filling of the last panels included; without overflow.
pub fn packed_bytes(format: BlockFormat, shape: Strips) -> u64 {
    let panels = (shape.groups as u64).saturating_mul(shape.out.div_ceil(ROWS) as u64);
    panels.saturating_mul((shape.input / format.block_len()) as u64).saturating_mul(block_bytes(format) as u64)
}

/// Bytes of a packed block of 32 rows.
fn block_bytes(format: BlockFormat) -> usize {
    with_layout!(format, L => L::BLOCK_BYTES)
}

/// Packs at most 32 rows; the others become zeros.
fn pack_panel(format: BlockFormat, rows: &[u8], row_bytes: usize, panel: &mut [u8]) {
    with_layout!(format, L => {
        if rows.len() < ROWS * row_bytes {
            panel.fill(0);
        }
        for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
            let blocks = bytes.chunks_exact(format.block_bytes());
            for (block, out) in blocks.zip(panel.chunks_exact_mut(L::BLOCK_BYTES)) {
                pack_block::<L>(format, block, row, out);
            }
        }
    });
}

/// What a block holds: two f16 numbers, scales and minima, and quants without a sign.
struct Parts {
    d: [u8; 2],
    second: [u8; 2],
    scales: [u8; 16],
    minima: [u8; 8],
    quants: [u8; LONGEST],
}

/// Takes a block apart.
#[inline(always)]
fn take_apart(format: BlockFormat, block: &[u8]) -> Parts {
    let mut parts = Parts { d: [0; 2], second: [0; 2], scales: [0; 16], minima: [0; 8], quants: [0; LONGEST] };
    let half = |at: usize| [block[at], block[at + 1]];
    let short = &mut parts.quants[..legacy::LEN];
    match format {
        BlockFormat::Q4_0 => short.copy_from_slice(&legacy::low_bits(&block[2..])),
        BlockFormat::Q4_1 => short.copy_from_slice(&legacy::low_bits(&block[4..])),
        BlockFormat::Q5_0 => short.copy_from_slice(&legacy::five_bits(&block[2..6], &block[6..])),
        BlockFormat::Q5_1 => short.copy_from_slice(&legacy::five_bits(&block[4..8], &block[8..])),
        BlockFormat::Q8_0 => short.iter_mut().zip(&block[2..]).for_each(|(q, byte)| *q = byte ^ 0x80),
        BlockFormat::Q4K => k::affine_quants(&[0; 32], &block[16..], &mut parts.quants),
        BlockFormat::Q5K => k::affine_quants(&block[16..48], &block[48..], &mut parts.quants),
        BlockFormat::Q6K => k::q6_quants(block, &mut parts.quants),
    }
    match format {
        BlockFormat::Q6K => {
            parts.d = half(k::Q6_SCALE);
            parts.scales.copy_from_slice(&block[192..208]);
        }
        BlockFormat::Q4K | BlockFormat::Q5K => {
            (parts.d, parts.second) = (half(0), half(2));
            for (j, (scale, minimum)) in k::unpack_scales(&block[4..16]).into_iter().enumerate() {
                (parts.scales[j], parts.minima[j]) = (scale, minimum);
            }
        }
        BlockFormat::Q4_1 | BlockFormat::Q5_1 => {
            (parts.d, parts.second) = (half(0), half(2));
            // A minimum is taken away, m is added.
            parts.second[1] ^= 0x80;
        }
        _ => parts.d = half(0),
    }
    parts
}

/// Writes a block of one row to its places in a packed block.
#[inline(always)]
fn pack_block<L: Layout>(format: BlockFormat, block: &[u8], row: usize, out: &mut [u8]) {
    let parts = take_apart(format, block);
    out[2 * row..][..2].copy_from_slice(&parts.d);
    if L::MINIMUM {
        out[2 * ROWS + 2 * row..][..2].copy_from_slice(&parts.second);
    }
    if L::SCALES {
        for part in 0..L::PARTS {
            out[L::SCALES_AT + part * ROWS + row] = parts.scales[part];
        }
        if L::MINIMUM {
            for (i, minima) in parts.minima.as_chunks::<4>().0.iter().enumerate() {
                out[L::MINIMA_AT + 4 * (i * ROWS + row)..][..4].copy_from_slice(minima);
            }
        }
    }
    for (part, quants) in parts.quants[..L::BLOCK].chunks_exact(L::PART).enumerate() {
        let out = &mut out[L::PARTS_AT + part * L::PART_BYTES..][..L::PART_BYTES];
        let (plane, groups) = out.split_at_mut(L::PLANE_BYTES);
        let mut put = |group: usize, bytes: &[u8]| groups[4 * (group * ROWS + row)..][..4].copy_from_slice(bytes);
        if L::BITS == 8 {
            quants.as_chunks::<4>().0.iter().enumerate().for_each(|(group, bytes)| put(group, bytes));
            continue;
        }
        let (front, back) = quants.split_at(L::PART / 2);
        let mut halves = [0; LANES];
        for i in 0..L::PART / 2 {
            halves[i] = front[i] & 15 | back[i] << 4;
        }
        halves[..L::PART / 2].as_chunks::<4>().0.iter().enumerate().for_each(|(group, bytes)| put(group, bytes));
        if L::PLANE_BYTES > 0 {
            let mut bits = [0u8; 4];
            for (g, quants) in quants.as_chunks::<4>().0.iter().enumerate() {
                for b in 0..4 {
                    bits[b] |= (quants[b] >> 4) << (g * (L::BITS - 4));
                }
            }
            plane[4 * row..][..4].copy_from_slice(&bits);
        }
    }
}
