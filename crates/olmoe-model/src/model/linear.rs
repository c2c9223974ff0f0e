//! Linear layers with their biases and adapters.

use olmoe_tensor::gemm::{Right, Store};
use olmoe_tensor::ops::add;
use olmoe_tensor::ops::linear::{self, LinearInput};
use olmoe_tensor::ops::low_rank::LowRankGradients;
use olmoe_tensor::tensor::Tensor;

use super::gradients::Gradients;
use super::weights::Weights;
use crate::batch::TokenNoise;
use crate::modules::{Linear, ParameterId};

/// Several projections of `x`, computed at once.
pub(super) fn forward<const N: usize>(
    weights: &Weights,
    noise: Option<&TokenNoise>,
    x: &Tensor,
    linears: [Linear; N],
) -> [Tensor; N] {
    let input = LinearInput::new(x);
    let mut all = input.times_each(linears.map(|linear| weights.weight(linear.weight)));
    for (y, linear) in all.iter_mut().zip(linears) {
        if let Some(adapter) = weights.low_rank(linear.weight, noise) {
            adapter.forward(&input, y);
        }
        if let Some(bias) = weights.optional(linear.bias) {
            add::add_bias(y, bias);
        }
    }
    all
}

impl Weights {
    /// The parameters of the adapter of a matrix: A, B and the magnitude.
    pub(super) fn adapter_parameters(&self, base: ParameterId) -> [Option<ParameterId>; 3] {
        self.adapters.of(base).map_or([None; 3], |ids| [Some(ids.a), Some(ids.b), ids.magnitude])
    }

    /// Whether a parameter of the layer is trained.
    pub(super) fn trains(&self, linear: Linear, gradients: &Gradients) -> bool {
        gradients.wants_any([Some(linear.weight), linear.bias])
            || gradients.wants_any(self.adapter_parameters(linear.weight))
    }
}

/// The gradients of an adapter, from those of its parameters.
pub(super) fn low_rank_gradients<'a>([a, b, magnitude]: [Option<&'a mut [f32]>; 3]) -> LowRankGradients<'a> {
    LowRankGradients { a, b, magnitude }
}

/// Accumulates the gradients of the trained parameters of a layer with the input `x`; `packed` is the packed input, which
/// is present if the weight is trained. With `dx`, computes the gradient of the input.
pub(super) fn backward(
    weights: &Weights,
    noise: Option<&TokenNoise>,
    linear: Linear,
    x: &Tensor,
    packed: Option<&Right>,
    dy: &Tensor,
    dx: Option<(&mut Tensor, Store)>,
    gradients: &mut Gradients,
) {
    if let Some(dbias) = linear.bias.and_then(|bias| gradients.get_mut(bias)) {
        add::bias_backward(dy, dbias);
    }
    let weight = weights.weight(linear.weight);
    let adapter = weights.low_rank(linear.weight, noise);
    let LowRankGradients { a, b, magnitude } =
        low_rank_gradients(gradients.several(weights.adapter_parameters(linear.weight)));
    let dz = adapter.and_then(|adapter| adapter.before_factors(weight, x, dy, magnitude));
    let dz = dz.as_ref().unwrap_or(dy);
    let into = LowRankGradients { a, b, magnitude: None };
    let u = adapter.and_then(|adapter| adapter.backward(x, dz, into, dx.is_some()));
    if let (Some(packed), Some(dw)) = (packed, gradients.get_mut(linear.weight)) {
        linear::backward_weight(dz, packed, dw);
    }
    if let Some((dx, store)) = dx {
        linear::backward_input(dz, weight, dx, store);
        if let (Some(adapter), Some(u)) = (adapter, &u) {
            adapter.backward_input(u, dx);
        }
    }
}
