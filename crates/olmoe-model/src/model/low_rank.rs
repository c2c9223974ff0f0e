//! The adapters of a model as its passes take them.

use olmoe_tensor::gemm::Store;
use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::add::scale;
use olmoe_tensor::ops::embedding::{self, EmbeddingTable};
use olmoe_tensor::ops::linear::{self, LinearInput, Weight};
use olmoe_tensor::ops::low_rank::{Dropout, LowRank, RowFactors, row_norms};
use olmoe_tensor::tensor::Tensor;

use super::gradients::Gradients;
use super::weights::Weights;
use crate::adapter::AdapterIds;
use crate::batch::TokenNoise;
use crate::identity::ModulePart;
use crate::modules::ParameterId;

impl Weights {
    /// The adapter of a matrix as the operations take it, if it has one and adapters are on. Without noise nothing is left
    /// out.
    pub(super) fn low_rank<'a>(&'a self, base: ParameterId, noise: Option<&'a TokenNoise>) -> Option<LowRank<'a>> {
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
        let dropout = noise.filter(|_| adapter.dropout > 0.0).map(|noise| Dropout {
            probability: adapter.dropout,
            seed: base as u64,
            keys_t: &noise.keys_t,
        });
        Some(LowRank { a: self.packed(ids.a), b: self.packed(ids.b), scale: adapter.scale, rows, dropout })
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
            let mut norms = Buffer::copy_of(self.norms(at));
            norms.iter_mut().filter(|norm| norm.is_infinite()).for_each(|norm| *norm = 0.0);
            self.update(magnitude, |range, out| out.copy_from_slice(&norms[range]));
        }
    }
}

/// The adapter of the embedding: `h_t += s·B·a_t`, where `a_t` is the row of A of the token.
pub(super) struct EmbeddingAdapter<'a> {
    a: &'a Tensor,
    b: Weight<'a>,
    scale: f32,
    ids: AdapterIds,
}

impl Weights {
    /// The adapter of the embedding, if it has one and adapters are on. It is not an adapter of a head that is tied to it.
    pub(super) fn embedding_adapter(&self) -> Option<EmbeddingAdapter<'_>> {
        let set = &self.adapters;
        let at = set.adapters.iter().position(|adapter| adapter.module.part == ModulePart::Embedding)?;
        let ids = set.ids[at];
        let a = self.value(ids.a).filter(|_| set.enabled)?;
        Some(EmbeddingAdapter { a, b: self.weight(ids.b), scale: set.adapters[at].scale, ids })
    }
}

impl EmbeddingAdapter<'_> {
    /// `t = s·a [T, r]`
    fn rows(&self, ids: &[u32]) -> Tensor {
        let mut t = embedding::forward(EmbeddingTable::Numbers(self.a), ids);
        scale(&mut t, self.scale);
        t
    }

    pub(super) fn add(&self, ids: &[u32], h_td: &mut Tensor) {
        LinearInput::new(&self.rows(ids)).add_to(self.b, h_td);
    }

    /// Accumulates the gradients.
    pub(super) fn backward(&self, ids: &[u32], dh_td: &Tensor, gradients: &mut Gradients) {
        if let Some(db) = gradients.get_mut(self.ids.b) {
            linear::backward_weight(dh_td, &linear::pack_saved(&self.rows(ids), self.b.packed().operand()), db);
        }
        if let Some(da) = gradients.get_mut(self.ids.a) {
            let mut u = Tensor::scratch(&[dh_td.rows(), self.a.cols()]);
            linear::backward_input(dh_td, self.b, &mut u, Store::Overwrite);
            scale(&mut u, self.scale);
            embedding::backward(&u, ids, da);
        }
    }
}
