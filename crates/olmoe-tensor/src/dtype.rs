//! The number formats that tensors are stored in: f32, bf16 and f16.
//!
//! Computation is in f32, or with bf16 operands packed by [`gemm`](crate::gemm); the narrow formats are those of
//! weights in files. Widening is exact. Narrowing rounds to the nearest number, ties to even.

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
pub use half::{bf16, f16};

use crate::threads::{Shared, parallel_ranges};

/// The least number of elements that a task converts.
const GRAIN: usize = 1 << 16;

/// The name of a number format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// The upper half of binary32.
    Bf16,
    /// IEEE binary16.
    F16,
}

impl DType {
    /// Bytes of a number.
    pub fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::Bf16 | DType::F16 => 2,
        }
    }

    /// `f32`, `bf16` or `f16`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
        }
    }
}

/// A type of number that a tensor can hold.
pub trait Element: Pod + Send + Sync {
    /// The name of the format.
    const DTYPE: DType;

    /// `out = x`, exactly, on the calling thread; both slices have the same length.
    fn widen(x: &[Self], out: &mut [f32]);

    /// `out = x`, rounded, on the calling thread; both slices have the same length.
    fn narrow(x: &[f32], out: &mut [Self]);
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

    fn widen(x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
    }
    fn narrow(x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;

    fn widen(x: &[bf16], out: &mut [f32]) {
        x.convert_to_f32_slice(out);
    }
    fn narrow(x: &[f32], out: &mut [bf16]) {
        out.convert_from_f32_slice(x);
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;

    fn widen(x: &[f16], out: &mut [f32]) {
        x.convert_to_f32_slice(out);
    }
    fn narrow(x: &[f32], out: &mut [f16]) {
        out.convert_from_f32_slice(x);
    }
}

/// `out = x` rounded, on all threads.
pub fn narrow<T: Element>(x: &[f32], out: &mut [T]) {
    assert_eq!(x.len(), out.len(), "slices of one length");
    let shared = Shared::new(out);
    // SAFETY: the ranges of a parallel loop are disjoint.
    parallel_ranges(x.len(), GRAIN, |range| T::narrow(&x[range.clone()], unsafe { shared.range(range) }));
}

/// `out = x` exactly, on all threads.
pub fn widen<T: Element>(x: &[T], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "slices of one length");
    let shared = Shared::new(out);
    // SAFETY: the ranges of a parallel loop are disjoint.
    parallel_ranges(x.len(), GRAIN, |range| T::widen(&x[range.clone()], unsafe { shared.range(range) }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{Operand, PANEL_COLS, Right, Source};
    use crate::tensor::Tensor;
    use crate::testing::numbers;

    fn round_trip<T: Element + PartialEq + std::fmt::Debug>(x: &[f32]) -> Vec<f32> {
        let mut narrow_x = Tensor::<T>::zeros(&[x.len().max(1)]);
        narrow(x, &mut narrow_x[..x.len()]);
        let mut back = vec![0.0; x.len()];
        widen(&narrow_x[..x.len()], &mut back);
        let mut again = Tensor::<T>::zeros(&[x.len().max(1)]);
        narrow(&back, &mut again[..x.len()]);
        assert_eq!(again[..], narrow_x[..], "narrowing what was widened changes nothing");
        back
    }

    #[test]
    fn narrowing_rounds_to_nearest_even() {
        for n in [0, 1, 17, 200_001] {
            let x = numbers(1, n);
            assert_eq!(round_trip::<f32>(&x), x);
            for (a, b) in round_trip::<bf16>(&x).iter().zip(&x) {
                assert!((a - b).abs() <= b.abs() / 256.0);
            }
            for (a, b) in round_trip::<f16>(&x).iter().zip(&x) {
                assert!((a - b).abs() <= b.abs() / 2048.0 + 3e-8);
            }
        }
        // Exactly between two bf16 numbers: to the even one, down and up.
        let ties = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
        assert_eq!(round_trip::<bf16>(&ties), [1.0, 1.0 + 4.0 / 256.0]);
        assert_eq!(round_trip::<f16>(&[65536.0]), [f32::INFINITY]);
        let mut nan = [bf16::ZERO];
        narrow(&[f32::NAN], &mut nan);
        assert!(nan[0].is_nan());
    }

    #[test]
    fn packing_rounds_as_storing_does() {
        // The operand of a product and the number in a file are the same bf16.
        let x = numbers(2, 32);
        let mut stored = [bf16::ZERO; 32];
        narrow(&x, &mut stored);
        let packed = Right::from_rows(Source::new(&x, 32), 1, 32, Operand::Bf16);
        let units = packed.group(0).data.iter().step_by(PANEL_COLS).flat_map(|unit| {
            let [even, odd]: [bf16; 2] = bytemuck::cast(*unit);
            [even, odd]
        });
        assert!(units.eq(stored));
    }
}
