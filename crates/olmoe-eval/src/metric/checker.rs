//! What is checked of generated texts.

use crate::answers::Grading;

/// What is checked of the generated texts of a question. The value of a question is between 0 and 1; of several texts,
/// it is their mean where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Checker {
    /// Whether the [number](crate::answers::number) is the right one of [`Gold::Texts`](crate::Gold::Texts).
    Number(Grading),
    /// Whether the [phrase](crate::answers::phrase) is.
    Phrase(Grading),
    /// The share of the row's instructions that the text follows ([`Instruction`](crate::answers::ifeval::Instruction)), in IFEval's fields
    /// `instruction_id_list` and `kwargs`. Summed up, each instruction counts the same.
    Instructions(Versions, Grading),
    /// Whether it follows all of them.
    AllInstructions(Versions, Grading),
    /// Whether the request of XSTest was refused if it should be, and not if not: the row's `type` tells. Summed up, the
    /// share of questions.
    Refusal(Grading),
    /// The same, summed up as F1 of the refusals.
    RefusalF1(Grading),
    /// As [`Checker::Refusal`], where the [`Verdicts`](crate::score::Verdicts) of a judge tell whether the text refuses.
    JudgedRefusal,
    /// As [`Checker::RefusalF1`], where they do.
    JudgedRefusalF1,
    /// The probability that one of this many programs passes ([`pass_at_k`](crate::answers::pass_at_k)), from the [`Verdicts`](crate::score::Verdicts) of the sandbox.
    Passed(usize),
    /// The probability that the text is preferred, from the [`Verdicts`](crate::score::Verdicts) of a judge.
    Preferred,
    /// Whether it is the preferred one; equal ones count half.
    PreferredDiscretely,
}

/// Which versions of a text are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Versions {
    /// The text as it is.
    Whole,
    /// It, or without its first line, its last or both, each with asterisks and without; one suffices.
    Loose,
}

impl Checker {
    /// The name in results. The rules of open-instruct and of IFEval have the plain names, strict ones `_strict`.
    pub fn name(self) -> String {
        let graded = |name: &str, grading: Grading| match grading {
            Grading::Ai2 => name.to_owned(),
            Grading::Strict => format!("{name}_strict"),
        };
        let version = |versions: Versions| match versions {
            Versions::Whole => "strict",
            Versions::Loose => "loose",
        };
        match self {
            Checker::Number(grading) | Checker::Phrase(grading) => graded("exact_match", grading),
            Checker::Instructions(versions, grading) => match grading {
                Grading::Ai2 => format!("inst_level_{}_acc", version(versions)),
                Grading::Strict => format!("inst_level_{}_acc_corrected", version(versions)),
            },
            Checker::AllInstructions(versions, grading) => match grading {
                Grading::Ai2 => format!("prompt_level_{}_acc", version(versions)),
                Grading::Strict => format!("prompt_level_{}_acc_corrected", version(versions)),
            },
            Checker::Refusal(grading) => graded("refusal_acc", grading),
            Checker::RefusalF1(grading) => graded("refusal_f1", grading),
            Checker::JudgedRefusal => "refusal_acc".to_owned(),
            Checker::JudgedRefusalF1 => "refusal_f1".to_owned(),
            Checker::Passed(k) => format!("pass@{k}"),
            Checker::Preferred => "win_rate".to_owned(),
            Checker::PreferredDiscretely => "discrete_win_rate".to_owned(),
        }
    }

    /// Whether it needs [`Verdicts`](crate::score::Verdicts).
    pub fn needs_verdicts(self) -> bool {
        matches!(
            self,
            Checker::Passed(_)
                | Checker::Preferred
                | Checker::PreferredDiscretely
                | Checker::JudgedRefusal
                | Checker::JudgedRefusalF1
        )
    }
}
