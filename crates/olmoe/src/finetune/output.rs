//! The adapters of a run, and what it leaves: a model or an adapter that other programs load.

use std::path::Path;

use anyhow::{Context, ensure};
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::adapter::{ADAPTER_FILES, AdapterWeights, FileLayout};
use olmoe_checkpoint::convert::{Conversion, Target};
use olmoe_checkpoint::encoding::Encoding;
use olmoe_checkpoint::huggingface::Experts;
use olmoe_checkpoint::merge::{Merged, MergedType, Survival};
use olmoe_checkpoint::weights::Weights;
use olmoe_model::adapter::Adapter;
use olmoe_model::config::ModelConfig;
use olmoe_tensor::dtype::DType;
use olmoe_train::finetune::config::{AdapterLayout, FinetuneConfig, OutputFormat};
use olmoe_train::finetune::{BaseModel, Finetune};
use olmoe_train::trainer::Outcome;

use super::opening::Opened;
use crate::flags::input;
use crate::output::{is_quiet, note};
use crate::usage::usage;

/// The adapters of a run.
pub(super) struct Adapters {
    pub(super) list: Vec<Adapter>,
    /// The numbers that they begin with, where these are not fresh.
    start: Option<AdapterWeights>,
}

impl Adapters {
    /// A base that begins with them.
    pub(super) fn over(self, base: BaseModel<'_>) -> BaseModel<'_> {
        match self.start {
            None => base,
            Some(weights) => {
                let fingerprint = weights.fingerprint();
                base.with_adapters(&fingerprint, move |model| Ok(weights.fill(model)?))
            }
        }
    }
}

/// The adapters that a configuration asks for.
pub(super) fn adapters(
    config: &FinetuneConfig,
    model: &ModelConfig,
    offline: bool,
) -> anyhow::Result<Option<Adapters>> {
    let Some(settings) = config.adapter_settings() else { return Ok(None) };
    if config.output_format == OutputFormat::Olmo && !config.merge_adapter {
        return Err(usage("`output_format` is olmo, which has no adapters; set `merge_adapter`, or hf or gguf"));
    }
    let Some(name) = &config.adapter_name_or_path else {
        return Ok(Some(Adapters { list: settings.resolve(model)?, start: None }));
    };
    let path = input(name, ADAPTER_FILES, offline)?;
    let weights = AdapterWeights::read(&path, model)?;
    weights.notices.iter().for_each(note);
    ensure!(
        weights.replaced.is_empty(),
        "{name} holds whole parameters beside its adapters; merge it into its base first: olmoe merge BASE OUT --adapter {name}"
    );
    let dropout = config.lora_dropout as f32;
    let list = weights.adapters().into_iter().map(|adapter| Adapter { dropout, ..adapter }).collect();
    Ok(Some(Adapters { list, start: Some(weights) }))
}

/// Writes what the run leaves.
pub(super) fn write(
    config: &FinetuneConfig,
    opened: &Opened,
    trainer: &Finetune,
    outcome: Outcome,
) -> anyhow::Result<()> {
    if config.output_format == OutputFormat::None {
        return Ok(());
    }
    let (folder, step) = (trainer.task().settings().saving.folder.clone(), trainer.state().step);
    let best = trainer.state().evaluation.map(|evaluation| evaluation.best_step).filter(|best| *best != step);
    let best = best.filter(|_| outcome == Outcome::EarlyStop);
    let model = trainer.model();
    if trainer.task().record().whole {
        // Of a run that has ended early, the step with the smallest loss.
        let checkpoint = Checkpoint::open(&folder.join(format!("step-{}", best.unwrap_or(step))))?;
        let (name, target) = target(config.output_format, Some(usual_type(&opened.checkpoint)));
        return convert(&checkpoint, opened, target, &folder.join(name));
    }
    if let Some(best) = best {
        note(format_args!(
            "what is written is that of step {step}; the loss was smallest at step {best}, whose checkpoint is there"
        ));
    }
    let mut weights = AdapterWeights::of(model)?;
    weights.base = config.model_name_or_path.clone();
    if !model.adapters().is_empty() && !config.merge_adapter {
        if config.output_format == OutputFormat::Gguf {
            let out = folder.join("adapter.gguf");
            weights.write_gguf(&out, true)?;
            return said(&out);
        }
        let out = folder.join("adapter");
        let layout = match config.adapter_layout {
            AdapterLayout::Separate => FileLayout::Separate,
            AdapterLayout::Fused => FileLayout::Fused,
        };
        weights.write(&out, layout, true)?.iter().for_each(note);
        opened.companions.write_into(&out, opened.config())?;
        return said(&out);
    }
    // Chosen parameters, or adapters that become part of the weights.
    let quantised = opened.checkpoint.main_encoding().is_quantized();
    let plain = quantised && config.output_format != OutputFormat::Gguf;
    let types = if plain { MergedType::Written } else { MergedType::Kept };
    let merged = Merged::new(&opened.checkpoint, &weights, types)?;
    let (name, target) = target(config.output_format, plain.then_some(DType::Bf16));
    convert(&merged, opened, target, &folder.join(name))?;
    let mut all = Survival::default();
    merged.survival().values().for_each(|survival| all.add(survival));
    if !is_quiet() && all.change > 0.0 {
        eprintln!("{:.2} % of the change survives the rounding to the written types", 100.0 * all.kept());
    }
    Ok(())
}

/// The type of a whole model that is written: that of the base, where it has one for all.
fn usual_type(base: &Checkpoint) -> DType {
    match base.main_encoding() {
        Encoding::Plain(dtype) => dtype,
        Encoding::Blocks(_) => DType::Bf16,
    }
}

/// The name of the model in the folder of a run, and how it is written.
fn target(format: OutputFormat, dtype: Option<DType>) -> (&'static str, Target) {
    use olmoe_checkpoint::gguf::mix::Mix;
    match format {
        OutputFormat::Olmo => ("model-olmo", Target::Olmo { dtype }),
        OutputFormat::Gguf => {
            let mix = dtype.map(|dtype| match dtype {
                DType::F32 => Mix::F32,
                DType::F16 => Mix::F16,
                _ => Mix::Bf16,
            });
            ("model.gguf", Target::Gguf { mix })
        }
        OutputFormat::Hf | OutputFormat::None => ("model", Target::HuggingFace { experts: Experts::Separate, dtype }),
    }
}

fn convert(weights: &dyn Weights, opened: &Opened, target: Target, out: &Path) -> anyhow::Result<()> {
    let conversion = Conversion::plan(weights, &opened.companions, target)?;
    conversion.notices.iter().for_each(note);
    conversion.run(out, true, &|_| {}).with_context(|| format!("writing {}", out.display()))?;
    said(out)
}

fn said(out: &Path) -> anyhow::Result<()> {
    if !is_quiet() {
        eprintln!("written: {}", out.display());
    }
    Ok(())
}
