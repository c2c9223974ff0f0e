//! What can be wrong with a safetensors file.

use std::io;

use super::limits::{MAX_HEADER, MAX_METADATA, MAX_RANK, MAX_TENSOR_NAME, MAX_TENSORS};

/// Why a safetensors file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// The file cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Too short for the length of a header.
    #[error("{found} bytes long, too short for a safetensors file, which has at least 8; copy or write it again")]
    TooShort {
        /// Bytes of the file.
        found: u64,
    },
    /// A header longer than the format allows.
    #[error("a header of {found} bytes, more than the {MAX_HEADER} of the format; this is not a safetensors file")]
    HeaderTooLong {
        /// The length that the file gives.
        found: u64,
    },
    /// A header that goes beyond the file.
    #[error(
        "a header of {found} bytes in a file with {left} left for it; the file is truncated, copy or write it again"
    )]
    HeaderCut {
        /// The length that the file gives.
        found: u64,
        /// Bytes after the length.
        left: u64,
    },
    /// The header is not text.
    #[error("the header is not UTF-8 from its byte {at} on; the file is damaged or not of this format")]
    NotText {
        /// The first byte of the header that is not.
        at: usize,
    },
    /// The header is not an object.
    #[error("the header does not begin with {{; the file is damaged or not of this format")]
    NotAnObject,
    /// The header is not JSON, or not of the form of a header.
    #[error("the header cannot be understood: {0}")]
    Json(serde_json::Error),
    /// Too many tensors.
    #[error("more than {MAX_TENSORS} tensors; split the file")]
    TooManyTensors,
    /// Too many entries of the metadata.
    #[error("more than {MAX_METADATA} entries of metadata; keep them in a file of their own")]
    TooMuchMetadata,
    /// A name that is too long.
    #[error("a tensor's name of {found} bytes, more than {MAX_TENSOR_NAME}; shorten it")]
    NameTooLong {
        /// Its bytes.
        found: usize,
    },
    /// The name that is reserved for the metadata.
    #[error("a tensor is named __metadata__, which the format reserves; rename it")]
    ReservedName,
    /// Two tensors of one name.
    #[error("tensor {tensor:?} occurs twice, and which one is meant is unknown; write the file again")]
    Duplicate {
        /// The name.
        tensor: String,
    },
    /// Two values of one key of the metadata.
    #[error("metadata {key:?} occurs twice, and which value is meant is unknown; write the file again")]
    DuplicateMetadata {
        /// The key.
        key: String,
    },
    /// An unknown number format.
    #[error("tensor {tensor:?}: type {found:?} is not known; expected one like F32 or BF16")]
    UnknownType {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// Too many axes.
    #[error("tensor {tensor:?}: more than {MAX_RANK} axes")]
    Rank {
        /// The tensor.
        tensor: String,
    },
    /// A shape whose number of bytes overflows.
    #[error("tensor {tensor:?}: shape {shape:?} has more bytes than can be counted; the file is damaged")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A tensor that ends before it begins.
    #[error("tensor {tensor:?}: begins at byte {begin} of the data and ends at {end}, before; the file is damaged")]
    Reversed {
        /// The tensor.
        tensor: String,
        /// First byte, of the data.
        begin: u64,
        /// Byte after the last.
        end: u64,
    },
    /// A tensor beyond the end of the file.
    #[error("tensor {tensor:?}: ends at byte {end} of the data, which has {data}; the file is truncated or damaged")]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// Byte after the last, of the data.
        end: u64,
        /// Bytes of the data.
        data: u64,
    },
    /// Bytes that belong to no tensor.
    #[error("tensor {tensor:?}: begins at byte {begin} of the data, the one before ends at {previous}: a hole")]
    Hole {
        /// The tensor after the hole.
        tensor: String,
        /// Its first byte, of the data.
        begin: u64,
        /// Where the one before ends.
        previous: u64,
    },
    /// Bytes that belong to two tensors.
    #[error("tensor {tensor:?}: begins at byte {begin} of the data, the one before ends at {previous}: an overlap")]
    Overlap {
        /// The later tensor.
        tensor: String,
        /// Its first byte, of the data.
        begin: u64,
        /// Where the one before ends.
        previous: u64,
    },
    /// A tensor whose bytes are not those of its shape.
    #[error("tensor {tensor:?}: {found} bytes; {dtype} of shape {shape:?} has {expected}; the file is damaged")]
    Size {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: &'static str,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes between its offsets.
        found: u64,
        /// Bytes of its shape.
        expected: u64,
    },
    /// Bytes after the last tensor.
    #[error("the tensors end at byte {covered} of the data, which has {data}; the file has bytes after its tensors")]
    Uncovered {
        /// Bytes of all tensors.
        covered: u64,
        /// Bytes of the data.
        data: u64,
    },
    /// More bytes were written than the tensors have.
    #[error("{found} bytes of tensors were written, but the header has {expected}")]
    TooMuch {
        /// The number of bytes, including the refused ones.
        found: u64,
        /// Bytes of all tensors.
        expected: u64,
    },
    /// Fewer bytes were written than the tensors have.
    #[error("{found} bytes of tensors were written, but the header has {expected}; tensor {tensor:?} is incomplete")]
    TooLittle {
        /// Bytes written.
        found: u64,
        /// Bytes of all tensors.
        expected: u64,
        /// The first incomplete tensor.
        tensor: String,
    },
}
