//! The head: logits and log-probabilities from the hidden states of a pass.

use olmoe_tensor::ops::cross_entropy::{self, LogProbs};
use olmoe_tensor::tensor::Tensor;

use super::{Activations, Model, ModelError};

impl Model {
    /// Logits `[T, V]` of hidden states `[T, D]`.
    pub fn logits_of(&self, hidden_td: &Tensor) -> Tensor {
        cross_entropy::logits(hidden_td, self.weights.head(&self.modules.head, None))
    }

    /// Log-probabilities of `targets [T]` after a forward pass; those of [`IGNORE`](cross_entropy::IGNORE) are 0, and the head computes
    /// nothing for them.
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for a target outside the vocabulary.
    pub fn log_probs(&self, activations: &Activations, targets: &[u32]) -> Result<LogProbs, ModelError> {
        self.check_targets(targets)?;
        Ok(self.head_forward(activations, targets, false))
    }

    /// The same with the statistics of the distributions ([`LogProbs::statistics`]).
    ///
    /// # Errors
    /// As [`Model::log_probs`].
    pub fn log_probs_and_statistics(&self, activations: &Activations, targets: &[u32]) -> Result<LogProbs, ModelError> {
        self.check_targets(targets)?;
        Ok(self.head_forward(activations, targets, true))
    }

    pub(super) fn head_forward(&self, activations: &Activations, targets: &[u32], statistics: bool) -> LogProbs {
        let head = self.weights.head(&self.modules.head, activations.noise.as_ref());
        cross_entropy::forward(activations.hidden(), head, targets, statistics)
    }

    /// Log-probabilities of `targets [R]` after the tokens `rows [R]` of a forward pass. The head computes nothing for
    /// the other tokens.
    ///
    /// # Errors
    /// [`ModelError::Row`] for a row outside the pass; [`ModelError::TokenId`] for a target outside the vocabulary.
    ///
    /// # Panics
    /// When `rows` and `targets` differ in length.
    pub fn log_probs_at(
        &self,
        activations: &Activations,
        rows: &[u32],
        targets: &[u32],
    ) -> Result<LogProbs, ModelError> {
        self.head_at(activations, rows, targets, false)
    }

    /// The same with the statistics of the distributions ([`LogProbs::statistics`]).
    ///
    /// # Errors
    /// As [`Model::log_probs_at`].
    ///
    /// # Panics
    /// As [`Model::log_probs_at`].
    pub fn log_probs_and_statistics_at(
        &self,
        activations: &Activations,
        rows: &[u32],
        targets: &[u32],
    ) -> Result<LogProbs, ModelError> {
        self.head_at(activations, rows, targets, true)
    }

    fn head_at(
        &self,
        activations: &Activations,
        rows: &[u32],
        targets: &[u32],
        statistics: bool,
    ) -> Result<LogProbs, ModelError> {
        let hidden_td = activations.hidden();
        let tokens = hidden_td.rows();
        if let Some(row) = rows.iter().find(|row| **row as usize >= tokens) {
            return Err(ModelError::Row { row: *row, tokens });
        }
        self.check_targets(targets)?;
        let head = self.weights.head(&self.modules.head, None);
        Ok(cross_entropy::forward_at(hidden_td, rows, head, targets, statistics))
    }
}
