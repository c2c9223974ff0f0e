//! How fast one query reads the keys and values of a layer, beside what memory gives: `attention_speed [DEPTH [THREADS
//! [TYPE]]]`.
//!
//! The caches of a rotating set are larger than the processor's own together, as those of a model's layers are.

use std::time::{Duration, Instant};

use olmoe_tensor::limits::read_bandwidth;
use olmoe_tensor::ops::attention::{Cache, CacheType, Heads, forward_cached};
use olmoe_tensor::tensor::Tensor;
use olmoe_tensor::threads::{num_threads, set_num_threads};

/// The release model's, the same with shared keys and values, and with a single head of them.
const SHAPES: [Heads; 3] = [
    Heads { query: 16, key_value: 16, dim: 128 },
    Heads { query: 16, key_value: 4, dim: 128 },
    Heads { query: 3, key_value: 1, dim: 64 },
];
/// Bytes of all caches together, at least.
const BYTES: usize = 256 << 20;
const ROUNDS: usize = 9;
const TIME: Duration = Duration::from_millis(100);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().map(|text| text.parse::<usize>().expect("a whole number"));
    let depth = number().unwrap_or(2048);
    if let Some(threads) = number() {
        set_num_threads(threads);
    }
    let only = arguments.next().map(|name| CacheType::by_name(&name).expect("f32, bf16 or q8_0"));
    for heads in SHAPES {
        for kind in CacheType::ALL.into_iter().filter(|kind| only.is_none_or(|only| only == *kind)) {
            measure(heads, kind, depth);
        }
    }
}

fn random(rows: usize, cols: usize) -> Tensor {
    let mut seed = 1u64;
    let numbers: Vec<f32> = (0..rows * cols)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::new(&numbers, &[rows, cols])
}

fn measure(heads: Heads, kind: CacheType, depth: usize) {
    let bytes = Cache::bytes_of(heads, depth, kind);
    let keys = random(depth, heads.key_value * heads.dim);
    let q = random(1, heads.query * heads.dim);
    let mut o = Tensor::zeros(q.shape());
    let mut caches: Vec<Cache> = (0..BYTES.div_ceil(bytes)).map(|_| Cache::new(heads, depth, kind)).collect();
    caches.iter_mut().for_each(|cache| cache.append(&keys, &keys, 0..depth));
    let mut shares: Vec<(f64, f64, f64)> = Vec::new();
    for _ in 0..ROUNDS {
        let limit = read_bandwidth(BYTES, TIME / 2);
        let (start, mut calls) = (Instant::now(), 0);
        while start.elapsed() < TIME {
            for cache in &caches {
                forward_cached(&q, 0..1, cache, heads, &mut o);
            }
            calls += caches.len();
        }
        let seconds = start.elapsed().as_secs_f64() / calls as f64;
        shares.push((bytes as f64 / seconds / limit, seconds, limit));
    }
    shares.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (share, seconds, limit) = shares[ROUNDS / 2];
    println!(
        "{:2} heads of {:3}, {:2} of keys, {:4} at {depth}: {:7.1} us, {:6.2} MB at {:5.1} GB/s, {:3.0} % ({:.0} to {:.0}) of {:.1} GB/s, {} threads",
        heads.query,
        heads.dim,
        heads.key_value,
        kind.name(),
        seconds * 1e6,
        bytes as f64 / 1e6,
        bytes as f64 / seconds / 1e9,
        share * 100.0,
        shares[0].0 * 100.0,
        shares[ROUNDS - 1].0 * 100.0,
        limit / 1e9,
        num_threads(),
    );
}
