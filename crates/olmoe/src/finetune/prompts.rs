//! Prompts that are answered while a model is tuned.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use olmoe_checkpoint::companions::TOKENIZER;
use olmoe_data::instruct::{Content, Records, Sample};
use olmoe_data::{Message, expanded};
use olmoe_train::config::SamplesConfig;
use olmoe_train::finetune::FinetuneSettings;
use olmoe_train::finetune::config::FinetuneConfig;

use super::opening::Opened;
use crate::files::write_whole;
use crate::text::text_of;

/// Most prompts of a file.
const MOST: usize = 256;

/// Puts the prompts of the configuration, if there are any, into the settings, and the tokenizer beside the run.
pub(super) fn set(config: &FinetuneConfig, opened: &Opened, settings: &mut FinetuneSettings) -> anyhow::Result<()> {
    let path = settings.saving.folder.join(TOKENIZER);
    let json = opened.tokenizer.json();
    if !std::fs::read(&path).is_ok_and(|found| found == json) {
        write_whole(&path, json).with_context(|| format!("{}: cannot be written", path.display()))?;
    }
    settings.tokenizer = Some(path);
    let Some(file) = &config.sample_prompts else { return Ok(()) };
    let file = expanded(Path::new(file));
    let prompts = read(&file, opened)?;
    ensure!(!prompts.is_empty(), "`sample_prompts`: there is no prompt in {}", file.display());
    ensure!(
        prompts.len() <= MOST,
        "`sample_prompts`: {} has {} prompts; {MOST} at most are answered",
        file.display(),
        prompts.len()
    );
    settings.samples = Some(SamplesConfig {
        prompts,
        interval: config.sample_steps.or(settings.evaluation.interval).unwrap_or(u64::MAX),
        max_new_tokens: config.sample_max_new_tokens,
        temperature: 0.0,
        ..SamplesConfig::default()
    });
    Ok(())
}

/// The prompts of a file as the model reads them: a line each, or what comes before the last answer of rows.
fn read(file: &Path, opened: &Opened) -> anyhow::Result<Vec<String>> {
    let rendered = |messages: &[Message]| -> anyhow::Result<String> {
        Ok(opened.template.render(messages, opened.tokens(), true)?.text)
    };
    let is_text = file.extension().is_none_or(|ending| ending == "txt");
    if is_text {
        let text = text_of(file)?;
        return text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| rendered(&[Message::new("user", line)]))
            .collect();
    }
    let options = Default::default();
    let mut prompts = Vec::new();
    for record in Records::open(file, &options)?.take(MOST + 1) {
        let record = record?;
        let sample = match record.content {
            Content::Sample(sample) => sample,
            Content::Pair(pair) => pair.chosen,
            Content::Labelled(labelled) => labelled.sample,
            Content::Tokens(_) => bail!("{}: a prompt is a text, not tokens", record.place),
        };
        prompts.push(match sample {
            Sample::Text { prompt, .. } => prompt,
            Sample::Conversation(conversation) => {
                let mut turns = conversation.turns;
                if turns.last().is_some_and(|turn| turn.is_answer()) {
                    turns.pop();
                }
                let messages: Vec<Message> =
                    turns.into_iter().map(|turn| Message::new(turn.role, turn.content.unwrap_or_default())).collect();
                rendered(&messages)?
            }
        });
    }
    Ok(prompts)
}
