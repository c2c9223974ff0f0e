//! Files of models and training runs.
//!
//! | module | contents |
//! |---|---|
//! | [`open`] | the contents of a path: format, configuration, tensors |
//! | [`checkpoint`] | a checkpoint matched with its model, read by canonical parameter |
//! | [`inference`] | a checkpoint loaded into a model; `packed`: a file with its packed weights |
//! | [`convert`] | writing weights as Hugging Face, OLMo or GGUF, with verification |
//! | [`fidelity`] | the verification: hashes of what was written and of what is read back, and rounding errors |
//! | [`weights`] | weights by canonical parameter, of a checkpoint or newly initialised |
//! | [`upcycle`], [`soup`] | weights made from others: a mixture of experts from a dense model, the average of several |
//! | [`adapter`] | LoRA and DoRA adapters: peft's three layouts and GGUF; [`merge`]: an adapter merged into the weights |
//! | [`companions`] | the files in addition to the weights: tokenizer, chat template, generation settings |
//! | [`conversation`] | the chat template of a model with the special tokens that it names |
//! | `layout` | the layout of parameters in the tensors of a format |
//! | [`huggingface`], [`olmo`], [`gguf`], `training` | the formats: a table for each, and what is specific to it |
//! | [`safetensors`] | the file format: headers, streaming writer, shards and their index |
//! | [`torch`], [`pickle`], [`zip`], [`olmo_keys`] | PyTorch's files and keys, read without executing anything |
//! | [`save`] | checkpoints of a training run: written so that no crash loses one, verified before use |
//! | [`disk`] | the file-system operations of a save, as an interface for injecting faults |
//! | [`hub`] | models from the Hugging Face hub; [`tls`]: encrypted connections |
//! | [`read_at`], [`file_name`] | reading at a position; which names that are read from files may be used as paths |

pub mod adapter;
pub mod checkpoint;
pub mod companions;
pub mod conversation;
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
pub mod merge;
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
pub mod tls;
pub mod torch;
mod training;
pub mod upcycle;
pub mod weights;
pub mod zip;

pub use checkpoint::Checkpoint;
pub use error::CheckpointError;
pub use olmoe_tensor::encoding;
