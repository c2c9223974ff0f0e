//! Which names that are read from files may be used as paths.

/// Longest name of a file, in bytes, on the usual file systems.
pub const MAX_FILE_NAME: usize = 255;

/// Whether `name` names a file of the folder itself on every system: no separators, no drive, no `..`, no control
/// characters.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_FILE_NAME
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | ':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_folder() {
        for name in ["a", "model-00001-of-00002.safetensors", "..a", "a b", "ä"] {
            assert!(is_plain(name), "{name}");
        }
        let long = "a".repeat(MAX_FILE_NAME + 1);
        for name in ["", ".", "..", "/a", "a/b", "../a", "a\\b", "C:a", "a\0", "a\n", &long] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
