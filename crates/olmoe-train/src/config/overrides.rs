//! `--section.key=value` on the command line, as OLMo takes it.
//!
//! Dashes in front go, dashes inside the key become underscores, a key without a value is `True`. The value is YAML: a
//! number, `null`, `[a, b]`, `{a: 1}`. Mappings are merged with what is there, everything else is replaced, lists as a
//! whole; `key[0]` or `key.0` replaces one place of a list.

use olmoe_model::config::{parse_yaml, shorten};
use serde_json::{Map, Value};

use super::error::TrainConfigError;
use super::field::MAX_DEPTH;

/// Changes a file that was read.
pub(super) fn apply(file: &mut Value, text: &str) -> Result<(), TrainConfigError> {
    let wrong = |problem: &str| TrainConfigError::Override { text: shorten(text), problem: problem.to_owned() };
    let (key, value) = text.split_once('=').unwrap_or((text, "True"));
    let key = key.trim_matches('-').replace('-', "_");
    let value = match value.trim() {
        "" => Value::Null,
        value => scalar_or_yaml(value).map_err(|error| wrong(&error.to_string()))?,
    };
    let mut place = file;
    let names: Vec<&str> = key.split(['.', '[']).map(|name| name.trim_end_matches(']')).collect();
    if names.iter().any(|name| name.is_empty()) {
        return Err(wrong("a part of its key is empty"));
    }
    if names.len() > MAX_DEPTH {
        return Err(wrong("its key has too many parts"));
    }
    for name in names {
        place = match place {
            Value::Array(items) => {
                let count = items.len();
                let item = name.parse().ok().and_then(|at: usize| items.get_mut(at));
                item.ok_or_else(|| wrong(&format!("`{}` is no place of a list of {count}", shorten(name))))?
            }
            Value::Object(map) => map.entry(name).or_insert(Value::Null),
            // A section that was null or left out begins; any other value gives way, and its type is checked later.
            other => {
                *other = Value::Object(Map::new());
                match other {
                    Value::Object(map) => map.entry(name).or_insert(Value::Null),
                    _ => return Err(wrong("its key leads nowhere")),
                }
            }
        };
    }
    merge(place, value);
    Ok(())
}

/// Interpolations are no YAML of their own: braces would begin a mapping.
fn scalar_or_yaml(text: &str) -> Result<Value, olmoe_model::config::ConfigError> {
    if text.contains("${") && !text.starts_with(['[', '{', '\'', '"']) {
        return Ok(Value::String(text.to_owned()));
    }
    parse_yaml(text)
}

fn merge(place: &mut Value, value: Value) {
    match (place, value) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                merge(old.entry(key).or_insert(Value::Null), value);
            }
        }
        (place, value) => *place = value,
    }
}
