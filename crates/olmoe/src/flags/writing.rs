//! How a checkpoint is written.

use std::path::Path;

use clap::Args;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::convert::{Conversion, Manner, Step, Target, Written};
use olmoe_checkpoint::weights::Weights;

use super::computing::Threads;
use super::number::bytes;
use super::quiet::Quiet;
use crate::output::note;
use crate::progress::Progress;

/// How results are written.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// Replace OUT: a file, or the folder of a checkpoint
    #[arg(long, help_heading = "Output")]
    pub(crate) force: bool,

    /// Most bytes of tensors in a file, such as 5GB, 500MB or a number [default: 5GB for hf, one file for gguf]
    ///
    /// Several GGUF files get names such as OUT-00001-of-00003.gguf; any of them stands for all.
    #[arg(long, visible_alias = "split-max-size", value_name = "SIZE", value_parser = bytes, help_heading = "Output")]
    shard_size: Option<u64>,

    /// Bring numbers beyond the range of the type that is written into it; without this they are an error
    ///
    /// For --dtype f16, which ends at 65504, and bf16.
    #[arg(long, help_heading = "Output")]
    pub(crate) clamp: bool,

    /// Use files of the hub downloaded before; an error if one is missing
    #[arg(long)]
    pub(crate) offline: bool,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    _quiet: Quiet,
}

impl RunArgs {
    /// Writes the weights, with progress.
    pub(crate) fn write(
        &self,
        source: &dyn Weights,
        companions: &Companions,
        target: Target,
        output: &Path,
    ) -> anyhow::Result<Written> {
        self.threads.apply();
        let manner = Manner { shard_bytes: self.shard_size, clamp: self.clamp };
        let conversion = Conversion::plan(source, companions, target)?.manner(manner)?;
        conversion.notices.iter().for_each(note);
        let writing = Progress::new("writing", conversion.bytes());
        let comparing = std::sync::OnceLock::new();
        let total = conversion.bytes();
        let written = conversion.run(output, self.force, &|step| match step {
            Step::Written(bytes) => writing.advance(bytes),
            Step::Compared(bytes) => {
                comparing.get_or_init(|| Progress::new("comparing", total)).advance(bytes);
            }
        });
        let written = written?;
        if written.clamped > 0 {
            note(format_args!("numbers beyond the range of their type, brought into it: {}", written.clamped));
        }
        Ok(written)
    }
}
