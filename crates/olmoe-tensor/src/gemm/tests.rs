//! Products against a plain f64 loop, and against each other bit for bit.

use super::*;
use crate::testing::{fingerprint, numbers, on_every_isa, on_every_isa_and_threads};

fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
}

fn to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

#[test]
fn products_in_all_roles_on_all_sets() {
    let sizes = [
        (0, 3, 4),
        (3, 0, 4),
        (2, 3, 0),
        (1, 1, 1),
        (1, 33, 5),
        (15, 31, 17),
        (14, 32, 64),
        (29, 70, 37),
        (45, 96, 600),
        (128, 64, 1031),
    ];
    for (m, n, k) in sizes {
        let (a, b) = (numbers(1, m * k), numbers(2, n * k));
        let (at, bt) = (transposed(&a, m, k), transposed(&b, n, k));
        for operand in [Operand::F32, Operand::Bf16] {
            let c = on_every_isa(|| {
                let mut c = vec![f32::NAN; m * n];
                let left = Left::from_rows(Source::new(&a, k), m, k, operand);
                let right = Right::from_rows(Source::new(&b, k), n, k, operand);
                gemm(&left, &right, &mut c, Store::Overwrite);
                let mut from_columns = vec![f32::NAN; m * n];
                let left = Left::from_columns(Source::new(&at, m), m, k, operand);
                let right = Right::from_columns(Source::new(&bt, n), n, k, operand);
                gemm(&left, &right, &mut from_columns, Store::Overwrite);
                assert_eq!(c, from_columns);
                gemm(&left, &right, &mut from_columns, Store::Accumulate);
                for (twice, once) in from_columns.iter().zip(&c) {
                    assert!((twice - 2.0 * once).abs() <= 1e-4 * once.abs().max(1.0), "{twice} is not twice {once}");
                }
                c
            });
            let round = |x: f32| f64::from(if operand == Operand::Bf16 { to_bf16(x) } else { x });
            for i in 0..m {
                for j in 0..n {
                    let exact: f64 = (0..k).map(|l| round(a[i * k + l]) * round(b[j * k + l])).sum();
                    let error = (f64::from(c[i * n + j]) - exact).abs();
                    assert!(error <= 1e-7 * (k as f64 + 1.0), "{m}x{n}x{k} {operand:?}: off by {error}");
                }
            }
        }
    }
}

/// The bits are those that the same products gave on x86-64, on each of its sets.
#[test]
fn the_bits_are_those_of_every_architecture() {
    let (m, n, k) = (29, 70, 1031);
    let (a, b) = (numbers(21, m * k), numbers(22, n * k));
    let prints = [Operand::F32, Operand::Bf16].map(|operand| {
        let c = on_every_isa(|| {
            let mut c = vec![f32::NAN; m * n];
            let left = Left::from_rows(Source::new(&a, k), m, k, operand);
            let right = Right::from_rows(Source::new(&b, k), n, k, operand);
            gemm(&left, &right, &mut c, Store::Overwrite);
            c
        });
        fingerprint(&c)
    });
    assert_eq!(prints, [959_806_149_127_035_579, 3_925_120_779_038_186_981]);
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let (n, k) = (70, 600);
    let b = numbers(5, n * k);
    for operand in [Operand::F32, Operand::Bf16] {
        let right = Right::from_rows(Source::new(&b, k), n, k, operand);
        let a = numbers(6, 61 * k);
        let mut all = vec![0.0; 61 * n];
        gemm(&Left::from_rows(Source::new(&a, k), 61, k, operand), &right, &mut all, Store::Overwrite);
        for (first, rows) in [(0, 1), (60, 1), (17, 9), (3, 30)] {
            let source = Source::new(&a[first * k..], k);
            let mut some = vec![0.0; rows * n];
            gemm(&Left::from_rows(source, rows, k, operand), &right, &mut some, Store::Overwrite);
            assert_eq!(some, all[first * n..(first + rows) * n]);
        }
    }
}

/// Groups of no, one and many rows, in several factors at once: the bits of each group and factor alone.
#[test]
fn groups_at_once_are_groups_alone() {
    let (k, outs) = (70, [33, 64]);
    for offsets in [&[0, 1][..], &[0, 0, 1, 1, 4, 200, 230], &[0, 300, 300], &[0, 0]] {
        let (groups, rows) = (offsets.len() - 1, offsets[offsets.len() - 1] as usize);
        let source = numbers(7, (rows + 3) * k);
        let index: Vec<u32> = (0..rows as u32).map(|row| row * 7 % (rows as u32 + 3)).collect();
        for operand in [Operand::F32, Operand::Bf16] {
            let alone = |group: usize, out: usize| {
                let w = numbers(8 + group, out * k);
                Right::from_rows(Source::new(&w, k), out, k, operand)
            };
            let together = outs.map(|out| {
                let mut all = Right::scratch(groups, out, k, operand);
                let (data, shape) = all.shared();
                for group in 0..groups {
                    let w = numbers(8 + group, out * k);
                    for (p, strip) in w.chunks(PANEL_COLS * k).enumerate() {
                        // SAFETY: one task.
                        unsafe { shape.pack_panel(&data, group, p, strip) }
                    }
                }
                all
            });
            let got = on_every_isa_and_threads(|| {
                let [mut first, mut second] = outs.map(|out| vec![f32::NAN; rows * out]);
                let left = Left::from_groups(Source::gather(&source, k, &index), offsets, k, operand);
                let factors = [
                    RightFactor { weight: &together[0], y: &mut first },
                    RightFactor { weight: &together[1], y: &mut second },
                ];
                products(&left, offsets, factors, Store::Overwrite);
                [first, second].concat()
            });
            let mut expected = Vec::new();
            for out in outs {
                for (group, pair) in offsets.windows(2).enumerate() {
                    let some = &index[pair[0] as usize..pair[1] as usize];
                    let left = Left::from_groups(Source::gather(&source, k, some), &[0, some.len() as u32], k, operand);
                    let mut c = vec![f32::NAN; some.len() * out];
                    gemm(&left, &alone(group, out), &mut c, Store::Overwrite);
                    expected.extend(c);
                }
            }
            assert_eq!(got, expected);
        }
    }
}
