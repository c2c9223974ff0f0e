//! Bodies of requests to a server, and its answers, in OpenAI's form.

use serde_json::{Map, Value, json};

use olmoe_engine::Sampling;

use crate::answer::Scored;
use crate::task::Prompt;

/// Most texts that end a generation which OpenAI's servers take. The others end it here.
const MAX_STOPS: usize = 4;

/// The beginning of a text whose end is scored, as it is sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scoring {
    /// The tokens of both, and how many are the context's.
    Tokens(Vec<u32>, usize),
    /// The text of both, and where the continuation begins, in characters.
    Text(String, usize),
}

impl Scoring {
    fn value(&self) -> Value {
        match self {
            Scoring::Tokens(ids, _) => json!(ids),
            Scoring::Text(text, _) => json!(text),
        }
    }
}

/// Asks for the log-probabilities of texts as they are. One token is generated, and dropped: fewer are refused by some.
pub(super) fn scoring_body(model: &str, prompts: &[Scoring]) -> Value {
    json!({
        "model": model,
        "prompt": prompts.iter().map(Scoring::value).collect::<Vec<_>>(),
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "echo": true,
    })
}

/// The path and the body that ask for samples.
pub(super) fn generation_body(
    model: &str,
    prompt: &Prompt,
    stop: &[String],
    max_tokens: usize,
    sampling: &Sampling,
    samples: usize,
    seed: u64,
) -> (&'static str, Value) {
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| {
        body.insert(name.to_owned(), value);
    };
    put("model", json!(model));
    let path = match prompt {
        Prompt::Text(text) => {
            put("prompt", json!(text));
            "/completions"
        }
        Prompt::Chat { messages, begin } => {
            let mut all: Vec<Value> = messages.iter().map(|message| json!(message)).collect();
            if !begin.is_empty() {
                // As vLLM, SGLang and TGI name it.
                all.push(json!({"role": "assistant", "content": begin}));
                put("add_generation_prompt", json!(false));
                put("continue_final_message", json!(true));
            }
            put("messages", json!(all));
            "/chat/completions"
        }
    };
    put("max_tokens", json!(max_tokens));
    put("temperature", json!(sampling.temperature));
    put("n", json!(samples));
    // The largest that every server takes has 31 bits.
    put("seed", json!(seed & 0x7fff_ffff));
    if !stop.is_empty() {
        put("stop", json!(stop[..stop.len().min(MAX_STOPS)]));
    }
    // What is not set is not named: not every server knows all of them.
    let plain = Sampling::default();
    for (name, value, default) in [
        ("top_p", sampling.top_p, plain.top_p),
        ("min_p", sampling.min_p, plain.min_p),
        ("typical_p", sampling.typical_p, plain.typical_p),
        ("repetition_penalty", sampling.repetition_penalty, plain.repetition_penalty),
        ("frequency_penalty", sampling.frequency_penalty, plain.frequency_penalty),
        ("presence_penalty", sampling.presence_penalty, plain.presence_penalty),
    ] {
        if value != default {
            put(name, json!(value));
        }
    }
    if sampling.top_k != plain.top_k {
        put("top_k", json!(sampling.top_k));
    }
    if !sampling.logit_bias.is_empty() {
        let bias = |&(id, bias): &(u32, f32)| (id.to_string(), json!(bias.clamp(-100.0, 100.0)));
        put("logit_bias", Value::Object(sampling.logit_bias.iter().map(bias).collect()));
    }
    (path, Value::Object(body))
}

/// The choices of an answer in the order of their indices.
fn choices(answer: &Value) -> Result<Vec<&Value>, String> {
    let choices = answer.get("choices").and_then(Value::as_array).ok_or("the answer has no choices")?;
    let mut all: Vec<&Value> = choices.iter().collect();
    all.sort_by_key(|choice| choice.get("index").and_then(Value::as_u64).unwrap_or(0));
    Ok(all)
}

/// The texts of an answer, each without what ended it.
pub(super) fn texts(answer: &Value, stop: &[String]) -> Result<Vec<String>, String> {
    let text = |choice: &Value| {
        let text = match (choice.get("message"), choice.get("text")) {
            // An empty answer has no content.
            (Some(message), _) => message.get("content").map(|content| content.as_str().unwrap_or("")),
            (None, text) => text.and_then(Value::as_str),
        };
        let text = text.ok_or("a choice of the answer has no text")?;
        let ends = stop.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| text.find(stop.as_str()));
        Ok(text[..ends.min().unwrap_or(text.len())].to_owned())
    };
    let texts: Vec<String> = choices(answer)?.into_iter().map(text).collect::<Result<_, &str>>()?;
    if texts.is_empty() { Err("the answer has no choices".to_owned()) } else { Ok(texts) }
}

/// The log-probabilities of the continuations in an answer.
pub(super) fn scores(answer: &Value, prompts: &[Scoring]) -> Result<Vec<Scored>, String> {
    let choices = choices(answer)?;
    if choices.len() != prompts.len() {
        return Err(format!(
            "{} prompts were sent, and the answer has {} choices; send one at a time",
            prompts.len(),
            choices.len()
        ));
    }
    // Nothing was generated where nothing is said to be; the number is that of all prompts together.
    let none = answer.pointer("/usage/completion_tokens").and_then(Value::as_u64) == Some(0);
    choices.iter().zip(prompts).map(|(choice, prompt)| score(choice, prompt, usize::from(!none))).collect()
}

/// The lists of a choice, one entry a token.
struct Tokens<'a> {
    log_probs: &'a [Value],
    top: &'a [Value],
}

fn score(choice: &Value, prompt: &Scoring, generated: usize) -> Result<Scored, String> {
    const WANTED: &str =
        "this backend needs a server whose /v1/completions takes `echo` with `logprobs`, such as vLLM's";
    let data = choice.get("logprobs").filter(|data| !data.is_null());
    let data = data.ok_or_else(|| format!("the answer has no log-probabilities; {WANTED}"))?;
    let list = |name: &str| data.get(name).and_then(Value::as_array).map(Vec::as_slice);
    let Some(log_probs) = list("token_logprobs") else {
        let form = if data.get("content").is_some() { "in the form of chat" } else { "in an unknown form" };
        return Err(format!("the answer has log-probabilities {form}, without `token_logprobs`; {WANTED}"));
    };
    let top = list("top_logprobs").ok_or_else(|| format!("the answer has no `top_logprobs`; {WANTED}"))?;
    if top.len() != log_probs.len() {
        return Err(format!("the answer has {} tokens and {} `top_logprobs`", log_probs.len(), top.len()));
    }
    let tokens = Tokens { log_probs, top };
    match prompt {
        Scoring::Tokens(ids, context) => {
            if log_probs.len() != ids.len() && log_probs.len() != ids.len() + 1 {
                return Err(format!(
                    "{} tokens were sent, and the answer has the log-probabilities of {}, not of these and one more; \
                     {WANTED}, and the same tokenizer",
                    ids.len(),
                    log_probs.len()
                ));
            }
            tokens.sum(*context, ids.len())
        }
        Scoring::Text(text, context) => {
            let words = list("tokens").filter(|words| words.len() == log_probs.len());
            let offsets = list("text_offset").filter(|offsets| offsets.len() == log_probs.len());
            let (Some(words), Some(offsets)) = (words, offsets) else {
                return Err(format!("the answer lacks `tokens` or `text_offset` of each token; {WANTED}"));
            };
            let echoed = choice.get("text").and_then(Value::as_str).is_some_and(|echo| echo.contains(text.as_str()));
            let end = log_probs.len().saturating_sub(generated);
            if !echoed || end == 0 {
                return Err(format!("the server does not echo the prompt; {WANTED}"));
            }
            let offset = |at: usize| offsets[at].as_u64().ok_or("an entry of `text_offset` is not a number");
            let length = text.chars().count() as u64;
            // Where the prompt ends: tokens that a server puts before it move all offsets alike.
            let last = words[end - 1].as_str().unwrap_or("").chars().count() as u64;
            let end_offset = if end < offsets.len() { offset(end)? } else { offset(end - 1)? + last };
            let start = (end_offset + *context as u64).checked_sub(length);
            let start = start.ok_or("the offsets of the answer's tokens end before the prompt does")?;
            let mut first = end - 1;
            while first > 0 && offset(first)? > start {
                first -= 1;
            }
            let continuation: String = text.chars().skip(*context).collect();
            let joined: String = words[first..end].iter().filter_map(Value::as_str).collect();
            let inexact = |text: &str| text.contains('\u{fffd}') || text.contains("bytes:");
            if !joined.ends_with(&continuation) && !inexact(&joined) {
                return Err(format!(
                    "the last tokens of the answer are {joined:?}, and the continuation is {continuation:?}: its \
                     `text_offset` is not of the prompt. Give the tokenizer of the model, so that tokens are sent"
                ));
            }
            tokens.sum(first, end)
        }
    }
}

impl Tokens<'_> {
    fn sum(&self, first: usize, end: usize) -> Result<Scored, String> {
        if first == 0 {
            return Err(
                "the continuation begins with the first token, which has no log-probability; give a context".into()
            );
        }
        let mut scored = Scored { log_prob: 0.0, tokens: end - first, greedy: true, unconditional: None };
        for at in first..end {
            let log_prob = self.log_probs[at].as_f64();
            let log_prob = log_prob.ok_or_else(|| format!("token {at} of the answer has no log-probability"))?;
            let others = self.top[at].as_object();
            let others = others.ok_or_else(|| format!("token {at} of the answer has no `top_logprobs`"))?;
            scored.log_prob += log_prob;
            scored.greedy &= others.values().filter_map(Value::as_f64).all(|other| other <= log_prob);
        }
        Ok(scored)
    }
}
