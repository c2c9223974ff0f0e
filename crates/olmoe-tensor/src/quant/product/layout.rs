//! The layout of packed quantised weights, one for each format.
//!
//! A panel holds 32 rows, block after block of the contraction. The blocks of the 32 rows at one place hold, in this
//! order:
//!
//! | what | bytes | formats |
//! |---|---|---|
//! | d of each row, f16 | 64 | all |
//! | the second f16 of each row: dmin, or −m | 64 | Q4_1 Q5_1 Q4_K Q5_K |
//! | minima: parts 0..4 of row 0, of row 1, …, then parts 4..8 | 256 | Q4_K Q5_K |
//! | scales of part 0 of all rows, of part 1, … | 32 a part | Q4_K Q5_K Q6_K |
//! | the parts, one after the other | | all |
//!
//! A part has one scale: 16 numbers in Q6_K, else 32. Its numbers are taken in groups of four, the four bytes of a
//! lane. First comes, where quants have five or six bits, a plane of the high bits, 4 bytes a row: with five bits, bit
//! `g` of byte `b` belongs to number `4g + b` of the part; with six, bits `2g` and `2g + 1`. Then the quants, without a
//! sign, 4 bytes a row at a time: with eight bits group 0, group 1, …; else group `g` in the low halves of the bytes
//! and group `g + G/2` in the high halves, for `g` up to half the groups `G`.
//!
//! So the packed weights have the size of those in the file, except in Q4_K and Q5_K: scales in bytes take 4 bytes more
//! for each block of 144 or 176 bytes.

use crate::simd::Simd;

/// Rows of a panel.
pub(super) const ROWS: usize = 32;
/// Bytes of a group of all rows.
pub(super) const GROUP_BYTES: usize = 4 * ROWS;

/// The layout of a format.
pub(super) trait Layout: 'static {
    /// Numbers of a part.
    const PART: usize;
    /// Parts of a block.
    const PARTS: usize;
    /// Bits of a quant.
    const BITS: usize;
    /// What is subtracted from a quant before it is scaled; `None` in a format with minima.
    const OFFSET: Option<i32>;

    /// Numbers of a block, the same for weights and activations.
    const BLOCK: usize = Self::PART * Self::PARTS;
    /// Whether the parts have integer scales, which the f16 scale of the block multiplies.
    const SCALES: bool = Self::PARTS > 1;
    /// Whether the number is `scale·q − minimum`.
    const MINIMUM: bool = Self::OFFSET.is_none();
    /// Whether products of two quants need more than 16 bits.
    const WIDE: bool = Self::BITS > 7;

    /// Where the minima begin.
    const MINIMA_AT: usize = if Self::MINIMUM { 4 * ROWS } else { 2 * ROWS };
    /// Where the scales begin.
    const SCALES_AT: usize = Self::MINIMA_AT + if Self::MINIMUM && Self::SCALES { Self::PARTS * ROWS } else { 0 };
    /// Where the parts begin.
    const PARTS_AT: usize = Self::SCALES_AT + if Self::SCALES { Self::PARTS * ROWS } else { 0 };
    /// Bytes of a part's plane of high bits.
    const PLANE_BYTES: usize = if matches!(Self::BITS, 5 | 6) { GROUP_BYTES } else { 0 };
    /// Bytes of a part.
    const PART_BYTES: usize = Self::PLANE_BYTES + Self::PART / if Self::BITS == 8 { 4 } else { 8 } * GROUP_BYTES;
    /// Bytes of a block of all rows.
    const BLOCK_BYTES: usize = Self::PARTS_AT + Self::PARTS * Self::PART_BYTES;
}

macro_rules! layouts {
    ($($name:ident: $part:literal, $parts:literal, $bits:literal, $offset:expr;)*) => {$(
        pub(super) struct $name;
        impl Layout for $name {
            const PART: usize = $part;
            const PARTS: usize = $parts;
            const BITS: usize = $bits;
            const OFFSET: Option<i32> = $offset;
        }
    )*};
}

layouts! {
    Q4_0: 32, 1, 4, Some(8);
    Q4_1: 32, 1, 4, None;
    Q5_0: 32, 1, 5, Some(16);
    Q5_1: 32, 1, 5, None;
    Q8_0: 32, 1, 8, Some(128);
    Q4K: 32, 8, 4, None;
    Q5K: 32, 8, 5, None;
    Q6K: 16, 16, 6, Some(32);
}

/// An expression over the layout `$layout` of a format.
macro_rules! with_layout {
    ($format:expr, $layout:ident => $body:expr) => {
        match $format {
            BlockFormat::Q4_0 => {
                type $layout = layout::Q4_0;
                $body
            }
            BlockFormat::Q4_1 => {
                type $layout = layout::Q4_1;
                $body
            }
            BlockFormat::Q5_0 => {
                type $layout = layout::Q5_0;
                $body
            }
            BlockFormat::Q5_1 => {
                type $layout = layout::Q5_1;
                $body
            }
            BlockFormat::Q8_0 => {
                type $layout = layout::Q8_0;
                $body
            }
            BlockFormat::Q4K => {
                type $layout = layout::Q4K;
                $body
            }
            BlockFormat::Q5K => {
                type $layout = layout::Q5K;
                $body
            }
            BlockFormat::Q6K => {
                type $layout = layout::Q6K;
                $body
            }
        }
    };
}
pub(super) use with_layout;

/// The quants of groups `g` and `g + G/2` of the part at `part`, of sixteen rows.
///
/// # Safety
/// `part` points at a part of layout `L`, or 64 bytes on for the second sixteen rows; `2 * g < L::PART / 4`.
#[inline(always)]
pub(super) unsafe fn quants<S: Simd, L: Layout>(s: S, part: *const u8, g: usize) -> [S::B; 2] {
    let half = L::PART / 8;
    // SAFETY: inside the part by the caller's promise.
    unsafe {
        let groups = part.add(L::PLANE_BYTES);
        if L::BITS == 8 {
            return [s.load_bytes(groups.add(g * GROUP_BYTES)), s.load_bytes(groups.add((g + half) * GROUP_BYTES))];
        }
        let bytes = s.load_bytes(groups.add(g * GROUP_BYTES));
        let low = s.splat_int(0x0f0f_0f0f);
        let (a, b) = (s.and(bytes, low), s.and(s.shift_right(bytes, 4), low));
        if L::BITS == 4 {
            return [a, b];
        }
        let plane = s.load_bytes(part);
        [s.or(a, high_bits::<S, L>(s, plane, g)), s.or(b, high_bits::<S, L>(s, plane, g + half))]
    }
}

/// The bits of group `g` in a plane, shifted to where a quant has its fifth bit; the other bits are masked.
#[inline(always)]
fn high_bits<S: Simd, L: Layout>(s: S, plane: S::B, g: usize) -> S::B {
    let (bits, mask) = if L::BITS == 5 { (1, 0x1010_1010) } else { (2, 0x3030_3030) };
    let at = bits * g;
    let moved = if at <= 4 { s.shift_left(plane, 4 - at as u32) } else { s.shift_right(plane, at as u32 - 4) };
    s.and(moved, s.splat_int(mask))
}
