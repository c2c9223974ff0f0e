//! The settings of a request by name, each optional, declared once for command lines, files and protocols. The names
//! are those of llama.cpp and vLLM.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::request::Request;

/// Settings of a request; a setting that is `None` leaves the request unchanged.
///
/// In JSON they are an object, in which unknown names are errors. With the feature `clap` they are flags of a command
/// line, with the defaults of llama.cpp's programs; settings without a flag are left to the program.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "clap", derive(clap::Args), command(next_help_heading = "Sampling"))]
pub struct Settings {
    /// Most tokens to generate [default: until an end-of-text token or the end of the model's context]
    #[serde(alias = "n_predict")]
    #[cfg_attr(feature = "clap", arg(short = 'n', long, visible_aliases = ["n-predict", "predict"], value_name = "N", value_parser = positive, help_heading = "End of the text"))]
    pub max_tokens: Option<usize>,

    /// Before so many tokens no end-of-text token is chosen and no stop string counts
    #[cfg_attr(feature = "clap", arg(long, value_name = "N", default_value = "0", help_heading = "End of the text"))]
    pub min_tokens: Option<usize>,

    /// Divides the logits before the draw; 0 takes the likeliest token every time
    #[serde(alias = "temp")]
    #[cfg_attr(
        feature = "clap",
        arg(
            long = "temp",
            visible_alias = "temperature",
            value_name = "T",
            default_value = "0.8",
            allow_negative_numbers = true
        )
    )]
    pub temperature: Option<f64>,

    /// Draw from so many likeliest tokens; 0 for all
    #[cfg_attr(feature = "clap", arg(long, value_name = "K", default_value = "40"))]
    pub top_k: Option<usize>,

    /// Draw from the likeliest tokens that have this probability together; 1 for all
    #[cfg_attr(feature = "clap", arg(long, value_name = "P", default_value = "0.95", allow_negative_numbers = true))]
    pub top_p: Option<f64>,

    /// Draw from tokens with at least this share of the likeliest one's probability; 0 for all
    #[cfg_attr(feature = "clap", arg(long, value_name = "P", default_value = "0.05", allow_negative_numbers = true))]
    pub min_p: Option<f64>,

    /// Draw from the most typical tokens that have this probability together; 1 for all
    #[cfg_attr(
        feature = "clap",
        arg(long, visible_alias = "typical", value_name = "P", default_value = "1", allow_negative_numbers = true)
    )]
    pub typical_p: Option<f64>,

    /// Divides the logits of tokens of prompt and text; 1 for none
    #[serde(alias = "repeat_penalty")]
    #[cfg_attr(
        feature = "clap",
        arg(
            long = "repeat-penalty",
            visible_alias = "repetition-penalty",
            value_name = "R",
            default_value = "1",
            allow_negative_numbers = true
        )
    )]
    pub repetition_penalty: Option<f64>,

    /// Taken from a token's logit for each time it was generated
    #[cfg_attr(feature = "clap", arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true))]
    pub frequency_penalty: Option<f64>,

    /// Taken from the logit of each token that was generated
    #[cfg_attr(feature = "clap", arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true))]
    pub presence_penalty: Option<f64>,

    /// Added to the logit of a token, such as 42=-1.5; -inf excludes it. May be repeated
    #[serde(deserialize_with = "by_id")]
    #[cfg_attr(feature = "clap", arg(long, value_name = "ID=X", value_parser = bias))]
    pub logit_bias: Option<Vec<(u32, f32)>>,

    /// Seed of the draws [default: another one each time, told at the end]
    ///
    /// The same seed gives the same text, for any number of threads, beside any other prompts. Line i of a batch and
    /// turn i of a chat, from 0, has this seed plus i unless it has its own.
    #[cfg_attr(feature = "clap", arg(long, value_name = "N"))]
    pub seed: Option<u64>,

    /// A text that ends generation; it is not part of the output. May be repeated
    #[serde(deserialize_with = "one_or_several")]
    #[cfg_attr(feature = "clap", arg(long, value_name = "TEXT", help_heading = "End of the text"))]
    pub stop: Option<Vec<String>>,

    /// Tokens that end a sample, in addition to those of the engine.
    #[cfg_attr(feature = "clap", arg(skip))]
    pub stop_ids: Option<Vec<u32>>,

    /// End-of-text tokens are tokens like others
    #[cfg_attr(
        feature = "clap",
        arg(long, action = clap::ArgAction::SetTrue, help_heading = "End of the text")
    )]
    pub ignore_eos: Option<bool>,

    /// Samples to generate from the prompt, each with draws of its own.
    #[serde(alias = "n")]
    #[cfg_attr(feature = "clap", arg(skip))]
    pub samples: Option<usize>,

    /// Log-probability of each token, and of so many likeliest alternatives.
    #[cfg_attr(feature = "clap", arg(skip))]
    pub logprobs: Option<usize>,

    /// The experts of each token.
    #[cfg_attr(feature = "clap", arg(skip))]
    pub experts: Option<bool>,
}

impl Settings {
    /// Applies these settings to a request.
    pub fn apply(&self, request: &mut Request) {
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
        set(&mut sampling.logit_bias, &self.logit_bias);
        set(&mut request.min_tokens, &self.min_tokens);
        set(&mut request.stop, &self.stop);
        set(&mut request.stop_ids, &self.stop_ids);
        set(&mut request.ignore_eos, &self.ignore_eos);
        set(&mut request.samples, &self.samples);
        set(&mut request.experts, &self.experts);
        request.max_tokens = self.max_tokens.or(request.max_tokens);
        request.seed = self.seed.or(request.seed);
        request.logprobs = self.logprobs.or(request.logprobs);
    }
}

/// Parses a number to add to the logit of a token: `ID=X`, or llama.cpp's `ID+X` and `ID-X`.
///
/// # Errors
/// A text that says what was expected.
pub fn bias(text: &str) -> Result<(u32, f32), String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (id, number) = text.split_at(digits);
    let number = number.strip_prefix('=').unwrap_or(number);
    match (id.parse(), number.parse()) {
        (Ok(id), Ok(number)) => Ok((id, number)),
        _ => Err("expected a token id, = and a number, such as 42=-1.5 or 42=-inf".to_owned()),
    }
}

/// A whole number above 0.
#[cfg(feature = "clap")]
fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a whole number above 0".to_owned()),
    }
}

/// An object of numbers by id.
fn by_id<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<(u32, f32)>>, D::Error> {
    let map = Option::<BTreeMap<u32, f32>>::deserialize(from)?;
    Ok(map.map(|map| map.into_iter().collect()))
}

/// A text, or several.
fn one_or_several<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or an array of texts")]
    enum Texts {
        One(String),
        Several(Vec<String>),
    }
    let texts = Option::<Texts>::deserialize(from)?;
    Ok(texts.map(|texts| match texts {
        Texts::One(text) => vec![text],
        Texts::Several(texts) => texts,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Sampling;

    #[test]
    fn what_is_not_said_stays() {
        let request = Request {
            max_tokens: Some(3),
            seed: Some(4),
            logprobs: Some(5),
            stop: vec!["x".into()],
            sampling: Sampling { top_k: 6, ..Sampling::default() },
            ..Request::new(vec![1])
        };
        let applied = |text: &str| {
            let mut changed = request.clone();
            serde_json::from_str::<Settings>(text).unwrap().apply(&mut changed);
            changed
        };
        assert_eq!(format!("{:?}", applied("{}")), format!("{request:?}"));
        assert_eq!(format!("{:?}", applied("{\"seed\": null, \"stop\": null}")), format!("{request:?}"));
        let changed =
            applied("{\"temp\": 0.25, \"n_predict\": 9, \"stop\": \"end\", \"logit_bias\": {\"7\": -1.5}, \"n\": 2}");
        assert_eq!((changed.sampling.temperature, changed.max_tokens, changed.samples), (0.25, Some(9), 2));
        assert_eq!((changed.stop, changed.sampling.logit_bias), (vec!["end".to_owned()], vec![(7, -1.5)]));
        assert_eq!((changed.sampling.top_k, changed.seed, changed.logprobs), (6, Some(4), Some(5)));
    }

    #[test]
    fn what_is_no_setting_is_an_error() {
        for (bad, expected) in [
            ("{\"top_q\": 1}", "unknown field `top_q`, expected one of"),
            ("{\"top_p\": \"much\"}", "invalid type"),
            ("{\"temp\": 1, \"temperature\": 1}", "duplicate field `temperature`"),
            ("{\"stop\": 3}", "expected a text or an array of texts"),
        ] {
            let error = serde_json::from_str::<Settings>(bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }

    #[test]
    fn biases_are_an_id_and_a_number() {
        assert_eq!(bias("42=-1.5"), Ok((42, -1.5)));
        assert_eq!(bias("42-1"), Ok((42, -1.0)));
        assert_eq!(bias("0+2.5"), Ok((0, 2.5)));
        assert_eq!(bias("7=-inf"), Ok((7, f32::NEG_INFINITY)));
        for bad in ["", "42", "=1", "x=1", "42=", "42=x", "-1=2", "99999999999=1"] {
            assert!(bias(bad).is_err(), "{bad}");
        }
    }
}
