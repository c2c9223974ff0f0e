//! The OLMoE architecture and its variants: configuration, parameters and their initial values, forward and backward.

pub mod auxiliary;
pub mod batch;
pub mod config;
pub mod init;
pub mod model;
pub mod parameters;
pub mod routing;
