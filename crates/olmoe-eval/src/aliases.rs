//! Generated answers that have to begin with one of several texts, as TriviaQA's evaluation normalises them and LLM Foundry
//! compares them (`llmfoundry/eval/metrics/nlp.py`).

use olmoe_data::white_space::is_space;

/// `string.punctuation` of Python, and four quotation marks.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~‘’´";

/// Lower case, without punctuation and articles, one space between words.
pub fn normalized(answer: &str) -> String {
    let spaced: String =
        answer.to_lowercase().chars().map(|letter| if PUNCTUATION.contains(letter) { ' ' } else { letter }).collect();
    let is_word = |letter: char| letter.is_alphanumeric();
    let mut text = String::with_capacity(spaced.len());
    // Articles are words between boundaries, which need not be spaces: `the` in `«the»`.
    let mut rest = spaced.as_str();
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|letter| is_word(letter) != is_word(first)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        text.push_str(if matches!(run, "a" | "an" | "the") { " " } else { run });
        rest = after;
    }
    text.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Whether what follows the last `delimiter` in a text, all of it where that is empty, begins with one of the answers.
pub fn begins_with_one(text: &str, delimiter: &str, answers: &[String]) -> bool {
    let answer = match delimiter {
        "" => text,
        _ => text.rsplit(delimiter).next().unwrap_or(text),
    };
    let answer = normalized(answer);
    answers.iter().any(|alias| answer.starts_with(&normalized(alias)))
}
