//! White space and lines as in Python's strings, and the byte-order mark.

/// Bytes without the byte-order mark that some programs put before UTF-8.
pub(crate) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)
}

/// Whether Python's `str.isspace` has a character, which `str.strip` and its relatives drop: besides White_Space, four
/// separators are of it.
pub fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// `str.strip()`.
pub fn stripped(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.splitlines(keepends)`.
pub fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    let ends = ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    while let Some(at) = rest.find(ends) {
        let end = match rest[at..].strip_prefix("\r\n") {
            Some(_) => at + 2,
            None => at + rest[at..].chars().next().map_or(0, char::len_utf8),
        };
        lines.push(if keep_ends { &rest[..end] } else { &rest[..at] });
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_as_python_has_it() {
        assert_eq!(stripped("\u{1c}\u{1f} \u{85}\u{a0}\u{3000}\ta b\u{200b}\r\n"), "a b\u{200b}");
    }

    #[test]
    fn lines_as_python_has_them() {
        // Python: 'a\r\nb\rc\n\n\x0bd\u2028'.splitlines(), and with True
        let text = "a\r\nb\rc\n\n\u{b}d\u{2028}";
        assert_eq!(lines(text, false), ["a", "b", "c", "", "", "d"]);
        assert_eq!(lines(text, true), ["a\r\n", "b\r", "c\n", "\n", "\u{b}", "d\u{2028}"]);
        assert_eq!(lines("", false), [""; 0]);
    }
}
