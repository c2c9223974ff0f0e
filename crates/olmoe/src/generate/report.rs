//! What `--json` prints: an object for each prompt.

use olmoe_data::Tokenizer;
use olmoe_engine::{FinishReason, Finished, Request, Stop, Token};
use serde::Serialize;
use serde_json::{Value, json};

/// What came of a prompt.
#[derive(Default, Serialize)]
pub(super) struct Report {
    /// Line of the batch, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    seed: Option<u64>,
    pub(super) samples: Vec<Sample>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(skip)]
    ended: usize,
    #[serde(skip)]
    details: bool,
}

/// One of its samples.
#[derive(Clone, Default, Serialize)]
pub(super) struct Sample {
    text: String,
    ids: Vec<u32>,
    finish_reason: &'static str,
    /// The stop string or stop token that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tokens: Vec<Value>,
    usage: Value,
}

fn text_of(tokenizer: Option<&Tokenizer>, id: u32) -> Option<String> {
    let bytes = tokenizer?.token_bytes(id)?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

impl Report {
    pub(super) fn new(index: Option<usize>, id: Option<Value>, prompt: Option<String>, request: &Request) -> Report {
        Report {
            index,
            id,
            prompt,
            seed: request.seed,
            details: request.logprobs.is_some() || request.experts,
            ..Report::default()
        }
    }

    /// Makes room for the samples of an accepted request.
    pub(super) fn accepted(&mut self, samples: usize) {
        self.samples = vec![Sample::default(); samples];
    }

    /// Whether all samples have ended.
    pub(super) fn is_complete(&self) -> bool {
        self.ended == self.samples.len()
    }

    /// Why it, or a sample of it, failed.
    pub(super) fn failure(&self) -> Option<&str> {
        let of_sample = || self.samples.iter().find_map(|sample| sample.error.as_deref());
        self.error.as_deref().or_else(of_sample)
    }

    pub(super) fn token(&mut self, sample: usize, token: &Token, tokenizer: Option<&Tokenizer>) {
        let Some(sample) = self.samples.get_mut(sample) else { return };
        sample.text.push_str(&token.text);
        sample.ids.push(token.id);
        if !self.details {
            return;
        }
        let mut value = json!({ "id": token.id, "text": text_of(tokenizer, token.id) });
        if let Some(logprob) = token.logprob {
            value["logprob"] = logprob.into();
            let alternative = |other: &olmoe_engine::Alternative| json!({ "id": other.id, "text": text_of(tokenizer, other.id), "logprob": other.logprob });
            value["top_logprobs"] = token.alternatives.iter().map(alternative).collect();
        }
        if !token.experts.is_empty() {
            value["experts"] = json!(token.experts);
        }
        sample.tokens.push(value);
    }

    pub(super) fn end(&mut self, sample: usize, end: &Finished) {
        let Some(sample) = self.samples.get_mut(sample) else { return };
        self.ended += 1;
        sample.text.push_str(&end.text);
        sample.finish_reason = end.reason.name();
        match &end.reason {
            FinishReason::Stop(Stop::Id(id)) => sample.stop = Some((*id).into()),
            FinishReason::Stop(Stop::Text(text)) => sample.stop = Some(text.as_str().into()),
            FinishReason::Error(error) => sample.error = Some(error.to_string()),
            FinishReason::Length | FinishReason::Cancelled => {}
        }
        let usage = end.usage;
        sample.usage = json!({
            "prompt_tokens": usage.prompt_tokens,
            "reused_tokens": usage.reused_tokens,
            "completion_tokens": usage.completion_tokens,
        });
    }
}
