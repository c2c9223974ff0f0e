//! The innermost loop: a tile of the product in registers.
//!
//! With quants `q`, activations `a`, offset `o` and the scales `d_w`, `d_a` of a block, a number of the product is the chain
//!
//! `y = fma(b, d_a, y)` over the blocks in order, where `b` is, with `S = Σ (q − o)·a` of a part, a whole number,
//!
//! | formats | b |
//! |---|---|
//! | Q4_0 Q5_0 Q8_0 | `d_w·S` |
//! | Q4_1 Q5_1 | `fma(−m, −Σa, d_w·S)` |
//! | Q6_K | `d_w·t`, `t = fma(scale, S, t)` over the parts in order |
//! | Q4_K Q5_K | `fma(dmin, M, d_w·t)`, `M = −Σ minimum·Σa` over the parts, a whole number |
//!
//! in f32, each step rounded once, whole numbers rounded to f32 first. That is the whole definition: sums of whole numbers
//! are exact in any order, and nothing else depends on the rows of the tile.

#[cfg(target_arch = "x86_64")]
mod narrow;

#[cfg(target_arch = "x86_64")]
use crate::simd::Avx512;
#[cfg(target_arch = "aarch64")]
use crate::simd::Neon;
use crate::simd::{Isa, LANES, Scalar, Simd, fetch};

use super::super::BlockFormat;
use super::input::{SUMS16_AT, block_bytes, scale_at, sum_at, sums_at};
use super::layout::{self, Layout, ROWS, quants, with_layout};

/// Most rows of activations in a tile: 6 × 2 sums of bytes and as many of floats, 2 vectors of weights and one of
/// activations are 27 of 32 registers, the rest is for unpacking.
pub(crate) const TILE_ROWS: usize = 6;
/// How many bytes before their use weights are fetched: more than a page, so that the hardware's own prefetching, which
/// stops at every page, finds the next one begun.
pub(crate) const AHEAD: usize = 6144;

/// Weights to fetch during a product: with each part of a block those from `next` on, which then moves on.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    next: *const u8,
    /// Bytes that come to a block.
    step: usize,
}

impl Ahead {
    /// Tile `tile` of `tiles` with the panel `panel` of `blocks` blocks: when it is the only one, what it will need itself, else its share of
    /// the next panel, which then is there for all of its tiles.
    pub(crate) fn new(panel: &[u8], blocks: usize, tile: usize, tiles: usize) -> Ahead {
        let start = if tiles == 1 { AHEAD } else { panel.len() + panel.len() * tile / tiles };
        Ahead { next: panel.as_ptr().wrapping_add(start), step: panel.len() / blocks.max(1) / tiles }
    }
}

/// `y (+)= x·Wᵀ` for some rows and one panel.
///
/// Arguments: blocks of the contraction, the rows of activations, the panel, y, its row stride, columns of y (1..=32),
/// whether y is added to, what to fetch meanwhile.
pub(crate) type Kernel = unsafe fn(usize, &[*const u8], *const u8, *mut f32, usize, usize, bool, Ahead);

/// A tile of `R` rows and `C` vectors of columns.
///
/// # Safety
/// `x`, `w` and `y` hold what the shape says; `cols` is 1..=C * LANES; `w` points `first` vectors into the rows of a panel.
#[inline(always)]
unsafe fn tile<S: Simd, L: Layout, const R: usize, const C: usize>(
    s: S,
    blocks: usize,
    x: &[*const u8],
    w: *const u8,
    first: usize,
    y: *mut f32,
    ldy: usize,
    cols: usize,
    accumulate: bool,
    ahead: Ahead,
) {
    // SAFETY: all offsets are inside the panel, the rows and the tile of y, by the caller's promise.
    unsafe {
        let x: [*const u8; R] = std::array::from_fn(|r| x[r]);
        let whole = cols == C * LANES;
        let mut sums = [[s.zero(); C]; R];
        if accumulate {
            for r in 0..R {
                for v in 0..C {
                    let at = y.add(r * ldy + v * LANES);
                    sums[r][v] = if whole { s.load_ptr(at) } else { s.load_partial(rest(y, r * ldy, v, cols)) };
                }
            }
        }
        let (mut next, step) = (ahead.next, ahead.step / L::PARTS);
        for block in 0..blocks {
            let at = block * block_bytes(L::BLOCK);
            let w = w.add(block * L::BLOCK_BYTES);
            let mut products = [[s.zero(); C]; R];
            for part in 0..L::PARTS {
                let dots =
                    part_dots::<S, L, R, C>(s, &x, at, w.add(L::PARTS_AT + part * L::PART_BYTES), first, part, next);
                next = next.wrapping_add(step);
                for v in 0..C {
                    let lane = (first + v) * LANES;
                    if !L::SCALES {
                        let d = s.load_f16(w.add(2 * lane));
                        for r in 0..R {
                            products[r][v] = s.mul(s.to_f32(dots[r][v]), d);
                        }
                        continue;
                    }
                    let scales = w.add(L::SCALES_AT + part * ROWS + lane);
                    let scale = if L::MINIMUM { s.load_u8(scales) } else { s.load_i8(scales) };
                    for r in 0..R {
                        products[r][v] = s.fma(scale, s.to_f32(dots[r][v]), products[r][v]);
                    }
                }
            }
            for v in 0..C {
                let lane = (first + v) * LANES;
                if L::SCALES {
                    let d = s.load_f16(w.add(2 * lane));
                    for r in 0..R {
                        products[r][v] = s.mul(products[r][v], d);
                    }
                }
                if L::MINIMUM {
                    let d = s.load_f16(w.add(2 * ROWS + 2 * lane));
                    let minima = w.add(L::MINIMA_AT + 4 * lane);
                    for r in 0..R {
                        let sums = x[r].add(at + sums_at(L::BLOCK));
                        let taken = if L::SCALES { minimum_dot(s, minima, sums) } else { s.splat_bytes(sums) };
                        products[r][v] = s.fma(d, s.to_f32(taken), products[r][v]);
                    }
                }
            }
            for r in 0..R {
                let d = s.splat_ptr(x[r].add(at + scale_at(L::BLOCK)).cast());
                for v in 0..C {
                    sums[r][v] = s.fma(products[r][v], d, sums[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..C {
                if whole {
                    s.store_ptr(sums[r][v], y.add(r * ldy + v * LANES));
                } else {
                    s.store_partial(sums[r][v], rest(y, r * ldy, v, cols));
                }
            }
        }
    }
}

/// `Σ (q − o)·a` over a part; `at` is where the block lies in the rows of activations, `next` the weights to fetch meanwhile.
///
/// # Safety
/// As [`tile`]; `w` points at the part.
#[inline(always)]
unsafe fn part_dots<S: Simd, L: Layout, const R: usize, const C: usize>(
    s: S,
    x: &[*const u8; R],
    at: usize,
    w: *const u8,
    first: usize,
    part: usize,
    next: *const u8,
) -> [[S::B; C]; R] {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut dots = [[s.splat_int(0); C]; R];
        if let Some(offset) = L::OFFSET {
            for r in 0..R {
                let sum = if L::SCALES { SUMS16_AT + 4 * part } else { sum_at(offset) };
                dots[r] = [s.splat_bytes(x[r].add(at + sum)); C];
            }
        }
        // Written out, so that every shift is by a constant.
        group_dots::<S, L, R, C, 0>(s, x, at + part * L::PART, w, first, next, &mut dots);
        group_dots::<S, L, R, C, 1>(s, x, at + part * L::PART, w, first, next, &mut dots);
        if L::PART == 32 {
            group_dots::<S, L, R, C, 2>(s, x, at + part * L::PART, w, first, next, &mut dots);
            group_dots::<S, L, R, C, 3>(s, x, at + part * L::PART, w, first, next, &mut dots);
        }
        dots
    }
}

/// `Σ q·a` over groups `G` and `G + half` of a part of twice `half` groups; `at` is where the part lies in the rows of
/// activations.
///
/// # Safety
/// As [`tile`]; `w` points at the part.
#[inline(always)]
unsafe fn group_dots<S: Simd, L: Layout, const R: usize, const C: usize, const G: usize>(
    s: S,
    x: &[*const u8; R],
    at: usize,
    w: *const u8,
    first: usize,
    next: *const u8,
    dots: &mut [[S::B; C]; R],
) {
    let half = L::PART / 8;
    // An even stream of lines between the products, whatever a block is made of: bursts of them would wait for each other.
    let lines = (L::BLOCK_BYTES / L::PARTS).div_ceil(64);
    for line in lines * G / half..lines * (G + 1) / half {
        fetch(next.wrapping_add(64 * line));
    }
    // SAFETY: by the caller's promise.
    unsafe {
        let mut q = [[s.splat_int(0); 2]; C];
        for v in 0..C {
            q[v] = quants::<S, L>(s, w.add((first + v) * 64), G);
        }
        for side in 0..2 {
            for r in 0..R {
                let a = s.splat_bytes(x[r].add(at + 4 * (G + side * half)));
                for v in 0..C {
                    dots[r][v] = if L::WIDE {
                        s.byte_dot::<true>(q[v][side], a, dots[r][v])
                    } else {
                        s.byte_dot::<false>(q[v][side], a, dots[r][v])
                    };
                }
            }
        }
    }
}

/// `−Σ minimum·Σa` over the eight parts of a block, from sums in two parts.
///
/// # Safety
/// As [`tile`]; `minima` points at those of the rows, `sums` at the sums of a long block.
#[inline(always)]
unsafe fn minimum_dot<S: Simd>(s: S, minima: *const u8, sums: *const u8) -> S::B {
    // SAFETY: by the caller's promise.
    unsafe {
        let (front, back) = (s.load_bytes(minima), s.load_bytes(minima.add(4 * ROWS)));
        let high = s.byte_dot::<false>(front, s.splat_bytes(sums.add(8)), s.splat_int(0));
        let high = s.byte_dot::<false>(back, s.splat_bytes(sums.add(12)), high);
        let low = s.byte_dot::<false>(front, s.splat_bytes(sums), s.shift_left(high, 6));
        s.byte_dot::<false>(back, s.splat_bytes(sums.add(4)), low)
    }
}

/// The columns of a row that vector `v` covers: the last may be short or empty.
///
/// # Safety
/// `cols` writable numbers at `y + row`.
#[inline(always)]
unsafe fn rest<'a>(y: *mut f32, row: usize, v: usize, cols: usize) -> &'a mut [f32] {
    let start = (v * LANES).min(cols);
    let end = ((v + 1) * LANES).min(cols);
    // SAFETY: inside the row.
    unsafe { std::slice::from_raw_parts_mut(y.add(row + start), end - start) }
}

/// # Safety
/// As [`tile`]; the processor has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
unsafe fn avx512<L: Layout, const R: usize>(
    blocks: usize,
    x: &[*const u8],
    w: *const u8,
    y: *mut f32,
    ldy: usize,
    cols: usize,
    accumulate: bool,
    ahead: Ahead,
) {
    // SAFETY: this set of kernels is handed out only where the processor has its features; the rest as promised.
    unsafe { tile::<_, L, R, 2>(Avx512::assume(), blocks, x, w, 0, y, ldy, cols, accumulate, ahead) }
}

#[cfg(target_arch = "x86_64")]
macro_rules! narrow {
    ($name:ident, $features:literal, $vnni:literal) => {
        /// # Safety
        /// As [`tile`]; the processor has the features.
        #[target_feature(enable = $features)]
        unsafe fn $name<L: Layout, const R: usize>(
            blocks: usize,
            x: &[*const u8],
            w: *const u8,
            y: *mut f32,
            ldy: usize,
            cols: usize,
            accumulate: bool,
            ahead: Ahead,
        ) {
            // SAFETY: this set of kernels is handed out only where the processor has its features; the rest as promised.
            unsafe { narrow::tile::<L, R, $vnni>(blocks, x, w, y, ldy, cols, accumulate, ahead) }
        }
    };
}
#[cfg(target_arch = "x86_64")]
narrow!(avx2, "avx2,fma,f16c", false);
#[cfg(target_arch = "x86_64")]
narrow!(avx_vnni, "avx2,fma,f16c,avxvnni", true);

/// Two rows and sixteen columns: eight registers of sums of bytes and as many of floats, eight of quants, and one of
/// activations.
///
/// # Safety
/// As [`tile`]; the processor has NEON.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon<L: Layout>(
    blocks: usize,
    x: &[*const u8],
    w: *const u8,
    y: *mut f32,
    ldy: usize,
    cols: usize,
    accumulate: bool,
    ahead: Ahead,
) {
    // SAFETY: this set of kernels is handed out only where the processor has its features.
    let s = unsafe { Neon::assume() };
    for first in 0..cols.div_ceil(LANES) {
        let width = (cols - first * LANES).min(LANES);
        for r in (0..x.len()).step_by(2) {
            // SAFETY: as promised, narrowed.
            unsafe {
                let y = y.add(r * ldy + first * LANES);
                if x.len() - r > 1 {
                    tile::<_, L, 2, 1>(s, blocks, &x[r..], w, first, y, ldy, width, accumulate, ahead);
                } else {
                    tile::<_, L, 1, 1>(s, blocks, &x[r..], w, first, y, ldy, width, accumulate, ahead);
                }
            }
        }
    }
}

/// Row by row and sixteen columns.
///
/// # Safety
/// As [`tile`].
unsafe fn scalar<L: Layout>(
    blocks: usize,
    x: &[*const u8],
    w: *const u8,
    y: *mut f32,
    ldy: usize,
    cols: usize,
    accumulate: bool,
    ahead: Ahead,
) {
    let s = Scalar::new();
    for first in 0..cols.div_ceil(LANES) {
        let width = (cols - first * LANES).min(LANES);
        for r in 0..x.len() {
            // SAFETY: as promised, narrowed.
            unsafe {
                let y = y.add(r * ldy + first * LANES);
                tile::<_, L, 1, 1>(s, blocks, &x[r..], w, first, y, ldy, width, accumulate, ahead);
            }
        }
    }
}

/// The kernels for 1..=6 rows on the current instruction set.
pub(crate) fn kernels(format: BlockFormat) -> &'static [Kernel; TILE_ROWS + 1] {
    #[cfg(target_arch = "x86_64")]
    macro_rules! by_rows {
        ($name:ident, $layout:ty) => {
            &[
                $name::<$layout, 1> as Kernel,
                $name::<$layout, 1>,
                $name::<$layout, 2>,
                $name::<$layout, 3>,
                $name::<$layout, 4>,
                $name::<$layout, 5>,
                $name::<$layout, 6>,
            ]
        };
    }
    with_layout!(format, L => match Isa::current() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) | Isa::Avx512Bf16(_) => by_rows!(avx512, L),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni(_) => by_rows!(avx_vnni, L),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(_) => by_rows!(avx2, L),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(_) => &[neon::<L>; TILE_ROWS + 1],
        Isa::Scalar(_) => &[scalar::<L>; TILE_ROWS + 1],
    })
}
