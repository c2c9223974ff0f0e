//! Sampling settings: as flags, in a line of a batch, and by name in a chat. The engine declares them:
//! [`olmoe_engine::Settings`].

use std::fmt;

use anyhow::{anyhow, bail};
use clap::Args;
use olmoe_engine::settings::{any_seed, bias, unescaped};
use olmoe_engine::{Request, Settings};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

/// Sampling settings as flags.
#[derive(Args)]
pub(crate) struct SettingsArgs {
    #[command(flatten)]
    settings: Settings,

    /// Never choose an id without a token in the tokenizer
    ///
    /// OLMoE's embeddings have 24 more rows than there are tokens.
    #[arg(long, help_heading = "Sampling")]
    mask_padding: bool,

    /// Show the texts of special tokens
    #[arg(long, help_heading = "Output")]
    special: bool,
}

impl SettingsArgs {
    /// The request for a prompt. `tokens` is the size of the tokenizer; `seed` is used when no seed was given.
    pub(crate) fn request(&self, prompt: Vec<u32>, tokens: Option<usize>, seed: u64) -> Request {
        let mut request = Request { special: self.special, ..Request::new(prompt) };
        self.settings.apply(&mut request);
        request.sampling.below = tokens.filter(|_| self.mask_padding).and_then(|tokens| u32::try_from(tokens).ok());
        request.seed = Some(seed);
        request
    }

    /// The given seed, else a new one each time.
    pub(crate) fn seed(&self) -> u64 {
        self.settings.seed.unwrap_or_else(any_seed)
    }
}

/// A line of a batch: `prompt`, `id`, and any settings.
pub(crate) struct Line {
    /// Copied into the result.
    pub(crate) id: Option<Value>,
    pub(crate) prompt: Prompt,
    pub(crate) settings: Settings,
}

/// A text, or token ids.
#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of token ids")]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Line, D::Error> {
        from.deserialize_map(LineVisitor)
    }
}

/// Separates the line's own keys from the settings.
struct LineVisitor;

impl<'de> Visitor<'de> for LineVisitor {
    type Value = Line;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a prompt")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Line, A::Error> {
        let (mut id, mut prompt, mut settings) = (None, None, Map::new());
        while let Some(key) = map.next_key::<String>()? {
            let again = match key.as_str() {
                "id" => id.replace(map.next_value::<Value>()?).is_some(),
                "prompt" => prompt.replace(map.next_value()?).is_some(),
                _ => settings.insert(key.clone(), map.next_value()?).is_some(),
            };
            if again {
                return Err(A::Error::custom(format_args!("duplicate field `{key}`")));
            }
        }
        let settings = Settings::deserialize(Value::Object(settings)).map_err(A::Error::custom)?;
        Ok(Line { id, prompt: prompt.ok_or_else(|| A::Error::missing_field("prompt"))?, settings })
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
/// The value of a setting that is not set.
const NONE: &str = "none";

/// Changes a setting of a request, as a line of a batch does.
///
/// The value is JSON, or plain text for a string setting; biases are written as on the command line, separated by
/// spaces.
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
            let text = || Value::String(if name == "stop" { unescaped(value) } else { value.to_owned() });
            let value = serde_json::from_str(value).unwrap_or_else(|_| text());
            let settings = Settings::deserialize(serde_json::json!({ name: value }));
            settings.map_err(|error| anyhow!("{name}: {error}"))?.apply(request);
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
        set(&mut again, "stop", r"\n\n").unwrap();
        assert_eq!(again.stop, ["\n\n"]);
        set(&mut again, "n_predict", "-1").unwrap();
        assert_eq!(again.max_tokens, None);
        let error = set(&mut again, "temp", "warm").unwrap_err().to_string();
        assert!(error.contains("expected a number") && error.contains("\"warm\""), "{error}");
        for name in ["max_tokens", "stop", "stop_ids", "logit_bias"] {
            set(&mut again, name, NONE).unwrap();
            assert!(values(&again).contains(&(name, NONE.to_owned())), "{name}");
        }
    }
}
