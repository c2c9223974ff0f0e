//! Fine-tuning and alignment.
//!
//! | module | contents |
//! |---|---|
//! | [`config`] | the configuration of a run: open-instruct's flags as keys and flags |

pub mod config;
