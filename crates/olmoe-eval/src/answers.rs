//! What is taken out of generated texts, and whether it is right.
//!
//! All of it is functions of texts. Where open-instruct, with which OLMoE was judged after adaptation, has a rule that is
//! wrong at times, there are two [`Grading`]s: its own, to have its numbers, and a strict one.
//!
//! | item | what it reads |
//! |---|---|
//! | [`number`] | the result of a calculation (GSM8K) |
//! | [`phrase`] | what follows "the answer is" (BIG-Bench Hard) |
//! | [`letter`] | the letter of a choice |
//! | [`refusal`] | whether a request was refused (XSTest) |
//! | [`program`], [`pass_at_k`] | programs, and how many of them pass (HumanEval) |
//! | [`ifeval`] | whether instructions were followed (IFEval) |
//! | [`RegexFilter`], [`ExactMatch`] | lm-evaluation-harness' filters and comparison |
//! | [`Pattern`] | regular expressions of Python |

mod exact_match;
mod filter;
mod grading;
pub mod ifeval;
pub mod letter;
pub mod number;
mod pass_at_k;
mod pattern;
pub mod phrase;
pub mod program;
pub mod refusal;

pub use exact_match::ExactMatch;
pub use filter::RegexFilter;
pub use grading::Grading;
pub use pass_at_k::pass_at_k;
pub use pattern::{Pattern, PatternError};
