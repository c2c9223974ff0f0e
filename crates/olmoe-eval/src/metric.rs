//! The metrics: what is computed of answers. How it is computed is in [`score`](crate::score).

mod checker;

pub use checker::{Checker, Versions};

/// What is computed of the answers to a question, and of the questions of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The share of questions whose most likely choice is the right one; of equal ones the first counts.
    Accuracy(Normalization),
    /// F1 of the most likely choices, with choice 0 as the positive one. The value of a question is whether the most
    /// likely choice is the right one.
    F1,
    /// Nats per character of the right choice.
    CrossEntropy(LeadingSpace),
    /// Bits per byte of the right choice.
    BitsPerByte(LeadingSpace),
    /// The softmax over the choices' log-probabilities at the right one.
    Soft(Normalization),
    /// Its logarithm.
    SoftLog(Normalization),
    /// The share of questions whose right continuation is the greedy one.
    Greedy,
    /// What is checked of generated texts.
    Checked(Checker),
    /// The share of generated answers that begin with one of the right texts, [normalised](crate::aliases::normalized).
    AnswerPrefix(ChainOfThought),
}

/// What stands before a generated answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainOfThought {
    /// Nothing.
    None,
    /// A chain of thought, which ends with ` #### `.
    BeforeHashes,
}

impl ChainOfThought {
    /// What ends it; empty where there is none.
    pub(crate) fn end(self) -> &'static str {
        match self {
            ChainOfThought::None => "",
            ChainOfThought::BeforeHashes => " #### ",
        }
    }
}

/// By what the log-probability of a choice is divided, or what is subtracted, before choices are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Normalization {
    /// Nothing.
    Raw,
    /// Characters of the continuation.
    Characters(LeadingSpace),
    /// Bytes of it in UTF-8.
    Bytes(LeadingSpace),
    /// Tokens of it.
    Tokens,
    /// Minus the log-probability after the unconditional context.
    Unconditional,
    /// Divided by the log-probability after the unconditional context: `pmi_dc` of OLMo's evaluation in the training loop.
    UnconditionalRatio,
}

/// Whether the first character of a continuation, a space by rule, counts to its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeadingSpace {
    /// It counts.
    Counted,
    /// It does not.
    Dropped,
}

impl LeadingSpace {
    fn suffix(self) -> &'static str {
        match self {
            LeadingSpace::Counted => "",
            LeadingSpace::Dropped => "_no_space",
        }
    }

    /// The part of a continuation whose length counts.
    pub(crate) fn counted(self, continuation: &str) -> &str {
        let mut rest = continuation.chars();
        if self == LeadingSpace::Dropped {
            rest.next();
        }
        rest.as_str()
    }
}

impl Normalization {
    fn suffix(self) -> String {
        match self {
            Normalization::Raw => String::new(),
            Normalization::Characters(space) => format!("_per_char{}", space.suffix()),
            Normalization::Bytes(space) => format!("_per_byte{}", space.suffix()),
            Normalization::Tokens => "_per_token".to_owned(),
            Normalization::Unconditional => "_uncond".to_owned(),
            Normalization::UnconditionalRatio => "_pmi_dc".to_owned(),
        }
    }

    /// Whether it needs the log-probability after an unconditional context.
    pub fn is_unconditional(self) -> bool {
        matches!(self, Normalization::Unconditional | Normalization::UnconditionalRatio)
    }
}

impl Metric {
    /// The name in results.
    pub fn name(self) -> String {
        match self {
            Metric::Accuracy(normalization) => format!("acc{}", normalization.suffix()),
            Metric::F1 => "f1".to_owned(),
            Metric::CrossEntropy(space) => format!("ce_per_char{}", space.suffix()),
            Metric::BitsPerByte(space) => format!("bits_per_byte{}", space.suffix()),
            Metric::Soft(normalization) => format!("soft{}", normalization.suffix()),
            Metric::SoftLog(normalization) => format!("soft_log{}", normalization.suffix()),
            Metric::Greedy => "greedy".to_owned(),
            Metric::Checked(checker) => checker.name(),
            Metric::AnswerPrefix(ChainOfThought::None) => "answer_prefix".to_owned(),
            Metric::AnswerPrefix(ChainOfThought::BeforeHashes) => "answer_prefix_after_hashes".to_owned(),
        }
    }

    /// Whether a greater value is a better one.
    pub fn higher_is_better(self) -> bool {
        !matches!(self, Metric::CrossEntropy(_) | Metric::BitsPerByte(_))
    }

    /// Whether it needs log-probabilities after an unconditional context.
    pub fn is_unconditional(self) -> bool {
        match self {
            Metric::Accuracy(normalization) | Metric::Soft(normalization) | Metric::SoftLog(normalization) => {
                normalization.is_unconditional()
            }
            _ => false,
        }
    }
}
