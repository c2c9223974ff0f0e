//! Texts of files: with or without a byte-order mark, with line breaks of any system.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};

/// The byte-order mark that some programs put before UTF-8.
pub(crate) const MARK: &str = "\u{feff}";

/// A text without a byte-order mark.
pub(crate) fn without_mark(text: &str) -> &str {
    text.strip_prefix(MARK).unwrap_or(text)
}

/// The text of a file, without a byte-order mark.
pub(crate) fn text_of(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    utf8(bytes, &path.display().to_string())
}

/// All of standard input.
pub(crate) fn text_of_input() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
    utf8(bytes, "standard input")
}

/// A text to be continued: every line break becomes `\n`, and one at the end is dropped.
pub(crate) fn prompt_of(text: String) -> String {
    let mut text = if text.contains('\r') { text.replace("\r\n", "\n") } else { text };
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

/// Decodes bytes as UTF-8, without a byte-order mark.
pub(crate) fn utf8(bytes: Vec<u8>, source: &str) -> anyhow::Result<String> {
    if let [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] = bytes[..] {
        bail!("{source} is UTF-16 text; convert it to UTF-8 first");
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes().get(at).copied().unwrap_or(0);
        anyhow::anyhow!("{source} is not UTF-8 text: byte 0x{byte:02x} at offset {at}; convert it to UTF-8 first")
    })?;
    Ok(match text.strip_prefix(MARK) {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_no_text_names_the_byte() {
        let error = utf8(vec![b'a', b'b', 0xC3, b'c'], "notes.txt").unwrap_err().to_string();
        assert!(error.starts_with("notes.txt is not UTF-8 text: byte 0xc3 at offset 2"), "{error}");
        assert_eq!(utf8("é".into(), "x").unwrap(), "é");
        let error = utf8(vec![0xFF, 0xFE, b'a', 0], "notes.txt").unwrap_err().to_string();
        assert!(error.starts_with("notes.txt is UTF-16 text"), "{error}");
    }

    #[test]
    fn marks_and_line_breaks() {
        assert_eq!(utf8("\u{feff}a\u{feff}".into(), "x").unwrap(), "a\u{feff}");
        for (text, expected) in [("a\r\nb\r\n", "a\nb"), ("a\n\n", "a\n"), ("a\r", "a\r"), ("a", "a"), ("\r\n", "")] {
            assert_eq!(prompt_of(text.to_owned()), expected, "{text:?}");
        }
    }
}
