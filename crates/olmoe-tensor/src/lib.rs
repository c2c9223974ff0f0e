//! What a mixture-of-experts language model computes with on the CPU; it knows nothing of any one model.
//!
//! | module | what it holds |
//! |---|---|
//! | [`memory`] | aligned buffers from a pool that reuses them |
//! | [`tensor`] | dense row-major arrays |
//! | [`dtype`] | f32, bf16 and f16 as formats of stored numbers |
//! | [`encoding`] | numbers as bytes of a file: plain or in quantised blocks |
//! | [`threads`] | one pool of threads with a low wake-up latency |
//! | [`simd`] | sixteen lanes on several instruction sets |
//! | [`gemm`] | packed matrix products |
//! | [`ops`] | the operations, forward and backward, one file each |
//! | [`elementary`] | exponential and logarithm in f64, alike on every machine |
//! | [`strips`] | the shape of weights, cut into strips of rows |
//! | [`quant`] | weights in blocks that share a scale, as GGUF files hold them |
//! | [`limits`] | what the machine can do at most, measured |
//!
//! Three rules hold everywhere. Arrays are dense and row-major with the contraction last: `y = x·Wᵀ`, `W` is `[out, in]`.
//! The gradient of a parameter is added to (`+=`, f32), the gradient of an activation is written afresh. And a result
//! never depends on the number of threads, nor a row's result on the rows beside it, nor either on the instruction set:
//! the order of every sum is fixed.
//!
//! Names carry their shapes: T tokens, S slots (token–expert pairs), D model width, I inner width, H heads, E experts,
//! K choices, V vocabulary; `x_td` is `[T, D]`.

pub mod dtype;
pub mod elementary;
pub mod encoding;
pub mod gemm;
pub mod limits;
pub mod memory;
pub mod ops;
pub mod quant;
pub mod simd;
pub mod strips;
pub mod tensor;
#[cfg(test)]
mod testing;
pub mod threads;
mod work;
