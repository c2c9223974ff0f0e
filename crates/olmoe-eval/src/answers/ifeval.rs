//! Whether instructions that a program can check were followed: IFEval (Zhou et al. 2023, arXiv 2311.07911).
//!
//! An [`Instruction`] is one of 25 kinds with its arguments. It is checked of an answer as it is ([`Instruction::followed`]),
//! and of eight versions of it, of which one suffices ([`Instruction::followed_loosely`]).
//!
//! The checks are those of lm-evaluation-harness 0.4.13 and open-instruct with NLTK 3.10, but for three things. A letter
//! that is none, such as `!`, is counted, where they draw a letter at random. Languages are told by `whatlang`, which gives
//! one answer for one text, where `langdetect` draws unless it is seeded. And under [`Grading::Strict`](super::Grading::Strict)
//! blank paragraphs are neither counted nor indexed, where they are not counted but indexed.

mod case;
mod check;
mod instruction;
mod json;
mod language;
mod sentences;
mod words;

pub use check::{loose_versions, speaks};
pub use instruction::{Instruction, InstructionError, KINDS, Relation};
pub use sentences::sentences;
pub use words::words;
