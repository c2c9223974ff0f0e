//! The tile on registers of 256 bits: AVX2, with the products of AVX-VNNI where the processor has them.
//!
//! Sixteen registers hold the quants of eight rows of the panel, unpacked once for all rows of the tile, and little more; so
//! a row's sum of a part is made at once. Without AVX-VNNI products of bytes are added
//! in 16 bits as long as they fit: all eight of four-bit quants, four of five-bit ones, two of six.

use std::arch::x86_64::*;

use crate::simd::{fetch, opaque};

use super::super::input::{SUMS16_AT, block_bytes, scale_at, sum_at, sums_at};
use super::super::layout::{GROUP_BYTES, Layout, ROWS};
use super::Ahead;

/// Rows of the panel in a register.
const WIDTH: usize = 8;
/// Registers of a panel's rows.
const COLUMNS: usize = ROWS / WIDTH;
/// Most groups of four numbers in a part.
const GROUPS: usize = 8;

/// A tile of `R` rows and all columns of a panel; arguments as of [`super::Kernel`].
///
/// The quants of eight rows of the panel are all that the registers hold, sums lie in memory. The loop over the registers of
/// the panel is not written out.
///
/// # Safety
/// `x`, `w` and `y` hold what the shape says; the processor has AVX2, FMA and F16C, and AVX-VNNI where `VNNI`.
#[inline(always)]
pub(super) unsafe fn tile<L: Layout, const R: usize, const VNNI: bool>(
    blocks: usize,
    x: &[*const u8],
    w: *const u8,
    y: *mut f32,
    ldy: usize,
    cols: usize,
    accumulate: bool,
    ahead: Ahead,
) {
    // SAFETY: all offsets are inside the panel, the rows and the tile of y, by the caller's promise.
    unsafe {
        let mut rows = [std::ptr::null(); R];
        rows.copy_from_slice(&x[..R]);
        let mut tile = [[0.0f32; ROWS]; R];
        let sums = tile.as_mut_ptr().cast::<f32>();
        if accumulate {
            for r in 0..R {
                std::ptr::copy_nonoverlapping(y.add(r * ldy), sums.add(r * ROWS), cols);
            }
        }
        let columns = opaque(COLUMNS);
        let (mut next, step) = (ahead.next, ahead.step / COLUMNS);
        for block in 0..blocks {
            let at = block * block_bytes(L::BLOCK);
            let w = w.add(block * L::BLOCK_BYTES);
            for v in 0..columns {
                for line in 0..(L::BLOCK_BYTES / COLUMNS).div_ceil(64) {
                    fetch(next.wrapping_add(64 * line));
                }
                next = next.wrapping_add(step);
                let sums = sums.add(v * WIDTH);
                if L::SCALES {
                    several_parts::<L, R, VNNI>(&rows, at, w, v, sums);
                } else {
                    one_part::<L, R, VNNI>(&rows, at, w, v, sums);
                }
            }
        }
        for r in 0..R {
            std::ptr::copy_nonoverlapping(sums.add(r * ROWS), y.add(r * ldy), cols);
        }
    }
}

/// Adds the products of a block that is one part to the sums of eight rows of the panel, for each row [`ROWS`] numbers
/// further on.
///
/// # Safety
/// As [`tile`]; `w` points at the block of the panel, which begins `at` bytes into each row.
#[inline(always)]
unsafe fn one_part<L: Layout, const R: usize, const VNNI: bool>(
    x: &[*const u8; R],
    at: usize,
    w: *const u8,
    v: usize,
    sums: *mut f32,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        let quants = quants::<L>(w.add(L::PARTS_AT + 4 * v * WIDTH));
        let scale = load_f16(w.add(2 * v * WIDTH));
        let minimum = if L::MINIMUM { load_f16(w.add(2 * ROWS + 2 * v * WIDTH)) } else { _mm256_setzero_ps() };
        // Measured: written out for one sum of sixteen bits, a loop for many instructions a row.
        let rows = if L::WIDE && !VNNI { opaque(R) } else { R };
        for r in 0..rows {
            one_after_the_other();
            let x = x.as_ptr().add(r).read().add(at);
            let start = match L::OFFSET {
                // Without AVX-VNNI quants of eight bits are taken with their sign.
                Some(offset) if VNNI || !L::WIDE => splat_int(x.add(sum_at(offset))),
                _ => _mm256_setzero_si256(),
            };
            let mut b = _mm256_mul_ps(_mm256_cvtepi32_ps(dot::<L, VNNI>(&quants, x, start)), scale);
            if L::MINIMUM {
                b = _mm256_fmadd_ps(minimum, _mm256_cvtepi32_ps(splat_int(x.add(sums_at(L::BLOCK)))), b);
            }
            let to = sums.add(r * ROWS);
            let d = _mm256_broadcast_ss(&*x.add(scale_at(L::BLOCK)).cast());
            _mm256_storeu_ps(to, _mm256_fmadd_ps(b, d, _mm256_loadu_ps(to)));
        }
    }
}

/// The same of a block of several parts with scales of their own.
///
/// # Safety
/// As [`one_part`].
#[inline(always)]
unsafe fn several_parts<L: Layout, const R: usize, const VNNI: bool>(
    x: &[*const u8; R],
    at: usize,
    w: *const u8,
    v: usize,
    sums: *mut f32,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut products = [[0.0f32; WIDTH]; R];
        let x = &x[..opaque(R).min(R)];
        for part in 0..L::PARTS {
            let quants = quants::<L>(w.add(L::PARTS_AT + part * L::PART_BYTES + 4 * v * WIDTH));
            let scale = scale::<L>(w.add(L::SCALES_AT + part * ROWS + v * WIDTH));
            for (x, products) in x.iter().zip(&mut products) {
                let x = x.add(at);
                let start = match L::OFFSET {
                    Some(_) => splat_int(x.add(SUMS16_AT + 4 * part)),
                    None => _mm256_setzero_si256(),
                };
                let sum = _mm256_cvtepi32_ps(dot::<L, VNNI>(&quants, x.add(part * L::PART), start));
                let to = products.as_mut_ptr();
                _mm256_storeu_ps(to, _mm256_fmadd_ps(scale, sum, _mm256_loadu_ps(to)));
            }
        }
        let scale = load_f16(w.add(2 * v * WIDTH));
        let minimum = if L::MINIMUM { load_f16(w.add(2 * ROWS + 2 * v * WIDTH)) } else { _mm256_setzero_ps() };
        for (r, (x, products)) in x.iter().zip(&products).enumerate() {
            let x = x.add(at);
            let mut b = _mm256_mul_ps(_mm256_loadu_ps(products.as_ptr()), scale);
            if L::MINIMUM {
                let taken = minimum_dot::<VNNI>(w.add(L::MINIMA_AT + 4 * v * WIDTH), x.add(sums_at(L::BLOCK)));
                b = _mm256_fmadd_ps(minimum, _mm256_cvtepi32_ps(taken), b);
            }
            let to = sums.add(r * ROWS);
            let d = _mm256_broadcast_ss(&*x.add(scale_at(L::BLOCK)).cast());
            _mm256_storeu_ps(to, _mm256_fmadd_ps(b, d, _mm256_loadu_ps(to)));
        }
    }
}

/// The quants of a part, four of each of eight rows a register.
///
/// # Safety
/// `part` points at the first of the rows in a part of layout `L`.
#[inline(always)]
unsafe fn quants<L: Layout>(part: *const u8) -> [__m256i; GROUPS] {
    // SAFETY: inside the part by the caller's promise.
    unsafe {
        let mut quants = [_mm256_setzero_si256(); GROUPS];
        let groups = part.add(L::PLANE_BYTES);
        if L::BITS == 8 {
            for g in 0..L::PART / 4 {
                quants[g] = _mm256_loadu_si256(groups.add(g * GROUP_BYTES).cast());
            }
            return quants;
        }
        let low = _mm256_set1_epi8(0x0f);
        let half = L::PART / 8;
        for g in 0..half {
            let bytes = _mm256_loadu_si256(groups.add(g * GROUP_BYTES).cast());
            quants[g] = _mm256_and_si256(bytes, low);
            quants[g + half] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low);
        }
        if L::PLANE_BYTES > 0 {
            let plane = _mm256_loadu_si256(part.cast());
            // Bits of the plane to where a quant has its fifth; those of neighbours go under the mask.
            let (bits, mask) = if L::BITS == 5 { (1, _mm256_set1_epi8(0x10)) } else { (2, _mm256_set1_epi8(0x30)) };
            for g in 0..2 * half {
                let by = bits * g as i32;
                let moved = if by <= 4 {
                    _mm256_sll_epi16(plane, _mm_cvtsi32_si128(4 - by))
                } else {
                    _mm256_srl_epi16(plane, _mm_cvtsi32_si128(by - 4))
                };
                quants[g] = _mm256_or_si256(quants[g], _mm256_and_si256(moved, mask));
            }
        }
        quants
    }
}

/// `start + Σ q·a` over a part.
///
/// # Safety
/// `a` points at the part's numbers in a row.
#[inline(always)]
unsafe fn dot<L: Layout, const VNNI: bool>(quants: &[__m256i; GROUPS], a: *const u8, start: __m256i) -> __m256i {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut sum = start;
        if VNNI {
            for g in 0..L::PART / 4 {
                sum = _mm256_dpbusd_avx_epi32(sum, quants[g], splat_int(a.add(4 * g)));
            }
            return sum;
        }
        let one = _mm256_set1_epi16(1);
        if L::WIDE {
            for g in 0..L::PART / 4 {
                // The packed quant is 128 more than the number; |number| ≤ 128 and |a| ≤ 127: two products fit 16 bits.
                let number = _mm256_xor_si256(quants[g], _mm256_set1_epi8(i8::MIN));
                let a = _mm256_sign_epi8(splat_int(a.add(4 * g)), number);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(number), a);
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, one));
            }
            return sum;
        }
        // So many pairs of products fit 16 bits: 8·2·15·127, 4·2·31·127 and 2·2·63·127 are below 2^15.
        let fit = match L::BITS {
            4 => 8,
            5 => 4,
            _ => 2,
        };
        for first in (0..L::PART / 4).step_by(fit) {
            let mut pairs = _mm256_maddubs_epi16(quants[first], splat_int(a.add(4 * first)));
            for g in first + 1..first + fit {
                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(quants[g], splat_int(a.add(4 * g))));
            }
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, one));
        }
        sum
    }
}

/// `−Σ minimum·Σa` over the eight parts of a block, from sums in two parts.
///
/// # Safety
/// `minima` points at those of eight rows of the panel, `sums` at the sums of a long block.
#[inline(always)]
unsafe fn minimum_dot<const VNNI: bool>(minima: *const u8, sums: *const u8) -> __m256i {
    // SAFETY: by the caller's promise.
    unsafe {
        let front = _mm256_loadu_si256(minima.cast());
        let back = _mm256_loadu_si256(minima.add(4 * ROWS).cast());
        let high =
            pair_dot::<VNNI>(front, splat_int(sums.add(8)), back, splat_int(sums.add(12)), _mm256_setzero_si256());
        pair_dot::<VNNI>(front, splat_int(sums), back, splat_int(sums.add(4)), _mm256_slli_epi32::<6>(high))
    }
}

/// `sum + Σ u·a + Σ v·b` of the four bytes of a lane; `u` and `v` are below 64, `a` and `b` in −64..64.
///
/// # Safety
/// The processor has the instructions.
#[inline(always)]
unsafe fn pair_dot<const VNNI: bool>(u: __m256i, a: __m256i, v: __m256i, b: __m256i, sum: __m256i) -> __m256i {
    // SAFETY: by the caller's promise.
    unsafe {
        if VNNI {
            return _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(sum, u, a), v, b);
        }
        let pairs = _mm256_add_epi16(_mm256_maddubs_epi16(u, a), _mm256_maddubs_epi16(v, b));
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// What is loaded and stored after this is loaded and stored after what came before: the compiler does not begin with
/// several rows at once, for which there are no registers. The processor does.
#[inline(always)]
fn one_after_the_other() {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("", options(nostack, preserves_flags)) };
}

/// Eight scales of a part.
///
/// # Safety
/// 8 readable bytes at `p`.
#[inline(always)]
unsafe fn scale<L: Layout>(p: *const u8) -> __m256 {
    // SAFETY: by the caller's promise.
    unsafe {
        let bytes = _mm_loadl_epi64(p.cast());
        _mm256_cvtepi32_ps(if L::MINIMUM { _mm256_cvtepu8_epi32(bytes) } else { _mm256_cvtepi8_epi32(bytes) })
    }
}

/// # Safety
/// 16 readable bytes at `p`.
#[inline(always)]
unsafe fn load_f16(p: *const u8) -> __m256 {
    // SAFETY: by the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
}

/// All lanes the four bytes at `p`.
///
/// # Safety
/// 4 readable bytes at `p`.
#[inline(always)]
unsafe fn splat_int(p: *const u8) -> __m256i {
    // SAFETY: by the caller's promise.
    unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
}
