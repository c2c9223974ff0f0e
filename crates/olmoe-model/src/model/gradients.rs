//! Gradients of the trained parameters.

use olmoe_tensor::tensor::Tensor;

use super::held::Held;
use crate::modules::ParameterId;
use crate::parameters::ParameterSpec;

/// One f32 tensor for each trained parameter, made by `Model::gradients`. Backward passes accumulate; the caller
/// clears.
pub struct Gradients {
    /// In canonical order; `None` for a parameter that is not trained.
    values: Vec<Option<Tensor>>,
}

impl Gradients {
    /// Zeros for all trained parameters.
    pub(super) fn zeros(specs: &[ParameterSpec], held: &[Held]) -> Gradients {
        let zeros =
            |(spec, held): (&ParameterSpec, &Held)| (*held == Held::Trained).then(|| Tensor::zeros(&spec.shape));
        Gradients { values: specs.iter().zip(held).map(zeros).collect() }
    }

    /// Sets all to zero.
    pub fn clear(&mut self) {
        self.values.iter_mut().flatten().for_each(|g| g.fill(0.0));
    }

    /// The gradient of one parameter, if it is trained.
    pub fn get(&self, id: ParameterId) -> Option<&Tensor> {
        self.values[id].as_ref()
    }

    /// The gradient of one parameter, to add to, if it is trained.
    pub fn get_mut(&mut self, id: ParameterId) -> Option<&mut Tensor> {
        self.values[id].as_mut()
    }

    /// All gradients, in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterId, &Tensor)> {
        self.values.iter().enumerate().filter_map(|(id, g)| Some((id, g.as_ref()?)))
    }

    /// All gradients, in canonical order, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ParameterId, &mut Tensor)> {
        self.values.iter_mut().enumerate().filter_map(|(id, g)| Some((id, g.as_mut()?)))
    }

    /// Bytes of all gradients.
    pub fn bytes(&self) -> usize {
        self.values.iter().flatten().map(|g| size_of_val(&g[..])).sum()
    }

    /// The number of parameters of the model, trained or not.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether one of these parameters is trained.
    pub(super) fn wants_any<const N: usize>(&self, ids: [Option<ParameterId>; N]) -> bool {
        ids.into_iter().flatten().any(|id| self.values[id].is_some())
    }

    /// The gradients of several different parameters at once; `None` where there is no id or the parameter is not
    /// trained.
    pub(super) fn several<const N: usize>(&mut self, ids: [Option<ParameterId>; N]) -> [Option<&mut [f32]>; N] {
        let mut found = [const { None }; N];
        for (id, value) in self.values.iter_mut().enumerate() {
            if let (Some(at), Some(value)) = (ids.iter().position(|wanted| *wanted == Some(id)), value) {
                found[at] = Some(&mut value[..]);
            }
        }
        found
    }
}
