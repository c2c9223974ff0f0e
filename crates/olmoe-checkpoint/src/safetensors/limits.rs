//! Limits of a header.

/// The longest header in bytes, which is the format's own limit.
pub const MAX_HEADER: u64 = 100_000_000;
/// Most tensors of a file.
pub const MAX_TENSORS: usize = 1_000_000;
/// Most entries of the metadata.
pub const MAX_METADATA: usize = 100_000;
/// Most axes of a tensor.
pub const MAX_RANK: usize = 64;
/// Most bytes of a tensor's name.
pub const MAX_TENSOR_NAME: usize = 4096;
