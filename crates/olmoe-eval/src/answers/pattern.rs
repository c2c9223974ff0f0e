//! Regular expressions of Python's `re`, which descriptions of tasks are written in.
//!
//! Python and Rust agree on most of the syntax; [`Pattern`] rewrites what they do not agree on. `\w` of Python are letters,
//! numbers and the underscore, without the marks that write vowels in many scripts; `\s` includes four separators; `$`
//! also matches before a newline at the end; `\<` and `\>` are characters; and a class holds no classes.

use fancy_regex::{Captures, Regex, RegexBuilder};

const WORD: &str = r"\p{L}\p{N}_";
const SPACE: &str = r"\s\x1c-\x1f";

/// Why a pattern does not work.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// It is none.
    #[error("the pattern {pattern:?} is no regular expression: {reason}; correct it in the description of the task")]
    Syntax {
        /// The pattern.
        pattern: String,
        /// Why.
        reason: String,
    },
    /// A search was given up.
    #[error(
        "the search for {pattern:?} in a text of {bytes} bytes was given up ({reason}); write the pattern so that it cannot \
         match the same text in many ways"
    )]
    Search {
        /// The pattern.
        pattern: String,
        /// The length of the text.
        bytes: usize,
        /// Why.
        reason: String,
    },
}

/// A regular expression of Python.
#[derive(Clone, Debug)]
pub struct Pattern {
    python: String,
    regex: Regex,
}

/// How it is matched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    /// `re.IGNORECASE`.
    pub ignore_case: bool,
    /// `re.MULTILINE`.
    pub multi_line: bool,
}

impl Pattern {
    /// `re.compile(python)`.
    ///
    /// # Errors
    /// [`PatternError::Syntax`].
    pub fn new(python: &str) -> Result<Pattern, PatternError> {
        Pattern::with(python, Flags::default())
    }

    /// `re.compile(python, flags)`.
    ///
    /// # Errors
    /// [`PatternError::Syntax`].
    pub fn with(python: &str, flags: Flags) -> Result<Pattern, PatternError> {
        let rust = rewritten(python, flags.multi_line);
        let built = RegexBuilder::new(&rust).case_insensitive(flags.ignore_case).multi_line(flags.multi_line).build();
        match built {
            Ok(regex) => Ok(Pattern { python: python.to_owned(), regex }),
            Err(error) => Err(PatternError::Syntax { pattern: python.to_owned(), reason: error.to_string() }),
        }
    }

    fn given_up(&self, text: &str, error: &fancy_regex::Error) -> PatternError {
        PatternError::Search { pattern: self.python.clone(), bytes: text.len(), reason: error.to_string() }
    }

    /// Whether the text has a match: `re.search`.
    ///
    /// # Errors
    /// [`PatternError::Search`].
    pub fn is_match(&self, text: &str) -> Result<bool, PatternError> {
        self.regex.is_match(text).map_err(|error| self.given_up(text, &error))
    }

    /// All matches from left to right that do not overlap, with their groups: `re.finditer`.
    ///
    /// # Errors
    /// [`PatternError::Search`].
    pub fn matches<'t>(&self, text: &'t str) -> Result<Vec<Captures<'t>>, PatternError> {
        let mut all = Vec::new();
        let (mut at, mut was_empty_at) = (0, None);
        while at <= text.len() {
            let found = self.regex.captures_from_pos(text, at).map_err(|error| self.given_up(text, &error))?;
            let Some(found) = found else { break };
            let (start, end) = found.get(0).map_or((at, at), |whole| (whole.start(), whole.end()));
            if start == end && was_empty_at == Some(start) {
                // An empty match was here already.
                at = start + text[start..].chars().next().map_or(1, char::len_utf8);
                was_empty_at = None;
                continue;
            }
            was_empty_at = (start == end).then_some(end);
            at = end;
            all.push(found);
        }
        Ok(all)
    }

    /// The text without what matches: `re.sub(python, "", text)`.
    ///
    /// # Errors
    /// [`PatternError::Search`].
    pub fn removed(&self, text: &str) -> Result<String, PatternError> {
        let mut rest = String::with_capacity(text.len());
        let mut at = 0;
        for found in self.matches(text)? {
            if let Some(whole) = found.get(0) {
                rest.push_str(&text[at..whole.start()]);
                at = whole.end();
            }
        }
        rest.push_str(&text[at..]);
        Ok(rest)
    }

    /// How many groups it has.
    pub fn groups(&self) -> usize {
        self.regex.captures_len() - 1
    }
}

/// The pattern in the syntax of fancy-regex.
fn rewritten(python: &str, multi_line: bool) -> String {
    let mut rust = String::with_capacity(python.len() + 16);
    let mut letters = python.chars().peekable();
    let mut in_class = false;
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => {
                let Some(escaped) = letters.next() else {
                    rust.push('\\');
                    break;
                };
                match (escaped, in_class) {
                    ('w', true) => rust.push_str(WORD),
                    ('w', false) => rust.push_str(&format!("[{WORD}]")),
                    ('W', false) => rust.push_str(&format!("[^{WORD}]")),
                    ('s', true) => rust.push_str(SPACE),
                    ('s', false) => rust.push_str(&format!("[{SPACE}]")),
                    ('S', false) => rust.push_str(&format!("[^{SPACE}]")),
                    ('b', false) => rust.push_str(&format!("(?:(?<![{WORD}])(?=[{WORD}])|(?<=[{WORD}])(?![{WORD}]))")),
                    ('b', true) => rust.push_str(r"\x08"),
                    ('Z', false) => rust.push_str(r"\z"),
                    (escaped, _) if escaped.is_alphanumeric() || ".^$*+?()[]{}|\\-&~#/".contains(escaped) => {
                        rust.push('\\');
                        rust.push(escaped);
                    }
                    (escaped, _) => rust.push(escaped),
                }
            }
            '[' if in_class => rust.push_str(r"\["),
            '&' | '~' if in_class => {
                rust.push('\\');
                rust.push(letter);
            }
            '[' => {
                in_class = true;
                rust.push('[');
                if letters.next_if_eq(&'^').is_some() {
                    rust.push('^');
                }
                if letters.next_if_eq(&']').is_some() {
                    rust.push_str(r"\]");
                }
            }
            ']' => {
                in_class = false;
                rust.push(']');
            }
            '$' if !in_class && !multi_line => rust.push_str(r"(?=\n?\z)"),
            letter => rust.push(letter),
        }
    }
    rust
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(python: &str, text: &str) -> Vec<String> {
        let found = Pattern::new(python).unwrap();
        let found = found.matches(text).unwrap();
        found.iter().map(|found| found.get(0).map_or("", |whole| whole.as_str()).to_owned()).collect()
    }

    #[test]
    fn patterns_match_as_in_python() {
        // Python: re.findall(pattern, text)
        assert_eq!(all(r"\w+", "हिन्दी a_b²"), ["ह", "न", "द", "a_b²"]);
        assert_eq!(all(r"a*", "aab"), ["aa", "", ""]);
        assert_eq!(all(r"b$", "b\nb\n"), ["b"]);
        assert_eq!(all(r"[\s\w]+", "a\u{1c}b-c"), ["a\u{1c}b", "c"]);
        assert_eq!(all(r"\<b\>", "a<b>"), ["<b>"]);
        assert_eq!(all(r"[[&&a]", "[&a"), ["[", "&", "a"]);
        assert_eq!(all(r"[]a]", "]a"), ["]", "a"]);
        assert_eq!(all(r"\bno\b", "no noé no."), ["no", "no"]);
        assert_eq!(all(r"\'x\'", "'x'"), ["'x'"]);
    }

    #[test]
    fn what_is_no_pattern_is_an_error() {
        let error = Pattern::new("(").unwrap_err().to_string();
        assert!(error.contains("the pattern \"(\" is no regular expression"), "{error}");
        Pattern::new("a\\").unwrap_err();
    }

    #[test]
    fn a_search_that_explodes_is_given_up() {
        let pattern = Pattern::new(r"(?=(a+)+$)b").unwrap();
        let error = pattern.is_match(&format!("{}!", "a".repeat(60)));
        assert!(matches!(error, Ok(false) | Err(PatternError::Search { .. })));
    }
}
