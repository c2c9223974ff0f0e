//! Every operation on every instruction set of this machine gives the bits of the scalar one.

use super::*;

/// Numbers of many magnitudes, both signs, ties and exact values.
fn numbers(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let unit = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
            unit * [1.0, 8.0, 64.0, 1e-3, 0.00390625][(state % 5) as usize]
        })
        .collect()
}

kernel! {
    /// Every operation on three vectors, one after the other, into `out`.
    fn operations[s: S](a: &[f32], b: &[f32], c: &[f32], out: &mut [f32]) {
        let (va, vb, vc) = (s.load(a), s.load(b), s.load(c));
        let (even, odd) = s.bf16_split(va);
        let (sigma, silu) = silu_parts(s, va);
        let units_a = s.bf16_interleave(va, vc);
        let units_b = s.bf16_pairs(vb, vc);
        let mut at = 0;
        for v in [
            s.add(va, vb), s.sub(va, vb), s.mul(va, vb), s.div(va, vb), s.fma(va, vb, vc), s.max(va, vb), s.min(va, vb),
            s.sqrt(s.mul(va, va)), s.round(va), s.exp2_integral(s.round(va)), s.select_lt(va, vb, vc, vb), exp(s, va),
            s.splat(s.reduce_add(va)), s.splat(s.reduce_max(va)), even, odd, sigma, silu, units_a, units_b,
            s.bf16_dot(units_a, units_b, vc), s.load_partial(&a[..5]), s.load_partial(&a[..13]), s.zero(),
        ] {
            s.store(v, &mut out[at..]);
            at += LANES;
        }
        for n in 0..=LANES {
            s.store_partial(va, &mut out[at..at + n]);
            at += LANES;
        }
        let mut block = [s.zero(); LANES];
        for (i, row) in block.iter_mut().enumerate() {
            *row = s.add(va, s.splat(i as f32));
        }
        s.transpose(&mut block);
        for row in block {
            s.store(row, &mut out[at..]);
            at += LANES;
        }
        assert_eq!(at, out.len());
    }
}

const OUT: usize = (24 + 17 + 16) * LANES;

#[test]
fn all_sets_agree_bit_for_bit() {
    let before = Isa::current();
    for seed in 0..200 {
        let [a, b, c] = [0, 1, 2].map(|i| numbers(seed * 3 + i, LANES));
        let mut oracle = vec![0.0; OUT];
        for isa in Isa::available() {
            isa.select();
            let mut out = vec![0.0; OUT];
            operations(&a, &b, &c, &mut out);
            if isa.name() == "scalar" {
                oracle = out;
                continue;
            }
            for (i, (x, y)) in out.iter().zip(&oracle).enumerate() {
                assert_eq!(
                    x.to_bits(),
                    y.to_bits(),
                    "{} differs from scalar at operation {} lane {}: {x} {y}, seed {seed}",
                    isa.name(),
                    i / LANES,
                    i % LANES
                );
            }
        }
    }
    before.select();
}

kernel! {
    fn exp_each[s: S](x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks(LANES).zip(y.chunks_mut(LANES)) {
            s.store_partial(exp(s, s.load_partial(x)), y);
        }
    }
}

#[test]
fn exp_is_within_its_bound() {
    let x: Vec<f32> = (0..200_000).map(|i| -87.2 + i as f32 * (175.4 / 200_000.0)).collect();
    let mut y = vec![0.0; x.len()];
    exp_each(&x, &mut y);
    for (x, y) in x.iter().zip(&y) {
        let exact = f64::from(*x).exp();
        let ulp = f64::from(f32::EPSILON) * exact / 2.0;
        assert!((f64::from(*y) - exact).abs() <= 3.0 * ulp, "exp({x}) = {y}, exactly {exact}");
    }
    let mut edge = [0.0; 4];
    exp_each(&[-88.0, f32::NEG_INFINITY, f32::NAN, 0.0], &mut edge);
    assert_eq!(edge[..2], [0.0, 0.0]);
    assert!(edge[2].is_nan());
    assert_eq!(edge[3], 1.0);
}

#[test]
fn names_are_checked() {
    assert_eq!(Isa::by_name("sse9").unwrap_err(), UnknownIsa::Name("sse9".into()));
    assert_eq!(Isa::by_name("SCALAR").unwrap().name(), "scalar");
    let isa = Isa::available().pop().expect("the scalar set at least");
    assert_eq!(Isa::from_code(isa.code()).name(), isa.name());
}
