//! Steps of long work, for a progress bar.

/// A step of a conversion, for a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes of tensors were written.
    Written(u64),
    /// Bytes of tensors were read back.
    Compared(u64),
}
