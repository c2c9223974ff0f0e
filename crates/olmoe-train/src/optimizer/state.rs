//! The optimizer's part of a checkpoint, bit for bit: the group `optimizer` of tensors, and a small JSON file.

use olmoe_checkpoint::disk::Disk;
use olmoe_checkpoint::safetensors::{SafeType, Shards, ShardsError, Spec};
use olmoe_checkpoint::save::{CheckpointWriter, Found, SaveError};
use olmoe_model::parameters::ParameterSpec;
use serde::{Deserialize, Serialize};

use super::Optimizer;

/// The group of tensors: `<parameter>.exp_avg` of AdamW and LionW, `<parameter>.exp_avg_sq` of AdamW and RMSprop, and
/// `grad_norm_exp_avg` with adaptive clipping.
pub const GROUP: &str = "optimizer";
/// The name of the small file.
pub const FILE: &str = "optimizer.json";
const RUNNING_MEANS: &str = "grad_norm_exp_avg";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OptimizerStateHeader {
    name: String,
    steps: u64,
    running_means: bool,
}

/// Why the state of an optimizer cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The checkpoint has no optimizer state, or it is damaged.
    #[error(transparent)]
    Checkpoint(#[from] SaveError),
    /// A tensor cannot be read.
    #[error(transparent)]
    Tensors(#[from] ShardsError),
    /// The state belongs to another optimizer.
    #[error(
        "the checkpoint has the state of {found}, but `optimizer.name` is {expected}; keep the optimizer, or set \
         reset_optimizer_state to begin anew"
    )]
    OtherRule {
        /// The optimizer of the checkpoint.
        found: String,
        /// The optimizer of the configuration.
        expected: &'static str,
    },
    /// A tensor is missing or has another shape or format.
    #[error(
        "{FILE}: tensor {tensor:?} is {found}, expected f32 of shape {expected:?}; the checkpoint is of another model"
    )]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What was found.
        found: String,
        /// The shape it must have.
        expected: Vec<usize>,
    },
}

impl Optimizer {
    /// The tensors of the state with their numbers.
    fn tensors(&self, specs: &[ParameterSpec]) -> Vec<(Spec, &[f32])> {
        let moments = [("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq)];
        let moments = moments.into_iter().flat_map(|(moment, values)| {
            self.ids.iter().map(|id| &specs[*id]).zip(values).map(move |(spec, value)| {
                (Spec::new(format!("{}.{moment}", spec.name), SafeType::F32, value.shape()), &value[..])
            })
        });
        let means = self.clipping.norms.as_deref();
        let means = means.map(|norms| (Spec::new(RUNNING_MEANS, SafeType::F32, [norms.len()]), norms));
        moments.chain(means).collect()
    }

    /// The size in bytes of the numbers that [`save`](Self::save) writes.
    pub fn state_bytes(&self) -> u64 {
        let moments = self.exp_avg.iter().chain(&self.exp_avg_sq).map(|tensor| size_of_val(&tensor[..]));
        let means = self.clipping.norms.iter().map(|norms| size_of_val(&norms[..]));
        moments.chain(means).sum::<usize>() as u64
    }

    /// Writes the state into a checkpoint, in files with at most `max_shard_bytes` of numbers.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn save<D: Disk>(
        &self,
        specs: &[ParameterSpec],
        writer: &mut CheckpointWriter<'_, D>,
        max_shard_bytes: u64,
    ) -> Result<(), SaveError> {
        let (tensors, values): (Vec<_>, Vec<_>) = self.tensors(specs).into_iter().unzip();
        writer.numbers(GROUP, &tensors, max_shard_bytes, &values)?;
        let header = OptimizerStateHeader {
            name: self.config.name.name().into(),
            steps: self.steps,
            running_means: self.clipping.norms.is_some(),
        };
        writer.json(FILE, &header)
    }

    /// Restores the state from a checkpoint; learning rate, weight decay and all other settings stay those of the
    /// configuration.
    ///
    /// Nothing changes if the state does not fit. If a tensor that fits cannot be read, the state must not be used
    /// afterwards.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn restore(&mut self, specs: &[ParameterSpec], found: &Found) -> Result<(), StateError> {
        let header: OptimizerStateHeader = found.json(FILE)?;
        if header.name != self.config.name.name() {
            let found = olmoe_model::config::shorten(&header.name);
            return Err(StateError::OtherRule { found, expected: self.config.name.name() });
        }
        let shards = found.tensors(GROUP)?;
        let norms = header.running_means.then(|| vec![0.0; self.clipping.count()]);
        let before = std::mem::replace(&mut self.clipping.norms, norms);
        let fits = self.tensors(specs).iter().try_for_each(|(spec, _)| fits(&shards, spec));
        if let Err(error) = fits {
            self.clipping.norms = before;
            return Err(error);
        }
        for (moment, values) in [("exp_avg", &mut self.exp_avg), ("exp_avg_sq", &mut self.exp_avg_sq)] {
            for (spec, value) in self.ids.iter().map(|id| &specs[*id]).zip(values) {
                read(&shards, &format!("{}.{moment}", spec.name), value)?;
            }
        }
        if let Some(norms) = &mut self.clipping.norms {
            read(&shards, RUNNING_MEANS, norms)?;
        }
        self.steps = header.steps;
        Ok(())
    }
}

/// How many numbers are read at once.
const PIECE: usize = 64 << 10;

fn fits(shards: &Shards, spec: &Spec) -> Result<(), StateError> {
    let found = match shards.get(&spec.name) {
        Some(entry) if entry.dtype == SafeType::F32 && entry.shape == spec.shape => return Ok(()),
        Some(entry) => format!("{:?} of shape {:?}", entry.dtype, entry.shape),
        None => "missing".into(),
    };
    Err(StateError::Tensor { tensor: spec.name.clone(), found, expected: spec.shape.clone() })
}

fn read(shards: &Shards, name: &str, out: &mut [f32]) -> Result<(), StateError> {
    let mut bytes = vec![0; PIECE.min(out.len()) * 4];
    for (i, piece) in out.chunks_mut(PIECE).enumerate() {
        let bytes = &mut bytes[..piece.len() * 4];
        shards.read_at(name, (i * PIECE * 4) as u64, bytes)?;
        for (x, bytes) in piece.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *x = f32::from_le_bytes(*bytes);
        }
    }
    Ok(())
}
