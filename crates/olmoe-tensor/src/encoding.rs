//! The encodings of numbers in a file: plain (f32, bf16, f16), or in quantised blocks.

use std::fmt;

use crate::dtype::{DType, Element, bf16, f16};
use crate::memory::Buffer;
use crate::quant::{self, BlockFormat};
use crate::threads::{Shared, parallel_ranges};

/// The least number of elements that a task converts: a multiple of the length of every block.
const GRAIN: usize = 1 << 15;

/// An encoding of numbers as little-endian bytes. A plain encoding has blocks of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// One number after the other.
    Plain(DType),
    /// Blocks of numbers that share a scale.
    Blocks(BlockFormat),
}

impl Encoding {
    /// IEEE binary32.
    pub const F32: Self = Self::Plain(DType::F32);
    /// IEEE binary16.
    pub const F16: Self = Self::Plain(DType::F16);
    /// The upper half of binary32.
    pub const BF16: Self = Self::Plain(DType::Bf16);

    /// `f32`, `q4_0`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain(dtype) => dtype.name(),
            Self::Blocks(format) => format.name(),
        }
    }

    /// The encoding with that name, or `None` if there is none.
    pub fn by_name(name: &str) -> Option<Self> {
        let plain = [Self::F32, Self::F16, Self::BF16].into_iter().find(|encoding| encoding.name() == name);
        plain.or_else(|| BlockFormat::by_name(name).map(Self::Blocks))
    }

    /// Numbers in a block: 1 for a plain encoding, else 32 or 256.
    pub fn block_len(self) -> usize {
        match self {
            Self::Plain(_) => 1,
            Self::Blocks(format) => format.block_len(),
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Plain(dtype) => dtype.size(),
            Self::Blocks(format) => format.block_bytes(),
        }
    }

    /// Bytes of `numbers` numbers; `None` unless they are whole blocks and the bytes fit `usize`.
    pub fn bytes(self, numbers: usize) -> Option<usize> {
        let whole = numbers.is_multiple_of(self.block_len());
        if whole { (numbers / self.block_len()).checked_mul(self.block_bytes()) } else { None }
    }

    /// Whether the numbers of a block share a scale.
    pub fn is_quantized(self) -> bool {
        matches!(self, Self::Blocks(_))
    }

    /// The largest finite number of a plain encoding; `None` for a quantised one, in which each block has a range of
    /// its own.
    pub fn largest(self) -> Option<f32> {
        match self {
            Self::Plain(DType::F32) => Some(f32::MAX),
            Self::Plain(DType::Bf16) => Some(bf16::MAX.to_f32()),
            Self::Plain(DType::F16) => Some(f16::MAX.to_f32()),
            Self::Blocks(_) => None,
        }
    }

    /// The index of the first block that holds NaN or infinity: as a number in a plain encoding, as a scale in a
    /// quantised one.
    pub fn first_not_finite(self, bytes: &[u8]) -> Option<usize> {
        // The bytes need not be aligned, so plain numbers are compared one by one; all bits of the exponent of NaN and
        // infinity are one.
        let halves = |mask: u16| bytes.as_chunks::<2>().0.iter().position(|&b| u16::from_le_bytes(b) & mask == mask);
        match self {
            Self::Plain(DType::F32) => {
                bytes.as_chunks::<4>().0.iter().position(|&b| !f32::from_le_bytes(b).is_finite())
            }
            Self::Plain(DType::Bf16) => halves(0x7f80),
            Self::Plain(DType::F16) => halves(0x7c00),
            Self::Blocks(format) => quant::first_invalid_block(format, bytes),
        }
    }

    /// The index of the first block that [`encode`](Self::encode) wrote for finite numbers that are too large for the
    /// encoding.
    pub fn first_beyond(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Plain(_) => self.first_not_finite(bytes),
            Self::Blocks(format) => quant::first_saturated_block(format, bytes),
        }
    }

    /// Decodes `bytes` to numbers, on the calling thread.
    ///
    /// # Panics
    /// Unless `bytes` are those of `out.len()` numbers.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(Some(bytes.len()), self.bytes(out.len()), "{self}: bytes of {} numbers", out.len());
        match self {
            Self::Plain(DType::F32) => widen::<f32>(bytes, out),
            Self::Plain(DType::Bf16) => widen::<bf16>(bytes, out),
            Self::Plain(DType::F16) => widen::<f16>(bytes, out),
            Self::Blocks(format) => quant::dequantize(format, bytes, out),
        }
    }

    /// Encodes numbers as bytes, on the calling thread; each is rounded to what the encoding can hold.
    ///
    /// # Panics
    /// Unless `out` has the bytes of `x.len()` numbers.
    pub fn encode(self, x: &[f32], out: &mut [u8]) {
        assert_eq!(Some(out.len()), self.bytes(x.len()), "{self}: bytes of {} numbers", x.len());
        match self {
            Self::Plain(DType::F32) => narrow::<f32>(x, out),
            Self::Plain(DType::Bf16) => narrow::<bf16>(x, out),
            Self::Plain(DType::F16) => narrow::<f16>(x, out),
            Self::Blocks(format) => quant::quantize(format, x, out),
        }
    }

    /// Converts numbers to another encoding, on all threads; a copy where both encodings are the same.
    ///
    /// # Panics
    /// Unless `bytes` and `out` are those of as many numbers.
    pub fn convert(self, bytes: &[u8], to: Self, out: &mut [u8]) {
        if self == to {
            return out.copy_from_slice(bytes);
        }
        let numbers = bytes.len() / self.block_bytes() * self.block_len();
        let (from_bytes, to_bytes) = (self.bytes(numbers), to.bytes(numbers));
        assert_eq!((from_bytes, to_bytes), (Some(bytes.len()), Some(out.len())), "{self} to {to}: as many numbers");
        let out = Shared::new(out);
        parallel_ranges(numbers, GRAIN, |range| {
            let place = |encoding: Self| {
                let byte = |number: usize| number / encoding.block_len() * encoding.block_bytes();
                byte(range.start)..byte(range.end)
            };
            // Ranges begin and end at multiples of the grain, or at the end.
            let mut numbers = Buffer::scratch(range.len());
            self.decode(&bytes[place(self)], &mut numbers);
            // SAFETY: the ranges of a parallel loop are disjoint, and so are their bytes.
            to.encode(&numbers, unsafe { out.range(place(to)) });
        });
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn widen<T: Element>(bytes: &[u8], out: &mut [f32]) {
    match bytemuck::try_cast_slice(bytes) {
        Ok(numbers) => T::widen(numbers, out),
        // Bytes of a file need not be aligned.
        Err(_) => {
            let mut numbers = vec![T::zeroed(); out.len()];
            bytemuck::cast_slice_mut(&mut numbers).copy_from_slice(bytes);
            T::widen(&numbers, out);
        }
    }
}

fn narrow<T: Element>(x: &[f32], out: &mut [u8]) {
    match bytemuck::try_cast_slice_mut(out) {
        Ok(numbers) => T::narrow(x, numbers),
        Err(_) => {
            let mut numbers = vec![T::zeroed(); x.len()];
            T::narrow(x, &mut numbers);
            out.copy_from_slice(bytemuck::cast_slice(&numbers));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes() {
        for name in ["f32", "f16", "bf16", "q4_0", "q4_k", "q6_k", "q8_0"] {
            assert_eq!(Encoding::by_name(name).unwrap().name(), name);
        }
        assert_eq!(Encoding::by_name("q9"), None);
        assert_eq!((Encoding::BF16.bytes(3), Encoding::Blocks(BlockFormat::Q8_0).bytes(64)), (Some(6), Some(68)));
        assert_eq!(Encoding::Blocks(BlockFormat::Q8_0).bytes(33), None);
        assert_eq!(Encoding::F32.bytes(usize::MAX), None);
    }

    #[test]
    fn conversions_round_once_and_widening_is_exact() {
        let x: Vec<f32> = (0..70_000).map(|i| (i as f32 - 35_000.0) * 0.37e-2).collect();
        let as_f32: &[u8] = bytemuck::cast_slice(&x);
        for narrow in [Encoding::BF16, Encoding::F16] {
            let mut halves = vec![0; x.len() * 2 + 1];
            // Not aligned, as bytes of a file may be.
            Encoding::F32.convert(as_f32, narrow, &mut halves[1..]);
            let mut back = vec![0f32; x.len()];
            narrow.convert(&halves[1..], Encoding::F32, bytemuck::cast_slice_mut(&mut back));
            let mut again = vec![0; x.len() * 2];
            Encoding::F32.convert(bytemuck::cast_slice(&back), narrow, &mut again);
            assert_eq!(again, halves[1..]);
            assert!(back.iter().zip(&x).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0));
        }
    }

    #[test]
    fn what_is_not_finite_is_found() {
        let mut x = vec![1.0f32; 100];
        x[70] = f32::NAN;
        assert_eq!(Encoding::F32.first_not_finite(bytemuck::cast_slice(&x)), Some(70));
        for encoding in [Encoding::BF16, Encoding::F16] {
            let mut bytes = vec![0; 200];
            encoding.encode(&x, &mut bytes);
            assert_eq!(encoding.first_not_finite(&bytes), Some(70), "{encoding}");
            assert_eq!(encoding.first_not_finite(&bytes[..140]), None, "{encoding}");
        }
        let q8 = Encoding::Blocks(BlockFormat::Q8_0);
        let mut bytes = vec![0; q8.bytes(96).unwrap()];
        q8.encode(&x[..64], &mut bytes[..68]);
        bytes[34..36].copy_from_slice(&f16::INFINITY.to_le_bytes());
        assert_eq!(q8.first_not_finite(&bytes), Some(1));
    }

    #[test]
    fn what_is_too_large_is_found() {
        let mut x = vec![1.0f32; 512];
        // What fits is half a step inside, so that no scale comes to the very largest f16, which counts as beyond.
        // Bounds from the definitions: whole numbers up to 8, 16 and 127 times a scale that ends at 65504, and 15 or 31
        // steps above a minimum that ends there; parts of 256 numbers have whole scales up to 63 and 127 besides.
        for (name, fits, large) in [
            ("q4_0", 65504.0 * 5.5, 65504.0 * 9.0),
            ("q5_0", 65504.0 * 13.5, 65504.0 * 17.0),
            ("q8_0", 65504.0 * 125.5, 65504.0 * 129.0),
            ("q4_1", 65504.0 * 12.5, 65504.0 * 18.0),
            ("q5_1", 65504.0 * 28.5, 65504.0 * 34.0),
            ("q4_k", 65504.0 * 15.0 * 45.0, 65504.0 * 15.0 * 80.0),
            ("q6_k", 65504.0 * 31.0 * 90.0, 65504.0 * 32.0 * 150.0),
        ] {
            let encoding = Encoding::by_name(name).unwrap();
            let mut found = |value: f32| {
                x[300] = value;
                let mut bytes = vec![0; encoding.bytes(512).unwrap()];
                encoding.encode(&x, &mut bytes);
                encoding.first_beyond(&bytes)
            };
            assert_eq!(found(fits), None, "{name}");
            assert_eq!(found(large), Some(300 / encoding.block_len()), "{name}");
        }
        let mut halves = vec![0; 1024];
        x[300] = 7e4;
        Encoding::F16.encode(&x, &mut halves);
        assert_eq!(Encoding::F16.first_beyond(&halves), Some(300));
    }
}
