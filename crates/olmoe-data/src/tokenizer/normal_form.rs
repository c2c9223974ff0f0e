//! Unicode normal form C, as the tokenizers library computes it, skipped for text that is in normal form already.

use std::borrow::Cow;

use unicode_normalization_alignments::UnicodeNormalization;

/// Characters that neither change nor are changed by their neighbours. A text of these is in normal form C.
fn inert(letter: char) -> bool {
    matches!(letter as u32, 0..0x300 | 0x2010..=0x2027 | 0x20A0..=0x20BF | 0x3001..=0x3029 | 0x4E00..=0x9FA5)
}

fn is_normal(text: &str) -> bool {
    // The characters below U+0300 have no byte above 0xCB.
    text.bytes().all(|byte| byte < 0xCC) || text.chars().all(inert)
}

/// The text in normal form C.
pub(super) fn composed(text: &str) -> Cow<'_, str> {
    if is_normal(text) { Cow::Borrowed(text) } else { Cow::Owned(text.nfc().map(|(letter, _)| letter).collect()) }
}

/// For each byte of the text in normal form C, the range of bytes of the original text that its character comes from;
/// None if the text is in normal form already.
pub(super) fn origins(text: &str) -> Option<Vec<(usize, usize)>> {
    if is_normal(text) {
        return None;
    }
    let mut origins = Vec::with_capacity(text.len());
    let mut letters = text.char_indices();
    let mut last = (0, 0);
    for (letter, change) in text.nfc() {
        // A change of 1 is an inserted character, 0 a replaced one, and a negative number several characters replaced
        // by one.
        if change <= 0 {
            let mut taken = letters.by_ref().take(1 + change.unsigned_abs());
            if let Some((start, first)) = taken.next() {
                let end = taken.last().map_or(start + first.len_utf8(), |(at, letter)| at + letter.len_utf8());
                last = (start, end);
            }
        }
        origins.extend(std::iter::repeat_n(last, letter.len_utf8()));
    }
    Some(origins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inert_characters_are_inert() {
        let mut follows = std::collections::HashSet::new();
        for letter in char::MIN..=char::MAX {
            let whole = letter.to_string();
            follows.extend(whole.as_str().nfd().skip(1).map(|(letter, _)| letter));
            if inert(letter) {
                let composed: String = whole.as_str().nfc().map(|(letter, _)| letter).collect();
                assert_eq!(composed, whole);
                // A mark that could be sorted would change places with one of another class.
                for mark in ['\u{301}', '\u{323}', '\u{3099}'] {
                    let pair = format!("{mark}{letter}");
                    let decomposed: String = pair.as_str().nfd().map(|(letter, _)| letter).collect();
                    assert!(decomposed.starts_with(mark), "{letter:?} is a mark");
                    let pair = format!("{letter}{mark}");
                    let decomposed: String = pair.as_str().nfd().map(|(letter, _)| letter).collect();
                    assert!(!decomposed.starts_with(mark), "{letter:?} is a mark");
                }
            }
        }
        assert!(follows.iter().all(|letter| !inert(*letter)), "one of them composes with what stands before it");
    }

    #[test]
    fn composition_and_where_it_came_from() {
        assert!(matches!(composed("naïve – 真"), Cow::Borrowed(_)));
        assert_eq!(composed("e\u{301}x"), "éx");
        assert_eq!(origins("éx"), None);
        assert_eq!(origins("ae\u{301}x"), Some(vec![(0, 1), (1, 4), (1, 4), (4, 5)]));
        // A composition exclusion becomes two characters.
        assert_eq!(origins("\u{958}"), Some(vec![(0, 3); 6]));
    }
}
