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
        Lanes(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], c.0[i])))
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
