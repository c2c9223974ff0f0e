//! Case of texts as in Python's strings.

/// Whether the character is in title case (category Lt), such as `ǅ`.
fn is_title(letter: char) -> bool {
    matches!(letter, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}' | '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}'
        | '\u{1fa8}'..='\u{1faf}' | '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

/// `str.isupper`: no character is in lower or title case, and one at least in upper case.
pub(super) fn is_upper(text: &str) -> bool {
    !text.chars().any(|letter| letter.is_lowercase() || is_title(letter)) && text.chars().any(char::is_uppercase)
}

/// `str.islower`: no character is in upper or title case, and one at least in lower case.
pub(super) fn is_lower(text: &str) -> bool {
    !text.chars().any(|letter| letter.is_uppercase() || is_title(letter)) && text.chars().any(char::is_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_as_python_has_them() {
        for (text, upper, lower) in [
            ("A1!", true, false),
            ("1", false, false),
            ("ǅ", false, false),
            ("aB", false, false),
            ("aª", false, true),
            ("", false, false),
        ] {
            assert_eq!((is_upper(text), is_lower(text)), (upper, lower), "{text:?}");
        }
    }
}
