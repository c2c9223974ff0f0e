//! Training: what turns gradients into a better model.

pub mod metrics;
pub mod optimizer;
