//! Why a checkpoint cannot be read or written.

use std::io;
use std::path::PathBuf;

use olmoe_data::{SpecialTokenError, TokenizerError};
use olmoe_model::config::ConfigError;
use olmoe_model::model::ModelError;

use crate::adapter::error::AdapterFileError;
use crate::gguf::container::GgufError;
use crate::gguf::model::GgufModelError;
use crate::gguf::parts::PartError;
use crate::gguf::vocabulary::GgufVocabularyError;
use crate::olmo_keys::KeyError;
use crate::safetensors::{IndexError, SafetensorsError};
use crate::save::SaveError;
use crate::torch::TorchError;

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system could not read or write.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Something that is not the expected file, in its place.
    #[error("{}: {what} in the place of the file; {advice}", path.display())]
    StandIn {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: &'static str,
        /// How to obtain the file.
        advice: &'static str,
    },
    /// A link whose target does not exist.
    #[error(
        "{}: a link to {}, which is not there; get it again: in a cache of the hub, `olmoe download` does",
        path.display(),
        target.display()
    )]
    Dangling {
        /// The link.
        path: PathBuf,
        /// The target.
        target: PathBuf,
    },
    /// Neither a file nor a folder of a known format.
    #[error(
        "{}: no checkpoint here ({found}); expected a GGUF file, or a folder with config.json and model.safetensors \
         (Hugging Face), with config.yaml and model.safetensors or model.pt (OLMo), or with manifest.json (training)",
        path.display()
    )]
    Unrecognised {
        /// The path given.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// Tensors without a configuration.
    #[error("{}: it has tensors but no configuration; give the folder of the whole checkpoint", path.display())]
    NoConfig {
        /// The file.
        path: PathBuf,
    },
    /// More than one model in a folder.
    #[error("{}: several GGUF files ({files}); give one of them", path.display())]
    Several {
        /// The folder.
        path: PathBuf,
        /// Their names.
        files: String,
    },
    /// The configuration is bad.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A bad safetensors file.
    #[error("{}: {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SafetensorsError,
    },
    /// A bad index of shards.
    #[error("{}: {source}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IndexError,
    },
    /// A bad PyTorch file.
    #[error("{}: {source}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TorchError,
    },
    /// A bad key of an OLMo file.
    #[error("{}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: KeyError,
    },
    /// A bad GGUF file.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: GgufError,
    },
    /// A GGUF file whose other parts are not there.
    #[error("{}: {source}", path.display())]
    Part {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: PartError,
    },
    /// A GGUF file of a model that cannot be used.
    #[error("{}: {source}", path.display())]
    GgufModel {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<GgufModelError>,
    },
    /// A GGUF file with a bad tokenizer.
    #[error("{}: {source}", path.display())]
    GgufVocabulary {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: GgufVocabularyError,
    },
    /// A training checkpoint that does not verify.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// A tokenizer file that cannot be used; the text names it.
    #[error(transparent)]
    TokenizerFile(#[from] TokenizerError),
    /// A tokenizer that cannot be used.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TokenizerError,
    },
    /// Special tokens that cannot be decided.
    #[error("{}: {source}", path.display())]
    SpecialTokens {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong.
        source: SpecialTokenError,
    },
    /// A tensor of the model that is not there.
    #[error("{}: tensor {tensor:?} {expected:?} is missing; is the download complete?", path.display())]
    Missing {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor, as the format names it.
        tensor: String,
        /// Its shape.
        expected: Vec<usize>,
    },
    /// A tensor that the model does not have.
    #[error(
        "{}: tensor {tensor:?} {found:?} belongs to no parameter of this model; does the configuration fit the weights?",
        path.display()
    )]
    Unexpected {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor, as the format names it.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A head of its own where the configuration has none.
    #[error(
        "{}: tensor {tensor:?} is not the embedding {embedding:?} (number {at} is {found} and {expected}), but the \
         configuration ties them; if the head is the model's own, set `tie_word_embeddings` to false in config.json, else \
         take the tensor out",
        path.display()
    )]
    TiedHead {
        /// The file.
        path: PathBuf,
        /// The head.
        tensor: String,
        /// The embedding.
        embedding: String,
        /// The first number that differs.
        at: usize,
        /// Its value in the head.
        found: f32,
        /// Its value in the embedding.
        expected: f32,
    },
    /// Two tensors of one name.
    #[error("{}: tensor {tensor:?} occurs twice", path.display())]
    Duplicate {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of another shape.
    #[error("{}: tensor {tensor:?} is {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape of the configuration.
        expected: Vec<usize>,
    },
    /// A tensor of numbers that are not read.
    #[error(
        "{}: tensor {tensor:?} is {found}; read are f32, f16, bf16 and q4_0 q4_1 q5_0 q5_1 q8_0 q4_k q5_k q6_k",
        path.display()
    )]
    Encoding {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A number, or the scale of a block, that is NaN or infinite.
    #[error(
        "{}: parameter {parameter}: number {at} of matrix {slab} is not finite; the weights are damaged or the training \
         diverged",
        path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Canonical name.
        parameter: String,
        /// Which matrix of a stack.
        slab: usize,
        /// The first such number, or the first of its block.
        at: usize,
    },
    /// A number outside the range of the type that is written.
    #[error(
        "{}: parameter {parameter}: number {at} of matrix {slab} is {value:e}, beyond what {encoding} can hold{}",
        path.display(),
        beyond(encoding)
    )]
    Overflow {
        /// The checkpoint, or the first of several.
        path: PathBuf,
        /// Canonical name.
        parameter: String,
        /// Which matrix of a stack.
        slab: usize,
        /// The index of the largest number of the matrix.
        at: usize,
        /// Its value.
        value: f32,
        /// The type to write.
        encoding: &'static str,
    },
    /// A format that has one file, and several asked for.
    #[error("{format} has all tensors in one file; do not set the size of shards")]
    OneFile {
        /// The format.
        format: &'static str,
    },
    /// A format that cannot express a parameter of the model.
    #[error("{format} cannot express parameter {parameter}")]
    NoPlace {
        /// The format.
        format: &'static str,
        /// Canonical name.
        parameter: String,
    },
    /// A model that a format has no words for.
    #[error("{format} cannot express this model: {reason}; {}", advise(holders))]
    CannotHold {
        /// The format.
        format: String,
        /// What of the model is lost.
        reason: String,
        /// The formats that hold it, as they are asked for.
        holders: Vec<&'static str>,
    },
    /// Quantised weights without a type to write.
    #[error("{}: its weights are quantised; set the type to write with --dtype f32 (exact) or bf16 (rounded)", path.display())]
    Quantized {
        /// The checkpoint.
        path: PathBuf,
    },
    /// Quantised weights to be quantised again.
    #[error(
        "{}: its weights are quantised ({found}); quantising again loses more than quantising the original. Use the \
         original, or allow it with --allow-requantize",
        path.display()
    )]
    Requantize {
        /// The checkpoint.
        path: PathBuf,
        /// An encoding of it.
        found: &'static str,
    },
    /// The result would replace an existing file or folder.
    #[error("{}: it exists already; give another name, or --force to replace it", path.display())]
    Exists {
        /// The result.
        path: PathBuf,
    },
    /// The result would replace what is no result of its kind.
    #[error("{}: {reason}, so it is not replaced; move that away, or give another name", path.display())]
    NotReplaced {
        /// The result, or what would be taken for the leftover of an interrupted run.
        path: PathBuf,
        /// What is there.
        reason: String,
    },
    /// Not enough room for the result.
    #[error(
        "{}: {:.1} GB are needed, {:.1} GB are free on that disk; make room or write elsewhere",
        path.display(),
        *needed as f64 / 1e9,
        *free as f64 / 1e9
    )]
    NoSpace {
        /// The result.
        path: PathBuf,
        /// Bytes of the result.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// What was written reads back differently.
    #[error(
        "{}: parameter {parameter}: matrix {slab} reads back differently from what was written; the disk or the memory \
         is faulty. The result was not kept",
        path.display()
    )]
    ReadBack {
        /// The result.
        path: PathBuf,
        /// Canonical name.
        parameter: String,
        /// Which matrix of a stack.
        slab: usize,
    },
    /// Not enough memory for the weights, caches and activations of the model.
    #[error(
        "{}: {:.2} GB of memory are needed: {:.2} GB for the weights at {precision}, {:.2} GB for caches and activations; \
         {:.2} GB are available. Use bf16, a smaller model, a shorter context, fewer sequences, or a machine with more memory",
        path.display(),
        *needed as f64 / 1e9,
        *weights as f64 / 1e9,
        *beside as f64 / 1e9,
        *available as f64 / 1e9
    )]
    Memory {
        /// The checkpoint.
        path: PathBuf,
        /// Bytes of the parameters, packed.
        weights: u64,
        /// Bytes that the caller needs in addition.
        beside: u64,
        /// The sum of both.
        needed: u64,
        /// Bytes available.
        available: u64,
        /// The precision asked for.
        precision: &'static str,
    },
    /// The weights of another model.
    #[error(
        "{}: found the parameter {found}, expected {expected}; the configuration is of another model than the checkpoint",
        path.display()
    )]
    OtherModel {
        /// The checkpoint.
        path: PathBuf,
        /// Its parameter, with the shape.
        found: String,
        /// That of the model.
        expected: String,
    },
    /// An adapter that cannot be read, combined or written.
    #[error("{}: {source}", path.display())]
    Adapter {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        source: AdapterFileError,
    },
    /// An adapter of a model that does not hold it as numbers.
    #[error("parameter {parameter} is not held as numbers, so it cannot be written; hold it as trained")]
    NotHeld {
        /// Its name.
        parameter: String,
    },
    /// The model cannot be made.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl CheckpointError {
    pub(crate) fn adapter(path: impl Into<PathBuf>) -> impl FnOnce(AdapterFileError) -> Self {
        let path = path.into();
        move |source| Self::Adapter { path, source }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Which formats to write instead.
fn advise(holders: &[&str]) -> String {
    match holders {
        [] => "no format that is written holds it, so keep it as it is".to_owned(),
        some => {
            let flags: Vec<String> = some.iter().map(|format| format!("--to {format}")).collect();
            format!("write it with {}", flags.join(" or "))
        }
    }
}

/// The advice where numbers are outside the range of a type.
fn beyond(encoding: &str) -> &'static str {
    match encoding {
        "f16" => " (up to 65504); write bf16 or f32, or let --clamp bring it into the range",
        "bf16" => "; write f32, or let --clamp bring it into the range",
        _ => " as the scale of a block; quantise to another type, or write bf16 or f32",
    }
}
