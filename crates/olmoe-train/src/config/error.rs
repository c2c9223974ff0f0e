//! What can be wrong with a training configuration.

use std::path::PathBuf;

use olmoe_engine::SamplingError;
use olmoe_model::config::ConfigError;

/// Why a training configuration cannot be read, or training cannot begin with it.
#[derive(Debug, thiserror::Error)]
pub enum TrainConfigError {
    /// The file cannot be read, or is not YAML.
    #[error(transparent)]
    File(ConfigError),
    /// Something is wrong in a file; the rest says what.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<TrainConfigError>,
    },
    /// The `model` section is wrong.
    #[error("in the section `model`: {0}")]
    Model(ConfigError),
    /// A file without a model.
    #[error("there is no section `model`; a training configuration describes its model (see configs/)")]
    NoModel,
    /// A key that OLMo's configuration does not have.
    #[error("unknown key `{path}`{}", suggest(suggestion.as_deref()))]
    UnknownKey {
        /// The key with the sections it is in.
        path: String,
        /// The known key that comes closest, with its sections.
        suggestion: Option<String>,
    },
    /// A value of the wrong type.
    #[error("`{path}` must be {expected}, found {found}")]
    WrongType {
        /// The key with the sections it is in.
        path: String,
        /// What it must be.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// A name that is not among those of the key.
    #[error("`{path}` is `{found}`; it must be one of {}", allowed.join(", "))]
    UnknownName {
        /// The key with the sections it is in.
        path: String,
        /// What was found.
        found: String,
        /// The names that the key has.
        allowed: &'static [&'static str],
    },
    /// A value out of its range, or one that does not fit another.
    #[error("`{path}` is {found}; {problem}")]
    Value {
        /// The key with the sections it is in.
        path: String,
        /// What was found.
        found: String,
        /// What is wrong with it, and what to set.
        problem: &'static str,
    },
    /// A setting of the draws of `samples`.
    #[error("in the section `samples`: {0}")]
    Samples(SamplingError),
    /// A duration that is none.
    #[error(
        "`{path}` is `{found}`; expected a number of steps, tokens such as 2e12T, or whole epochs such as 1ep, at most 2^53 \
         of them"
    )]
    Duration {
        /// The key with the sections it is in.
        path: String,
        /// What was found.
        found: String,
    },
    /// An override that is none.
    #[error("`{text}` is no override: {problem}; expected --section.key=value")]
    Override {
        /// What was given.
        text: String,
        /// Why it cannot be applied.
        problem: String,
    },
    /// An interpolation that cannot be resolved.
    #[error("`{path}`: cannot resolve `{text}`: {problem}")]
    Interpolation {
        /// The key with the sections it is in.
        path: String,
        /// The interpolation.
        text: String,
        /// Why, and what to do.
        problem: String,
    },
    /// A setting that training cannot begin without.
    #[error("`{path}` is not set; {advice}")]
    Missing {
        /// The key with the sections it is in.
        path: &'static str,
        /// What to set.
        advice: &'static str,
    },
    /// A file of data that is not there.
    #[error(
        "`{path}` names {file}, which cannot be read ({source}); {missing} of {count} files of `{path}` are missing"
    )]
    Data {
        /// The key with the sections it is in.
        path: String,
        /// The first such file.
        file: String,
        /// How many cannot be read.
        missing: usize,
        /// How many there are.
        count: usize,
        /// What the system said of the first.
        source: std::io::Error,
    },
}

fn suggest(suggestion: Option<&str>) -> String {
    match suggestion {
        Some(known) => format!("; did you mean `{known}`?"),
        None => "; remove it".to_owned(),
    }
}
