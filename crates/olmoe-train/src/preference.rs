//! The objectives of preference tuning, as functions: from the log-probabilities of answers to the loss, what is reported of
//! it, and its gradient by the log-probability of every token, with which [`Model::backward`] goes on.
//!
//! | file | what it holds |
//! |---|---|
//! | `settings` | the settings of DPO and its relatives, their names, and which go together |
//! | `completion` | what is known of an answer, and where its gradient goes |
//! | `pairwise` | the losses that depend on one pair |
//! | `transport` | those that sort the answers of a batch |
//! | `objective` | the loss of a step: a weighted sum of several |
//! | [`kto`] | KTO and its relatives, whose answers come one by one |
//! | `mismatch` | prompts with the answers of others, for KTO's estimate of the divergence |
//! | `metrics` | what trl and open-instruct report, by their names |
//! | `logistic` | `σ`, `log σ` and `log(1 − eˣ)` |
//! | `error` | what can be wrong with settings and inputs |
//!
//! All sums are f64 in a fixed order, exponentials and logarithms those of [`olmoe_tensor::elementary`]: the bits are the
//! same on every machine. What a step divides by is given by the caller ([`StepTotals`]), never counted from what is passed in
//! at once, so that a step in one part and in many is the same step.
//!
//! [`Model::backward`]: olmoe_model::model::Model::backward

mod completion;
mod error;
pub mod kto;
mod logistic;
mod metrics;
mod mismatch;
mod objective;
mod pairwise;
mod settings;
mod transport;

pub use completion::{AnswerLoss, Completion, PreferencePair, ReferenceLogProb, TokenGradient, log_prob};
pub use error::PreferenceError;
pub use metrics::{PreferenceMetrics, TokenStatistics};
pub use mismatch::{Mismatch, mismatched};
pub use objective::{PairLoss, Preference, RunningMean, StepTotals};
pub use settings::{FDivergence, LossType, PreferenceSettings};
