//! The model that a run of chosen parameters made: those that it trained over those of its base.

use std::path::Path;

use olmoe_checkpoint::CheckpointError;
use olmoe_checkpoint::encoding::Encoding;
use olmoe_checkpoint::safetensors::Shards;
use olmoe_checkpoint::save::{Found, SaveError, verify};
use olmoe_checkpoint::weights::Weights;
use olmoe_model::config::ModelConfig;
use olmoe_model::parameters::ParameterSpec;
use olmoe_tensor::memory::Buffer;

use super::error::FinetuneError;
use super::saved::{FinetuneRecord, TRAINED_GROUP};
use crate::trainer::TrainError;

/// The weights of a run that trained some parameters of a base, to be converted as any others. What was trained is in f32.
pub struct Tuned<'a> {
    base: &'a dyn Weights,
    record: FinetuneRecord,
    shards: Shards,
    /// By parameter, whether it was trained, or which of its experts were.
    trained: Vec<Option<Option<Vec<usize>>>>,
}

impl<'a> Tuned<'a> {
    /// A checkpoint of a run, with the model that the run began with.
    ///
    /// # Errors
    /// A checkpoint that is damaged or is none of such a run; one with adapters, which are merged instead; another base.
    pub fn open(path: &Path, base: &'a dyn Weights) -> Result<Tuned<'a>, TrainError> {
        let manifest = verify(path)?;
        let found = Found { step: manifest.step, path: path.to_owned(), manifest, notices: Vec::new() };
        let record = FinetuneRecord::read(&found)?;
        if !record.adapters.is_empty() || record.whole {
            return Err(FinetuneError::NotChosen { path: path.to_owned(), adapters: !record.whole }.into());
        }
        let shards = found.tensors(TRAINED_GROUP)?;
        let of = |spec: &ParameterSpec| {
            let one = record.trained.iter().find(|one| one.name == spec.name)?;
            Some(one.experts.clone())
        };
        let trained: Vec<_> = base.parameters().iter().map(of).collect();
        let fits = |spec: &ParameterSpec| shards.get(&spec.name).is_some_and(|entry| entry.shape == spec.shape);
        let misfit = base.parameters().iter().zip(&trained).find(|(spec, own)| own.is_some() && !fits(spec));
        if let Some((spec, _)) = misfit {
            let then = format!("{} of another shape than {:?}", spec.name, spec.shape);
            let now = base.origin().display().to_string();
            return Err(FinetuneError::OtherParameters { path: path.to_owned(), then, now }.into());
        }
        Ok(Tuned { base, record, shards, trained })
    }

    /// What the run began with and what it trained.
    pub fn record(&self) -> &FinetuneRecord {
        &self.record
    }

    fn is_trained(&self, parameter: usize, slab: usize) -> bool {
        self.trained[parameter]
            .as_ref()
            .is_some_and(|experts| experts.as_ref().is_none_or(|experts| experts.contains(&slab)))
    }
}

impl Weights for Tuned<'_> {
    fn config(&self) -> &ModelConfig {
        self.base.config()
    }

    fn parameters(&self) -> &[ParameterSpec] {
        self.base.parameters()
    }

    fn encoding(&self, parameter: usize, slab: usize) -> Encoding {
        if self.is_trained(parameter, slab) { Encoding::F32 } else { self.base.encoding(parameter, slab) }
    }

    fn main_encoding(&self) -> Encoding {
        self.base.main_encoding()
    }

    fn widens_vectors(&self) -> bool {
        self.base.widens_vectors()
    }

    fn origin(&self) -> &Path {
        self.base.origin()
    }

    fn read(&self, parameter: usize, slab: usize) -> Result<Buffer<u8>, CheckpointError> {
        if !self.is_trained(parameter, slab) {
            return self.base.read(parameter, slab);
        }
        let spec = &self.parameters()[parameter];
        let slabs = if spec.shape.len() == 3 { spec.shape[0].max(1) } else { 1 };
        let bytes = spec.num_elements() / slabs * size_of::<f32>();
        let mut out = Buffer::scratch(bytes);
        let read = self.shards.read_at(&spec.name, (slab * bytes) as u64, &mut out);
        read.map_err(SaveError::from)?;
        Ok(out)
    }
}
