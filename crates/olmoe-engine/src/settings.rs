//! The settings of a request by name, each optional, declared once for command lines, files and protocols. The names
//! are those of llama.cpp and vLLM.

use std::collections::BTreeMap;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::marker::PhantomData;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use crate::request::Request;

/// As many tokens as there is room for.
pub const UNLIMITED: usize = usize::MAX;

/// Settings of a request; a setting that is `None` leaves the request unchanged.
///
/// In JSON they are an object, in which unknown names are errors. With the feature `clap` they are flags of a command
/// line, with the defaults of llama.cpp's programs; settings without a flag are left to the program.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "clap", derive(clap::Args), command(next_help_heading = "Sampling"))]
pub struct Settings {
    /// Most tokens to generate; -1 until an end-of-text token or the end of the model's context [default: -1]
    #[serde(alias = "n_predict", deserialize_with = "most")]
    #[cfg_attr(feature = "clap", arg(short = 'n', long, visible_aliases = ["n-predict", "predict"], value_name = "N", value_parser = most_tokens, allow_negative_numbers = true, help_heading = "End of the text"))]
    pub max_tokens: Option<usize>,

    /// Before so many tokens no end-of-text token is chosen and no stop string counts
    #[serde(deserialize_with = "whole")]
    #[cfg_attr(feature = "clap", arg(long, value_name = "N", default_value = "0", help_heading = "End of the text"))]
    pub min_tokens: Option<usize>,

    /// Divides the logits before the draw; 0 takes the likeliest token every time
    #[serde(alias = "temp", deserialize_with = "real")]
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
    #[serde(deserialize_with = "whole")]
    #[cfg_attr(feature = "clap", arg(long, value_name = "K", default_value = "40"))]
    pub top_k: Option<usize>,

    /// Draw from the likeliest tokens that have this probability together; 1 for all
    #[serde(deserialize_with = "real")]
    #[cfg_attr(feature = "clap", arg(long, value_name = "P", default_value = "0.95", allow_negative_numbers = true))]
    pub top_p: Option<f64>,

    /// Draw from tokens with at least this share of the likeliest one's probability; 0 for all
    #[serde(deserialize_with = "real")]
    #[cfg_attr(feature = "clap", arg(long, value_name = "P", default_value = "0.05", allow_negative_numbers = true))]
    pub min_p: Option<f64>,

    /// Draw from the most typical tokens that have this probability together; 1 for all
    #[serde(deserialize_with = "real")]
    #[cfg_attr(
        feature = "clap",
        arg(long, visible_alias = "typical", value_name = "P", default_value = "1", allow_negative_numbers = true)
    )]
    pub typical_p: Option<f64>,

    /// Divides the logits of tokens of prompt and text; 1 for none
    #[serde(alias = "repeat_penalty", deserialize_with = "real")]
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
    #[serde(deserialize_with = "real")]
    #[cfg_attr(feature = "clap", arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true))]
    pub frequency_penalty: Option<f64>,

    /// Taken from the logit of each token that was generated
    #[serde(deserialize_with = "real")]
    #[cfg_attr(feature = "clap", arg(long, value_name = "X", default_value = "0", allow_negative_numbers = true))]
    pub presence_penalty: Option<f64>,

    /// Added to the logit of a token, such as 42=-1.5; -inf excludes it. May be repeated
    #[serde(deserialize_with = "by_id")]
    #[cfg_attr(feature = "clap", arg(long, value_name = "ID=X", value_parser = bias))]
    pub logit_bias: Option<Vec<(u32, f32)>>,

    /// Seed of the draws; -1 for another one each time, told at the end [default: -1]
    ///
    /// The same seed gives the same text, for any number of threads, beside any other prompts. Line i of a batch and turn
    /// i of a chat, from 0, has this seed plus i unless it has its own.
    #[serde(deserialize_with = "seed_or_any")]
    #[cfg_attr(feature = "clap", arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true))]
    pub seed: Option<u64>,

    /// A text that ends generation; it is not part of the output. May be repeated
    ///
    /// \n, \r, \t, \\, \", \' and \xHH are the characters that they stand for in most languages.
    #[serde(deserialize_with = "one_or_several")]
    #[cfg_attr(feature = "clap", arg(long, value_name = "TEXT", value_parser = stop_text, allow_hyphen_values = true, help_heading = "End of the text"))]
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
    #[serde(alias = "n", deserialize_with = "whole")]
    #[cfg_attr(feature = "clap", arg(skip))]
    pub samples: Option<usize>,

    /// Log-probability of each token, and of so many likeliest alternatives.
    #[serde(deserialize_with = "whole")]
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
        request.max_tokens = self.max_tokens.or(request.max_tokens).filter(|most| *most != UNLIMITED);
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

/// A seed that nobody chose: of 32 bits, so that it is easily typed.
pub fn any_seed() -> u64 {
    RandomState::new().hash_one(0) >> 32
}

/// A text in which `\n` and its like are the characters that they stand for; what stands for none stays as it is.
pub fn unescaped(text: &str) -> String {
    let (mut result, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find('\\') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let code = rest.strip_prefix('x').and_then(|rest| rest.get(..2));
        let code = code.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(u8::is_ascii);
        let (letter, taken) = match (rest.chars().next(), code) {
            (Some('n'), _) => ('\n', 1),
            (Some('r'), _) => ('\r', 1),
            (Some('t'), _) => ('\t', 1),
            (Some(letter @ ('\\' | '"' | '\'')), _) => (letter, 1),
            (Some('x'), Some(code)) => (char::from(code), 3),
            _ => ('\\', 0),
        };
        result.push(letter);
        rest = &rest[taken..];
    }
    result + rest
}

#[cfg(feature = "clap")]
fn stop_text(text: &str) -> Result<String, std::convert::Infallible> {
    Ok(unescaped(text))
}

/// A whole number above 0, or -1.
#[cfg(feature = "clap")]
fn most_tokens(text: &str) -> Result<usize, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(UNLIMITED),
        Ok(number @ 1..) => usize::try_from(number).map_err(|_| format!("expected {}, found {text}", Most::EXPECTED)),
        _ => Err(format!("expected {}, found {text:?}", Most::EXPECTED)),
    }
}

/// A seed, or -1 for any.
#[cfg(feature = "clap")]
fn seed(text: &str) -> Result<u64, String> {
    match text {
        "-1" => Ok(any_seed()),
        text => text.parse().map_err(|_| format!("expected {}, found {text:?}", AnySeed::EXPECTED)),
    }
}

/// A kind of number in JSON.
trait Kind {
    type Value;
    /// What is expected, in words.
    const EXPECTED: &'static str;
    /// The value of a whole number.
    fn whole(number: i128) -> Option<Self::Value>;
    /// The value of another number.
    fn real(_: f64) -> Option<Self::Value> {
        None
    }
}

struct Whole;

impl Kind for Whole {
    type Value = usize;
    const EXPECTED: &'static str = "a whole number of 0 or more";
    fn whole(number: i128) -> Option<usize> {
        usize::try_from(number).ok()
    }
}

struct Real;

impl Kind for Real {
    type Value = f64;
    const EXPECTED: &'static str = "a number";
    fn whole(number: i128) -> Option<f64> {
        Some(number as f64)
    }
    fn real(number: f64) -> Option<f64> {
        Some(number)
    }
}

struct Most;

impl Kind for Most {
    type Value = usize;
    const EXPECTED: &'static str = "a whole number above 0, or -1 for no limit";
    fn whole(number: i128) -> Option<usize> {
        // 0 is refused where a request is checked.
        if number == -1 { Some(UNLIMITED) } else { usize::try_from(number).ok() }
    }
}

struct AnySeed;

impl Kind for AnySeed {
    type Value = u64;
    const EXPECTED: &'static str = "a whole number of 0 or more, or -1 for any";
    fn whole(number: i128) -> Option<u64> {
        if number == -1 { Some(any_seed()) } else { u64::try_from(number).ok() }
    }
}

/// Reads a number of a kind, or null.
struct Reader<K>(PhantomData<K>);

impl<'de, K: Kind> Visitor<'de> for Reader<K> {
    type Value = Option<K::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(K::EXPECTED)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        let value = K::whole(number.into());
        value.map(Some).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        let value = K::whole(number.into());
        value.map(Some).ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        K::real(number).map(Some).ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    from.deserialize_any(Reader::<Whole>(PhantomData))
}

fn real<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    from.deserialize_any(Reader::<Real>(PhantomData))
}

fn most<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    from.deserialize_any(Reader::<Most>(PhantomData))
}

fn seed_or_any<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    from.deserialize_any(Reader::<AnySeed>(PhantomData))
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
            ("{\"top_p\": \"much\"}", "invalid type: string \"much\", expected a number"),
            ("{\"top_k\": -2}", "invalid value: integer `-2`, expected a whole number of 0 or more"),
            ("{\"top_k\": 1.5}", "expected a whole number of 0 or more"),
            ("{\"max_tokens\": -2}", "expected a whole number above 0, or -1 for no limit"),
            ("{\"seed\": \"x\"}", "expected a whole number of 0 or more, or -1 for any"),
            ("{\"temp\": 1, \"temperature\": 1}", "duplicate field `temperature`"),
            ("{\"stop\": 3}", "expected a text or an array of texts"),
        ] {
            let error = serde_json::from_str::<Settings>(bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }

    #[test]
    fn minus_one_is_no_limit_and_no_seed() {
        let mut request = Request { max_tokens: Some(3), seed: Some(4), ..Request::new(vec![1]) };
        serde_json::from_str::<Settings>("{\"n_predict\": -1, \"seed\": -1}").unwrap().apply(&mut request);
        assert_eq!(request.max_tokens, None);
        assert!(request.seed.is_some_and(|seed| seed <= u64::from(u32::MAX)));
    }

    #[test]
    fn escapes_are_the_characters_that_they_stand_for() {
        for (text, expected) in [
            (r"\n\n", "\n\n"),
            (r"a\tb\r", "a\tb\r"),
            (r"\\n", r"\n"),
            (r#"\"\'"#, "\"'"),
            (r"\x41\x0a", "A\n"),
            (r"\xff\xg\q\", r"\xff\xg\q\"),
            ("é\n", "é\n"),
        ] {
            assert_eq!(unescaped(text), expected, "{text}");
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
