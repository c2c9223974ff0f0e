//! Packing against its definition, number by number.

use super::*;
use crate::quant::product::layout::with_layout;
use crate::simd::LANES;
use crate::testing::on_every_isa;

/// What a block holds: two f16 numbers, scales and minima, and quants without a sign.
struct BlockContents {
    d: [u8; 2],
    second: [u8; 2],
    scales: [u8; 16],
    minima: [u8; 8],
    quants: [u8; 256],
}

/// Takes a block apart.
fn take_apart(format: BlockFormat, block: &[u8]) -> BlockContents {
    let mut parts = BlockContents { d: [0; 2], second: [0; 2], scales: [0; 16], minima: [0; 8], quants: [0; 256] };
    let half = |at: usize| [block[at], block[at + 1]];
    let short = &mut parts.quants[..legacy::LEN];
    match format {
        BlockFormat::Q4_0 => short.copy_from_slice(&legacy::low_bits(&block[2..])),
        BlockFormat::Q4_1 => short.copy_from_slice(&legacy::low_bits(&block[4..])),
        BlockFormat::Q5_0 => short.copy_from_slice(&legacy::five_bits(&block[2..6], &block[6..])),
        BlockFormat::Q5_1 => short.copy_from_slice(&legacy::five_bits(&block[4..8], &block[8..])),
        BlockFormat::Q8_0 => short.iter_mut().zip(&block[2..]).for_each(|(q, byte)| *q = byte ^ 0x80),
        BlockFormat::Q4K => k::affine_quants(&[0; 32], &block[16..], &mut parts.quants),
        BlockFormat::Q5K => k::affine_quants(&block[16..48], &block[48..], &mut parts.quants),
        BlockFormat::Q6K => k::q6_quants(block, &mut parts.quants),
    }
    match format {
        BlockFormat::Q6K => {
            parts.d = half(k::Q6_SCALE);
            parts.scales.copy_from_slice(&block[192..208]);
        }
        BlockFormat::Q4K | BlockFormat::Q5K => {
            (parts.d, parts.second) = (half(0), half(2));
            for (j, (scale, minimum)) in k::unpack_scales(&block[4..16]).into_iter().enumerate() {
                (parts.scales[j], parts.minima[j]) = (scale, minimum);
            }
        }
        BlockFormat::Q4_1 | BlockFormat::Q5_1 => {
            (parts.d, parts.second) = (half(0), half(2));
            // The kernels subtract a minimum, but m is added.
            parts.second[1] ^= 0x80;
        }
        _ => parts.d = half(0),
    }
    parts
}

/// Writes a block of one row to its places in a packed block.
fn pack_block<L: Layout>(format: BlockFormat, block: &[u8], row: usize, out: &mut [u8]) {
    let parts = take_apart(format, block);
    out[2 * row..][..2].copy_from_slice(&parts.d);
    if L::MINIMUM {
        out[2 * ROWS + 2 * row..][..2].copy_from_slice(&parts.second);
    }
    if L::SCALES {
        for part in 0..L::PARTS {
            out[L::SCALES_AT + part * ROWS + row] = parts.scales[part];
        }
        if L::MINIMUM {
            for (i, minima) in parts.minima.as_chunks::<4>().0.iter().enumerate() {
                out[L::MINIMA_AT + 4 * (i * ROWS + row)..][..4].copy_from_slice(minima);
            }
        }
    }
    for (part, quants) in parts.quants[..L::BLOCK].chunks_exact(L::PART).enumerate() {
        let out = &mut out[L::PARTS_AT + part * L::PART_BYTES..][..L::PART_BYTES];
        let (plane, groups) = out.split_at_mut(L::PLANE_BYTES);
        let mut put = |group: usize, bytes: &[u8]| groups[4 * (group * ROWS + row)..][..4].copy_from_slice(bytes);
        if L::BITS == 8 {
            quants.as_chunks::<4>().0.iter().enumerate().for_each(|(group, bytes)| put(group, bytes));
            continue;
        }
        let (front, back) = quants.split_at(L::PART / 2);
        let mut halves = [0; LANES];
        for i in 0..L::PART / 2 {
            halves[i] = front[i] & 15 | back[i] << 4;
        }
        halves[..L::PART / 2].as_chunks::<4>().0.iter().enumerate().for_each(|(group, bytes)| put(group, bytes));
        if L::PLANE_BYTES > 0 {
            let mut bits = [0u8; 4];
            for (g, quants) in quants.as_chunks::<4>().0.iter().enumerate() {
                for b in 0..4 {
                    bits[b] |= (quants[b] >> 4) << (g * (L::BITS - 4));
                }
            }
            plane[4 * row..][..4].copy_from_slice(&bits);
        }
    }
}

#[test]
fn packs_what_the_layout_says() {
    for format in BlockFormat::ALL {
        for (count, blocks) in [(32, 1), (32, 3), (1, 2), (31, 2)] {
            let row_bytes = blocks * format.block_bytes();
            let mut state = 1u32;
            let random = (0..32 * row_bytes).map(|i| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if i < count * row_bytes { (state >> 24) as u8 } else { 0 }
            });
            let rows: Vec<u8> = random.collect();
            let expected = with_layout!(format, L => {
                let mut expected = vec![0; blocks * L::BLOCK_BYTES];
                for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
                    let blocks = bytes.chunks_exact(format.block_bytes());
                    for (block, out) in blocks.zip(expected.chunks_exact_mut(L::BLOCK_BYTES)) {
                        pack_block::<L>(format, block, row, out);
                    }
                }
                expected
            });
            on_every_isa(|| {
                let mut packed = vec![0xff; expected.len()];
                panel(format, &rows[..count * row_bytes], &mut packed);
                assert!(packed == expected, "{} of {count} rows", format.name());
                Vec::new()
            });
        }
    }
}
