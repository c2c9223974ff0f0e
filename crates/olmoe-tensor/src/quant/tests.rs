use super::*;
use crate::testing::{numbers, on_every_isa};

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/../../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn quantized(format: BlockFormat, x: &[f32]) -> Vec<u8> {
    let mut blocks = vec![0xa5; format.bytes(x.len()).unwrap()];
    quantize(format, x, &mut blocks);
    blocks
}

fn dequantized(format: BlockFormat, blocks: &[u8]) -> Vec<f32> {
    let mut x = vec![f32::NAN; blocks.len() / format.block_bytes() * format.block_len()];
    dequantize(format, blocks, &mut x);
    x
}

fn rmse(x: &[f32], y: &[f32]) -> f64 {
    let squares = x.iter().zip(y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2));
    (squares.sum::<f64>() / x.len() as f64).sqrt()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The blocks of the reference, and the numbers it reads from them.
fn golden_blocks() -> Vec<(BlockFormat, Vec<u8>, Vec<f32>)> {
    let content = golden("quant_blocks.bin");
    let mut rest = &content[..];
    let all = BlockFormat::ALL.map(|format| {
        let count = if format.block_len() == 32 { 24 } else { 12 };
        let (blocks, after) = rest.split_at(count * format.block_bytes());
        let (expected, after) = after.split_at(count * format.block_len() * 4);
        rest = after;
        (format, blocks.to_vec(), floats(expected))
    });
    assert!(rest.is_empty());
    all.into()
}

/// The data sets, by name, with the error of the reference for each format.
fn golden_errors() -> Vec<(String, Vec<f32>, BlockFormat, f64)> {
    const NUMBERS: usize = 2048;
    let (data, table) = (floats(&golden("quant_data.f32")), String::from_utf8(golden("quant_rmse.tsv")).unwrap());
    let rows = table.lines().skip(1).enumerate().map(|(i, line)| {
        let fields: Vec<_> = line.split('\t').collect();
        let x = &data[i / BlockFormat::ALL.len() * NUMBERS..][..NUMBERS];
        (fields[0].to_owned(), x.to_vec(), BlockFormat::by_name(fields[1]).unwrap(), fields[2].parse().unwrap())
    });
    rows.collect()
}

#[test]
fn reads_the_bits_that_the_reference_reads() {
    for (format, blocks, expected) in golden_blocks() {
        let got = on_every_isa(|| dequantized(format, &blocks));
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(got.to_bits(), expected.to_bits(), "{} number {i}: {got}, not {expected}", format.name());
        }
    }
}

#[test]
fn errors_are_no_larger_than_the_references() {
    for (name, x, format, expected) in golden_errors() {
        let got = rmse(&x, &dequantized(format, &quantized(format, &x)));
        // The random sets leave room for a better choice; in the others there may be only one.
        let bound = if ["normal", "heavy", "uniform", "huge"].contains(&&name[..]) { 0.98 } else { 1.0 };
        assert!(got <= bound * expected, "{name} in {}: {got:.6e}, the reference {expected:.6e}", format.name());
    }
}

/// The nearest quants' squared error for a scale.
fn error_of(x: &[f32], d: f32, lo: f32, hi: f32) -> f64 {
    let error = |x: &f32| f64::from(x - d * (x / d).round_ties_even().clamp(lo, hi)).powi(2);
    x.iter().map(error).sum()
}

#[test]
fn errors_are_close_to_the_least_of_all_scales() {
    let data = floats(&golden("quant_data.f32"));
    let x = &data[..16 * legacy::LEN];
    let formats =
        [(BlockFormat::Q4_0, -8.0, 7.0), (BlockFormat::Q5_0, -16.0, 15.0), (BlockFormat::Q8_0, -127.0, 127.0)];
    for (format, lo, hi) in formats {
        let (mut got, mut least) = (0.0, 0.0);
        for x in x.chunks(legacy::LEN) {
            let read = dequantized(format, &quantized(format, x));
            got += rmse(x, &read).powi(2) * legacy::LEN as f64;
            let peak = x.iter().fold(0f32, |peak, x| peak.max(x.abs()));
            let bits = |steps: f32| f16::from_f32(peak / steps).to_bits();
            let scales = (bits(1.5 * hi)..=bits(0.5 * hi)).map(|bits| f16::from_bits(bits).to_f32());
            let errors = scales.flat_map(|d| [d, -d]).map(|d| error_of(x, d, lo, hi));
            least += errors.fold(f64::INFINITY, f64::min);
        }
        let ratio = (got / least).sqrt();
        assert!((0.999_999..1.03).contains(&ratio), "{}: {ratio} times the least error", format.name());
    }
}

/// Blocks that use all of their format's range, so that there is only one way to write their numbers.
fn full_blocks(format: BlockFormat, count: usize) -> Vec<u8> {
    let mut random = numbers(5, count * format.block_bytes()).into_iter().map(|x| (x * 128.0 + 128.0) as u8);
    let mut blocks = Vec::new();
    for i in 0..count {
        let start = blocks.len();
        blocks.extend(random.by_ref().take(format.block_bytes()));
        let block = &mut blocks[start..];
        for at in format.halves() {
            let sign = if i % 2 == 0 || format.block_len() > 32 { 1.0 } else { -1.0 };
            put_half(block, *at, sign * 0.001 * (1.0 + i as f32 / 7.0) * (1 + *at % 16) as f32);
        }
        match format {
            BlockFormat::Q4_0 | BlockFormat::Q5_0 => {}
            BlockFormat::Q8_0 => block[2..].iter_mut().for_each(|q| *q = if *q == 128 { 129 } else { *q }),
            BlockFormat::Q4_1 | BlockFormat::Q5_1 => {
                // The lowest quant and the highest.
                let quants = format.block_bytes() - 16;
                put_half(block, 0, 0.001 * (1.0 + i as f32 / 7.0));
                block[4..quants].fill(0xaa);
                block[quants] = 0;
                block[quants + 1] = 0xff;
            }
            BlockFormat::Q4K | BlockFormat::Q5K => {
                let quants = format.block_bytes() - 128;
                block[16..quants].fill(0);
                if format == BlockFormat::Q5K {
                    (block[16], block[17]) = (0, 0xff);
                }
                for pair in block[quants..].chunks_exact_mut(32) {
                    (pair[0], pair[1]) = (0, 0xff);
                }
                // Part 0 has the highest scale, part 1 the highest minimum.
                for j in 0..8 {
                    block[4 + j] |= 16;
                }
                block[4] |= 63;
                block[9] |= 63;
            }
            BlockFormat::Q6K => {
                for (j, scale) in block[192..208].iter_mut().enumerate() {
                    *scale = if j == 3 { 128 } else { (*scale as i8 / 2) as u8 };
                }
                // The first number of each part has the lowest quant.
                for at in (0..128).step_by(16) {
                    block[at] = 0;
                }
                for at in (128..192).step_by(16) {
                    block[at] = 0;
                }
            }
        }
    }
    blocks
}

#[test]
fn numbers_of_a_block_are_found_again() {
    for format in BlockFormat::ALL {
        let x = dequantized(format, &full_blocks(format, 37));
        let again = dequantized(format, &quantized(format, &x));
        for (i, (x, again)) in x.iter().zip(&again).enumerate() {
            assert_eq!(x, again, "{} number {i} of block {}", format.name(), i / format.block_len());
        }
    }
    // Blocks around zero need not use their range.
    for (format, highest) in [(BlockFormat::Q4_0, 7), (BlockFormat::Q5_0, 15), (BlockFormat::Q8_0, 127)] {
        for top in 1..=highest {
            let x: Vec<f32> = (0..32).map(|i| 0.0625 * (i % (2 * top + 1) - top) as f32).collect();
            assert_eq!(dequantized(format, &quantized(format, &x)), x, "{} up to {top}", format.name());
        }
    }
}

/// Numbers of very different blocks.
fn varied(format: BlockFormat, blocks: usize) -> Vec<f32> {
    let mut x = numbers(3, blocks * format.block_len());
    for (i, x) in x.chunks_mut(format.block_len()).enumerate() {
        let (scale, shift) = ([0.02, 1e-8, 3e7, 0.0, 1.0, 1e-5][i % 6], [0.0, 1.0, -0.5, 40.0][i % 4]);
        x.iter_mut().for_each(|x| *x = scale * (*x + shift));
    }
    x
}

#[test]
fn writes_the_same_bits_on_every_instruction_set() {
    for format in BlockFormat::ALL {
        for blocks in [0, 1, 17] {
            let x = varied(format, blocks);
            on_every_isa(|| quantized(format, &x).into_iter().map(f32::from).collect());
        }
    }
}

#[test]
fn a_block_does_not_depend_on_its_neighbours() {
    for format in BlockFormat::ALL {
        let x = varied(format, 35);
        let together = quantized(format, &x);
        let alone: Vec<u8> = x.chunks(format.block_len()).flat_map(|x| quantized(format, x)).collect();
        assert_eq!(together, alone, "{}", format.name());
        assert_eq!(together, quantized(format, &x));
        let read: Vec<f32> = alone.chunks(format.block_bytes()).flat_map(|block| dequantized(format, block)).collect();
        assert_eq!(bits(&dequantized(format, &together)), bits(&read));
    }
}

#[test]
fn no_number_makes_an_invalid_block() {
    let largest = [f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e9, 1e-45, -0.0];
    for format in BlockFormat::ALL {
        for value in largest {
            for every in [1, 7, format.block_len()] {
                let x: Vec<f32> =
                    (0..2 * format.block_len()).map(|i| if i % every == 0 { value } else { 0.5 }).collect();
                let blocks = quantized(format, &x);
                assert_eq!(first_invalid_block(format, &blocks), None, "{} of {value}", format.name());
                assert!(dequantized(format, &blocks).iter().all(|x| x.is_finite()));
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_found() {
    for format in BlockFormat::ALL {
        let good = quantized(format, &varied(format, 5));
        assert_eq!(first_invalid_block(format, &good), None);
        assert_eq!(first_invalid_block(format, &[]), None);
        for at in format.halves() {
            for half in [f16::INFINITY, f16::NEG_INFINITY, f16::NAN] {
                for block in [0, 3, 4] {
                    let mut bad = good.clone();
                    bad[block * format.block_bytes() + at..][..2].copy_from_slice(&half.to_le_bytes());
                    assert_eq!(first_invalid_block(format, &bad), Some(block));
                }
            }
        }
    }
}

#[test]
fn sizes() {
    for format in BlockFormat::ALL {
        assert_eq!(BlockFormat::by_name(format.name()), Some(format));
        assert_eq!(format.bytes(0), Some(0));
        assert_eq!(format.bytes(3 * format.block_len()), Some(3 * format.block_bytes()));
        assert_eq!(format.bytes(format.block_len() + 1), None);
        assert_eq!(format.bytes(format.block_len() - 1), None);
    }
    assert_eq!(BlockFormat::Q8_0.bytes(usize::MAX - 31), None, "more bytes than can be counted");
    assert_eq!(BlockFormat::by_name("q4_2"), None);
}

#[test]
#[should_panic(expected = "bytes of 64 numbers in q4_0 blocks")]
fn other_lengths_are_refused() {
    dequantize(BlockFormat::Q4_0, &[0; 35], &mut [0.0; 64]);
}

kernel! {
    fn round_to_f16[s: S](x: &[f32], out: &mut [f32]) {
        for (x, out) in x.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
            s.store(search::round_f16(s, s.load(x)), out);
        }
    }
}

#[test]
fn rounding_over_lanes_is_to_the_nearest_f16() {
    // Every f16, and numbers between it and the next one.
    let finite = (0..0x7c00).map(|bits| f16::from_bits(bits).to_f32());
    let x: Vec<f32> =
        finite.flat_map(|x| [x, -x, x * 1.0001, x * 1.0003, x + 2e-8, x + 5e-8, -x * 1.0004, x]).collect();
    let mut out = vec![0.0; x.len()];
    round_to_f16(&x, &mut out);
    for (x, got) in x.iter().zip(out) {
        assert_eq!(f16::from_f32(got).to_f32(), got, "{x} gives {got}, which is no f16");
        let nearest = f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32();
        assert!((got - x).abs() <= (nearest - x).abs() || x.abs() > 65504.0, "{x} gives {got}, not {nearest}");
    }
}
