//! GGUF vocabularies, and their conversion from and to a [`Tokenizer`].
//!
//! A GGUF file names the way to cut words (`tokenizer.ggml.pre`) but not the normaliser. [`Pre::Olmo`] stands for the
//! tokenizers of GPT-NeoX and OLMo, which normalise text to form C first; the others do not normalise.

use serde_json::{Value, json};

use super::bytes::letter;
use super::definition::{Definition, MAX_TOKENS};
use super::ends;
use super::words::{CL100K, CL100K_SINGLE_DIGITS, Words};
use super::{Tokenizer, TokenizerError};

/// A vocabulary as a GGUF file holds it, in the keys `tokenizer.ggml.*` and `tokenizer.chat_template`.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocabulary {
    /// `model`: "gpt2" for byte-level BPE, the only one supported.
    pub model: String,
    /// `pre`: how words are cut.
    pub pre: Pre,
    /// `tokens`, by id.
    pub tokens: Vec<String>,
    /// `token_type`, by id; empty if all are [`TokenKind::Normal`].
    pub kinds: Vec<TokenKind>,
    /// `merges`: two tokens with a space between them, best first.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// Further tokens that end generation, each with its key, one of [`Vocabulary::END_KEYS`].
    pub ends: Vec<(&'static str, u32)>,
    /// `add_bos_token`: whether a program that reads the file puts `bos` before a text.
    pub add_bos: bool,
    /// `tokenizer.chat_template`, a Jinja template.
    pub chat_template: Option<String>,
}

impl Vocabulary {
    /// Keys of tokens that end generation, besides `eos_token_id`. The last two hold lists of ids. Ollama reads the
    /// last one, llama.cpp the others.
    pub const END_KEYS: [&'static str; 7] = [
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
        "tokenizer.ggml.fim_pad_token_id",
        "tokenizer.ggml.fim_rep_token_id",
        "tokenizer.ggml.fim_sep_token_id",
        "tokenizer.ggml.eog_token_ids",
        "tokenizer.ggml.eos_token_ids",
    ];

    /// Whether a key holds a list of ids.
    pub fn is_list(key: &str) -> bool {
        key.ends_with("_ids")
    }

    /// A vocabulary for small models: the 256 bytes, each with its value as id, and `<|endoftext|>`, id 256, at the end
    /// of a text. There are no merges, so every byte of a text is a token.
    pub fn bytes() -> Vocabulary {
        let mut tokens: Vec<String> = (0..=255).map(|byte| letter(byte).to_string()).collect();
        let mut kinds = vec![TokenKind::Normal; tokens.len()];
        tokens.push("<|endoftext|>".to_owned());
        kinds.push(TokenKind::Control);
        Vocabulary {
            model: "gpt2".to_owned(),
            pre: Pre::Olmo,
            tokens,
            kinds,
            merges: Vec::new(),
            bos: None,
            eos: Some(256),
            pad: None,
            unk: None,
            ends: Vec::new(),
            add_bos: false,
            chat_template: None,
        }
    }
}

/// The type of a token of a GGUF vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A piece of text, in the byte-level alphabet.
    Normal,
    /// Stands for text that has no token.
    Unknown,
    /// Controls the model, as `<|endoftext|>` does. It does not stand for text.
    Control,
    /// Found in the text before it is cut into words.
    UserDefined,
    /// A row of the embeddings without a token.
    Unused,
    /// One byte.
    Byte,
}

impl TokenKind {
    /// The type with a number in `token_type`; None for unknown numbers.
    pub fn from_code(code: i32) -> Option<TokenKind> {
        use TokenKind::*;
        Some(
            [Normal, Unknown, Control, UserDefined, Unused, Byte]
                [usize::try_from(code).ok()?.checked_sub(1).filter(|at| *at < 6)?],
        )
    }

    /// The number in `token_type`.
    pub fn code(self) -> i32 {
        self as i32 + 1
    }
}

/// Ways to cut text into words, as GGUF files name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pre {
    /// Used when the key is missing.
    Default,
    /// GPT-2.
    Gpt2,
    /// GPT-NeoX and OLMo: as GPT-2, after normal form C.
    Olmo,
    /// SmolLM, StarCoder: digits are words of their own.
    Smollm,
    /// DBRX and OLMo 2: as cl100k.
    Dbrx,
    /// Llama 3: as cl100k; words that are tokens are not merged.
    LlamaBpe,
    /// Qwen 2: as cl100k, with single digits.
    Qwen2,
}

/// Every variant and its names; the first one is written.
const PRE_NAMES: [(Pre, &[&str]); 7] = [
    (Pre::Default, &["default"]),
    (Pre::Gpt2, &["gpt-2", "gpt2"]),
    (Pre::Olmo, &["olmo", "mpt"]),
    (Pre::Smollm, &["smollm", "starcoder"]),
    (Pre::Dbrx, &["dbrx", "smaug-bpe"]),
    (Pre::LlamaBpe, &["llama-bpe", "llama3", "llama-v3"]),
    (Pre::Qwen2, &["qwen2", "stablelm2"]),
];

impl Pre {
    /// From `tokenizer.ggml.pre`; a file without the key means [`Pre::Default`].
    pub fn from_name(name: Option<&str>) -> Result<Pre, TokenizerError> {
        let Some(name) = name else { return Ok(Pre::Default) };
        let found = PRE_NAMES.iter().find(|(_, names)| names.contains(&name));
        found.map(|(pre, _)| *pre).ok_or_else(|| {
            let supported = PRE_NAMES.iter().flat_map(|(_, names)| *names).copied().collect::<Vec<_>>().join(", ");
            TokenizerError::UnsupportedPre { found: name.to_owned(), supported }
        })
    }

    /// The name to write.
    pub fn name(self) -> &'static str {
        PRE_NAMES.iter().find(|(pre, _)| *pre == self).map_or("default", |(_, names)| names[0])
    }

    /// Whether a program puts `bos` before a text where the file does not specify it, as in llama.cpp.
    pub fn adds_bos(self) -> bool {
        self == Pre::LlamaBpe
    }

    fn composes(self) -> bool {
        self == Pre::Olmo
    }

    fn ignores_merges(self) -> bool {
        self == Pre::LlamaBpe
    }

    /// The `pre_tokenizer` of a tokenizer.json.
    pub(super) fn json(self) -> Value {
        let split = |expression: &str| json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
        let sequence = |mut steps: Vec<Value>, use_regex: bool| {
            steps.push(byte_level(use_regex));
            json!({"type": "Sequence", "pretokenizers": steps})
        };
        match self {
            Pre::Gpt2 | Pre::Olmo => byte_level(true),
            Pre::Smollm => sequence(vec![json!({"type": "Digits", "individual_digits": true})], true),
            Pre::Dbrx | Pre::LlamaBpe => sequence(vec![split(CL100K)], false),
            Pre::Qwen2 => sequence(vec![split(CL100K_SINGLE_DIGITS)], false),
            Pre::Default => {
                let words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
                let steps = [r"[\p{P}\$\+<=>\^~\|]+", words, r"\p{N}+", "[0-9][0-9][0-9]"];
                sequence(steps.map(split).to_vec(), false)
            }
        }
    }

    pub(super) fn of(definition: &Definition) -> Option<Pre> {
        let found = match (definition.words(), definition.composes()?) {
            (Some(Words::Gpt2), true) => Pre::Olmo,
            (Some(Words::Gpt2), false) => Pre::Gpt2,
            (Some(Words::SingleDigits), false) => Pre::Smollm,
            (Some(Words::Cl100k { digits: 1 }), false) => Pre::Qwen2,
            (Some(Words::Cl100k { .. }), false) if definition.ignores_merges() => Pre::LlamaBpe,
            (Some(Words::Cl100k { .. }), false) => Pre::Dbrx,
            (None, false) if definition.pre_tokenizer == Pre::Default.json() => Pre::Default,
            _ => return None,
        };
        (found.ignores_merges() == definition.ignores_merges()).then_some(found)
    }
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// The text of a row of the embeddings without a token.
pub(super) fn padding(id: usize) -> String {
    format!("[PAD{id}]")
}

impl Tokenizer {
    /// A tokenizer from a GGUF vocabulary. Rows of the embeddings without a token (unused, `[PAD…]`) are left out.
    pub fn from_vocabulary(vocabulary: &Vocabulary) -> Result<Tokenizer, TokenizerError> {
        let Vocabulary { model, pre, tokens, kinds, merges, .. } = vocabulary;
        if model != "gpt2" {
            return Err(TokenizerError::UnsupportedModel { found: model.clone() });
        }
        if tokens.len() > MAX_TOKENS {
            return Err(TokenizerError::TooManyRows { rows: tokens.len(), limit: MAX_TOKENS });
        }
        if !kinds.is_empty() && kinds.len() != tokens.len() {
            return Err(TokenizerError::Lengths { what: "token types", found: kinds.len(), tokens: tokens.len() });
        }
        let mut vocab = serde_json::Map::new();
        let mut added = Vec::new();
        for (id, text) in tokens.iter().enumerate() {
            let kind = kinds.get(id).copied().unwrap_or(TokenKind::Normal);
            if kind == TokenKind::Unused && *text == padding(id) {
                continue;
            }
            if let Some(other) = vocab.insert(text.clone(), id.into()) {
                let first = other.as_u64().unwrap_or(0) as u32;
                return Err(TokenizerError::SameText { first, second: id as u32, text: text.clone() });
            }
            // Some files give these tokens the wrong type.
            let known = kind == TokenKind::Normal && ends::is_known(text);
            let special = known || matches!(kind, TokenKind::Control | TokenKind::Unknown);
            if special || kind == TokenKind::UserDefined {
                added.push(json!({
                    "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": pre.composes() && !special, "special": special,
                }));
            }
        }
        let pairs = merges.iter().enumerate().map(|(index, text)| {
            // Some vocabularies have merges of spaces, so the separating space is not the first character.
            let first = text.chars().next().map_or(0, char::len_utf8);
            let space = text.get(first..).and_then(|rest| rest.find(' ')).map(|at| at + first);
            let syntax = || TokenizerError::MergeSyntax { index, text: text.clone() };
            let (a, b) = text.split_at(space.ok_or_else(syntax)?);
            if b.len() < 2 { Err(syntax()) } else { Ok(json!([a, b[1..]])) }
        });
        let beginning = vocabulary.bos.filter(|_| vocabulary.add_bos);
        let post_processor = match beginning.and_then(|id| Some((id, tokens.get(id as usize)?))) {
            None => byte_level(true),
            Some((id, text)) => {
                let token = |text_number: u32| json!({"SpecialToken": {"id": text, "type_id": text_number}});
                let sequence = |name: &str, text_number: u32| json!({"Sequence": {"id": name, "type_id": text_number}});
                json!({"type": "Sequence", "processors": [byte_level(true), {
                    "type": "TemplateProcessing",
                    "single": [token(0), sequence("A", 0)],
                    "pair": [token(0), sequence("A", 0), token(1), sequence("B", 1)],
                    "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}},
                }]})
            }
        };
        let normalizer = if pre.composes() { json!({"type": "NFC"}) } else { Value::Null };
        let document = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre.json(), "post_processor": post_processor, "decoder": byte_level(true),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": pre.ignores_merges(), "vocab": vocab,
                "merges": pairs.collect::<Result<Vec<_>, _>>()?,
            },
        });
        Tokenizer::from_vec(document.to_string().into_bytes())
    }
}
