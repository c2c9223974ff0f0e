//! The files of a checkpoint in addition to its weights: tokenizer, chat template, generation settings.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use olmoe_data::{
    ChatTemplate, ChatTokens, SpecialTokenSources, SpecialTokens, Tokenizer, TokenizerError, Vocabulary, ends_answer,
};
use olmoe_model::config::ModelConfig;
use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::error::CheckpointError;
pub use crate::file_name::TOKENIZER;
use crate::file_name::{CHAT_TEMPLATE, COMPANIONS, GENERATION_CONFIG, HF_CONFIG, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG};
use crate::gguf::{self, parts};
use crate::open::{Contents, Format, read_bounded};
use crate::output::write_file;
use crate::stand_in;

/// Files of a model that define how text is tokenised.
pub const TOKENIZER_FILES: &[&str] = &["tokenizer*.json", "config.json", "generation_config.json"];
/// Names of special tokens in tokenizer_config.json.
const TOKEN_KEYS: [&str; 7] =
    ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"];
/// Most bytes of one of them.
const MAX_FILE: usize = 64 << 20;

/// Reads the tokenizer of a checkpoint; `None` if it has none.
///
/// # Errors
/// A tokenizer that cannot be used.
pub fn tokenizer(contents: &Contents) -> Result<Option<Tokenizer>, CheckpointError> {
    if contents.gguf.is_some() {
        return vocabulary(contents)?.map(|found| of_vocabulary(contents, &found)).transpose();
    }
    let path = contents.path.join(TOKENIZER);
    if stand_in::is_file(&path)? { from_file(&path).map(Some) } else { Ok(None) }
}

fn from_file(path: &Path) -> Result<Tokenizer, CheckpointError> {
    stand_in::check_path(path)?;
    Ok(Tokenizer::from_file(path)?)
}

/// The vocabulary of a GGUF file.
fn vocabulary(contents: &Contents) -> Result<Option<Vocabulary>, CheckpointError> {
    let Some(header) = &contents.gguf else { return Ok(None) };
    let bad = |source| CheckpointError::GgufVocabulary { path: contents.path.clone(), source };
    gguf::vocabulary::read(&header.metadata).map_err(bad)
}

fn of_vocabulary(contents: &Contents, vocabulary: &Vocabulary) -> Result<Tokenizer, CheckpointError> {
    if let Some(header) = &contents.gguf {
        let bad = |source| CheckpointError::GgufVocabulary { path: contents.path.clone(), source };
        gguf::vocabulary::check_merges(&header.metadata, vocabulary).map_err(bad)?;
    }
    Tokenizer::from_vocabulary(vocabulary).map_err(in_file(&contents.path))
}

/// The first difference between two vocabularies. Where GGUF cannot express one of them, the parts of the files are
/// compared.
fn vocabulary_difference(ours: &Tokenizer, theirs: &Tokenizer, rows: usize) -> Option<TokenizerDifference> {
    if ours.json() == theirs.json() {
        return None;
    }
    let vocabulary = |tokenizer: &Tokenizer| tokenizer.to_vocabulary(rows, &SpecialTokens::default());
    if let (Ok(ours), Ok(theirs)) = (vocabulary(ours), vocabulary(theirs)) {
        let pre =
            (ours.pre != theirs.pre).then(|| TokenizerDifference::new("pre", &ours.pre.name(), &theirs.pre.name()));
        return pre
            .or_else(|| TokenizerDifference::of("tokens", &ours.tokens, &theirs.tokens))
            .or_else(|| TokenizerDifference::of("token_type", &ours.kinds, &theirs.kinds))
            .or_else(|| TokenizerDifference::of("merges", &ours.merges, &theirs.merges));
    }
    let parts = |tokenizer: &Tokenizer| match serde_json::from_slice(tokenizer.json()) {
        Ok(Value::Object(parts)) => parts,
        // The file was read as a tokenizer, so it has these parts.
        _ => serde_json::Map::new(),
    };
    let (ours, theirs) = (parts(ours), parts(theirs));
    let other = |key: &&String| ours.get(*key) != theirs.get(*key);
    let key = ours.keys().chain(theirs.keys()).find(other)?;
    let described = |part: Option<&Value>| match part.map(Value::to_string) {
        Some(text) if text.chars().count() > 60 => format!("{}…", text.chars().take(60).collect::<String>()),
        Some(text) => text,
        None => "missing".to_owned(),
    };
    Some(TokenizerDifference { key: key.clone(), this: described(ours.get(key)), other: described(theirs.get(key)) })
}

/// Bytes of a text without the byte-order mark that some editors write.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)
}

fn in_file(path: &Path) -> impl FnOnce(TokenizerError) -> CheckpointError {
    let path = path.to_owned();
    move |source| CheckpointError::Tokenizer { path, source }
}

/// The tokens that are put before a text: those of the tokenizer, or the begin-of-sequence token where the settings add
/// it.
fn beginning(tokenizer: &Tokenizer, special: &SpecialTokens, add_bos: Option<bool>) -> (Vec<u32>, Option<String>) {
    let before = tokenizer.before_text().to_vec();
    match (before.is_empty(), add_bos, special.bos) {
        (false, Some(false), _) => {
            let names: Vec<_> = before.iter().map(|id| tokenizer.token(*id).unwrap_or("?")).collect();
            let names = names.join(" ");
            (
                before,
                Some(format!(
                    "`add_bos_token` is false, but tokenizer.json puts {names} before a text; tokenizer.json takes precedence"
                )),
            )
        }
        (true, Some(true), Some(bos)) => (vec![bos], None),
        (true, Some(true), None) => (
            before,
            Some("`add_bos_token` is true, but the model has no begin-of-sequence token; none is added".to_owned()),
        ),
        _ => (before, None),
    }
}

/// The first difference between two tokenizers that changes the ids of texts.
#[derive(Debug, thiserror::Error)]
#[error("`{key}` is {this} in the first and {other} in the other")]
pub struct TokenizerDifference {
    /// The part: `tokens[17]`, `merges[3]`, `pre`, …
    pub key: String,
    /// The value in the first tokenizer.
    pub this: String,
    /// The value in the other tokenizer.
    pub other: String,
}

impl TokenizerDifference {
    /// The difference between two that have names.
    pub fn between(&self, first: &str, second: &str) -> String {
        let Self { key, this, other } = self;
        format!("`{key}` is {this} in {first} and {other} in {second}")
    }

    fn new(key: impl Into<String>, this: &impl Debug, other: &impl Debug) -> Self {
        Self { key: key.into(), this: format!("{this:?}"), other: format!("{other:?}") }
    }

    /// The first element that differs, or the lengths.
    fn of<T: PartialEq + Debug>(key: &str, these: &[T], others: &[T]) -> Option<Self> {
        if let Some(at) = these.iter().zip(others).position(|(this, other)| this != other) {
            return Some(Self::new(format!("{key}[{at}]"), &these[at], &others[at]));
        }
        let (these, others) = (these.len(), others.len());
        (these != others).then(|| Self::new(format!("number of {key}"), &these, &others))
    }
}

/// The files of a checkpoint in addition to its weights.
#[derive(Default)]
pub struct Companions {
    name: String,
    files: Vec<(String, Vec<u8>)>,
    tokenizer: Option<Arc<Tokenizer>>,
    special: Option<SpecialTokens>,
    /// Whether the settings put the begin-of-sequence token before a text.
    add_bos: Option<bool>,
    /// Tokens that are put before a text.
    before: Vec<u32>,
    /// Texts that end generation.
    stop_strings: Vec<String>,
    /// Texts of special tokens by their names, such as `pad_token`.
    token_texts: BTreeMap<&'static str, String>,
    chat_template: Option<String>,
    /// Notices for the user.
    pub notices: Vec<String>,
}

impl Companions {
    /// A name, without any files.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// The files of a checkpoint. `replacement` is a `tokenizer.json` to use instead of that of the checkpoint. An
    /// end-of-text id with which the tokenizer does not end documents is corrected, unless `keep_eos` is set.
    ///
    /// # Errors
    /// Files that cannot be read or used.
    pub fn of(
        checkpoint: &Checkpoint,
        replacement: Option<&Path>,
        keep_eos: bool,
    ) -> Result<Companions, CheckpointError> {
        let config = crate::weights::Weights::config(checkpoint);
        Self::of_contents(checkpoint.contents(), config, replacement, keep_eos)
    }

    /// The files at a path, for a model of this configuration; see [`Companions::of`].
    ///
    /// # Errors
    /// Files that cannot be read or used.
    pub fn of_contents(
        contents: &Contents,
        config: &ModelConfig,
        replacement: Option<&Path>,
        keep_eos: bool,
    ) -> Result<Companions, CheckpointError> {
        let mut companions = Self::named(name(contents));
        companions.read_files(contents, replacement)?;
        let vocabulary = vocabulary(contents)?;
        let own = match (replacement, &vocabulary) {
            (Some(path), _) => Some(from_file(path)?),
            (None, Some(vocabulary)) => Some(of_vocabulary(contents, vocabulary)?),
            (None, None) => tokenizer(contents)?,
        };
        companions.tokenizer = own.map(Arc::new);
        if let Some(vocabulary) = &vocabulary {
            companions.chat_template = vocabulary.chat_template.clone();
            companions.add_bos = Some(vocabulary.add_bos);
        }
        let ids = model_ids(contents, config)?;
        let known = match &vocabulary {
            Some(vocabulary) => SpecialTokenSources { vocabulary: Some(vocabulary), ..Default::default() },
            None if contents.format == Format::Olmo || is_yaml(&contents.path) => {
                SpecialTokenSources { training: Some(&ids), ..Default::default() }
            }
            None => SpecialTokenSources { config: Some(&ids), ..Default::default() },
        };
        companions.decide_special_tokens(&contents.path, config, SpecialTokenSources { keep_eos, ..known })?;
        Ok(companions)
    }

    /// The files for newly initialised weights: a tokenizer.
    ///
    /// # Errors
    /// A tokenizer that cannot be used, or that does not fit the configuration.
    pub fn with_tokenizer(
        name: impl Into<String>,
        path: &Path,
        config: &ModelConfig,
    ) -> Result<Companions, CheckpointError> {
        let mut companions = Self::named(name);
        companions.tokenizer = Some(Arc::new(from_file(path)?));
        let ids = ids(config);
        let known = SpecialTokenSources { config: Some(&ids), ..Default::default() };
        companions.decide_special_tokens(path, config, known)?;
        Ok(companions)
    }

    fn read_files(&mut self, contents: &Contents, replacement: Option<&Path>) -> Result<(), CheckpointError> {
        if contents.gguf.is_some() {
            return Ok(());
        }
        for name in COMPANIONS {
            let path = contents.path.join(name);
            let replaced = replacement.is_some() && !matches!(name, GENERATION_CONFIG | CHAT_TEMPLATE);
            if !replaced && stand_in::is_file(&path)? {
                self.files.push((name.to_owned(), read_bounded(&path, MAX_FILE)?));
            }
        }
        self.chat_template =
            self.file(CHAT_TEMPLATE).map(|bytes| String::from_utf8_lossy(without_mark(bytes)).into_owned());
        if let Some(config) = self.json(&contents.path, TOKENIZER_CONFIG)? {
            if self.chat_template.is_none() {
                self.chat_template = self.template_in(&config);
            }
            self.add_bos = config.get("add_bos_token").and_then(Value::as_bool);
            for key in TOKEN_KEYS {
                let token = config.get(key).map(|token| token.get("content").unwrap_or(token));
                if let Some(text) = token.and_then(Value::as_str) {
                    self.token_texts.insert(key, text.to_owned());
                }
            }
        }
        Ok(())
    }

    /// The chat template in the settings of a tokenizer: a text, or one of several named templates.
    fn template_in(&mut self, config: &Value) -> Option<String> {
        let text = |template: &Value| template.as_str().map(str::to_owned);
        let found = match config.get("chat_template")? {
            Value::Null => return None,
            Value::Array(named) => {
                let default = named.iter().find(|template| template["name"] == "default");
                let only = named.first().filter(|_| named.len() == 1);
                default.or(only).and_then(|template| text(&template["template"]))
            }
            one => text(one),
        };
        if found.is_none() {
            let expected = "expected a text, or a list of templates with one that is named default";
            self.notices.push(format!("`chat_template` in {TOKENIZER_CONFIG} is left out: {expected}"));
        }
        found
    }

    fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|file| file.0 == name).map(|file| file.1.as_slice())
    }

    fn json(&self, folder: &Path, name: &str) -> Result<Option<Value>, CheckpointError> {
        let Some(bytes) = self.file(name) else { return Ok(None) };
        let bad = |error: serde_json::Error| CheckpointError::Io { path: folder.join(name), source: error.into() };
        serde_json::from_slice(without_mark(bytes)).map(Some).map_err(bad)
    }

    /// Decides the special tokens from the `known` ones and the files.
    fn decide_special_tokens(
        &mut self,
        path: &Path,
        config: &ModelConfig,
        known: SpecialTokenSources<'_>,
    ) -> Result<(), CheckpointError> {
        if let Some(tokenizer) = &self.tokenizer
            && tokenizer.size() > config.embedding_size
        {
            let (size, rows) = (tokenizer.size(), config.embedding_size);
            let without: Vec<&str> = (rows..size).filter_map(|id| tokenizer.token(id as u32)).take(4).collect();
            let more = if size - rows > 4 { " and others" } else { "" };
            self.notices.push(format!(
                "the tokenizer has {size} tokens, the model {rows} rows; without a row are {}{more}",
                without.join(", ")
            ));
        }
        let generation = self.json(path, GENERATION_CONFIG)?;
        let tokenizer_config = self.json(path, TOKENIZER_CONFIG)?;
        let special_tokens_map = self.json(path, SPECIAL_TOKENS_MAP)?;
        let sources = SpecialTokenSources {
            generation_config: generation.as_ref(),
            tokenizer_config: tokenizer_config.as_ref(),
            special_tokens_map: special_tokens_map.as_ref(),
            rows: Some(config.embedding_size),
            ..known
        };
        let resolved = SpecialTokens::resolve(self.tokenizer.as_deref(), &sources);
        let (mut special, notices) =
            resolved.map_err(|source| CheckpointError::SpecialTokens { path: path.to_owned(), source })?;
        self.notices.extend(notices.iter().map(ToString::to_string));
        self.stop_strings = match generation.as_ref().map(|generation| &generation["stop_strings"]) {
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(texts)) => texts.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        self.stop_strings.retain(|text| !text.is_empty());
        if let Some(id) = self.ends_answer(&special).filter(|id| (*id as usize) < config.embedding_size) {
            special.add_end(id, "the chat template");
        }
        if let Some(tokenizer) = &self.tokenizer {
            self.notices.extend(tokenizer.notices().iter().cloned());
            let (before, notice) = beginning(tokenizer, &special, self.add_bos);
            self.notices.extend(notice);
            if let ([only], None) = (&before[..], special.bos) {
                special.bos = Some(*only);
            }
            if !tokenizer.behind_text().is_empty() {
                let behind: Vec<_> =
                    tokenizer.behind_text().iter().map(|id| tokenizer.token(*id).unwrap_or("?")).collect();
                self.notices.push(format!(
                    "the tokenizer puts {} after a text; they are left out, because generation continues the text",
                    behind.join(" ")
                ));
            }
            self.before = before;
        }
        self.special = Some(special);
        Ok(())
    }

    /// The token that the chat template puts after an answer; `None` if the template cannot be used.
    fn ends_answer(&self, special: &SpecialTokens) -> Option<u32> {
        let tokenizer = self.tokenizer.as_ref()?;
        let template = ChatTemplate::new(self.chat_template.as_deref()?).ok()?;
        let text_of = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
        let tokens = ChatTokens {
            bos: text_of(special.bos),
            eos: text_of(special.eos),
            pad: text_of(special.pad),
            unk: text_of(special.unk),
            ..Default::default()
        };
        ends_answer(&template, tokens, tokenizer)
    }

    /// The same with another chat template, as a model has that was tuned with it: what ends an answer there ends generation,
    /// and a token that begins conversations is the one that ends texts, if the model has none and the template names it, as
    /// AllenAI's tuning has it.
    ///
    /// # Errors
    /// A template or a `tokenizer_config.json` that cannot be used.
    pub fn with_chat_template(mut self, source: &str) -> Result<Companions, CheckpointError> {
        let bad = |path: &str, message: String| CheckpointError::Io {
            path: PathBuf::from(path),
            source: std::io::Error::other(message),
        };
        self.chat_template = Some(source.to_owned());
        let name = PathBuf::from(&self.name);
        let settings = self.json(&name, TOKENIZER_CONFIG)?;
        self.files.retain(|(name, _)| name != CHAT_TEMPLATE && name != TOKENIZER_CONFIG && name != SPECIAL_TOKENS_MAP);
        let names_bos = source.contains("bos_token");
        if let Some(special) = &mut self.special {
            special.bos = special.bos.or(special.eos.filter(|_| names_bos));
        }
        if let (true, None, Some(text)) = (
            names_bos,
            self.token_texts.get("bos_token"),
            self.special.as_ref().and_then(|special| self.tokenizer.as_ref()?.token(special.bos?)),
        ) {
            self.token_texts.insert("bos_token", text.to_owned());
        }
        if let Some(mut settings) = settings {
            settings["chat_template"] = source.into();
            if let Some(bos) = self.token_texts.get("bos_token").filter(|_| settings["bos_token"].is_null()) {
                settings["bos_token"] = bos.as_str().into();
            }
            self.files.push((TOKENIZER_CONFIG.to_owned(), format!("{settings:#}\n").into_bytes()));
        }
        ChatTemplate::new(source).map_err(|error| bad(CHAT_TEMPLATE, error.to_string()))?;
        if let Some(mut special) = self.special.take() {
            if let Some(id) = self.ends_answer(&special) {
                special.add_end(id, "the chat template");
            }
            self.special = Some(special);
        }
        Ok(self)
    }

    /// The tokenizer, if there is one.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// The special tokens; `None` for newly initialised weights without a tokenizer.
    pub fn special_tokens(&self) -> Option<&SpecialTokens> {
        self.special.as_ref()
    }

    /// The tokens that are put before a text, which OLMoE has none of.
    pub fn before_text(&self) -> &[u32] {
        &self.before
    }

    /// The ids of a text, including the tokens that are put before a text unless it already begins with them. OLMoE has
    /// no such tokens. `None` without a tokenizer.
    ///
    /// # Errors
    /// A text that the tokenizer has no tokens for.
    pub fn encode(&self, text: &str) -> Option<Result<Vec<u32>, TokenizerError>> {
        let mut ids = match self.tokenizer.as_ref()?.encode(text) {
            Ok(ids) => ids,
            Err(error) => return Some(Err(error)),
        };
        if !ids.starts_with(&self.before) {
            ids.splice(0..0, self.before.iter().copied());
        }
        Some(Ok(ids))
    }

    /// The text of a special token by its name in tokenizer_config.json, such as `pad_token`.
    pub fn token_text(&self, key: &str) -> Option<&str> {
        if let Some(text) = self.token_texts.get(key) {
            return Some(text);
        }
        let special = self.special.as_ref()?;
        let id = match key {
            "bos_token" => special.bos,
            "eos_token" => special.eos,
            "pad_token" => special.pad,
            "unk_token" => special.unk,
            _ => None,
        };
        self.tokenizer.as_ref()?.token(id?)
    }

    /// The texts that end generation in addition to the tokens that do: `stop_strings` of generation_config.json.
    pub fn stop_strings(&self) -> &[String] {
        &self.stop_strings
    }

    /// The Jinja template that renders a conversation as text, if the model has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Checks that both tokenizers turn text into the same ids, for models whose embedding has `rows` rows. Returns the
    /// settings that differ, such as special tokens and chat template; none if there are not two tokenizers.
    ///
    /// # Errors
    /// The first difference between the vocabularies.
    pub fn same_tokenizer(&self, other: &Companions, rows: usize) -> Result<Vec<&'static str>, TokenizerDifference> {
        let (Some(ours), Some(theirs)) = (&self.tokenizer, &other.tokenizer) else { return Ok(Vec::new()) };
        if let Some(difference) = vocabulary_difference(ours, theirs, rows) {
            return Err(difference);
        }
        let special = |companions: &Companions| companions.special.clone().unwrap_or_default();
        let (ours, theirs) = (special(self), special(other));
        let settings = [
            ("bos_token", ours.bos == theirs.bos),
            ("eos_token", ours.eos == theirs.eos),
            ("pad_token", ours.pad == theirs.pad),
            ("unk_token", ours.unk == theirs.unk),
            ("set of tokens that end generation", sorted(ours.end_ids()) == sorted(theirs.end_ids())),
            ("add_bos_token", self.before == other.before),
            ("chat template", self.chat_template == other.chat_template),
        ];
        Ok(settings.into_iter().filter(|setting| !setting.1).map(|setting| setting.0).collect())
    }

    /// The name of the model.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The configuration with the special tokens.
    pub(crate) fn corrected(&self, config: &ModelConfig) -> ModelConfig {
        let mut config = config.clone();
        if let Some(special) = &self.special {
            (config.pad_token_id, config.bos_token_id, config.eos_token_id) = (special.pad, special.bos, special.eos);
        }
        config
    }

    /// The vocabulary for a GGUF file; `None` without a tokenizer.
    pub(crate) fn vocabulary(&self, config: &ModelConfig) -> Result<Option<Vocabulary>, CheckpointError> {
        let (Some(tokenizer), Some(special)) = (&self.tokenizer, &self.special) else { return Ok(None) };
        let bad = |source| CheckpointError::Tokenizer { path: PathBuf::from(&self.name), source };
        let mut vocabulary = tokenizer.to_vocabulary(config.embedding_size, special).map_err(bad)?;
        vocabulary.ends = special.more_ends(tokenizer);
        // The tokens that the settings add, where the tokenizer adds none.
        vocabulary.add_bos |= !self.before.is_empty();
        vocabulary.chat_template = self.chat_template.clone();
        Ok(Some(vocabulary))
    }

    /// The generation settings of the checkpoint, with all tokens that end a text.
    fn generation_config(&self, config: &ModelConfig) -> Result<Vec<u8>, CheckpointError> {
        let ends = match &self.special {
            Some(special) => special.end_ids(),
            None => config.eos_token_id.into_iter().collect(),
        };
        let found = self.json(Path::new(&self.name), GENERATION_CONFIG)?;
        let listed = found.as_ref().map(|found| match &found["eos_token_id"] {
            Value::Array(ids) => ids.clone(),
            Value::Null => Vec::new(),
            one => vec![one.clone()],
        });
        if let (Some(bytes), Some(listed)) = (self.file(GENERATION_CONFIG), &listed)
            && ends.iter().all(|id| listed.contains(&Value::from(*id)))
        {
            return Ok(bytes.to_vec());
        }
        let mut settings = found.filter(Value::is_object).unwrap_or_else(|| {
            let mut fresh = json!({ "_from_model_config": true });
            for (key, id) in [("bos_token_id", config.bos_token_id), ("pad_token_id", config.pad_token_id)] {
                if let Some(id) = id {
                    fresh[key] = id.into();
                }
            }
            fresh
        });
        match ends[..] {
            [] => {}
            [one] => settings["eos_token_id"] = one.into(),
            ref several => settings["eos_token_id"] = several.into(),
        }
        Ok(format!("{settings:#}\n").into_bytes())
    }

    /// Writes the files into a folder that has weights or an adapter of a model of this configuration.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_into(&self, folder: &Path, config: &ModelConfig) -> Result<(), CheckpointError> {
        self.write(folder, &self.corrected(config))
    }

    /// Writes the files into a folder: those of the checkpoint, and replacements for missing ones as far as possible.
    pub(crate) fn write(&self, folder: &Path, config: &ModelConfig) -> Result<(), CheckpointError> {
        for (name, bytes) in self.files.iter().filter(|file| file.0 != GENERATION_CONFIG) {
            write_file(&folder.join(name), bytes)?;
        }
        let write = |name: &str, value: &Value| {
            if self.file(name).is_some() {
                return Ok(());
            }
            write_file(&folder.join(name), format!("{value:#}\n").as_bytes())
        };
        write_file(&folder.join(GENERATION_CONFIG), &self.generation_config(config)?)?;
        let Some(tokenizer) = &self.tokenizer else { return Ok(()) };
        if self.file(TOKENIZER).is_none() {
            write_file(&folder.join(TOKENIZER), tokenizer.json())?;
        }
        let mut settings = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_sequence_length,
            "clean_up_tokenization_spaces": false,
            "add_bos_token": !self.before.is_empty(),
        });
        if let Some(special) = &self.special {
            for (key, id) in [
                ("bos_token", special.bos),
                ("eos_token", special.eos),
                ("pad_token", special.pad),
                ("unk_token", special.unk),
            ] {
                settings[key] = id.and_then(|id| tokenizer.token(id)).into();
            }
        }
        if let Some(template) = &self.chat_template {
            settings["chat_template"] = template.as_str().into();
        }
        write(TOKENIZER_CONFIG, &settings)
    }
}

/// The name of a model: that of its folder or file, without the number of the part.
fn name(contents: &Contents) -> String {
    let name = match contents.format {
        Format::Gguf => contents.path.file_stem(),
        _ => contents.path.file_name(),
    };
    let whole = contents.path.file_name().and_then(|name| Some(parts::split(name.to_str()?)?.0.to_owned()));
    whole.or(name.map(|name| name.to_string_lossy().into_owned())).unwrap_or_else(|| "model".to_owned())
}

/// The ids of a configuration, as a `config.json` has them.
fn ids(config: &ModelConfig) -> Value {
    json!({
        "pad_token_id": config.pad_token_id,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
    })
}

/// The ids of the model in a folder, whose `config.json` may list several end-of-text tokens, and tokens that end a
/// turn.
fn model_ids(contents: &Contents, config: &ModelConfig) -> Result<Value, CheckpointError> {
    let mut ids = ids(config);
    if matches!(contents.format, Format::HuggingFace(_)) {
        let path = contents.path.join(HF_CONFIG);
        let bytes = read_bounded(&path, MAX_FILE)?;
        let written: Value =
            serde_json::from_slice(without_mark(&bytes)).map_err(|error| CheckpointError::io(&path)(error.into()))?;
        if written["eos_token_id"].is_array() {
            ids["eos_token_id"] = written["eos_token_id"].clone();
        }
        for key in ["eot_token_id", "eom_token_id"] {
            ids[key] = written[key].clone();
        }
    }
    Ok(ids)
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn sorted(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids
}
