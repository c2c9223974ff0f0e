//! Products against a plain f64 loop, and against each other bit for bit.

use super::*;
use crate::testing::{numbers, on_every_isa};

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
