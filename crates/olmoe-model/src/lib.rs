//! The OLMoE architecture and its variants: configuration, parameters and their initial values.

pub mod config;
pub mod init;
pub mod parameters;
