//! Every operation on every instruction set of this machine gives the bits of the scalar one.

use half::f16;

use super::*;
use crate::testing::{fingerprint, on_every_isa};

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
        let (even, odd) = (s.bf16_even(va), s.bf16_odd(va));
        let (sigma, silu) = silu_parts(s, va);
        let units_a = s.bf16_interleave(va, vc);
        let units_b = s.bf16_pairs(vb, vc);
        let mut at = 0;
        for v in [
            s.add(va, vb), s.sub(va, vb), s.mul(va, vb), s.div(va, vb), s.fma(va, vb, vc), s.max(va, vb), s.min(va, vb),
            s.sqrt(s.mul(va, va)), s.round(va), s.exp2_integral(s.round(va)), s.select_lt(va, vb, vc, vb), exp(s, va),
            s.splat(s.reduce_add(va)), s.splat(s.reduce_max(va)), even, odd, sigma, silu, units_a, units_b,
            s.bf16_dot(units_a, units_b, vc), s.load_partial(&a[..5]), s.load_partial(&a[..13]), s.zero(), s.round_bf16(va),
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

const OUT: usize = (25 + 17 + 16) * LANES;

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

/// The bits are those that the same operations gave on x86-64, on each of its sets.
#[test]
fn the_bits_are_those_of_every_architecture() {
    let all = on_every_isa(|| {
        let mut all = Vec::new();
        for seed in 0..200 {
            let [a, b, c] = [0, 1, 2].map(|i| numbers(seed * 3 + i, LANES));
            let mut out = vec![0.0; OUT];
            operations(&a, &b, &c, &mut out);
            // As pairs of bf16 any bits may be units, which as f32 may be NaN.
            all.extend(out.iter().filter(|x| !x.is_nan()));
        }
        all
    });
    assert_eq!((all.len(), fingerprint(&all)), (185_594, 463_587_235_511_728_362));
}

/// Infinities, NaN of several bits, zeros of both signs, subnormal numbers, numbers next to them, and the largest.
const SPECIAL: [u32; LANES] = [
    0,
    0x8000_0000,
    1,
    0x8000_0001,
    0x007f_ffff,
    0x807f_ffff,
    0x0080_0000,
    0x8080_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_1234,
    0x7f80_0001,
    0x3f80_8000,
];

kernel! {
    /// What moves or compares numbers and rounds to bf16: each result has bits of its own, a NaN's included.
    fn special_operations[s: S](a: &[f32], b: &[f32], out: &mut Vec<f32>) {
        let (va, vb) = (s.load(a), s.load(b));
        let mut lanes = [0.0; LANES];
        for v in [
            s.max(va, vb), s.min(va, vb), s.select_lt(va, vb, vb, va), s.round_bf16(va), s.bf16_pairs(va, vb),
            s.bf16_interleave(va, vb), s.bf16_even(va), s.bf16_odd(va), s.splat(s.reduce_max(va)),
        ] {
            s.store(v, &mut lanes);
            out.extend(lanes);
        }
    }
}

#[test]
fn special_numbers_agree_bit_for_bit() {
    let a = SPECIAL.map(f32::from_bits);
    for shift in 0..LANES {
        let (mut a, mut b) = (a, a);
        a.rotate_left(shift / 4);
        b.rotate_left(shift);
        // Bits as halves, so that a NaN is compared as any other number.
        let halves = on_every_isa(|| {
            let mut out = Vec::new();
            special_operations(&a, &b, &mut out);
            out.iter().flat_map(|x| [x.to_bits() >> 16, x.to_bits() & 0xffff]).map(|half| half as f32).collect()
        });
        let at = |operation: usize, lane: usize| {
            let i = 2 * (operation * LANES + lane);
            f32::from_bits((halves[i] as u32) << 16 | halves[i + 1] as u32)
        };
        for i in 0..LANES {
            let largest = if a[i] > b[i] { a[i] } else { b[i] };
            assert_eq!(at(0, i).to_bits(), largest.to_bits(), "the larger of {} and {}", a[i], b[i]);
            // The crate half rounds in the same way, but keeps subnormal numbers.
            let rounded = half::bf16::from_f32(if a[i].is_subnormal() { 0.0f32.copysign(a[i]) } else { a[i] });
            assert_eq!(at(3, i).to_bits(), rounded.to_f32().to_bits(), "{:#x} as bf16", a[i].to_bits());
        }
    }
}

kernel! {
    fn widen_f16[s: S](x: &[u8], y: &mut Vec<f32>) {
        let mut lanes = [0.0; LANES];
        for x in x.chunks_exact(2 * LANES) {
            // SAFETY: 32 bytes each.
            s.store(unsafe { s.load_f16(x.as_ptr()) }, &mut lanes);
            y.extend(lanes);
        }
    }
}

/// All numbers of f16 there are.
#[test]
fn every_f16_is_widened_exactly() {
    let x: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let y = on_every_isa(|| {
        let mut y = Vec::new();
        widen_f16(&x, &mut y);
        y
    });
    for (bits, y) in (0..=u16::MAX).zip(y) {
        let exact = f16::from_bits(bits).to_f64();
        assert!(f64::from(y).to_bits() == exact.to_bits() || y.is_nan() && exact.is_nan(), "{bits:#x}: {y} {exact}");
    }
}

kernel! {
    /// Every operation on bytes and whole numbers: 64 bytes without a sign, 64 with one, 64 more, 16 numbers.
    fn byte_operations[s: S](u: &[u8; 64], a: &[u8; 64], c: &[u8; 64], x: &[f32], out: &mut Vec<f32>) {
        // SAFETY: 64 bytes each.
        let (u, a, c, half, bytes, signed, word) = unsafe {
            let first = (s.load_f16(u.as_ptr()), s.load_u8(u.as_ptr()), s.load_i8(u.as_ptr()));
            (s.load_bytes(u.as_ptr()), s.load_bytes(a.as_ptr()), s.load_bytes(c.as_ptr()), first.0, first.1, first.2, s.splat_bytes(u.as_ptr().add(8)))
        };
        let narrow = s.and(u, s.splat_int(0x7f7f_7f7f));
        let mut whole = vec![
            s.and(u, c), s.or(u, c), word, s.splat_int(-77), s.byte_dot::<true>(u, a, c), s.byte_dot::<false>(narrow, a, c),
        ];
        for n in [0, 1, 4, 6, 31] {
            whole.extend([s.shift_left(u, n), s.shift_right(u, n)]);
        }
        let mut lanes = [0.0; LANES];
        for v in whole.iter().map(|v| s.to_f32(*v)).chain([half, bytes, signed]) {
            s.store(v, &mut lanes);
            out.extend(lanes);
        }
        let mut rounded = [0; LANES];
        s.store_i8(s.load(x), &mut rounded);
        out.extend(rounded.map(f32::from));
    }
}

#[test]
fn operations_on_bytes_agree() {
    let bytes = |seed: u32, f: fn(u8) -> u8| -> [u8; 64] {
        let x = numbers(seed, 64);
        std::array::from_fn(|i| f((x[i].to_bits() >> 7) as u8))
    };
    for seed in 0..200 {
        // Now and then all bytes are as far from zero as they may be.
        let (u, a) = match seed {
            0 => ([255; 64], [127; 64]),
            1 => ([255; 64], [0x81; 64]),
            _ => (bytes(seed, |b| b), bytes(seed + 1000, |b| b.max(129).wrapping_add(b & 127))),
        };
        let a = a.map(|a| if a == 0x80 { 0 } else { a });
        let c = bytes(seed + 2000, |b| b);
        let x: Vec<f32> = numbers(seed, LANES).iter().map(|x| (x * 1e3).clamp(-127.5, 127.0)).collect();
        on_every_isa(|| {
            let mut out = Vec::new();
            byte_operations(&u, &a, &c, &x, &mut out);
            out
        });
    }
    let ties: Vec<f32> = (0..16).map(|i| i as f32 - 7.5).collect();
    let mut out = Vec::new();
    byte_operations(&[255; 64], &[127; 64], &[0; 64], &ties, &mut out);
    assert_eq!(out[4 * LANES], 255.0 * 127.0 * 4.0);
    assert_eq!(out[5 * LANES], 127.0 * 127.0 * 4.0);
    assert_eq!(out[out.len() - LANES..], [-8., -6., -6., -4., -4., -2., -2., 0., 0., 2., 2., 4., 4., 6., 6., 8.]);
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
    // A set of another architecture has a name, too.
    let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
    let has: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
    assert_eq!(Isa::by_name(foreign).unwrap_err(), UnknownIsa::Missing(foreign.into(), has.join(", ")));
    let text = Isa::by_name("sse9").unwrap_err().to_string();
    assert!(text.contains("scalar, avx2, avx_vnni, avx512, avx512_bf16, neon"), "{text}");
    let isa = Isa::available().pop().expect("the scalar set at least");
    assert_eq!(Isa::from_code(isa.code()).name(), isa.name());
}

/// An ARM server or laptop does not get the scalar set.
#[cfg(target_arch = "aarch64")]
#[test]
fn neon_is_the_best_set() {
    let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
    assert_eq!(names, ["scalar", "neon"]);
    if std::env::var_os("OLMOE_ISA").is_none() {
        assert_eq!(Isa::from_environment().unwrap().name(), "neon");
    }
}
