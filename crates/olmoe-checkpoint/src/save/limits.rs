//! Names and limits of what is saved.

/// Name of the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The version that is written, and the only one that is read.
pub const MANIFEST_VERSION: u64 = 1;
/// Most bytes of a manifest.
pub const MAX_MANIFEST: u64 = 64 << 20;
/// Most bytes of a file that `Found::bytes` reads.
pub const MAX_SMALL_FILE: u64 = 1 << 30;
