//! Whether an answer follows an instruction.

use std::sync::LazyLock;

use olmoe_data::white_space::{is_space, stripped};
use regex::Regex;

use crate::answers::grading::Grading;
use crate::answers::pattern::PatternError;

use super::case::{is_lower, is_upper};
use super::instruction::Instruction;
use super::json::is_json;
use super::language::is_in;
use super::sentences::sentences;
use super::words::words;

fn constant(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant pattern")
}

static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| constant(r"\[.*?\]"));
static STARRED: LazyLock<Regex> = LazyLock::new(|| constant(r"(?m)^\s*\*[^\*].*$"));
static DASHED: LazyLock<Regex> = LazyLock::new(|| constant(r"(?m)^\s*-.*$"));
static HIGHLIGHT: LazyLock<Regex> = LazyLock::new(|| constant(r"\*[^\n\*]*\*"));
static DOUBLE_HIGHLIGHT: LazyLock<Regex> = LazyLock::new(|| constant(r"\*\*[^\n\*]*\*\*"));
static DIVIDER: LazyLock<Regex> = LazyLock::new(|| constant(r"\s?\*\*\*\s?"));
static TITLE: LazyLock<Regex> = LazyLock::new(|| constant(r"<<[^\n]+>>"));
static WORD: LazyLock<Regex> = LazyLock::new(|| constant(r"\w+"));

const CONSTRAINED: [&str; 3] = ["My answer is yes.", "My answer is no.", "My answer is maybe."];

/// Whether the text is in the language with this code of ISO 639-1, such as `de`. A text without letters is in every one.
pub fn speaks(text: &str, code: &str) -> bool {
    is_in(text, code)
}

/// The eight versions of an answer that are checked loosely: as it is, without its first line, without its last, without
/// both, and each of these without asterisks.
pub fn loose_versions(answer: &str) -> Vec<String> {
    let lines: Vec<&str> = answer.split('\n').collect();
    let part = |from: usize, to: usize| match lines.get(from..to.max(from)) {
        Some(lines) => stripped(&lines.join("\n")).to_owned(),
        None => String::new(),
    };
    let last = lines.len() - 1;
    let mut all = vec![answer.to_owned(), part(1, lines.len()), part(0, last), part(1, last)];
    let plain: Vec<String> = all.iter().map(|version| version.replace('*', "")).collect();
    all.extend(plain);
    all
}

impl Instruction {
    /// Whether the answer follows the instruction. A blank one follows none.
    ///
    /// # Errors
    /// [`PatternError::Search`] of a keyword that is a pattern.
    pub fn followed(&self, answer: &str, grading: Grading) -> Result<bool, PatternError> {
        if stripped(answer).is_empty() {
            return Ok(false);
        }
        Ok(match self {
            Instruction::CapitalWords(relation, asked) => {
                relation.holds(words(answer).iter().filter(|word| is_upper(word)).count(), *asked)
            }
            Instruction::EnglishCapitals => is_upper(answer) && is_in(answer, "en"),
            Instruction::EnglishLowercase => is_lower(answer) && is_in(answer, "en"),
            Instruction::RepeatPrompt(prompt) => {
                stripped(answer).to_lowercase().starts_with(&stripped(prompt).to_lowercase())
            }
            Instruction::TwoResponses => two_responses(answer),
            Instruction::Placeholders(asked) => PLACEHOLDER.find_iter(answer).count() >= *asked,
            Instruction::Postscript(pattern) => pattern.is_match(&answer.to_lowercase())?,
            Instruction::ConstrainedResponse => CONSTRAINED.iter().any(|option| answer.contains(option)),
            Instruction::Json => is_json(unfenced(answer)),
            Instruction::Sections(pattern, asked) => pattern.matches(answer)?.len() >= *asked,
            Instruction::BulletLists(asked) => {
                STARRED.find_iter(answer).count() + DASHED.find_iter(answer).count() == *asked
            }
            Instruction::Highlights(asked) => highlights(answer) >= *asked,
            Instruction::Title => TITLE.find_iter(answer).any(|title| {
                let title = title.as_str().trim_start_matches('<').trim_end_matches('>');
                !stripped(title).is_empty()
            }),
            Instruction::Keywords(patterns) => {
                for pattern in patterns {
                    if !pattern.is_match(answer)? {
                        return Ok(false);
                    }
                }
                true
            }
            Instruction::ForbiddenWords(patterns) => {
                for pattern in patterns {
                    if pattern.is_match(answer)? {
                        return Ok(false);
                    }
                }
                true
            }
            Instruction::KeywordFrequency(pattern, relation, asked) => {
                relation.holds(pattern.matches(answer)?.len(), *asked)
            }
            Instruction::LetterFrequency(letter, relation, asked) => {
                relation.holds(answer.to_lowercase().matches(&**letter).count(), *asked)
            }
            Instruction::Language(code) => is_in(answer, code),
            Instruction::FirstWord { paragraphs, nth, word } => first_word(answer, *paragraphs, *nth, word, grading),
            Instruction::Paragraphs(asked) => paragraphs(answer) == Some(*asked),
            Instruction::Sentences(relation, asked) => relation.holds(sentences(answer).len(), *asked),
            Instruction::Words(relation, asked) => relation.holds(WORD.find_iter(answer).count(), *asked),
            Instruction::NoComma => !answer.contains(','),
            Instruction::EndsWith(phrase) => {
                stripped(answer).trim_matches('"').to_lowercase().ends_with(phrase.as_str())
            }
            Instruction::Quotation => {
                let answer = stripped(answer);
                answer.len() > 1 && answer.starts_with('"') && answer.ends_with('"')
            }
        })
    }

    /// Whether one of the [`loose_versions`] of the answer follows the instruction.
    ///
    /// # Errors
    /// As [`Instruction::followed`].
    pub fn followed_loosely(&self, answer: &str, grading: Grading) -> Result<bool, PatternError> {
        for version in loose_versions(answer) {
            if self.followed(&version, grading)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn two_responses(answer: &str) -> bool {
    let parts: Vec<&str> = answer.split("******").map(stripped).collect();
    let inner = parts.get(1..parts.len() - 1).unwrap_or(&[]);
    let full: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    !inner.contains(&"") && full.len() == 2 && full[0] != full[1]
}

/// The answer without the fences of Markdown around it.
fn unfenced(answer: &str) -> &str {
    let mut answer = stripped(answer);
    for fence in ["```json", "```Json", "```JSON", "```"] {
        answer = answer.strip_prefix(fence).unwrap_or(answer);
    }
    stripped(answer.strip_suffix("```").unwrap_or(answer))
}

fn highlights(answer: &str) -> usize {
    let single = HIGHLIGHT.find_iter(answer).filter(|found| !stripped(found.as_str().trim_matches('*')).is_empty());
    let double = DOUBLE_HIGHLIGHT.find_iter(answer).filter(|found| {
        let inner = found.as_str();
        let inner = inner.strip_prefix("**").unwrap_or(inner);
        !stripped(inner.strip_suffix("**").unwrap_or(inner)).is_empty()
    });
    single.count() + double.count()
}

/// How many paragraphs three asterisks divide; `None` if one within is blank.
fn paragraphs(answer: &str) -> Option<usize> {
    let parts: Vec<&str> = DIVIDER.split(answer).map(stripped).collect();
    let inner = parts.get(1..parts.len() - 1).unwrap_or(&[]);
    (!inner.contains(&"")).then(|| parts.iter().filter(|part| !part.is_empty()).count())
}

/// The original counts the paragraphs that are not blank, and looks at the one with this number among all. The strict
/// rule leaves out the blank ones in both.
fn first_word(answer: &str, asked: usize, nth: usize, word: &str, grading: Grading) -> bool {
    let all: Vec<&str> = answer.split("\n\n").map(stripped).collect();
    let full: Vec<&str> = all.iter().copied().filter(|paragraph| !paragraph.is_empty()).collect();
    if full.len() != asked || nth > full.len() {
        return false;
    }
    let paragraph = match grading {
        Grading::Ai2 => all[nth - 1],
        Grading::Strict => full[nth - 1],
    };
    let first = paragraph.split(is_space).find(|part| !part.is_empty()).unwrap_or("");
    let first = first.trim_start_matches('\'').trim_start_matches('"');
    let end = first.find(['.', ',', '?', '!', '\'', '"']).unwrap_or(first.len());
    !paragraph.is_empty() && first[..end].to_lowercase() == word
}
