//! Activations quantised to eight bits.
//!
//! A block of a row has as many numbers as a block of the weights, 32 or 256. Its numbers are `d·a` with integers `a`
//! in −127..=127 and `d = max|x| / 127` in f32: `a = round(x · (127 / max|x|))`, ties to even. Where the maximum is
//! below 127 · 2^−126, all `a` are zero. Where a number is NaN or infinity, d is NaN, and so is every product with the
//! row.
//!
//! Bytes of a block: the `a`, then d, then, as i32, the sums that correct a product for the offset of the quants:
//!
//! | block | | |
//! |---|---|---|
//! | 32 | `−Σa` | `−8·Σa`, `−16·Σa`, `−128·Σa` |
//! | 256 | `−Σa` of each 32: its low six bits (8 bytes), then the rest, with the sign (8 bytes) | `−32·Σa` of each 16 |

use crate::memory::Buffer;
use crate::simd::{LANES, Simd, kernel};
use crate::threads::{Shared, parallel_ranges};

use super::super::BlockFormat;

/// Numbers of a long block.
const LONG: usize = 256;

/// Where in a block d lies.
pub(super) const fn scale_at(block: usize) -> usize {
    block
}
/// Where in a block the sums begin; in a long one, those of 32 numbers, split into two times eight bytes.
pub(super) const fn sums_at(block: usize) -> usize {
    block + 4
}
/// Where in a long block the sums of 16 numbers begin.
pub(super) const SUMS16_AT: usize = sums_at(LONG) + 16;

/// Offsets of quants in short blocks.
const OFFSETS: [i32; 3] = [8, 16, 128];

/// Where in a short block the sum for an offset lies.
pub(super) const fn sum_at(offset: i32) -> usize {
    let mut i = 0;
    while OFFSETS[i] != offset {
        i += 1;
    }
    sums_at(32) + 4 + 4 * i
}

/// Bytes of a block.
pub(crate) const fn block_bytes(block: usize) -> usize {
    if block == LONG { SUMS16_AT + LONG / 16 * 4 } else { sums_at(block) + 4 + 4 * OFFSETS.len() }
}

/// Rows `[rows, k]`, quantised to blocks of eight-bit numbers.
pub struct QuantizedInput {
    data: Buffer<u8>,
    rows: usize,
    k: usize,
    block: usize,
}

impl QuantizedInput {
    /// Quantises `x [rows, k]` for weights of `format` and of all other formats with blocks of the same length, on all
    /// threads.
    ///
    /// # Panics
    /// When `k` is not a multiple of the block length of the format, or `x` is not made of whole rows.
    pub fn pack(x: &[f32], k: usize, format: BlockFormat) -> QuantizedInput {
        let block = format.block_len();
        assert!(k.is_multiple_of(block) && k > 0, "rows of {k} numbers in blocks of {block}");
        assert!(x.len().is_multiple_of(k), "{} numbers in rows of {k}", x.len());
        let rows = x.len() / k;
        let row_bytes = k / block * block_bytes(block);
        let mut data = Buffer::scratch(rows * row_bytes);
        let shared = Shared::new(&mut data);
        parallel_ranges(rows, 4, |some| {
            // SAFETY: the ranges of a parallel loop are disjoint.
            let out = unsafe { shared.range(some.start * row_bytes..some.end * row_bytes) };
            quantize(&x[some.start * k..some.end * k], block, out);
        });
        QuantizedInput { data, rows, k, block }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers in a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Numbers that share a scale.
    pub fn block(&self) -> usize {
        self.block
    }

    /// The bytes of row `i`.
    pub(super) fn row(&self, i: usize) -> &[u8] {
        let bytes = self.k / self.block * block_bytes(self.block);
        &self.data[i * bytes..(i + 1) * bytes]
    }
}

kernel! {
    /// Quantises numbers to blocks.
    pub(crate) fn quantize[s: S](x: &[f32], block: usize, out: &mut [u8]) {
        if block == LONG { quantize_blocks::<S, LONG>(s, x, out) } else { quantize_blocks::<S, 32>(s, x, out) }
    }
}

/// Quantises blocks of `BLOCK` numbers, several short ones in step, so that no instruction waits for the one before.
#[inline(always)]
fn quantize_blocks<S: Simd, const BLOCK: usize>(s: S, x: &[f32], out: &mut [u8]) {
    let (mut eight, mut fours, mut scales) = ([0; LONG], [0.0; LONG / 4], [0.0; LONG / 32]);
    for (x, out) in x.chunks(LONG).zip(out.chunks_mut(LONG / BLOCK * block_bytes(BLOCK))) {
        let x = x.as_chunks::<BLOCK>().0;
        for ((x, eight), d) in x.iter().zip(eight.as_chunks_mut::<BLOCK>().0).zip(&mut scales) {
            *d = quantize_block(s, x, eight);
        }
        for (eight, fours) in eight.as_chunks::<64>().0.iter().zip(fours.as_chunks_mut::<LANES>().0) {
            // SAFETY: 64 bytes.
            let bytes = unsafe { s.load_bytes(eight.as_ptr().cast()) };
            s.store(s.to_f32(s.byte_dot::<false>(s.splat_int(0x0101_0101), bytes, s.splat_int(0))), fours);
        }
        for (i, out) in out.chunks_exact_mut(block_bytes(BLOCK)).enumerate() {
            let (bytes, rest) = out.split_at_mut(BLOCK);
            bytes.copy_from_slice(bytemuck::cast_slice(&eight[i * BLOCK..][..BLOCK]));
            rest[..4].copy_from_slice(&scales[i].to_le_bytes());
            write_sums(&fours[i * BLOCK / 4..][..BLOCK / 4], &mut rest[4..]);
        }
    }
}

/// The numbers of a block, and d.
#[inline(always)]
pub(crate) fn quantize_block<S: Simd, const BLOCK: usize>(s: S, x: &[f32; BLOCK], eight: &mut [i8; BLOCK]) -> f32 {
    let x = x.as_chunks::<LANES>().0;
    let (mut most, mut finite) = (s.zero(), s.zero());
    for x in x {
        let v = s.load(x);
        most = s.max(most, s.max(v, s.sub(s.zero(), v)));
        // 0 times NaN or infinity is NaN, and NaN is kept.
        finite = s.fma(v, s.zero(), finite);
    }
    if s.reduce_add(finite) != 0.0 {
        eight.fill(0);
        return f32::NAN;
    }
    let most = s.reduce_max(most);
    let (d, inverse) = if most >= 127.0 * f32::MIN_POSITIVE { (most / 127.0, 127.0 / most) } else { (0.0, 0.0) };
    for (x, eight) in x.iter().zip(eight.as_chunks_mut::<LANES>().0) {
        s.store_i8(s.mul(s.load(x), s.splat(inverse)), eight);
    }
    d
}

/// What follows d in a block, from the sums of four numbers each.
#[inline(always)]
fn write_sums(fours: &[f32], out: &mut [u8]) {
    // Integers below 2^24: exact.
    let negative = |fours: &[f32; 4]| -((fours[0] + fours[1]) + (fours[2] + fours[3])) as i32;
    let sums = fours.as_chunks::<4>().0;
    if let [first, second] = sums {
        let sum = negative(first) + negative(second);
        for (out, offset) in out.as_chunks_mut::<4>().0.iter_mut().zip([1, OFFSETS[0], OFFSETS[1], OFFSETS[2]]) {
            *out = (offset * sum).to_le_bytes();
        }
        return;
    }
    let (sums32, sums16) = out.split_at_mut(16);
    for (i, (pair, out)) in sums.as_chunks::<2>().0.iter().zip(sums16.as_chunks_mut::<8>().0).enumerate() {
        let [first, second] = [negative(&pair[0]), negative(&pair[1])];
        out[..4].copy_from_slice(&(32 * first).to_le_bytes());
        out[4..].copy_from_slice(&(32 * second).to_le_bytes());
        // |sum| ≤ 32·127, so the upper part fits a byte.
        let sum = first + second;
        sums32[i] = (sum & 63) as u8;
        sums32[8 + i] = (sum >> 6) as i8 as u8;
    }
}
