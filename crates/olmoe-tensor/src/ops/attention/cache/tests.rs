//! Caches of every type: against plain f64 loops, against each other, and against themselves bit for bit.

use half::f16;

use super::*;
use crate::ops::attention::tests::bits;
use crate::testing::{numbers, on_every_isa, relative_error};
use crate::threads::set_num_threads;

/// One head, several, shared ones; part of a panel, whole ones, several, an odd number of them.
const HEADS: [Heads; 5] = [
    Heads { query: 1, key_value: 1, dim: 10 },
    Heads { query: 3, key_value: 1, dim: 128 },
    Heads { query: 4, key_value: 2, dim: 40 },
    Heads { query: 2, key_value: 2, dim: 64 },
    Heads { query: 18, key_value: 1, dim: 96 },
];

/// Queries, keys and values of `t` rows.
fn inputs(t: usize, heads: Heads) -> [Tensor; 3] {
    let tensor = |seed: usize, heads: usize, dim: usize| {
        let cols = heads * dim;
        Tensor::new(&numbers(seed, t * cols).iter().map(|x| 2.0 * x).collect::<Vec<_>>(), &[t, cols])
    };
    let Heads { query, key_value, dim } = heads;
    [tensor(1, query, dim), tensor(2, key_value, dim), tensor(3, key_value, dim)]
}

/// The outputs of rows `from…`, computed `chunk` rows at a time with a cache that holds the rows before.
fn outputs(x: &[Tensor; 3], heads: Heads, cache: &mut Cache, from: usize, chunk: usize) -> Vec<u32> {
    let [q, k, v] = x;
    let mut o = Tensor::zeros(q.shape());
    for start in (from..q.rows()).step_by(chunk) {
        let rows = start..(start + chunk).min(q.rows());
        cache.append(k, v, rows.clone());
        forward_cached(q, rows, cache, heads, &mut o);
    }
    bits(o.row_range(from..q.rows()))
}

/// Integers and their scale.
type EightBitBlock = (Vec<f64>, f64);

/// The block of some numbers, by the definition; `stored` rounds the scale as it is stored.
fn quantized(x: &[f32], stored: fn(f32) -> f64) -> EightBitBlock {
    let most = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
    (x.iter().map(|x| f64::from((x * inverse).round_ties_even())).collect(), stored(most / 127.0))
}

/// Attention to quantised keys and values in f64.
fn naive_q8_0([q, k, v]: &[Tensor; 3], heads: Heads, rows: Range<usize>) -> Vec<f64> {
    let dim = heads.dim;
    let blocks = |x: &Tensor, row: usize, head: usize, stored: fn(f32) -> f64| -> Vec<EightBitBlock> {
        x.row(row)[head * dim..(head + 1) * dim].chunks(32).map(|x| quantized(x, stored)).collect()
    };
    let half = |d: f32| f16::from_f32(d).to_f64();
    let held = |x: &Tensor| -> Vec<Vec<Vec<EightBitBlock>>> {
        (0..heads.key_value).map(|g| (0..x.rows()).map(|t| blocks(x, t, g, half)).collect()).collect()
    };
    let (keys, values) = (held(k), held(v));
    let mut all = Vec::new();
    for t in rows {
        for h in 0..heads.query {
            let (g, query) = (h / heads.group(), blocks(q, t, h, f64::from));
            let score = |s: usize| -> f64 {
                let pairs = query.iter().zip(&keys[g][s]);
                let products = pairs.map(|((a, d), (b, e))| d * e * a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>());
                products.sum::<f64>() / (dim as f64).sqrt()
            };
            let scores: Vec<f64> = (0..=t).map(score).collect();
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut o = vec![0.0; dim];
            for (weight, row) in weights.iter().zip(&values[g]) {
                for (o, (a, d)) in o.iter_mut().zip(row.iter().flat_map(|(a, d)| a.iter().map(move |a| (a, d)))) {
                    *o += weight / total * d * a;
                }
            }
            all.extend(o);
        }
    }
    all
}

#[test]
fn q8_0_is_as_defined_on_all_sets() {
    for heads in HEADS {
        for t in [1, 2, 33, 130, 530] {
            let x = inputs(t, heads);
            let some = t.saturating_sub(20)..t;
            let expected = naive_q8_0(&x, heads, some.clone());
            let [q, k, v] = &x;
            let found = on_every_isa(|| {
                let mut cache = Cache::new(heads, t, CacheType::Q8_0);
                cache.append(k, v, 0..t);
                let mut o = Tensor::zeros(q.shape());
                forward_cached(q, some.clone(), &cache, heads, &mut o);
                o.row_range(some.clone()).to_vec()
            });
            let error = relative_error(&found, &expected);
            assert!(error <= 1e-6, "{heads:?}, {t} tokens: off by {error}");
        }
    }
}

#[test]
fn q8_0_stays_close_to_f32() {
    for heads in HEADS {
        let t = 300;
        let x = inputs(t, heads);
        let of = |kind| -> Vec<f32> {
            let all = outputs(&x, heads, &mut Cache::new(heads, t, kind), 0, t);
            all.into_iter().map(f32::from_bits).collect()
        };
        let exact: Vec<f64> = of(CacheType::F32).into_iter().map(f64::from).collect();
        let [bf16, q8_0] = [CacheType::Bf16, CacheType::Q8_0].map(|kind| relative_error(&of(kind), &exact));
        assert!(bf16 > 1e-6 && bf16 <= 0.01, "{heads:?}: bf16 is off by {bf16}");
        assert!(q8_0 > 1e-6 && q8_0 <= 0.02, "{heads:?}: q8_0 is off by {q8_0}");
    }
}

#[test]
fn alone_in_pieces_on_threads_and_sets() {
    // More than two spans, the last one short and odd.
    let t = 1065;
    for heads in HEADS {
        let x = inputs(t, heads);
        let [q, k, v] = &x;
        for kind in CacheType::ALL {
            set_num_threads(1);
            let expected = outputs(&x, heads, &mut Cache::new(heads, t, kind), 0, t);
            for (threads, chunk) in [(1, 700), (2, 513), (3, 64), (7, t)] {
                set_num_threads(threads);
                let found = outputs(&x, heads, &mut Cache::new(heads, t + 500, kind), 0, chunk);
                assert!(found == expected, "{heads:?}, {kind:?}, {threads} threads, {chunk} rows at a time");
            }
            let tail = |from: usize| &expected[from * q.cols()..];
            for (threads, from, chunk) in [(1, 1000, 1), (2, 1015, 3), (3, 1058, 7), (2, 500, 14), (2, 1064, 1)] {
                set_num_threads(threads);
                let mut cache = Cache::new(heads, t, kind);
                cache.append(k, v, 0..from);
                let found = outputs(&x, heads, &mut cache, from, chunk);
                assert!(
                    found == tail(from),
                    "{heads:?}, {kind:?}, {threads} threads, {chunk} rows at a time from {from}"
                );
            }
            set_num_threads(2);
            on_every_isa(|| {
                let mut cache = Cache::new(heads, t, kind);
                cache.append(k, v, 0..1061);
                let found = outputs(&x, heads, &mut cache, 1061, 2);
                assert!(found == tail(1061), "{heads:?}, {kind:?}");
                Vec::new()
            });
        }
    }
}

#[test]
fn beginnings_and_tokens_taken_back() {
    let t = 560;
    for heads in &HEADS[1..4] {
        let heads = *heads;
        let x = inputs(t, heads);
        let [q, k, _] = &x;
        let infinite = Tensor::new(&vec![f32::INFINITY; k.len()], k.shape());
        for kind in CacheType::ALL {
            let mut whole = Cache::new(heads, t, kind);
            let expected = outputs(&x, heads, &mut whole, 0, t);
            let tail = |from: usize| &expected[from * q.cols()..];
            for len in [0, 1, 32, 97, 129, 511, 512, 513] {
                // With as much room, less and more.
                for room in [t, t + 300] {
                    let mut copy = whole.prefix(len, room);
                    assert_eq!((copy.len(), copy.capacity(), copy.kind()), (len, room, kind));
                    let found = outputs(&x, heads, &mut copy, len, 133);
                    assert!(found == tail(len), "{heads:?}, {kind:?}, the first {len} with room for {room}");
                }
                let mut small = whole.prefix(len, len);
                assert_eq!(small.bytes(), Cache::bytes_of(heads, len, kind));
                small = small.prefix(len, t);
                assert!(outputs(&x, heads, &mut small, len, t) == tail(len), "{heads:?}, {kind:?}, {len} and no more");
                // What was there before is forgotten, whatever it was.
                let mut cut = whole.clone();
                cut.truncate(len);
                cut.append(&infinite, &infinite, 0..t - len);
                cut.truncate(len);
                let mut copy = cut.prefix(len, t);
                if len > 0 {
                    let mut o = Tensor::zeros(q.shape());
                    forward_cached(q, len - 1..len, &cut, heads, &mut o);
                    assert!(bits(o.row(len - 1)) == tail(len - 1)[..q.cols()], "{heads:?}, {kind:?}, cut at {len}");
                }
                assert!(outputs(&x, heads, &mut cut, len, 1 + t / 2) == tail(len), "{heads:?}, {kind:?}, cut at {len}");
                assert!(outputs(&x, heads, &mut copy, len, t) == tail(len), "{heads:?}, {kind:?}, copied at {len}");
            }
        }
    }
}

#[test]
fn sizes_are_exact() {
    let heads = Heads { query: 16, key_value: 16, dim: 128 };
    for (kind, numbers, bytes) in [(CacheType::F32, 1, 4), (CacheType::Bf16, 1, 2), (CacheType::Q8_0, 32, 34)] {
        for capacity in [0, 1, 32, 33, 100, 128, 129, 2048, 4095] {
            let cache = Cache::new(heads, capacity, kind);
            let rows = capacity.next_multiple_of(Cache::GRAIN);
            assert_eq!(cache.bytes(), 2 * 16 * 128 * rows / numbers * bytes, "{kind:?}, {capacity} tokens");
            assert_eq!(cache.bytes(), Cache::bytes_of(heads, capacity, kind));
        }
        assert_eq!(CacheType::by_name(kind.name()), Some(kind));
    }
    assert_eq!(CacheType::by_name("q4_0"), None);
}
