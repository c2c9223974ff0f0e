//! [`Tokenizer`]: text to ids and back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;

use ahash::AHashMap;
use olmoe_tensor::threads::parallel;

mod added;
mod byte_level;
mod bytes;
mod definition;
mod ends;
mod error;
mod export;
mod merges;
mod normal_form;
mod post_processor;
mod stream;
mod vocabulary;
mod words;

pub use definition::{MAX_JSON_BYTES, MAX_TOKENS};
pub use error::TokenizerError;
pub use stream::DecodeStream;
pub use vocabulary::{Pre, TokenKind, Vocabulary};

use byte_level::ByteLevel;
use definition::Definition;
use post_processor::Around;

use crate::white_space::without_mark;

/// Documents of a batch are given to threads in groups of about this many bytes.
const GROUP_BYTES: usize = 1 << 16;

/// Text to ids and back, as a `tokenizer.json` of the tokenizers library defines it.
///
/// Byte-level BPE with one of the common ways to cut words (OLMoE, OLMo 2, GPT-NeoX, GPT-2, Llama 3, SmolLM, Qwen 2)
/// has an encoder of its own, which gives the library's ids several times as fast. The library encodes with all others.
///
/// Special tokens in the text are encoded as such. None are added around it: [`Tokenizer::before_text`] and
/// [`Tokenizer::behind_text`] are those that the library would add. `truncation`, `padding` and `dropout` in the file
/// have no effect: they are settings of the program that saved the file, not of the tokenizer.
pub struct Tokenizer {
    json: Vec<u8>,
    table: Table,
    around: Around,
    notices: Vec<String>,
    kind: TokenizerKind,
}

enum TokenizerKind {
    ByteLevel(Box<ByteLevel>),
    Library(Box<tokenizers::Tokenizer>),
}

/// A token of a text and the range of bytes of the text that it stands for.
///
/// A token may be a part of a character. Where the tokenizer normalises the text, the range is that of the characters
/// that the token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The token.
    pub id: u32,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, or that of a directory.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Tokenizer, TokenizerError> {
        let mut path = path.as_ref().to_owned();
        if path.is_dir() {
            let inside = path.join("tokenizer.json");
            if !inside.exists() {
                return Err(TokenizerError::NoTokenizerJson { path });
            }
            path = inside;
        }
        let unreadable = |source| TokenizerError::Unreadable { path: path.clone(), source };
        let in_file = |source| TokenizerError::InFile { path: path.clone(), source: Box::new(source) };
        let mut file = std::fs::File::open(&path).map_err(unreadable)?;
        let mut json = Vec::new();
        let limited = &mut std::io::Read::take(&mut file, MAX_JSON_BYTES as u64 + 1);
        std::io::Read::read_to_end(limited, &mut json).map_err(unreadable)?;
        Tokenizer::from_vec(json).map_err(in_file)
    }

    /// Reads the content of a `tokenizer.json`, of at most [`MAX_JSON_BYTES`].
    pub fn from_json(json: &[u8]) -> Result<Tokenizer, TokenizerError> {
        if json.len() > MAX_JSON_BYTES {
            return Err(TokenizerError::TooLong { limit: MAX_JSON_BYTES });
        }
        Tokenizer::from_vec(json.to_vec())
    }

    fn from_vec(json: Vec<u8>) -> Result<Tokenizer, TokenizerError> {
        let definition = Definition::read(&json)?;
        let around = definition.around.clone();
        let mut notices = Vec::new();
        if let Some(dropout) = definition.dropout() {
            let effect = "so that a text always has the same tokens; dropout is for training only";
            notices.push(format!("`dropout` in the tokenizer's model is {dropout}; it is off, {effect}"));
        }
        if let Some(byte_level) = definition.byte_level() {
            let added = definition.added.iter().map(|added| (added.content.clone(), added.id));
            let vocab = definition.bpe.iter().flat_map(|bpe| &bpe.vocab).map(|(text, id)| (text.clone(), *id));
            let special = definition.added.iter().filter(|added| added.special).map(|added| added.id);
            let table = Table::new(vocab.chain(added), special);
            return Ok(Tokenizer {
                json,
                table,
                around,
                notices,
                kind: TokenizerKind::ByteLevel(Box::new(byte_level)),
            });
        }
        let library = guarded("be built", || {
            let mut library = match definition.dropout() {
                None => tokenizers::Tokenizer::from_bytes(without_mark(&json))?,
                Some(_) => tokenizers::Tokenizer::from_bytes(without_dropout(&json)?)?,
            };
            library.with_truncation(None)?;
            library.with_padding(None);
            Ok(library)
        })?;
        let vocab = guarded("list its tokens", || Ok(library.get_vocab(true)))?;
        for (token, id) in &vocab {
            if *id as usize >= MAX_TOKENS {
                return Err(TokenizerError::IdTooLarge { token: token.clone(), id: *id, limit: MAX_TOKENS });
            }
        }
        let special = definition.added.iter().filter(|added| added.special).map(|added| added.id);
        let table = Table::new(vocab, special);
        Ok(Tokenizer { json, table, around, notices, kind: TokenizerKind::Library(Box::new(library)) })
    }

    /// From now on the text of a special token, such as `<|endoftext|>`, is encoded like any other text.
    pub fn encode_special_as_text(&mut self) {
        match &mut self.kind {
            TokenizerKind::ByteLevel(encoder) => {
                let ordinary = |id: u32| !self.table.special.get(id as usize).is_some_and(|special| *special);
                encoder.raw.retain(ordinary);
                encoder.composed.retain(ordinary);
            }
            TokenizerKind::Library(library) => library.set_encode_special_tokens(true),
        }
    }

    /// The `tokenizer.json`: the bytes it was read from.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// The tokens that belong before a text, by the file's post-processor.
    pub fn before_text(&self) -> &[u32] {
        &self.around.before
    }

    /// The tokens that belong behind a text, by the file's post-processor.
    pub fn behind_text(&self) -> &[u32] {
        &self.around.behind
    }

    /// What was read from the file with a change; show it once.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The ids of a text. Fails only where the vocabulary has no token for a part of it, which byte-level ones always
    /// have.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.kind {
            TokenizerKind::ByteLevel(encoder) => {
                let mut ids = Vec::with_capacity(text.len() / 4 + 1);
                encoder.with_work(|work| encoder.encode(text, work, &mut ids));
                Ok(ids)
            }
            TokenizerKind::Library(library) => {
                let encoding = guarded("encode this text", || library.encode_fast(text, false))?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// The ids of each text, on all threads of the process.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let mut groups = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (at, text) in texts.iter().enumerate() {
            bytes += text.as_ref().len();
            if bytes >= GROUP_BYTES || at + 1 == texts.len() {
                groups.push((start..at + 1, Mutex::new(Ok(Vec::new()))));
                (start, bytes) = (at + 1, 0);
            }
        }
        parallel(groups.len(), |group| {
            let (range, result) = &groups[group];
            let ids = texts[range.clone()].iter().map(|text| self.encode(text.as_ref())).collect();
            *result.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = ids;
        });
        let mut all = Vec::with_capacity(texts.len());
        for (_, result) in groups {
            all.append(&mut result.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())?);
        }
        Ok(all)
    }

    /// The tokens of a text and where in it they are.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<Piece>, TokenizerError> {
        match &self.kind {
            TokenizerKind::ByteLevel(encoder) => Ok(encoder.encode_with_offsets(text, |id| self.table.bytes(id).len())),
            TokenizerKind::Library(library) => {
                let encoding = guarded("encode this text", || library.encode(text, false))?;
                let pairs = encoding.get_ids().iter().zip(encoding.get_offsets());
                Ok(pairs.map(|(id, (start, end))| Piece { id: *id, start: *start, end: *end }).collect())
            }
        }
    }

    /// The text of tokens, without special tokens if `skip_special`. Unknown ids are left out, and bytes that form no
    /// character become U+FFFD. Never fails for a byte-level vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        match &self.kind {
            TokenizerKind::ByteLevel(_) => {
                let tokens = ids.iter().filter_map(|id| self.table.decoded(*id, skip_special));
                let bytes: Vec<u8> = tokens.flatten().copied().collect();
                Ok(String::from_utf8(bytes)
                    .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
            }
            TokenizerKind::Library(library) => guarded("decode these tokens", || library.decode(ids, skip_special)),
        }
    }

    /// Decodes tokens one by one, without special tokens if `skip_special`.
    pub fn stream(&self, skip_special: bool) -> DecodeStream<&Tokenizer> {
        DecodeStream::new(self, &[], skip_special)
    }

    /// Decodes tokens that follow others. Their text keeps the space that would be dropped at the beginning of a text,
    /// and completes a character whose first bytes came before.
    pub fn stream_after(&self, before: &[u32], skip_special: bool) -> DecodeStream<&Tokenizer> {
        DecodeStream::new(self, before, skip_special)
    }

    /// The bytes of a token, which may be part of a character. None if there is no such token.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.table.text(id)?;
        match &self.kind {
            TokenizerKind::ByteLevel(_) => Some(self.table.bytes(id).to_vec()),
            TokenizerKind::Library(_) => Some(self.decode(&[id], false).ok()?.into_bytes()),
        }
    }

    /// One more than the highest id.
    pub fn size(&self) -> usize {
        self.table.texts.len()
    }

    /// The id of a token by its text in the vocabulary, such as `<|endoftext|>`.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.table.ids.get(token).copied()
    }

    /// The text of a token in the vocabulary, where byte-level ones have `Ġ` for a space.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.table.text(id)
    }

    /// The tokens that end a text in every vocabulary that has them, known by their text as in llama.cpp.
    pub fn known_ends(&self) -> Vec<u32> {
        ends::known(|text| self.id_of(text))
    }

    /// Whether a token is marked as special, so that decoding can leave it out.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.special.get(id as usize).is_some_and(|special| *special)
    }
}

/// All tokens.
struct Table {
    /// By id.
    texts: Vec<Option<Box<str>>>,
    ids: AHashMap<Box<str>, u32>,
    special: Vec<bool>,
    /// The bytes of all tokens, one after the other, and where each token's bytes end.
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Table {
    /// All ids are below [`MAX_TOKENS`].
    fn new(tokens: impl IntoIterator<Item = (String, u32)>, special: impl IntoIterator<Item = u32>) -> Table {
        let mut texts: Vec<Option<Box<str>>> = Vec::new();
        let mut ids = AHashMap::new();
        for (text, id) in tokens {
            let at = id as usize;
            if texts.len() <= at {
                texts.resize(at + 1, None);
            }
            texts[at] = Some(text.as_str().into());
            ids.insert(text.into_boxed_str(), id);
        }
        let mut marks = vec![false; texts.len()];
        for id in special {
            if let Some(mark) = marks.get_mut(id as usize) {
                *mark = true;
            }
        }
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(texts.len());
        for text in &texts {
            bytes.extend(text.as_deref().map(bytes::decoded).unwrap_or_default());
            ends.push(bytes.len());
        }
        Table { texts, ids, special: marks, bytes, ends }
    }

    fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize)?.as_deref()
    }

    /// Empty for unknown ids.
    fn bytes(&self, id: u32) -> &[u8] {
        let at = id as usize;
        let start = if at == 0 { 0 } else { self.ends.get(at - 1).copied().unwrap_or(0) };
        self.ends.get(at).map_or(&[], |end| &self.bytes[start..*end])
    }

    fn decoded(&self, id: u32, skip_special: bool) -> Option<&[u8]> {
        let skipped = skip_special && self.special.get(id as usize).is_some_and(|special| *special);
        (!skipped).then(|| self.bytes(id))
    }
}

/// The file without the BPE dropout.
fn without_dropout(json: &[u8]) -> serde_json::Result<Vec<u8>> {
    let mut document: serde_json::Value = serde_json::from_slice(without_mark(json))?;
    document["model"]["dropout"] = serde_json::Value::Null;
    serde_json::to_vec(&document)
}

/// Runs the library; its errors and panics become errors here.
fn guarded<R>(action: &'static str, run: impl FnOnce() -> tokenizers::Result<R>) -> Result<R, TokenizerError> {
    let message = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(result)) => return Ok(result),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            format!("the tokenizers library panicked: {}", text.unwrap_or("no message"))
        }
    };
    Err(TokenizerError::Refused { action, message })
}
