//! Batched generation.
//!
//! [`Engine`] runs many requests at once over one model. Requests come and go between any two steps; a step takes one
//! token of every sequence that is generating, then pieces of prompts, up to a budget. Keys and values that are already
//! there serve every request that begins alike. What a request gets depends on the model and on the request alone: not
//! on the requests beside it, the pieces in which its prompt was read, what was reused, or the threads.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let model: olmoe_model::model::Model = todo();
//! # fn todo<T>() -> T { std::process::exit(0) }
//! use std::ops::ControlFlow;
//! use std::sync::Arc;
//! use std::sync::atomic::AtomicBool;
//!
//! use olmoe_engine::{Engine, EngineConfig, EventKind, Request};
//!
//! let mut engine = Engine::new(Arc::new(model), None, EngineConfig::default())?;
//! let request = Request { max_tokens: Some(16), ..Request::new(vec![12871, 9669, 310]) };
//! let interrupt = AtomicBool::new(false);
//! engine.run_all([request], &interrupt, |_, what| {
//!     match what.map(|event| event.kind) {
//!         Ok(EventKind::Token(token)) => println!("{}", token.id),
//!         Ok(EventKind::Finished(finished)) => println!("{:?}", finished.reason),
//!         Err(refused) => println!("{refused}"),
//!     }
//!     ControlFlow::Continue(())
//! });
//! # Ok(())
//! # }
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`engine`] | [`Engine`]: submit, step, cancel |
//! | `run` | lists of requests, each to its end: [`Engine::run_all`], [`Engine::complete_all`] |
//! | [`config`] | the limits of an engine |
//! | [`request`] | what can be asked for, and why it is refused |
//! | [`settings`] | the same by name, each setting optional: as flags, in files, over the network |
//! | [`event`] | what comes back |
//! | [`completion`] | all that came back of a sample |
//! | [`sampling`] | from logits to a token: the settings and the order in which they act |
//! | `sequence` | one sample of a request on its way |
//! | `prefix` | keys and values kept for requests that begin alike |
//! | `text` | text from tokens, up to a stop string |
//! | `log_probs` | log-probabilities of the model's distribution |

pub mod completion;
pub mod config;
pub mod engine;
pub mod event;
mod log_probs;
mod prefix;
pub mod request;
mod run;
pub mod sampling;
mod sequence;
pub mod settings;
mod text;

pub use completion::Completion;
pub use config::{EngineConfig, EngineError};
pub use engine::{Engine, Load};
pub use event::{Alternative, Event, EventKind, FinishReason, Finished, GenerationError, Stop, Token, Usage};
pub use request::{Request, RequestId, SubmitError};
pub use sampling::{Sampling, SamplingError};
pub use settings::Settings;
