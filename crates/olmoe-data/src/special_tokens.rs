//! Which token ends a document, ends generation, begins a conversation and pads a batch: decided in this file only.
//!
//! The eos trap: training configurations of OLMoE have `eos_token_id: 0`, the id of `<|endoftext|>` in an older
//! tokenizer. In the tokenizer that the data was made with, 0 is `|||IP_ADDRESS|||` and `<|endoftext|>` is 50279. With
//! id 0, documents would be split at masked addresses and generation would never end. So 0 becomes 50279 here, with a
//! notice, unless the caller asks to keep it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

use crate::white_space::without_mark;
use crate::{ChatTemplate, ChatTokens, Message, Tokenizer, Vocabulary};

/// The largest configuration file that is read here.
const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// The token that ends documents.
const END_OF_TEXT: &str = "<|endoftext|>";
/// The token that has the id 0 in the tokenizer of OLMoE's data.
const MASKED_ADDRESS: &str = "|||IP_ADDRESS|||";

/// The special tokens of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Pads the shorter sequences of a batch.
    pub pad: Option<u32>,
    /// Begins a text; OLMoE has none.
    pub bos: Option<u32>,
    /// Ends a document.
    pub eos: Option<u32>,
    /// Stands for text that has no token.
    pub unk: Option<u32>,
    /// All tokens that end generation, `eos` first.
    pub ends: Vec<EndToken>,
}

/// A token that ends generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndToken {
    /// Its id.
    pub id: u32,
    /// The sources that name it, each a key and its file, for display.
    pub sources: Vec<String>,
}

/// Where the ids come from. For padding, beginning and end of a document, the first source in the order of the fields
/// counts, and for the end of a document, the tokenizer's `<|endoftext|>` comes last. The tokens that end generation
/// are those of all sources, and those that programs know by their text.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpecialTokenSources<'a> {
    /// The content of `config.json`.
    pub config: Option<&'a Value>,
    /// The `model` section of a training YAML.
    pub training: Option<&'a Value>,
    /// The keys `tokenizer.ggml.*` of a GGUF file.
    pub vocabulary: Option<&'a Vocabulary>,
    /// The content of `generation_config.json`. All ids of its `eos_token_id` end generation.
    pub generation_config: Option<&'a Value>,
    /// The content of `tokenizer_config.json`, which names tokens by their text.
    pub tokenizer_config: Option<&'a Value>,
    /// The content of `special_tokens_map.json`, which names tokens by their text, too.
    pub special_tokens_map: Option<&'a Value>,
    /// The rows of the model's embeddings; ids must be below this number. None: the size of the tokenizer.
    pub rows: Option<usize>,
    /// Keeps an `eos_token_id` of 0.
    pub keep_eos: bool,
}

/// A value that was corrected or ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialTokenNotice {
    /// The key.
    pub key: &'static str,
    /// What was found, and what was made of it.
    pub text: String,
}

impl fmt::Display for SpecialTokenNotice {
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
        /// The expected type.
        expected: &'static str,
        /// What was found.
        found: String,
    },
}

/// Names of the files, for messages.
const CONFIG: &str = "config.json";
const TRAINING: &str = "the training configuration";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
/// Keys of tokens that end generation besides the end of a document: the end of a turn, and of a message in it.
const MORE_ENDS: [(&str, &str); 2] = [("eot_token_id", "eot_token"), ("eom_token_id", "eom_token")];

impl SpecialTokens {
    /// Decides the special tokens; without a tokenizer, by ids alone. A key whose token the model does not have is
    /// ignored with a notice.
    ///
    /// # Errors
    /// Values of the wrong type.
    pub fn resolve<'t>(
        tokenizer: impl Into<Option<&'t Tokenizer>>,
        sources: &SpecialTokenSources,
    ) -> Result<(SpecialTokens, Vec<SpecialTokenNotice>), SpecialTokenError> {
        let tokenizer = tokenizer.into();
        let mut search = Search { tokenizer, sources, notices: Vec::new(), ends: Vec::new() };
        let vocabulary = sources.vocabulary;
        let eos = match search.first("eos_token_id", vocabulary.and_then(|vocabulary| vocabulary.eos))? {
            Some((id, source)) => {
                search.end(id, format!("eos_token_id of {source}"));
                Some(id)
            }
            None => None,
        };
        search.all_ends()?;
        let eos = match eos {
            Some(id) => Some(id),
            None => search.named("eos_token")?.or_else(|| search.id_of(END_OF_TEXT)),
        };
        let bos = search.one("bos_token_id", "bos_token", vocabulary.and_then(|vocabulary| vocabulary.bos))?;
        let pad = search.one("pad_token_id", "pad_token", vocabulary.and_then(|vocabulary| vocabulary.pad))?;
        let unk = search.one("unk_token_id", "unk_token", vocabulary.and_then(|vocabulary| vocabulary.unk))?;
        let Search { mut notices, mut ends, .. } = search;
        ends.sort_by_key(|end| Some(end.id) != eos);
        let mut said = std::collections::HashSet::new();
        notices.retain(|notice| said.insert(notice.to_string()));
        Ok((SpecialTokens { pad, bos, eos, unk, ends }, notices))
    }

    /// Decides the special tokens by the files of a Hugging Face checkpoint; missing files are skipped.
    pub fn from_directory(
        tokenizer: &Tokenizer,
        directory: &Path,
        keep_eos: bool,
    ) -> Result<(SpecialTokens, Vec<SpecialTokenNotice>), SpecialTokenError> {
        let config = read(&directory.join(CONFIG))?;
        let generation_config = read(&directory.join(GENERATION_CONFIG))?;
        let tokenizer_config = read(&directory.join(TOKENIZER_CONFIG))?;
        let special_tokens_map = read(&directory.join(SPECIAL_TOKENS_MAP))?;
        let rows = config.as_ref().and_then(|config| config.get("vocab_size")).and_then(Value::as_u64);
        let sources = SpecialTokenSources {
            config: config.as_ref(),
            generation_config: generation_config.as_ref(),
            tokenizer_config: tokenizer_config.as_ref(),
            special_tokens_map: special_tokens_map.as_ref(),
            rows: rows.and_then(|rows| usize::try_from(rows).ok()),
            keep_eos,
            ..Default::default()
        };
        SpecialTokens::resolve(tokenizer, &sources)
    }

    /// The token to put after every document.
    pub fn ends_document(&self) -> Option<u32> {
        self.eos
    }

    /// Whether generation stops at a token.
    pub fn ends_generation(&self, id: u32) -> bool {
        self.ends.iter().any(|end| end.id == id)
    }

    /// The tokens that generation stops at, the end of a document first.
    pub fn end_ids(&self) -> Vec<u32> {
        self.ends.iter().map(|end| end.id).collect()
    }

    /// Adds a token that ends generation, or a further source of one.
    pub fn add_end(&mut self, id: u32, source: impl Into<String>) {
        add_end(&mut self.ends, id, source.into());
    }

    /// The tokens that end generation besides the end of a document, under the keys of a GGUF file that programs read.
    /// Keys for single tokens go to tokens that no program knows by their text; the list holds all.
    pub fn more_ends(&self, tokenizer: &Tokenizer) -> Vec<(&'static str, u32)> {
        let known = tokenizer.known_ends();
        let all = self.end_ids();
        let unknown = all.iter().copied().filter(|id| Some(*id) != self.eos && !known.contains(id));
        let mut keyed: Vec<(&str, u32)> = Vocabulary::END_KEYS.into_iter().zip(unknown.take(2)).collect();
        if all.len() > 1 {
            let [.., list] = Vocabulary::END_KEYS;
            keyed.extend(all.iter().map(|id| (list, *id)));
        }
        keyed
    }

    /// The token that a conversation begins with: `bos`, or `eos` for models without one, as in the fine-tuning of
    /// OLMoE.
    pub fn begins_conversation(&self) -> Option<u32> {
        self.bos.or(self.eos)
    }
}

/// The special token that a template puts after an answer, which ends it.
pub fn ends_answer(template: &ChatTemplate, tokens: ChatTokens, tokenizer: &Tokenizer) -> Option<u32> {
    const ANSWER: &str = "the words of the assistant";
    let messages = [Message::new("user", "the words of the user"), Message::new("assistant", ANSWER)];
    let text = template.render(&messages, tokens, false).ok()?.text;
    let (_, rest) = text.rsplit_once(ANSWER)?;
    let first = tokenizer.encode(rest.trim_start()).ok()?.first().copied()?;
    tokenizer.is_special(first).then_some(first)
}

fn add_end(ends: &mut Vec<EndToken>, id: u32, source: String) {
    match ends.iter_mut().find(|end| end.id == id) {
        Some(end) if end.sources.contains(&source) => {}
        Some(end) => end.sources.push(source),
        None => ends.push(EndToken { id, sources: vec![source] }),
    }
}

struct Search<'a> {
    tokenizer: Option<&'a Tokenizer>,
    sources: &'a SpecialTokenSources<'a>,
    notices: Vec<SpecialTokenNotice>,
    ends: Vec<EndToken>,
}

impl<'a> Search<'a> {
    fn id_of(&self, text: &str) -> Option<u32> {
        self.tokenizer?.id_of(text)
    }

    /// The number of rows of the model's embeddings.
    fn rows(&self) -> usize {
        self.sources.rows.or(self.tokenizer.map(Tokenizer::size)).unwrap_or(usize::MAX)
    }

    /// The id if the model has a row for it, else None and a notice.
    fn with_row(&mut self, key: &'static str, source: &str, id: u64) -> Option<u32> {
        let rows = self.rows();
        if id < rows as u64 {
            return u32::try_from(id).ok();
        }
        let text = format!("in {source} is {id}, beyond the {rows} rows of the model; ignored");
        self.notices.push(SpecialTokenNotice { key, text });
        None
    }

    fn end(&mut self, id: u32, source: String) {
        add_end(&mut self.ends, id, source);
    }

    /// The id under a key from the first source that has one, and the name of the source. `held` is the id of a GGUF
    /// file.
    fn first(
        &mut self,
        key: &'static str,
        held: Option<u32>,
    ) -> Result<Option<(u32, &'static str)>, SpecialTokenError> {
        let SpecialTokenSources { config, training, generation_config, .. } = *self.sources;
        for (name, source) in [(CONFIG, config), (TRAINING, training)] {
            if let Some(id) = self.ids_of(key, name, source)?.first() {
                return Ok(Some((*id, name)));
            }
        }
        const GGUF: &str = "the GGUF file";
        if let Some(id) = held.and_then(|id| self.with_row(key, GGUF, id.into())) {
            return Ok(Some((self.meant(key, GGUF, id), GGUF)));
        }
        let ids = self.ids_of(key, GENERATION_CONFIG, generation_config)?;
        Ok(ids.first().map(|id| (*id, GENERATION_CONFIG)))
    }

    /// The token under a key or, where no id is given, of a text.
    fn one(
        &mut self,
        id: &'static str,
        text: &'static str,
        held: Option<u32>,
    ) -> Result<Option<u32>, SpecialTokenError> {
        match self.first(id, held)? {
            Some((id, _)) => Ok(Some(id)),
            None => self.named(text),
        }
    }

    /// Collects all tokens that end generation.
    fn all_ends(&mut self) -> Result<(), SpecialTokenError> {
        let SpecialTokenSources { config, generation_config, vocabulary, .. } = *self.sources;
        let keys = ["eos_token_id"].into_iter().chain(MORE_ENDS.map(|more| more.0));
        for (key, (name, source)) in
            keys.flat_map(|key| [(CONFIG, config), (GENERATION_CONFIG, generation_config)].map(|file| (key, file)))
        {
            for id in self.ids_of(key, name, source)? {
                self.end(id, format!("{key} of {name}"));
            }
        }
        for (key, id) in vocabulary.map(|vocabulary| vocabulary.ends.as_slice()).unwrap_or_default() {
            if let Some(id) = self.with_row(key, "the GGUF file", (*id).into()) {
                self.end(id, (*key).to_owned());
            }
        }
        for key in ["eos_token"].into_iter().chain(MORE_ENDS.map(|more| more.1)) {
            if let Some(id) = self.named(key)? {
                self.end(id, format!("{key} of the tokenizer's settings"));
            }
        }
        let rows = self.rows();
        for id in self.tokenizer.map(Tokenizer::known_ends).unwrap_or_default() {
            if (id as usize) < rows {
                self.end(id, "its text, as llama.cpp knows it".to_owned());
            }
        }
        Ok(())
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
        let mut ids = Vec::new();
        for value in values {
            // Some files write −1 for "none".
            if value.as_i64() == Some(-1) {
                continue;
            }
            let Some(id) = value.as_u64() else {
                let expected = "a token's id, a list of ids or null";
                return Err(SpecialTokenError::WrongType { key, source_name, expected, found: short(value) });
            };
            if let Some(id) = self.with_row(key, source_name, id) {
                ids.push(self.meant(key, source_name, id));
            }
        }
        Ok(ids)
    }

    /// The id that is meant: see the eos trap.
    fn meant(&mut self, key: &'static str, source_name: &str, id: u32) -> u32 {
        let masked = |tokenizer: &Tokenizer| tokenizer.token(0) == Some(MASKED_ADDRESS);
        match self.id_of(END_OF_TEXT) {
            Some(meant) if key == "eos_token_id" && id == 0 && self.tokenizer.is_some_and(masked) => {
                let says = format!("in {source_name} is 0, which is {MASKED_ADDRESS} in this tokenizer");
                let text = if self.sources.keep_eos {
                    format!("{says}; kept as asked, though {END_OF_TEXT} is {meant}")
                } else {
                    format!("{says}; replaced by {meant}, {END_OF_TEXT}, which had the id 0 in an older one")
                };
                self.notices.push(SpecialTokenNotice { key, text });
                if self.sources.keep_eos { id } else { meant }
            }
            _ => id,
        }
    }

    /// The token that the tokenizer's settings name under a key, by its text or by an object with its `content`.
    fn named(&mut self, key: &'static str) -> Result<Option<u32>, SpecialTokenError> {
        let SpecialTokenSources { tokenizer_config, special_tokens_map, .. } = *self.sources;
        let Some(tokenizer) = self.tokenizer else { return Ok(None) };
        for (source_name, source) in [(TOKENIZER_CONFIG, tokenizer_config), (SPECIAL_TOKENS_MAP, special_tokens_map)] {
            let text = match source.and_then(|source| source.get(key)) {
                None | Some(Value::Null) => continue,
                Some(Value::Object(token)) => token.get("content").unwrap_or(&Value::Null),
                Some(other) => other,
            };
            let Value::String(text) = text else {
                let expected = "a token's text";
                return Err(SpecialTokenError::WrongType { key, source_name, expected, found: short(text) });
            };
            match tokenizer.id_of(text) {
                Some(id) => {
                    if let Some(id) = self.with_row(key, source_name, id.into()) {
                        return Ok(Some(id));
                    }
                }
                None => {
                    let text = format!("in {source_name} is {text:?}, which is not a token of the tokenizer; ignored");
                    self.notices.push(SpecialTokenNotice { key, text });
                }
            }
        }
        Ok(None)
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
