//! Blocks of 32 numbers.
//!
//! Bytes of a block, numbers 0 to 31:
//!
//! | format | d, f16 | m, f16 | fifth bits | quants | number |
//! |---|---|---|---|---|---|
//! | Q4_0 | 0..2 | | | 2..18 | `d·(q − 8)` |
//! | Q4_1 | 0..2 | 2..4 | | 4..20 | `d·q + m` |
//! | Q5_0 | 0..2 | | 2..6 | 6..22 | `d·(q − 16)` |
//! | Q5_1 | 0..2 | 2..4 | 4..8 | 8..24 | `d·q + m` |
//! | Q8_0 | 0..2 | | | 2..34 | `d·q` |
//!
//! Quants of four bits: byte `i` holds number `i` in its low half and number `i + 16` in its high half. Fifth bits: bit
//! `i` of a little-endian u32 belongs to number `i`. Quants of eight bits: byte `i` is number `i`, with a sign.

use super::search::{FitSearch, Grid, Levels, Minimum};
use super::search::{columns, extent, extent_starts, lanes_of, peak, peak_starts, round_f16, write_quants};
use super::{BlockFormat, half_at, put_half};
use crate::simd::{LANES, Simd};

/// Numbers of a block.
pub(super) const LEN: usize = 32;
pub(super) const Q4_0_BYTES: usize = 18;
pub(super) const Q4_1_BYTES: usize = 20;
pub(super) const Q5_0_BYTES: usize = 22;
pub(super) const Q5_1_BYTES: usize = 24;
pub(super) const Q8_0_BYTES: usize = 34;

/// The four low bits of the 32 quants.
#[inline(always)]
pub(super) fn low_bits(bytes: &[u8]) -> [u8; LEN] {
    let mut q = [0; LEN];
    for i in 0..LEN / 2 {
        q[i] = bytes[i] & 15;
        q[i + LEN / 2] = bytes[i] >> 4;
    }
    q
}

/// All five bits.
#[inline(always)]
pub(super) fn five_bits(fifth: &[u8], bytes: &[u8]) -> [u8; LEN] {
    let fifth = u32::from_le_bytes([fifth[0], fifth[1], fifth[2], fifth[3]]);
    let mut q = low_bits(bytes);
    for i in 0..LEN {
        q[i] |= (((fifth >> i) & 1) as u8) << 4;
    }
    q
}

#[inline(always)]
pub(super) fn read_q4_0(block: &[u8; Q4_0_BYTES], out: &mut [f32; LEN]) {
    let (d, q) = (half_at(block, 0), low_bits(&block[2..]));
    for i in 0..LEN {
        out[i] = d * f32::from(q[i] as i8 - 8);
    }
}

#[inline(always)]
pub(super) fn read_q4_1(block: &[u8; Q4_1_BYTES], out: &mut [f32; LEN]) {
    let (d, m, q) = (half_at(block, 0), half_at(block, 2), low_bits(&block[4..]));
    for i in 0..LEN {
        out[i] = d * f32::from(q[i]) + m;
    }
}

#[inline(always)]
pub(super) fn read_q5_0(block: &[u8; Q5_0_BYTES], out: &mut [f32; LEN]) {
    let (d, q) = (half_at(block, 0), five_bits(&block[2..6], &block[6..]));
    for i in 0..LEN {
        out[i] = d * f32::from(q[i] as i8 - 16);
    }
}

#[inline(always)]
pub(super) fn read_q5_1(block: &[u8; Q5_1_BYTES], out: &mut [f32; LEN]) {
    let (d, m, q) = (half_at(block, 0), half_at(block, 2), five_bits(&block[4..8], &block[8..]));
    for i in 0..LEN {
        out[i] = d * f32::from(q[i]) + m;
    }
}

#[inline(always)]
pub(super) fn read_q8_0(block: &[u8; Q8_0_BYTES], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for i in 0..LEN {
        out[i] = f32::from(block[2 + i] as i8) * d;
    }
}

// Each list of starts holds the integers from half the highest quant on, so that quantising dequantised numbers gives
// the same numbers again: a block that uses less than half its range equals one with half the scale and twice the
// quants. (In the formats with a minimum that holds where the least number is an f16.)
const Q4_0_STARTS: [(f32, f32); 32] = peak_starts(&[(17, -4.0, -0.5), (15, 4.0, 0.5)]);
const Q4_1_STARTS: [(f32, f32); 26] = extent_starts(15.0, 6, 0.75);
const Q5_0_STARTS: [(f32, f32); 36] =
    peak_starts(&[(4, -8.0, -1.0), (15, -12.0, -0.5), (4, 8.0, 1.0), (13, 12.0, 0.5)]);
const Q5_1_STARTS: [(f32, f32); 34] = extent_starts(31.0, 6, 0.75);
const Q8_0_STARTS: [(f32, f32); 112] = peak_starts(&[(48, 64.0, 1.0), (64, 112.0, 0.25)]);

/// How the blocks of a format are quantised.
struct LegacyPlan {
    bytes: usize,
    /// The lowest and the highest quant.
    levels: (f32, f32),
    minimum: Minimum,
    starts: &'static [(f32, f32)],
    solve: bool,
}

const fn plan(format: BlockFormat) -> LegacyPlan {
    let (bytes, lo, hi, starts): (usize, f32, f32, &[(f32, f32)]) = match format {
        BlockFormat::Q4_0 => (Q4_0_BYTES, -8.0, 7.0, &Q4_0_STARTS),
        BlockFormat::Q4_1 => (Q4_1_BYTES, 0.0, 15.0, &Q4_1_STARTS),
        BlockFormat::Q5_0 => (Q5_0_BYTES, -16.0, 15.0, &Q5_0_STARTS),
        BlockFormat::Q5_1 => (Q5_1_BYTES, 0.0, 31.0, &Q5_1_STARTS),
        // −128 is left out: its negative does not fit eight bits, and the kernels negate numbers in eight bits.
        _ => (Q8_0_BYTES, -127.0, 127.0, &Q8_0_STARTS),
    };
    let minimum = if lo < 0.0 { Minimum::Zero } else { Minimum::Half };
    // With quants of eight bits, trying more starts lowers the error more than solving does.
    LegacyPlan { bytes, levels: (lo, hi), minimum, starts, solve: hi < 127.0 }
}

/// The blocks of some numbers.
#[inline(always)]
pub(super) fn write<S: Simd>(s: S, format: BlockFormat, x: &[f32], blocks: &mut [u8]) {
    let LegacyPlan { bytes, levels: (lo, hi), minimum, starts, solve } = plan(format);
    let levels = Levels { lo: s.splat(lo), hi: s.splat(hi) };
    let search = FitSearch { levels, half_scale: true, minimum, solve };
    let mut at = [[0.0; LANES]; LEN];
    let mut quants = [[0; LEN]; LANES];
    for (x, blocks) in x.as_chunks().0.chunks(LANES).zip(blocks.chunks_mut(LANES * bytes)) {
        columns(s, x, &mut at);
        let (width, origin) = if minimum == Minimum::Half {
            // Relative to the minimum as it is stored: where all numbers are equal, the scale corrects the rounding of
            // the minimum.
            let (least, greatest) = extent(s, &at);
            let origin = round_f16(s, least);
            (s.sub(greatest, origin), origin)
        } else {
            (peak(s, &at), s.zero())
        };
        let fit = search.fit(s, &at, width, origin, starts, 2);
        let offset = if format == BlockFormat::Q8_0 { 0.0 } else { -lo };
        write_quants(s, &at, &Grid::new(s, fit.d, fit.m), levels, offset, 0, &mut quants);
        let (d, m) = (lanes_of(s, fit.d), lanes_of(s, fit.m));
        for (i, block) in blocks.chunks_exact_mut(bytes).enumerate() {
            let q = &quants[i];
            put_half(block, 0, d[i]);
            match format {
                BlockFormat::Q4_0 => put_low_bits(q, &mut block[2..]),
                BlockFormat::Q4_1 => {
                    put_half(block, 2, m[i]);
                    put_low_bits(q, &mut block[4..]);
                }
                BlockFormat::Q5_0 => put_five_bits(q, &mut block[2..]),
                BlockFormat::Q5_1 => {
                    put_half(block, 2, m[i]);
                    put_five_bits(q, &mut block[4..]);
                }
                _ => block[2..].copy_from_slice(q),
            }
        }
    }
}

/// The low four bits of the quants.
#[inline(always)]
fn put_low_bits(q: &[u8; LEN], bytes: &mut [u8]) {
    for i in 0..LEN / 2 {
        bytes[i] = q[i] & 15 | q[i + LEN / 2] << 4;
    }
}

/// The fifth bits, then the low four.
#[inline(always)]
fn put_five_bits(q: &[u8; LEN], bytes: &mut [u8]) {
    let fifth = (0..LEN).fold(0u32, |bits, i| bits | u32::from(q[i] >> 4 & 1) << i);
    bytes[..4].copy_from_slice(&fifth.to_le_bytes());
    put_low_bits(q, &mut bytes[4..]);
}
