//! [`Json`]: a value of a row.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Number;

/// How many characters of a string a message shows.
const SHOWN: usize = 40;

/// A JSON value whose objects keep the order of their keys, since templates write tools and their parameters in it.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Json>),
    /// An object; where a key occurs twice, the last one counts.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// The value under a key of an object; null is like a key that is missing.
    pub(super) fn get(&self, key: &str) -> Option<&Json> {
        let Json::Object(entries) = self else { return None };
        let (_, value) = entries.iter().rev().find(|(name, _)| name == key)?;
        (*value != Json::Null).then_some(value)
    }

    /// The string, if the value is one.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The list, if the value is one.
    pub(super) fn list(&self) -> Option<&[Json]> {
        match self {
            Json::List(items) => Some(items),
            _ => None,
        }
    }

    /// The number, if the value is one.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Json::Number(number) => number.as_f64(),
            _ => None,
        }
    }

    /// A boolean as it may be written: a boolean, 0 or 1, or, as in CSV, a word.
    pub(super) fn truth(&self) -> Option<bool> {
        match self {
            Json::Bool(truth) => Some(*truth),
            Json::Number(number) => match number.as_f64() {
                Some(0.0) => Some(false),
                Some(1.0) => Some(true),
                _ => None,
            },
            Json::Text(text) => match text.trim() {
                "true" | "True" | "TRUE" | "1" => Some(true),
                "false" | "False" | "FALSE" | "0" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    /// The keys of an object.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        let entries = match self {
            Json::Object(entries) => entries.as_slice(),
            _ => &[],
        };
        entries.iter().map(|(key, _)| key.as_str())
    }

    /// The value in a string that holds JSON, as some files store lists.
    pub(super) fn within(text: &str) -> Option<Json> {
        let begins = text.trim_start().starts_with(['[', '{']);
        begins.then(|| serde_json::from_str(text).ok()).flatten()
    }
}

impl From<Json> for serde_json::Value {
    fn from(json: Json) -> serde_json::Value {
        match json {
            Json::Null => serde_json::Value::Null,
            Json::Bool(truth) => truth.into(),
            Json::Number(number) => number.into(),
            Json::Text(text) => text.into(),
            Json::List(items) => items.into_iter().map(serde_json::Value::from).collect(),
            Json::Object(entries) => {
                serde_json::Value::Object(entries.into_iter().map(|(key, value)| (key, value.into())).collect())
            }
        }
    }
}

/// A short description for messages: the type and, if it is short, the content.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(truth) => write!(f, "{truth}"),
            Json::Number(number) => write!(f, "the number {number}"),
            Json::Text(text) if text.chars().count() > SHOWN => {
                write!(f, "the string {:?}…", text.chars().take(SHOWN).collect::<String>())
            }
            Json::Text(text) => write!(f, "the string {text:?}"),
            Json::List(items) => write!(f, "a list of {}", crate::counted(items.len(), "element")),
            Json::Object(_) => {
                let keys: Vec<&str> = self.keys().take(8).collect();
                write!(f, "an object with the keys [{}]", keys.join(", "))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Json, E> {
        Ok(Json::Bool(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Json, E> {
        Number::from_f64(number).map(Json::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Json, E> {
        Ok(Json::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Json::Object(entries))
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Null => serializer.serialize_unit(),
            Json::Bool(truth) => serializer.serialize_bool(*truth),
            Json::Number(number) => number.serialize(serializer),
            Json::Text(text) => serializer.serialize_str(text),
            Json::List(items) => serializer.collect_seq(items),
            Json::Object(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_keep_their_order() {
        let text = r#"{"z":1,"a":[true,null,-2.5,18446744073709551615],"m":{"y":"\u00e9","b":{}}}"#;
        let json: Json = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&json).unwrap(), text.replace("\\u00e9", "é"));
        let twice: Json = serde_json::from_str(r#"{"a":1,"a":2,"b":null}"#).unwrap();
        assert_eq!((twice.get("a").and_then(Json::number), twice.get("b")), (Some(2.0), None));
    }

    #[test]
    fn what_messages_show() {
        for (text, shown) in [
            ("null", "null"),
            ("7", "the number 7"),
            (r#""a\nb""#, r#"the string "a\nb""#),
            ("[1,2]", "a list of 2 elements"),
            (r#"{"a":1,"b":2}"#, "an object with the keys [a, b]"),
        ] {
            assert_eq!(serde_json::from_str::<Json>(text).unwrap().to_string(), shown);
        }
        let long = Json::Text("é".repeat(50)).to_string();
        assert_eq!(long, format!("the string \"{}\"…", "é".repeat(40)));
    }
}
