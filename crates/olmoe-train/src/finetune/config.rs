//! The configuration of a run of fine-tuning: flat keys, as open-instruct's flags, in YAML or on a command line.
//!
//! | module | what it holds |
//! |---|---|
//! | `schema` | the keys, with their defaults |
//! | `names` | keys of other programs: other names, other ways to say the same, keys without effect, keys that are refused |
//! | `recipe` | settings by a name |
//! | `resolve` | what the keys come to: data, adapters, the settings of the loop |
//! | `check` | which values make no sense, alone or together |
//!
//! Flags override the file, which overrides the recipe that either names (`recipe`).

mod check;
mod names;
mod recipe;
mod resolve;
mod schema;

pub use resolve::{DataSize, file_of_rows};
pub use schema::{
    ActivationMode, AdapterLayout, AlpacaWords, BalancingDefinition, ExpertSharing, FinetuneConfig, LabelSpans,
    LoraInit, LrScheduler, OutputFormat, PackingMode, SourceConfig, TrainOn, Truncation,
};

use std::collections::BTreeMap;
use std::path::Path;

use olmoe_model::config::{closest, parse_yaml, read_text, shorten};
use serde_json::{Map, Value};

use crate::config::field::{At, Field, Section, Tree};
use crate::config::{Environment, Key, Loaded, Notice, TrainConfigError, Words, interpolation, yaml};
use names::Meaning;
use recipe::Recipe;
use schema::GROUPS;

/// What a run learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Answers: supervised fine-tuning.
    Sft,
    /// Pairs of a better and a worse answer: DPO and its relatives.
    Dpo,
    /// Answers that are good or bad: KTO and its relatives.
    Kto,
}

impl Task {
    /// As the command is called.
    pub fn name(self) -> &'static str {
        match self {
            Task::Sft => "sft",
            Task::Dpo => "dpo",
            Task::Kto => "kto",
        }
    }

    /// Whether the keys under a heading are for it.
    fn has(self, heading: &str) -> bool {
        match heading {
            "DPO" => self == Task::Dpo,
            "KTO" => self == Task::Kto,
            "Reference" => self != Task::Sft,
            _ => true,
        }
    }
}

/// The key that names a recipe.
const RECIPE: Key =
    Key { name: "recipe", doc: &[" Settings by a name: olmoe_7b_finetune, Megatron-Bridge's."], words: Words::One };
/// The arguments of a recipe that are keys with it alone.
const RECIPE_ONLY: [&str; 2] = ["dir", "name"];

/// A flag as it was given: its name without dashes in front, and the words behind it.
pub type Flag = (String, Vec<String>);

/// A key of the program and the heading it is under.
pub fn headed_keys() -> impl Iterator<Item = (&'static str, Key)> {
    let mut heading = GROUPS[0].0;
    let of_schema = FinetuneConfig::SECTION.iter().map(move |key| {
        heading = GROUPS.iter().find(|(_, first)| *first == key.name).map_or(heading, |(heading, _)| *heading);
        (heading, *key)
    });
    std::iter::once(("Run", RECIPE)).chain(of_schema)
}

/// The keys of a task, and the headings they are under.
pub fn keys(task: Task) -> impl Iterator<Item = (&'static str, Key)> {
    headed_keys().filter(move |(heading, _)| task.has(heading))
}

/// Further names that a command line may have for a task: keys of other programs, and keys of other tasks, which are refused.
pub fn further_names(task: Task) -> impl Iterator<Item = (&'static str, Words)> {
    let names = names::NAMES.iter().map(move |(name, meaning)| (*name, words_of(*meaning, task)));
    let others = headed_keys().filter(move |(heading, _)| !task.has(heading)).map(|(_, key)| (key.name, key.words));
    names.chain(others).chain(RECIPE_ONLY.map(|name| (name, Words::One)))
}

/// What follows a key on a command line; none: the key is not known.
pub fn words(key: &str, task: Task) -> Option<Words> {
    let own = headed_keys().find(|(_, own)| own.name == key).map(|(_, own)| own.words);
    own.or_else(|| names::meaning(key).map(|meaning| words_of(meaning, task)))
        .or_else(|| RECIPE_ONLY.contains(&key).then_some(Words::One))
}

/// The default of a key, as a command line has it; none where nothing stands for something that is found out.
pub fn default_of(key: &str) -> Option<String> {
    fn text(tree: &Tree) -> Option<String> {
        match tree {
            Tree::Value(Value::Null | Value::Bool(false)) => None,
            Tree::Value(Value::String(text)) => Some(text.clone()),
            Tree::Value(value) => Some(value.to_string()),
            Tree::List(items) => {
                let items: Option<Vec<String>> = items.iter().map(text).collect();
                items.filter(|items| !items.is_empty()).map(|items| items.join(" "))
            }
            Tree::Map(_) => None,
        }
    }
    let Tree::Map(entries) = FinetuneConfig::default().tree() else { return None };
    entries.iter().find(|(own, _)| own == key).and_then(|(_, tree)| text(tree))
}

fn words_of(meaning: Meaning, task: Task) -> Words {
    match meaning {
        Meaning::Same(key) => {
            let own = key(task).and_then(|key| FinetuneConfig::SECTION.iter().find(|own| own.name == key));
            own.map_or(Words::One, |own| own.words)
        }
        Meaning::Says(words, _) | Meaning::NoEffect(words, _) | Meaning::Refused(words, ..) => words,
    }
}

impl FinetuneConfig {
    /// Reads a file, if there is one, and flags over it. Files of data are not looked for.
    ///
    /// # Errors
    /// What [`TrainConfigError`] says.
    pub fn read(task: Task, path: Option<&Path>, flags: &[Flag]) -> Result<Loaded<FinetuneConfig>, TrainConfigError> {
        let text = path.map(read_text).transpose().map_err(TrainConfigError::File)?;
        let loaded = Self::from_yaml(task, text.as_deref(), flags, &|name| std::env::var(name).ok());
        match path {
            None => loaded,
            Some(path) => {
                loaded.map_err(|source| TrainConfigError::InFile { path: path.into(), source: Box::new(source) })
            }
        }
    }

    /// As [`read`](Self::read), of a text, with another environment.
    ///
    /// # Errors
    /// What [`TrainConfigError`] says.
    pub fn from_yaml(
        task: Task,
        text: Option<&str>,
        flags: &[Flag],
        environment: Environment<'_>,
    ) -> Result<Loaded<FinetuneConfig>, TrainConfigError> {
        let mut reading = Reading { task, given: Map::new(), recipe: None, notices: Vec::new() };
        if let Some(text) = text.filter(|text| !text.trim().is_empty()) {
            match parse_yaml(text).map_err(TrainConfigError::File)? {
                Value::Object(file) => reading.add(file)?,
                Value::Null => {}
                other => return Err(At::Top.wrong_type("a mapping of keys and values", &other)),
            }
        }
        let mut map = Map::new();
        for (key, words) in flags {
            let key = key.replace('-', "_");
            let value = value_of(&key, words, task)?;
            if map.insert(key.clone(), value).is_some() {
                return Err(twice(&key, &key));
            }
        }
        reading.add(map)?;
        reading.finish(environment)
    }

    /// The keys of a task with their values; reading it gives the same configuration again.
    pub fn to_yaml(&self, task: Task) -> String {
        let Tree::Map(mut entries) = self.tree() else { return String::new() };
        entries.retain(|(key, _)| keys(task).any(|(_, own)| own.name == key));
        yaml::write(&Tree::Map(entries))
    }
}

/// The value that words of a command line give.
fn value_of(key: &str, given: &[String], task: Task) -> Result<Value, TrainConfigError> {
    let one = |word: &String| -> Result<Value, TrainConfigError> {
        Ok(match word.trim() {
            text if text.starts_with(['{', '[']) => parse_yaml(text).map_err(|error| TrainConfigError::Override {
                text: format!("--{}={}", shorten(key), shorten(word)),
                problem: error.to_string(),
            })?,
            "null" | "None" => Value::Null,
            _ => Value::String(word.clone()),
        })
    };
    Ok(match (words(key, task).unwrap_or(Words::One), given) {
        (_, []) => Value::Bool(true),
        (Words::Many, [word]) if word.trim_start().starts_with('[') => one(word)?,
        (Words::Many, words) => Value::Array(words.iter().map(one).collect::<Result<_, _>>()?),
        (_, [word]) => one(word)?,
        (_, [_, more, ..]) => {
            return Err(TrainConfigError::Value {
                path: key.to_owned(),
                found: format!("followed by {}", shorten(more)),
                problem: "it has one value",
            });
        }
    })
}

/// A value as it was given.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => shorten(text),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(" "),
        other => shorten(&other.to_string()),
    }
}

/// Whether a value says anything: what is null or empty does not.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}

fn twice(key: &str, other: &str) -> TrainConfigError {
    let found = match key == other {
        true => "there twice".to_owned(),
        false => format!("there as `{}`, too", shorten(other)),
    };
    TrainConfigError::Value { path: shorten(key), found, problem: "keep one of them" }
}

/// The layers of a configuration that is read.
struct Reading {
    task: Task,
    /// File and flags, by the program's own keys.
    given: Map<String, Value>,
    recipe: Option<Recipe>,
    notices: Vec<Notice>,
}

impl Reading {
    /// Adds a layer over those that there are.
    fn add(&mut self, mut layer: Map<String, Value>) -> Result<(), TrainConfigError> {
        if let Some(name) = layer.remove(RECIPE.name) {
            match &name {
                Value::Null => self.recipe = None,
                Value::String(name) => self.recipe = Some(Recipe::named(name)?),
                other => return Err(At::Top.key(RECIPE.name).wrong_type("the name of a recipe", other)),
            }
        }
        if self.recipe.is_some() {
            Recipe::folder(&mut layer)?;
        }
        // The names under which keys came, so that one is not given twice.
        let mut sources: BTreeMap<String, String> = BTreeMap::new();
        for (given, value) in layer {
            let key = given.replace('-', "_");
            for (own, value) in self.own(&key, value)? {
                if let Some(other) = sources.insert(own.to_owned(), key.clone()) {
                    return Err(twice(&key, &other));
                }
                self.given.insert(own.to_owned(), meant(own, value));
            }
        }
        Ok(())
    }

    /// The program's own keys that a key stands for.
    fn own(&mut self, key: &str, value: Value) -> Result<Vec<(&'static str, Value)>, TrainConfigError> {
        let found = headed_keys().find(|(_, own)| own.name == key);
        if let Some((heading, own)) = found {
            if !self.task.has(heading) && !value.is_null() {
                let problem = match heading {
                    "DPO" => "it is for `olmoe dpo`; remove it",
                    "KTO" => "it is for `olmoe kto`; remove it",
                    _ => "it is for `olmoe dpo` and `olmoe kto`; remove it",
                };
                return Err(TrainConfigError::Value { path: shorten(key), found: shown(&value), problem });
            }
            return Ok(if self.task.has(heading) { vec![(own.name, value)] } else { Vec::new() });
        }
        match names::meaning(key) {
            Some(Meaning::Same(own)) => match own(self.task) {
                Some(own) => self.own(own, value),
                None => Err(self.unknown(key)),
            },
            Some(Meaning::Says(_, says)) => says(&value).map_err(|problem| TrainConfigError::Value {
                path: shorten(key),
                found: shown(&value),
                problem,
            }),
            Some(Meaning::NoEffect(_, text)) => {
                // What is off asks for nothing.
                let off = matches!(value, Value::Null | Value::Bool(false)) || value == "False" || value == "false";
                if !off && !self.notices.iter().any(|notice| notice.key == key) {
                    self.notices.push(Notice { key: key.to_owned(), text: text.to_owned() });
                }
                Ok(Vec::new())
            }
            Some(Meaning::Refused(_, is_off, _)) if is_off(&value) => Ok(Vec::new()),
            Some(Meaning::Refused(_, _, problem)) => {
                Err(TrainConfigError::Value { path: shorten(key), found: shown(&value), problem })
            }
            None if RECIPE_ONLY.contains(&key) => Err(TrainConfigError::Value {
                path: key.to_owned(),
                found: shown(&value),
                problem: "it is an argument of a recipe, and none is named; set `output_dir` or `run_name`",
            }),
            None => Err(self.unknown(key)),
        }
    }

    fn unknown(&self, key: &str) -> TrainConfigError {
        let own = keys(self.task).map(|(_, key)| key.name);
        let known: Vec<&'static str> = own.chain(names::NAMES.iter().map(|(name, _)| *name)).collect();
        let suggestion = closest(key, &known).map(str::to_owned);
        TrainConfigError::UnknownKey { path: shorten(key), suggestion }
    }

    fn finish(self, environment: Environment<'_>) -> Result<Loaded<FinetuneConfig>, TrainConfigError> {
        let Reading { task, given, recipe, mut notices } = self;
        let mut all = recipe.map_or(Map::new(), |recipe| recipe.defaults(&given, &mut notices));
        all.extend(given.clone());
        // A reduction is asked for by command lines of open-instruct's DPO, where it has no effect either.
        if task != Task::Sft && given.contains_key("reduce_loss") {
            let text = "no effect; the loss of a step is the mean over its rows, in open-instruct, too";
            notices.push(Notice { key: "reduce_loss".to_owned(), text: text.to_owned() });
        }
        let defaults = FinetuneConfig::default().tree().value();
        let resolved = interpolation::resolve(&Value::Object(all), &defaults, environment, &mut notices)?;
        let config = <FinetuneConfig as Field>::read(&resolved, &At::Top)?;
        check::check(task, &config, &given, &mut notices)?;
        Ok(Loaded { config, notices })
    }
}

/// The value of a key in the program's own words; one value of a list is a list.
fn meant(key: &str, value: Value) -> Value {
    let is_list = FinetuneConfig::SECTION.iter().any(|own| own.name == key && own.words == Words::Many);
    if is_list && !matches!(value, Value::Null | Value::Array(_)) {
        return Value::Array(vec![value]);
    }
    let word = match &value {
        Value::String(text) => text.to_ascii_lowercase(),
        Value::Bool(flag) => flag.to_string(),
        _ => return value,
    };
    let found = names::VALUES.iter().find(|(own, words, _)| *own == key && words.contains(&word.as_str()));
    match found {
        Some((_, _, "null")) => Value::Null,
        Some((_, _, meant)) => Value::String((*meant).to_owned()),
        None => value,
    }
}
