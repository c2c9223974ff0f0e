//! What a run begins with: the base, its tokenizer, and the template of conversations.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use olmoe_checkpoint::Checkpoint;
use olmoe_checkpoint::companions::{Companions, TOKENIZER, TOKENIZER_FILES};
use olmoe_checkpoint::hub::MODEL_FILES;
use olmoe_checkpoint::weights::Weights;
use olmoe_data::{ChatTemplate, ChatTokens, SpecialTokens, TULU, Tokenizer, expanded};
use olmoe_model::config::ModelConfig;
use olmoe_train::config::TrainConfigError;
use olmoe_train::finetune::config::FinetuneConfig;

use crate::flags::input;
use crate::output::note;
use crate::text::text_of;

/// What renders the begin of a conversation in templates.
const BOS: &str = "bos_token";

/// The base of a run.
pub(super) struct Opened {
    /// Where it is.
    pub(super) path: PathBuf,
    pub(super) checkpoint: Checkpoint,
    /// What goes beside its weights, and beside those that the run makes.
    pub(super) companions: Companions,
    pub(super) tokenizer: Arc<Tokenizer>,
    /// The template's text.
    pub(super) source: String,
    pub(super) template: ChatTemplate,
}

impl Opened {
    pub(super) fn config(&self) -> &ModelConfig {
        Weights::config(&self.checkpoint)
    }

    pub(super) fn special(&self) -> SpecialTokens {
        self.companions.special_tokens().cloned().unwrap_or_default()
    }

    /// The texts of special tokens that the template names.
    pub(super) fn tokens(&self) -> ChatTokens<'_> {
        let text = |key| self.companions.token_text(key);
        ChatTokens {
            bos: text("bos_token"),
            eos: text("eos_token"),
            pad: text("pad_token"),
            unk: text("unk_token"),
            sep: text("sep_token"),
            cls: text("cls_token"),
            mask: text("mask_token"),
        }
    }

    /// Opens what a configuration names.
    pub(super) fn new(config: &FinetuneConfig, offline: bool) -> anyhow::Result<Opened> {
        let name = config.model_name_or_path.as_deref().ok_or(TrainConfigError::Missing {
            path: "model_name_or_path",
            advice: "name the model to begin from: -m PATH or a model of the hub",
        })?;
        let path = input(&revised(name, config.model_revision.as_deref()), MODEL_FILES, offline)?;
        let checkpoint = Checkpoint::open(&path)?;
        let replacement = match config.tokenizer_name.as_deref().filter(|own| *own != name) {
            None => None,
            Some(own) => Some(tokenizer_file(own, offline)?),
        };
        let companions = Companions::of(&checkpoint, replacement.as_deref(), false)?;
        checkpoint.contents().notices.iter().chain(&companions.notices).for_each(note);
        let source = template(config, &companions)?;
        let template =
            ChatTemplate::new(&source).context("the chat template; name another one with chat_template_name")?;
        // The token that begins conversations is that of this template from now on.
        let companions = companions.with_chat_template(&source)?;
        let tokenizer = companions.tokenizer().cloned().with_context(|| {
            format!("{}: it comes without a tokenizer; name one with --tokenizer_name", path.display())
        })?;
        Ok(Opened { path, checkpoint, companions, tokenizer, source, template })
    }
}

/// A name of the hub with its revision; the usual one is nothing.
fn revised(name: &str, revision: Option<&str>) -> String {
    match revision.filter(|revision| *revision != "main") {
        Some(revision) if !name.contains('@') && !expanded(Path::new(name)).exists() => format!("{name}@{revision}"),
        _ => name.to_owned(),
    }
}

fn tokenizer_file(name: &str, offline: bool) -> anyhow::Result<PathBuf> {
    let path = input(name, TOKENIZER_FILES, offline)?;
    let file = if path.is_dir() { path.join(TOKENIZER) } else { path };
    match file.is_file() {
        true => Ok(file),
        false => bail!("`tokenizer_name` is {name}, which has no {TOKENIZER}; name a folder or file that has one"),
    }
}

/// The text of the template.
fn template(config: &FinetuneConfig, companions: &Companions) -> anyhow::Result<String> {
    let source = match config.chat_template_name.as_deref() {
        None => match companions.chat_template() {
            Some(own) => own.to_owned(),
            None => {
                note("the model comes without a chat template; that of OLMoE's fine-tuning, tulu, is used");
                TULU.to_owned()
            }
        },
        Some("tulu") => TULU.to_owned(),
        Some(name) => {
            let path = expanded(Path::new(name));
            if path.is_file() {
                text_of(&path)?
            } else if path.is_dir() {
                let file = path.join("chat_template.jinja");
                if file.is_file() {
                    text_of(&file)?
                } else {
                    let checkpoint = Checkpoint::open(&path)?;
                    let own = Companions::of(&checkpoint, None, false)?;
                    own.chat_template().map(str::to_owned).with_context(|| {
                        format!(
                            "`chat_template_name` is {name}, which has no chat template; name a folder that has, or a Jinja file"
                        )
                    })?
                }
            } else {
                bail!(
                    "`chat_template_name` is {name}; it has to be tulu, a Jinja file, or the folder of a model with a template"
                );
            }
        }
    };
    let names = source.contains(BOS);
    Ok(match config.add_bos {
        Some(true) if !names => format!("{{{{- {BOS} -}}}}{source}"),
        Some(false) if names => {
            bail!(
                "`add_bos` is false, and the chat template begins conversations with {BOS}; leave it out, or take the token out of \
                 the template"
            )
        }
        _ => source,
    })
}
