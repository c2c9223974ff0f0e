//! The metrics of a run: a record for each step, with OLMo's names of metrics, and texts that the model generated.
//!
//! | file | what it holds |
//! |---|---|
//! | `record` | the metrics of a step, and their line of JSON |
//! | `sample` | a text that the model generated, and its line of JSON |
//! | `log` | `metrics.jsonl` and `samples.jsonl` of a run folder: appending, and continuing after a resume |
//! | `read` | reading these files, also while they are being written |
//! | `tensorboard` | the same records as an event file of TensorBoard |
//!
//! Names are data: the training loop and the optimizer supply them. Only the names below have a meaning here.

mod log;
mod read;
mod record;
mod sample;
mod tensorboard;

pub use log::Log;
pub use read::{Lines, is_being_written};
pub use record::Record;
pub use sample::Sample;
pub use tensorboard::EventFile;

use std::io;
use std::path::{Path, PathBuf};

use olmoe_checkpoint::disk::LocalDisk;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The name of the file in a run folder.
pub const FILE_NAME: &str = "metrics.jsonl";
/// The longest line in bytes; that of a model with a hundred layers of a thousand experts is shorter.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// Cross-entropy of the batch.
pub const LOSS: &str = "train/CrossEntropyLoss";
/// The learning rate of the first group of parameters.
pub const LEARNING_RATE: &str = "optim/learning_rate_group0";
/// The number of tokens that the run has seen.
pub const TOTAL_TOKENS: &str = "throughput/total_tokens";
/// Tokens per second.
pub const TOKENS_PER_SECOND: &str = "throughput/device/tokens_per_second";
/// The load of the busiest expert over the mean, in the worst layer: 1 is balanced. Not a name of OLMo; see
/// [`Record::expert_load`].
pub const EXPERT_LOAD: &str = "train/MaxExpertLoad";
/// The number of steps of the run. Not a name of OLMo. One record with this metric is enough for `olmoe runs` to
/// recognise a finished run.
pub const MAX_STEPS: &str = "run/max_steps";

/// A type that is logged as lines of JSON.
pub trait Line: Serialize + DeserializeOwned {
    /// The name of the file in a run folder.
    const FILE_NAME: &str;
    /// An example of a line.
    const EXAMPLE: &str;
    /// The step that the line belongs to.
    fn step(&self) -> u64;
}

/// The log of the metrics of steps.
pub type MetricsLog<D = LocalDisk> = Log<Record, D>;
/// The log of generated texts.
pub type SampleLog<D = LocalDisk> = Log<Sample, D>;
/// Reads the metrics of steps.
pub type Reader = Lines<Record>;

/// Why metrics could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// An error of the system.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// The attempted action: `open`, `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A path that is not a regular file, but a folder or a pipe.
    #[error("{} is not a regular file; metrics are appended to one", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Another process is appending to the file.
    #[error("{} is being written by another process; stop it, or train into another folder", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// An invalid line before the last one. Only the last line may be incomplete, after a crash.
    #[error(
        "{}, line {line}: {reason}; expected an object such as {example}; remove or correct this line",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
        /// A valid line.
        example: &'static str,
    },
    /// A line longer than any record.
    #[error("{}, line {line}: more than {MAX_LINE_BYTES} bytes without a line break; this is not a file of metrics", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
    },
}

impl MetricsError {
    /// Adds the action and the file to an error of the system.
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MetricsError {
        let path = path.to_owned();
        move |source| MetricsError::Io { what, path, source }
    }
}
