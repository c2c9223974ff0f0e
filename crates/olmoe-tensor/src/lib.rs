//! Memory, threads, kernels and operations.
pub mod dtype;
pub mod gemm;
pub mod limits;
pub mod memory;
pub mod ops;
pub mod simd;
pub mod tensor;
#[cfg(test)]
mod testing;
pub mod threads;
