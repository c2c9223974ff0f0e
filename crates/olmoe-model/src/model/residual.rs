//! One step of the residual stream, around attention or around the feed-forward layer.
//!
//! `h + f(norm(h))`, or with `norm_after` `h + norm(f(h))`.

use olmoe_tensor::ops::add::{add, add_assign};
use olmoe_tensor::ops::norm;
use olmoe_tensor::tensor::Tensor;

use super::gradients::Gradients;
use super::weights::Weights;
use crate::modules::NormModule;

/// What the backward pass needs in addition to the input `h`.
pub(super) struct ResidualSaved<S> {
    norm: norm::NormSaved,
    /// The output of the norm, which `f` reads; with `norm_after` the input of the norm, which `f` wrote.
    between: Tensor,
    inner: S,
}

/// What is kept of a [`ResidualSaved`] between the forward and the backward pass.
pub(super) struct ResidualKept<S> {
    norm: Option<(norm::NormSaved, Tensor)>,
    inner: S,
}

impl<S> ResidualSaved<S> {
    /// Keeps all of it.
    pub(super) fn keep_all(self) -> ResidualKept<S> {
        ResidualKept { norm: Some((self.norm, self.between)), inner: self.inner }
    }

    /// Keeps what `f` saved, and of the norm only what cannot be recomputed without `f`.
    pub(super) fn keep_inner(self, weights: &Weights) -> ResidualKept<S> {
        let norm = weights.config.norm_after.then_some((self.norm, self.between));
        ResidualKept { norm, inner: self.inner }
    }
}

impl<S> ResidualKept<S> {
    /// Restores all of it; the norm is recomputed where it was not kept.
    pub(super) fn restore(self, weights: &Weights, module: &NormModule, h_td: &Tensor) -> ResidualSaved<S> {
        let (norm, between) = self.norm.unwrap_or_else(|| {
            let (between, norm) = norm::forward(h_td, &weights.norm(module));
            (norm, between)
        });
        ResidualSaved { norm, between, inner: self.inner }
    }
}

/// `h + f(norm(h))`, and what the backward pass needs.
pub(super) fn forward<S>(
    weights: &Weights,
    module: &NormModule,
    h_td: &Tensor,
    f: impl FnOnce(&Tensor) -> (Tensor, S),
) -> (Tensor, ResidualSaved<S>) {
    let parameters = weights.norm(module);
    if weights.config.norm_after {
        let (between, inner) = f(h_td);
        let (y_td, norm) = norm::forward(&between, &parameters);
        (add(h_td, &y_td), ResidualSaved { norm, between, inner })
    } else {
        let (between, norm) = norm::forward(h_td, &parameters);
        let (y_td, inner) = f(&between);
        (add(h_td, &y_td), ResidualSaved { norm, between, inner })
    }
}

/// Accumulates the gradients of the parameters; with `input`, turns `dh` into the gradient of the input.
/// `f_backward(x, saved, dy, input, gradients)` returns the gradient of `x` with its `input`.
pub(super) fn backward<S>(
    weights: &Weights,
    module: &NormModule,
    h_td: &Tensor,
    saved: ResidualSaved<S>,
    dh_td: &mut Tensor,
    input: bool,
    gradients: &mut Gradients,
    f_backward: impl FnOnce(&Tensor, S, &Tensor, bool, &mut Gradients) -> Option<Tensor>,
) {
    let ResidualSaved { norm, between, inner } = saved;
    let dx_td = if weights.config.norm_after {
        let dbetween = norm_backward(weights, module, &between, &norm, dh_td, gradients);
        f_backward(h_td, inner, &dbetween, input, gradients)
    } else {
        let input = input || gradients.wants_any([module.weight, module.bias]);
        let dbetween = f_backward(&between, inner, dh_td, input, gradients);
        dbetween.map(|dbetween| norm_backward(weights, module, h_td, &norm, &dbetween, gradients))
    };
    if let (true, Some(dx_td)) = (input, dx_td) {
        add_assign(dh_td, &dx_td);
    }
}

/// Backward of a norm; accumulates the gradients of its parameters.
pub(super) fn norm_backward(
    weights: &Weights,
    module: &NormModule,
    x_td: &Tensor,
    saved: &norm::NormSaved,
    dy_td: &Tensor,
    gradients: &mut Gradients,
) -> Tensor {
    let [dweight, dbias] = gradients.several([module.weight, module.bias]);
    norm::backward(x_td, &weights.norm(module), saved, dy_td, dweight, dbias)
}
