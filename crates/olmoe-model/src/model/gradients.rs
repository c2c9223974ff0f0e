//! Gradients of all parameters.

use olmoe_tensor::tensor::Tensor;

use crate::modules::ParameterId;
use crate::parameters::ParameterSpec;

/// One f32 tensor a parameter, in canonical order. Backward passes add to them; clearing is the caller's.
pub struct Gradients {
    values: Vec<Tensor>,
}

impl Gradients {
    /// Zeros.
    pub fn zeros(specs: &[ParameterSpec]) -> Gradients {
        Gradients { values: specs.iter().map(|spec| Tensor::zeros(&spec.shape)).collect() }
    }

    /// Sets all to zero.
    pub fn clear(&mut self) {
        self.values.iter_mut().for_each(|g| g.fill(0.0));
    }

    /// The gradient of one parameter.
    pub fn get(&self, id: ParameterId) -> &Tensor {
        &self.values[id]
    }

    /// The gradient of one parameter, to add to.
    pub fn get_mut(&mut self, id: ParameterId) -> &mut Tensor {
        &mut self.values[id]
    }

    /// All of them, in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.values.iter()
    }

    /// All of them, to write.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.values.iter_mut()
    }

    /// Several at once; those not asked for are none. The ids are of different parameters.
    pub(super) fn several<const N: usize>(&mut self, ids: [Option<ParameterId>; N]) -> [Option<&mut [f32]>; N] {
        let mut found = [const { None }; N];
        for (id, value) in self.values.iter_mut().enumerate() {
            if let Some(at) = ids.iter().position(|wanted| *wanted == Some(id)) {
                found[at] = Some(&mut value[..]);
            }
        }
        found
    }
}
