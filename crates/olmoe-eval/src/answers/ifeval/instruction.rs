//! The kinds of instructions and their arguments.

use serde_json::{Map, Value};

use crate::answers::pattern::{Flags, Pattern, PatternError};

use super::language::is_known;

/// The identifiers of the 25 kinds.
pub const KINDS: [&str; 25] = [
    "change_case:capital_word_frequency",
    "change_case:english_capital",
    "change_case:english_lowercase",
    "combination:repeat_prompt",
    "combination:two_responses",
    "detectable_content:number_placeholders",
    "detectable_content:postscript",
    "detectable_format:constrained_response",
    "detectable_format:json_format",
    "detectable_format:multiple_sections",
    "detectable_format:number_bullet_lists",
    "detectable_format:number_highlighted_sections",
    "detectable_format:title",
    "keywords:existence",
    "keywords:forbidden_words",
    "keywords:frequency",
    "keywords:letter_frequency",
    "language:response_language",
    "length_constraints:nth_paragraph_first_word",
    "length_constraints:number_paragraphs",
    "length_constraints:number_sentences",
    "length_constraints:number_words",
    "punctuation:no_comma",
    "startend:end_checker",
    "startend:quotation",
];

/// How a count compares with the one asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Below it.
    LessThan,
    /// It, or more.
    AtLeast,
}

impl Relation {
    /// Whether the count is as asked for.
    pub fn holds(self, count: usize, asked: usize) -> bool {
        match self {
            Relation::LessThan => count < asked,
            Relation::AtLeast => count >= asked,
        }
    }
}

/// An instruction with its arguments.
#[derive(Clone, Debug)]
pub enum Instruction {
    /// Words in capitals are so many.
    CapitalWords(Relation, usize),
    /// English in capitals.
    EnglishCapitals,
    /// English without capitals.
    EnglishLowercase,
    /// Begins with this text.
    RepeatPrompt(String),
    /// Two different answers with six asterisks between.
    TwoResponses,
    /// At least so many placeholders in brackets.
    Placeholders(usize),
    /// A postscript, found by this pattern in the text in lower case.
    Postscript(Pattern),
    /// One of three answers.
    ConstrainedResponse,
    /// JSON, perhaps between fences.
    Json,
    /// At least so many sections, which this pattern separates.
    Sections(Pattern, usize),
    /// Exactly so many bullet points.
    BulletLists(usize),
    /// At least so many highlighted parts.
    Highlights(usize),
    /// A title in double angular brackets.
    Title,
    /// All of these patterns.
    Keywords(Vec<Pattern>),
    /// None of these words.
    ForbiddenWords(Vec<Pattern>),
    /// The pattern so many times.
    KeywordFrequency(Pattern, Relation, usize),
    /// The letter so many times, in either case.
    LetterFrequency(String, Relation, usize),
    /// The language with this code.
    Language(String),
    /// So many paragraphs, the one with this number, from 1, beginning with this word.
    FirstWord {
        /// The paragraphs.
        paragraphs: usize,
        /// The number of the one that the word begins.
        nth: usize,
        /// The word in lower case.
        word: String,
    },
    /// Exactly so many paragraphs with three asterisks between.
    Paragraphs(usize),
    /// So many sentences.
    Sentences(Relation, usize),
    /// So many words.
    Words(Relation, usize),
    /// No comma.
    NoComma,
    /// Ends with this text.
    EndsWith(String),
    /// All between double quotation marks.
    Quotation,
}

/// Why an instruction cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum InstructionError {
    /// There is no such kind.
    #[error("instruction {found:?}: no such kind; there are {}", KINDS.join(", "))]
    Kind {
        /// The identifier.
        found: String,
    },
    /// An argument is missing or is not what it has to be. The original draws one at random then.
    #[error(
        "instruction {kind:?}: its argument {name:?} has to be {expected}, but is {found}; correct the row of the data"
    )]
    Argument {
        /// The identifier.
        kind: String,
        /// The name of the argument.
        name: &'static str,
        /// What it has to be.
        expected: &'static str,
        /// What it is, as JSON.
        found: String,
    },
    /// A keyword is no pattern.
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

/// The arguments of an instruction.
struct Arguments<'v> {
    kind: &'v str,
    given: Option<&'v Map<String, Value>>,
}

impl Arguments<'_> {
    fn value(&self, name: &str) -> Option<&Value> {
        self.given.and_then(|given| given.get(name)).filter(|value| !value.is_null())
    }

    fn wrong(&self, name: &'static str, expected: &'static str) -> InstructionError {
        let found = self.value(name).map_or("missing".to_owned(), Value::to_string);
        InstructionError::Argument { kind: self.kind.to_owned(), name, expected, found }
    }

    fn count(&self, name: &'static str) -> Result<usize, InstructionError> {
        let value = self.value(name);
        // Data sets that went through Parquet have 3.0 for 3.
        let whole = value.and_then(Value::as_f64).filter(|value| *value >= 0.0 && value.fract() == 0.0 && *value < 1e9);
        whole.map(|value| value as usize).ok_or_else(|| self.wrong(name, "a whole number from 0"))
    }

    fn text(&self, name: &'static str) -> Result<&str, InstructionError> {
        self.value(name).and_then(Value::as_str).ok_or_else(|| self.wrong(name, "a text"))
    }

    fn relation(&self, name: &'static str) -> Result<Relation, InstructionError> {
        match self.value(name).and_then(Value::as_str) {
            Some("less than") => Ok(Relation::LessThan),
            Some("at least") => Ok(Relation::AtLeast),
            _ => Err(self.wrong(name, "\"less than\" or \"at least\"")),
        }
    }

    fn patterns(&self, name: &'static str, around: &str) -> Result<Vec<Pattern>, InstructionError> {
        let list = self.value(name).and_then(Value::as_array).filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| self.wrong(name, "a list of texts"))?;
        let pattern = |word: &Value| {
            let word = word.as_str().ok_or_else(|| self.wrong(name, "a list of texts"))?;
            Ok(in_any_case(&format!("{around}{word}{around}"))?)
        };
        list.iter().map(pattern).collect()
    }
}

fn in_any_case(pattern: &str) -> Result<Pattern, PatternError> {
    Pattern::with(pattern, Flags { ignore_case: true, ..Flags::default() })
}

impl Instruction {
    /// An instruction by the identifier of its kind and its arguments, which are an object or null, as the data has them;
    /// arguments that are null are missing ones.
    ///
    /// # Errors
    /// [`InstructionError`].
    pub fn new(kind: &str, arguments: &Value) -> Result<Instruction, InstructionError> {
        let given = Arguments { kind, given: arguments.as_object() };
        Ok(match kind {
            "change_case:capital_word_frequency" => {
                Instruction::CapitalWords(given.relation("capital_relation")?, given.count("capital_frequency")?)
            }
            "change_case:english_capital" => Instruction::EnglishCapitals,
            "change_case:english_lowercase" => Instruction::EnglishLowercase,
            "combination:repeat_prompt" => Instruction::RepeatPrompt(given.text("prompt_to_repeat")?.to_owned()),
            "combination:two_responses" => Instruction::TwoResponses,
            "detectable_content:number_placeholders" => Instruction::Placeholders(given.count("num_placeholders")?),
            "detectable_content:postscript" => {
                let pattern = match given.text("postscript_marker")?.trim() {
                    "P.P.S" => r"\s*p\.\s?p\.\s?s.*$".to_owned(),
                    "P.S." => r"\s*p\.\s?s\..*$".to_owned(),
                    marker => format!(r"\s*{}.*$", marker.to_lowercase()),
                };
                Instruction::Postscript(Pattern::with(&pattern, Flags { multi_line: true, ..Flags::default() })?)
            }
            "detectable_format:constrained_response" => Instruction::ConstrainedResponse,
            "detectable_format:json_format" => Instruction::Json,
            "detectable_format:multiple_sections" => {
                let pattern = format!(r"\s?{}\s?\d+\s?", given.text("section_spliter")?.trim());
                Instruction::Sections(Pattern::new(&pattern)?, given.count("num_sections")?)
            }
            "detectable_format:number_bullet_lists" => Instruction::BulletLists(given.count("num_bullets")?),
            "detectable_format:number_highlighted_sections" => Instruction::Highlights(given.count("num_highlights")?),
            "detectable_format:title" => Instruction::Title,
            "keywords:existence" => Instruction::Keywords(given.patterns("keywords", "")?),
            "keywords:forbidden_words" => Instruction::ForbiddenWords(given.patterns("forbidden_words", r"\b")?),
            "keywords:frequency" => Instruction::KeywordFrequency(
                in_any_case(given.text("keyword")?.trim())?,
                given.relation("relation")?,
                given.count("frequency")?,
            ),
            "keywords:letter_frequency" => {
                let letter = given.text("letter")?.trim().to_lowercase();
                if letter.chars().count() != 1 {
                    return Err(given.wrong("letter", "one letter"));
                }
                Instruction::LetterFrequency(letter, given.relation("let_relation")?, given.count("let_frequency")?)
            }
            "language:response_language" => {
                let code = given.text("language")?;
                if !is_known(code) {
                    return Err(given.wrong("language", "the code of a language that can be told"));
                }
                Instruction::Language(code.to_owned())
            }
            "length_constraints:nth_paragraph_first_word" => {
                let (paragraphs, nth) = (given.count("num_paragraphs")?, given.count("nth_paragraph")?);
                if nth == 0 || nth > paragraphs {
                    return Err(given.wrong("nth_paragraph", "a number from 1 to num_paragraphs"));
                }
                Instruction::FirstWord { paragraphs, nth, word: given.text("first_word")?.to_lowercase() }
            }
            "length_constraints:number_paragraphs" => Instruction::Paragraphs(given.count("num_paragraphs")?),
            "length_constraints:number_sentences" => {
                Instruction::Sentences(given.relation("relation")?, given.count("num_sentences")?)
            }
            "length_constraints:number_words" => {
                Instruction::Words(given.relation("relation")?, given.count("num_words")?)
            }
            "punctuation:no_comma" => Instruction::NoComma,
            "startend:end_checker" => Instruction::EndsWith(given.text("end_phrase")?.trim().to_lowercase()),
            "startend:quotation" => Instruction::Quotation,
            found => return Err(InstructionError::Kind { found: found.to_owned() }),
        })
    }
}
