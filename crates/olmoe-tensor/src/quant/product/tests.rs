//! Products against a second writing of their definition, against f64, and against each other bit for bit.

use half::f16;

use super::*;
use crate::quant::{BlockFormat, dequantize, quantize};
use crate::strips::Strips;
use crate::testing::{numbers, on_every_isa_and_threads, relative_error};

/// Reproducible bytes.
fn noise(seed: usize, n: usize) -> Vec<u8> {
    numbers(seed, n).iter().map(|x| ((x + 1.0) * 128.0) as u8).collect()
}

/// Where in a block its f16 numbers lie.
fn halves(format: BlockFormat) -> &'static [usize] {
    match format {
        BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
        BlockFormat::Q6K => &[208],
        _ => &[0, 2],
    }
}

/// Rows of blocks with quants and scales of all kinds, of either sign.
fn rows_of(format: BlockFormat, seed: usize, rows: usize, k: usize) -> Vec<u8> {
    let mut blocks = noise(seed, format.bytes(rows * k).unwrap());
    let scales = numbers(seed + 1, blocks.len() / format.block_bytes() * 2);
    for (i, block) in blocks.chunks_mut(format.block_bytes()).enumerate() {
        for (j, at) in halves(format).iter().enumerate() {
            block[*at..at + 2].copy_from_slice(&f16::from_f32(scales[2 * i + j] * 0.01).to_le_bytes());
        }
    }
    blocks
}

/// The quants of a block, their part's scale and minimum, and its f16 numbers, read number by number.
struct Apart {
    q: Vec<i64>,
    scale: Vec<i64>,
    minimum: Vec<i64>,
    d: f32,
    second: f32,
}

fn apart(format: BlockFormat, block: &[u8]) -> Apart {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let nibble = |at: usize, high: bool| i64::from(if high { block[at] / 16 } else { block[at] % 16 });
    let bit = |at: usize, bit: usize| i64::from(block[at + bit / 8] >> (bit % 8) & 1);
    let at = halves(format);
    let (d, second) = (half(at[0]), at.get(1).map_or(0.0, |at| half(*at)));
    let n = format.block_len();
    let mut all = Apart { q: vec![0; n], scale: vec![1; n], minimum: vec![1; n], d, second };
    for i in 0..n {
        let short = |first: usize| nibble(first + i % 16, i >= 16);
        let affine = |first: usize| nibble(first + i / 64 * 32 + i % 32, i % 64 >= 32);
        all.q[i] = match format {
            BlockFormat::Q4_0 => short(2) - 8,
            BlockFormat::Q4_1 => short(4),
            BlockFormat::Q5_0 => short(6) + 16 * bit(2, i) - 16,
            BlockFormat::Q5_1 => short(8) + 16 * bit(4, i),
            BlockFormat::Q8_0 => i64::from(block[2 + i] as i8),
            BlockFormat::Q4K => affine(16),
            BlockFormat::Q5K => affine(48) + 16 * bit(16 + i % 32, i / 32),
            BlockFormat::Q6K => {
                let (h, i) = (i / 128, i % 128);
                let high = block[128 + 32 * h + i % 32] >> (i / 32 * 2) & 3;
                nibble(64 * h + i % 64, i >= 64) + 16 * i64::from(high) - 32
            }
        };
        if let BlockFormat::Q4K | BlockFormat::Q5K = format {
            let (part, s) = (i / 32, &block[4..16]);
            let (scale, minimum) = if part < 4 {
                (s[part] % 64, s[part + 4] % 64)
            } else {
                (s[part + 4] % 16 + s[part - 4] / 64 * 16, s[part + 4] / 16 + s[part] / 64 * 16)
            };
            (all.scale[i], all.minimum[i]) = (scale.into(), minimum.into());
        }
        if format == BlockFormat::Q6K {
            all.scale[i] = i64::from(block[192 + i / 16] as i8);
        }
    }
    all
}

/// The scale and the numbers of a block of activations.
fn eight_bits(x: &[f32]) -> (f32, Vec<i64>) {
    if x.iter().any(|x| !x.is_finite()) {
        return (f32::NAN, vec![0; x.len()]);
    }
    let most = x.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    if most < 127.0 * f32::MIN_POSITIVE {
        return (0.0, vec![0; x.len()]);
    }
    (most / 127.0, x.iter().map(|x| (x * (127.0 / most)).round_ties_even() as i64).collect())
}

/// One number of a product, as the kernel's table defines it.
fn defined(format: BlockFormat, blocks: &[u8], x: &[f32]) -> f32 {
    let n = format.block_len();
    let part = if format == BlockFormat::Q6K { 16 } else { 32 };
    let mut y = 0.0f32;
    for (block, x) in blocks.chunks(format.block_bytes()).zip(x.chunks(n)) {
        let (w, (d, a)) = (apart(format, block), eight_bits(x));
        let sum = |from: usize| (from..from + part).map(|i| w.q[i] * a[i]).sum::<i64>() as f32;
        let b = if n == 32 {
            let taken = -a.iter().sum::<i64>() as f32;
            if w.second.to_bits() == 0 && halves(format).len() == 1 {
                w.d * sum(0)
            } else {
                (-w.second).mul_add(taken, w.d * sum(0))
            }
        } else {
            let t = (0..n).step_by(part).fold(0.0f32, |t, at| (w.scale[at] as f32).mul_add(sum(at), t));
            let taken = -(0..n).map(|i| w.minimum[i] * a[i]).sum::<i64>() as f32;
            if format == BlockFormat::Q6K { t * w.d } else { w.second.mul_add(taken, t * w.d) }
        };
        y = b.mul_add(d, y);
    }
    y
}

fn packed(format: BlockFormat, blocks: &[u8], groups: usize, out: usize, k: usize) -> QuantizedWeight {
    let mut weight = QuantizedWeight::new(format, groups, out, k);
    weight.pack(0..weight.strips().count(), blocks);
    weight
}

fn dense(format: BlockFormat, blocks: &[u8], x: &[f32], out: usize, k: usize) -> Vec<f32> {
    let weight = packed(format, blocks, 1, out, k);
    let mut y = vec![f32::NAN; x.len() / k * out];
    product(&QuantizedInput::pack(x, k, format), &weight, &mut y, Store::Overwrite);
    y
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[test]
fn products_are_as_defined_on_all_sets() {
    for format in BlockFormat::ALL {
        let block = format.block_len();
        for (rows, out, blocks) in [(0, 3, 1), (1, 1, 1), (1, 70, 3), (3, 33, 2), (17, 32, 1), (100, 5, 2)] {
            let k = blocks * block;
            let (w, x) = (rows_of(format, out, out, k), numbers(rows, rows * k));
            let y = on_every_isa_and_threads(|| dense(format, &w, &x, out, k));
            let row_bytes = format.bytes(k).unwrap();
            for (i, got) in y.iter().enumerate() {
                let (row, column) = (&x[i / out * k..][..k], &w[i % out * row_bytes..][..row_bytes]);
                let expected = defined(format, column, row);
                assert!(same(*got, expected), "{} {rows}x{out}x{k} at {i}: {got}, not {expected}", format.name());
            }
            let mut numbers = vec![0.0; out * k];
            dequantize(format, &w, &mut numbers);
            let product = |x: &[f64]| -> Vec<f64> {
                let row = |i: usize| x[i / out * k..][..k].iter().zip(&numbers[i % out * k..][..k]);
                (0..rows * out).map(|i| row(i).map(|(x, w)| x * f64::from(*w)).sum()).collect()
            };
            let quantized: Vec<f64> = x
                .chunks(block)
                .map(eight_bits)
                .flat_map(|(d, a)| a.into_iter().map(move |a| f64::from(d) * a as f64))
                .collect();
            let error = relative_error(&y, &product(&quantized));
            assert!(error <= 1e-6, "{} {rows}x{out}x{k}: off by {error} in f32", format.name());
        }
    }
}

/// What eight bits take from activations, beside the same weights and activations in f32.
#[test]
fn eight_bits_cost_little() {
    let (rows, out, k) = (16, 96, 1024);
    // Sums of twelve are nearly normal.
    let x: Vec<f32> = numbers(1, 12 * rows * k).chunks(12).map(|x| x.iter().sum()).collect();
    let w = numbers(2, out * k);
    for format in BlockFormat::ALL {
        let mut blocks = vec![0; format.bytes(out * k).unwrap()];
        quantize(format, &w, &mut blocks);
        let mut w = vec![0.0; out * k];
        dequantize(format, &blocks, &mut w);
        let row = |i: usize| x[i / out * k..][..k].iter().zip(&w[i % out * k..][..k]);
        let exact: Vec<f64> =
            (0..rows * out).map(|i| row(i).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()).collect();
        let error = relative_error(&dense(format, &blocks, &x, out, k), &exact);
        println!("{}: {error:.1e}", format.name());
        assert!(error < if format.block_len() == 32 { 6e-3 } else { 8e-3 }, "{}: off by {error}", format.name());
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for format in BlockFormat::ALL {
        let (out, k) = (70, 2 * format.block_len());
        let (weight, x) = (packed(format, &rows_of(format, 1, out, k), 1, out, k), numbers(2, 100 * k));
        let some = |first: usize, rows: usize| {
            let mut y = vec![f32::NAN; rows * out];
            let x = QuantizedInput::pack(&x[first * k..][..rows * k], k, format);
            product(&x, &weight, &mut y, Store::Overwrite);
            y
        };
        let all = some(0, 100);
        for (first, rows) in (0..100).map(|i| (i, 1)).chain([(0, 2), (17, 6), (3, 7), (1, 98)]) {
            assert_eq!(some(first, rows), all[first * out..][..rows * out], "{} rows {first}..", format.name());
        }
    }
}

#[test]
fn groups_are_products_of_their_rows() {
    // Groups without rows, with one, with more than a tile, with more than a task takes.
    let (offsets, out, k) = ([0u32, 0, 1, 8, 8, 219], [37usize, 70], 256);
    let index: Vec<u32> = (0..219).map(|i| (i * 7 + 3) % 50).collect();
    let x = numbers(3, 50 * k);
    for (format, other) in [(BlockFormat::Q4K, BlockFormat::Q6K), (BlockFormat::Q8_0, BlockFormat::Q4_1)] {
        let formats = [format, other];
        let w = [0, 1].map(|i| rows_of(formats[i], 5 + i, 5 * out[i], k));
        let run = |into: Store| {
            let input = QuantizedInput::pack(&x, k, format);
            let weights = [0, 1].map(|i| packed(formats[i], &w[i], 5, out[i], k));
            let mut y = out.map(|out| vec![1.0; 219 * out]);
            let [first, second] = &mut y;
            let factors =
                [QuantizedFactor { weight: &weights[0], y: first }, QuantizedFactor { weight: &weights[1], y: second }];
            products(&input, GroupedRows { index: Some(&index), offsets: &offsets, first: 0 }, factors, into);
            y.concat()
        };
        let y = on_every_isa_and_threads(|| run(Store::Overwrite));
        let added = on_every_isa_and_threads(|| run(Store::Accumulate));
        for (sum, y) in added.iter().zip(&y) {
            assert!((sum - y - 1.0).abs() <= 1e-5 * (1.0 + y.abs()), "{sum} is not 1 more than {y}");
        }
        let (first, second) = y.split_at(219 * out[0]);
        for (i, y) in [first, second].into_iter().enumerate() {
            let bytes = formats[i].bytes(out[i] * k).unwrap();
            for (e, range) in offsets.windows(2).enumerate() {
                for s in range[0] as usize..range[1] as usize {
                    let row = &x[index[s] as usize * k..][..k];
                    let expected = dense(formats[i], &w[i][e * bytes..][..bytes], row, out[i], k);
                    assert_eq!(y[s * out[i]..][..out[i]], expected, "{} slot {s}", formats[i].name());
                }
            }
        }
    }
}

/// Quants and activations at their ends, and scales that are zero, subnormal, large, infinite or not numbers: as
/// defined, on all sets, and no row knows of another.
#[test]
fn extremes_are_as_defined() {
    let scales = [0x0000u16, 0x8000, 0x0001, 0x83ff, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0xfe01];
    for format in BlockFormat::ALL {
        let k = 2 * format.block_len();
        let bytes = format.bytes(k).unwrap();
        let mut w = Vec::new();
        for fill in [0x00, 0xff, 0x80, 0x7f, 0x81] {
            for scale in scales {
                let mut row = vec![fill; bytes];
                for block in row.chunks_mut(format.block_bytes()) {
                    halves(format).iter().for_each(|at| block[*at..at + 2].copy_from_slice(&scale.to_le_bytes()));
                }
                w.extend(row);
            }
        }
        let out = 5 * scales.len();
        let rows: [&dyn Fn(usize) -> f32; 9] = [
            &|_| 1.0,
            &|_| -1.0,
            &|i| if i % 2 == 0 { 3e38 } else { -3e38 },
            &|_| 0.0,
            &|i| if i == 5 { 1e-45 } else { -1e-40 },
            &|_| 1.5e-36,
            &|i| if i == 3 { f32::NAN } else { 1.0 },
            &|i| if i == 4 { f32::INFINITY } else { 1.0 },
            &|i| if i == 7 { f32::NEG_INFINITY } else { i as f32 },
        ];
        let x: Vec<f32> = rows.iter().flat_map(|row| (0..k).map(row)).collect();
        let y = on_every_isa_and_threads(|| dense(format, &w, &x, out, k));
        for (i, got) in y.iter().enumerate() {
            let (r, o) = (i / out, i % out);
            let expected = defined(format, &w[o * bytes..][..bytes], &x[r * k..][..k]);
            assert!(same(*got, expected), "{} row {r} output {o}: {got}, not {expected}", format.name());
            let finite = f16::from_bits(scales[o % scales.len()]).is_finite();
            assert!(r < 6 || got.is_nan(), "{} row {r} has a number that is not finite, not {got}", format.name());
            assert!(r == 2 || r >= 6 || !finite || got.is_finite(), "{} row {r} output {o}: {got}", format.name());
        }
    }
}

#[test]
fn packing_keeps_the_size_and_takes_strips() {
    for format in BlockFormat::ALL {
        let (groups, out, k) = (2, 70, 2 * format.block_len());
        let blocks = rows_of(format, 9, groups * out, k);
        let whole = packed(format, &blocks, groups, out, k);
        let strips = whole.strips();
        assert_eq!(whole.bytes() as u64, packed_bytes(format, strips));
        let file = format.bytes(groups * out.next_multiple_of(ROWS) * k).unwrap();
        assert!(whole.bytes() >= file && whole.bytes() * 100 <= file * 103, "{} grows too much", format.name());
        let row = format.bytes(k).unwrap();
        let mut parts = QuantizedWeight::new(format, groups, out, k);
        for some in [2..4, 0..2, 4..6, 3..3] {
            let rows = |strip: usize| strips.numbers(strip).start / k;
            let end = if some.end == strips.count() { groups * out } else { rows(some.end) };
            parts.pack(some.clone(), &blocks[rows(some.start) * row..end * row]);
        }
        for group in 0..groups {
            for panel in 0..whole.panels() {
                assert_eq!(whole.panel(group, panel), parts.panel(group, panel));
            }
        }
    }
    assert_eq!(packed_bytes(BlockFormat::Q4_0, Strips { groups: usize::MAX, out: usize::MAX, input: 32 }), u64::MAX);
}
