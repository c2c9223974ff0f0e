//! The model: parameters, forward pass, backward pass.
//!
//! T tokens, D model width, L layers, V vocabulary, E experts, K choices. `h` is the residual stream `[T, D]`:
//! `h = embed(ids)`, then in every layer `h += attention(norm(h))` and `h += feed_forward(norm(h))` (`residual`),
//! then the final norm; the objective (`objective`) takes it from there through the head.
//!
//! One forward pass serves training, evaluation and generation. What it keeps for the backward pass is [`Keep`]'s choice;
//! what the routers decided is always in the [`RoutingRecord`].

mod attention;
mod failure;
mod feed_forward;
mod footprint;
mod forms;
mod gradients;
mod objective;
mod pass;
mod residual;
mod weights;

pub use attention::KvCache;
pub use gradients::Gradients;
pub use objective::{Losses, Objective};
pub use pass::{Activations, Keep};
pub use weights::{Model, ModelError, Precision};

pub use crate::modules::ParameterId;
pub use crate::routing::RoutingRecord;
