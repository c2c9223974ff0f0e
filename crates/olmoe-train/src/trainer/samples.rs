//! Texts that the model writes while it is trained: `samples`.

use std::sync::atomic::{AtomicBool, Ordering};

use olmoe_data::{SpecialTokenSources, SpecialTokens, Tokenizer};
use olmoe_engine::{Engine, EngineConfig, EventKind, FinishReason, Request, Sampling};
use olmoe_model::model::Model;

use super::error::TrainError;
use crate::config::TrainConfig;
use crate::metrics::Sample;

/// Texts that are written at once.
const AT_ONCE: usize = 16;

/// Prompts to go on from.
pub(super) struct Samples {
    tokenizer: Tokenizer,
    prompts: Vec<(String, Request)>,
    interval: u64,
    limits: EngineConfig,
}

impl Samples {
    /// Reads the tokenizer, and what the prompts are with it. None if there is nothing to write.
    pub(super) fn open(config: &TrainConfig) -> Result<Option<Samples>, TrainError> {
        let Some(samples) = &config.samples else { return Ok(None) };
        let count = |x: u64| usize::try_from(x).unwrap_or(usize::MAX);
        let tokenizer = Tokenizer::from_file(&config.tokenizer.identifier)?;
        let below = u32::try_from(tokenizer.size()).ok();
        let seed = samples.seed.unwrap_or(config.seed);
        let request = |(i, prompt): (usize, &String)| {
            let request = Request {
                max_tokens: Some(count(samples.max_new_tokens)),
                sampling: Sampling { below, ..samples.sampling() },
                seed: Some(seed.wrapping_add(i as u64)),
                ..Request::new(tokenizer.encode(prompt)?)
            };
            Ok((prompt.clone(), request))
        };
        let prompts = samples.prompts.iter().enumerate().map(request).collect::<Result<Vec<_>, TrainError>>()?;
        let at_once = prompts.len().clamp(1, AT_ONCE);
        let limits = EngineConfig {
            max_running: at_once,
            queue: prompts.len(),
            cache_tokens: at_once.saturating_mul(config.model.max_sequence_length),
            kept_tokens: 0,
            ends: ends(config, &tokenizer)?,
            ..EngineConfig::default()
        };
        Ok(Some(Samples { tokenizer, prompts, interval: samples.interval, limits }))
    }

    /// Whether the model can go on from every prompt.
    pub(super) fn check(&self, model: &Model) -> Result<(), TrainError> {
        let engine = Engine::new(model, Some(&self.tokenizer), self.limits.clone())?;
        self.prompts.iter().enumerate().try_for_each(|(index, (_, request))| {
            engine.check(request).map_err(|source| TrainError::Prompt { index, source: Box::new(source) })
        })
    }

    /// Whether they are due after a step that is not the last one.
    pub(super) fn are_due(&self, step: u64) -> bool {
        step > 0 && step.is_multiple_of(self.interval)
    }

    /// What the model, which is that of a step, makes of the prompts, in their order; none when `interrupt` is set.
    pub(super) fn write(
        &self,
        model: &Model,
        step: u64,
        interrupt: &AtomicBool,
    ) -> Result<Option<Vec<Sample>>, TrainError> {
        let mut engine = Engine::new(model, Some(&self.tokenizer), self.limits.clone())?;
        let mut samples = Vec::with_capacity(self.prompts.len());
        let mut ids = Vec::with_capacity(self.prompts.len());
        for (index, (prompt, request)) in self.prompts.iter().enumerate() {
            let refused = |source| TrainError::Prompt { index, source: Box::new(source) };
            ids.push(engine.submit(request.clone()).map_err(refused)?);
            let (text, finish_reason) = Default::default();
            samples.push(Sample { step, prompt: prompt.clone(), text, ids: Vec::new(), finish_reason });
        }
        while !engine.is_idle() {
            if interrupt.load(Ordering::Relaxed) {
                return Ok(None);
            }
            for event in engine.step() {
                let Some(at) = ids.iter().position(|id| *id == event.request) else { continue };
                let sample = &mut samples[at];
                match event.kind {
                    EventKind::Token(token) => {
                        sample.ids.push(token.id);
                        sample.text.push_str(&token.text);
                    }
                    EventKind::Finished(end) => {
                        sample.text.push_str(&end.text);
                        sample.finish_reason = match end.reason {
                            FinishReason::Error(error) => format!("error: {error}"),
                            reason => reason.name().to_owned(),
                        };
                    }
                }
            }
        }
        Ok(Some(samples))
    }
}

/// The tokens that end a text: those of the model that the run makes.
fn ends(config: &TrainConfig, tokenizer: &Tokenizer) -> Result<Vec<u32>, TrainError> {
    let training = serde_json::json!({ "eos_token_id": config.model.eos_token_id });
    let rows = Some(config.model.embedding_size);
    let sources = SpecialTokenSources { training: Some(&training), rows, ..Default::default() };
    Ok(SpecialTokens::resolve(tokenizer, &sources)?.0.end_ids())
}
