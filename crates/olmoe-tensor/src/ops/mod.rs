//! The operations: one file each, formula, forward, backward, tests.

pub mod activation;
pub mod adamw;
pub mod add;
pub mod attention;
pub mod clip;
pub mod cross_entropy;
pub mod embedding;
pub mod global_norm;
pub mod grouped_linear;
mod lanes;
pub mod linear;
pub mod lionw;
pub mod low_rank;
pub mod mlp;
pub mod noise;
pub mod norm;
pub mod rmsprop;
pub mod rope;
pub mod router;
pub mod summary;
