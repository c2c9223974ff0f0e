//! NEON: a vector is four registers.
//!
//! Products of bytes are summed in pairs of 16 bits: the intrinsics of the dot product extension are not in stable Rust.
//! Where an operation makes a NaN of numbers, it is positive here and negative on x86-64; all else has the same bits.

use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

use super::{LANES, Simd, opaque};

/// Proof that the processor has NEON.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Neon> {
        is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }

    /// # Safety
    /// `detect` gave a token before.
    pub(crate) unsafe fn assume() -> Neon {
        Neon(())
    }
}

/// Lanes 0..4, 4..8, 8..12 and 12..16.
#[derive(Clone, Copy)]
pub struct Quad([float32x4_t; 4]);

/// The same lanes of whole numbers or bytes.
#[derive(Clone, Copy)]
pub struct Words([uint32x4_t; 4]);

/// An array of an expression for each of the four registers; no closure, which would be a function without the features.
macro_rules! each {
    ($i:ident => $value:expr) => {
        [each!(@ 0, $i, $value), each!(@ 1, $i, $value), each!(@ 2, $i, $value), each!(@ 3, $i, $value)]
    };
    (@ $n:literal, $i:ident, $value:expr) => {{
        let $i: usize = $n;
        $value
    }};
}

#[inline(always)]
unsafe fn bits(x: float32x4_t) -> uint32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vreinterpretq_u32_f32(x) }
}

#[inline(always)]
unsafe fn floats(x: uint32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vreinterpretq_f32_u32(x) }
}

/// `if a > b { a } else { b }`
#[inline(always)]
unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// The nearest bf16 of each lane, ties to even, in the high half of the lane, where the low one is of no meaning; subnormal
/// numbers become zero.
#[inline(always)]
unsafe fn round_bf16(x: float32x4_t) -> uint32x4_t {
    // SAFETY: the caller has NEON.
    unsafe {
        let bits = bits(x);
        let parity = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(bits, vaddq_u32(parity, vdupq_n_u32(0x7fff)));
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
        let rounded = vbslq_u32(vceqq_f32(x, x), rounded, quiet);
        let sign = vandq_u32(bits, vdupq_n_u32(0x8000_0000));
        vbslq_u32(vtstq_u32(bits, vdupq_n_u32(0x7f80_0000)), rounded, sign)
    }
}

/// The 8 numbers of two registers as 8 adjacent bf16 numbers.
#[inline(always)]
unsafe fn compact(lo: float32x4_t, hi: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe {
        let (lo, hi) = (vshrn_n_u32::<16>(round_bf16(lo)), vshrn_n_u32::<16>(round_bf16(hi)));
        vreinterpretq_f32_u16(vcombine_u16(lo, hi))
    }
}

#[inline(always)]
unsafe fn interleave(even: float32x4_t, odd: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { floats(vsriq_n_u32::<16>(round_bf16(odd), round_bf16(even))) }
}

#[inline(always)]
unsafe fn even(units: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { floats(vshlq_n_u32::<16>(bits(units))) }
}

#[inline(always)]
unsafe fn odd(units: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { floats(vandq_u32(bits(units), vdupq_n_u32(0xffff_0000))) }
}

/// `2^n` of 4 lanes for integral `n` in −126..=127.
#[inline(always)]
unsafe fn exp2_integral(n: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe {
        let biased = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
        vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
    }
}

/// `c + a.odd·b.odd + a.even·b.even` of 4 lanes.
#[inline(always)]
unsafe fn bf16_dot(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vfmaq_f32(vfmaq_f32(c, odd(a), odd(b)), even(a), even(b)) }
}

/// The 16 whole numbers of two registers.
#[inline(always)]
unsafe fn from_u16(x: [uint16x8_t; 2]) -> Quad {
    // SAFETY: the caller has NEON.
    unsafe {
        Quad([
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(x[0]))),
            vcvtq_f32_u32(vmovl_high_u16(x[0])),
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(x[1]))),
            vcvtq_f32_u32(vmovl_high_u16(x[1])),
        ])
    }
}

/// The same with a sign.
#[inline(always)]
unsafe fn from_i16(x: [int16x8_t; 2]) -> Quad {
    // SAFETY: the caller has NEON.
    unsafe {
        Quad([
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(x[0]))),
            vcvtq_f32_s32(vmovl_high_s16(x[0])),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(x[1]))),
            vcvtq_f32_s32(vmovl_high_s16(x[1])),
        ])
    }
}

/// 8 lanes rounded to whole numbers of 16 bits.
#[inline(always)]
unsafe fn to_i16(lo: float32x4_t, hi: float32x4_t) -> int16x8_t {
    // SAFETY: the caller has NEON.
    unsafe { vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(lo)), vcvtnq_s32_f32(hi)) }
}

/// `sum + Σ u·a` of the four bytes of a lane. The factors have a sign both, so 128 is taken from bytes `u` of eight bits and
/// added again as often as `Σ a` says; |u| ≤ 128 and |a| ≤ 127: two products fit 16 bits.
#[inline(always)]
unsafe fn byte_dot<const WIDE: bool>(u: uint32x4_t, a: uint32x4_t, sum: uint32x4_t) -> uint32x4_t {
    // SAFETY: the caller has NEON.
    unsafe {
        let mut u = vreinterpretq_s8_u32(u);
        let a = vreinterpretq_s8_u32(a);
        let mut sum = vreinterpretq_s32_u32(sum);
        if WIDE {
            u = veorq_s8(u, vdupq_n_s8(i8::MIN));
            sum = vaddq_s32(sum, vshlq_n_s32::<7>(vpaddlq_s16(vpaddlq_s8(a))));
        }
        let (lo, hi) = (vmull_s8(vget_low_s8(u), vget_low_s8(a)), vmull_high_s8(u, a));
        vreinterpretq_u32_s32(vpadalq_s16(sum, vpaddq_s16(lo, hi)))
    }
}

/// Transposes 4 rows of 4.
#[inline(always)]
unsafe fn transpose4(r: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: the caller has NEON.
    unsafe {
        let (ab_even, ab_odd) = (vtrn1q_f32(r[0], r[1]), vtrn2q_f32(r[0], r[1]));
        let (cd_even, cd_odd) = (vtrn1q_f32(r[2], r[3]), vtrn2q_f32(r[2], r[3]));
        [
            vcombine_f32(vget_low_f32(ab_even), vget_low_f32(cd_even)),
            vcombine_f32(vget_low_f32(ab_odd), vget_low_f32(cd_odd)),
            vcombine_f32(vget_high_f32(ab_even), vget_high_f32(cd_even)),
            vcombine_f32(vget_high_f32(ab_odd), vget_high_f32(cd_odd)),
        ]
    }
}

// SAFETY (all blocks below): the token proves the features; pointers come from slices whose length was checked, or carry
// the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Neon {
    type V = Quad;
    type B = Words;

    #[inline(always)]
    fn zero(self) -> Quad {
        self.splat(0.0)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Quad {
        unsafe { Quad([vdupq_n_f32(x); 4]) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> Quad {
        unsafe { self.load_ptr(x[..LANES].as_ptr()) }
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> Quad {
        let mut lanes = [0.0; LANES];
        let n = x.len().min(LANES);
        lanes[..n].copy_from_slice(&x[..n]);
        self.load(&lanes)
    }
    #[inline(always)]
    fn store(self, v: Quad, y: &mut [f32]) {
        unsafe { self.store_ptr(v, y[..LANES].as_mut_ptr()) }
    }
    #[inline(always)]
    fn store_partial(self, v: Quad, y: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        let n = y.len().min(LANES);
        y[..n].copy_from_slice(&lanes[..n]);
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> Quad {
        unsafe { Quad(each!(i => vld1q_f32(p.add(4 * i)))) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: Quad, p: *mut f32) {
        unsafe {
            each!(i => vst1q_f32(p.add(4 * i), v.0[i]));
        }
    }
    #[inline(always)]
    fn again(self, p: *const f32) -> *const f32 {
        p.with_addr(opaque(p.addr()))
    }
    #[inline(always)]
    unsafe fn splat_ptr(self, p: *const u32) -> Quad {
        unsafe { Quad([vld1q_dup_f32(p.cast()); 4]) }
    }
    #[inline(always)]
    fn add(self, a: Quad, b: Quad) -> Quad {
        unsafe { Quad(each!(i => vaddq_f32(a.0[i], b.0[i]))) }
    }
    #[inline(always)]
    fn sub(self, a: Quad, b: Quad) -> Quad {
        unsafe { Quad(each!(i => vsubq_f32(a.0[i], b.0[i]))) }
    }
    #[inline(always)]
    fn mul(self, a: Quad, b: Quad) -> Quad {
        unsafe { Quad(each!(i => vmulq_f32(a.0[i], b.0[i]))) }
    }
    #[inline(always)]
    fn div(self, a: Quad, b: Quad) -> Quad {
        unsafe { Quad(each!(i => vdivq_f32(a.0[i], b.0[i]))) }
    }
    #[inline(always)]
    fn fma(self, a: Quad, b: Quad, c: Quad) -> Quad {
        unsafe { Quad(each!(i => vfmaq_f32(c.0[i], a.0[i], b.0[i]))) }
    }
    #[inline(always)]
    fn sqrt(self, a: Quad) -> Quad {
        unsafe { Quad(each!(i => vsqrtq_f32(a.0[i]))) }
    }
    #[inline(always)]
    fn max(self, a: Quad, b: Quad) -> Quad {
        unsafe { Quad(each!(i => max(a.0[i], b.0[i]))) }
    }
    #[inline(always)]
    fn min(self, a: Quad, b: Quad) -> Quad {
        self.select_lt(a, b, a, b)
    }
    #[inline(always)]
    fn round(self, a: Quad) -> Quad {
        unsafe { Quad(each!(i => vrndnq_f32(a.0[i]))) }
    }
    #[inline(always)]
    fn exp2_integral(self, n: Quad) -> Quad {
        unsafe { Quad(each!(i => exp2_integral(n.0[i]))) }
    }
    #[inline(always)]
    fn select_lt(self, a: Quad, b: Quad, yes: Quad, no: Quad) -> Quad {
        unsafe { Quad(each!(i => vbslq_f32(vcltq_f32(a.0[i], b.0[i]), yes.0[i], no.0[i]))) }
    }
    #[inline(always)]
    fn reduce_add(self, a: Quad) -> f32 {
        unsafe {
            let v = vaddq_f32(vaddq_f32(a.0[0], a.0[2]), vaddq_f32(a.0[1], a.0[3]));
            let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
        }
    }
    #[inline(always)]
    fn reduce_max(self, a: Quad) -> f32 {
        unsafe {
            let v = max(max(a.0[0], a.0[2]), max(a.0[1], a.0[3]));
            let v = max(v, vextq_f32::<2>(v, v));
            vgetq_lane_f32::<0>(max(v, vextq_f32::<1>(v, v)))
        }
    }
    #[inline(always)]
    fn round_bf16(self, x: Quad) -> Quad {
        unsafe { Quad(each!(i => odd(floats(round_bf16(x.0[i]))))) }
    }
    #[inline(always)]
    fn bf16_pairs(self, lo: Quad, hi: Quad) -> Quad {
        unsafe {
            let (lo, hi) = (lo.0, hi.0);
            Quad([compact(lo[0], lo[1]), compact(lo[2], lo[3]), compact(hi[0], hi[1]), compact(hi[2], hi[3])])
        }
    }
    #[inline(always)]
    fn bf16_interleave(self, even: Quad, odd: Quad) -> Quad {
        unsafe { Quad(each!(i => interleave(even.0[i], odd.0[i]))) }
    }
    #[inline(always)]
    fn bf16_even(self, units: Quad) -> Quad {
        unsafe { Quad(each!(i => even(units.0[i]))) }
    }
    #[inline(always)]
    fn bf16_odd(self, units: Quad) -> Quad {
        unsafe { Quad(each!(i => odd(units.0[i]))) }
    }
    #[inline(always)]
    fn bf16_dot(self, a: Quad, b: Quad, c: Quad) -> Quad {
        unsafe { Quad(each!(i => bf16_dot(a.0[i], b.0[i], c.0[i]))) }
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [Quad; LANES]) {
        let old = *rows;
        for i in 0..4 {
            for j in 0..4 {
                // The numbers of four rows in their register j become those of register i in rows 4j..4j + 4.
                let part = unsafe { transpose4(each!(r => old[4 * i + r].0[j])) };
                for r in 0..4 {
                    rows[4 * j + r].0[i] = part[r];
                }
            }
        }
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> Words {
        unsafe { Words([vdupq_n_u32(x as u32); 4]) }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> Words {
        unsafe { Words(each!(i => vreinterpretq_u32_u8(vld1q_u8(p.add(16 * i))))) }
    }
    #[inline(always)]
    unsafe fn splat_bytes(self, p: *const u8) -> Words {
        self.splat_int(unsafe { p.cast::<i32>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> Quad {
        unsafe { Quad(each!(i => vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p.add(8 * i)))))) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> Quad {
        unsafe {
            let x = vld1q_u8(p);
            from_u16([vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x)])
        }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> Quad {
        unsafe {
            let x = vld1q_s8(p.cast());
            from_i16([vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x)])
        }
    }
    #[inline(always)]
    fn store_i8(self, v: Quad, y: &mut [i8; LANES]) {
        unsafe {
            let (lo, hi) = (to_i16(v.0[0], v.0[1]), to_i16(v.0[2], v.0[3]));
            vst1q_s8(y.as_mut_ptr(), vqmovn_high_s16(vqmovn_s16(lo), hi));
        }
    }
    #[inline(always)]
    fn and(self, a: Words, b: Words) -> Words {
        unsafe { Words(each!(i => vandq_u32(a.0[i], b.0[i]))) }
    }
    #[inline(always)]
    fn or(self, a: Words, b: Words) -> Words {
        unsafe { Words(each!(i => vorrq_u32(a.0[i], b.0[i]))) }
    }
    #[inline(always)]
    fn shift_left(self, a: Words, n: u32) -> Words {
        unsafe { Words(each!(i => vshlq_u32(a.0[i], vdupq_n_s32(n as i32)))) }
    }
    #[inline(always)]
    fn shift_right(self, a: Words, n: u32) -> Words {
        // A shift by fewer than no bits is one to the right.
        unsafe { Words(each!(i => vshlq_u32(a.0[i], vdupq_n_s32(-(n as i32))))) }
    }
    #[inline(always)]
    fn byte_dot<const WIDE: bool>(self, u: Words, a: Words, sum: Words) -> Words {
        unsafe { Words(each!(i => byte_dot::<WIDE>(u.0[i], a.0[i], sum.0[i]))) }
    }
    #[inline(always)]
    fn to_f32(self, a: Words) -> Quad {
        unsafe { Quad(each!(i => vcvtq_f32_s32(vreinterpretq_s32_u32(a.0[i])))) }
    }
}
