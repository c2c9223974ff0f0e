//! What a checkpoint of fine-tuning has beside its tensors: the model that the run began with, and what it trains. A run that
//! trains all parameters saves them all, as pretraining does; any other saves those that it trains.

use olmoe_checkpoint::open::MODEL_GROUP;
use olmoe_checkpoint::save::{Found, SaveError};
use olmoe_data::counted;
use olmoe_model::adapter::{Adapter, Sharing};
use olmoe_model::model::Model;
use serde::{Deserialize, Serialize};

use super::error::FinetuneError;
use super::selection::Selection;
use crate::trainer::TrainError;

/// The file of a checkpoint.
pub const FINETUNE_FILE: &str = "finetune.json";
/// The group of tensors of a run that does not train all parameters.
pub const TRAINED_GROUP: &str = "trained";

/// What a run began with and what it trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneRecord {
    /// `sft`, `dpo` or `kto`.
    pub method: String,
    /// The model that it began with.
    pub base: String,
    /// What its numbers are recognised by.
    pub fingerprint: String,
    /// Whether all parameters are trained and saved.
    pub whole: bool,
    /// The parameters that are trained and saved, where these are not all.
    pub trained: Vec<TrainedRecord>,
    /// The adapters.
    pub adapters: Vec<AdapterRecord>,
}

/// A parameter that is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainedRecord {
    /// Its canonical name.
    pub name: String,
    /// Of a stack of which only some experts are trained, which ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Vec<usize>>,
}

/// An adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterRecord {
    /// The canonical name of the module.
    pub module: String,
    /// Its rank.
    pub rank: usize,
    /// Its scale.
    pub scale: f32,
    /// Whether it is DoRA.
    pub dora: bool,
    /// What its experts have in common: `none`, `a`, `b` or `both`.
    pub share: String,
    /// Its dropout in training.
    pub dropout: f32,
}

impl From<&Adapter> for AdapterRecord {
    fn from(adapter: &Adapter) -> AdapterRecord {
        AdapterRecord {
            module: adapter.module.to_string(),
            rank: adapter.rank,
            scale: adapter.scale,
            dora: adapter.dora,
            share: match adapter.share {
                Sharing::PerExpert => "none",
                Sharing::A => "a",
                Sharing::B => "b",
                Sharing::Both => "both",
            }
            .to_owned(),
            dropout: adapter.dropout,
        }
    }
}

impl FinetuneRecord {
    /// That of a run that trains so.
    pub(super) fn new(method: &str, base: (&str, &str), model: &Model, selection: &Selection) -> FinetuneRecord {
        let whole = selection.is_everything() && model.adapters().is_empty();
        let ids = (0..model.parameters().len()).filter(|id| !whole && selection.is_trained(*id));
        let trained = ids.map(|id| TrainedRecord {
            name: model.parameters()[id].name.clone(),
            experts: selection.experts(id).map(|experts| (0..experts.len()).filter(|e| experts[*e]).collect()),
        });
        FinetuneRecord {
            method: method.to_owned(),
            base: base.0.to_owned(),
            fingerprint: base.1.to_owned(),
            whole,
            trained: trained.collect(),
            adapters: model.adapters().iter().map(AdapterRecord::from).collect(),
        }
    }

    /// That of a checkpoint.
    ///
    /// # Errors
    /// A checkpoint without one, or a damaged one.
    pub fn read(found: &Found) -> Result<FinetuneRecord, SaveError> {
        found.json(FINETUNE_FILE)
    }

    /// The group of tensors.
    pub(super) fn group(&self) -> &'static str {
        if self.whole { MODEL_GROUP } else { TRAINED_GROUP }
    }

    /// What is trained, for a message.
    fn description(&self) -> String {
        if self.whole {
            return "all parameters".to_owned();
        }
        let names: Vec<&str> = self.trained.iter().take(3).map(|one| one.name.as_str()).collect();
        let more = if self.trained.len() > names.len() { ", …" } else { "" };
        let count = counted(self.trained.len() as u64, "parameter");
        let adapters = counted(self.adapters.len() as u64, "adapter");
        format!("{count} ({}{more}) with {adapters}", names.join(", "))
    }

    /// Fills the trained parameters from a checkpoint of the same run.
    pub(super) fn restore(&self, found: &Found, model: &mut Model) -> Result<(), TrainError> {
        let own = FinetuneRecord::read(found)?;
        let path = || found.path.clone();
        if own.fingerprint != self.fingerprint {
            let (then, now) = (own.fingerprint, self.fingerprint.clone());
            return Err(FinetuneError::OtherBase { path: path(), base: self.base.clone(), then, now }.into());
        }
        if (own.whole, &own.trained, &own.adapters) != (self.whole, &self.trained, &self.adapters) {
            let (then, now) = (own.description(), self.description());
            return Err(FinetuneError::OtherParameters { path: path(), then, now }.into());
        }
        let shards = found.tensors(self.group())?;
        for id in 0..model.parameters().len() {
            let name = model.parameters()[id].name.clone();
            if !self.whole && !self.trained.iter().any(|one| one.name == name) {
                continue;
            }
            model.fill(id, |range, out| {
                let mut bytes = vec![0; 4 * out.len()];
                shards.read_at(&name, 4 * range.start as u64, &mut bytes).map_err(SaveError::from)?;
                for (x, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *x = f32::from_le_bytes(*bytes);
                }
                Ok::<(), SaveError>(())
            })?;
        }
        Ok(())
    }

    /// The single experts that are trained, by layer, to be trained again.
    pub(super) fn experts<'r>(
        &'r self,
        model: &'r [olmoe_model::parameters::ParameterSpec],
    ) -> Vec<(usize, &'r [usize])> {
        let layer = |one: &TrainedRecord| model.iter().find(|spec| spec.name == one.name)?.module.layer;
        self.trained.iter().filter_map(|one| Some((layer(one)?, one.experts.as_deref()?))).collect()
    }
}
