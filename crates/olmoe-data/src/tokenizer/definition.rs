//! The content of a `tokenizer.json`: reading it within limits, and checks before anything is built from it.

use std::collections::HashMap;
use std::fmt;

use ahash::AHashMap;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::added::AddedTokens;
use super::byte_level::ByteLevel;
use super::bytes;
use super::error::TokenizerError;
use super::merges::Merges;
use super::normal_form;
use super::post_processor::Around;
use super::words::{CL100K, CL100K_SINGLE_DIGITS, Words};
use crate::white_space::without_mark;

/// The largest `tokenizer.json`; OLMoE's has 2 MB, the largest known ones 35 MB.
pub const MAX_JSON_BYTES: usize = 64 << 20;
/// Ids of tokens are below this; the largest known vocabularies have 262,144 tokens.
pub const MAX_TOKENS: usize = 1 << 21;

#[derive(Deserialize)]
struct Document<'a> {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(borrow)]
    model: &'a RawValue,
}

/// An entry of `added_tokens`.
#[derive(Deserialize, Clone, Debug)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    pub(super) normalized: bool,
    pub(super) special: bool,
}

#[derive(Deserialize)]
struct ModelType {
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Only BPE models have these fields.
    merges: Option<IgnoredAny>,
}

/// A model of type BPE.
#[derive(Deserialize)]
pub(super) struct Bpe {
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    ignore_merges: Option<bool>,
    pub(super) vocab: HashMap<String, u32>,
    pub(super) merges: Vec<Merge>,
}

/// Two tokens: `["a", "b"]`, or the older `"a b"`.
pub(super) struct Merge(pub(super) String, pub(super) String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Merge, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a merge: \"a b\" or [\"a\", \"b\"]")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => Ok(Merge(a.into(), b.into())),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Merge, A::Error> {
                let mut part = |n| parts.next_element()?.ok_or_else(|| serde::de::Error::invalid_length(n, &self));
                let merge = Merge(part(0)?, part(1)?);
                match parts.next_element::<IgnoredAny>()? {
                    None => Ok(merge),
                    Some(_) => Err(serde::de::Error::invalid_length(3, &self)),
                }
            }
        }
        deserializer.deserialize_any(Parts)
    }
}

/// A `tokenizer.json` that has been read and checked.
pub(super) struct Definition {
    pub(super) added: Vec<Added>,
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) around: Around,
    decoder: Value,
    /// The model if it is of type BPE; the library reads the others.
    pub(super) bpe: Option<Bpe>,
}

impl Definition {
    /// Reads and checks a definition.
    pub(super) fn read(json: &[u8]) -> Result<Definition, TokenizerError> {
        if json.len() > MAX_JSON_BYTES {
            return Err(TokenizerError::TooLong { limit: MAX_JSON_BYTES });
        }
        let document: Document = serde_json::from_slice(without_mark(json)).map_err(syntax)?;
        if let Some(version) = document.version.filter(|version| version != "1.0") {
            let message = format!("its version is {version:?}, expected \"1.0\"");
            return Err(TokenizerError::Syntax { message });
        }
        let model: ModelType = serde_json::from_str(document.model.get()).map_err(in_model)?;
        let bpe = match model.kind.as_deref() {
            // Older files leave the type out.
            kind if kind == Some("BPE") || kind.is_none() && model.merges.is_some() => {
                Some(serde_json::from_str::<Bpe>(document.model.get()).map_err(in_model)?)
            }
            _ => None,
        };
        let Document { added_tokens: added, normalizer, pre_tokenizer, post_processor, decoder, .. } = document;
        let around = Around::read(&post_processor)?;
        let definition = Definition { added, normalizer, pre_tokenizer, around, decoder, bpe };
        definition.check()?;
        Ok(definition)
    }

    fn check(&self) -> Result<(), TokenizerError> {
        for added in &self.added {
            check_id(&added.content, added.id)?;
        }
        let Some(bpe) = &self.bpe else { return Ok(()) };
        let mut text_of: AHashMap<u32, &str> = AHashMap::with_capacity(bpe.vocab.len());
        for (text, id) in &bpe.vocab {
            check_id(text, *id)?;
            if let Some(other) = text_of.insert(*id, text) {
                let (first, second) = (other.min(text), other.max(text));
                return Err(TokenizerError::SameId { first: first.to_owned(), second: second.to_owned(), id: *id });
            }
        }
        // Added tokens that the vocabulary lacks are numbered after it.
        let mut next = bpe.vocab.len() as u32;
        let mut seen: AHashMap<&str, u32> = AHashMap::new();
        for Added { id, content, .. } in self.added.iter().filter(|added| !added.content.is_empty()) {
            let given = seen.get(content.as_str()).or(bpe.vocab.get(content)).copied().unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            if given != *id {
                return Err(TokenizerError::AddedTokenId { token: content.clone(), said: *id, given });
            }
            if let Some(other) = text_of.insert(*id, content).filter(|other| other != content) {
                let (first, second) = (other.to_owned(), content.clone());
                return Err(TokenizerError::SameId { first, second, id: *id });
            }
            seen.insert(content, given);
        }
        let prefix = bpe.continuing_subword_prefix.as_deref().unwrap_or("").len();
        for (index, Merge(first, second)) in bpe.merges.iter().enumerate() {
            let missing = |text: &str| TokenizerError::MergeToken {
                index,
                first: first.clone(),
                second: second.clone(),
                missing: text.to_owned(),
            };
            if let Some(part) = [first, second].into_iter().find(|part| !bpe.vocab.contains_key(*part)) {
                return Err(missing(part));
            }
            let merged = format!("{first}{}", second.get(prefix..).ok_or_else(|| missing(second))?);
            if !bpe.vocab.contains_key(&merged) {
                return Err(missing(&merged));
            }
        }
        Ok(())
    }

    /// The probability of BPE dropout; None without dropout.
    pub(super) fn dropout(&self) -> Option<f32> {
        self.bpe.as_ref()?.dropout.filter(|dropout| *dropout != 0.0)
    }

    /// The way to cut words, if it is one that is implemented here.
    pub(super) fn words(&self) -> Option<Words> {
        let value = &self.pre_tokenizer;
        let is = |value: &Value, kind: &str| value["type"] == kind;
        // Whether a ByteLevel step cuts words itself.
        let cuts = |value: &Value| {
            let plain = is(value, "ByteLevel") && value["add_prefix_space"] == false;
            plain.then(|| value["use_regex"] != false)
        };
        if cuts(value) == Some(true) {
            return Some(Words::Gpt2);
        }
        let [first, last] = value["pretokenizers"].as_array().filter(|_| is(value, "Sequence"))?.as_slice() else {
            return None;
        };
        let split = match (&first["behavior"], first["invert"] == true) {
            (Value::String(behavior), inverted) if is(first, "Split") => {
                let kept = if inverted { behavior == "Removed" } else { behavior == "Isolated" };
                first["pattern"]["Regex"].as_str().filter(|_| kept)
            }
            _ => None,
        };
        let digits = is(first, "Digits") && first["individual_digits"] == true
            || split == Some(r"\p{N}") && first["behavior"] == "Isolated";
        match (split, cuts(last)?) {
            (Some(CL100K), false) => Some(Words::Cl100k { digits: 3 }),
            (Some(CL100K_SINGLE_DIGITS), false) => Some(Words::Cl100k { digits: 1 }),
            (_, true) if digits => Some(Words::SingleDigits),
            _ => None,
        }
    }

    /// Whether normal form C is applied first; None for any other normaliser.
    pub(super) fn composes(&self) -> Option<bool> {
        match &self.normalizer {
            Value::Null => Some(false),
            Value::Object(keys) if keys.len() == 1 && keys.get("type").is_some_and(|kind| kind == "NFC") => Some(true),
            _ => None,
        }
    }

    /// Whether words that are tokens are not merged.
    pub(super) fn ignores_merges(&self) -> bool {
        self.bpe.as_ref().is_some_and(|bpe| bpe.ignore_merges == Some(true))
    }

    /// The encoder for byte-level vocabularies, if it supports everything in the definition.
    pub(super) fn byte_level(&self) -> Option<ByteLevel> {
        let bpe = self.bpe.as_ref()?;
        let (compose, words) = (self.composes()?, self.words()?);
        let affixes = [&bpe.continuing_subword_prefix, &bpe.end_of_word_suffix];
        let plain = affixes.iter().all(|affix| affix.as_deref().unwrap_or("").is_empty())
            && self.decoder["type"] == "ByteLevel"
            && !self.added.iter().any(|added| added.single_word || added.lstrip || added.rstrip);
        if !plain {
            return None;
        }
        let mut tokens = [0; 256];
        for (byte, token) in (0..=255u8).zip(&mut tokens) {
            match bpe.vocab.get(bytes::letter(byte).encode_utf8(&mut [0; 4]) as &str) {
                Some(id) => *token = *id,
                // These bytes never occur in UTF-8; the vocabulary of GPT-NeoX leaves them out.
                None if matches!(byte, 0xC0 | 0xC1 | 0xF5..) => {}
                None => return None,
            }
        }
        let mut pairs = AHashMap::with_capacity(bpe.merges.len());
        let mut merged = String::new();
        for (rank, Merge(first, second)) in bpe.merges.iter().enumerate() {
            merged.clear();
            merged.extend([first.as_str(), second]);
            let ids = [first, second, &merged].map(|text| bpe.vocab.get(text).copied());
            let [Some(a), Some(b), Some(both)] = ids else { return None };
            pairs.insert((a, b), (rank as u32, both));
        }
        let whole = self.ignores_merges().then(|| {
            let words = bpe.vocab.iter().filter_map(|(text, id)| Some((bytes::bytes_of(text)?, *id)));
            words.collect()
        });
        let normal = |text: &str| if compose { normal_form::composed(text).into_owned() } else { text.to_owned() };
        let of_kind = |normalized: bool| self.added.iter().filter(move |added| added.normalized == normalized);
        let composed: Vec<_> = of_kind(true).map(|added| (normal(&added.content), added.id)).collect();
        let raw: Vec<_> = of_kind(false).map(|added| (added.content.clone(), added.id)).collect();
        Some(ByteLevel {
            compose,
            words,
            lengths: raw.iter().chain(&composed).map(|(text, id)| (*id, text.len())).collect(),
            raw: AddedTokens::new(raw),
            composed: AddedTokens::new(composed),
            merges: Merges { bytes: tokens, pairs, whole },
            idle: Default::default(),
        })
    }
}

fn check_id(token: &str, id: u32) -> Result<(), TokenizerError> {
    if (id as usize) < MAX_TOKENS {
        return Ok(());
    }
    Err(TokenizerError::IdTooLarge { token: token.to_owned(), id, limit: MAX_TOKENS })
}

fn syntax(error: serde_json::Error) -> TokenizerError {
    TokenizerError::Syntax { message: error.to_string() }
}

fn in_model(error: serde_json::Error) -> TokenizerError {
    // Its line and column count from the beginning of the model.
    TokenizerError::Syntax { message: format!("in `model`: {error}") }
}
