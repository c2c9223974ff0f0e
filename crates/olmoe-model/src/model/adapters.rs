//! The adapters of a model: which parameters belong to which matrix, and the norms that DoRA divides by.

use std::sync::OnceLock;

use olmoe_tensor::memory::Buffer;

use super::error::ModelError;
use crate::adapter::{Adapter, AdapterIds, add_adapters};
use crate::config::ModelConfig;
use crate::modules::ParameterId;
use crate::parameters::ParameterSpec;

/// The adapters, in the order of their parameters.
pub(super) struct AdapterSet {
    pub(super) adapters: Vec<Adapter>,
    pub(super) ids: Vec<AdapterIds>,
    /// The adapter of each canonical parameter.
    pub(super) of_base: Vec<Option<usize>>,
    pub(super) norms: Vec<DoraNorms>,
    pub(super) enabled: bool,
}

/// The norms of the rows of an adapted matrix, computed when they are first needed after a change.
#[derive(Default)]
pub(super) struct DoraNorms {
    /// `‖W + s·B·A‖` of each row, `[E, out]`.
    pub(super) norms: OnceLock<Buffer<f32>>,
    /// The magnitude divided by the norm, `[E, out]`.
    pub(super) factors: OnceLock<Buffer<f32>>,
}

impl AdapterSet {
    /// Checks the adapters and appends their parameters to the canonical ones.
    pub(super) fn new(
        config: &ModelConfig,
        adapters: &[Adapter],
        specs: &mut Vec<ParameterSpec>,
    ) -> Result<AdapterSet, ModelError> {
        let mut of_base = vec![None; specs.len()];
        let ids = add_adapters(config, adapters, specs)?;
        for (at, ids) in ids.iter().enumerate() {
            of_base[ids.base] = Some(at);
        }
        let norms = ids.iter().map(|_| DoraNorms::default()).collect();
        Ok(AdapterSet { adapters: adapters.to_vec(), ids, of_base, norms, enabled: true })
    }

    pub(super) fn all(&self) -> &[Adapter] {
        &self.adapters
    }

    pub(super) fn ids(&self) -> &[AdapterIds] {
        &self.ids
    }

    /// The adapter of a matrix, if it has one.
    pub(super) fn of(&self, base: ParameterId) -> Option<AdapterIds> {
        self.of_base.get(base).copied().flatten().map(|at| self.ids[at])
    }

    /// A parameter has changed: the norms that depend on it are computed again when they are next needed.
    pub(super) fn changed(&mut self, id: ParameterId) {
        for (ids, norms) in self.ids.iter().zip(&mut self.norms) {
            if ids.magnitude.is_none() {
                continue;
            }
            if [ids.base, ids.a, ids.b].contains(&id) {
                *norms = DoraNorms::default();
            } else if ids.magnitude == Some(id) {
                norms.factors = OnceLock::new();
            }
        }
    }
}
