//! The safetensors format: a length, a JSON header, and the numbers of all tensors.
//!
//! ```text
//! bytes 0..8      n, the bytes of the header, little-endian
//! bytes 8..8+n    {"__metadata__": {…}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}
//! the rest        the tensors, dense and row-major, without holes or overlaps, to the end of the file
//! ```
//!
//! Source: the format's description at <https://github.com/huggingface/safetensors>. The same files are accepted as by
//! the reference library, except those with two tensors of one name, which that library does not notice.

mod error;
mod header;
mod index;
mod kind;
mod limits;
mod shards;
mod writer;

pub use error::SafetensorsError;
pub use header::{Entry, SafetensorsHeader, read_header};
pub use index::{INDEX_FILE, IndexError, MAX_INDEX, ShardIndex};
pub use kind::SafeType;
pub use limits::{MAX_HEADER, MAX_METADATA, MAX_RANK, MAX_TENSOR_NAME, MAX_TENSORS};
pub(crate) use shards::split_sizes;
pub use shards::{Shards, ShardsError, shard_name, split};
pub use writer::{Spec, Writer, file_bytes};
