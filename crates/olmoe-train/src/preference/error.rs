//! What can be wrong with the settings of preference tuning, and with what is given to its losses.

/// Why a loss cannot be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PreferenceError {
    /// A setting out of its range.
    #[error("`{key}` is {found}; {problem}")]
    Value {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is wrong and what to do.
        problem: &'static str,
    },
    /// A setting that a loss type has no use for, or that it cannot be without.
    #[error("`{key}` is {found}, but `loss_type` is {loss_type}; {problem}")]
    Together {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: String,
        /// The loss type.
        loss_type: String,
        /// What is wrong and what to do.
        problem: &'static str,
    },
    /// An answer lacks the log-probabilities of the reference model.
    #[error(
        "pair {pair}, the {answer} answer: no log-probability of the reference model, which {loss_type} compares with; \
         compute it, or choose a loss type without a reference (simpo, cpo, orpo, sft)"
    )]
    NoReference {
        /// The pair, from 0.
        pair: usize,
        /// `chosen` or `rejected`.
        answer: &'static str,
        /// The loss type that needs it.
        loss_type: &'static str,
    },
    /// The log-probabilities of the reference model are of an answer of another length, or sums that do not fit `ld_alpha`.
    #[error(
        "pair {pair}, the {answer} answer: the log-probabilities of the reference model are {found}, expected {expected}; \
         compute those of the reference anew"
    )]
    Reference {
        /// The pair, from 0.
        pair: usize,
        /// `chosen` or `rejected`.
        answer: &'static str,
        /// What was given.
        found: String,
        /// What was needed.
        expected: String,
    },
    /// WPO's weights need what was not given, or not for every token.
    #[error(
        "pair {pair}, the {answer} answer: {found} values of log Σp², expected {expected}, one for each token; WPO's \
         weights need them"
    )]
    SquareSums {
        /// The pair, from 0.
        pair: usize,
        /// `chosen` or `rejected`.
        answer: &'static str,
        /// Values given.
        found: usize,
        /// Tokens of the answer.
        expected: usize,
    },
    /// A loss that compares all answers of a step was given a part of them.
    #[error(
        "{loss_type} compares all pairs of a step: {found} given, expected {expected}; compute all log-probabilities of \
         the step before its loss"
    )]
    PartOfStep {
        /// The loss type.
        loss_type: &'static str,
        /// Pairs given.
        found: u64,
        /// Pairs of the step.
        expected: u64,
    },
    /// What a step divides by is less than what was given of it.
    #[error("the step is said to have {expected} {what}, but {found} were given; count those of the whole step")]
    Totals {
        /// `pairs`, `answers`, `tokens of chosen answers`.
        what: &'static str,
        /// What was given.
        found: u64,
        /// What the step is to have.
        expected: u64,
    },
    /// The loss is NaN or infinite.
    #[error(
        "{what} {at}: the loss is {loss}, with log-probabilities of {policy} and {reference} under the policy and the \
         reference; look for NaN in the model's weights, or lower the learning rate or `beta`"
    )]
    NotFinite {
        /// `pair` or `answer`.
        what: &'static str,
        /// Its place among those given, from 0.
        at: usize,
        /// The loss.
        loss: f64,
        /// Log-probabilities under the policy.
        policy: String,
        /// Log-probabilities under the reference.
        reference: String,
    },
    /// A row that could only be paired with itself.
    #[error(
        "KTO compares with the answers of other rows, and there are blocks of {block} of {rows} rows; use micro-batches \
         of at least 2 rows, or `kl_batch: step`"
    )]
    NoOther {
        /// Rows of the data.
        rows: usize,
        /// Rows of a block.
        block: usize,
    },
}
