//! Weights in blocks: the formats of GGUF files in which some numbers share a scale.
//!
//! | module | formats | a block |
//! |---|---|---|
//! | `legacy` | Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 | 32 numbers, an f16 scale, with `_1` an f16 minimum |
//! | `k` | Q4_K Q5_K Q6_K | 256 numbers, f16 scales of the small whole scales of its parts |
//! | `search` | | the search for the scales with the least squared error |
//! | [`product`] | all | products with activations of eight bits |
//!
//! Dequantising gives the bits of the reference implementation (gguf for Python). Quantising minimises the squared
//! error and gives the same bits on every instruction set. Blocks are bytes as they lie in a file: little-endian, not
//! aligned. Each block is independent of its neighbours, so the work can be divided among threads at any block;
//! quantising is fastest with multiples of sixteen blocks, which it fits at once.

mod k;
mod legacy;
pub mod product;
mod search;

use half::f16;

use crate::simd::kernel;

/// A quantised format: how the numbers of a block and their scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 4 bits: `d·(q − 8)`
    Q4_0,
    /// 4 bits: `d·q + m`
    Q4_1,
    /// 5 bits: `d·(q − 16)`
    Q5_0,
    /// 5 bits: `d·q + m`
    Q5_1,
    /// 8 bits: `d·q`
    Q8_0,
    /// 4 bits: `d·scale·q − dmin·minimum`
    Q4K,
    /// 5 bits: `d·scale·q − dmin·minimum`
    Q5K,
    /// 6 bits: `d·scale·(q − 32)`
    Q6K,
}

impl BlockFormat {
    /// All formats.
    pub const ALL: [BlockFormat; 8] = [
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q5_0,
        BlockFormat::Q5_1,
        BlockFormat::Q8_0,
        BlockFormat::Q4K,
        BlockFormat::Q5K,
        BlockFormat::Q6K,
    ];

    /// `q4_0` to `q6_k`.
    pub fn name(self) -> &'static str {
        match self {
            BlockFormat::Q4_0 => "q4_0",
            BlockFormat::Q4_1 => "q4_1",
            BlockFormat::Q5_0 => "q5_0",
            BlockFormat::Q5_1 => "q5_1",
            BlockFormat::Q8_0 => "q8_0",
            BlockFormat::Q4K => "q4_k",
            BlockFormat::Q5K => "q5_k",
            BlockFormat::Q6K => "q6_k",
        }
    }

    /// The format with a name as [`BlockFormat::name`] gives it, or `None` if there is none.
    pub fn by_name(name: &str) -> Option<BlockFormat> {
        BlockFormat::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Numbers in a block.
    pub fn block_len(self) -> usize {
        match self {
            BlockFormat::Q4K | BlockFormat::Q5K | BlockFormat::Q6K => k::LEN,
            _ => legacy::LEN,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            BlockFormat::Q4_0 => legacy::Q4_0_BYTES,
            BlockFormat::Q4_1 => legacy::Q4_1_BYTES,
            BlockFormat::Q5_0 => legacy::Q5_0_BYTES,
            BlockFormat::Q5_1 => legacy::Q5_1_BYTES,
            BlockFormat::Q8_0 => legacy::Q8_0_BYTES,
            BlockFormat::Q4K => k::Q4_BYTES,
            BlockFormat::Q5K => k::Q5_BYTES,
            BlockFormat::Q6K => k::Q6_BYTES,
        }
    }

    /// Bytes of `numbers` numbers; `None` unless they are whole blocks and the bytes fit `usize`.
    pub fn bytes(self, numbers: usize) -> Option<usize> {
        let blocks = numbers / self.block_len();
        numbers.is_multiple_of(self.block_len()).then(|| blocks.checked_mul(self.block_bytes())).flatten()
    }

    /// Where in a block its f16 numbers begin.
    fn halves(self) -> &'static [usize] {
        match self {
            BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
            BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4K | BlockFormat::Q5K => &[0, 2],
            BlockFormat::Q6K => &[k::Q6_SCALE],
        }
    }

    /// Panics unless `blocks` bytes hold `numbers` numbers.
    fn check(self, numbers: usize, blocks: usize) {
        assert_eq!(self.bytes(numbers), Some(blocks), "bytes of {numbers} numbers in {} blocks", self.name());
    }
}

/// Dequantises blocks, on the calling thread.
///
/// A block whose scale is NaN or infinity gives numbers that are not finite; [`first_invalid_block`] finds such blocks.
///
/// # Panics
/// When the length of `blocks` is not [`BlockFormat::bytes`] of the length of `out`.
pub fn dequantize(format: BlockFormat, blocks: &[u8], out: &mut [f32]) {
    format.check(out.len(), blocks.len());
    read(format, blocks, out);
}

/// Quantises numbers to blocks, on the calling thread.
///
/// Searches for the scales with the least squared error, in which all numbers have the same weight. The same numbers
/// always give the same bits. The numbers should be finite: NaN and infinity are stored as some finite number.
///
/// # Panics
/// When the length of `blocks` is not [`BlockFormat::bytes`] of the length of `x`.
pub fn quantize(format: BlockFormat, x: &[f32], blocks: &mut [u8]) {
    format.check(x.len(), blocks.len());
    write(format, x, blocks);
}

/// The index of the first block with a scale or a minimum that is NaN or infinity.
///
/// # Panics
/// When `blocks` are not whole blocks.
pub fn first_invalid_block(format: BlockFormat, blocks: &[u8]) -> Option<usize> {
    first_from(format, blocks, f16::INFINITY)
}

/// The index of the first block with a scale or a minimum that is the largest f16, NaN or infinity: [`quantize`] writes
/// the largest f16 where numbers are too large for the format.
///
/// # Panics
/// When `blocks` are not whole blocks.
pub fn first_saturated_block(format: BlockFormat, blocks: &[u8]) -> Option<usize> {
    first_from(format, blocks, f16::MAX)
}

/// The index of the first block with an f16 number of magnitude `size` or more; NaN and infinity count as more.
fn first_from(format: BlockFormat, blocks: &[u8], size: f16) -> Option<usize> {
    assert!(blocks.len().is_multiple_of(format.block_bytes()), "whole {} blocks", format.name());
    let (halves, size) = (format.halves(), size.to_bits());
    match format {
        BlockFormat::Q4_0 => first::<{ legacy::Q4_0_BYTES }>(blocks, halves, size),
        BlockFormat::Q4_1 => first::<{ legacy::Q4_1_BYTES }>(blocks, halves, size),
        BlockFormat::Q5_0 => first::<{ legacy::Q5_0_BYTES }>(blocks, halves, size),
        BlockFormat::Q5_1 => first::<{ legacy::Q5_1_BYTES }>(blocks, halves, size),
        BlockFormat::Q8_0 => first::<{ legacy::Q8_0_BYTES }>(blocks, halves, size),
        BlockFormat::Q4K => first::<{ k::Q4_BYTES }>(blocks, halves, size),
        BlockFormat::Q5K => first::<{ k::Q5_BYTES }>(blocks, halves, size),
        BlockFormat::Q6K => first::<{ k::Q6_BYTES }>(blocks, halves, size),
    }
}

/// The same for blocks whose f16 numbers lie at `halves`, one or two places.
fn first<const BYTES: usize>(blocks: &[u8], halves: &[usize], size: u16) -> Option<usize> {
    /// All but the sign: the bits of greater numbers are greater.
    const SIZE: u16 = 0x7fff;
    let (a, b) = (halves[0], halves[halves.len() - 1]);
    let large = |block: &[u8; BYTES], at: usize| u16::from_le_bytes([block[at], block[at + 1]]) & SIZE >= size;
    let found = |block: &[u8; BYTES]| large(block, a) | large(block, b);
    // Many at a time without a branch, because loading a model examines every block.
    let mut batches = blocks.as_chunks::<BYTES>().0.chunks(64).enumerate();
    let (batch, some) = batches.find(|(_, some)| some.iter().fold(false, |any, block| any | found(block)))?;
    Some(64 * batch + some.iter().position(found)?)
}

kernel! {
    fn read[_s: S](format: BlockFormat, blocks: &[u8], out: &mut [f32]) {
        match format {
            BlockFormat::Q4_0 => read_each(blocks, out, legacy::read_q4_0),
            BlockFormat::Q4_1 => read_each(blocks, out, legacy::read_q4_1),
            BlockFormat::Q5_0 => read_each(blocks, out, legacy::read_q5_0),
            BlockFormat::Q5_1 => read_each(blocks, out, legacy::read_q5_1),
            BlockFormat::Q8_0 => read_each(blocks, out, legacy::read_q8_0),
            BlockFormat::Q4K => read_each(blocks, out, k::read_q4),
            BlockFormat::Q5K => read_each(blocks, out, k::read_q5),
            BlockFormat::Q6K => read_each(blocks, out, k::read_q6),
        }
    }
}

kernel! {
    fn write[s: S](format: BlockFormat, x: &[f32], blocks: &mut [u8]) {
        match format {
            BlockFormat::Q4K | BlockFormat::Q5K => k::write_affine(s, format, x, blocks),
            BlockFormat::Q6K => k::write_q6(s, x, blocks),
            _ => legacy::write(s, format, x, blocks),
        }
    }
}

/// Runs `read` over blocks of `BYTES` bytes and their `LEN` numbers.
#[inline(always)]
fn read_each<const BYTES: usize, const LEN: usize>(
    blocks: &[u8],
    out: &mut [f32],
    read: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in blocks.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        read(block, out);
    }
}

/// The f16 number at a place of a block.
#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Writes a number that is exactly an f16 to a place of a block.
#[inline(always)]
fn put_half(block: &mut [u8], at: usize, x: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
}

#[cfg(test)]
mod tests;
