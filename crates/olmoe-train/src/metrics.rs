//! What a run writes down: a record a step, with the names that OLMo gives its metrics, and texts of the model.
//!
//! | file | what it holds |
//! |---|---|
//! | `record` | one step's names and values, and how they are a line of JSON |
//! | `sample` | a text that the model wrote, and how it is a line of JSON |
//! | `log` | `metrics.jsonl` and `samples.jsonl` of a run folder: appending, and going on after a resume |
//! | `read` | reading them, also while they are being written |
//! | `tensorboard` | the same records as an event file of TensorBoard |
//!
//! A name is data: the loop and the optimizer give them, nothing here depends on which there are, except where a
//! constant below says so.

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

/// The file of a run folder.
pub const FILE_NAME: &str = "metrics.jsonl";
/// Bytes that one line may have; a model of a hundred layers of a thousand experts stays below.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// Cross-entropy of the batch.
pub const LOSS: &str = "train/CrossEntropyLoss";
/// The rate of the first group of parameters.
pub const LEARNING_RATE: &str = "optim/learning_rate_group0";
/// Tokens that the run has seen.
pub const TOTAL_TOKENS: &str = "throughput/total_tokens";
/// Tokens a second.
pub const TOKENS_PER_SECOND: &str = "throughput/device/tokens_per_second";
/// Load of the busiest expert over the mean, of the layer where it is worst: 1 is balanced. Not a name of OLMo; see
/// [`Record::expert_load`].
pub const EXPERT_LOAD: &str = "train/MaxExpertLoad";
/// Steps that the run is to have. Not a name of OLMo; one record of a run that has it is enough for `olmoe runs` to
/// tell a finished run.
pub const MAX_STEPS: &str = "run/max_steps";

/// What a log has a line of JSON for.
pub trait Line: Serialize + DeserializeOwned {
    /// The file of a run folder.
    const FILE_NAME: &str;
    /// Such a line.
    const EXAMPLE: &str;
    /// The step that it is of.
    fn step(&self) -> u64;
}

/// The log of what steps measured.
pub type MetricsLog<D = LocalDisk> = Log<Record, D>;
/// The log of texts.
pub type SampleLog<D = LocalDisk> = Log<Sample, D>;
/// Reads what steps measured.
pub type Reader = Lines<Record>;

/// Why metrics could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The system said no.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// `open`, `read`, `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Not a file, but a pipe or a folder.
    #[error("{} is not a regular file; metrics are appended to one", path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// Another process appends to it.
    #[error("{} is being written by another process; stop it, or train into another folder", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A line that is no record, and not the last one, which a crash may have cut.
    #[error(
        "{}, line {line}: {reason}; expected an object such as {example}; remove or mend this line",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
        /// A good one.
        example: &'static str,
    },
    /// A line longer than any record.
    #[error("{}, line {line}: more than {MAX_LINE_BYTES} bytes without a line break; this is no file of metrics", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
    },
}

impl MetricsError {
    /// Names what was done to which file.
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MetricsError {
        let path = path.to_owned();
        move |source| MetricsError::Io { what, path, source }
    }
}
