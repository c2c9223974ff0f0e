//! What can be wrong with a run of fine-tuning, beside what can be wrong with any run.

use std::path::PathBuf;

use crate::preference::PreferenceError;

/// Why fine-tuning cannot begin or go on.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum FinetuneError {
    /// A setting out of its range, or one that does not go with the others.
    #[error("`{key}` is {found}; expected {expected}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it may be, and what to do.
        expected: &'static str,
    },
    /// A setting or an input of a loss.
    #[error(transparent)]
    Preference(#[from] PreferenceError),
    /// A pattern of trained parameters that means none.
    #[error("`train`: {pattern:?} {problem}; {advice}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: String,
        /// What may be written.
        advice: String,
    },
    /// Nothing is trained.
    #[error("nothing is trained: `train` is empty and there is no adapter; set train: [all], or add an adapter")]
    NothingTrained,
    /// The data does not fit the method.
    #[error("{method} learns from {expected}, and the data holds {found}; choose the method for it, or other data")]
    OtherData {
        /// The method.
        method: &'static str,
        /// What it needs.
        expected: &'static str,
        /// What there is.
        found: &'static str,
    },
    /// Rows of several kinds.
    #[error("the data holds {first} and {other}; a run learns from one kind, so take these apart")]
    Mixed {
        /// What the first row is.
        first: &'static str,
        /// What another one is.
        other: &'static str,
    },
    /// No examples.
    #[error("the {what} data holds {found} of at least {expected} examples; take more data, or a smaller batch_size")]
    TooLittleData {
        /// `training` or `evaluation`.
        what: &'static str,
        /// Examples.
        found: usize,
        /// Examples needed.
        expected: usize,
    },
    /// An example that the model cannot take.
    #[error("example {at} of the {what} data: {problem}; {advice}")]
    Example {
        /// `training` or `evaluation`.
        what: &'static str,
        /// The example, from 0.
        at: usize,
        /// What is wrong.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// A checkpoint of a run that began with another model.
    #[error(
        "{}: the run began with a model of fingerprint {then}, and that of {base} has {now}; begin with the same model, or \
         train into another folder",
        path.display()
    )]
    OtherBase {
        /// The checkpoint.
        path: PathBuf,
        /// The present base model.
        base: String,
        /// The fingerprint that was saved.
        then: String,
        /// That of the present base model.
        now: String,
    },
    /// A checkpoint of a run that trained other parameters.
    #[error(
        "{}: the run trained {then}, and the settings train {now}; train the same parameters, or train into another folder",
        path.display()
    )]
    OtherParameters {
        /// The checkpoint.
        path: PathBuf,
        /// What it holds.
        then: String,
        /// What is trained now.
        now: String,
    },
    /// A checkpoint that is no difference to a base.
    #[error("{}: it {}", path.display(), match adapters {
        true => "holds adapters; merge them into their base, or convert them as adapters",
        false => "holds all parameters; convert it without a base",
    })]
    NotChosen {
        /// The checkpoint.
        path: PathBuf,
        /// Whether it has adapters.
        adapters: bool,
    },
    /// The computation of the reference was interrupted.
    #[error("interrupted before the first step; nothing was saved, and the same command begins again")]
    Interrupted,
}
