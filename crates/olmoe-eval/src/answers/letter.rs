//! The letter of a choice in a text.

use std::sync::LazyLock;

use olmoe_data::white_space::stripped;
use regex::Regex;

use super::grading::Grading;

static NAMED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i:\b(?:answer|choice|option)(?: is)?:?)[\s*]*\(?\b?([A-Z])\b\)?").expect("a constant pattern")
});
static ALONE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\(([A-Z])\)|\b([A-Z])\b").expect("a constant pattern"));

/// The index of the choice that the text names, of `choices` ones (at most 26).
///
/// - ai2: the text is the letter, but for white space around it.
/// - strict: the text begins with the letter, or names it last as the answer, or has just one letter of a choice standing
///   alone.
pub fn taken(text: &str, choices: usize, grading: Grading) -> Option<usize> {
    let index = |letter: &str| {
        let at = letter.bytes().next()?.checked_sub(b'A')?;
        (usize::from(at) < choices.min(26)).then_some(usize::from(at))
    };
    let text = stripped(text);
    match grading {
        Grading::Ai2 => (text.len() == 1).then(|| index(text)).flatten(),
        Grading::Strict => {
            let begin = text.trim_start_matches(['(', '*', '"', ' ']);
            let after = begin.chars().nth(1);
            let begins = match after {
                None | Some('.' | ')' | ':' | ',' | '*' | '"' | '\n') => index(begin),
                // "A dog" and "I think" begin with words.
                Some(_) => None,
            };
            let named = || NAMED.captures_iter(text).filter_map(|found| index(&found[1])).last();
            let alone = || {
                let letter = |found: regex::Captures<'_>| {
                    found.get(1).or(found.get(2)).and_then(|letter| index(letter.as_str()))
                };
                let mut all: Vec<usize> = ALONE.captures_iter(text).filter_map(letter).collect();
                all.dedup();
                (all.len() == 1).then(|| all[0])
            };
            begins.or_else(named).or_else(alone)
        }
    }
}
