//! Sixteen lanes, several instruction sets, one source.
//!
//! Every kernel of this crate is written once against [`Simd`], a vector of sixteen 32-bit lanes, and compiled for each
//! instruction set that the processor's architecture may have:
//!
//! | set | architecture | registers a vector |
//! |---|---|---|
//! | [`Scalar`] | all: plain Rust, the oracle | |
//! | `Avx2` | x86-64 | 2 |
//! | `Avx512` | x86-64 | 1 |
//! | `Neon` | AArch64 | 4 |
//!
//! The operations of the trait are exact or correctly rounded, lane by lane, and [`Simd::reduce_add`] adds in one fixed
//! tree; so a kernel gives **the same bits on every instruction set**, and the tests ask for exactly that. They have passed
//! on AArch64 under emulation (QEMU's user mode); the speed of NEON has not been measured.
//!
//! A value of a `Simd` type proves that the processor has the instructions: only [`Isa`] creates such values, through
//! the `kernel!` macro. The methods are therefore safe to call.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod hints;
mod isa;
mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub(crate) use hints::fetch;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use hints::opaque;
pub use isa::{Isa, UnknownIsa};
pub use math::{exp, silu_parts};
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use scalar::Scalar;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Sixteen 32-bit lanes: `f32` numbers, or *units* (an `f32`, or two bf16 numbers: the even one in the low half).
pub trait Simd: Copy + Send + Sync + 'static {
    /// The vector.
    type V: Copy;
    /// Sixteen lanes of 32 bits that are whole numbers or groups of four bytes.
    type B: Copy;

    /// All lanes zero.
    fn zero(self) -> Self::V;
    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// The first 16 numbers of `x`; panics when there are fewer.
    fn load(self, x: &[f32]) -> Self::V;
    /// Up to 16 numbers, the rest zero.
    fn load_partial(self, x: &[f32]) -> Self::V;
    /// Writes the lanes to the first 16 places of `y`; panics when there are fewer.
    fn store(self, v: Self::V, y: &mut [f32]);
    /// Writes the first `y.len()` (at most 16) lanes.
    fn store_partial(self, v: Self::V, y: &mut [f32]);
    /// As [`Simd::load`], unchecked.
    ///
    /// # Safety
    /// 64 readable bytes at `p`.
    unsafe fn load_ptr(self, p: *const f32) -> Self::V;
    /// As [`Simd::store`], unchecked.
    ///
    /// # Safety
    /// 64 writable bytes at `p`.
    unsafe fn store_ptr(self, v: Self::V, p: *mut f32);
    /// The same address, hidden from the optimiser: the compiler loads from it again rather than keep the value in a
    /// register, for kernels that have no register to spare.
    #[inline(always)]
    fn again(self, p: *const f32) -> *const f32 {
        p
    }
    /// All lanes the unit at `p`.
    ///
    /// # Safety
    /// 4 readable bytes at `p`.
    unsafe fn splat_ptr(self, p: *const u32) -> Self::V;

    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `√a`
    fn sqrt(self, a: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`: a NaN in either gives `b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`: a NaN in either gives `b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even; `|a| < 2^22`.
    fn round(self, a: Self::V) -> Self::V;
    /// `2^n` for integral `n` in −126..=127.
    fn exp2_integral(self, n: Self::V) -> Self::V;
    /// `if a < b { yes } else { no }`
    fn select_lt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// The sum of the lanes: lane `i` and `i + 8`, then of those `i` and `i + 4`, then 2, then 1.
    fn reduce_add(self, a: Self::V) -> f32;
    /// The largest lane.
    fn reduce_max(self, a: Self::V) -> f32;

    /// Each lane rounded to the nearest bf16, ties to even; subnormal numbers become zero, here and in the next two.
    fn round_bf16(self, x: Self::V) -> Self::V;
    /// 32 numbers to 16 units: unit `j` holds `(x[2j], x[2j+1])` of the row `lo ‖ hi`.
    fn bf16_pairs(self, lo: Self::V, hi: Self::V) -> Self::V;
    /// Two rows to 16 units: unit `j` holds `(even[j], odd[j])`.
    fn bf16_interleave(self, even: Self::V, odd: Self::V) -> Self::V;
    /// The even numbers of units.
    fn bf16_even(self, units: Self::V) -> Self::V;
    /// The odd numbers of units.
    fn bf16_odd(self, units: Self::V) -> Self::V;
    /// Two products a lane: `c + a.odd·b.odd + a.even·b.even` of bf16 units, the odd one first, each sum rounded.
    fn bf16_dot(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The same by one instruction where there is one; sums below 2^−126 become zero there.
    ///
    /// # Safety
    /// On AVX-512 the processor has BF16, too.
    #[inline(always)]
    unsafe fn bf16_pair_dot(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.bf16_dot(a, b, c)
    }

    /// Transposes a 16 × 16 block: lane `j` of vector `i` becomes lane `i` of vector `j`.
    fn transpose(self, rows: &mut [Self::V; LANES]);

    /// All lanes the whole number `x`.
    fn splat_int(self, x: i32) -> Self::B;
    /// 64 bytes.
    ///
    /// # Safety
    /// 64 readable bytes at `p`.
    unsafe fn load_bytes(self, p: *const u8) -> Self::B;
    /// All lanes the four bytes at `p`.
    ///
    /// # Safety
    /// 4 readable bytes at `p`.
    unsafe fn splat_bytes(self, p: *const u8) -> Self::B;
    /// 16 numbers of f16.
    ///
    /// # Safety
    /// 32 readable bytes at `p`.
    unsafe fn load_f16(self, p: *const u8) -> Self::V;
    /// 16 whole numbers of one byte without a sign.
    ///
    /// # Safety
    /// 16 readable bytes at `p`.
    unsafe fn load_u8(self, p: *const u8) -> Self::V;
    /// 16 whole numbers of one byte with a sign.
    ///
    /// # Safety
    /// 16 readable bytes at `p`.
    unsafe fn load_i8(self, p: *const u8) -> Self::V;
    /// Writes the lanes, rounded to the nearest whole number, ties to even; they lie in −128..=127.
    fn store_i8(self, v: Self::V, y: &mut [i8; LANES]);
    /// `a & b`, bit by bit.
    fn and(self, a: Self::B, b: Self::B) -> Self::B;
    /// `a | b`, bit by bit.
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// Each lane moved up by `n` bits; zeros come in.
    fn shift_left(self, a: Self::B, n: u32) -> Self::B;
    /// Each lane moved down by `n` bits; zeros come in.
    fn shift_right(self, a: Self::B, n: u32) -> Self::B;
    /// Four products a lane: `sum + Σ u·a` of bytes `u` without a sign and `a` with one, `|a| < 128`. Exact: bytes `u`
    /// of more than seven bits have to be announced as `WIDE`.
    fn byte_dot<const WIDE: bool>(self, u: Self::B, a: Self::B, sum: Self::B) -> Self::B;
    /// Whole numbers to the nearest f32, ties to even.
    fn to_f32(self, a: Self::B) -> Self::V;
}

/// Declares a kernel: one body, generic over the instruction set, compiled for each and picked by [`Isa::current`].
///
/// ```ignore
/// kernel! {
///     /// y += x
///     pub(crate) fn add_assign[s: S](y: &mut [f32], x: &[f32]) { … s.add(…) … }
/// }
/// ```
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident [$s:ident : $S:ident] ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$S: $crate::simd::Simd>($s: $S, $($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2(s: $crate::simd::Avx2, $($arg: $ty),*) $(-> $ret)? { body(s, $($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
            fn avx512(s: $crate::simd::Avx512, $($arg: $ty),*) $(-> $ret)? { body(s, $($arg),*) }

            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon(s: $crate::simd::Neon, $($arg: $ty),*) $(-> $ret)? { body(s, $($arg),*) }

            match $crate::simd::Isa::current() {
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx512(s) | $crate::simd::Isa::Avx512Bf16(s) => {
                    // SAFETY: the token exists only where the processor has these features.
                    unsafe { avx512(s, $($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx2(s) | $crate::simd::Isa::AvxVnni(s) => {
                    // SAFETY: the token exists only where the processor has these features.
                    unsafe { avx2(s, $($arg),*) }
                }
                #[cfg(target_arch = "aarch64")]
                $crate::simd::Isa::Neon(s) => {
                    // SAFETY: the token exists only where the processor has these features.
                    unsafe { neon(s, $($arg),*) }
                }
                $crate::simd::Isa::Scalar(s) => body(s, $($arg),*),
            }
        }
    };
}
pub(crate) use kernel;

#[cfg(test)]
mod tests;
