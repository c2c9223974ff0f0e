//! Why training cannot begin, or ends before its time.

use std::path::{Path, PathBuf};

use olmoe_checkpoint::CheckpointError;
use olmoe_checkpoint::save::SaveError;
use olmoe_data::instruct::InstructError;
use olmoe_data::pretrain::DataError;
use olmoe_data::{SpecialTokenError, TokenizerError};
use olmoe_engine::{EngineError, SubmitError};
use olmoe_eval::EvalError;
use olmoe_model::batch::BatchError;
use olmoe_model::config::ConfigError;
use olmoe_model::model::ModelError;

use crate::config::TrainConfigError;
use crate::finetune::FinetuneError;
use crate::optimizer::state::StateError;
use crate::preference::PreferenceError;
use olmoe_data::counted;

/// Why training cannot begin, or ends before its time. What was saved before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The configuration.
    #[error(transparent)]
    Config(Box<TrainConfigError>),
    /// What is wrong with a run of fine-tuning.
    #[error(transparent)]
    Finetune(Box<FinetuneError>),
    /// The data of fine-tuning.
    #[error(transparent)]
    Instruct(Box<InstructError>),
    /// The model's configuration.
    #[error(transparent)]
    ModelConfig(Box<ConfigError>),
    /// The model, or ids that it has no rows for.
    #[error(transparent)]
    Model(Box<ModelError>),
    /// The data.
    #[error(transparent)]
    Data(Box<DataError>),
    /// A setting of the data, in a file.
    #[error("{}: {source}", path.display())]
    Settings {
        /// The file of the configuration.
        path: PathBuf,
        /// What is wrong.
        source: Box<DataError>,
    },
    /// Documents of a batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A checkpoint cannot be saved, or the run's own cannot be loaded.
    #[error(transparent)]
    Save(Box<SaveError>),
    /// The checkpoint to begin from cannot be loaded.
    #[error(transparent)]
    Load(Box<CheckpointError>),
    /// The state of the optimizer cannot be restored.
    #[error(transparent)]
    State(Box<StateError>),
    /// The tokenizer of the samples.
    #[error("samples and tasks need the tokenizer of the data: {0}; set `tokenizer.identifier` to its tokenizer.json")]
    Tokenizer(Box<TokenizerError>),
    /// The tokens that end the samples.
    #[error("samples and tasks: {0}")]
    SpecialTokens(#[from] SpecialTokenError),
    /// A model that writes no texts and answers no questions.
    #[error("samples and tasks: {0}")]
    Samples(Box<EngineError>),
    /// A text that the model cannot go on from.
    #[error("`samples.prompts[{index}]`: {source}")]
    Prompt {
        /// Which, from 0.
        index: usize,
        /// Why.
        source: Box<SubmitError>,
    },
    /// Tasks that there is no data for.
    #[error("evaluators of the type downstream: {0}")]
    Downstream(Box<EvalError>),
    /// A task that was not answered.
    #[error("evaluators: {label}: {error}")]
    Task {
        /// The task.
        label: String,
        /// Why.
        error: String,
    },
    /// The state of the trainer in a checkpoint cannot be understood.
    #[error("{}: the state of the trainer: {source}; set reset_trainer_state to begin anew with these weights", path.display())]
    TrainerState {
        /// The checkpoint.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The position in the data is one in other data.
    #[error(
        "{}: it was saved {} into pass {epoch} over its data, and the data is another one now: {}. To go on \
         from there would train on some sequences twice and on others never. Set these back; or {advice}{}",
        path.display(), counted(*examples, "sequence"), differences.join("; "),
        if *own { "" } else { "; or reset_trainer_state=true to begin at step 0 with these weights" }
    )]
    OtherData {
        /// The checkpoint.
        path: PathBuf,
        /// The pass, from 0.
        epoch: u64,
        /// Sequences of the pass that are behind.
        examples: u64,
        /// What differs, each with both values.
        differences: Vec<String>,
        /// What there is to do else.
        advice: &'static str,
        /// Whether it is the run's own checkpoint, and not that of `load_path`.
        own: bool,
    },
    /// A file or folder beside the checkpoints.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process trains in the folder.
    #[error("save_folder {}: another process trains here; wait for it, or set another save_folder", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that holds a run already.
    #[error(
        "save_folder {} holds checkpoints up to step {newest}; set try_load_latest_save to go on from there, \
         save_overwrite to begin another run in it, or another save_folder",
        path.display()
    )]
    FolderInUse {
        /// The folder.
        path: PathBuf,
        /// Its newest checkpoint.
        newest: u64,
    },
    /// Not a single batch.
    #[error(
        "the data holds {} of {}, and global_train_batch_size is {batch}; take more data or a smaller batch",
        counted(*instances, "sequence"), counted(*length as u64, "token")
    )]
    TooLittleData {
        /// Sequences.
        instances: u64,
        /// Tokens of each.
        length: usize,
        /// Sequences of a batch.
        batch: u64,
    },
    /// Not enough memory.
    #[error(
        "training {parameters} parameters takes at least {:.1} GB, and {:.1} GB are free; choose a smaller model, \
         amp_bf16, or lionw, which keeps one moment",
        *needed as f64 / 1e9,
        *available as f64 / 1e9
    )]
    Memory {
        /// Parameters of the model.
        parameters: u64,
        /// Bytes without activations.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// A loss or a gradient that is NaN or infinite.
    #[error(
        "step {step}: {what}; {place}. Nothing was updated or saved; go on from the last checkpoint with a smaller \
             learning rate, or, in pretraining, past this batch with fast_forward_batches"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// What it is.
        what: String,
        /// Where it was seen first.
        place: String,
    },
    /// A weight that an update has made NaN or infinite.
    #[error(
        "step {step}: an update has made weights that are NaN or infinite: {place}. They are not saved, and what is in \
         memory is of no use; go on from the last checkpoint with a smaller learning rate"
    )]
    BadWeight {
        /// The step after which it was noticed.
        step: u64,
        /// The first one.
        place: String,
    },
}

impl TrainError {
    /// The same, with the file of the configuration named where one of its settings is at fault.
    #[must_use]
    pub fn in_file(self, path: &Path) -> TrainError {
        match self {
            TrainError::Config(source) => {
                TrainError::Config(Box::new(TrainConfigError::InFile { path: path.into(), source }))
            }
            TrainError::Data(source) if source.is_setting() => TrainError::Settings { path: path.into(), source },
            other => other,
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> TrainError {
        let path = path.into();
        move |source| TrainError::Io { action, path, source }
    }
}

impl From<PreferenceError> for TrainError {
    fn from(error: PreferenceError) -> TrainError {
        FinetuneError::from(error).into()
    }
}

/// The errors of other parts are boxed: they are large, and results are moved often.
macro_rules! boxed {
    ($($variant:ident: $error:ty,)*) => {
        $(impl From<$error> for TrainError {
            fn from(error: $error) -> TrainError {
                TrainError::$variant(Box::new(error))
            }
        })*
    };
}

boxed! {
    Config: TrainConfigError,
    Finetune: FinetuneError,
    Instruct: InstructError,
    ModelConfig: ConfigError,
    Model: ModelError,
    Data: DataError,
    Save: SaveError,
    Load: CheckpointError,
    State: StateError,
    Tokenizer: TokenizerError,
    Samples: EngineError,
}
