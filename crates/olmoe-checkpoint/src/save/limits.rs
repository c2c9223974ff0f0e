//! Names and limits of saved checkpoints.

/// The name of the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The version that is written, and the only one that can be read.
pub const MANIFEST_VERSION: u64 = 1;
/// The longest manifest in bytes.
pub const MAX_MANIFEST: u64 = 64 << 20;
/// The largest file in bytes that `Found::bytes` reads.
pub const MAX_SMALL_FILE: u64 = 1 << 30;
