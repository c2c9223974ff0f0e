//! The feed-forward layer: one MLP, or a mixture of experts with a router and, in some models, a shared expert.

use olmoe_tensor::gemm::{Operand, Store};
use olmoe_tensor::memory::Buffer;
use olmoe_tensor::ops::linear::pack_saved;
use olmoe_tensor::ops::router::{self, Assignment, DROPPED};
use olmoe_tensor::ops::{add, mlp};
use olmoe_tensor::tensor::Tensor;

use super::gradients::Gradients;
use super::linear::{self, low_rank_gradients};
use super::weights::Weights;
use crate::batch::TokenNoise;
use crate::config::Moe;
use crate::intervention;
use crate::modules::{FeedForwardModule, Linear, MlpModule, MoeModule, ParameterId};
use crate::routing::LayerRouting;

/// What the backward pass needs in addition to the input and the routing.
pub(super) struct FeedForwardSaved {
    /// The slots that the experts computed; `None` for a dense layer.
    assignment: Option<Assignment>,
    /// What the experts or the dense layer saved; `None` where it was not kept.
    mlp: Option<mlp::MlpSaved>,
    shared_expert: Option<mlp::MlpSaved>,
}

/// The gradients of the auxiliary losses for the router of a layer, as arguments of [`router::backward`].
#[derive(Clone, Copy)]
pub(super) struct RouterGradients<'a> {
    pub(super) dprobs: Option<(&'a [f32], &'a [u32])>,
    pub(super) z: f32,
}

/// The most choices that an expert takes in a batch of `tokens` tokens; `None` when there is no limit.
fn capacity(moe: &Moe, tokens: usize) -> Option<usize> {
    let share = (moe.top_k * tokens) as f64 / moe.num_experts as f64;
    let limit = (f64::from(moe.capacity_factor?) * share) as usize;
    (limit > 0).then_some(limit)
}

/// Where the routing of a mixture-of-experts layer comes from.
pub(super) enum Routed<'a> {
    /// The router is run, and its routing is added to the record.
    New(&'a mut Vec<LayerRouting>),
    /// The routing of a previous pass is used, of which this pass recomputes the results.
    Known(Option<&'a LayerRouting>),
}

/// `y [T, D]` of `x [T, D]`, and with `keep` what the backward pass needs.
pub(super) fn forward(
    weights: &Weights,
    noise: Option<&TokenNoise>,
    layer: usize,
    module: &FeedForwardModule,
    x_td: &Tensor,
    dense: &Assignment,
    routed: Routed<'_>,
    keep: bool,
) -> (Tensor, FeedForwardSaved) {
    match module {
        FeedForwardModule::Dense(module) => {
            let (y_td, mlp) = mlp_forward(weights, noise, module, x_td, dense, keep);
            (y_td, FeedForwardSaved { assignment: None, mlp, shared_expert: None })
        }
        FeedForwardModule::Moe(module) => {
            let moe = weights.config.moe().expect("a module with experts comes from a configuration with experts");
            let capacity = capacity(moe, x_td.rows());
            let assignment = match routed {
                Routed::Known(known) => {
                    let known = known.expect("a forward pass records the routing of every mixture-of-experts layer");
                    router::assign(&known.routing, capacity)
                }
                Routed::New(record) => {
                    let [mut logits_te] = linear::forward(weights, noise, x_td, [router(module)]);
                    intervention::ban(&weights.interventions, layer, &mut logits_te);
                    let mut routing = router::forward(logits_te, moe.top_k, moe.normalize_top_k);
                    intervention::silence(&weights.interventions, layer, &mut routing);
                    let assignment = router::assign(&routing, capacity);
                    record.push(LayerRouting { layer, routing, load_e: assignment.load_e.clone() });
                    assignment
                }
            };
            experts(weights, noise, module, x_td, dense, assignment, keep)
        }
    }
}

fn experts(
    weights: &Weights,
    noise: Option<&TokenNoise>,
    module: &MoeModule,
    x_td: &Tensor,
    dense: &Assignment,
    assignment: Assignment,
    keep: bool,
) -> (Tensor, FeedForwardSaved) {
    let (mut y_td, mlp) = mlp_forward(weights, noise, &module.experts, x_td, &assignment, keep);
    if let Some(bias) = weights.optional(module.bias) {
        add::add_bias(&mut y_td, bias);
    }
    let shared_expert = module.shared_expert.and_then(|shared| {
        let (shared_td, saved) = mlp_forward(weights, noise, &shared, x_td, dense, keep);
        add::add_assign(&mut y_td, &shared_td);
        saved
    });
    (y_td, FeedForwardSaved { assignment: Some(assignment), mlp, shared_expert })
}

fn mlp_forward(
    weights: &Weights,
    noise: Option<&TokenNoise>,
    module: &MlpModule,
    x_td: &Tensor,
    assignment: &Assignment,
    keep: bool,
) -> (Tensor, Option<mlp::MlpSaved>) {
    let (out_sd, saved) = mlp::experts(mlp::dispatch(x_td, assignment), &weights.mlp(module, noise), keep);
    (mlp::combine(out_sd, assignment), saved)
}

/// The router as a linear layer.
fn router(module: &MoeModule) -> Linear {
    Linear { weight: module.router, bias: None }
}

/// The parameters of an MLP: of the gate, up and down projection the weight, the bias, A, B and the magnitude.
fn parameters(weights: &Weights, module: &MlpModule) -> [Option<ParameterId>; 15] {
    let of = |linear: Option<Linear>| {
        let [a, b, magnitude] = linear.map_or([None; 3], |linear| weights.adapter_parameters(linear.weight));
        [linear.map(|linear| linear.weight), linear.and_then(|linear| linear.bias), a, b, magnitude]
    };
    let mut all = [None; 15];
    for (into, linear) in all.chunks_exact_mut(5).zip([module.gate, Some(module.up), Some(module.down)]) {
        into.copy_from_slice(&of(linear));
    }
    all
}

/// Accumulates the gradients of the parameters; returns the gradients of `x`, with `input`, and of the weights of the
/// slots.
fn mlp_backward(
    weights: &Weights,
    noise: Option<&TokenNoise>,
    module: &MlpModule,
    x_td: &Tensor,
    assignment: &Assignment,
    saved: Option<&mlp::MlpSaved>,
    dy_td: &Tensor,
    input: bool,
    gradients: &mut Gradients,
) -> (Option<Tensor>, Buffer<f32>) {
    let saved = saved.expect("a backward pass follows a forward pass that keeps something");
    #[rustfmt::skip]
    let [
        gate, gate_bias, gate_a, gate_b, gate_m,
        up, up_bias, up_a, up_b, up_m,
        down, down_bias, down_a, down_b, down_m,
    ] = gradients.several(parameters(weights, module));
    let into = mlp::MlpGradients {
        gate,
        up,
        down,
        biases: mlp::PerMatrix { gate: gate_bias, up: up_bias, down: down_bias },
        adapters: mlp::PerMatrix {
            gate: Some(low_rank_gradients([gate_a, gate_b, gate_m])),
            up: Some(low_rank_gradients([up_a, up_b, up_m])),
            down: Some(low_rank_gradients([down_a, down_b, down_m])),
        },
    };
    let output = mlp::combine_backward(dy_td, assignment);
    let slots = mlp::dispatch(x_td, assignment);
    let (dx_sd, dweight_s) = mlp::experts_backward(slots, &weights.mlp(module, noise), saved, output, into, input);
    (dx_sd.map(|dx_sd| mlp::dispatch_backward(dx_sd, assignment)), dweight_s)
}

/// Accumulates the gradients of the parameters; with `input`, returns the gradient of `x`.
pub(super) fn backward(
    weights: &Weights,
    noise: Option<&TokenNoise>,
    module: &FeedForwardModule,
    x_td: &Tensor,
    dense: &Assignment,
    saved: FeedForwardSaved,
    known: Option<&LayerRouting>,
    auxiliary: RouterGradients<'_>,
    dy_td: &Tensor,
    input: bool,
    gradients: &mut Gradients,
) -> Option<Tensor> {
    let mlp = saved.mlp.as_ref();
    match (module, saved.assignment) {
        (FeedForwardModule::Dense(module), _) => {
            let wanted = input || gradients.wants_any(parameters(weights, module));
            wanted.then(|| mlp_backward(weights, noise, module, x_td, dense, mlp, dy_td, input, gradients).0).flatten()
        }
        (FeedForwardModule::Moe(module), Some(assignment)) => {
            if let Some(dbias) = module.bias.and_then(|bias| gradients.get_mut(bias)) {
                add::bias_backward(dy_td, dbias);
            }
            let routed = input || weights.trains(router(module), gradients);
            if !routed && !gradients.wants_any(parameters(weights, &module.experts)) {
                shared_backward(weights, noise, module, x_td, dense, &saved.shared_expert, dy_td, None, gradients);
                return None;
            }
            let (mut dx_td, dweight_s) =
                mlp_backward(weights, noise, &module.experts, x_td, &assignment, mlp, dy_td, input, gradients);
            shared_backward(
                weights,
                noise,
                module,
                x_td,
                dense,
                &saved.shared_expert,
                dy_td,
                dx_td.as_mut(),
                gradients,
            );
            if routed {
                let known = known.expect("a forward pass records the routing of every mixture-of-experts layer");
                let dlogits_te = router_backward(weights, known, &assignment, &dweight_s, auxiliary);
                let packed = gradients.wants_any([Some(module.router)]).then(|| pack_saved(x_td, Operand::F32));
                let into = dx_td.as_mut().map(|dx_td| (dx_td, Store::Accumulate));
                linear::backward(weights, noise, router(module), x_td, packed.as_ref(), &dlogits_te, into, gradients);
            }
            dx_td
        }
        (FeedForwardModule::Moe(_), None) => unreachable!("a mixture-of-experts layer saves its assignment"),
    }
}

/// Backward of the shared expert, if there is one; adds to the gradient of `x`, if it is computed.
fn shared_backward(
    weights: &Weights,
    noise: Option<&TokenNoise>,
    module: &MoeModule,
    x_td: &Tensor,
    dense: &Assignment,
    saved: &Option<mlp::MlpSaved>,
    dy_td: &Tensor,
    dx_td: Option<&mut Tensor>,
    gradients: &mut Gradients,
) {
    let Some(shared) = &module.shared_expert else { return };
    if dx_td.is_none() && !gradients.wants_any(parameters(weights, shared)) {
        return;
    }
    let input = dx_td.is_some();
    let (shared_dx, _) = mlp_backward(weights, noise, shared, x_td, dense, saved.as_ref(), dy_td, input, gradients);
    if let (Some(dx_td), Some(shared_dx)) = (dx_td, shared_dx) {
        add::add_assign(dx_td, &shared_dx);
    }
}

/// The gradient of the logits of the router, from the gradients of the weights of the slots.
fn router_backward(
    weights: &Weights,
    known: &LayerRouting,
    assignment: &Assignment,
    dweight_s: &[f32],
    auxiliary: RouterGradients<'_>,
) -> Tensor {
    let normalize = weights.config.moe().is_some_and(|moe| moe.normalize_top_k);
    let mut dweights_tk = Tensor::scratch(assignment.slot_tk.shape());
    for (d, slot) in dweights_tk.iter_mut().zip(assignment.slot_tk.iter()) {
        *d = if *slot == DROPPED { 0.0 } else { dweight_s[*slot as usize] };
    }
    router::backward(&known.routing, &dweights_tk, normalize, auxiliary.dprobs, auxiliary.z)
}
