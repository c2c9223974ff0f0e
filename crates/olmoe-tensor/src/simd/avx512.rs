//! AVX-512: a vector is one register.
//!
//! The instructions of the BF16 extension are used in one place only, [`Simd::bf16_pair_dot`]: on some processors they run at
//! a quarter of the speed of others, and many lack them.

use std::arch::x86_64::*;
use std::time::{Duration, Instant};

use super::{LANES, Simd};

/// Proof that the processor has AVX-512 F, BW, VL, DQ and VNNI.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Avx512> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("fma");
        has.then_some(Avx512(()))
    }

    /// # Safety
    /// `detect` gave a token before.
    pub(crate) unsafe fn assume() -> Avx512 {
        Avx512(())
    }

    /// The same, if the processor has BF16 as well.
    pub(super) fn detect_bf16() -> Option<Avx512> {
        Avx512::detect().filter(|_| is_x86_feature_detected!("avx512bf16"))
    }

    /// Whether an instruction on pairs of bf16 does at least as much in a second as multiply-adds of f32: it does on AMD's
    /// processors, on Intel's it has half of their speed.
    pub(super) fn pairs_are_fast(self) -> bool {
        const ROUNDS: usize = 500;
        let mut shortest = [Duration::MAX; 2];
        for _ in 0..5 {
            for (shortest, pairs) in shortest.iter_mut().zip([false, true]) {
                let start = Instant::now();
                // SAFETY: called only where `detect_bf16` gave the token.
                std::hint::black_box(unsafe { chains(std::hint::black_box(ROUNDS), pairs) });
                *shortest = start.elapsed().min(*shortest);
            }
        }
        // Two products each, where the other has one.
        let [single, pairs] = shortest;
        pairs < single * 3 / 2
    }
}

/// `rounds` times sixteen independent steps: of pairs of bf16, or multiply-adds.
#[target_feature(enable = "avx512f,avx512bf16")]
fn chains(rounds: usize, pairs: bool) -> f32 {
    let factor = std::hint::black_box(_mm512_set1_ps(1e-3));
    let mut sums = [factor; 16];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = if pairs {
                // SAFETY: 64 bytes seen as another type.
                let factor: __m512bh = unsafe { std::mem::transmute(factor) };
                _mm512_dpbf16_ps(*sum, factor, factor)
            } else {
                _mm512_fmadd_ps(factor, factor, *sum)
            };
        }
    }
    let mut total = sums[0];
    for sum in &sums[1..] {
        total = _mm512_add_ps(total, *sum);
    }
    _mm512_reduce_add_ps(total)
}

/// The nearest bf16 of each lane, ties to even, in the low half of the lane; subnormal numbers become zero.
#[inline(always)]
unsafe fn round_bf16(x: __m512) -> __m512i {
    // SAFETY: the caller has AVX-512.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let parity = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(parity, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
        let small = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f80_0000));
        let rounded = _mm512_mask_and_epi32(rounded, small, bits, _mm512_set1_epi32(i32::MIN));
        _mm512_srli_epi32::<16>(rounded)
    }
}

/// The mask of the first `n` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    if n >= LANES { !0 } else { (1 << n) - 1 }
}

/// The lower and upper half of a register.
#[inline(always)]
fn halves(a: __m512) -> (__m256, __m256) {
    // SAFETY: a plain reinterpretation of 64 bytes.
    unsafe { std::mem::transmute(a) }
}

#[inline(always)]
unsafe fn pd(x: __m512) -> __m512d {
    // SAFETY: the caller has AVX-512.
    unsafe { _mm512_castps_pd(x) }
}

#[inline(always)]
unsafe fn ps(x: __m512d) -> __m512 {
    // SAFETY: the caller has AVX-512.
    unsafe { _mm512_castpd_ps(x) }
}

// SAFETY (all blocks below): the token proves the features; pointers come from slices whose length was checked, or carry
// the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    type V = __m512;
    type B = __m512i;

    #[inline(always)]
    fn zero(self) -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m512 {
        unsafe { _mm512_loadu_ps(x[..LANES].as_ptr()) }
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(first(x.len()), x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m512, y: &mut [f32]) {
        unsafe { self.store_ptr(v, y[..LANES].as_mut_ptr()) }
    }
    #[inline(always)]
    fn store_partial(self, v: __m512, y: &mut [f32]) {
        unsafe { _mm512_mask_storeu_ps(y.as_mut_ptr(), first(y.len()), v) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: __m512, p: *mut f32) {
        unsafe { p.cast::<__m512>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn splat_ptr(self, p: *const u32) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_set1_epi32(p.read() as i32)) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT }>(a) }
    }
    #[inline(always)]
    fn exp2_integral(self, n: __m512) -> __m512 {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }
    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        let (lo, hi) = halves(a);
        unsafe {
            let v = _mm256_add_ps(lo, hi);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        let (lo, hi) = halves(a);
        unsafe {
            let v = _mm256_max_ps(lo, hi);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn round_bf16(self, x: __m512) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(round_bf16(x))) }
    }
    #[inline(always)]
    fn bf16_pairs(self, lo: __m512, hi: __m512) -> __m512 {
        unsafe {
            let (lo, hi) = (_mm512_cvtepi32_epi16(round_bf16(lo)), _mm512_cvtepi32_epi16(round_bf16(hi)));
            _mm512_castsi512_ps(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(lo), hi))
        }
    }
    #[inline(always)]
    fn bf16_interleave(self, even: __m512, odd: __m512) -> __m512 {
        unsafe {
            let odd = _mm512_slli_epi32::<16>(round_bf16(odd));
            _mm512_castsi512_ps(_mm512_or_si512(round_bf16(even), odd))
        }
    }
    #[inline(always)]
    fn bf16_even(self, units: __m512) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(units))) }
    }
    #[inline(always)]
    fn bf16_odd(self, units: __m512) -> __m512 {
        unsafe {
            let bits = _mm512_castps_si512(units);
            _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
        }
    }
    #[inline(always)]
    fn bf16_dot(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        let c = self.fma(self.bf16_odd(a), self.bf16_odd(b), c);
        self.fma(self.bf16_even(a), self.bf16_even(b), c)
    }
    #[inline(always)]
    unsafe fn bf16_pair_dot(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe {
            _mm512_dpbf16_ps(c, std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b))
        }
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [__m512; LANES]) {
        unsafe {
            // Pairs of rows, then fours, inside each 128-bit quarter; then the quarters.
            let mut t = *rows;
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            let mut u = t;
            for i in 0..4 {
                let [a, b, c, d] = [t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]];
                u[4 * i] = ps(_mm512_unpacklo_pd(pd(a), pd(c)));
                u[4 * i + 1] = ps(_mm512_unpackhi_pd(pd(a), pd(c)));
                u[4 * i + 2] = ps(_mm512_unpacklo_pd(pd(b), pd(d)));
                u[4 * i + 3] = ps(_mm512_unpackhi_pd(pd(b), pd(d)));
            }
            for j in 0..4 {
                let [a, b, c, d] = [u[j], u[4 + j], u[8 + j], u[12 + j]];
                let ab_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                let ab_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
                let cd_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
                let cd_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
                rows[j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_even, cd_even);
                rows[4 + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_odd, cd_odd);
                rows[8 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_even, cd_even);
                rows[12 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_odd, cd_odd);
            }
        }
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat_bytes(self, p: *const u8) -> __m512i {
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    fn store_i8(self, v: __m512, y: &mut [i8; LANES]) {
        unsafe { _mm_storeu_si128(y.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn shift_left(self, a: __m512i, n: u32) -> __m512i {
        unsafe { _mm512_sllv_epi32(a, _mm512_set1_epi32(n as i32)) }
    }
    #[inline(always)]
    fn shift_right(self, a: __m512i, n: u32) -> __m512i {
        unsafe { _mm512_srlv_epi32(a, _mm512_set1_epi32(n as i32)) }
    }
    #[inline(always)]
    fn byte_dot<const WIDE: bool>(self, u: __m512i, a: __m512i, sum: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, u, a) }
    }
    #[inline(always)]
    fn to_f32(self, a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
}
