//! The output of `--json`: an object for each prompt.

use olmoe_data::Tokenizer;
use olmoe_engine::{Completion, EventKind, FinishReason, Request, Stop, SubmitError, Token};
use serde::Serialize;
use serde_json::{Value, json};

/// The result of a prompt.
#[derive(Default)]
pub(super) struct PromptReport {
    index: Option<usize>,
    id: Option<Value>,
    prompt: Option<String>,
    seed: Option<u64>,
    completions: Vec<Completion>,
    error: Option<String>,
    /// How many samples were asked for, and how many have ended.
    wanted: usize,
    ended: usize,
    /// Whether each token is listed.
    details: bool,
}

/// A report as it is printed.
#[derive(Serialize)]
struct Shown<'a> {
    /// The line of the batch, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: &'a Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: &'a Option<String>,
    seed: Option<u64>,
    samples: Vec<Sample>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: &'a Option<String>,
}

/// A sample.
#[derive(Serialize)]
struct Sample {
    text: String,
    ids: Vec<u32>,
    finish_reason: &'static str,
    /// The stop string or stop token that ended the sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tokens: Vec<Value>,
    usage: Value,
}

impl PromptReport {
    pub(super) fn new(
        index: Option<usize>,
        id: Option<Value>,
        prompt: Option<String>,
        request: &Request,
    ) -> PromptReport {
        PromptReport {
            index,
            id,
            prompt,
            seed: request.seed,
            wanted: request.samples,
            details: request.logprobs.is_some() || request.experts,
            ..PromptReport::default()
        }
    }

    /// Adds an event of a sample.
    pub(super) fn add(&mut self, sample: usize, kind: EventKind) {
        if self.completions.len() <= sample {
            self.completions.resize_with(sample + 1, Completion::default);
        }
        self.ended += usize::from(matches!(kind, EventKind::Finished(_)));
        self.completions[sample].add(kind);
    }

    /// Records that the request was refused.
    pub(super) fn refuse(&mut self, error: &SubmitError) {
        self.error = Some(error.to_string());
    }

    /// Whether all samples have ended, or the request was refused.
    pub(super) fn is_complete(&self) -> bool {
        self.error.is_some() || self.wanted > 0 && self.ended == self.wanted
    }

    /// Why the request, or one of its samples, failed.
    pub(super) fn failure(&self) -> Option<String> {
        let of_sample = || self.completions.iter().find_map(error);
        self.error.clone().or_else(of_sample)
    }

    /// The object as a line of JSON.
    pub(super) fn json(&self, tokenizer: Option<&Tokenizer>) -> serde_json::Result<String> {
        serde_json::to_string(&Shown {
            index: self.index,
            id: &self.id,
            prompt: &self.prompt,
            seed: self.seed,
            samples: self.completions.iter().map(|completion| self.sample(completion, tokenizer)).collect(),
            error: &self.error,
        })
    }

    fn sample(&self, completion: &Completion, tokenizer: Option<&Tokenizer>) -> Sample {
        let end = completion.end.as_ref();
        let stop = match end.map(|end| &end.reason) {
            Some(FinishReason::Stop(Stop::Id(id))) => Some((*id).into()),
            Some(FinishReason::Stop(Stop::Text(text))) => Some(text.as_str().into()),
            _ => None,
        };
        let usage = end.map(|end| end.usage).unwrap_or_default();
        let shown = if self.details { &completion.tokens[..] } else { &[] };
        Sample {
            text: completion.text(),
            ids: completion.ids(),
            finish_reason: end.map_or("", |end| end.reason.name()),
            stop,
            error: error(completion),
            tokens: shown.iter().map(|token| details(token, tokenizer)).collect(),
            usage: json!({
                "prompt_tokens": usage.prompt_tokens,
                "reused_tokens": usage.reused_tokens,
                "completion_tokens": usage.completion_tokens,
            }),
        }
    }
}

/// Why a sample failed.
fn error(completion: &Completion) -> Option<String> {
    match completion.end.as_ref().map(|end| &end.reason) {
        Some(FinishReason::Error(error)) => Some(error.to_string()),
        _ => None,
    }
}

/// A token with the details that were asked for.
fn details(token: &Token, tokenizer: Option<&Tokenizer>) -> Value {
    let text_of = |id: u32| Some(String::from_utf8_lossy(&tokenizer?.token_bytes(id)?).into_owned());
    let mut value = json!({ "id": token.id, "text": text_of(token.id) });
    if let Some(logprob) = token.logprob {
        value["logprob"] = logprob.into();
        let alternative = |other: &olmoe_engine::Alternative| json!({ "id": other.id, "text": text_of(other.id), "logprob": other.logprob });
        value["top_logprobs"] = token.alternatives.iter().map(alternative).collect();
    }
    if !token.experts.is_empty() {
        value["experts"] = json!(token.experts);
    }
    value
}
