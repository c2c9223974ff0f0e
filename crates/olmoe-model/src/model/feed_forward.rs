//! The feed-forward layer: one MLP, or a router, its experts and perhaps a shared one.

use olmoe_tensor::gemm::{Operand, Store};
use olmoe_tensor::ops::linear::{self, Input, pack_saved};
use olmoe_tensor::ops::router::{self, Assignment, DROPPED};
use olmoe_tensor::ops::{add, mlp};
use olmoe_tensor::tensor::Tensor;

use super::gradients::Gradients;
use super::weights::Weights;
use crate::config::Moe;
use crate::modules::{FeedForwardModule, MlpModule, MoeModule};
use crate::routing::LayerRouting;

/// What the backward pass needs beside the input and the routing.
pub(super) struct Saved {
    /// Which slots the experts computed; none for a dense layer.
    assignment: Option<Assignment>,
    /// Of the experts, or of the dense layer.
    mlp: mlp::Saved,
    shared_expert: Option<mlp::Saved>,
}

/// How the auxiliary losses reach a layer's router, as [`router::backward`] takes it.
#[derive(Clone, Copy)]
pub(super) struct RouterGradients<'a> {
    pub(super) dprobs: Option<(&'a [f32], &'a [u32])>,
    pub(super) z: f32,
}

/// The tokens an expert may take in a batch of so many; none when there is no limit.
fn capacity(moe: &Moe, tokens: usize) -> Option<usize> {
    let share = (moe.top_k * tokens) as f64 / moe.num_experts as f64;
    let limit = (f64::from(moe.capacity_factor?) * share) as usize;
    (limit > 0).then_some(limit)
}

/// Where the routing of a mixture comes from.
pub(super) enum Routed<'a> {
    /// The router decides, and the record has it from then on.
    Anew(&'a mut Vec<LayerRouting>),
    /// The router has decided: this repeats a pass whose results were dropped.
    Before(Option<&'a LayerRouting>),
}

/// `y [T, D]` of `x [T, D]`.
pub(super) fn forward(
    weights: &Weights,
    layer: usize,
    module: &FeedForwardModule,
    x_td: &Tensor,
    dense: &Assignment,
    routed: Routed<'_>,
) -> (Tensor, Saved) {
    match module {
        FeedForwardModule::Dense(module) => {
            let (y_td, mlp) = mlp_forward(weights, module, x_td, dense);
            (y_td, Saved { assignment: None, mlp, shared_expert: None })
        }
        FeedForwardModule::Moe(module) => {
            let moe = weights.config.moe().expect("a mixture module comes from a mixture configuration");
            let capacity = capacity(moe, x_td.rows());
            let assignment = match routed {
                Routed::Before(known) => {
                    let known = known.expect("a forward pass records the routing of every mixture layer");
                    router::assign(&known.routing, capacity)
                }
                Routed::Anew(record) => {
                    let logits_te = Input::new(x_td).times(weights.weight(module.router));
                    let routing = router::forward(logits_te, moe.top_k, moe.normalize_top_k);
                    let assignment = router::assign(&routing, capacity);
                    record.push(LayerRouting { layer, routing, load_e: assignment.load_e.clone() });
                    assignment
                }
            };
            experts(weights, module, x_td, dense, assignment)
        }
    }
}

fn experts(
    weights: &Weights,
    module: &MoeModule,
    x_td: &Tensor,
    dense: &Assignment,
    assignment: Assignment,
) -> (Tensor, Saved) {
    let (mut y_td, mlp) = mlp_forward(weights, &module.experts, x_td, &assignment);
    if let Some(bias) = weights.optional(module.bias) {
        add::add_bias(&mut y_td, bias);
    }
    let shared_expert = module.shared_expert.map(|shared| {
        let (shared_td, saved) = mlp_forward(weights, &shared, x_td, dense);
        add::add_assign(&mut y_td, &shared_td);
        saved
    });
    (y_td, Saved { assignment: Some(assignment), mlp, shared_expert })
}

fn mlp_forward(weights: &Weights, module: &MlpModule, x_td: &Tensor, assignment: &Assignment) -> (Tensor, mlp::Saved) {
    let (out_sd, saved) = mlp::experts(mlp::dispatch(x_td, assignment), &weights.mlp(module), true);
    (mlp::combine(out_sd, assignment), saved.expect("it was to be kept"))
}

fn mlp_backward(
    weights: &Weights,
    module: &MlpModule,
    x_td: &Tensor,
    assignment: &Assignment,
    saved: &mlp::Saved,
    dy_td: &Tensor,
    gradients: &mut Gradients,
) -> (Tensor, olmoe_tensor::memory::Buffer<f32>) {
    let ids = [
        module.gate.map(|linear| linear.weight),
        Some(module.up.weight),
        Some(module.down.weight),
        module.gate.and_then(|linear| linear.bias),
        module.up.bias,
        module.down.bias,
    ];
    let [gate, up, down, gate_bias, up_bias, down_bias] = gradients.several(ids);
    let biases = mlp::Biases { gate: gate_bias, up: up_bias, down: down_bias };
    let into = mlp::Gradients { gate, up, down, biases };
    let (slots, output) = (mlp::dispatch(x_td, assignment), mlp::combine_backward(dy_td, assignment));
    let (dx_sd, dweight_s) = mlp::experts_backward(slots, &weights.mlp(module), saved, output, into, true);
    (mlp::dispatch_backward(dx_sd.expect("asked for"), assignment), dweight_s)
}

/// The gradient of `x`.
pub(super) fn backward(
    weights: &Weights,
    module: &FeedForwardModule,
    x_td: &Tensor,
    dense: &Assignment,
    saved: Saved,
    known: Option<&LayerRouting>,
    auxiliary: RouterGradients<'_>,
    dy_td: &Tensor,
    gradients: &mut Gradients,
) -> Tensor {
    match (module, saved.assignment) {
        (FeedForwardModule::Dense(module), _) => {
            mlp_backward(weights, module, x_td, dense, &saved.mlp, dy_td, gradients).0
        }
        (FeedForwardModule::Moe(module), Some(assignment)) => {
            let known = known.expect("a forward pass records the routing of every mixture layer");
            let normalize = weights.config.moe().is_some_and(|moe| moe.normalize_top_k);
            if let Some(bias) = module.bias {
                add::bias_backward(dy_td, gradients.get_mut(bias));
            }
            let (mut dx_td, dweight_s) =
                mlp_backward(weights, &module.experts, x_td, &assignment, &saved.mlp, dy_td, gradients);
            if let (Some(shared), Some(saved)) = (&module.shared_expert, &saved.shared_expert) {
                let (shared_dx, _) = mlp_backward(weights, shared, x_td, dense, saved, dy_td, gradients);
                add::add_assign(&mut dx_td, &shared_dx);
            }
            let mut dweights_tk = Tensor::scratch(assignment.slot_tk.shape());
            for (d, slot) in dweights_tk.iter_mut().zip(assignment.slot_tk.iter()) {
                *d = if *slot == DROPPED { 0.0 } else { dweight_s[*slot as usize] };
            }
            let dlogits_te = router::backward(&known.routing, &dweights_tk, normalize, auxiliary.dprobs, auxiliary.z);
            let x = pack_saved(x_td, Operand::F32);
            linear::backward_weight(&dlogits_te, &x, gradients.get_mut(module.router));
            linear::backward_input(&dlogits_te, weights.weight(module.router), &mut dx_td, Store::Accumulate);
            dx_td
        }
        (FeedForwardModule::Moe(_), None) => unreachable!("a mixture saves its assignment"),
    }
}
