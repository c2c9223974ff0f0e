//! The adapters of a model: which parameters belong to which matrix, and the norms that DoRA divides by.

use std::sync::OnceLock;

use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::low_rank::{LowRank, RowFactors, row_norms};

use super::error::ModelError;
use super::weights::Weights;
use crate::adapter::{Adapter, AdapterIds, add_adapters};
use crate::config::ModelConfig;
use crate::modules::ParameterId;
use crate::parameters::ParameterSpec;

/// The adapters, in the order of their parameters.
pub(super) struct AdapterSet {
    adapters: Vec<Adapter>,
    ids: Vec<AdapterIds>,
    /// The adapter of each canonical parameter.
    of_base: Vec<Option<usize>>,
    norms: Vec<DoraNorms>,
    pub(super) enabled: bool,
}

/// The norms of the rows of an adapted matrix, computed when they are first needed after a change.
#[derive(Default)]
struct DoraNorms {
    /// `‖W + s·B·A‖` of each row, `[E, out]`.
    norms: OnceLock<Buffer<f32>>,
    /// The magnitude divided by the norm, `[E, out]`.
    factors: OnceLock<Buffer<f32>>,
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

impl Weights {
    /// The adapter of a matrix as the operations take it, if it has one and adapters are on.
    pub(super) fn low_rank(&self, base: ParameterId) -> Option<LowRank<'_>> {
        let set = &self.adapters;
        let at = set.of_base.get(base).copied().flatten().filter(|_| set.enabled)?;
        let (adapter, ids) = (&set.adapters[at], &set.ids[at]);
        let rows = ids.magnitude.map(|magnitude| {
            let norms = self.norms(at);
            let factors = set.norms[at].factors.get_or_init(|| {
                let mut factors = Buffer::copy_of(self.numbers(magnitude));
                factors.iter_mut().zip(norms.iter()).for_each(|(factor, norm)| *factor /= norm);
                factors
            });
            RowFactors { factors, norms }
        });
        Some(LowRank { a: self.packed(ids.a), b: self.packed(ids.b), scale: adapter.scale, rows })
    }

    fn norms(&self, at: usize) -> &[f32] {
        let (adapter, ids) = (&self.adapters.adapters[at], &self.adapters.ids[at]);
        self.adapters.norms[at].norms.get_or_init(|| {
            row_norms(self.weight(ids.base), self.numbers(ids.a), self.numbers(ids.b), adapter.rank, adapter.scale)
        })
    }

    /// Sets the magnitudes of DoRA to the norms of the rows, with which the adapted matrix is what it is without.
    pub(super) fn set_magnitudes(&mut self) {
        for at in 0..self.adapters.ids.len() {
            let Some(magnitude) = self.adapters.ids[at].magnitude else { continue };
            let norms = Buffer::copy_of(self.norms(at));
            self.update(magnitude, |range, out| out.copy_from_slice(&norms[range]));
        }
    }
}
