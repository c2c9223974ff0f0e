//! The oracle: each operation as its definition reads.

use half::f16;

use super::{LANES, Simd};

/// Plain Rust, on every processor.
#[derive(Clone, Copy, Debug)]
pub struct Scalar(());

impl Scalar {
    pub(crate) fn new() -> Scalar {
        Scalar(())
    }
}

/// Sixteen lanes in memory.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Lanes([f32; LANES]);

/// Sixteen lanes of whole numbers or bytes.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Words([u32; LANES]);

#[inline(always)]
fn map(a: Lanes, f: impl Fn(f32) -> f32) -> Lanes {
    Lanes(std::array::from_fn(|i| f(a.0[i])))
}

#[inline(always)]
fn zip(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    Lanes(std::array::from_fn(|i| f(a.0[i], b.0[i])))
}

/// The nearest bf16, ties to even, as its 16 bits; subnormal numbers become zero.
#[inline(always)]
fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) | 0x40;
    }
    if bits & 0x7f80_0000 == 0 {
        return bits >> 16 & 0x8000;
    }
    (bits + 0x7fff + ((bits >> 16) & 1)) >> 16
}

/// `a·b + c`, rounded once.
///
/// Without an instruction for it the standard library calls a function for each number, so there it is made of f64: the
/// product of two f32 is exact, and the rounding error of its sum with `c` decides the last bit of that sum, "to odd", so
/// that the second rounding, to f32, is the only one that counts (Boldo and Melquiond, 2008).
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(not(target_arch = "x86_64")) {
        return a.mul_add(b, c);
    }
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // The exact error of the sum (Knuth), NaN where the sum is not finite.
    let part = sum - product;
    let error = (product - (sum - part)) + (c - part);
    let bits = sum.to_bits();
    let inexact = u64::from(error != 0.0 && !error.is_nan());
    // Towards the error, where the last bit is not odd already.
    let towards_zero = (error.to_bits() ^ bits) >> 63;
    let odd = bits.wrapping_add((inexact & !bits).wrapping_mul(1u64.wrapping_sub(2 * towards_zero)));
    f64::from_bits(odd) as f32
}

#[inline(always)]
fn odd(unit: f32) -> f32 {
    f32::from_bits(unit.to_bits() & 0xffff_0000)
}

#[inline(always)]
fn even(unit: f32) -> f32 {
    f32::from_bits(unit.to_bits() << 16)
}

impl Simd for Scalar {
    type V = Lanes;
    type B = Words;

    #[inline(always)]
    fn zero(self) -> Lanes {
        Lanes([0.0; LANES])
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        Lanes([x; LANES])
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> Lanes {
        Lanes(std::array::from_fn(|i| x[i]))
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> Lanes {
        Lanes(std::array::from_fn(|i| x.get(i).copied().unwrap_or(0.0)))
    }
    #[inline(always)]
    fn store(self, v: Lanes, y: &mut [f32]) {
        y[..LANES].copy_from_slice(&v.0);
    }
    #[inline(always)]
    fn store_partial(self, v: Lanes, y: &mut [f32]) {
        let n = y.len().min(LANES);
        y[..n].copy_from_slice(&v.0[..n]);
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> Lanes {
        // SAFETY: the caller's promise.
        Lanes(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: Lanes, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v.0) }
    }
    #[inline(always)]
    unsafe fn splat_ptr(self, p: *const u32) -> Lanes {
        // SAFETY: the caller's promise.
        self.splat(f32::from_bits(unsafe { p.read() }))
    }
    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        Lanes(std::array::from_fn(|i| fused(a.0[i], b.0[i], c.0[i])))
    }
    #[inline(always)]
    fn sqrt(self, a: Lanes) -> Lanes {
        map(a, f32::sqrt)
    }
    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn round(self, a: Lanes) -> Lanes {
        map(a, f32::round_ties_even)
    }
    #[inline(always)]
    fn exp2_integral(self, n: Lanes) -> Lanes {
        map(n, |n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn select_lt(self, a: Lanes, b: Lanes, yes: Lanes, no: Lanes) -> Lanes {
        Lanes(std::array::from_fn(|i| if a.0[i] < b.0[i] { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    fn reduce_add(self, a: Lanes) -> f32 {
        let mut v = a.0;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                v[i] += v[i + width];
            }
        }
        v[0]
    }
    #[inline(always)]
    fn reduce_max(self, a: Lanes) -> f32 {
        let mut v = a.0;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                v[i] = if v[i] > v[i + width] { v[i] } else { v[i + width] };
            }
        }
        v[0]
    }
    #[inline(always)]
    fn round_bf16(self, x: Lanes) -> Lanes {
        map(x, |x| f32::from_bits(to_bf16(x) << 16))
    }
    #[inline(always)]
    fn bf16_pairs(self, lo: Lanes, hi: Lanes) -> Lanes {
        let x = |i: usize| if i < LANES { lo.0[i] } else { hi.0[i - LANES] };
        Lanes(std::array::from_fn(|j| f32::from_bits(to_bf16(x(2 * j)) | to_bf16(x(2 * j + 1)) << 16)))
    }
    #[inline(always)]
    fn bf16_interleave(self, even: Lanes, odd: Lanes) -> Lanes {
        zip(even, odd, |e, o| f32::from_bits(to_bf16(e) | to_bf16(o) << 16))
    }
    #[inline(always)]
    fn bf16_even(self, units: Lanes) -> Lanes {
        map(units, even)
    }
    #[inline(always)]
    fn bf16_odd(self, units: Lanes) -> Lanes {
        map(units, odd)
    }
    #[inline(always)]
    fn bf16_dot(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        Lanes(std::array::from_fn(|i| {
            let first = odd(a.0[i]).mul_add(odd(b.0[i]), c.0[i]);
            even(a.0[i]).mul_add(even(b.0[i]), first)
        }))
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [Lanes; LANES]) {
        let old = *rows;
        for i in 0..LANES {
            for j in 0..LANES {
                rows[j].0[i] = old[i].0[j];
            }
        }
    }

    #[inline(always)]
    fn splat_int(self, x: i32) -> Words {
        Words([x as u32; LANES])
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> Words {
        // SAFETY: the caller's promise.
        Words(unsafe { p.cast::<[u32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn splat_bytes(self, p: *const u8) -> Words {
        // SAFETY: the caller's promise.
        Words([unsafe { p.cast::<u32>().read_unaligned() }; LANES])
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> Lanes {
        // SAFETY: the caller's promise.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        Lanes(bits.map(|bits| f16::from_bits(bits).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> Lanes {
        // SAFETY: the caller's promise.
        Lanes(unsafe { p.cast::<[u8; LANES]>().read() }.map(f32::from))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> Lanes {
        // SAFETY: the caller's promise.
        Lanes(unsafe { p.cast::<[i8; LANES]>().read() }.map(f32::from))
    }
    #[inline(always)]
    fn store_i8(self, v: Lanes, y: &mut [i8; LANES]) {
        *y = v.0.map(|x| x.round_ties_even() as i8);
    }
    #[inline(always)]
    fn and(self, a: Words, b: Words) -> Words {
        Words(std::array::from_fn(|i| a.0[i] & b.0[i]))
    }
    #[inline(always)]
    fn or(self, a: Words, b: Words) -> Words {
        Words(std::array::from_fn(|i| a.0[i] | b.0[i]))
    }
    #[inline(always)]
    fn shift_left(self, a: Words, n: u32) -> Words {
        Words(a.0.map(|a| a << n))
    }
    #[inline(always)]
    fn shift_right(self, a: Words, n: u32) -> Words {
        Words(a.0.map(|a| a >> n))
    }
    #[inline(always)]
    fn byte_dot<const WIDE: bool>(self, u: Words, a: Words, sum: Words) -> Words {
        Words(std::array::from_fn(|i| {
            let (u, a) = (u.0[i].to_le_bytes(), a.0[i].to_le_bytes());
            (0..4).fold(sum.0[i] as i32, |sum, b| sum + i32::from(u[b]) * i32::from(a[b] as i8)) as u32
        }))
    }
    #[inline(always)]
    fn to_f32(self, a: Words) -> Lanes {
        Lanes(a.0.map(|a| a as i32 as f32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of all magnitudes, and sums that end half-way between two f32.
    #[test]
    fn fused_is_rounded_once() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let same = |a: f32, b: f32, c: f32| {
            let (got, exact) = (fused(a, b, c), a.mul_add(b, c));
            assert!(
                got.to_bits() == exact.to_bits() || got.is_nan() && exact.is_nan(),
                "{a:e}·{b:e} + {c:e}: {got:e} {exact:e}"
            );
        };
        for _ in 0..500_000 {
            same(f32::from_bits(next()), f32::from_bits(next()), f32::from_bits(next()));
            // Of a similar size, so that bits of both count; then a tail that only a single rounding sees.
            let near = |bits: u32| f32::from_bits(0x3f00_0000 | bits & 0x80ff_ffff);
            same(near(next()), near(next()), near(next()));
            let (a, c) = (1.0 + f32::EPSILON * (next() % 64) as f32, near(next()));
            same(a, 1.0 + f32::EPSILON * (next() % 64) as f32, c * 2f32.powi((next() % 60) as i32 - 30));
        }
        for a in [0.0, -0.0, 1.0, f32::MAX, f32::MIN_POSITIVE, 1e-45, f32::INFINITY, f32::NAN] {
            for b in [0.0, -1.0, f32::MAX, 1e-45, f32::NEG_INFINITY] {
                for c in [0.0, -0.0, 1.0, -f32::MAX, 1e-45, f32::INFINITY] {
                    same(a, b, c);
                }
            }
        }
    }
}
