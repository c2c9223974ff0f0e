//! Packing blocks of a file as panels of 32 rows.
//!
//! Files and panels hold the same words of four bytes, in another order or with their bits moved. A panel is therefore
//! packed word by word: the words at one place of the blocks of 32 rows go through the same few operations and lie side
//! by side afterwards.

use super::super::super::{BlockFormat, k, legacy};
use super::super::layout::{self, Layout, ROWS};
use crate::simd::kernel;

/// One word of each row.
type WordColumn = [u32; ROWS];
/// One block of each row.
type BlockColumn<'a, const BYTES: usize> = [&'a [u8; BYTES]; ROWS];

/// The lower halves of the bytes of a word.
const LOW: u32 = 0x0f0f_0f0f;

/// Packs at most 32 rows; missing rows are packed as blocks of zeros.
pub(super) fn panel(format: BlockFormat, rows: &[u8], panel: &mut [u8]) {
    pack(format, rows, panel);
}

kernel! {
    fn pack[_s: S](format: BlockFormat, rows: &[u8], panel: &mut [u8]) {
        match format {
            BlockFormat::Q4_0 => each::<layout::Q4_0, { legacy::Q4_0_BYTES }>(rows, panel, |b, out| {
                put_halves(b, 0, 0, out, 0);
                four_bits::<layout::Q4_0, _>(b, 2, out);
            }),
            BlockFormat::Q4_1 => each::<layout::Q4_1, { legacy::Q4_1_BYTES }>(rows, panel, |b, out| {
                halves_and_minima(b, out);
                four_bits::<layout::Q4_1, _>(b, 4, out);
            }),
            BlockFormat::Q5_0 => each::<layout::Q5_0, { legacy::Q5_0_BYTES }>(rows, panel, |b, out| {
                put_halves(b, 0, 0, out, 0);
                fifth_bits::<layout::Q5_0, _>(b, 2, out);
                four_bits::<layout::Q5_0, _>(b, 6, out);
            }),
            BlockFormat::Q5_1 => each::<layout::Q5_1, { legacy::Q5_1_BYTES }>(rows, panel, |b, out| {
                halves_and_minima(b, out);
                fifth_bits::<layout::Q5_1, _>(b, 4, out);
                four_bits::<layout::Q5_1, _>(b, 8, out);
            }),
            BlockFormat::Q8_0 => each::<layout::Q8_0, { legacy::Q8_0_BYTES }>(rows, panel, |b, out| {
                put_halves(b, 0, 0, out, 0);
                for g in 0..8 {
                    put(out, layout::Q8_0::PARTS_AT + 4 * ROWS * g, words(b, 2 + 4 * g).map(|w| w ^ 0x8080_8080));
                }
            }),
            BlockFormat::Q4K => each::<layout::Q4K, { k::Q4_BYTES }>(rows, panel, |b, out| {
                scales_and_minima::<layout::Q4K, _>(b, out);
                affine::<layout::Q4K, _>(b, 16, out);
            }),
            BlockFormat::Q5K => each::<layout::Q5K, { k::Q5_BYTES }>(rows, panel, |b, out| {
                scales_and_minima::<layout::Q5K, _>(b, out);
                let fifth: [WordColumn; 8] = std::array::from_fn(|g| words(b, 16 + 4 * g));
                for part in 0..8 {
                    let plane = plane(&fifth, part as u32, 1);
                    put(out, layout::Q5K::PARTS_AT + part * layout::Q5K::PART_BYTES, plane);
                }
                affine::<layout::Q5K, _>(b, 48, out);
            }),
            BlockFormat::Q6K => each::<layout::Q6K, { k::Q6_BYTES }>(rows, panel, six_bits),
        }
    }
}

/// Packs block after block with `pack`.
#[inline(always)]
fn each<L: Layout, const BYTES: usize>(
    rows: &[u8],
    panel: &mut [u8],
    pack: impl Fn(&BlockColumn<'_, BYTES>, &mut [u8]),
) {
    let blocks = panel.len() / L::BLOCK_BYTES;
    let (rows, nothing) = (rows.as_chunks::<BYTES>().0, &[0; BYTES]);
    let present = rows.len() / blocks.max(1);
    for (at, out) in panel.chunks_exact_mut(L::BLOCK_BYTES).enumerate() {
        pack(&std::array::from_fn(|row| if row < present { &rows[row * blocks + at] } else { nothing }), out);
    }
}

/// The words at a place of the blocks.
#[inline(always)]
fn words<const BYTES: usize>(blocks: &BlockColumn<'_, BYTES>, at: usize) -> WordColumn {
    blocks.map(|block| match block[at..] {
        [a, b, c, d, ..] => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    })
}

/// Writes words one after the other.
#[inline(always)]
fn put(out: &mut [u8], at: usize, words: WordColumn) {
    let out = &mut out[at..at + size_of::<WordColumn>()];
    out.as_chunks_mut().0.iter_mut().zip(words).for_each(|(out, word)| *out = word.to_le_bytes());
}

/// Writes the 16 bits at place `from`, with the bits of `flip` inverted.
#[inline(always)]
fn put_halves<const BYTES: usize>(blocks: &BlockColumn<'_, BYTES>, from: usize, flip: u16, out: &mut [u8], at: usize) {
    let out = out[at..at + 2 * ROWS].as_chunks_mut().0;
    for (out, block) in out.iter_mut().zip(blocks) {
        *out = (u16::from_le_bytes([block[from], block[from + 1]]) ^ flip).to_le_bytes();
    }
}

/// Scales, and minima with the opposite sign: the kernels subtract a minimum, but `m` is added.
#[inline(always)]
fn halves_and_minima<const BYTES: usize>(blocks: &BlockColumn<'_, BYTES>, out: &mut [u8]) {
    put_halves(blocks, 0, 0, out, 0);
    put_halves(blocks, 2, 0x8000, out, 2 * ROWS);
}

/// Quants of four bits of one part, which lie in a file as they are packed.
#[inline(always)]
fn four_bits<L: Layout, const BYTES: usize>(blocks: &BlockColumn<'_, BYTES>, from: usize, out: &mut [u8]) {
    for g in 0..4 {
        put(out, L::PARTS_AT + L::PLANE_BYTES + 4 * ROWS * g, words(blocks, from + 4 * g));
    }
}

/// The plane of one part whose fifth bits are bits of one word.
#[inline(always)]
fn fifth_bits<L: Layout, const BYTES: usize>(blocks: &BlockColumn<'_, BYTES>, from: usize, out: &mut [u8]) {
    // Bit 4g + b to bit 8b + g: even bits below odd ones, twice.
    let spread = |x: u32| {
        let swap = |x: u32, mask: u32, by: u32| {
            let moved = (x ^ (x >> by)) & mask;
            x ^ moved ^ (moved << by)
        };
        swap(swap(swap(swap(x, 0x2222_2222, 1), 0x0c0c_0c0c, 2), 0x00f0_00f0, 4), 0x0000_ff00, 8)
    };
    put(out, L::PARTS_AT, words(blocks, from).map(|x| spread(spread(x))));
}

/// The plane of a part whose high bits are bits `at` and on of the bytes of a word a group.
#[inline(always)]
fn plane(groups: &[WordColumn], at: u32, bits: u32) -> WordColumn {
    let mask = if bits == 1 { 0x0101_0101 } else { 0x0303_0303 };
    let mut plane = [0; ROWS];
    for (g, words) in groups.iter().enumerate() {
        for (plane, word) in plane.iter_mut().zip(words) {
            *plane |= (word >> at & mask) << (bits * g as u32);
        }
    }
    plane
}

/// The first four bytes of a word for each row, as rows of bytes.
#[inline(always)]
fn put_bytes(out: &mut [u8], at: usize, words: WordColumn) {
    for (byte, out) in out[at..at + 4 * ROWS].chunks_exact_mut(ROWS).enumerate() {
        out.iter_mut().zip(words).for_each(|(out, word)| *out = word.to_le_bytes()[byte]);
    }
}

/// d and dmin, minima and scales of Q4_K and Q5_K.
#[inline(always)]
fn scales_and_minima<L: Layout, const BYTES: usize>(blocks: &BlockColumn<'_, BYTES>, out: &mut [u8]) {
    put_halves(blocks, 0, 0, out, 0);
    put_halves(blocks, 2, 0, out, 2 * ROWS);
    let [scales, minima, both] = [words(blocks, 4), words(blocks, 8), words(blocks, 12)];
    let high = |words: WordColumn| words.map(|w| (w >> 6 & 0x0303_0303) << 4);
    let (mut late_scales, mut late_minima) = (high(scales), high(minima));
    for row in 0..ROWS {
        late_scales[row] |= both[row] & LOW;
        late_minima[row] |= both[row] >> 4 & LOW;
    }
    put(out, L::MINIMA_AT, minima.map(|w| w & 0x3f3f_3f3f));
    put(out, L::MINIMA_AT + 4 * ROWS, late_minima);
    put_bytes(out, L::SCALES_AT, scales.map(|w| w & 0x3f3f_3f3f));
    put_bytes(out, L::SCALES_AT + 4 * ROWS, late_scales);
}

/// The low four bits of Q4_K and Q5_K: a file has those of two parts in the halves of its bytes.
#[inline(always)]
fn affine<L: Layout, const BYTES: usize>(blocks: &BlockColumn<'_, BYTES>, from: usize, out: &mut [u8]) {
    for pair in 0..4 {
        for g in 0..4 {
            let [front, back] = [words(blocks, from + 32 * pair + 4 * g), words(blocks, from + 32 * pair + 16 + 4 * g)];
            let at = L::PARTS_AT + 2 * pair * L::PART_BYTES + L::PLANE_BYTES + 4 * ROWS * g;
            put(out, at, std::array::from_fn(|row| front[row] & LOW | (back[row] & LOW) << 4));
            put(out, at + L::PART_BYTES, std::array::from_fn(|row| front[row] >> 4 & LOW | back[row] & !LOW));
        }
    }
}

/// All of Q6_K.
#[inline(always)]
fn six_bits(blocks: &BlockColumn<'_, { k::Q6_BYTES }>, out: &mut [u8]) {
    type L = layout::Q6K;
    put_halves(blocks, k::Q6_SCALE, 0, out, 0);
    for four in 0..4 {
        put_bytes(out, L::SCALES_AT + 4 * four * ROWS, words(blocks, 192 + 4 * four));
    }
    for half in 0..2 {
        for column in 0..2 {
            let high: [WordColumn; 4] = std::array::from_fn(|g| words(blocks, 128 + 32 * half + 16 * column + 4 * g));
            for two in 0..2 {
                let low: [WordColumn; 4] =
                    std::array::from_fn(|g| words(blocks, 64 * half + 32 * two + 16 * column + 4 * g));
                // The two parts whose low bits are the halves of these bytes.
                for upper in 0..2 {
                    let part = 4 * upper + 2 * two + column;
                    let at = L::PARTS_AT + (8 * half + part) * L::PART_BYTES;
                    put(out, at, plane(&high, part as u32 / 2 * 2, 2));
                    for g in 0..2 {
                        let (front, back, shift) = (&low[g], &low[g + 2], 4 * upper as u32);
                        let joined = |row: usize| front[row] >> shift & LOW | (back[row] >> shift & LOW) << 4;
                        put(out, at + L::PLANE_BYTES + 4 * ROWS * g, std::array::from_fn(joined));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
