//! Evaluation of models.
//!
//! A [`Task`] is what is asked: questions, the requests of each, and the metrics that make numbers of the answers. It is
//! made of data and a description, [`suites`] has those of the field. A [`Backend`] answers requests: the program's own
//! model, or a server. Answers are written as they come, and a run that was killed goes on from what is there; metrics
//! are computed from the answers alone.

pub mod aliases;
pub mod answer;
pub mod answers;
pub mod backend;
pub mod compare;
pub mod encoding;
pub mod endpoint;
pub mod error;
pub mod judge;
mod lines;
pub mod metric;
pub mod programs;
pub mod record;
pub mod results;
pub mod run;
pub mod sandbox;
pub mod score;
pub mod source;
pub mod statistics;
pub mod suites;
pub mod tables;
pub mod task;

pub use answer::Answer;
pub use backend::local::{LocalBackend, LocalModel};
pub use backend::server::ServerBackend;
pub use backend::{Backend, BackendError};
pub use encoding::{Beginning, Encoding, EncodingError, TokenPair, encode, encode_after_examples};
pub use error::EvalError;
pub use metric::Metric;
pub use source::Roots;
pub use task::{Gold, Options, Prompt, Question, Request, Task};
