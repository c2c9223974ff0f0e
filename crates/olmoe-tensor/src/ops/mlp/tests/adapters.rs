//! Adapters of the matrices of experts, against the formulas and their finite differences.

use super::*;
use crate::ops::low_rank::{RowFactors, row_norms};

const EXPERTS: usize = 3;
const D: usize = 6;
const WIDTH: usize = 5;
const RANK: usize = 2;
const SCALE: f32 = 0.75;

/// The numbers of a matrix of the layer and of its adapter.
#[derive(Clone)]
struct Numbers<T> {
    w: Vec<T>,
    a: Vec<T>,
    b: Vec<T>,
    m: Vec<T>,
}

impl<T> Numbers<T> {
    fn map<U>(&self, to: impl Fn(&[T]) -> Vec<U>) -> Numbers<U> {
        Numbers { w: to(&self.w), a: to(&self.a), b: to(&self.b), m: to(&self.m) }
    }
}

/// Matrices `[out, in]` of gate, up and down.
const SHAPES: [[usize; 2]; 3] = [[WIDTH, D], [WIDTH, D], [D, WIDTH]];

fn all_numbers(shared: bool) -> [Numbers<f32>; 3] {
    let experts = if shared { 1 } else { EXPERTS };
    std::array::from_fn(|at| {
        let [out, input] = SHAPES[at];
        let seed = 10 * at;
        Numbers {
            w: numbers(seed + 1, EXPERTS * out * input),
            a: numbers(seed + 2, experts * RANK * input),
            b: numbers(seed + 3, experts * out * RANK),
            m: numbers(seed + 4, EXPERTS * out).iter().map(|m| m + 2.0).collect(),
        }
    })
}

/// `‖W + s·B·A‖` of each row, in f64.
fn naive_norms(n: &Numbers<f64>, [out, input]: [usize; 2]) -> Vec<f64> {
    let row =
        |at: usize| (0..input).map(|i| effective(n, [out, input], at / out, at % out, i).powi(2)).sum::<f64>().sqrt();
    (0..EXPERTS * out).map(row).collect()
}

/// A number of `W + s·B·A`.
fn effective(n: &Numbers<f64>, [out, input]: [usize; 2], e: usize, o: usize, i: usize) -> f64 {
    let a = if n.a.len() == RANK * input { 0 } else { e };
    let b = if n.b.len() == out * RANK { 0 } else { e };
    let low: f64 = (0..RANK).map(|r| n.b[(b * out + o) * RANK + r] * n.a[(a * RANK + r) * input + i]).sum();
    n.w[(e * out + o) * input + i] + f64::from(SCALE) * low
}

fn naive(x: &[f64], all: &[Numbers<f64>; 3], norms: Option<&[Vec<f64>; 3]>, assignment: &Assignment) -> Vec<f64> {
    let times = |at: usize, e: usize, x: &[f64]| -> Vec<f64> {
        let [out, input] = SHAPES[at];
        let product = |o: usize| {
            let sum: f64 = (0..input).map(|i| effective(&all[at], SHAPES[at], e, o, i) * x[i]).sum();
            norms.map_or(1.0, |norms| all[at].m[e * out + o] / norms[at][e * out + o]) * sum
        };
        (0..out).map(product).collect()
    };
    let mut y = vec![0.0; x.len()];
    for e in 0..EXPERTS {
        for s in assignment.offsets_e[e] as usize..assignment.offsets_e[e + 1] as usize {
            let t = assignment.token_s[s] as usize;
            let x = &x[t * D..(t + 1) * D];
            let (gate, up) = (times(0, e, x), times(1, e, x));
            let act: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            for (y, o) in y[t * D..].iter_mut().zip(times(2, e, &act)) {
                *y += f64::from(assignment.weight_s[s]) * o;
            }
        }
    }
    y
}

/// `y`, then the gradients of x and of the A, B and magnitude of each matrix.
fn run(x: &[f32], dy: &[f32], all: &[Numbers<f32>; 3], dora: bool, assignment: &Assignment) -> Vec<f32> {
    let tokens = x.len() / D;
    let pack = |w: &[f32], [out, input]: [usize; 2]| {
        let mut packed = PackedWeight::new(w.len() / (out * input), out, input, Operand::F32, true);
        packed.pack(w);
        packed
    };
    let packed: Vec<[PackedWeight; 3]> = (0..3)
        .map(|at| {
            let [out, input] = SHAPES[at];
            [pack(&all[at].w, [out, input]), pack(&all[at].a, [RANK, input]), pack(&all[at].b, [out, RANK])]
        })
        .collect();
    let rows: Vec<(Buffer<f32>, Buffer<f32>)> = (0..3)
        .map(|at| {
            let norms = row_norms(Weight::Packed(&packed[at][0]), &all[at].a, &all[at].b, RANK, SCALE);
            let mut factors = Buffer::copy_of(&all[at].m);
            factors.iter_mut().zip(norms.iter()).for_each(|(m, n)| *m /= n);
            (factors, norms)
        })
        .collect();
    let adapter = |at: usize| LowRank {
        a: &packed[at][1],
        b: &packed[at][2],
        scale: SCALE,
        dropout: None,
        rows: dora.then(|| RowFactors { factors: &rows[at].0, norms: &rows[at].1 }),
    };
    let mlp = MlpWeights {
        gate: Some(Weight::Packed(&packed[0][0])),
        up: Weight::Packed(&packed[1][0]),
        down: Weight::Packed(&packed[2][0]),
        activation: Nonlinearity::Silu,
        biases: PerMatrix::default(),
        adapters: PerMatrix { gate: Some(adapter(0)), up: Some(adapter(1)), down: Some(adapter(2)) },
    };
    let x = Tensor::new(x, &[tokens, D]);
    let (y, saved) = forward(&x, &mlp, assignment);
    let mut into: Vec<[Vec<f32>; 3]> =
        all.iter().map(|n| [&n.a, &n.b, &n.m].map(|numbers| vec![0.0; numbers.len()])).collect();
    let mut gradients = into.iter_mut().map(|[a, b, m]| LowRankGradients {
        a: Some(&mut a[..]),
        b: Some(&mut b[..]),
        magnitude: dora.then_some(&mut m[..]),
    });
    let adapters = PerMatrix { gate: gradients.next(), up: gradients.next(), down: gradients.next() };
    let gradients = MlpGradients { gate: None, up: None, down: None, biases: PerMatrix::default(), adapters };
    let dy = Tensor::new(dy, &[tokens, D]);
    let (dx, _) = backward(&x, &mlp, assignment, &saved, &dy, gradients);
    let mut found = [&y[..], &dx[..]].concat();
    into.iter().flatten().for_each(|gradient| found.extend(gradient));
    found
}

#[test]
fn gradients_match_finite_differences() {
    let tokens = 9;
    let routing = router::forward(Tensor::new(&numbers(7, tokens * EXPERTS), &[tokens, EXPERTS]), 2, false);
    let assignment = router::assign(&routing, None);
    let (x, dy) = (numbers(4, tokens * D), numbers(5, tokens * D));
    for (shared, dora) in [(false, false), (true, false), (false, true), (true, true)] {
        let all = all_numbers(shared);
        let got = on_every_isa_and_threads(|| run(&x, &dy, &all, dora, &assignment));
        let (x, dy) = (wide(&x), wide(&dy));
        let all = all.each_ref().map(|numbers| numbers.map(wide));
        let norms: [Vec<f64>; 3] = std::array::from_fn(|at| naive_norms(&all[at], SHAPES[at]));
        let norms = dora.then_some(&norms);
        let loss = |x: &[f64], all: &[Numbers<f64>; 3]| -> f64 {
            naive(x, all, norms, &assignment).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        let mut expected = vec![naive(&x, &all, norms, &assignment), finite_differences(&x, |x| loss(x, &all))];
        for at in 0..3 {
            let changed = |change: &dyn Fn(&mut Numbers<f64>)| {
                let mut all = all.clone();
                change(&mut all[at]);
                loss(&x, &all)
            };
            expected.push(finite_differences(&all[at].a, |a| changed(&|n| n.a = a.to_vec())));
            expected.push(finite_differences(&all[at].b, |b| changed(&|n| n.b = b.to_vec())));
            let magnitude = match dora {
                true => finite_differences(&all[at].m, |m| changed(&|n| n.m = m.to_vec())),
                false => vec![0.0; all[at].m.len()],
            };
            expected.push(magnitude);
        }
        let mut rest = &got[..];
        for (at, expected) in expected.iter().enumerate() {
            let (own, others) = rest.split_at(expected.len());
            rest = others;
            let error = if expected.iter().all(|x| *x == 0.0) {
                own.iter().fold(0.0, |a: f64, x| a.max(f64::from(x.abs())))
            } else {
                relative_error(own, expected)
            };
            assert!(error < 2e-6, "shared {shared}, dora {dora}, number {at}: {error}");
        }
        assert!(rest.is_empty());
    }
}

/// The forward pass by blocks, by products and of single tokens has the same bits.
#[test]
fn tokens_alone_are_tokens_together() {
    let tokens = 400;
    let logits = numbers(7, tokens * EXPERTS);
    let (x, dy) = (numbers(4, tokens * D), numbers(5, tokens * D));
    for dora in [false, true] {
        let all = all_numbers(false);
        let outputs = |some: Range<usize>| {
            let logits = &logits[some.start * EXPERTS..some.end * EXPERTS];
            let routing = router::forward(Tensor::new(logits, &[some.len(), EXPERTS]), 2, false);
            let (x, dy) = (&x[some.start * D..some.end * D], &dy[some.start * D..some.end * D]);
            run(x, dy, &all, dora, &router::assign(&routing, None))[..x.len()].to_vec()
        };
        let alone: Vec<f32> = (0..tokens).flat_map(|token| outputs(token..token + 1)).collect();
        assert_eq!(outputs(0..tokens), alone);
    }
}
