//! Loading a model for inference, alike for every command.

use std::path::PathBuf;

use clap::Args;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::inference::{Loading, packed_cache_path};
use olmoe_checkpoint::weights::Weights;
use olmoe_model::model::{Model, Precision};
use olmoe_tensor::ops::attention::CacheType;

use super::adapter::AdapterArg;
use super::model::ModelArg;
use crate::output::note;
use crate::progress::Progress;

/// The bytes of the program itself: code, tokenizer, tables and small buffers.
const PROGRAM: u64 = 24 << 20;

/// The model, and how it is loaded.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct LoadingArgs {
    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    adapter: AdapterArg,

    /// Keep the packed weights in a file beside the model, or in DIR, and load from there the next time
    ///
    /// The file is as large as the model in memory. It is made again when it is damaged, and when the model, the
    /// precision or the packed format of this program changes. It can be deleted at any time.
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true)]
    packed_cache: Option<Option<PathBuf>>,
}

impl LoadingArgs {
    /// Opens the checkpoint and prints its notices.
    ///
    /// The first positional argument is the model unless the flag gives it.
    pub(crate) fn open(&self, words: &[&str]) -> anyhow::Result<Checkpoint> {
        let checkpoint = Checkpoint::open(&self.model.resolve(words)?.0)?;
        checkpoint.contents().notices.iter().for_each(note);
        Ok(checkpoint)
    }

    /// The positional arguments without the model.
    pub(crate) fn rest<'a>(&'a self, words: &[&'a str]) -> anyhow::Result<Vec<&'a str>> {
        self.model.rest(words)
    }

    /// What its adapters are recognised by.
    pub(crate) fn adapters(&self, checkpoint: &Checkpoint) -> anyhow::Result<Vec<String>> {
        self.adapter.fingerprints(checkpoint, self.model.offline)
    }

    /// Loads it, with its adapters beside the weights. Quantised matrices stay so with `keep_blocks`; `beside` are the bytes of
    /// [`beside`].
    ///
    /// Fails before reading if the model and `beside` do not fit the available memory.
    pub(crate) fn load(
        &self,
        checkpoint: &Checkpoint,
        precision: Precision,
        keep_blocks: bool,
        beside: u64,
    ) -> anyhow::Result<Model> {
        let packed_cache = self
            .packed_cache
            .as_ref()
            .map(|folder| packed_cache_path(Weights::origin(checkpoint), folder.as_deref(), precision));
        let adapter = self.adapter.read(checkpoint, self.model.offline)?;
        let progress = Progress::new("loading", checkpoint.bytes());
        let loading = Loading { precision, keep_blocks, beside, packed_cache, adapter };
        let mut loaded = checkpoint.load(&loading, &|bytes| progress.advance(bytes))?;
        drop(progress);
        if let Some(notice) = &loaded.notice {
            note(notice);
        }
        if let Some(bytes) = loaded.to_keep() {
            let progress = Progress::new("keeping", bytes);
            if let Err(error) = loaded.keep(&|bytes| progress.advance(bytes)) {
                note(format_args!("the packed weights are not kept: {error}"));
            }
        }
        Ok(loaded.model)
    }
}

/// The bytes that inference needs beside the weights: caches of type `kind` for sequences with room for these numbers
/// of tokens, a pass over `tokens` tokens with the logits of `rows` of them, and the program. With `keep_blocks`,
/// quantised matrices stay quantised.
pub(crate) fn beside(
    checkpoint: &Checkpoint,
    (precision, keep_blocks): (Precision, bool),
    (kind, sequences): (CacheType, &[usize]),
    (tokens, rows): (usize, usize),
) -> u64 {
    let config = Weights::config(checkpoint);
    let quantized = keep_blocks && Weights::main_encoding(checkpoint).is_quantized();
    let pass = config.pass_bytes(tokens, rows, precision, quantized);
    config.cache_bytes(kind, sequences).saturating_add(pass).saturating_add(PROGRAM)
}
