//! A count and its noun, in one number or the other.

/// `1 token`, `2 tokens`.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
