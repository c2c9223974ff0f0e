//! The OLMoE architecture and its variants: configuration, parameters and their initial values, forward and backward.

pub mod adapter;
pub mod auxiliary;
pub mod batch;
pub mod config;
mod identity;
pub mod init;
pub mod intervention;
pub mod model;
mod modules;
pub mod parameters;
pub mod routing;
