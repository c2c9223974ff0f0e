//! Texts that the model generates during training: `samples`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use olmoe_data::{SpecialTokenSources, SpecialTokens, Tokenizer};
use olmoe_engine::{Completion, Engine, EngineConfig, FinishReason, Request};
use olmoe_model::model::Model;

use super::error::TrainError;
use crate::config::TrainConfig;
use crate::metrics::Sample;

/// Texts that are generated at once.
const AT_ONCE: usize = 16;

/// Prompts to go on from.
pub(crate) struct Samples {
    tokenizer: Arc<Tokenizer>,
    prompts: Vec<(String, Request)>,
    limits: EngineConfig,
}

impl Samples {
    /// Reads the tokenizer, and what the prompts are with it. None if there is nothing to write.
    pub(crate) fn open(config: &TrainConfig) -> Result<Option<Samples>, TrainError> {
        let Some(samples) = &config.samples else { return Ok(None) };
        let tokenizer = Tokenizer::from_file(&config.tokenizer.identifier)?;
        let below = u32::try_from(tokenizer.size()).ok();
        let seed = samples.seed.unwrap_or(config.seed);
        let request = |(i, prompt): (usize, &String)| {
            let mut request = Request::new(tokenizer.encode(prompt)?);
            samples.settings().apply(&mut request);
            request.sampling.below = below;
            request.seed = Some(seed.wrapping_add(i as u64));
            Ok((prompt.clone(), request))
        };
        let prompts = samples.prompts.iter().enumerate().map(request).collect::<Result<Vec<_>, TrainError>>()?;
        let at_once = prompts.len().clamp(1, AT_ONCE);
        let limits = EngineConfig {
            max_running: at_once,
            queue: prompts.len(),
            cache_tokens: at_once.saturating_mul(config.model.max_sequence_length),
            kept_tokens: 0,
            ends: special_tokens(config, &tokenizer)?.end_ids(),
            ..EngineConfig::default()
        };
        Ok(Some(Samples { tokenizer: Arc::new(tokenizer), prompts, limits }))
    }

    /// Whether the model can go on from every prompt.
    pub(crate) fn check(&self, model: &Arc<Model>) -> Result<(), TrainError> {
        let engine = self.engine(model)?;
        self.prompts.iter().enumerate().try_for_each(|(index, (_, request))| {
            engine.check(request).map_err(|source| TrainError::Prompt { index, source: Box::new(source) })
        })
    }

    /// What the model, which is that of a step, makes of the prompts, in their order; none when `interrupt` is set.
    pub(super) fn write(
        &self,
        model: &Arc<Model>,
        step: u64,
        interrupt: &AtomicBool,
    ) -> Result<Option<Vec<Sample>>, TrainError> {
        let requests = self.prompts.iter().map(|(_, request)| request.clone());
        let Some(done) = self.engine(model)?.complete_all(requests, interrupt) else { return Ok(None) };
        let mut samples = Vec::new();
        for (index, (outcome, (prompt, _))) in done.into_iter().zip(&self.prompts).enumerate() {
            let completions = outcome.map_err(|source| TrainError::Prompt { index, source: Box::new(source) })?;
            samples.extend(completions.iter().map(|completion| of(step, prompt, completion)));
        }
        Ok(Some(samples))
    }

    /// It is dropped before the model changes again.
    fn engine(&self, model: &Arc<Model>) -> Result<Engine, TrainError> {
        Ok(Engine::new(model.clone(), Some(self.tokenizer.clone()), self.limits.clone())?)
    }
}

/// The special tokens of the model that the run makes.
pub(super) fn special_tokens(config: &TrainConfig, tokenizer: &Tokenizer) -> Result<SpecialTokens, TrainError> {
    let training = serde_json::json!({ "eos_token_id": config.model.eos_token_id });
    let rows = Some(config.model.embedding_size);
    let sources = SpecialTokenSources { training: Some(&training), rows, ..Default::default() };
    Ok(SpecialTokens::resolve(tokenizer, &sources)?.0)
}

fn of(step: u64, prompt: &str, completion: &Completion) -> Sample {
    let finish_reason = match completion.end.as_ref().map(|end| &end.reason) {
        Some(FinishReason::Error(error)) => format!("error: {error}"),
        Some(reason) => reason.name().to_owned(),
        None => String::new(),
    };
    Sample { step, prompt: prompt.to_owned(), text: completion.text(), ids: completion.ids(), finish_reason }
}
