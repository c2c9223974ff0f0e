//! AVX2, FMA and F16C: a vector is two registers.

use std::arch::x86_64::*;

use super::{LANES, Simd, opaque};

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Avx2> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }

    /// The same, if the processor has AVX-VNNI as well: the products of bytes on registers of 256 bits.
    pub(super) fn detect_vnni() -> Option<Avx2> {
        Avx2::detect().filter(|_| is_x86_feature_detected!("avxvnni"))
    }

    /// # Safety
    /// `detect` gave a token before.
    pub(crate) unsafe fn assume() -> Avx2 {
        Avx2(())
    }
}

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub struct Pair(__m256, __m256);

/// Lanes 0..8 and 8..16 of whole numbers or bytes.
#[derive(Clone, Copy)]
pub struct Bytes(__m256i, __m256i);

/// All ones in the lanes below `n`.
#[inline(always)]
unsafe fn first(n: usize) -> __m256i {
    const ONES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: 8 numbers from index 0..=8 of 16.
    unsafe { _mm256_loadu_si256(ONES.as_ptr().add(8 - n.min(8)).cast()) }
}

/// The nearest bf16 of each lane, ties to even, in the low half of the lane; subnormal numbers become zero.
#[inline(always)]
unsafe fn round_bf16(x: __m256) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let parity = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(parity, _mm256_set1_epi32(0x7fff)));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        let rounded = _mm256_blendv_epi8(rounded, quiet, nan);
        let exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f80_0000));
        let small = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
        let sign = _mm256_and_si256(bits, _mm256_set1_epi32(i32::MIN));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, sign, small))
    }
}

/// The 16 numbers of two registers as 16 adjacent bf16 numbers.
#[inline(always)]
unsafe fn compact(lo: __m256, hi: __m256) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let packed = _mm256_packus_epi32(round_bf16(lo), round_bf16(hi));
        _mm256_castsi256_ps(_mm256_permute4x64_epi64::<0b11_01_10_00>(packed))
    }
}

#[inline(always)]
unsafe fn interleave(even: __m256, odd: __m256) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_castsi256_ps(_mm256_or_si256(round_bf16(even), _mm256_slli_epi32::<16>(round_bf16(odd)))) }
}

#[inline(always)]
unsafe fn even(units: __m256) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(units))) }
}

#[inline(always)]
unsafe fn odd(units: __m256) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_and_ps(units, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32))) }
}

/// `2^n` of 8 lanes for integral `n` in −126..=127.
#[inline(always)]
unsafe fn exp2_integral(n: __m256) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}

/// `c + a.odd·b.odd + a.even·b.even` of 8 lanes.
#[inline(always)]
unsafe fn bf16_dot(a: __m256, b: __m256, c: __m256) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_fmadd_ps(even(a), even(b), _mm256_fmadd_ps(odd(a), odd(b), c)) }
}

/// 8 numbers of f16.
#[inline(always)]
unsafe fn load_f16(p: *const u8) -> __m256 {
    // SAFETY: the caller has F16C, and 16 readable bytes at `p`.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
}

/// 8 whole numbers of one byte without a sign.
#[inline(always)]
unsafe fn load_u8(p: *const u8) -> __m256 {
    // SAFETY: the caller has AVX2, and 8 readable bytes at `p`.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) }
}

/// 8 whole numbers of one byte with a sign.
#[inline(always)]
unsafe fn load_i8(p: *const u8) -> __m256 {
    // SAFETY: the caller has AVX2, and 8 readable bytes at `p`.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
}

/// 8 lanes rounded to whole numbers of 16 bits.
#[inline(always)]
unsafe fn to_i16(v: __m256) -> __m128i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let v = _mm256_cvtps_epi32(v);
        _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v))
    }
}

/// Four products of bytes a lane, in one sum.
#[inline(always)]
unsafe fn byte_products(u: __m256i, a: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(u, a), _mm256_set1_epi16(1)) }
}

/// `sum + Σ u·a` of the four bytes of a lane; two products of `u` of eight bits do not fit sixteen, so those of even and of
/// odd bytes are taken one by one where `WIDE`.
#[inline(always)]
unsafe fn byte_dot<const WIDE: bool>(u: __m256i, a: __m256i, sum: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        if !WIDE {
            return _mm256_add_epi32(sum, byte_products(u, a));
        }
        let even = _mm256_set1_epi16(0xff);
        let sum = _mm256_add_epi32(sum, byte_products(_mm256_and_si256(u, even), a));
        _mm256_add_epi32(sum, byte_products(_mm256_andnot_si256(even, u), a))
    }
}

#[inline(always)]
unsafe fn pd(x: __m256) -> __m256d {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_castps_pd(x) }
}

#[inline(always)]
unsafe fn ps(x: __m256d) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_castpd_ps(x) }
}

/// Transposes 8 rows of 8.
#[inline(always)]
unsafe fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller has AVX2.
    unsafe {
        let mut u = r;
        for i in 0..2 {
            let [a, b, c, d] = [r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]];
            let (ab_lo, ab_hi) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd_lo, cd_hi) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            u[4 * i] = ps(_mm256_unpacklo_pd(pd(ab_lo), pd(cd_lo)));
            u[4 * i + 1] = ps(_mm256_unpackhi_pd(pd(ab_lo), pd(cd_lo)));
            u[4 * i + 2] = ps(_mm256_unpacklo_pd(pd(ab_hi), pd(cd_hi)));
            u[4 * i + 3] = ps(_mm256_unpackhi_pd(pd(ab_hi), pd(cd_hi)));
        }
        let mut out = u;
        for j in 0..4 {
            out[j] = _mm256_permute2f128_ps::<0x20>(u[j], u[4 + j]);
            out[4 + j] = _mm256_permute2f128_ps::<0x31>(u[j], u[4 + j]);
        }
        out
    }
}

// SAFETY (all blocks below): the token proves the features; pointers come from slices whose length was checked, or carry
// the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type V = Pair;
    type B = Bytes;

    #[inline(always)]
    fn zero(self) -> Pair {
        self.splat(0.0)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        unsafe { Pair(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> Pair {
        unsafe { self.load_ptr(x[..LANES].as_ptr()) }
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> Pair {
        let n = x.len();
        unsafe {
            let hi = if n > 8 { _mm256_maskload_ps(x.as_ptr().add(8), first(n - 8)) } else { _mm256_setzero_ps() };
            Pair(_mm256_maskload_ps(x.as_ptr(), first(n)), hi)
        }
    }
    #[inline(always)]
    fn store(self, v: Pair, y: &mut [f32]) {
        unsafe { self.store_ptr(v, y[..LANES].as_mut_ptr()) }
    }
    #[inline(always)]
    fn store_partial(self, v: Pair, y: &mut [f32]) {
        let n = y.len();
        unsafe {
            _mm256_maskstore_ps(y.as_mut_ptr(), first(n), v.0);
            if n > 8 {
                _mm256_maskstore_ps(y.as_mut_ptr().add(8), first(n - 8), v.1);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> Pair {
        unsafe { Pair(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: Pair, p: *mut f32) {
        unsafe {
            p.cast::<__m256>().write_unaligned(v.0);
            p.add(8).cast::<__m256>().write_unaligned(v.1);
        }
    }
    #[inline(always)]
    fn again(self, p: *const f32) -> *const f32 {
        p.with_addr(opaque(p.addr()))
    }
    #[inline(always)]
    unsafe fn splat_ptr(self, p: *const u32) -> Pair {
        unsafe {
            let x = _mm256_broadcast_ss(&*p.cast::<f32>());
            Pair(x, x)
        }
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        unsafe { Pair(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        unsafe { Pair(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        unsafe { Pair(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        unsafe { Pair(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        unsafe { Pair(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn sqrt(self, a: Pair) -> Pair {
        unsafe { Pair(_mm256_sqrt_ps(a.0), _mm256_sqrt_ps(a.1)) }
    }
    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        unsafe { Pair(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        unsafe { Pair(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn round(self, a: Pair) -> Pair {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { Pair(_mm256_round_ps::<NEAREST>(a.0), _mm256_round_ps::<NEAREST>(a.1)) }
    }
    #[inline(always)]
    fn exp2_integral(self, n: Pair) -> Pair {
        unsafe { Pair(exp2_integral(n.0), exp2_integral(n.1)) }
    }
    #[inline(always)]
    fn select_lt(self, a: Pair, b: Pair, yes: Pair, no: Pair) -> Pair {
        unsafe {
            let lo = _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0));
            let hi = _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1));
            Pair(lo, hi)
        }
    }
    #[inline(always)]
    fn reduce_add(self, a: Pair) -> f32 {
        unsafe {
            let v = _mm256_add_ps(a.0, a.1);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, a: Pair) -> f32 {
        unsafe {
            let v = _mm256_max_ps(a.0, a.1);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn round_bf16(self, x: Pair) -> Pair {
        unsafe {
            let (lo, hi) = (_mm256_slli_epi32::<16>(round_bf16(x.0)), _mm256_slli_epi32::<16>(round_bf16(x.1)));
            Pair(_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi))
        }
    }
    #[inline(always)]
    fn bf16_pairs(self, lo: Pair, hi: Pair) -> Pair {
        unsafe { Pair(compact(lo.0, lo.1), compact(hi.0, hi.1)) }
    }
    #[inline(always)]
    fn bf16_interleave(self, even: Pair, odd: Pair) -> Pair {
        unsafe { Pair(interleave(even.0, odd.0), interleave(even.1, odd.1)) }
    }
    #[inline(always)]
    fn bf16_even(self, units: Pair) -> Pair {
        unsafe { Pair(even(units.0), even(units.1)) }
    }
    #[inline(always)]
    fn bf16_odd(self, units: Pair) -> Pair {
        unsafe { Pair(odd(units.0), odd(units.1)) }
    }
    #[inline(always)]
    fn bf16_dot(self, a: Pair, b: Pair, c: Pair) -> Pair {
        unsafe { Pair(bf16_dot(a.0, b.0, c.0), bf16_dot(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [Pair; LANES]) {
        unsafe {
            // Quarters, in place: no closure, which would be a function without the features.
            let zero = _mm256_setzero_ps();
            let (mut a, mut b, mut c, mut d) = ([zero; 8], [zero; 8], [zero; 8], [zero; 8]);
            for i in 0..8 {
                (a[i], b[i]) = (rows[i].0, rows[i].1);
                (c[i], d[i]) = (rows[8 + i].0, rows[8 + i].1);
            }
            let (a, b, c, d) = (transpose8(a), transpose8(b), transpose8(c), transpose8(d));
            for i in 0..8 {
                rows[i] = Pair(a[i], c[i]);
                rows[8 + i] = Pair(b[i], d[i]);
            }
        }
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> Bytes {
        unsafe { Bytes(_mm256_set1_epi32(x), _mm256_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> Bytes {
        unsafe { Bytes(_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())) }
    }
    #[inline(always)]
    unsafe fn splat_bytes(self, p: *const u8) -> Bytes {
        self.splat_int(unsafe { p.cast::<i32>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> Pair {
        unsafe { Pair(load_f16(p), load_f16(p.add(16))) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> Pair {
        unsafe { Pair(load_u8(p), load_u8(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> Pair {
        unsafe { Pair(load_i8(p), load_i8(p.add(8))) }
    }
    #[inline(always)]
    fn store_i8(self, v: Pair, y: &mut [i8; LANES]) {
        unsafe { _mm_storeu_si128(y.as_mut_ptr().cast(), _mm_packs_epi16(to_i16(v.0), to_i16(v.1))) }
    }
    #[inline(always)]
    fn and(self, a: Bytes, b: Bytes) -> Bytes {
        unsafe { Bytes(_mm256_and_si256(a.0, b.0), _mm256_and_si256(a.1, b.1)) }
    }
    #[inline(always)]
    fn or(self, a: Bytes, b: Bytes) -> Bytes {
        unsafe { Bytes(_mm256_or_si256(a.0, b.0), _mm256_or_si256(a.1, b.1)) }
    }
    #[inline(always)]
    fn shift_left(self, a: Bytes, n: u32) -> Bytes {
        unsafe {
            let n = _mm256_set1_epi32(n as i32);
            Bytes(_mm256_sllv_epi32(a.0, n), _mm256_sllv_epi32(a.1, n))
        }
    }
    #[inline(always)]
    fn shift_right(self, a: Bytes, n: u32) -> Bytes {
        unsafe {
            let n = _mm256_set1_epi32(n as i32);
            Bytes(_mm256_srlv_epi32(a.0, n), _mm256_srlv_epi32(a.1, n))
        }
    }
    #[inline(always)]
    fn byte_dot<const WIDE: bool>(self, u: Bytes, a: Bytes, sum: Bytes) -> Bytes {
        unsafe { Bytes(byte_dot::<WIDE>(u.0, a.0, sum.0), byte_dot::<WIDE>(u.1, a.1, sum.1)) }
    }
    #[inline(always)]
    fn to_f32(self, a: Bytes) -> Pair {
        unsafe { Pair(_mm256_cvtepi32_ps(a.0), _mm256_cvtepi32_ps(a.1)) }
    }
}
