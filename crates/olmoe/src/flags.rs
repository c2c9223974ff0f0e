//! Flags that several commands share.
//!
//! | file | what it holds |
//! |---|---|
//! | `adapter` | adapters of a model, and how much of each |
//! | `model` | which model: a file, a folder, or a name of the hub |
//! | `computing` | threads, precision, the type of the caches |
//! | `loading` | a model loaded for inference |
//! | `generator` | a model that generates, and the limits of its engine |
//! | `settings` | how to generate, as flags, lines of a batch and by name |
//! | `format` | what is written of a checkpoint |
//! | `companions` | what goes beside its weights |
//! | `writing` | how it is written |
//! | `record` | what was written, as text or as JSON |
//! | `quiet` | `--quiet` |
//! | `number` | values of flags |
//! | `words` | a model, a result or a text without a flag |

mod adapter;
mod companions;
mod computing;
mod format;
mod generator;
mod loading;
mod model;
mod number;
mod quiet;
mod record;
pub(crate) mod settings;
mod words;
mod writing;

pub(crate) use adapter::AdapterArg;
pub(crate) use companions::Beside;
pub(crate) use computing::{CacheArg, OnePrecision, Precisions, Threads};
pub(crate) use format::{ExpertsArg, Form, Number, To, mix};
pub(crate) use generator::{Generator, Work};
pub(crate) use loading::{LoadingArgs, beside};
pub(crate) use model::{input, with_expanded_paths};
pub(crate) use number::{List, bytes as size, counts, ids, layers, positive, weights};
pub(crate) use quiet::Quiet;
pub(crate) use record::RecordArg;
pub(crate) use settings::{Line, Prompt, SettingsArgs};
pub(crate) use words::{InOut, model_first, no_more, text_last};
pub(crate) use writing::RunArgs;
