//! How to generate: flags, the settings of a line of a batch, and those that a chat changes by name, under the names that
//! llama.cpp and vLLM use.

use std::collections::BTreeMap;

use anyhow::{anyhow, bail};
use clap::Args;
use olmoe_engine::{Request, Sampling};
use serde::Deserialize;
use serde_json::Value;

use crate::arguments::{bias, positive};

/// How to generate.
#[derive(Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct Settings {
    /// Most tokens to generate [default: until an end-of-text token or the end of the model's context]
    #[arg(short = 'n', long, visible_aliases = ["n-predict", "predict"], value_name = "N", value_parser = positive, help_heading = "End of the text")]
    max_tokens: Option<usize>,

    /// Before so many tokens no end-of-text token is chosen and no stop string counts
    #[arg(long, value_name = "N", default_value = "0", help_heading = "End of the text")]
    min_tokens: usize,

    /// Divides the logits before the draw; 0 takes the likeliest token every time
    #[arg(
        long = "temp",
        visible_alias = "temperature",
        value_name = "T",
        default_value = "0.8",
        allow_negative_numbers = true
    )]
    temperature: f64,

    /// Draw from so many likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value = "40")]
    top_k: usize,

    /// Draw from the likeliest tokens that have this probability together; 1 for all
    #[arg(long, value_name = "P", default_value = "0.95", allow_negative_numbers = true)]
    top_p: f64,

    /// Draw from tokens with at least this share of the likeliest one's probability; 0 for all
    #[arg(long, value_name = "P", default_value = "0.05", allow_negative_numbers = true)]
    min_p: f64,

    /// Draw from the most typical tokens that have this probability together; 1 for all
    #[arg(long, visible_alias = "typical", value_name = "P", default_value = "1", allow_negative_numbers = true)]
    typical_p: f64,

    /// Divides the logits of tokens of prompt and text; 1 for none
    #[arg(
        long,
        visible_alias = "repetition-penalty",
        value_name = "R",
        default_value = "1",
        allow_negative_numbers = true
    )]
    repeat_penalty: f64,

    /// Taken from a token's logit for each time it was generated
    #[arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true)]
    frequency_penalty: f64,

    /// Taken from the logit of each token that was generated
    #[arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true)]
    presence_penalty: f64,

    /// Added to the logit of a token, such as 42=-1.5; -inf excludes it. May be repeated
    #[arg(long, value_name = "ID=X", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,

    /// Never choose an id that no token of the tokenizer has
    ///
    /// The embeddings of OLMoE have 24 rows more than there are tokens.
    #[arg(long)]
    mask_padding: bool,

    /// Seed of the draws [default: another one each time, told at the end]
    ///
    /// The same seed gives the same text, for any number of threads, beside any other prompts. Line i of a batch and turn
    /// i of a chat, from 0, has this seed plus i unless it has its own.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// A text that ends generation; it is not part of the output. May be repeated
    #[arg(long, value_name = "TEXT", help_heading = "End of the text")]
    stop: Vec<String>,

    /// End-of-text tokens are tokens like others
    #[arg(long, help_heading = "End of the text")]
    ignore_eos: bool,

    /// Show the texts of special tokens
    #[arg(long, help_heading = "Output")]
    special: bool,
}

impl Settings {
    /// The request for a prompt. `tokens` is how many the tokenizer has; `seed` is for when none was given.
    pub(crate) fn request(&self, prompt: Vec<u32>, tokens: Option<usize>, seed: u64) -> Request {
        Request {
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                typical_p: self.typical_p,
                repetition_penalty: self.repeat_penalty,
                frequency_penalty: self.frequency_penalty,
                presence_penalty: self.presence_penalty,
                logit_bias: self.logit_bias.clone(),
                below: tokens.filter(|_| self.mask_padding).and_then(|tokens| u32::try_from(tokens).ok()),
            },
            seed: Some(seed),
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            special: self.special,
            ..Request::new(prompt)
        }
    }

    /// The seed given, else another one each time: of 32 bits, so that it is easily typed.
    pub(crate) fn seed(&self) -> u64 {
        use std::hash::{BuildHasher, RandomState};
        self.seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32)
    }
}

/// A line of a batch.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    /// Comes back with the result.
    pub(crate) id: Option<Value>,
    pub(crate) prompt: Prompt,
    #[serde(alias = "n_predict")]
    max_tokens: Option<usize>,
    min_tokens: Option<usize>,
    #[serde(alias = "temp")]
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    typical_p: Option<f64>,
    #[serde(alias = "repeat_penalty")]
    repetition_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    logit_bias: Option<BTreeMap<u32, f32>>,
    seed: Option<u64>,
    stop: Option<Stops>,
    stop_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    #[serde(alias = "n")]
    samples: Option<usize>,
    logprobs: Option<usize>,
    experts: Option<bool>,
}

/// A text, or token ids as they are.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or an array of token ids")]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

impl Default for Prompt {
    fn default() -> Prompt {
        Prompt::Ids(Vec::new())
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or an array of texts")]
enum Stops {
    One(String),
    Several(Vec<String>),
}

impl Line {
    /// Changes what the line says.
    pub(crate) fn apply(&self, request: &mut Request) {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(from) = from {
                to.clone_from(from);
            }
        }
        let sampling = &mut request.sampling;
        set(&mut sampling.temperature, &self.temperature);
        set(&mut sampling.top_k, &self.top_k);
        set(&mut sampling.top_p, &self.top_p);
        set(&mut sampling.min_p, &self.min_p);
        set(&mut sampling.typical_p, &self.typical_p);
        set(&mut sampling.repetition_penalty, &self.repetition_penalty);
        set(&mut sampling.frequency_penalty, &self.frequency_penalty);
        set(&mut sampling.presence_penalty, &self.presence_penalty);
        if let Some(bias) = &self.logit_bias {
            sampling.logit_bias = bias.iter().map(|(id, bias)| (*id, *bias)).collect();
        }
        set(&mut request.min_tokens, &self.min_tokens);
        set(&mut request.stop_ids, &self.stop_ids);
        set(&mut request.ignore_eos, &self.ignore_eos);
        set(&mut request.samples, &self.samples);
        set(&mut request.experts, &self.experts);
        request.max_tokens = self.max_tokens.or(request.max_tokens);
        request.seed = self.seed.or(request.seed);
        request.logprobs = self.logprobs.or(request.logprobs);
        match &self.stop {
            Some(Stops::One(stop)) => request.stop = vec![stop.clone()],
            Some(Stops::Several(stops)) => request.stop.clone_from(stops),
            None => {}
        }
    }
}

/// The settings that [`set`] changes.
pub(crate) const NAMES: [&str; 15] = [
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "seed",
    "stop",
    "stop_ids",
    "ignore_eos",
];
/// For settings that may be without a value.
const NONE: &str = "none";

/// Changes one setting of a request, as a line of a batch does.
///
/// The value is JSON, or a text where a text is meant; biases are as on the command line, several with spaces between.
pub(crate) fn set(request: &mut Request, name: &str, value: &str) -> anyhow::Result<()> {
    let name = match name {
        "temp" => "temperature",
        "n_predict" => "max_tokens",
        "repeat_penalty" => "repetition_penalty",
        name => name,
    };
    if !NAMES.contains(&name) {
        let meant = olmoe_model::config::closest(name, &NAMES).map(|name| format!("; did you mean {name}?"));
        bail!("there is no setting {name}{}; /set lists them", meant.unwrap_or_default());
    }
    match (name, value) {
        ("max_tokens", NONE) => request.max_tokens = None,
        ("stop", NONE) => request.stop.clear(),
        ("stop_ids", NONE) => request.stop_ids.clear(),
        ("logit_bias", NONE) => request.sampling.logit_bias.clear(),
        ("logit_bias", _) => {
            let biases = value.split_whitespace().map(bias).collect::<Result<_, _>>();
            request.sampling.logit_bias = biases.map_err(|error| anyhow!("logit_bias: {error}"))?;
        }
        _ => {
            let text = || Value::String(value.to_owned());
            let value = serde_json::from_str(value).unwrap_or_else(|_| text());
            let line = serde_json::json!({ "prompt": [], name: value });
            let line: Line = serde_json::from_value(line).map_err(|error| anyhow!("{name}: {error}"))?;
            line.apply(request);
        }
    }
    Ok(())
}

/// The value of every setting of [`NAMES`], as [`set`] takes it.
pub(crate) fn values(request: &Request) -> [(&'static str, String); NAMES.len()] {
    let sampling = &request.sampling;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
    let list = |value: Value| or_none(value.as_array().is_some_and(|list| !list.is_empty()).then(|| value.to_string()));
    let biases: Vec<String> = sampling.logit_bias.iter().map(|(id, bias)| format!("{id}={bias}")).collect();
    let mut names = NAMES.into_iter();
    [
        or_none(request.max_tokens.map(|tokens| tokens.to_string())),
        request.min_tokens.to_string(),
        sampling.temperature.to_string(),
        sampling.top_k.to_string(),
        sampling.top_p.to_string(),
        sampling.min_p.to_string(),
        sampling.typical_p.to_string(),
        sampling.repetition_penalty.to_string(),
        sampling.frequency_penalty.to_string(),
        sampling.presence_penalty.to_string(),
        or_none((!biases.is_empty()).then(|| biases.join(" "))),
        or_none(request.seed.map(|seed| seed.to_string())),
        list(request.stop.clone().into()),
        list(request.stop_ids.clone().into()),
        request.ignore_eos.to_string(),
    ]
    .map(|value| (names.next().unwrap_or_default(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_can_be_set_to_what_is_shown() {
        let mut request = Request::new(Vec::new());
        for (name, value, shown) in [
            ("max_tokens", "7", "7"),
            ("min_tokens", "3", "3"),
            ("temp", "0.5", "0.5"),
            ("top_k", "9", "9"),
            ("top_p", "0.25", "0.25"),
            ("min_p", "0.125", "0.125"),
            ("typical_p", "0.75", "0.75"),
            ("repeat_penalty", "1.5", "1.5"),
            ("frequency_penalty", "-1", "-1"),
            ("presence_penalty", "2", "2"),
            ("logit_bias", "5=1.5 6=-inf", "5=1.5 6=-inf"),
            ("seed", "11", "11"),
            ("stop", "two words", "[\"two words\"]"),
            ("stop_ids", "[1,2]", "[1,2]"),
            ("ignore_eos", "true", "true"),
        ] {
            set(&mut request, name, value).unwrap();
            let now = values(&request);
            assert!(now.iter().any(|(_, value)| value == shown), "{name}: {now:?}");
        }
        let mut again = Request::new(Vec::new());
        for (name, value) in values(&request) {
            set(&mut again, name, &value).unwrap();
        }
        assert_eq!(values(&again), values(&request));
        for name in ["max_tokens", "stop", "stop_ids", "logit_bias"] {
            set(&mut again, name, NONE).unwrap();
            assert!(values(&again).contains(&(name, NONE.to_owned())), "{name}");
        }
    }
}
