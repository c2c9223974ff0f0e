//! The words of English texts: the Penn Treebank's rules (Robert MacIntyre 1995) as NLTK's `word_tokenize` extends them.

use std::sync::LazyLock;

use fancy_regex::Regex;
use olmoe_data::white_space::is_space;

use super::sentences::sentences;

/// The steps, each a pattern and what replaces its matches.
const STEPS: [(&str, &str); 33] = [
    // Quotation marks that open.
    ("([«“‘„]|[`]+)", " ${1} "),
    ("^\"", "``"),
    ("(``)", " ${1} "),
    (r#"([ \(\[{<])("|'{2})"#, "${1} `` "),
    (r"(?i)(?<!\w)(')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "${1} "),
    // Punctuation.
    (r#"([^\.])(\.)([\]\)}>"'»”’ ]*+)\s*$"#, "${1} ${2} ${3} "),
    (r"([:,])([^\d])", " ${1} ${2}"),
    (r"([:,])$", " ${1} "),
    (r"\.{2,}", " ${0} "),
    (r"[;@#$%\&]", " ${0} "),
    (r"[\u2012-\u2015]", " ${0} "),
    (r#"([^\.])(\.)([\]\)}>"']*)\s*$"#, "${1} ${2}${3} "),
    (r"[?!]", " ${0} "),
    (r"([^'])' ", "${1} ' "),
    (r"[*]", " ${0} "),
    (r"[\]\[\(\)\{\}<>]", " ${0} "),
    (r"--", " -- "),
    // White space around all.
    (r"\A", " "),
    (r"\z", " "),
    // Quotation marks that close, and what follows an apostrophe.
    ("([»”’])", " ${1} "),
    (r"''", " '' "),
    ("\"", " '' "),
    (r"\s+", " "),
    (r"([^' ])('[sS]|'[mM]|'[dD]|') ", "${1} ${2} "),
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", "${1} ${2} "),
    // Words that are two.
    (r"(?i)\b(can)(not)\b", " ${1} ${2} "),
    (r"(?i)\b(d)('ye)\b", " ${1} ${2} "),
    (r"(?i)\b(gim|lem)(me)\b", " ${1} ${2} "),
    (r"(?i)\b(gon)(na)\b", " ${1} ${2} "),
    (r"(?i)\b(got)(ta)\b", " ${1} ${2} "),
    (r"(?i)\b(more)('n)\b", " ${1} ${2} "),
    (r"(?i)\b(wan)(na)(?=\s)", " ${1} ${2} "),
    (r"(?i) ('t)(is|was)\b", " ${1} ${2} "),
];

static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    STEPS.iter().map(|(pattern, by)| (Regex::new(pattern).expect("a constant pattern"), *by)).collect()
});

/// The words of the text, sentence by sentence; punctuation is words of its own.
pub fn words(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    for sentence in sentences(text) {
        let mut sentence = sentence.to_owned();
        for (pattern, by) in &*RULES {
            sentence = pattern.replace_all(&sentence, *by).into_owned();
        }
        all.extend(sentence.split(is_space).filter(|word| !word.is_empty()).map(str::to_owned));
    }
    all
}
