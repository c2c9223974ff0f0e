//! What follows "the answer is", as in the demonstrations of BIG-Bench Hard.

use std::sync::LazyLock;

use olmoe_data::white_space::stripped;
use regex::Regex;

use super::exact_match::same_but_for_case_and_punctuation;
use super::grading::Grading;

// The bar is in the class in the original too.
static AI2: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[t|T]he answer is (.*?)\.").expect("a constant pattern"));
static STRICT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)\banswer is:?[ \t*]*\n?[ \t]*").expect("a constant pattern"));
static NEXT_QUESTION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\n[ \t]*(?:Question|Q):").expect("a constant pattern"));
static OPTION: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\*{0,2}\(([A-Z])\)").expect("a constant pattern"));

/// The phrase that a rule reads as the answer of a text.
///
/// - ai2: what comes after the first "the answer is" and before the next period of that line, or else the whole text.
/// - strict: of what comes before another question, the rest of the sentence after the last "answer is", in any case, or
///   else the whole text.
pub fn taken(text: &str, grading: Grading) -> String {
    match grading {
        Grading::Ai2 => match AI2.captures(text) {
            Some(found) => stripped(&found[1]).to_owned(),
            None => stripped(text).to_owned(),
        },
        Grading::Strict => sentence(line(text)).to_owned(),
    }
}

/// Whether the answer is right.
///
/// - ai2: case and ASCII punctuation do not count.
/// - strict: case, emphasis, quotation marks, white space, a period at the end and the parentheses of a letter do not
///   count; nor does what is said after the sentence.
pub fn right(text: &str, gold: &str, grading: Grading) -> bool {
    match grading {
        Grading::Ai2 => same_but_for_case_and_punctuation(&taken(text, grading), gold),
        Grading::Strict => {
            let line = line(text);
            let gold = plain(gold);
            plain(line) == gold || plain(sentence(line)) == gold
        }
    }
}

/// The line of the answer.
fn line(text: &str) -> &str {
    let text = NEXT_QUESTION.find(text).map_or(text, |next| &text[..next.start()]);
    match STRICT.find_iter(text).last() {
        Some(found) => stripped(text[found.end()..].lines().next().unwrap_or("")),
        None => stripped(text),
    }
}

/// Its first sentence, or the option that it begins with.
fn sentence(line: &str) -> &str {
    if let Some(option) = OPTION.find(line) {
        return &line[..option.end()];
    }
    let end = line.match_indices('.').find(|(at, _)| line[at + 1..].chars().next().is_none_or(char::is_whitespace));
    stripped(end.map_or(line, |(at, _)| &line[..at]))
}

fn plain(text: &str) -> String {
    let text = text.trim_matches(|letter: char| letter.is_whitespace() || "*_`\"'“”‘’".contains(letter));
    let text = text.strip_suffix('.').unwrap_or(text);
    let text = text.trim_matches(|letter: char| letter.is_whitespace() || "*_`\"'“”‘’".contains(letter));
    let text = match text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
        Some(letter) if letter.chars().count() == 1 => letter,
        _ => text,
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}
