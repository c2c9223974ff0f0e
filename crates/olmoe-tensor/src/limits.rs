//! What this machine can do at most, measured: the yardstick beside every benchmark.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::gemm::Operand;
use crate::memory::Buffer;
use crate::simd::kernel;
use crate::threads::{num_threads, parallel};

/// Sums in flight: more than the latency of a multiply-add times those that start in a cycle.
const CHAINS: usize = 28;

kernel! {
    /// `rounds` times 28 independent multiply-adds of a vector, in registers.
    fn multiply_adds[s: S](rounds: usize, operand: Operand, seed: f32) -> f32 {
        let mut sums = [s.splat(seed); CHAINS];
        let (a, b) = (s.splat(seed), s.splat(1.0 - seed));
        match operand {
            Operand::F32 => for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = s.fma(a, b, *sum);
                }
            },
            Operand::Bf16 => for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = s.bf16_dot(a, b, *sum);
                }
            },
        }
        let mut total = s.zero();
        for sum in sums {
            total = s.add(total, sum);
        }
        s.reduce_add(total)
    }
}

kernel! {
    /// `rounds` times 28 independent vectors of four byte products a lane, in registers.
    fn byte_multiply_adds[s: S](rounds: usize, seed: i32) -> f32 {
        let mut sums = [s.splat_int(seed); CHAINS];
        let (u, a) = (s.splat_int(seed & 0x3f3f_3f3f), s.splat_int(seed & 0x1f1f_1f1f));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = s.byte_dot::<false>(u, a, *sum);
            }
        }
        let mut total = s.zero();
        for sum in sums {
            total = s.add(total, s.to_f32(sum));
        }
        s.reduce_add(total)
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

/// Multiply-adds per second, counted as two operations each, on all threads: the median over runs for
/// about `time`, what the machine gives while others may share it.
pub fn peak_flops(operand: Operand, time: Duration) -> f64 {
    let products = match operand {
        Operand::F32 => 1.0,
        Operand::Bf16 => 2.0,
    };
    2.0 * products * peak_lanes(time, |rounds| multiply_adds(rounds, operand, black_box(1e-3)))
}

/// The same of whole numbers of eight bits, summed in 32.
pub fn peak_int8(time: Duration) -> f64 {
    8.0 * peak_lanes(time, |rounds| byte_multiply_adds(rounds, black_box(0x0102_0301)))
}

/// Lanes per second of a kernel that computes on 28 vectors in each round.
fn peak_lanes(time: Duration, kernel: impl Fn(usize) -> f32 + Sync) -> f64 {
    let threads = num_threads();
    let mut rounds = 10_000;
    let mut speeds = Vec::new();
    let end = Instant::now() + time;
    while speeds.is_empty() || Instant::now() < end {
        let start = Instant::now();
        parallel(threads, |_| {
            black_box(kernel(black_box(rounds)));
        });
        let seconds = start.elapsed().as_secs_f64();
        if seconds < 0.01 {
            // Too short to tell, and slow from being the first.
            rounds *= 2;
            continue;
        }
        speeds.push((threads * rounds * CHAINS * 16) as f64 / seconds);
    }
    median(&mut speeds)
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
