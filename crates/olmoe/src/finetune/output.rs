//! The adapters of a run, and what it leaves: a model or an adapter that other programs load.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::convert::{Conversion, Target};
use olmoe_checkpoint::huggingface::Experts;
use olmoe_checkpoint::save::LATEST;
use olmoe_model::adapter::Adapter;
use olmoe_model::config::ModelConfig;
use olmoe_train::finetune::config::{FinetuneConfig, OutputFormat};
use olmoe_train::finetune::{Base, Finetune};

use super::opening::Opened;
use crate::output::{is_quiet, note};

/// The adapters of a run.
pub(super) struct Adapters {
    pub(super) list: Vec<Adapter>,
    /// The numbers that they begin with, where these are not fresh.
    pub(super) start: Option<Start>,
}

/// Numbers of adapters.
pub(super) struct Start {}

impl Start {
    /// A base that begins with them.
    pub(super) fn under<'a>(self, base: Base<'a>) -> Base<'a> {
        base
    }
}

/// The adapters that a configuration asks for.
pub(super) fn adapters(config: &FinetuneConfig, model: &ModelConfig) -> anyhow::Result<Option<Adapters>> {
    let Some(settings) = config.adapter_settings() else { return Ok(None) };
    Ok(Some(Adapters { list: settings.resolve(model)?, start: None }))
}

/// Writes what the run leaves.
pub(super) fn write(config: &FinetuneConfig, opened: &Opened, trainer: &Finetune) -> anyhow::Result<()> {
    let folder = trainer.task().settings().saving.folder.clone();
    if config.output_format == OutputFormat::None {
        return Ok(());
    }
    if !trainer.task().record().whole {
        bail!("not yet");
    }
    let (name, target) = target(config.output_format);
    let out = folder.join(name);
    let checkpoint = Checkpoint::open(&folder.join(LATEST))?;
    convert(&checkpoint, opened, target, &out)?;
    say(&out);
    Ok(())
}

/// The name of the model in the folder of a run, and how it is written.
fn target(format: OutputFormat) -> (&'static str, Target) {
    match format {
        OutputFormat::Olmo => ("model-olmo", Target::Olmo { dtype: None }),
        OutputFormat::Gguf => ("model.gguf", Target::Gguf { mix: None }),
        OutputFormat::Hf | OutputFormat::None => {
            ("model", Target::HuggingFace { experts: Experts::Separate, dtype: None })
        }
    }
}

fn convert(
    weights: &dyn olmoe_checkpoint::weights::Weights,
    opened: &Opened,
    target: Target,
    out: &Path,
) -> anyhow::Result<()> {
    let conversion = Conversion::plan(weights, &opened.companions, target)?;
    conversion.notices.iter().for_each(note);
    conversion.run(out, true, &|_| {}).with_context(|| format!("writing {}", out.display()))?;
    Ok(())
}

fn say(out: &PathBuf) {
    if !is_quiet() {
        eprintln!("written: {}", out.display());
    }
}
