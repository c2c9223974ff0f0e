//! Files of models and training runs.
//!
//! | module | what it holds |
//! |---|---|
//! | [`open`] | what a path holds: format, configuration, tensors |
//! | [`checkpoint`] | a checkpoint matched with its model, read by canonical parameter |
//! | [`inference`] | a checkpoint loaded into a model; `packed`: the file that keeps its packed weights |
//! | [`convert`] | writing weights as Hugging Face, OLMo or GGUF, with proof |
//! | [`fidelity`] | the proof: hashes of what was written against what is read, and the error of rounding |
//! | [`weights`] | weights by canonical parameter: of a checkpoint, or fresh |
//! | [`upcycle`], [`soup`] | weights made of others: a mixture of a dense model, the average of several |
//! | [`companions`] | what lies beside the weights: tokenizer, chat template, settings for generation |
//! | `layout` | how parameters lie in a format's tensors |
//! | [`huggingface`], [`olmo`], [`gguf`], `training` | the formats: a table each, and what else is theirs |
//! | [`safetensors`] | the file format: headers, streaming writer, shards and their index |
//! | [`torch`], [`pickle`], [`zip`], [`olmo_keys`] | PyTorch's files and keys, read without running anything |
//! | [`save`] | checkpoints of a training run: written so that no crash loses one, verified before use |
//! | [`disk`] | the file-system operations of a save, as a seam for faults |
//! | [`hub`] | models from the Hugging Face hub |
//! | [`read_at`], [`file_name`] | reading at a position; which names found inside files may become paths |

pub mod checkpoint;
pub mod companions;
pub mod convert;
pub mod disk;
mod error;
pub mod fidelity;
pub mod file_name;
pub mod gguf;
pub mod hub;
pub mod huggingface;
pub mod inference;
mod layout;
mod loading;
pub mod olmo;
pub mod olmo_keys;
pub mod open;
mod output;
mod packed;
pub mod pickle;
pub mod read_at;
pub mod safetensors;
pub mod save;
pub mod soup;
mod stand_in;
mod step;
pub mod torch;
mod training;
pub mod upcycle;
pub mod weights;
pub mod zip;

pub use checkpoint::Checkpoint;
pub use error::CheckpointError;
pub use olmoe_tensor::encoding;
