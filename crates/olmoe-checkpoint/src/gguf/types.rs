//! ggml's tensor types: numbers, names, and sizes of their blocks.

use olmoe_tensor::dtype::DType;
use olmoe_tensor::quant::BlockFormat;

use crate::encoding::Encoding;

/// Number, name, numbers in a block, bytes of a block.
const TYPES: [(u32, &str, u64, u64); 37] = [
    (0, "f32", 1, 4),
    (1, "f16", 1, 2),
    (2, "q4_0", 32, 18),
    (3, "q4_1", 32, 20),
    (6, "q5_0", 32, 22),
    (7, "q5_1", 32, 24),
    (8, "q8_0", 32, 34),
    (9, "q8_1", 32, 40),
    (10, "q2_k", 256, 84),
    (11, "q3_k", 256, 110),
    (12, "q4_k", 256, 144),
    (13, "q5_k", 256, 176),
    (14, "q6_k", 256, 210),
    (15, "q8_k", 256, 292),
    (16, "iq2_xxs", 256, 66),
    (17, "iq2_xs", 256, 74),
    (18, "iq3_xxs", 256, 98),
    (19, "iq1_s", 256, 50),
    (20, "iq4_nl", 32, 18),
    (21, "iq3_s", 256, 110),
    (22, "iq2_s", 256, 82),
    (23, "iq4_xs", 256, 136),
    (24, "i8", 1, 1),
    (25, "i16", 1, 2),
    (26, "i32", 1, 4),
    (27, "i64", 1, 8),
    (28, "f64", 1, 8),
    (29, "iq1_m", 256, 56),
    (30, "bf16", 1, 2),
    (34, "tq1_0", 256, 54),
    (35, "tq2_0", 256, 66),
    (39, "mxfp4", 32, 17),
    (40, "nvfp4", 64, 36),
    (41, "q1_0", 128, 18),
    // Repacked forms that early files may carry; of the size of what they repack.
    (31, "q4_0_4_4", 32, 18),
    (32, "q4_0_4_8", 32, 18),
    (33, "q4_0_8_8", 32, 18),
];

fn entry(number: u32) -> Option<&'static (u32, &'static str, u64, u64)> {
    TYPES.iter().find(|entry| entry.0 == number)
}

/// Numbers in a block and bytes of it.
pub(super) fn unit(number: u32) -> Option<(u64, u64)> {
    entry(number).map(|entry| (entry.2, entry.3))
}

/// The name of a type.
pub(crate) fn name(number: u32) -> &'static str {
    entry(number).map_or("unknown", |entry| entry.1)
}

/// The encoding of a type, if there is one here.
pub(crate) fn encoding(number: u32) -> Option<Encoding> {
    Encoding::by_name(name(number))
}

/// The type of an encoding.
pub(crate) fn number(encoding: Encoding) -> u32 {
    match encoding {
        Encoding::Plain(DType::F32) => 0,
        Encoding::Plain(DType::F16) => 1,
        Encoding::Plain(DType::Bf16) => 30,
        Encoding::Blocks(BlockFormat::Q4_0) => 2,
        Encoding::Blocks(BlockFormat::Q4_1) => 3,
        Encoding::Blocks(BlockFormat::Q5_0) => 6,
        Encoding::Blocks(BlockFormat::Q5_1) => 7,
        Encoding::Blocks(BlockFormat::Q8_0) => 8,
        Encoding::Blocks(BlockFormat::Q4K) => 12,
        Encoding::Blocks(BlockFormat::Q5K) => 13,
        Encoding::Blocks(BlockFormat::Q6K) => 14,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_types_of_their_name_and_size() {
        let mut known = 0;
        for &(type_number, name, len, bytes) in &TYPES {
            let Some(encoding) = encoding(type_number) else { continue };
            known += 1;
            assert_eq!((number(encoding), encoding.name()), (type_number, name));
            assert_eq!((encoding.block_len() as u64, encoding.block_bytes() as u64), (len, bytes));
        }
        assert_eq!(known, 3 + BlockFormat::ALL.len());
    }
}
