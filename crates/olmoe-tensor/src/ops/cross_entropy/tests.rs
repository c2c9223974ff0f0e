//! Tests of the head.

use super::*;
use crate::gemm::Operand;
use crate::ops::linear::PackedWeight;
use crate::quant::product::QuantizedWeight;
use crate::quant::{BlockFormat, dequantize, quantize};
use crate::testing::{finite_differences, numbers, on_every_isa, relative_error, wide};

/// `Σ_t g_t·logp_t + z/2·lse_t²` over the tokens that have a target.
fn naive(x: &[f64], w: &[f64], b: &[f64], c: f64, targets: &[u32], g: &[f64], z: f64) -> f64 {
    let (v, d) = (b.len(), w.len() / b.len());
    let mut loss = 0.0;
    for (t, target) in targets.iter().enumerate().filter(|(_, target)| **target != IGNORE) {
        let l: Vec<f64> =
            (0..v).map(|i| c * (b[i] + (0..d).map(|j| x[t * d + j] * w[i * d + j]).sum::<f64>())).collect();
        let lse = l.iter().map(|x| x.exp()).sum::<f64>().ln();
        loss += g[t] * (l[*target as usize] - lse) + z / 2.0 * lse * lse;
    }
    loss
}

#[test]
fn gradients_match_finite_differences() {
    for (t, d, v, c) in [(1, 1, 2, 1.0), (5, 6, 37, 0.5), (61, 4, 33, 1.0)] {
        let (x, w, b) = (numbers(1, t * d), numbers(2, v * d), numbers(3, v));
        let g = numbers(4, t);
        let z = 0.2f32;
        let mut targets: Vec<u32> = (0..t).map(|i| (i * 7 % v) as u32).collect();
        if t > 3 {
            targets[2] = IGNORE;
        }
        let got = on_every_isa(|| {
            let mut weight = PackedWeight::new(1, v, d, Operand::F32, true);
            weight.pack(&w);
            let head = Head { weight: Weight::Packed(&weight), bias: Some(&b), scale: c, adapter: None };
            let (mut dw, mut db) = (vec![0.0; v * d], vec![0.0; v]);
            let x = Tensor::new(&x, &[t, d]);
            let gradients = HeadGradients {
                dlogp_t: &g,
                z,
                dweight: Some(&mut dw),
                dbias: Some(&mut db),
                adapter: LowRankGradients::default(),
                statistics: true,
                input: true,
            };
            let (log_probs, dx) = forward_backward(&x, head, &targets, gradients);
            assert_eq!(forward(&x, head, &targets, false).logp_t[..], log_probs.logp_t[..]);
            let dx = dx.expect("asked for");
            [&log_probs.logp_t[..], &dx[..], &dw, &db].concat()
        });
        let (x, w, b, g) = (wide(&x), wide(&w), wide(&b), wide(&g));
        let (c, z) = (f64::from(c), f64::from(z));
        let loss = |x: &[f64], w: &[f64], b: &[f64]| naive(x, w, b, c, &targets, &g, z);
        for (at, target) in targets.iter().enumerate() {
            let one = |i| if i == at { 1.0 } else { 0.0 };
            let only: Vec<f64> = (0..t).map(one).collect();
            let expected = naive(&x, &w, &b, c, &targets, &only, 0.0);
            assert!((f64::from(got[at]) - expected).abs() < 2e-6 * expected.abs().max(1.0), "token {at} {target}");
        }
        let mut rest = &got[t..];
        for (what, expected) in [
            ("dx", finite_differences(&x, |x| loss(x, &w, &b))),
            ("dW", finite_differences(&w, |w| loss(&x, w, &b))),
            ("db", finite_differences(&b, |b| loss(&x, &w, b))),
        ] {
            let error = relative_error(&rest[..expected.len()], &expected);
            assert!(error < 1e-6, "{what} of {t} tokens, {v} words: {error}");
            rest = &rest[expected.len()..];
        }
    }
}

#[test]
fn chunks_and_batches_do_not_show() {
    // More than one chunk.
    let (t, d, v) = (260, 2, 150_001);
    assert!(t * v * 4 > CHUNK_BYTES);
    for operand in [Operand::F32, Operand::Bf16] {
        let (x, w) = (numbers(1, t * d), numbers(2, v * d));
        let targets: Vec<u32> = (0..t).map(|i| (i * 997 % v) as u32).collect();
        let mut weight = PackedWeight::new(1, v, d, operand, true);
        weight.pack(&w);
        let head = Head { weight: Weight::Packed(&weight), bias: None, scale: 1.0, adapter: None };
        let g = vec![-0.01; t];
        let run = |range: Range<usize>| {
            let mut dw = vec![0.0; v * d];
            let x = Tensor::new(&x[range.start * d..range.end * d], &[range.len(), d]);
            let gradients = HeadGradients {
                dlogp_t: &g[range.clone()],
                z: 0.0,
                dweight: Some(&mut dw),
                dbias: None,
                adapter: LowRankGradients::default(),
                statistics: false,
                input: true,
            };
            let (log_probs, dx) = forward_backward(&x, head, &targets[range], gradients);
            (log_probs.logp_t.to_vec(), dx.expect("asked for").to_vec(), dw)
        };
        let (logp, dx, dw) = run(0..t);
        for range in [0..1, 7..40, 150..260] {
            let (some_logp, some_dx, _) = run(range.clone());
            assert_eq!(some_logp, logp[range.clone()]);
            assert_eq!(some_dx, dx[range.start * d..range.end * d]);
        }
        // Σ_v dW_vd = Σ_t x_td·Σ_v dl_tv = 0, since the gradients of a row's logits sum to zero.
        let sum: f64 = dw.iter().map(|x| f64::from(*x)).sum();
        let size: f64 = dw.iter().map(|x| f64::from(x.abs())).sum();
        assert!(sum.abs() < 2e-3 * size, "{sum} of {size}");
    }
}

#[test]
fn a_wide_model_and_several_blocks_match_the_formula() {
    let (t, d, v) = (470, 516, 910);
    assert!(d > 512 && t > block_size(d) && v > 2 * block_size(d));
    let (x, w) = (numbers(1, t * d), numbers(2, v * d));
    let (x, w): (Vec<f32>, Vec<f32>) = (x.iter().map(|x| x / 8.0).collect(), w.iter().map(|w| w / 8.0).collect());
    let targets: Vec<u32> = (0..t).map(|i| (i * 31 % v) as u32).collect();
    let g = numbers(3, t);
    let mut weight = PackedWeight::new(1, v, d, Operand::F32, true);
    weight.pack(&w);
    let head = Head { weight: Weight::Packed(&weight), bias: None, scale: 1.0, adapter: None };
    let mut dw = vec![0.0; v * d];
    let gradients = HeadGradients {
        dlogp_t: &g,
        z: 0.0,
        dweight: Some(&mut dw),
        dbias: None,
        adapter: LowRankGradients::default(),
        statistics: false,
        input: true,
    };
    let (_, dx) = forward_backward(&Tensor::new(&x, &[t, d]), head, &targets, gradients);
    let dx = dx.expect("asked for");
    let (x, w) = (wide(&x), wide(&w));
    let (mut expected_dx, mut expected_dw) = (vec![0.0; t * d], vec![0.0; v * d]);
    for t in 0..t {
        let x = &x[t * d..(t + 1) * d];
        let l: Vec<f64> = w.chunks_exact(d).map(|w| w.iter().zip(x).map(|(a, b)| a * b).sum()).collect();
        let sum: f64 = l.iter().map(|l| l.exp()).sum();
        for (i, l) in l.iter().enumerate() {
            let hit = f64::from(u8::from(targets[t] as usize == i));
            let dl = f64::from(g[t]) * (hit - l.exp() / sum);
            for j in 0..d {
                expected_dx[t * d + j] += dl * w[i * d + j];
                expected_dw[i * d + j] += dl * x[j];
            }
        }
    }
    assert!(relative_error(&dx, &expected_dx) < 1e-6);
    assert!(relative_error(&dw, &expected_dw) < 1e-6);
}

/// In fine-tuning on instructions or on questions, most tokens have no target.
#[test]
fn ignored_tokens_leave_no_trace() {
    let (t, d, v) = (61, 40, 230);
    let (x, w, b, g) = (numbers(1, t * d), numbers(2, v * d), numbers(3, v), numbers(4, t));
    let x = Tensor::new(&x, &[t, d]);
    let target = |i: usize| if i % 7 < 3 || i > 40 && i != 60 { IGNORE } else { (i * 5 % v) as u32 };
    let targets: Vec<u32> = (0..t).map(target).collect();
    for operand in [Operand::F32, Operand::Bf16] {
        let mut weight = PackedWeight::new(1, v, d, operand, true);
        weight.pack(&w);
        let head = Head { weight: Weight::Packed(&weight), bias: Some(&b), scale: 0.5, adapter: None };
        // With a target and without a gradient by it, a token takes part and adds zeros.
        let all: Vec<u32> = targets.iter().map(|t| if *t == IGNORE { 0 } else { *t }).collect();
        let zeroed: Vec<f32> = targets.iter().zip(&g).map(|(t, g)| if *t == IGNORE { 0.0 } else { *g }).collect();
        let run = |targets: &[u32], g: &[f32]| {
            let (mut dw, mut db) = (vec![0.0; v * d], vec![0.0; v]);
            let into = HeadGradients {
                dlogp_t: g,
                z: 0.0,
                dweight: Some(&mut dw),
                dbias: Some(&mut db),
                adapter: LowRankGradients::default(),
                statistics: true,
                input: true,
            };
            let (log_probs, dx) = forward_backward(&x, head, targets, into);
            (log_probs, [&dx.expect("asked for")[..], &dw, &db].concat())
        };
        let (some, gradients) = run(&targets, &g);
        let (every, expected) = run(&all, &zeroed);
        assert!(gradients == expected, "{operand:?}");
        let rows: Vec<u32> = (0..t as u32).filter(|t| targets[*t as usize] != IGNORE).collect();
        let own: Vec<u32> = rows.iter().map(|t| targets[*t as usize]).collect();
        let at = forward_at(&x, &rows, head, &own, true);
        for (i, t) in rows.iter().map(|t| *t as usize).enumerate() {
            for found in [&some, &forward(&x, head, &targets, false)] {
                assert_eq!((found.logp_t[t], found.lse_t[t]), (every.logp_t[t], every.lse_t[t]));
            }
            assert_eq!((at.logp_t[i], at.lse_t[i]), (every.logp_t[t], every.lse_t[t]));
            let top1 = |found: &LogProbs, t: usize| found.statistics.as_ref().expect("asked for").top1_t[t];
            assert_eq!(top1(&at, i), top1(&every, t));
        }
        assert!((0..t).all(|t| targets[t] != IGNORE || (some.logp_t[t], some.lse_t[t]) == (0.0, 0.0)));

        // Leaving out the gradient of a frozen head changes no other result.
        let mut dw = vec![0.0; v * d];
        let into = HeadGradients {
            dlogp_t: &g,
            z: 0.0,
            dweight: Some(&mut dw),
            dbias: None,
            adapter: LowRankGradients::default(),
            statistics: false,
            input: false,
        };
        assert!(forward_backward(&x, head, &targets, into).1.is_none());
        assert_eq!(dw, expected[t * d..t * d + v * d]);
        let into = HeadGradients {
            dlogp_t: &g,
            z: 0.0,
            dweight: None,
            dbias: None,
            adapter: LowRankGradients::default(),
            statistics: false,
            input: true,
        };
        let (_, dx) = forward_backward(&x, head, &targets, into);
        assert_eq!(dx.expect("asked for")[..], expected[..t * d]);
    }
}

/// More words than a slab has in a block, and the last band not full.
#[test]
fn the_way_back_through_quantised_words_is_that_of_their_numbers() {
    let (t, d, v) = (9, 64, 1000);
    let mut w = numbers(2, v * d);
    let format = BlockFormat::Q5_1;
    let mut blocks = vec![0; format.bytes(v * d).expect("whole blocks")];
    quantize(format, &w, &mut blocks);
    dequantize(format, &blocks, &mut w);
    let mut quantized = QuantizedWeight::new(format, 1, v, d);
    quantized.pack(0..quantized.strips().count(), &blocks);
    let (x, g) = (Tensor::new(&numbers(1, t * d), &[t, d]), numbers(4, t));
    let targets: Vec<u32> = (0..t).map(|i| (i * 77 % v) as u32).collect();
    let mut packed = PackedWeight::new(1, v, d, Operand::F32, true);
    packed.pack(&w);
    let [ours, dense] = [Weight::Quantized(&quantized, Operand::F32), Weight::Packed(&packed)].map(|weight| {
        let head = Head { weight, bias: None, scale: 1.0, adapter: None };
        let into = HeadGradients {
            dlogp_t: &g,
            z: 0.0,
            dweight: None,
            dbias: None,
            adapter: LowRankGradients::default(),
            statistics: false,
            input: true,
        };
        forward_backward(&x, head, &targets, into).1.expect("asked for")
    });
    // The logits differ by the rounding of the activations to eight bits.
    let error = relative_error(&ours, &wide(&dense));
    assert!((1e-6..3e-2).contains(&error), "{error}");
}

#[test]
fn nothing_in_nothing_out() {
    let mut weight = PackedWeight::new(1, 5, 3, Operand::F32, true);
    weight.pack(&numbers(1, 15));
    let head = Head { weight: Weight::Packed(&weight), bias: None, scale: 1.0, adapter: None };
    assert!(forward(&Tensor::zeros(&[0, 3]), head, &[], false).logp_t.is_empty());
    let nan = forward(&Tensor::new(&[f32::NAN, 0.0, 0.0], &[1, 3]), head, &[2], false);
    assert!(nan.logp_t[0].is_nan());
}

/// The adapter's results are those of the sum of the weights, and its gradients those of their factors.
#[test]
fn an_adapter_of_the_head_is_a_change_of_its_weight() {
    let (t, d, v, r, s) = (61, 6, 1000, 3, 0.5f32);
    let (x, w, a, b) = (numbers(1, t * d), numbers(2, v * d), numbers(3, r * d), numbers(4, v * r));
    let g = numbers(5, t);
    let targets: Vec<u32> = (0..t).map(|i| if i == 7 { IGNORE } else { (i * 37 % v) as u32 }).collect();
    let pack = |w: &[f32], out, input| {
        let mut packed = PackedWeight::new(1, out, input, Operand::F32, true);
        packed.pack(w);
        packed
    };
    let [mut dx_sum, mut logp_sum] = [(); 2].map(|()| Vec::new());
    let mut dw = vec![0.0; v * d];
    {
        let change = |i: usize| (0..r).map(|k| b[i / d * r + k] * a[k * d + i % d]).sum::<f32>();
        let sum: Vec<f32> = (0..v * d).map(|i| w[i] + s * change(i)).collect();
        let weight = pack(&sum, v, d);
        let head = Head { weight: Weight::Packed(&weight), bias: None, scale: 1.0, adapter: None };
        let adapter = LowRankGradients::default();
        let into = HeadGradients {
            dlogp_t: &g,
            z: 0.1,
            dweight: Some(&mut dw),
            dbias: None,
            adapter,
            statistics: false,
            input: true,
        };
        let (found, dx) = forward_backward(&Tensor::new(&x, &[t, d]), head, &targets, into);
        dx_sum.extend(wide(&dx.expect("asked for")));
        logp_sum.extend(wide(&found.logp_t));
    }
    let got = on_every_isa(|| {
        let (weight, a, b) = (pack(&w, v, d), pack(&a, r, d), pack(&b, v, r));
        let low_rank = LowRank { a: &a, b: &b, scale: s, rows: None, dropout: None };
        let head = Head { weight: Weight::Packed(&weight), bias: None, scale: 1.0, adapter: Some(low_rank) };
        let (mut da, mut db) = (vec![0.0; r * d], vec![0.0; v * r]);
        let adapter = LowRankGradients { a: Some(&mut da), b: Some(&mut db), magnitude: None };
        let into =
            HeadGradients { dlogp_t: &g, z: 0.1, dweight: None, dbias: None, adapter, statistics: false, input: true };
        let (found, dx) = forward_backward(&Tensor::new(&x, &[t, d]), head, &targets, into);
        [&found.logp_t[..], &dx.expect("asked for")[..], &da, &db].concat()
    });
    let (a, b, dw) = (wide(&a), wide(&b), wide(&dw));
    let s = f64::from(s);
    let da: Vec<f64> =
        (0..r * d).map(|at| s * (0..v).map(|o| b[o * r + at / d] * dw[o * d + at % d]).sum::<f64>()).collect();
    let db: Vec<f64> =
        (0..v * r).map(|at| s * (0..d).map(|i| dw[at / r * d + i] * a[at % r * d + i]).sum::<f64>()).collect();
    let mut rest = &got[..];
    for (what, expected) in [("logp", logp_sum), ("dx", dx_sum), ("dA", da), ("dB", db)] {
        let error = relative_error(&rest[..expected.len()], &expected);
        assert!(error < 3e-6, "{what}: {error}");
        rest = &rest[expected.len()..];
    }
}

#[test]
fn statistics_are_those_of_the_distributions() {
    let (t, d, v) = (9, 5, 77);
    let (x, w) = (numbers(1, t * d), numbers(2, v * d));
    let mut weight = PackedWeight::new(1, v, d, Operand::F32, false);
    weight.pack(&w);
    let head = Head { weight: Weight::Packed(&weight), bias: None, scale: 2.0, adapter: None };
    let x = Tensor::new(&x, &[t, d]);
    let all = logits(&x, head);
    let best = |t: usize| (0..v).max_by(|a, b| all.row(t)[*a].total_cmp(&all.row(t)[*b])).expect("words");
    let targets: Vec<u32> = (0..t)
        .map(|t| {
            if t == 4 {
                IGNORE
            } else if t % 2 == 0 {
                best(t) as u32
            } else {
                3
            }
        })
        .collect();
    let got = on_every_isa(|| {
        let found = forward(&x, head, &targets, true).statistics.expect("asked for");
        [&found.entropy_t[..], &found.log_square_sum_t, &found.mean_logit_t, &found.top1_t].concat()
    });
    for (at, target) in targets.iter().enumerate() {
        let l = wide(all.row(at));
        let lse = l.iter().map(|x| x.exp()).sum::<f64>().ln();
        let expected = match *target {
            IGNORE => [0.0; 4],
            target => [
                -l.iter().map(|x| (x - lse).exp() * (x - lse)).sum::<f64>(),
                l.iter().map(|x| (2.0 * (x - lse)).exp()).sum::<f64>().ln(),
                l.iter().sum::<f64>() / v as f64,
                if target as usize == best(at) { 1.0 } else { 0.0 },
            ],
        };
        for (what, expected) in expected.into_iter().enumerate() {
            let found = f64::from(got[what * t + at]);
            assert!((found - expected).abs() < 1e-5 * expected.abs().max(1.0), "{what} of {at}: {found} {expected}");
        }
    }
}
