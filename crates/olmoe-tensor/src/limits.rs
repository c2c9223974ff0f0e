//! What this machine can do at most, measured: the yardstick beside every benchmark.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::gemm::Operand;
use crate::memory::Buffer;
use crate::simd::{Isa, LANES, kernel};
use crate::threads::{num_threads, parallel};

/// A loop that only computes, in registers.
#[derive(Clone, Copy)]
struct Loop {
    /// Runs so many rounds.
    run: fn(usize) -> f32,
    /// Operations of a round, a multiply-add being two.
    operations: usize,
}

/// A loop of multiply-adds of vectors: `CHAINS` independent ones, more than the latency of one times those that start in a
/// cycle, and fewer than there are registers.
macro_rules! multiply_adds {
    ($name:ident, $chains:literal) => {
        kernel! {
            fn $name[s: S](rounds: usize) -> f32 {
                let factor = s.splat(black_box(1e-3));
                let mut sums = [factor; $chains];
                for _ in 0..rounds {
                    for sum in &mut sums {
                        *sum = s.fma(factor, factor, *sum);
                    }
                }
                let mut total = s.zero();
                for sum in sums {
                    total = s.add(total, sum);
                }
                s.reduce_add(total)
            }
        }
    };
}
// With 32 registers, and with 16 of half the width or 32 of a quarter of it.
multiply_adds!(wide_multiply_adds, 28);
multiply_adds!(narrow_multiply_adds, 6);

fn multiply_adds() -> Loop {
    if Isa::current().is_wide() {
        Loop { run: wide_multiply_adds, operations: 28 * 2 * LANES }
    } else {
        Loop { run: narrow_multiply_adds, operations: 6 * 2 * LANES }
    }
}

/// Products of bf16 as they are computed: pairs by one instruction, or multiply-adds of f32.
fn bf16_products() -> Loop {
    match Isa::current() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16(_) => Loop { run: x86::bf16_pairs, operations: x86::CHAINS * 4 * LANES },
        _ => multiply_adds(),
    }
}

/// Products of bytes with sums of 32 bits, by the instructions that the set has for them.
fn byte_products() -> Loop {
    match Isa::current() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) | Isa::Avx512Bf16(_) => Loop { run: x86::bytes_512, operations: x86::CHAINS * 8 * LANES },
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni(_) => Loop { run: x86::bytes_vnni, operations: x86::NARROW_CHAINS * 4 * LANES },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(_) => Loop { run: x86::bytes_256, operations: x86::PARTS * 8 * 4 * LANES },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(_) => Loop { run: arm::bytes, operations: arm::CHAINS * 2 * LANES },
        Isa::Scalar(_) => Loop { run: scalar_bytes, operations: 8 * LANES },
    }
}

/// One product of sixteen lanes of four bytes in plain Rust.
fn scalar_bytes(rounds: usize) -> f32 {
    let (u, a) = (black_box([3u8; 4 * LANES]), black_box([5i8; 4 * LANES]));
    let mut sums = [0i32; LANES];
    for _ in 0..rounds {
        for (sum, (u, a)) in sums.iter_mut().zip(black_box(&u).as_chunks::<4>().0.iter().zip(a.as_chunks::<4>().0)) {
            *sum = sum.wrapping_add(u.iter().zip(a).map(|(u, a)| i32::from(*u) * i32::from(*a)).sum());
        }
    }
    sums.iter().sum::<i32>() as f32
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Registers that are summed into at once, of 32 and of 16.
    pub(super) const CHAINS: usize = 24;
    pub(super) const NARROW_CHAINS: usize = 12;
    /// Sums of eight products in 16 bits that are on their way at once.
    pub(super) const PARTS: usize = 4;

    macro_rules! on {
        ($name:ident, $inner:ident, $features:literal, $rounds:ident, $body:block) => {
            pub(super) fn $name(rounds: usize) -> f32 {
                // SAFETY: called only where this set of instructions is the current one.
                unsafe { $inner(rounds) }
            }
            #[target_feature(enable = $features)]
            fn $inner($rounds: usize) -> f32 $body
        };
    }

    on!(bf16_pairs, bf16_pairs_inner, "avx512f,avx512bf16", rounds, {
        // SAFETY: 64 bytes seen as another type.
        let factor: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(black_box(0x3a80_3a80))) };
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, factor, factor);
            }
        }
        let mut total = sums[0];
        for sum in &sums[1..] {
            total = _mm512_add_ps(total, *sum);
        }
        _mm512_reduce_add_ps(total)
    });

    on!(bytes_512, bytes_512_inner, "avx512f,avx512vnni", rounds, {
        let factor = _mm512_set1_epi32(black_box(0x0102_0301));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, factor, factor);
            }
        }
        let mut total = sums[0];
        for sum in &sums[1..] {
            total = _mm512_add_epi32(total, *sum);
        }
        _mm512_reduce_add_epi32(total) as f32
    });

    on!(bytes_vnni, bytes_vnni_inner, "avx2,avxvnni", rounds, {
        let factor = _mm256_set1_epi32(black_box(0x0102_0301));
        let mut sums = [_mm256_setzero_si256(); NARROW_CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, factor, factor);
            }
        }
        let mut total = sums[0];
        for sum in &sums[1..] {
            total = _mm256_add_epi32(total, *sum);
        }
        _mm256_extract_epi32::<0>(total) as f32
    });

    // As products with quants of four bits are made: eight in 16 bits, then one sum of 32.
    on!(bytes_256, bytes_256_inner, "avx2", rounds, {
        let (one, factor) = (_mm256_set1_epi16(1), _mm256_set1_epi32(black_box(0x0102_0301)));
        let mut sums = [_mm256_setzero_si256(); PARTS];
        for _ in 0..rounds {
            for sum in &mut sums {
                let mut pairs = _mm256_maddubs_epi16(held(factor), factor);
                for _ in 1..8 {
                    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(held(factor), factor));
                }
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, one));
            }
        }
        let mut total = sums[0];
        for sum in &sums[1..] {
            total = _mm256_add_epi32(total, *sum);
        }
        _mm256_extract_epi32::<0>(total) as f32
    });

    /// The same register, of which the compiler does not know that it is: no product is made once for several.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn held(mut x: __m256i) -> __m256i {
        // SAFETY: no instruction at all.
        unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) x, options(nomem, nostack, preserves_flags)) };
        x
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::hint::black_box;

    /// Registers that are summed into at once.
    pub(super) const CHAINS: usize = 16;

    pub(super) fn bytes(rounds: usize) -> f32 {
        // SAFETY: called only where this set of instructions is the current one.
        unsafe { bytes_inner(rounds) }
    }

    /// Sixteen products in sums of two in 16 bits, then one sum of 32.
    #[target_feature(enable = "neon")]
    fn bytes_inner(rounds: usize) -> f32 {
        let factor = vreinterpretq_s8_u32(vdupq_n_u32(black_box(0x0102_0301)));
        let mut sums = [vdupq_n_s32(0); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                let u = held(factor);
                let (lo, hi) = (vmull_s8(vget_low_s8(u), vget_low_s8(factor)), vmull_high_s8(u, factor));
                *sum = vpadalq_s16(*sum, vpaddq_s16(lo, hi));
            }
        }
        let mut total = sums[0];
        for sum in &sums[1..] {
            total = vaddq_s32(total, *sum);
        }
        vaddvq_s32(total) as f32
    }

    /// The same register, of which the compiler does not know that it is: no product is made once for several.
    #[inline]
    #[target_feature(enable = "neon")]
    fn held(mut x: int8x16_t) -> int8x16_t {
        // SAFETY: no instruction at all.
        unsafe { std::arch::asm!("/* {0:v} */", inout(vreg) x, options(nomem, nostack, preserves_flags)) };
        x
    }
}

kernel! {
    /// The sum of a slice, as fast as it can be read.
    fn read[s: S](x: &[f32]) -> f32 {
        let mut sums = [s.zero(); 8];
        for block in x.chunks_exact(128) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.add(*sum, s.load(&block[16 * i..]));
            }
        }
        let mut total = s.zero();
        for sum in sums {
            total = s.add(total, sum);
        }
        s.reduce_add(total)
    }
}

/// Multiply-adds per second of factors of that precision, counted as two operations each, on all threads: the median over
/// runs for about `time`, what the machine gives while others may share it.
pub fn peak_flops(operand: Operand, time: Duration) -> f64 {
    match operand {
        Operand::F32 => multiply_adds().speed(time),
        Operand::Bf16 => bf16_products().speed(time),
    }
}

/// The same of whole numbers of eight bits, summed in 32, as far as the instructions of the set allow it for quants of four
/// bits.
pub fn peak_int8(time: Duration) -> f64 {
    byte_products().speed(time)
}

impl Loop {
    /// Operations per second on all threads.
    fn speed(self, time: Duration) -> f64 {
        let threads = num_threads();
        let mut rounds = 10_000;
        let mut speeds = Vec::new();
        let end = Instant::now() + time;
        while speeds.is_empty() || Instant::now() < end {
            let start = Instant::now();
            parallel(threads, |_| {
                black_box((self.run)(black_box(rounds)));
            });
            let seconds = start.elapsed().as_secs_f64();
            if seconds < 0.01 {
                // Too short to tell, and slow from being the first.
                rounds *= 2;
                continue;
            }
            speeds.push((threads * rounds * self.operations) as f64 / seconds);
        }
        median(&mut speeds)
    }
}

/// Bytes per second read from memory by all threads: the median over passes through `bytes` for about `time`.
pub fn read_bandwidth(bytes: usize, time: Duration) -> f64 {
    let data = Buffer::<f32>::zeroed(bytes / 4);
    let threads = num_threads();
    let chunk = data.len() / threads;
    let mut speeds = Vec::new();
    let end = Instant::now() + time;
    while speeds.len() < 3 || Instant::now() < end {
        let start = Instant::now();
        parallel(threads, |i| {
            black_box(read(&data[i * chunk..(i + 1) * chunk]));
        });
        speeds.push((threads * chunk * 4) as f64 / start.elapsed().as_secs_f64());
    }
    median(&mut speeds)
}

fn median(speeds: &mut [f64]) -> f64 {
    speeds.sort_by(f64::total_cmp);
    speeds[speeds.len() / 2]
}
