//! Which token ends a document, ends generation, begins a conversation and fills up a batch: decided here only.
//!
//! The eos trap: training configurations of OLMoE say `eos_token_id: 0`, the id of `<|endoftext|>` in an older tokenizer.
//! In the tokenizer that the data was made with, 0 is `|||IP_ADDRESS|||` and `<|endoftext|>` is 50279. Taken at its word
//! such a file splits documents at masked addresses and lets generation run on for ever, so 0 becomes 50279 here, with a
//! notice, unless told not to.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

use crate::white_space::without_mark;
use crate::{Tokenizer, Vocabulary};

/// Most bytes of a configuration file that is read here.
const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// The token that ends documents.
const END_OF_TEXT: &str = "<|endoftext|>";
/// The token that has the id 0 where a configuration means the older tokenizer.
const MASKED_ADDRESS: &str = "|||IP_ADDRESS|||";

/// The special tokens of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Fills up shorter sequences of a batch.
    pub pad: Option<u32>,
    /// Put before a text; OLMoE has none.
    pub bos: Option<u32>,
    /// Ends a document.
    pub eos: Option<u32>,
    /// Stands for what has no token.
    pub unk: Option<u32>,
    /// More tokens that end generation.
    pub stops: Vec<u32>,
}

/// Where the ids come from; for each the first one counts that has it, in the order of the fields, and last the token
/// `<|endoftext|>` of the tokenizer as end of a document.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpecialTokenSources<'a> {
    /// The content of `config.json`.
    pub config: Option<&'a Value>,
    /// The `model` section of a training YAML.
    pub training: Option<&'a Value>,
    /// The content of `generation_config.json`. All of its `eos_token_id` end generation.
    pub generation_config: Option<&'a Value>,
    /// The content of `tokenizer_config.json`, which names tokens by their text.
    pub tokenizer_config: Option<&'a Value>,
    /// Rows of the model's embeddings; ids are below it. Left out: the size of the tokenizer.
    pub rows: Option<usize>,
    /// Takes an `eos_token_id` of 0 at its word.
    pub keep_eos: bool,
}

/// Something that was read otherwise than it stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The key.
    pub key: &'static str,
    /// What was found and what was made of it.
    pub text: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.key, self.text)
    }
}

/// Why the special tokens could not be decided.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SpecialTokenError {
    /// A file could not be read.
    #[error("cannot read {}: {source}; check that it is readable", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is too long.
    #[error("{} has more than {limit} bytes, which no configuration has", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Most bytes accepted.
        limit: u64,
    },
    /// A file is not JSON.
    #[error("{} is not valid JSON: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        message: String,
    },
    /// A value of the wrong type.
    #[error("`{key}` in {source_name} must be {expected}, found {found}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// The file or section.
        source_name: &'static str,
        /// The type it has.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// An id that the model does not have.
    #[error(
        "`{key}` in {source_name} is {id}, but ids go from 0 to {last}; use the tokenizer that the model was made with"
    )]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// The file or section.
        source_name: &'static str,
        /// The id.
        id: u64,
        /// The highest id.
        last: usize,
    },
    /// A text that is no token.
    #[error("`{key}` in {source_name} is {found:?}, which is no token of the tokenizer")]
    NoToken {
        /// The key.
        key: &'static str,
        /// The file or section.
        source_name: &'static str,
        /// The text.
        found: String,
    },
}

impl SpecialTokens {
    /// Decides them.
    pub fn resolve(
        tokenizer: &Tokenizer,
        sources: &SpecialTokenSources,
    ) -> Result<(SpecialTokens, Vec<Notice>), SpecialTokenError> {
        let mut search = Search { tokenizer, sources, notices: Vec::new() };
        let first = |ids: Vec<u32>| ids.first().copied();
        let eos = match first(search.ids("eos_token_id")?) {
            Some(id) => Some(id),
            None => search.named("eos_token")?.or_else(|| tokenizer.id_of(END_OF_TEXT)),
        };
        let one = |search: &mut Search, id, text| match first(search.ids(id)?) {
            Some(id) => Ok(Some(id)),
            None => search.named(text),
        };
        let bos = one(&mut search, "bos_token_id", "bos_token")?;
        let pad = one(&mut search, "pad_token_id", "pad_token")?;
        let unk = search.named("unk_token")?;
        let mut stops = Vec::new();
        for (name, source) in [("config.json", sources.config), ("generation_config.json", sources.generation_config)] {
            for id in search.ids_of("eos_token_id", name, source)? {
                if Some(id) != eos && !stops.contains(&id) {
                    stops.push(id);
                }
            }
        }
        let mut notices = search.notices;
        notices.dedup();
        Ok((SpecialTokens { pad, bos, eos, unk, stops }, notices))
    }

    /// Decides them by the files of a Hugging Face checkpoint; files that are missing say nothing.
    pub fn from_directory(
        tokenizer: &Tokenizer,
        directory: &Path,
        keep_eos: bool,
    ) -> Result<(SpecialTokens, Vec<Notice>), SpecialTokenError> {
        let config = read(&directory.join("config.json"))?;
        let generation_config = read(&directory.join("generation_config.json"))?;
        let tokenizer_config = read(&directory.join("tokenizer_config.json"))?;
        let rows = config.as_ref().and_then(|config| config.get("vocab_size")).and_then(Value::as_u64);
        let sources = SpecialTokenSources {
            config: config.as_ref(),
            generation_config: generation_config.as_ref(),
            tokenizer_config: tokenizer_config.as_ref(),
            rows: rows.and_then(|rows| usize::try_from(rows).ok()),
            keep_eos,
            ..Default::default()
        };
        SpecialTokens::resolve(tokenizer, &sources)
    }

    /// Those of a GGUF file.
    pub fn from_vocabulary(vocabulary: &Vocabulary) -> SpecialTokens {
        let Vocabulary { pad, bos, eos, unk, .. } = *vocabulary;
        SpecialTokens { pad, bos, eos, unk, stops: Vec::new() }
    }

    /// The token to put after every document.
    pub fn ends_document(&self) -> Option<u32> {
        self.eos
    }

    /// Whether generation stops at a token.
    pub fn ends_generation(&self, id: u32) -> bool {
        self.eos == Some(id) || self.stops.contains(&id)
    }

    /// The token that a conversation begins with: `bos`, and `eos` for models without one, as in the fine-tuning of OLMoE.
    pub fn begins_conversation(&self) -> Option<u32> {
        self.bos.or(self.eos)
    }
}

struct Search<'a> {
    tokenizer: &'a Tokenizer,
    sources: &'a SpecialTokenSources<'a>,
    notices: Vec<Notice>,
}

impl Search<'_> {
    /// The ids under a key, of the first source that has any.
    fn ids(&mut self, key: &'static str) -> Result<Vec<u32>, SpecialTokenError> {
        let SpecialTokenSources { config, training, generation_config, .. } = *self.sources;
        for (name, source) in [
            ("config.json", config),
            ("the training configuration", training),
            ("generation_config.json", generation_config),
        ] {
            let ids = self.ids_of(key, name, source)?;
            if !ids.is_empty() {
                return Ok(ids);
            }
        }
        Ok(Vec::new())
    }

    fn ids_of(
        &mut self,
        key: &'static str,
        source_name: &'static str,
        source: Option<&Value>,
    ) -> Result<Vec<u32>, SpecialTokenError> {
        let Some(value) = source.and_then(|source| source.get(key)) else { return Ok(Vec::new()) };
        let values = match value {
            Value::Null => &[],
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        let rows = self.sources.rows.unwrap_or(self.tokenizer.size());
        let mut ids = Vec::new();
        for value in values {
            // Some files say "none" with −1.
            if value.as_i64() == Some(-1) {
                continue;
            }
            let Some(id) = value.as_u64() else {
                let expected = "a token's id, a list of ids or null";
                return Err(SpecialTokenError::WrongType { key, source_name, expected, found: short(value) });
            };
            if id >= rows as u64 {
                return Err(SpecialTokenError::OutOfRange { key, source_name, id, last: rows.saturating_sub(1) });
            }
            ids.push(self.meant(key, source_name, id as u32));
        }
        Ok(ids)
    }

    /// The id that an id stands for: see the eos trap.
    fn meant(&mut self, key: &'static str, source_name: &str, id: u32) -> u32 {
        let meant = self.tokenizer.id_of(END_OF_TEXT);
        match meant {
            Some(meant) if key == "eos_token_id" && id == 0 && self.tokenizer.token(0) == Some(MASKED_ADDRESS) => {
                let says = format!("in {source_name} is 0, which is {MASKED_ADDRESS} in this tokenizer");
                let text = if self.sources.keep_eos {
                    format!("{says}; kept as asked, though {END_OF_TEXT} is {meant}")
                } else {
                    format!("{says}; taken as {meant}, {END_OF_TEXT}, which it was in an older one")
                };
                self.notices.push(Notice { key, text });
                if self.sources.keep_eos { id } else { meant }
            }
            _ => id,
        }
    }

    /// The id of the token that tokenizer_config.json names under a key: its text, or an object with its `content`.
    fn named(&self, key: &'static str) -> Result<Option<u32>, SpecialTokenError> {
        let source_name = "tokenizer_config.json";
        let text = match self.sources.tokenizer_config.and_then(|config| config.get(key)) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(token)) => token.get("content").unwrap_or(&Value::Null),
            Some(other) => other,
        };
        let Value::String(text) = text else {
            let expected = "a token's text";
            return Err(SpecialTokenError::WrongType { key, source_name, expected, found: short(text) });
        };
        let id = self.tokenizer.id_of(text);
        id.map(Some).ok_or_else(|| SpecialTokenError::NoToken { key, source_name, found: text.clone() })
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 40 { text } else { text.chars().take(40).chain("…".chars()).collect() }
}

/// The content of a JSON file, if there is one.
fn read(path: &Path) -> Result<Option<Value>, SpecialTokenError> {
    let unreadable = |source| SpecialTokenError::Unreadable { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(unreadable)?,
    };
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_CONFIG_BYTES + 1), &mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err(SpecialTokenError::TooLong { path: path.to_owned(), limit: MAX_CONFIG_BYTES });
    }
    let value = serde_json::from_slice(without_mark(&bytes));
    value.map(Some).map_err(|error| SpecialTokenError::Syntax { path: path.to_owned(), message: error.to_string() })
}
