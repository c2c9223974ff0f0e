//! The files beside the weights of a checkpoint to write.

use std::collections::HashSet;
use std::path::PathBuf;

use clap::Args;
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::companions::Companions;

use crate::output::note;

/// The files beside the weights.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Beside {
    /// A tokenizer.json to use instead of the checkpoint's own
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Keep an end-of-text id of 0
    ///
    /// OLMoE's training configurations have 0, but their tokenizer ends documents with 50279; without this flag the id
    /// is corrected.
    #[arg(long)]
    keep_eos: bool,
}

impl Beside {
    /// Reads the files beside the weights of a checkpoint, and prints the notices about both.
    pub(crate) fn companions(&self, checkpoint: &Checkpoint) -> anyhow::Result<Companions> {
        let (companions, notices) = self.silently(checkpoint)?;
        notices.iter().for_each(note);
        Ok(companions)
    }

    /// Reads those of several checkpoints, in order. A notice about more than one is printed once.
    pub(crate) fn companions_of(&self, checkpoints: &[Checkpoint]) -> anyhow::Result<Vec<Companions>> {
        let (mut all, mut said) = (Vec::new(), HashSet::new());
        for checkpoint in checkpoints {
            let (companions, notices) = self.silently(checkpoint)?;
            for notice in notices {
                if !said.contains(&notice) {
                    note(&notice);
                    said.insert(notice);
                }
            }
            all.push(companions);
        }
        Ok(all)
    }

    fn silently(&self, checkpoint: &Checkpoint) -> anyhow::Result<(Companions, Vec<String>)> {
        let companions = Companions::of(checkpoint, self.tokenizer.as_deref(), self.keep_eos)?;
        let notices = checkpoint.contents().notices.iter().chain(&companions.notices).cloned().collect();
        Ok((companions, notices))
    }
}
