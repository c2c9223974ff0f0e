//! One step of the residual stream, around attention and around the feed-forward layer alike.
//!
//! `h + f(norm(h))`, or with `norm_after` `h + norm(f(h))`.

use olmoe_tensor::ops::add::{add, add_assign};
use olmoe_tensor::ops::norm;
use olmoe_tensor::tensor::Tensor;

use super::gradients::Gradients;
use super::weights::Weights;
use crate::modules::NormModule;

/// What the backward pass needs beside the input `h`.
pub(super) struct Saved<S> {
    norm: norm::Saved,
    /// The norm's output, which `f` reads; with `norm_after` the norm's input, which `f` wrote.
    between: Tensor,
    inner: S,
}

/// What is left of a [`Saved`] between the passes.
pub(super) struct Kept<S> {
    norm: Option<(norm::Saved, Tensor)>,
    inner: S,
}

impl<S> Saved<S> {
    /// Keeps all of it.
    pub(super) fn keep_all(self) -> Kept<S> {
        Kept { norm: Some((self.norm, self.between)), inner: self.inner }
    }

    /// Keeps what `f` saved; of the norm only what cannot be had again without `f`.
    pub(super) fn keep_inner(self, weights: &Weights) -> Kept<S> {
        let norm = weights.config.norm_after.then_some((self.norm, self.between));
        Kept { norm, inner: self.inner }
    }
}

impl<S> Kept<S> {
    /// All of it again, the norm computed anew where it was not kept.
    pub(super) fn restore(self, weights: &Weights, module: &NormModule, h_td: &Tensor) -> Saved<S> {
        let (norm, between) = self.norm.unwrap_or_else(|| {
            let (between, norm) = norm::forward(h_td, &weights.norm(module));
            (norm, between)
        });
        Saved { norm, between, inner: self.inner }
    }
}

/// `h + f(norm(h))`, and what the backward pass needs.
pub(super) fn forward<S>(
    weights: &Weights,
    module: &NormModule,
    h_td: &Tensor,
    f: impl FnOnce(&Tensor) -> (Tensor, S),
) -> (Tensor, Saved<S>) {
    let parameters = weights.norm(module);
    if weights.config.norm_after {
        let (between, inner) = f(h_td);
        let (y_td, norm) = norm::forward(&between, &parameters);
        (add(h_td, &y_td), Saved { norm, between, inner })
    } else {
        let (between, norm) = norm::forward(h_td, &parameters);
        let (y_td, inner) = f(&between);
        (add(h_td, &y_td), Saved { norm, between, inner })
    }
}

/// The gradient of the input, if the `input` has one: `dh` becomes it. `f_backward(x, saved, dy, input, gradients)` gives the
/// gradient of `x` if its `input` has one.
pub(super) fn backward<S>(
    weights: &Weights,
    module: &NormModule,
    h_td: &Tensor,
    saved: Saved<S>,
    dh_td: &mut Tensor,
    input: bool,
    gradients: &mut Gradients,
    f_backward: impl FnOnce(&Tensor, S, &Tensor, bool, &mut Gradients) -> Option<Tensor>,
) {
    let Saved { norm, between, inner } = saved;
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

/// Backward of a norm with the gradients of its parameters.
pub(super) fn norm_backward(
    weights: &Weights,
    module: &NormModule,
    x_td: &Tensor,
    saved: &norm::Saved,
    dy_td: &Tensor,
    gradients: &mut Gradients,
) -> Tensor {
    let [dweight, dbias] = gradients.several([module.weight, module.bias]);
    norm::backward(x_td, &weights.norm(module), saved, dy_td, dweight, dbias)
}
