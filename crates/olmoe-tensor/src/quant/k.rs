//! Blocks of 256 numbers in parts, each with a small integer as its scale, and in some formats another as its minimum.
//!
//! Bytes of a block:
//!
//! | format | d, f16 | dmin, f16 | scales of the parts | fifth bits | quants | number |
//! |---|---|---|---|---|---|---|
//! | Q4_K | 0..2 | 2..4 | 4..16 | | 16..144 | `d·scale·q − dmin·minimum` |
//! | Q5_K | 0..2 | 2..4 | 4..16 | 16..48 | 48..176 | `d·scale·q − dmin·minimum` |
//! | Q6_K | 208..210 | | 192..208 | | 0..128 low, 128..192 high | `d·scale·(q − 32)` |
//!
//! Q4_K and Q5_K have eight parts of 32 numbers with scales and minima of six bits. Part `j < 4` has its scale in the
//! low six bits of byte `j` of the scales and its minimum in those of byte `4 + j`; part `4 + j` has the low four bits
//! of both in byte `8 + j`, the scale in the low half, and their two high bits at the top of bytes `j` and `4 + j`.
//! Quants: of the 64 numbers of parts `2g` and `2g + 1`, byte `32·g + i` holds number `i` in the low half and `i + 32`
//! in the high half. Fifth bits: bit `j` of byte `i` belongs to number `i` of part `j`.
//!
//! Q6_K has sixteen parts of 16 numbers with scales of eight bits and a sign. Of the 128 numbers of each half of the
//! block, low byte `64·h + i` holds the four low bits of numbers `i` and `i + 64` for `i < 64`, and high byte `32·h +
//! i` the two high bits of `i`, `i + 32`, `i + 64` and `i + 96` for `i < 32`, from the lowest bit on.

use super::search::{ABREAST, Column, Fit, FitSearch, Grid, Levels, Minimum};
use super::search::{
    abs, columns, errors, extent, extent_starts, lanes_of, moments, peak, peak_starts, round_scale, write_quants,
};
use super::{BlockFormat, half_at, put_half};
use crate::simd::{LANES, Simd};

/// Numbers of a block.
pub(super) const LEN: usize = 256;
pub(super) const Q4_BYTES: usize = 144;
pub(super) const Q5_BYTES: usize = 176;
pub(super) const Q6_BYTES: usize = 210;
/// Where the f16 of Q6_K lies.
pub(super) const Q6_SCALE: usize = 208;

/// Parts of Q4_K and Q5_K.
const PARTS: usize = 8;
/// Parts of Q6_K.
const Q6_PARTS: usize = 16;

/// The scales and the minima of the eight parts.
#[inline(always)]
pub(super) fn unpack_scales(bytes: &[u8]) -> [(u8, u8); PARTS] {
    std::array::from_fn(|j| match j {
        0..4 => (bytes[j] & 63, bytes[j + 4] & 63),
        _ => (bytes[j + 4] & 15 | bytes[j - 4] >> 6 << 4, bytes[j + 4] >> 4 | bytes[j] >> 6 << 4),
    })
}

#[inline(always)]
fn pack_scales(parts: &[(u8, u8); PARTS], bytes: &mut [u8]) {
    for j in 0..4 {
        let ((scale, minimum), (high_scale, high_minimum)) = (parts[j], parts[j + 4]);
        bytes[j] = scale | high_scale >> 4 << 6;
        bytes[j + 4] = minimum | high_minimum >> 4 << 6;
        bytes[j + 8] = high_scale & 15 | high_minimum << 4;
    }
}

/// The quants of Q4_K and Q5_K; the fifth bits are given as 32 bytes.
#[inline(always)]
pub(super) fn affine_quants(fifth: &[u8], bytes: &[u8], quants: &mut [u8; LEN]) {
    let fifth = &fifth[..32];
    let pairs = quants.as_chunks_mut::<64>().0.iter_mut().zip(bytes.as_chunks::<32>().0);
    for (g, (quants, bytes)) in pairs.enumerate() {
        let (first, second) = quants.split_at_mut(32);
        for i in 0..32 {
            let fifth = fifth[i] >> (2 * g);
            first[i] = bytes[i] & 15 | (fifth & 1) << 4;
            second[i] = bytes[i] >> 4 | (fifth & 2) << 3;
        }
    }
}

/// Q4_K and Q5_K; the fifth bits are given as 32 bytes.
#[inline(always)]
fn read_affine(head: &[u8], fifth: &[u8; 32], bytes: &[u8], out: &mut [f32; LEN]) {
    let (d, dmin, parts) = (half_at(head, 0), half_at(head, 2), unpack_scales(&head[4..16]));
    let mut quants = [0; LEN];
    affine_quants(fifth, bytes, &mut quants);
    let pairs = out.as_chunks_mut::<32>().0.iter_mut().zip(quants.as_chunks::<32>().0);
    for ((out, quants), (scale, minimum)) in pairs.zip(parts) {
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        for i in 0..32 {
            out[i] = scale * f32::from(quants[i]) - minimum;
        }
    }
}

#[inline(always)]
pub(super) fn read_q4(block: &[u8; Q4_BYTES], out: &mut [f32; LEN]) {
    read_affine(&block[..16], &[0; 32], &block[16..], out);
}

#[inline(always)]
pub(super) fn read_q5(block: &[u8; Q5_BYTES], out: &mut [f32; LEN]) {
    let mut fifth = [0; 32];
    fifth.copy_from_slice(&block[16..48]);
    read_affine(&block[..16], &fifth, &block[48..], out);
}

/// The quants of Q6_K, 32 more than what they stand for.
#[inline(always)]
pub(super) fn q6_quants(block: &[u8], quants: &mut [u8; LEN]) {
    for (h, quants) in quants.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let (low, high) = (&block[64 * h..][..64], &block[128 + 32 * h..][..32]);
        for (part, quants) in quants.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (low, high) = (&low[16 * (part % 4)..][..16], &high[16 * (part % 2)..][..16]);
            for i in 0..16 {
                quants[i] = low[i] >> (part / 4 * 4) & 15 | (high[i] >> (part / 2 * 2) & 3) << 4;
            }
        }
    }
}

#[inline(always)]
pub(super) fn read_q6(block: &[u8; Q6_BYTES], out: &mut [f32; LEN]) {
    let d = half_at(block, Q6_SCALE);
    let mut quants = [0; LEN];
    q6_quants(block, &mut quants);
    let parts = out.as_chunks_mut::<16>().0.iter_mut().zip(quants.as_chunks::<16>().0);
    for (part, (out, quants)) in parts.enumerate() {
        let scale = d * f32::from(block[192 + part] as i8);
        for i in 0..16 {
            out[i] = scale * f32::from(quants[i] as i8 - 32);
        }
    }
}

/// How the scales of the parts of a format are searched for.
struct KPlan<'a> {
    /// The lowest and highest quant.
    levels: (f32, f32),
    /// The lowest and highest scale of a part.
    scales: (f32, f32),
    /// The highest minimum of a part, 0 where there are none.
    minimum: f32,
    /// The values that are tried for the greatest scale of the parts.
    tops: &'a [f32],
    /// The starts of the fit of each part.
    starts: &'a [(f32, f32)],
    /// Steps of scale and minimum around the rounded ones that are tried, first and later.
    around: [&'a [(f32, f32)]; 2],
    /// How often d and dmin are fitted again.
    rounds: usize,
}

/// The scales of a block: all that is stored of it except the quants.
#[derive(Clone, Copy)]
struct Scales<V, const J: usize> {
    d: V,
    dmin: V,
    parts: [PartScales<V>; J],
    error: V,
}

/// The scale and the minimum of a part, both integers.
#[derive(Clone, Copy)]
struct PartScales<V> {
    scale: V,
    minimum: V,
}

impl<V: Copy> PartScales<V> {
    #[inline(always)]
    fn grid<S: Simd<V = V>>(self, s: S, d: V, dmin: V) -> Grid<V> {
        Grid::new(s, s.mul(d, self.scale), s.sub(s.zero(), s.mul(dmin, self.minimum)))
    }
}

/// `a / b`; 0 where `b` is 0.
#[inline(always)]
fn ratio<S: Simd>(s: S, a: S::V, b: S::V) -> S::V {
    s.select_lt(s.zero(), abs(s, b), s.div(a, b), s.zero())
}

/// The nearest integer within limits.
#[inline(always)]
fn whole<S: Simd>(s: S, x: S::V, lo: f32, hi: f32) -> S::V {
    s.round(s.min(s.max(x, s.splat(lo)), s.splat(hi)))
}

impl KPlan<'_> {
    #[inline(always)]
    fn levels<S: Simd>(&self, s: S) -> Levels<S::V> {
        Levels { lo: s.splat(self.levels.0), hi: s.splat(self.levels.1) }
    }

    /// The scales of sixteen blocks in `J` parts.
    #[inline(always)]
    fn fit<S: Simd, const J: usize>(&self, s: S, x: &[Column; LEN]) -> Scales<S::V, J> {
        let affine = self.minimum > 0.0;
        let minimum = if affine { Minimum::NotAboveZero } else { Minimum::Zero };
        let search = FitSearch { levels: self.levels(s), half_scale: false, minimum, solve: true };
        // Each part by itself, with scale and minimum in f32.
        let mut fits = [Fit { d: s.zero(), m: s.zero(), error: s.zero() }; J];
        for (fit, x) in fits.iter_mut().zip(x.chunks_exact(LEN / J)) {
            let (width, origin) = if affine {
                let (least, greatest) = extent(s, x);
                let origin = s.min(least, s.zero());
                (s.sub(greatest, origin), origin)
            } else {
                (peak(s, x), s.zero())
            };
            *fit = search.fit(s, x, width, origin, self.starts, 1);
        }
        let (mut greatest, mut least) = (s.zero(), s.zero());
        for fit in &fits {
            greatest = s.select_lt(abs(s, greatest), abs(s, fit.d), fit.d, greatest);
            least = s.min(fit.m, least);
        }
        // Then as integer multiples of the scales that the block stores.
        let dmin = if affine { round_scale(s, s.mul(least, s.splat(-1.0 / self.minimum))) } else { s.zero() };
        let zero = PartScales { scale: s.zero(), minimum: s.zero() };
        let worst = s.splat(f32::INFINITY);
        let mut best = Scales { d: s.zero(), dmin: s.zero(), parts: [zero; J], error: worst };
        for top in self.tops {
            let d = round_scale(s, s.mul(greatest, s.splat(1.0 / top)));
            let mut parts = [zero; J];
            for (part, fit) in parts.iter_mut().zip(&fits) {
                *part = PartScales { scale: ratio(s, fit.d, d), minimum: ratio(s, s.sub(s.zero(), fit.m), dmin) };
            }
            best = better(s, best, self.choose(s, x, d, dmin, &parts, self.around[0]));
        }
        for _ in 0..self.rounds {
            let (d, dmin) = self.refit(s, x, &best);
            best = better(s, best, self.choose(s, x, d, dmin, &best.parts, self.around[1]));
        }
        best
    }

    /// The best integer scales and minima of the parts around the given ones, which need not be integers.
    #[inline(always)]
    fn choose<S: Simd, const J: usize>(
        &self,
        s: S,
        x: &[Column; LEN],
        d: S::V,
        dmin: S::V,
        parts: &[PartScales<S::V>; J],
        around: &[(f32, f32)],
    ) -> Scales<S::V, J> {
        let mut chosen = Scales { d, dmin, parts: *parts, error: s.zero() };
        for (part, x) in chosen.parts.iter_mut().zip(x.chunks_exact(LEN / J)) {
            let centre = *part;
            let mut least = s.splat(f32::INFINITY);
            for steps in around.as_chunks::<ABREAST>().0 {
                let mut tried = [centre; ABREAST];
                let mut grids = [Grid::new(s, s.zero(), s.zero()); ABREAST];
                for ((tried, grid), (scale, minimum)) in tried.iter_mut().zip(&mut grids).zip(steps) {
                    tried.scale = whole(s, s.add(centre.scale, s.splat(*scale)), self.scales.0, self.scales.1);
                    tried.minimum = whole(s, s.add(centre.minimum, s.splat(*minimum)), 0.0, self.minimum);
                    *grid = tried.grid(s, d, dmin);
                }
                let errors = errors(s, x, &grids, self.levels(s));
                for (tried, error) in tried.iter().zip(errors) {
                    part.scale = s.select_lt(error, least, tried.scale, part.scale);
                    part.minimum = s.select_lt(error, least, tried.minimum, part.minimum);
                    least = s.min(error, least);
                }
            }
            chosen.error = s.add(chosen.error, least);
        }
        chosen
    }

    /// The d and dmin with the least squared error for the scales of the parts and the quants, rounded to f16.
    #[inline(always)]
    fn refit<S: Simd, const J: usize>(&self, s: S, x: &[Column; LEN], scales: &Scales<S::V, J>) -> (S::V, S::V) {
        // Sums of products of a = scale·q, b = minimum and the residual r of each number.
        let (mut ra, mut rb, mut aa, mut ab, mut bb) = (s.zero(), s.zero(), s.zero(), s.zero(), s.zero());
        for (part, x) in scales.parts.iter().zip(x.chunks_exact(LEN / J)) {
            let [sums] = moments(s, x, &[part.grid(s, scales.d, scales.dmin)], self.levels(s));
            ra = s.fma(part.scale, sums.rq, ra);
            rb = s.fma(part.minimum, sums.r, rb);
            aa = s.fma(s.mul(part.scale, part.scale), sums.qq, aa);
            ab = s.fma(s.mul(part.scale, part.minimum), sums.q, ab);
            bb = s.fma(s.mul(part.minimum, part.minimum), s.splat(x.len() as f32), bb);
        }
        // x = d·a − dmin·b: dmin first, rounded; then d with that dmin.
        let determinant = s.sub(s.mul(aa, bb), s.mul(ab, ab));
        let change = s.div(s.sub(s.mul(ab, ra), s.mul(aa, rb)), determinant);
        let change = s.select_lt(s.zero(), determinant, change, s.zero());
        let dmin =
            if self.minimum > 0.0 { round_scale(s, s.max(s.add(scales.dmin, change), s.zero())) } else { s.zero() };
        let change = s.fma(s.sub(dmin, scales.dmin), ab, ra);
        (round_scale(s, s.add(scales.d, ratio(s, change, aa))), dmin)
    }
}

/// For each block the scales with the smaller error; the first ones where the errors are equal.
#[inline(always)]
fn better<S: Simd, const J: usize>(s: S, a: Scales<S::V, J>, b: Scales<S::V, J>) -> Scales<S::V, J> {
    let mut best = a;
    best.d = s.select_lt(b.error, a.error, b.d, a.d);
    best.dmin = s.select_lt(b.error, a.error, b.dmin, a.dmin);
    for (best, b_part) in best.parts.iter_mut().zip(&b.parts) {
        best.scale = s.select_lt(b.error, a.error, b_part.scale, best.scale);
        best.minimum = s.select_lt(b.error, a.error, b_part.minimum, best.minimum);
    }
    best.error = s.min(b.error, a.error);
    best
}

/// The integers of sixteen blocks as they are stored.
struct StoredBlocks<const J: usize> {
    d: Column,
    dmin: Column,
    scales: [Column; J],
    minima: [Column; J],
    /// The quants, counted from zero.
    q: [[u8; LEN]; LANES],
}

#[inline(always)]
fn written<S: Simd, const J: usize>(s: S, x: &[[f32; LEN]], plan: &KPlan) -> StoredBlocks<J> {
    let mut at = [[0.0; LANES]; LEN];
    columns(s, x, &mut at);
    let best = plan.fit::<S, J>(s, &at);
    let (mut scales, mut minima) = ([[0.0; LANES]; J], [[0.0; LANES]; J]);
    let mut q = [[0; LEN]; LANES];
    for (j, (part, x)) in best.parts.iter().zip(at.chunks_exact(LEN / J)).enumerate() {
        let grid = part.grid(s, best.d, best.dmin);
        (scales[j], minima[j]) = (lanes_of(s, part.scale), lanes_of(s, part.minimum));
        write_quants(s, x, &grid, plan.levels(s), -plan.levels.0, j * LEN / J, &mut q);
    }
    StoredBlocks { d: lanes_of(s, best.d), dmin: lanes_of(s, best.dmin), scales, minima, q }
}

/// All pairs of steps up to `scale` and `minimum` in either direction; an odd number is padded with the middle.
const fn steps<const N: usize>(scale: usize, minimum: usize) -> [(f32, f32); N] {
    let mut all = [(0.0, 0.0); N];
    let minima = 2 * minimum + 1;
    let count = minima * (2 * scale + 1);
    assert!(count <= N && N.is_multiple_of(ABREAST));
    let mut n = 0;
    while n < count {
        all[n] = ((n / minima) as f32 - scale as f32, (n % minima) as f32 - minimum as f32);
        n += 1;
    }
    all
}

const Q4_STARTS: [(f32, f32); 16] = extent_starts(15.0, 4, 0.75);
const Q5_STARTS: [(f32, f32); 16] = extent_starts(31.0, 4, 0.75);
const Q6_STARTS: [(f32, f32); 20] = peak_starts(&[(1, -32.0, 0.0), (9, -28.5, -1.0), (10, 28.0, 1.0)]);
const AFFINE_AROUND: [&[(f32, f32)]; 2] = [&steps::<10>(1, 1), &steps::<36>(3, 2)];
const Q6_AROUND: [&[(f32, f32)]; 2] = [&steps::<10>(4, 0), &steps::<26>(12, 0)];

/// Blocks of Q4_K or Q5_K.
#[inline(always)]
pub(super) fn write_affine<S: Simd>(s: S, format: BlockFormat, x: &[f32], blocks: &mut [u8]) {
    let five_bits = format == BlockFormat::Q5K;
    let (bytes, highest, starts) = if five_bits { (Q5_BYTES, 31.0, &Q5_STARTS) } else { (Q4_BYTES, 15.0, &Q4_STARTS) };
    let plan = KPlan {
        levels: (0.0, highest),
        scales: (0.0, 63.0),
        minimum: 63.0,
        tops: &[63.0, 62.0, 61.0, 60.0],
        starts,
        around: AFFINE_AROUND,
        rounds: 1,
    };
    for (x, blocks) in x.as_chunks().0.chunks(LANES).zip(blocks.chunks_mut(LANES * bytes)) {
        let new = written::<S, PARTS>(s, x, &plan);
        for (lane, block) in blocks.chunks_exact_mut(bytes).enumerate() {
            put_half(block, 0, new.d[lane]);
            put_half(block, 2, new.dmin[lane]);
            let mut parts = [(0, 0); PARTS];
            for (j, part) in parts.iter_mut().enumerate() {
                *part = (new.scales[j][lane] as u8, new.minima[j][lane] as u8);
            }
            pack_scales(&parts, &mut block[4..16]);
            let (fifth, quants) = block[16..].split_at_mut(if five_bits { 32 } else { 0 });
            fifth.fill(0);
            for (g, (q, quants)) in
                new.q[lane].as_chunks::<64>().0.iter().zip(quants.as_chunks_mut::<32>().0).enumerate()
            {
                for i in 0..32 {
                    quants[i] = q[i] & 15 | q[i + 32] << 4;
                }
                for (i, fifth) in fifth.iter_mut().enumerate() {
                    *fifth |= (q[i] >> 4 & 1 | q[i + 32] >> 4 << 1) << (2 * g);
                }
            }
        }
    }
}

/// Blocks of Q6_K.
#[inline(always)]
pub(super) fn write_q6<S: Simd>(s: S, x: &[f32], blocks: &mut [u8]) {
    let plan = KPlan {
        levels: (-32.0, 31.0),
        scales: (-128.0, 127.0),
        minimum: 0.0,
        tops: &[-128.0, -126.0, -123.0, -120.0],
        starts: &Q6_STARTS,
        around: Q6_AROUND,
        rounds: 2,
    };
    for (x, blocks) in x.as_chunks().0.chunks(LANES).zip(blocks.chunks_mut(LANES * Q6_BYTES)) {
        let new = written::<S, Q6_PARTS>(s, x, &plan);
        for (lane, block) in blocks.chunks_exact_mut(Q6_BYTES).enumerate() {
            for (h, q) in new.q[lane].as_chunks::<128>().0.iter().enumerate() {
                for i in 0..64 {
                    block[64 * h + i] = q[i] & 15 | q[i + 64] << 4;
                }
                for i in 0..32 {
                    let high = |at: usize| q[i + at] >> 4 & 3;
                    block[128 + 32 * h + i] = high(0) | high(32) << 2 | high(64) << 4 | high(96) << 6;
                }
            }
            for j in 0..Q6_PARTS {
                block[192 + j] = new.scales[j][lane] as i8 as u8;
            }
            put_half(block, Q6_SCALE, new.d[lane]);
        }
    }
}
