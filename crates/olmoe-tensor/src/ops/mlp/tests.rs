//! Tests of feed-forward layers.

use std::ops::Range;

use super::*;
use crate::gemm::Operand;
use crate::ops::linear::PackedWeight;
use crate::ops::router;
use crate::quant::product::QuantizedWeight;
use crate::quant::{BlockFormat, quantize};
use crate::testing::{finite_differences, numbers, on_every_isa, on_every_isa_and_threads, relative_error, wide};

/// A layer of E experts and the numbers of its case.
struct Case {
    tokens: usize,
    d: usize,
    width: usize,
    experts: usize,
    gated: bool,
    activation: Activation,
    /// Which expert each (token, choice) goes to.
    routing: router::Routing,
}

impl Case {
    /// Tokens choose by the logits, `[T, E]`.
    fn new(logits: &[f32], experts: usize, top_k: usize, d: usize, width: usize, gated: bool) -> Case {
        let tokens = logits.len() / experts;
        let routing = router::forward(Tensor::new(logits, &[tokens, experts]), top_k, false);
        Case { tokens, d, width, experts, gated, activation: Activation::Silu, routing }
    }

    fn weights(&self) -> [Vec<f32>; 3] {
        let len = self.experts * self.width * self.d;
        [numbers(1, if self.gated { len } else { 0 }), numbers(2, len), numbers(3, len)]
    }

    /// `y` and, of `dy`, the gradients of x, the slots' weights, and the three weights, one after the other.
    fn run(&self, x: &[f32], dy: &[f32], operand: Operand) -> Vec<f32> {
        let (e, d, i) = (self.experts, self.d, self.width);
        let [wg, wu, wd] = self.weights();
        let pack = |w: &[f32], out, input| {
            let mut packed = PackedWeight::new(e, out, input, operand, true);
            packed.pack(w);
            packed
        };
        let (up, down) = (pack(&wu, i, d), pack(&wd, d, i));
        let gate = self.gated.then(|| pack(&wg, i, d));
        let mlp = Mlp {
            gate: gate.as_ref().map(Weight::Packed),
            up: Weight::Packed(&up),
            down: Weight::Packed(&down),
            activation: self.activation,
            biases: Biases::default(),
        };
        let assignment = router::assign(&self.routing, None);
        let x = Tensor::new(x, &[self.tokens, d]);
        let (y, saved) = forward(&x, &mlp, &assignment);
        let (mut dg, mut du, mut dd) = (vec![0.0; wg.len()], vec![0.0; wu.len()], vec![0.0; wd.len()]);
        let gradients = Gradients {
            gate: self.gated.then_some(&mut dg[..]),
            up: &mut du,
            down: &mut dd,
            biases: Biases::default(),
        };
        let dy = Tensor::new(dy, &[self.tokens, d]);
        let (dx, dweight_s) = backward(&x, &mlp, &assignment, &saved, &dy, gradients);
        let dweights: Vec<f32> = assignment.slot_tk.iter().map(|slot| dweight_s[*slot as usize]).collect();
        [&y[..], &dx, &dweights, &dg, &du, &dd].concat()
    }

    fn naive(&self, x: &[f64], weights_tk: &[f64], wg: &[f64], wu: &[f64], wd: &[f64]) -> Vec<f64> {
        let (d, i, k) = (self.d, self.width, self.routing.ids_tk.cols());
        let mut y = vec![0.0; self.tokens * d];
        let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (at, e) in self.routing.ids_tk.iter().enumerate() {
            let (t, e) = (at / k, *e as usize);
            let x = &x[t * d..(t + 1) * d];
            let project =
                |w: &[f64], row: usize| -> f64 { x.iter().zip(&w[(e * i + row) * d..]).map(|(x, w)| x * w).sum() };
            let act: Vec<f64> = (0..i)
                .map(|row| {
                    let u = project(wu, row);
                    match (self.gated, self.activation) {
                        (true, _) => {
                            let g = project(wg, row);
                            g * sigma(g) * u
                        }
                        (false, Activation::Relu) => u.max(0.0),
                        (false, _) => u * sigma(u),
                    }
                })
                .collect();
            for row in 0..d {
                let o: f64 = act.iter().zip(&wd[(e * d + row) * i..]).map(|(a, w)| a * w).sum();
                y[t * d + row] += weights_tk[at] * o;
            }
        }
        y
    }

    fn check(&self) {
        let (t, d, k) = (self.tokens, self.d, self.routing.ids_tk.cols());
        let (x, dy) = (numbers(4, t * d), numbers(5, t * d));
        let got = on_every_isa(|| self.run(&x, &dy, Operand::F32));
        let [wg, wu, wd] = self.weights().map(|w| wide(&w));
        let (x, dy, w) = (wide(&x), wide(&dy), wide(&self.routing.weights_tk));
        let loss = |y: Vec<f64>| y.iter().zip(&dy).map(|(a, b)| a * b).sum();
        let mut rest = &got[..];
        for (what, expected) in [
            ("y", self.naive(&x, &w, &wg, &wu, &wd)),
            ("dx", finite_differences(&x, |x| loss(self.naive(x, &w, &wg, &wu, &wd)))),
            ("dweights", finite_differences(&w, |w| loss(self.naive(&x, w, &wg, &wu, &wd)))),
            ("dWg", finite_differences(&wg, |wg| loss(self.naive(&x, &w, wg, &wu, &wd)))),
            ("dWu", finite_differences(&wu, |wu| loss(self.naive(&x, &w, &wg, wu, &wd)))),
            ("dWd", finite_differences(&wd, |wd| loss(self.naive(&x, &w, &wg, &wu, wd)))),
        ] {
            let error = relative_error(&rest[..expected.len()], &expected);
            assert!(
                error < 1e-6,
                "{what} of {t} tokens, {} experts, top {k}, gate {}: {error}",
                self.experts,
                self.gated
            );
            rest = &rest[expected.len()..];
        }
        assert!(rest.is_empty());
    }
}

#[test]
fn gradients_match_finite_differences() {
    // One token; an odd everything; all tokens on one expert and none on another; no token at all.
    Case::new(&numbers(9, 4), 4, 2, 3, 5, true).check();
    Case::new(&numbers(8, 7 * 3), 3, 2, 5, 7, true).check();
    Case::new(&[0.0, 9.0, 1.0].repeat(19), 3, 1, 4, 3, true).check();
    Case::new(&[], 3, 1, 4, 3, true).check();
    let mut plain = Case::new(&numbers(7, 5 * 4), 4, 3, 4, 6, false);
    plain.check();
    plain.activation = Activation::Relu;
    plain.check();
}

#[test]
fn many_slots_many_blocks_and_any_batch() {
    let (experts, top_k, d, width, tokens) = (5, 2, 40, 36, 300);
    let logits = numbers(1, tokens * experts);
    let (x, dy) = (numbers(4, tokens * d), numbers(5, tokens * d));
    for operand in [Operand::F32, Operand::Bf16] {
        let run = |range: Range<usize>| {
            let logits = &logits[range.start * experts..range.end * experts];
            let case = Case::new(logits, experts, top_k, d, width, true);
            case.run(&x[range.start * d..range.end * d], &dy[range.start * d..range.end * d], operand)
        };
        let all = on_every_isa(|| run(0..tokens));
        for range in [0..1, 17..29, 150..300] {
            let some = run(range.clone());
            let (n, own) = (range.len() * d, range.start * d..range.end * d);
            assert_eq!(some[..n], all[own.clone()], "outputs of tokens {range:?}");
            assert_eq!(some[n..2 * n], all[tokens * d..][own], "input gradients of tokens {range:?}");
        }
    }
}

/// The way through the layer is chosen by the number of rows, and does not show in the bits.
#[test]
fn both_ways_through_the_layer_give_the_same_bits() {
    let (experts, d, width, tokens) = (3, 40, 36, 260);
    for (gated, operand) in [(true, Operand::Bf16), (false, Operand::F32)] {
        let case = Case::new(&numbers(7, tokens * experts), experts, 2, d, width, gated);
        let [wg, wu, wd] = case.weights();
        let pack = |w: &[f32], out, input| {
            let mut packed = PackedWeight::new(experts, out, input, operand, false);
            packed.pack(w);
            packed
        };
        let (up, down) = (pack(&wu, width, d), pack(&wd, d, width));
        let gate = gated.then(|| pack(&wg, width, d));
        let bias = numbers(8, d);
        let mlp = Mlp {
            gate: gate.as_ref().map(Weight::Packed),
            up: Weight::Packed(&up),
            down: Weight::Packed(&down),
            activation: Activation::Silu,
            biases: Biases { gate: None, up: Some(&bias[..width]), down: Some(&bias) },
        };
        let x = Tensor::new(&numbers(9, tokens * d), &[tokens, d]);
        let assignment = router::assign(&case.routing, None);
        let all = |(out_sd, saved): (Tensor, Saved)| {
            [&out_sd[..], &saved.up_si, saved.gate_si.as_deref().unwrap_or(&[])].concat()
        };
        let by_products = on_every_isa_and_threads(|| all(by_products(&x, &mlp, &assignment)));
        assert_eq!(by_products, all(by_blocks(&x, &mlp, &assignment)));
    }
    // A token alone never goes by blocks, a thousand of one expert do.
    assert!(!fills_blocks(&[0, 1, 1, 2]) && !fills_blocks(&[0]));
    assert!(fills_blocks(&[0, (BLOCK_ROWS * BLOCKS_PER_THREAD * num_threads()) as u32]));
}

#[test]
fn a_dropped_choice_adds_nothing() {
    let case = Case::new(&[0.0, 5.0].repeat(4), 2, 1, 3, 4, true);
    let [wg, wu, wd] = case.weights();
    let pack = |w: &[f32], out, input| {
        let mut packed = PackedWeight::new(2, out, input, Operand::F32, false);
        packed.pack(w);
        packed
    };
    let (gate, up, down) = (pack(&wg, 4, 3), pack(&wu, 4, 3), pack(&wd, 3, 4));
    let biases = Biases::default();
    let mlp = Mlp {
        gate: Some(Weight::Packed(&gate)),
        up: Weight::Packed(&up),
        down: Weight::Packed(&down),
        activation: Activation::Silu,
        biases,
    };
    let x = Tensor::new(&numbers(4, 12), &[4, 3]);
    let (all, _) = forward(&x, &mlp, &router::assign(&case.routing, None));
    let (some, _) = forward(&x, &mlp, &router::assign(&case.routing, Some(3)));
    assert_eq!(some[..9], all[..9]);
    assert_eq!(some[9..], [0.0; 3]);
}

/// Many rows for each expert, so that threads take whole blocks, and few, so that they share every product: the same bits.
#[test]
fn quantised_tokens_alone_are_tokens_together() {
    let (experts, d, width, tokens) = (12, 64, 96, 70);
    let pack = |seed: usize, out: usize, input: usize, format: BlockFormat| {
        let mut blocks = vec![0; format.bytes(experts * out * input).unwrap()];
        quantize(format, &numbers(seed, experts * out * input), &mut blocks);
        let mut weight = QuantizedWeight::new(format, experts, out, input);
        weight.pack(0..weight.strips().count(), &blocks);
        weight
    };
    let gate = pack(1, width, d, BlockFormat::Q5_1);
    let (up, down) = (pack(2, width, d, BlockFormat::Q8_0), pack(3, d, width, BlockFormat::Q4_0));
    let (x, logits) = (numbers(4, tokens * d), numbers(5, tokens * experts));
    for gate in [Some(&gate), None] {
        let run = |tokens: Range<usize>| {
            let logits = &logits[tokens.start * experts..tokens.end * experts];
            let routing = router::forward(Tensor::new(logits, &[tokens.len(), experts]), 6, false);
            let mlp = Mlp {
                gate: gate.map(Weight::Quantized),
                up: Weight::Quantized(&up),
                down: Weight::Quantized(&down),
                activation: Activation::Silu,
                biases: Biases::default(),
            };
            let x = Tensor::new(&x[tokens.start * d..tokens.end * d], &[tokens.len(), d]);
            forward(&x, &mlp, &router::assign(&routing, None)).0.to_vec()
        };
        let together = on_every_isa_and_threads(|| run(0..tokens));
        let alone: Vec<f32> = (0..tokens).flat_map(|token| run(token..token + 1)).collect();
        assert_eq!(together, alone);
    }
}
