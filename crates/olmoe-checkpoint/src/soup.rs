//! Model soups: every number is the average over checkpoints of one model.
//!
//! With `w` the weights divided by the largest of them, a number is `(w₁x₁ + w₂x₂ + …) / (w₁ + w₂ + …)`. Products, sums
//! in the order of the checkpoints, and the quotient are computed in f64; the result is rounded once to the written
//! type. Equal weights are all 1, so equal checkpoints give the same bits again.

use std::path::{Path, PathBuf};

use olmoe_data::counted;
use olmoe_model::config::{ConfigError, ModelConfig, in_files};
use olmoe_model::parameters::ParameterSpec;
use olmoe_tensor::dtype::DType;
use olmoe_tensor::memory::Buffer;
use olmoe_tensor::threads::{Shared, parallel_ranges};

use crate::checkpoint::Checkpoint;
use crate::companions::{Companions, TokenizerDifference};
use crate::encoding::Encoding;
use crate::error::CheckpointError;
use crate::weights::{Weights, slab_len};

/// How many numbers are averaged at a time: a multiple of every block.
const PIECE: usize = 1 << 20;
/// How many numbers a task averages: a multiple of every block.
const GRAIN: usize = 1 << 15;

/// Why checkpoints cannot be averaged.
#[derive(Debug, thiserror::Error)]
pub enum SoupError {
    /// No checkpoints.
    #[error("no checkpoints to average")]
    Empty,
    /// A wrong number of weights.
    #[error(
        "there are {} for {}; give one for each checkpoint, or none",
        counted(weights, "weight"),
        counted(checkpoints, "checkpoint")
    )]
    NumWeights {
        /// The number of weights.
        weights: usize,
        /// The number of checkpoints.
        checkpoints: usize,
    },
    /// A weight that is not a positive finite number.
    #[error("weight {number} is {found}, expected a finite number above 0")]
    Weight {
        /// The index of the weight, from 1.
        number: usize,
        /// Its value.
        found: f64,
    },
    /// A checkpoint of another model.
    #[error("{} cannot be averaged with {}: {}", path.display(), first.display(), told(difference, first, path))]
    OtherModel {
        /// The checkpoint.
        path: PathBuf,
        /// The first one.
        first: PathBuf,
        /// What differs.
        difference: Box<ConfigError>,
    },
    /// Tokenizers that give the same text other ids.
    #[error(
        "{} cannot be averaged with {}, their tokenizers differ: {}. If you know that both models read the same \
         ids, name the tokenizer with --tokenizer",
        path.display(),
        first.display(),
        difference.between(&first.display().to_string(), &path.display().to_string())
    )]
    OtherTokenizer {
        /// The checkpoint.
        path: PathBuf,
        /// The first one.
        first: PathBuf,
        /// What differs.
        difference: Box<TokenizerDifference>,
    },
    /// A quantised first checkpoint, without a type for the averages.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// The difference between two models, with their paths.
fn told(error: &ConfigError, first: &Path, other: &Path) -> String {
    match error {
        ConfigError::OtherFunction { field, this, other: that } => {
            format!("{} is {this} in {} and {that} in {}", in_files(field), first.display(), other.display())
        }
        error => error.to_string(),
    }
}

/// An average of checkpoints, which is computed while it is read.
pub struct Soup {
    checkpoints: Vec<Checkpoint>,
    /// The weights, divided by the largest.
    weights: Vec<f64>,
    dtype: Option<DType>,
    clamp: bool,
}

impl Soup {
    /// Averages checkpoints of any formats; without `weights`, all equally. The averages are rounded to `dtype`, or,
    /// without it, to the type of each tensor in the first checkpoint.
    ///
    /// # Errors
    /// Weights that are not positive, or a wrong number of them; another model than the first; or a quantised first
    /// checkpoint without a `dtype`.
    pub fn new(checkpoints: Vec<Checkpoint>, weights: &[f64], dtype: Option<DType>) -> Result<Soup, SoupError> {
        let Some(first) = checkpoints.first() else { return Err(SoupError::Empty) };
        if !weights.is_empty() && weights.len() != checkpoints.len() {
            return Err(SoupError::NumWeights { weights: weights.len(), checkpoints: checkpoints.len() });
        }
        if let Some(at) = weights.iter().position(|weight| !weight.is_finite() || *weight <= 0.0) {
            return Err(SoupError::Weight { number: at + 1, found: weights[at] });
        }
        for other in &checkpoints[1..] {
            let differs = |difference| SoupError::OtherModel {
                path: other.origin().to_owned(),
                first: first.origin().to_owned(),
                difference: Box::new(difference),
            };
            first.config().same_function(other.config()).map_err(differs)?;
        }
        let is_quantized = |parameter| Weights::encoding(first, parameter, 0).is_quantized();
        if dtype.is_none() && (0..first.parameters().len()).any(is_quantized) {
            return Err(CheckpointError::Quantized { path: first.origin().to_owned() }.into());
        }
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let weights = match weights {
            [] => vec![1.0; checkpoints.len()],
            _ => weights.iter().map(|weight| weight / largest).collect(),
        };
        Ok(Soup { checkpoints, weights, dtype, clamp: false })
    }

    /// Clamps averages beyond the range of their type; without this, they are an error.
    pub fn clamping(self, clamp: bool) -> Soup {
        Soup { clamp, ..self }
    }

    /// The averaged checkpoints, in order.
    pub fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints
    }

    /// Checks that the tokenizers of the checkpoints, whose companions are given in order, turn text into the same ids.
    /// Settings may differ; the result names those that do, to be shown. Checkpoints without a tokenizer are skipped.
    ///
    /// # Errors
    /// The first difference between two vocabularies.
    pub fn same_tokenizer(&self, companions: &[Companions]) -> Result<Vec<String>, SoupError> {
        let mut notices = Vec::new();
        let mut known = companions.iter().zip(&self.checkpoints).filter(|known| known.0.tokenizer().is_some());
        let Some((first, first_checkpoint)) = known.next() else { return Ok(notices) };
        for (other, checkpoint) in known {
            let differs = |difference| SoupError::OtherTokenizer {
                path: checkpoint.origin().to_owned(),
                first: first_checkpoint.origin().to_owned(),
                difference: Box::new(difference),
            };
            let settings = first.same_tokenizer(other, first_checkpoint.config().embedding_size).map_err(differs)?;
            let path = checkpoint.origin().display();
            notices.extend(settings.iter().map(|key| format!("{path}: its {key} differs; the first one's is kept")));
        }
        Ok(notices)
    }
}

impl Weights for Soup {
    fn config(&self) -> &ModelConfig {
        self.checkpoints[0].config()
    }

    fn parameters(&self) -> &[ParameterSpec] {
        self.checkpoints[0].parameters()
    }

    fn encoding(&self, parameter: usize, slab: usize) -> Encoding {
        self.dtype.map_or_else(|| self.checkpoints[0].encoding(parameter, slab), Encoding::Plain)
    }

    fn main_encoding(&self) -> Encoding {
        self.dtype.map_or_else(|| self.checkpoints[0].main_encoding(), Encoding::Plain)
    }

    fn widens_vectors(&self) -> bool {
        self.dtype.is_none() && self.checkpoints[0].widens_vectors()
    }

    fn origin(&self) -> &Path {
        self.checkpoints[0].origin()
    }

    fn read(&self, parameter: usize, slab: usize) -> Result<Buffer<u8>, CheckpointError> {
        let numbers = slab_len(&self.parameters()[parameter]);
        let to = self.encoding(parameter, slab);
        let bytes_of = |count: usize| count / to.block_len() * to.block_bytes();
        // A slab that has to be transposed is read whole; such slabs are small.
        let turned = self.checkpoints.iter().any(|checkpoint| checkpoint.is_turned(parameter, slab));
        let step = if turned { numbers } else { PIECE };
        let total: f64 = self.weights.iter().sum();
        let mut out = Buffer::scratch(bytes_of(numbers));
        let mut sums = Buffer::<f64>::scratch(step.min(numbers));
        for start in (0..numbers).step_by(step) {
            let range = start..(start + step).min(numbers);
            let sums = &mut sums[..range.len()];
            // The sum starts at -0, the neutral element of addition.
            sums.fill(-0.0);
            for (checkpoint, &weight) in self.checkpoints.iter().zip(&self.weights) {
                let bytes = checkpoint.read_part(parameter, slab, range.clone())?;
                add(sums, weight, checkpoint.encoding(parameter, slab), &bytes);
            }
            let piece = &mut out[bytes_of(range.start)..bytes_of(range.end)];
            round(sums, total, to, to.largest().filter(|_| self.clamp), piece);
            if to.first_beyond(piece).is_some() {
                let worst = (0..sums.len()).max_by(|a, b| sums[*a].abs().total_cmp(&sums[*b].abs())).unwrap_or(0);
                return Err(CheckpointError::Overflow {
                    path: self.origin().to_owned(),
                    parameter: self.parameters()[parameter].name.clone(),
                    slab,
                    at: range.start + worst,
                    value: (sums[worst] / total) as f32,
                    encoding: to.name(),
                });
            }
        }
        Ok(out)
    }
}

/// `sums += weight · x`
fn add(sums: &mut [f64], weight: f64, encoding: Encoding, bytes: &[u8]) {
    let numbers = sums.len();
    let shared = Shared::new(sums);
    parallel_ranges(numbers, GRAIN, |range| {
        let place = |number: usize| number / encoding.block_len() * encoding.block_bytes();
        let mut x = Buffer::<f32>::scratch(range.len());
        encoding.decode(&bytes[place(range.start)..place(range.end)], &mut x);
        // SAFETY: the ranges of a parallel loop are disjoint.
        let sums = unsafe { shared.range(range) };
        for (sum, x) in sums.iter_mut().zip(&x[..]) {
            *sum += weight * f64::from(*x);
        }
    });
}

/// `sums / total`, rounded once, no larger than `largest`.
fn round(sums: &[f64], total: f64, to: Encoding, largest: Option<f32>, out: &mut [u8]) {
    let shared = Shared::new(out);
    parallel_ranges(sums.len(), GRAIN, |range| {
        let mut x = Buffer::<f32>::scratch(range.len());
        for (x, sum) in x.iter_mut().zip(&sums[range.clone()]) {
            let average = sum / total;
            *x = if to == Encoding::F32 { average as f32 } else { to_odd(average) };
            if let Some(largest) = largest {
                *x = x.clamp(-largest, largest);
            }
        }
        let place = |number: usize| number / to.block_len() * to.block_bytes();
        // SAFETY: the ranges of a parallel loop are disjoint, and so are their bytes.
        to.encode(&x, unsafe { shared.range(place(range.start)..place(range.end)) });
    });
}

/// Rounds to odd: an inexact result becomes the neighbour whose last bit is 1. Rounding that again, to a type with at
/// least two bits less, gives the rounding of the original, since no new tie can appear.
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || !near.is_finite() || near.to_bits() & 1 == 1 {
        return near;
    }
    // The magnitude of a float grows with its bit pattern.
    f32::from_bits(if f64::from(near).abs() < x.abs() { near.to_bits() + 1 } else { near.to_bits() - 1 })
}

#[cfg(test)]
mod tests {
    use olmoe_tensor::dtype::bf16;

    use super::*;

    #[test]
    fn rounding_to_odd_and_then_to_bf16_is_rounding_once() {
        // Just above, on and just below the middle between 1 and the next bf16.
        let half_step = 2f64.powi(-8);
        for (x, expected) in [
            (1.0 + half_step + 1e-12, 1.0 + 2.0 * half_step),
            (1.0 + half_step, 1.0),
            (1.0 + half_step - 1e-12, 1.0),
            (1.0 + 3.0 * half_step - 1e-12, 1.0 + 2.0 * half_step),
            (1.0 + 3.0 * half_step, 1.0 + 4.0 * half_step),
        ] {
            for sign in [1.0, -1.0] {
                assert_eq!(f64::from(bf16::from_f32(to_odd(sign * x)).to_f32()), sign * expected, "{x}");
            }
        }
        // Rounded twice, the first of them becomes 1.
        assert_eq!(bf16::from_f32((1.0 + half_step + 1e-12) as f32).to_f32(), 1.0);
        assert_eq!(to_odd(-1e-60).to_bits(), 0x8000_0001);
        assert_eq!((to_odd(0.5), to_odd(-0.0).to_bits(), to_odd(1e-60).to_bits()), (0.5, 0x8000_0000, 1));
        assert_eq!(to_odd(f64::from(f32::MAX)), f32::MAX);
    }
}
