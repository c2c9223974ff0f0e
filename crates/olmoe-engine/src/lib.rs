//! Batched generation.
//!
//! [`Engine`] runs many requests at once over one model (continuous batching). Requests can be submitted and cancelled
//! between any two steps. A step takes one token of every sequence that is generating, then parts of prompts, up to a
//! budget. Keys and values of finished samples are reused by requests that begin with the same tokens. The result of a
//! request depends only on the model and the request: not on other requests, on how its prompt was divided among steps,
//! on what was reused, or on the number of threads.
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
//! | module | contents |
//! |---|---|
//! | [`engine`] | [`Engine`]: submit, step, cancel |
//! | `run` | running lists of requests to their end: [`Engine::run_all`], [`Engine::complete_all`] |
//! | [`config`] | the limits of an engine |
//! | [`request`] | requests, and why they are refused |
//! | [`settings`] | the settings of a request by name, each optional: as flags, in files, over the network |
//! | [`event`] | the events that the engine returns |
//! | [`completion`] | the complete result of a sample |
//! | [`scorer`] | [`Scorer`]: log-probabilities of many continuations, without generation |
//! | [`sampling`] | from logits to a token: the settings, and the order in which they are applied |
//! | `sequence` | one sample of a request while it waits or runs |
//! | `prefix` | keys and values that are kept for requests with the same first tokens |
//! | `text` | text from tokens, up to a stop string |
//! | `log_probs` | log-probabilities in the distribution of the model |

pub mod completion;
pub mod config;
pub mod engine;
pub mod event;
mod log_probs;
mod prefix;
pub mod request;
mod run;
pub mod sampling;
pub mod scorer;
mod sequence;
pub mod settings;
mod text;

pub use completion::Completion;
pub use config::{EngineConfig, EngineError};
pub use engine::{Engine, Load};
pub use event::{Alternative, Event, EventKind, FinishReason, Finished, GenerationError, Stop, Token, Usage};
pub use request::{Request, RequestId, SubmitError};
pub use sampling::{Sampling, SamplingError};
pub use scorer::{Pair, PairRouting, ScoreError, ScorePlan, ScoredTokens, Scorer, ScorerConfig};
pub use settings::Settings;
