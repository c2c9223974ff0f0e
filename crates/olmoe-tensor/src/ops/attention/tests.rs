//! Attention against plain f64 loops, and against itself bit for bit.

use super::*;
use crate::gemm::Operand;
use crate::testing::{finite_differences, numbers, on_every_isa, relative_error, wide};
use crate::threads::set_num_threads;

/// One head, several, shared ones; odd sizes, whole panels, more than a panel.
const HEADS: [Heads; 5] = [
    Heads { query: 1, key_value: 1, dim: 10 },
    Heads { query: 4, key_value: 2, dim: 26 },
    Heads { query: 6, key_value: 1, dim: 32 },
    Heads { query: 2, key_value: 2, dim: 64 },
    Heads { query: 3, key_value: 1, dim: 128 },
];
const OPERANDS: [Operand; 2] = [Operand::F32, Operand::Bf16];

/// Inputs of `t` rows: q, k, v and a gradient of the output.
fn inputs(t: usize, heads: Heads) -> [Tensor; 4] {
    let tensor = |seed: usize, heads: usize, dim: usize| {
        let cols = heads * dim;
        Tensor::new(&numbers(seed, t * cols).iter().map(|x| 2.0 * x).collect::<Vec<_>>(), &[t, cols])
    };
    let Heads { query, key_value, dim } = heads;
    [tensor(1, query, dim), tensor(2, key_value, dim), tensor(3, key_value, dim), tensor(4, query, dim)]
}

fn boundaries(lengths: &[u32]) -> Vec<u32> {
    let mut all = vec![0];
    all.extend(lengths.iter().scan(0, |at, n| {
        *at += n;
        Some(*at)
    }));
    all
}

fn slice(x: &Tensor, rows: Range<usize>) -> Tensor {
    Tensor::new(x.row_range(rows.clone()), &[rows.len(), x.cols()])
}

pub(super) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Calls `visit(row, query head, first key, weights, log-sum-exp)` for all rows and heads.
fn naive_weights(
    q: &[f64],
    k: &[f64],
    heads: Heads,
    segments: &[u32],
    mut visit: impl FnMut(usize, usize, usize, &[f64], f64),
) {
    let Heads { query, key_value, dim } = heads;
    for segment in segments.windows(2) {
        let first = segment[0] as usize;
        for t in first..segment[1] as usize {
            for h in 0..query {
                let q = &q[(t * query + h) * dim..][..dim];
                let key = |s: usize| &k[(s * key_value + h / heads.group()) * dim..][..dim];
                let score = |s: usize| q.iter().zip(key(s)).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt();
                let scores: Vec<f64> = (first..=t).map(score).collect();
                let max = scores.iter().copied().fold(f64::MIN, f64::max);
                let lse = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
                let weights: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
                visit(t, h, first, &weights, lse);
            }
        }
    }
}

/// Output and log-sum-exps `[T, H]`.
fn naive_forward(q: &[f64], k: &[f64], v: &[f64], heads: Heads, segments: &[u32]) -> (Vec<f64>, Vec<f64>) {
    let Heads { query, key_value, dim } = heads;
    let mut o = vec![0.0; q.len()];
    let mut all = Vec::new();
    naive_weights(q, k, heads, segments, |t, h, first, weights, lse| {
        for (s, weight) in weights.iter().enumerate() {
            for d in 0..dim {
                o[(t * query + h) * dim + d] += weight * v[((first + s) * key_value + h / heads.group()) * dim + d];
            }
        }
        all.push(lse);
    });
    (o, all)
}

/// Gradients of q, k and v.
fn naive_backward(q: &[f64], k: &[f64], v: &[f64], d_o: &[f64], heads: Heads, segments: &[u32]) -> [Vec<f64>; 3] {
    let Heads { query, key_value, dim } = heads;
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    naive_weights(q, k, heads, segments, |t, h, first, weights, _| {
        let at = (t * query + h) * dim;
        let key = |s: usize| ((first + s) * key_value + h / heads.group()) * dim;
        let dp: Vec<f64> =
            (0..weights.len()).map(|s| (0..dim).map(|d| d_o[at + d] * v[key(s) + d]).sum::<f64>()).collect();
        let delta: f64 = dp.iter().zip(weights).map(|(a, b)| a * b).sum();
        for (s, weight) in weights.iter().enumerate() {
            let ds = weight * (dp[s] - delta) / (dim as f64).sqrt();
            for d in 0..dim {
                dv[key(s) + d] += weight * d_o[at + d];
                dq[at + d] += ds * k[key(s) + d];
                dk[key(s) + d] += ds * q[at + d];
            }
        }
    });
    [dq, dk, dv]
}

/// The results of both passes.
fn both(x: &[Tensor; 4], heads: Heads, segments: &[u32], operand: Operand) -> [Vec<f32>; 5] {
    let [q, k, v, d_o] = x;
    let (o, saved) = forward(q, k, v, heads, segments, None, operand);
    let (dq, dk, dv) = backward(q, k, v, &o, &saved, d_o, heads, segments, None, operand);
    [o.to_vec(), saved.lse_ht.to_vec(), dq.to_vec(), dk.to_vec(), dv.to_vec()]
}

#[test]
fn both_passes_agree_with_f64_on_all_sets() {
    for heads in HEADS {
        for lengths in [&[][..], &[1], &[1, 31, 32, 33, 100], &[300]] {
            let segments = boundaries(lengths);
            let t = *segments.last().unwrap() as usize;
            let x = inputs(t, heads);
            let [q, k, v, d_o] = x.each_ref().map(|x| wide(x));
            let (o, lse) = naive_forward(&q, &k, &v, heads, &segments);
            let lse: Vec<f64> = (0..lse.len()).map(|i| lse[i % t * heads.query + i / t]).collect();
            let [dq, dk, dv] = naive_backward(&q, &k, &v, &d_o, heads, &segments);
            for operand in OPERANDS {
                let got = on_every_isa(|| both(&x, heads, &segments, operand).concat());
                let mut rest = &got[..];
                for (name, expected) in [("o", &o), ("lse", &lse), ("dq", &dq), ("dk", &dk), ("dv", &dv)] {
                    let (got, after) = rest.split_at(expected.len());
                    rest = after;
                    // The weight of a single key is one whatever the scores: their gradient is zero, up to
                    // cancellation.
                    let constant = t == 1 && ["dq", "dk"].contains(&name);
                    let error = match constant {
                        true => got.iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max) / 10.0,
                        false => relative_error(got, expected),
                    };
                    let allowed = if operand == Operand::F32 { 1e-6 } else { 1e-2 };
                    assert!(error <= allowed, "{name} of {heads:?}, {lengths:?}, {operand:?}: off by {error}");
                }
                assert!(rest.is_empty());
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for heads in [Heads { query: 4, key_value: 2, dim: 6 }, Heads { query: 2, key_value: 2, dim: 10 }] {
        let segments = boundaries(&[1, 9, 4]);
        let x = inputs(14, heads);
        let [q, k, v, d_o] = x.each_ref().map(|x| wide(x));
        let loss = |q: &[f64], k: &[f64], v: &[f64]| {
            let (o, _) = naive_forward(q, k, v, heads, &segments);
            o.iter().zip(&d_o).map(|(a, b)| a * b).sum::<f64>()
        };
        let [_, _, dq, dk, dv] = both(&x, heads, &segments, Operand::F32);
        assert!(relative_error(&dq, &finite_differences(&q, |q| loss(q, &k, &v))) <= 1e-6);
        assert!(relative_error(&dk, &finite_differences(&k, |k| loss(&q, k, &v))) <= 1e-6);
        assert!(relative_error(&dv, &finite_differences(&v, |v| loss(&q, &k, v))) <= 1e-6);
    }
}

#[test]
fn threads_do_not_show() {
    for heads in HEADS {
        // With one sequence and more threads than key/value heads the sequence itself is divided.
        for lengths in [&[500][..], &[1, 31, 32, 33, 100]] {
            let segments = boundaries(lengths);
            let x = inputs(*segments.last().unwrap() as usize, heads);
            for operand in OPERANDS {
                let mut results = [1, 2, 3, 7].map(|threads| {
                    set_num_threads(threads);
                    bits(&both(&x, heads, &segments, operand).concat())
                });
                let first = std::mem::take(&mut results[0]);
                assert!(results[1..].iter().all(|other| *other == first), "{heads:?}, {lengths:?}, {operand:?}");
            }
        }
    }
}

#[test]
fn a_segment_is_the_same_alone_and_in_a_batch() {
    for heads in HEADS {
        let segments = boundaries(&[1, 31, 32, 33, 100, 257]);
        let t = *segments.last().unwrap() as usize;
        let x = inputs(t, heads);
        for operand in OPERANDS {
            let [o, lse, gradients @ ..] = both(&x, heads, &segments, operand);
            for segment in segments.windows(2) {
                let rows = segment[0] as usize..segment[1] as usize;
                let alone = x.each_ref().map(|x| slice(x, rows.clone()));
                let [o_alone, lse_alone, gradients_alone @ ..] = both(&alone, heads, &[0, rows.len() as u32], operand);
                let part = |x: &[f32]| bits(&x[rows.start * (x.len() / t)..rows.end * (x.len() / t)]);
                assert!(bits(&o_alone) == part(&o));
                let lse_part: Vec<f32> = lse.chunks(t).flat_map(|lse| &lse[rows.clone()]).copied().collect();
                assert!(bits(&lse_alone) == bits(&lse_part));
                for (alone, all) in gradients_alone.iter().zip(&gradients) {
                    assert!(bits(alone) == part(all));
                }
            }
        }
    }
}

#[test]
fn a_cache_gives_the_bits_of_the_whole_sequence() {
    for heads in HEADS {
        let t = 295;
        let [q, k, v, other] = inputs(t, heads);
        for operand in OPERANDS {
            let (o, _) = forward(&q, &k, &v, heads, &[0, t as u32], None, operand);
            let mut cache = Cache::new(heads, t, operand.into());
            assert!((cache.len(), cache.capacity(), cache.is_empty()) == (0, t, true) && cache.bytes() > 0);
            for chunk in [1, 7, 100, t] {
                let mut got = Tensor::zeros(o.shape());
                cache.truncate(0);
                for start in (0..t).step_by(chunk) {
                    let rows = start..(start + chunk).min(t);
                    cache.append(&k, &v, rows.clone());
                    assert_eq!(cache.len(), rows.end);
                    forward_cached(&q, rows, &cache, heads, &mut got);
                }
                assert!(bits(&got) == bits(&o), "{heads:?}, {operand:?}, chunks of {chunk}");
            }
            // Tokens are removed and appended again, at even and odd places, with infinities between.
            let infinite = Tensor::new(&vec![f32::INFINITY; k.len()], k.shape());
            let mut got = o.clone();
            for len in [0, 1, 31, 96, 129, 294] {
                let mut cache = cache.clone();
                cache.truncate(len);
                cache.append(&infinite, &infinite, 0..t - len);
                cache.truncate(len);
                if len > 0 {
                    got.row_mut(len - 1).fill(0.0);
                    forward_cached(&q, len - 1..len, &cache, heads, &mut got);
                }
                cache.append(&k, &v, len..t);
                got[len * o.cols()..].copy_from_slice(&other[len * o.cols()..]);
                forward_cached(&q, len..t, &cache, heads, &mut got);
                assert!(bits(&got) == bits(&o), "{heads:?}, {operand:?}, cut at {len}");
            }
            forward_cached(&q, 0..0, &cache, heads, &mut got);
            cache.append(&k, &v, 0..0);
        }
    }
}

#[test]
fn large_scores_and_zeros_stay_finite() {
    let heads = Heads { query: 2, key_value: 1, dim: 16 };
    let t = 200;
    let [mut q, k, mut v, d_o] = inputs(t, heads);
    q.iter_mut().for_each(|x| *x *= 1e4);
    // Tiny values, whose products with small weights underflow to zeros of either sign.
    v.iter_mut().for_each(|x| *x *= 1e-37);
    let x = [q, k, v, d_o];
    let [q, k, v, _] = &x;
    for operand in OPERANDS {
        // Instruction sets may differ in subnormal numbers, so they are not compared with each other.
        on_every_isa(|| {
            let [o, rest @ ..] = both(&x, heads, &[0, t as u32], operand);
            assert!(o.iter().chain(rest.iter().flatten()).all(|x| x.is_finite()));
            let mut cache = Cache::new(heads, t, operand.into());
            let mut got = Tensor::zeros(q.shape());
            for row in 0..t {
                cache.append(k, v, row..row + 1);
                forward_cached(q, row..row + 1, &cache, heads, &mut got);
            }
            assert!(bits(&got) == bits(&o), "{operand:?}");
            Vec::new()
        });
    }
}

/// Output and gradients of q, k and v with hidden rows, as OLMo says it: the lowest f32 is added to the score of every key
/// that is hidden or comes later.
fn naive_hidden(x: &[Vec<f64>; 4], heads: Heads, segments: &[u32], hidden: &[bool]) -> [Vec<f64>; 4] {
    let [q, k, v, d_o] = x;
    let Heads { query, key_value, dim } = heads;
    let [mut o, mut dq] = [(); 2].map(|()| vec![0.0; q.len()]);
    let [mut dk, mut dv] = [(); 2].map(|()| vec![0.0; k.len()]);
    for segment in segments.windows(2) {
        let rows = segment[0] as usize..segment[1] as usize;
        for (t, h) in rows.clone().flat_map(|t| (0..query).map(move |h| (t, h))) {
            let at = (t * query + h) * dim;
            let key = |s: usize| (s * key_value + h / heads.group()) * dim;
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let score = |s: usize| {
                let bias = if s > t || hidden[s] { f64::from(f32::MIN) } else { 0.0 };
                dot(&q[at..at + dim], &k[key(s)..key(s) + dim]) / (dim as f64).sqrt() + bias
            };
            let scores: Vec<f64> = rows.clone().map(score).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp() / sum).collect();
            let dp: Vec<f64> = rows.clone().map(|s| dot(&d_o[at..at + dim], &v[key(s)..key(s) + dim])).collect();
            let delta = dot(&dp, &weights);
            for (i, s) in rows.clone().enumerate() {
                let ds = weights[i] * (dp[i] - delta) / (dim as f64).sqrt();
                for d in 0..dim {
                    o[at + d] += weights[i] * v[key(s) + d];
                    dv[key(s) + d] += weights[i] * d_o[at + d];
                    dq[at + d] += ds * k[key(s) + d];
                    dk[key(s) + d] += ds * q[at + d];
                }
            }
        }
    }
    [o, dq, dk, dv]
}

fn both_hidden(x: &[Tensor; 4], heads: Heads, segments: &[u32], hidden: &[bool], operand: Operand) -> [Vec<f32>; 4] {
    let [q, k, v, d_o] = x;
    let (o, saved) = forward(q, k, v, heads, segments, Some(hidden), operand);
    let (dq, dk, dv) = backward(q, k, v, &o, &saved, d_o, heads, segments, Some(hidden), operand);
    [o.to_vec(), dq.to_vec(), dk.to_vec(), dv.to_vec()]
}

/// The length of a segment, and which of its rows are hidden.
type Hides = (u32, fn(u32) -> bool);

/// Segments of these lengths, and which of their rows are hidden: behind, in front, here and there, all, none, and in front of
/// more rows than a block has.
const HIDDEN: [Hides; 6] = [
    (40, |t| t >= 33),
    (37, |t| t < 5),
    (70, |t| t.is_multiple_of(3)),
    (9, |_| true),
    (33, |_| false),
    (300, |t| t < 130 || t.is_multiple_of(7)),
];

#[test]
fn hidden_rows_are_as_olmo_hides_them() {
    let segments = boundaries(&HIDDEN.map(|(length, _)| length));
    let hidden: Vec<bool> = HIDDEN.iter().flat_map(|(length, hides)| (0..*length).map(hides)).collect();
    for heads in HEADS {
        let x = inputs(hidden.len(), heads);
        let expected = naive_hidden(&x.each_ref().map(|x| wide(x)), heads, &segments, &hidden);
        for operand in OPERANDS {
            let got = on_every_isa(|| both_hidden(&x, heads, &segments, &hidden, operand).concat());
            let mut rest = &got[..];
            for (name, expected) in ["o", "dq", "dk", "dv"].into_iter().zip(&expected) {
                let (got, after) = rest.split_at(expected.len());
                rest = after;
                let error = relative_error(got, expected);
                let allowed = if operand == Operand::F32 { 1e-6 } else { 1e-2 };
                assert!(error <= allowed, "{name} of {heads:?}, {operand:?}: off by {error}");
            }
            let mut results = [1, 2, 3].map(|threads| {
                set_num_threads(threads);
                bits(&both_hidden(&x, heads, &segments, &hidden, operand).concat())
            });
            let first = std::mem::take(&mut results[0]);
            assert!(results[1..].iter().all(|other| *other == first), "{heads:?}, {operand:?}: threads show");
        }
    }
}

#[test]
fn nothing_hidden_is_nothing_changed() {
    let heads = Heads { query: 4, key_value: 2, dim: 26 };
    for lengths in [&[500][..], &[1, 31, 32, 33, 100]] {
        let segments = boundaries(lengths);
        let t = *segments.last().unwrap() as usize;
        let x = inputs(t, heads);
        for operand in OPERANDS {
            let [o, _, gradients @ ..] = both(&x, heads, &segments, operand);
            let [o_hidden, hidden @ ..] = both_hidden(&x, heads, &segments, &vec![false; t], operand);
            assert!(bits(&o) == bits(&o_hidden));
            assert!(gradients.iter().zip(&hidden).all(|(a, b)| bits(a) == bits(b)), "{lengths:?}, {operand:?}");
        }
    }
}

#[test]
fn steady_state_asks_the_system_for_nothing() {
    let heads = Heads { query: 2, key_value: 1, dim: 24 };
    let x = inputs(150, heads);
    let run = || both(&x, heads, &[0, 50, 150], Operand::Bf16);
    run();
    // Other tests share the pool, so the test repeats until one run makes no request.
    let quiet = (0..1000).any(|_| {
        let before = crate::memory::system_requests();
        run();
        crate::memory::system_requests() == before
    });
    assert!(quiet);
}

#[test]
#[should_panic(expected = "the last segment ends at row 4")]
fn segments_cover_the_rows() {
    let heads = Heads { query: 1, key_value: 1, dim: 2 };
    let [q, k, v, _] = inputs(4, heads);
    forward(&q, &k, &v, heads, &[0, 3], None, Operand::F32);
}
