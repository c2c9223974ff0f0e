//! What the log-probability of a token counts in the loss of a step of fine-tuning.
//!
//! With the learned tokens of the step, in its M micro-batches and S sequences (a sequence is a segment of
//! [`Batch`](olmoe_model::batch::Batch): documents packed together are as many):
//!
//! ```text
//! sum            −Σ logp / M               AI2's; of the size of a micro-batch's tokens: a large loss, a large gradient norm
//! token          −Σ logp / tokens of the step
//! micro_mean     −Σ logp / (M · tokens of the micro-batch)        depends on how the step is split
//! sequence_mean  −Σ logp / (S · tokens of the sequence)
//! ```

use olmoe_tensor::ops::cross_entropy::IGNORE;

use crate::names::names;

names! {
    "reduction of the loss";
    /// What the loss of a step is of those of its tokens; the formulas are above.
    pub enum Reduction {
        /// The sum, mean over micro-batches.
        Sum = "sum",
        /// The mean over tokens: no split of the step changes it.
        Token = "token",
        /// The mean over micro-batches of their means.
        MicroMean = "micro_mean" | "mean",
        /// The mean over sequences of their means: no split of the step changes it.
        SequenceMean = "sequence_mean",
    }
}

/// What a step has, all its micro-batches together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCounts {
    /// Tokens to be learned.
    pub tokens: u64,
    /// Sequences with such tokens.
    pub sequences: u64,
    /// Micro-batches.
    pub micro_batches: u64,
}

impl StepCounts {
    /// Takes in a micro-batch: `targets [T]`, and where its sequences begin, then T.
    pub fn add(&mut self, targets: &[u32], segments: &[u32]) {
        let learned = |targets: &[u32]| targets.iter().filter(|target| **target != IGNORE).count() as u64;
        self.micro_batches += 1;
        self.tokens += learned(targets);
        self.sequences += segments.windows(2).filter(|ends| learned(of(targets, ends)) > 0).count() as u64;
    }
}

/// The tokens between two boundaries.
fn of<'t>(targets: &'t [u32], ends: &[u32]) -> &'t [u32] {
    targets.get(ends[0] as usize..ends[1] as usize).unwrap_or(&[])
}

impl Reduction {
    /// The part that each token of a micro-batch has in the mean: `loss = −Σ_t w_t·logp_t`, `[T]`; 0 for tokens that are not
    /// learned, so that a micro-batch without any is a loss of 0.
    pub fn weights(self, step: &StepCounts, targets: &[u32], segments: &[u32]) -> Vec<f64> {
        let mut micro = StepCounts::default();
        micro.add(targets, segments);
        let divisor = match self {
            Reduction::Sum => step.micro_batches as f64,
            Reduction::Token => step.tokens as f64,
            Reduction::MicroMean => step.micro_batches as f64 * micro.tokens as f64,
            Reduction::SequenceMean => step.sequences as f64,
        };
        let weight = |target: &u32, divisor: f64| if *target == IGNORE { 0.0 } else { 1.0 / divisor };
        if self != Reduction::SequenceMean {
            return targets.iter().map(|target| weight(target, divisor)).collect();
        }
        let mut weights = vec![0.0; targets.len()];
        for ends in segments.windows(2) {
            let sequence = of(targets, ends);
            let learned = sequence.iter().filter(|target| **target != IGNORE).count() as f64;
            for (at, target) in sequence.iter().enumerate() {
                weights[ends[0] as usize + at] = weight(target, divisor * learned);
            }
        }
        weights
    }
}

/// NEFTune's noise (Jain et al., arXiv 2310.05914): uniform between −a and a is added to the embeddings in training,
/// `a = α/√(L·D)` for rows of L tokens, padding included, of width D. 0 where there is nothing to add it to.
pub fn neftune_amplitude(alpha: f64, length: usize, width: usize) -> f64 {
    let numbers = length as f64 * width as f64;
    if numbers > 0.0 { alpha / numbers.sqrt() } else { 0.0 }
}
