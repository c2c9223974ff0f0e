//! The result of a calculation in a text, as GSM8K asks for.

use std::sync::LazyLock;

use olmoe_data::white_space::stripped;
use regex::Regex;

use super::exact_match::same_but_for_case_and_punctuation;
use super::grading::Grading;

static COMMA: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(\d),(\d)").expect("a constant pattern"));
static AI2: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[-+]?\d*\.\d+|\d+").expect("a constant pattern"));
static NEXT_QUESTION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?m)^[ \t]*(?:Question|Q):").expect("a constant pattern"));
static MARK: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)####|\\boxed\{|\banswer(?: is|:)").expect("a constant pattern"));

/// The right answer of a row of GSM8K: what follows `####`, without commas between digits.
pub fn gold(answer: &str) -> Option<String> {
    let (_, number) = answer.split_once("####")?;
    let number = number.split("####").next().unwrap_or(number);
    Some(COMMA.replace_all(stripped(number), "$1$2").into_owned())
}

/// The number that a rule reads as the answer of a text; `None` if the text has no number.
///
/// - ai2: the last number. A sign counts only before a decimal point's number, so that −5 is read as 5.
/// - strict: of what comes before another question, the number after the last `####`, `\boxed{` or "answer is", or the
///   last one; with its sign, which is not a minus between two numbers, without separators of thousands, currency and
///   needless zeros.
pub fn taken(text: &str, grading: Grading) -> Option<String> {
    match grading {
        Grading::Ai2 => {
            let text = COMMA.replace_all(text, "$1$2");
            AI2.find_iter(&text).last().map(|found| found.as_str().to_owned())
        }
        Grading::Strict => {
            let text = NEXT_QUESTION.find(text).map_or(text, |next| match text[..next.start()].trim() {
                "" => text,
                _ => &text[..next.start()],
            });
            let marked = MARK.find_iter(text).last().and_then(|mark| {
                let line = text[mark.end()..].lines().next().unwrap_or("");
                let result = line.rsplit_once('=').map_or(line, |(_, result)| result);
                numbers(result).into_iter().next()
            });
            marked.or_else(|| numbers(text).pop())
        }
    }
}

/// Whether the answer is right.
///
/// - ai2: case and ASCII punctuation do not count, so that 3.5 equals 35; a text without a number is compared as a whole.
/// - strict: the numbers are equal.
pub fn right(text: &str, gold: &str, grading: Grading) -> bool {
    let taken = taken(text, grading);
    match grading {
        Grading::Ai2 => same_but_for_case_and_punctuation(taken.as_deref().unwrap_or(text), gold),
        Grading::Strict => taken.is_some() && taken == numbers(gold).pop(),
    }
}

/// The numbers of a text in decimal notation without needless characters: `-1234.5` for `-$1,234.50`.
fn numbers(text: &str) -> Vec<String> {
    let letters: Vec<char> = text.chars().map(|letter| if letter == '\u{2212}' { '-' } else { letter }).collect();
    let digit = |at: usize| letters.get(at).is_some_and(char::is_ascii_digit);
    let mut all = Vec::new();
    let mut at = 0;
    while at < letters.len() {
        let begins = digit(at) || letters[at] == '.' && digit(at + 1);
        if !begins {
            at += 1;
            continue;
        }
        let start = at;
        let (mut whole, mut part) = (String::new(), String::new());
        while digit(at) {
            whole.push(letters[at]);
            at += 1;
            let thousands = letters.get(at) == Some(&',') && (1..=3).all(|next| digit(at + next)) && !digit(at + 4);
            if thousands {
                at += 1;
            }
        }
        if letters.get(at) == Some(&'.') && digit(at + 1) {
            at += 1;
            while digit(at) {
                part.push(letters[at]);
                at += 1;
            }
        }
        let whole = whole.trim_start_matches('0');
        let part = part.trim_end_matches('0');
        let mut number = String::new();
        if negative(&letters[..start]) && !(whole.is_empty() && part.is_empty()) {
            number.push('-');
        }
        number.push_str(if whole.is_empty() { "0" } else { whole });
        if !part.is_empty() {
            number.push('.');
            number.push_str(part);
        }
        all.push(number);
    }
    all
}

/// Whether what comes before a number makes it negative: a minus, perhaps with the sign of a currency between, that
/// subtracts from nothing.
fn negative(before: &[char]) -> bool {
    let before = match before {
        [before @ .., '$' | '€' | '£' | '¥'] => before,
        before => before,
    };
    match before {
        [.., last, '-'] => !(last.is_alphanumeric() || [')', ']', '}', '%', '-'].contains(last)),
        [only] => *only == '-',
        _ => false,
    }
}
