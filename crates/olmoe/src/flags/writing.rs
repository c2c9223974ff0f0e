//! How a checkpoint is written.

use std::path::Path;

use clap::Args;
use olmoe_checkpoint::companions::Companions;
use olmoe_checkpoint::convert::{Conversion, Step, Target, Written};
use olmoe_checkpoint::weights::Weights;

use super::computing::Threads;
use super::quiet::Quiet;
use crate::output::note;
use crate::progress::Progress;

/// How results are written.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// Replace OUT: a file, or the folder of a checkpoint
    #[arg(long, help_heading = "Output")]
    force: bool,

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
        let conversion = Conversion::plan(source, companions, target)?;
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
        Ok(written?)
    }
}
