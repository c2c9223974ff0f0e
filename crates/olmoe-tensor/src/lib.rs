//! The operations of a mixture-of-experts language model on the CPU, independent of any one model.
//!
//! | module | what it holds |
//! |---|---|
//! | [`memory`] | aligned buffers from a pool that reuses them |
//! | [`tensor`] | dense row-major arrays |
//! | [`dtype`] | the number formats f32, bf16 and f16 |
//! | [`encoding`] | numbers as bytes of a file: plain, or in quantised blocks |
//! | [`threads`] | one pool of threads with a low wake-up latency |
//! | [`simd`] | sixteen lanes on several instruction sets |
//! | [`gemm`] | packed matrix products |
//! | [`ops`] | the operations, forward and backward, one file each |
//! | [`elementary`] | elementary functions in f64 with the same bits on every machine |
//! | [`strips`] | the shape of a weight, cut into strips of rows |
//! | [`quant`] | weights in blocks that share a scale, as GGUF files hold them |
//! | [`limits`] | what the machine can do at most, measured |
//!
//! Three rules hold everywhere. Arrays are dense and row-major with the contraction last: `y = x·Wᵀ`, `W` is `[out,
//! in]`. The gradient of a parameter is accumulated (`+=`, f32); the gradient of an activation is overwritten. The
//! order of every sum is fixed: a result depends neither on the number of threads nor on the instruction set, and the
//! result of a row does not depend on the other rows of its batch.
//!
//! Names carry their shapes: T tokens, S slots (token–expert pairs), D model width, I inner width, H heads, E experts,
//! K choices, V vocabulary; `x_td` is `[T, D]`.
//!
//! # Glossary
//!
//! | word | meaning |
//! |---|---|
//! | operand | the precision in which a product reads both of its factors: f32 or bf16 ([`gemm::Operand`]) |
//! | factor | one of the two matrices of a product: the left one with the rows of the result, the right one with its columns |
//! | contraction | the axis over which a product sums, of length `k` |
//! | unit | a step of the contraction as packed numbers hold it: one f32, or a pair of bf16 |
//! | form | how the units of a panel lie in memory, as f32 or as bf16, in pairs or in halves |
//! | panel | up to 12 rows of a left factor, or 32 rows of a right one, packed for the kernels unit by unit |
//! | tile | the rows and columns of a result that one call of a kernel holds in registers |
//! | piece | the tiles of some panels that one task computes one after the other |
//! | section | a range of the contraction that a kernel runs through at once |
//! | strip | 32 rows of a weight, or fewer at its end: what one task reads, changes and packs |
//! | group | consecutive rows of an input that are multiplied with the same weight, as the rows of one expert are |
//! | slot | a (token, expert) pair of a mixture-of-experts layer |
//! | block | numbers that share a scale in a quantised format; a *block of rows*, *of keys* or *of tokens* is a few consecutive ones that a task works on while they are in a cache |
//! | part | in a block of 256 numbers, the 16 or 32 that have a whole scale of their own |
//! | quant | the whole number that a quantised format stores for a number |
//! | span | a fixed number of keys whose attention is computed independently and then merged |
//! | segment | the rows of one sequence among those of a batch |
//! | chunk | the tokens whose logits exist at once in [`ops::cross_entropy`] |
//! | band | the tokens of a chunk whose gradients of the logits exist at once |
//! | slab | a fixed part of the vocabulary whose contribution to a gradient is summed on its own |
//! | grain | the least number of elements for which a task is started |

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
