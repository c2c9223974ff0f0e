//! Tests of feed-forward layers.

mod adapters;

use std::ops::Range;

use super::*;
use crate::gemm::Operand;
use crate::ops::linear::PackedWeight;
use crate::ops::router;
use crate::quant::product::QuantizedWeight;
use crate::quant::{BlockFormat, dequantize, quantize};
use crate::testing::{finite_differences, numbers, on_every_isa, on_every_isa_and_threads, relative_error, wide};

/// The three steps of the forward pass; everything is kept.
fn forward(x_td: &Tensor, mlp: &MlpWeights<'_>, assignment: &Assignment) -> (Tensor, MlpSaved) {
    let (out_sd, saved) = experts(dispatch(x_td, assignment), mlp, true);
    (combine(out_sd, assignment), saved.expect("the inputs of the activation function were kept"))
}

/// The three steps of the backward pass.
fn backward(
    x_td: &Tensor,
    mlp: &MlpWeights<'_>,
    assignment: &Assignment,
    saved: &MlpSaved,
    dy_td: &Tensor,
    gradients: MlpGradients<'_>,
) -> (Tensor, Buffer<f32>) {
    let output = combine_backward(dy_td, assignment);
    let (dx_sd, dweight_s) = experts_backward(dispatch(x_td, assignment), mlp, saved, output, gradients, true);
    (dispatch_backward(dx_sd.expect("asked for"), assignment), dweight_s)
}

/// A layer of E experts with its numbers and its routing.
struct MlpCase {
    tokens: usize,
    d: usize,
    width: usize,
    experts: usize,
    gated: bool,
    activation: Nonlinearity,
    /// Which expert each (token, choice) goes to.
    routing: router::Routing,
}

impl MlpCase {
    /// A case in which tokens choose experts by the logits, `[T, E]`.
    fn new(logits: &[f32], experts: usize, top_k: usize, d: usize, width: usize, gated: bool) -> MlpCase {
        let tokens = logits.len() / experts;
        let routing = router::forward(Tensor::new(logits, &[tokens, experts]), top_k, false);
        MlpCase { tokens, d, width, experts, gated, activation: Nonlinearity::Silu, routing }
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
        let mlp = MlpWeights {
            gate: gate.as_ref().map(Weight::Packed),
            up: Weight::Packed(&up),
            down: Weight::Packed(&down),
            activation: self.activation,
            biases: PerMatrix::default(),
            adapters: PerMatrix::default(),
        };
        let assignment = router::assign(&self.routing, None);
        let x = Tensor::new(x, &[self.tokens, d]);
        let (y, saved) = forward(&x, &mlp, &assignment);
        let (mut dg, mut du, mut dd) = (vec![0.0; wg.len()], vec![0.0; wu.len()], vec![0.0; wd.len()]);
        let gradients = MlpGradients {
            gate: self.gated.then_some(&mut dg[..]),
            up: Some(&mut du),
            down: Some(&mut dd),
            biases: PerMatrix::default(),
            adapters: PerMatrix::default(),
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
                        (false, Nonlinearity::Relu) => u.max(0.0),
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
    // One token; odd sizes; all tokens on one expert and none on another; no token.
    MlpCase::new(&numbers(9, 4), 4, 2, 3, 5, true).check();
    MlpCase::new(&numbers(8, 7 * 3), 3, 2, 5, 7, true).check();
    MlpCase::new(&[0.0, 9.0, 1.0].repeat(19), 3, 1, 4, 3, true).check();
    MlpCase::new(&[], 3, 1, 4, 3, true).check();
    let mut plain = MlpCase::new(&numbers(7, 5 * 4), 4, 3, 4, 6, false);
    plain.check();
    plain.activation = Nonlinearity::Relu;
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
            let case = MlpCase::new(logits, experts, top_k, d, width, true);
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

/// Whether the layer is computed block by block depends on the number of rows; the bits do not depend on it.
#[test]
fn both_ways_through_the_layer_give_the_same_bits() {
    let (experts, d, width, tokens) = (3, 40, 36, 260);
    for (gated, operand) in [(true, Operand::Bf16), (false, Operand::F32)] {
        let case = MlpCase::new(&numbers(7, tokens * experts), experts, 2, d, width, gated);
        let [wg, wu, wd] = case.weights();
        let pack = |w: &[f32], out, input| {
            let mut packed = PackedWeight::new(experts, out, input, operand, false);
            packed.pack(w);
            packed
        };
        let (up, down) = (pack(&wu, width, d), pack(&wd, d, width));
        let gate = gated.then(|| pack(&wg, width, d));
        let bias = numbers(8, d);
        let mlp = MlpWeights {
            gate: gate.as_ref().map(Weight::Packed),
            up: Weight::Packed(&up),
            down: Weight::Packed(&down),
            activation: Nonlinearity::Silu,
            biases: PerMatrix { gate: None, up: Some(&bias[..width]), down: Some(&bias) },
            adapters: PerMatrix::default(),
        };
        let x = Tensor::new(&numbers(9, tokens * d), &[tokens, d]);
        let assignment = router::assign(&case.routing, None);
        let all = |(out_sd, saved): (Tensor, Option<MlpSaved>)| {
            let saved = saved.expect("the inputs of the activation function were kept");
            [&out_sd[..], &saved.up_si, saved.gate_si.as_deref().unwrap_or(&[])].concat()
        };
        let slots = dispatch(&x, &assignment);
        let by_products = on_every_isa_and_threads(|| all(by_products(slots, &mlp, true)));
        assert_eq!(by_products, all(by_blocks(slots, &mlp, true)));
        let (out_sd, nothing) = by_blocks(slots, &mlp, false);
        assert!(nothing.is_none() && by_products.starts_with(&out_sd));
    }
    // A single token is never computed block by block; a thousand tokens of one expert are.
    assert!(!fills_blocks(&[0, 1, 1, 2]) && !fills_blocks(&[0]));
    assert!(fills_blocks(&[0, (BLOCK_ROWS * BLOCKS_PER_THREAD * num_threads()) as u32]));
}

#[test]
fn a_dropped_choice_adds_nothing() {
    let case = MlpCase::new(&[0.0, 5.0].repeat(4), 2, 1, 3, 4, true);
    let [wg, wu, wd] = case.weights();
    let pack = |w: &[f32], out, input| {
        let mut packed = PackedWeight::new(2, out, input, Operand::F32, false);
        packed.pack(w);
        packed
    };
    let (gate, up, down) = (pack(&wg, 4, 3), pack(&wu, 4, 3), pack(&wd, 3, 4));
    let biases = PerMatrix::default();
    let mlp = MlpWeights {
        gate: Some(Weight::Packed(&gate)),
        up: Weight::Packed(&up),
        down: Weight::Packed(&down),
        activation: Nonlinearity::Silu,
        biases,
        adapters: PerMatrix::default(),
    };
    let x = Tensor::new(&numbers(4, 12), &[4, 3]);
    let (all, _) = forward(&x, &mlp, &router::assign(&case.routing, None));
    let (some, _) = forward(&x, &mlp, &router::assign(&case.routing, Some(3)));
    assert_eq!(some[..9], all[..9]);
    assert_eq!(some[9..], [0.0; 3]);
}

/// With many rows for each expert threads take whole blocks, with few they share every product: the bits are the same.
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
            let mlp = MlpWeights {
                gate: gate.map(|gate| Weight::Quantized(gate, Operand::F32)),
                up: Weight::Quantized(&up, Operand::F32),
                down: Weight::Quantized(&down, Operand::F32),
                activation: Nonlinearity::Silu,
                biases: PerMatrix::default(),
                adapters: PerMatrix::default(),
            };
            let x = Tensor::new(&x[tokens.start * d..tokens.end * d], &[tokens.len(), d]);
            forward(&x, &mlp, &router::assign(&routing, None)).0.to_vec()
        };
        let together = on_every_isa_and_threads(|| run(0..tokens));
        let alone: Vec<f32> = (0..tokens).flat_map(|token| run(token..token + 1)).collect();
        assert_eq!(together, alone);
    }
}

/// The packed weights of some of four experts.
fn packed_of(w: &[f32], experts: Range<usize>, out: usize, input: usize, operand: Operand) -> PackedWeight {
    let mut packed = PackedWeight::new(experts.len(), out, input, operand, true);
    packed.pack(&w[experts.start * out * input..experts.end * out * input]);
    packed
}

/// Two ranks with half of the experts each get copies of the rows, and the outputs that they return are combined.
#[test]
fn experts_elsewhere_give_the_same_bits() {
    let (num_experts, d, width, tokens) = (4, 40, 36, 230);
    let routing = router::forward(Tensor::new(&numbers(7, tokens * 4), &[tokens, 4]), 2, false);
    let assignment = router::assign(&routing, Some(100));
    let [wg, wu, wd] = [1, 2, 3].map(|seed| numbers(seed, num_experts * d * width));
    let (x, dy) = (numbers(4, tokens * d), numbers(5, tokens * d));
    let (x, dy) = (Tensor::new(&x, &[tokens, d]), Tensor::new(&dy, &[tokens, d]));
    for operand in [Operand::F32, Operand::Bf16] {
        // Outputs, and gradients of the rows, of the weights of the slots and of the matrices, from some of the
        // experts.
        let run = |own: Range<usize>, slots: Slots<'_>, output: OutputGradients<'_>| {
            let pack = |w, out, input| packed_of(w, own.clone(), out, input, operand);
            let (gate, up, down) = (pack(&wg, width, d), pack(&wu, width, d), pack(&wd, d, width));
            let mlp = MlpWeights {
                gate: Some(Weight::Packed(&gate)),
                up: Weight::Packed(&up),
                down: Weight::Packed(&down),
                activation: Nonlinearity::Silu,
                biases: PerMatrix::default(),
                adapters: PerMatrix::default(),
            };
            let mut dw = [(); 3].map(|()| vec![0.0; own.len() * d * width]);
            let (out_sd, saved) = experts(slots, &mlp, true);
            let [gate, up, down] = dw.each_mut().map(|dw| Some(&mut dw[..]));
            let gradients =
                MlpGradients { gate, up, down, biases: PerMatrix::default(), adapters: PerMatrix::default() };
            let saved = saved.expect("the inputs of the activation function were kept");
            let (dx_sd, dweight_s) = experts_backward(slots, &mlp, &saved, output, gradients, true);
            (out_sd.to_vec(), dx_sd.expect("asked for").to_vec(), dweight_s.to_vec(), dw)
        };
        let here = run(0..4, dispatch(&x, &assignment), combine_backward(&dy, &assignment));
        let mut there = (vec![], vec![], vec![], [vec![], vec![], vec![]]);
        for own in [0..1, 1..4] {
            let slots = assignment.offsets_e[own.start] as usize..assignment.offsets_e[own.end] as usize;
            let sent = |rows: &Tensor| {
                let tokens = assignment.token_s[slots.clone()].iter();
                let rows: Vec<f32> = tokens.flat_map(|token| rows.row(*token as usize).to_vec()).collect();
                Tensor::new(&rows, &[slots.len(), d])
            };
            let offsets = assignment.offsets_e[own.start..=own.end].iter();
            let offsets: Vec<u32> = offsets.map(|at| at - slots.start as u32).collect();
            let (x, dy) = (sent(&x), sent(&dy));
            let received = |rows| Slots { rows, index: None, offsets_e: &offsets };
            let output = OutputGradients { dy: received(&dy), weight_s: &assignment.weight_s[slots.clone()] };
            let (out, dx, dweight, dw) = run(own, received(&x), output);
            there.0.extend(out);
            there.1.extend(dx);
            there.2.extend(dweight);
            there.3.iter_mut().zip(dw).for_each(|(all, own)| all.extend(own));
        }
        assert!(here == there, "{operand:?}");
    }
}

#[test]
fn what_is_not_asked_for_changes_nothing_else() {
    let case = MlpCase::new(&numbers(7, 150 * 3), 3, 2, 40, 36, true);
    let [wg, wu, wd] = case.weights();
    let (gate, up) = (packed_of(&wg, 0..3, 36, 40, Operand::Bf16), packed_of(&wu, 0..3, 36, 40, Operand::Bf16));
    let down = packed_of(&wd, 0..3, 40, 36, Operand::Bf16);
    let mlp = MlpWeights {
        gate: Some(Weight::Packed(&gate)),
        up: Weight::Packed(&up),
        down: Weight::Packed(&down),
        activation: Nonlinearity::Silu,
        biases: PerMatrix::default(),
        adapters: PerMatrix::default(),
    };
    let (x, dy) = (numbers(4, 150 * 40), numbers(5, 150 * 40));
    let (x, dy) = (Tensor::new(&x, &[150, 40]), Tensor::new(&dy, &[150, 40]));
    let assignment = router::assign(&case.routing, None);
    let (_, saved) = forward(&x, &mlp, &assignment);
    let run = |wanted: [bool; 3], input: bool| {
        let mut dw = [(); 3].map(|()| vec![0.0; wg.len()]);
        let mut into = dw.iter_mut().zip(wanted).map(|(dw, wanted)| wanted.then_some(&mut dw[..]));
        let [gate, up, down] = [(); 3].map(|()| into.next().flatten());
        let gradients = MlpGradients { gate, up, down, biases: PerMatrix::default(), adapters: PerMatrix::default() };
        let output = combine_backward(&dy, &assignment);
        let (dx, dweight) = experts_backward(dispatch(&x, &assignment), &mlp, &saved, output, gradients, input);
        (dx.map(|dx| dx.to_vec()), dweight.to_vec(), dw)
    };
    let (dx, dweight, dw) = run([true; 3], true);
    for wanted in 0..8 {
        let wanted = [wanted & 1 != 0, wanted & 2 != 0, wanted & 4 != 0];
        let (some_dx, some_dweight, some_dw) = run(wanted, wanted[0]);
        assert_eq!(some_dx, dx.clone().filter(|_| wanted[0]));
        assert_eq!(some_dweight, dweight);
        for i in 0..3 {
            assert!(if wanted[i] { some_dw[i] == dw[i] } else { some_dw[i].iter().all(|x| *x == 0.0) });
        }
    }
}

/// With the same inputs of the activation function, quantised weights and their dequantised numbers give the same
/// gradients.
#[test]
fn the_way_back_through_blocks_is_that_of_their_numbers() {
    let (experts, d, width, tokens) = (3, 256, 512, 60);
    let routing = router::forward(Tensor::new(&numbers(7, tokens * 3), &[tokens, 3]), 2, false);
    let assignment = router::assign(&routing, None);
    let (x, dy) = (numbers(4, tokens * d), numbers(5, tokens * d));
    let (x, dy) = (Tensor::new(&x, &[tokens, d]), Tensor::new(&dy, &[tokens, d]));
    for (format, operand) in
        [(BlockFormat::Q4K, Operand::Bf16), (BlockFormat::Q6K, Operand::F32), (BlockFormat::Q8_0, Operand::F32)]
    {
        let pack = |seed: usize, out: usize, input: usize| {
            let mut w = numbers(seed, experts * out * input);
            let mut blocks = vec![0; format.bytes(w.len()).unwrap()];
            quantize(format, &w, &mut blocks);
            dequantize(format, &blocks, &mut w);
            let mut weight = QuantizedWeight::new(format, experts, out, input);
            weight.pack(0..weight.strips().count(), &blocks);
            (weight, packed_of(&w, 0..experts, out, input, operand))
        };
        let (gate, up, down) = (pack(1, width, d), pack(2, width, d), pack(3, d, width));
        let mlp = |blocks: bool| {
            let weight = |(quantized, packed)| -> Weight<'_> {
                if blocks { Weight::Quantized(quantized, operand) } else { Weight::Packed(packed) }
            };
            MlpWeights {
                gate: Some(weight((&gate.0, &gate.1))),
                up: weight((&up.0, &up.1)),
                down: weight((&down.0, &down.1)),
                activation: Nonlinearity::Silu,
                biases: PerMatrix::default(),
                adapters: PerMatrix::default(),
            }
        };
        let (_, saved) = forward(&x, &mlp(false), &assignment);
        let run = |blocks: bool| {
            let gradients = MlpGradients {
                gate: None,
                up: None,
                down: None,
                biases: PerMatrix::default(),
                adapters: PerMatrix::default(),
            };
            let (dx, dweight) = backward(&x, &mlp(blocks), &assignment, &saved, &dy, gradients);
            [&dx[..], &dweight].concat()
        };
        assert_eq!(on_every_isa_and_threads(|| run(true)), run(false), "{}", format.name());
        // The inputs that a forward pass with quantised weights keeps are close to these.
        let (_, kept) = forward(&x, &mlp(true), &assignment);
        let error = crate::testing::relative_error(&kept.up_si, &wide(&saved.up_si));
        assert!((1e-6..3e-2).contains(&error), "{error}");
    }
}
