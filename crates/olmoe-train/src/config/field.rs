//! How a section of the configuration is declared: once, as a struct with OLMo's defaults; reading, the list of its keys and
//! writing in the order of its fields follow from that.

use std::collections::BTreeMap;
use std::fmt;

use olmoe_model::config::{closest, describe, shorten};
use serde_json::{Map, Value};

use super::error::TrainConfigError;

/// Deepest nesting of a configuration.
pub(crate) const MAX_DEPTH: usize = 32;

/// Where a value is: the keys and places of a list that lead to it.
#[derive(Clone, Copy)]
pub(crate) enum At<'a> {
    Top,
    Key(&'a At<'a>, &'a str),
    Place(&'a At<'a>, usize),
}

impl At<'_> {
    pub(crate) fn key<'b>(&'b self, key: &'b str) -> At<'b> {
        At::Key(self, key)
    }

    pub(crate) fn place(&self, place: usize) -> At<'_> {
        At::Place(self, place)
    }

    /// The error for a value of another type.
    pub(crate) fn wrong_type(&self, expected: &'static str, found: &Value) -> TrainConfigError {
        TrainConfigError::WrongType { path: self.to_string(), expected, found: describe(found) }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Top => f.write_str("the configuration"),
            At::Key(At::Top, key) => f.write_str(&shorten(key)),
            At::Key(above, key) => write!(f, "{above}.{}", shorten(key)),
            At::Place(above, place) => write!(f, "{above}[{place}]"),
        }
    }
}

/// A value to be written: like JSON's, with the keys in the order of the schema.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tree {
    Value(Value),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

impl Tree {
    /// Takes away a key wherever it has this value.
    pub(crate) fn remove(&mut self, key: &str, value: &Tree) {
        match self {
            Tree::Value(_) => {}
            Tree::List(items) => items.iter_mut().for_each(|item| item.remove(key, value)),
            Tree::Map(entries) => {
                entries.retain(|(known, found)| known != key || found != value);
                entries.iter_mut().for_each(|(_, tree)| tree.remove(key, value));
            }
        }
    }

    /// The same without an order.
    pub(crate) fn value(&self) -> Value {
        match self {
            Tree::Value(value) => value.clone(),
            Tree::List(items) => items.iter().map(Tree::value).collect(),
            Tree::Map(entries) => entries.iter().map(|(key, tree)| (key.clone(), tree.value())).collect(),
        }
    }
}

/// How many words of a command line a value takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// None, which is true, or one: true or false.
    Flag,
    /// One.
    One,
    /// One or more: a list.
    Many,
}

/// A key of a section, as a command line and its help show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key.
    pub name: &'static str,
    /// What it sets, in lines.
    pub doc: &'static [&'static str],
    /// What follows it.
    pub words: Words,
}

/// A section whose keys can be listed.
pub(crate) trait Section {
    /// The keys, in their order.
    const SECTION: &'static [Key];
}

/// Something that a key can hold.
pub(crate) trait Field: Sized {
    /// What follows the key on a command line.
    const WORDS: Words = Words::One;
    /// Takes the value at a key.
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError>;
    /// What is read as the same again.
    fn tree(&self) -> Tree;
}

/// The mapping of a section; its keys are checked.
pub(crate) fn section<'v>(
    value: &'v Value,
    at: &At<'_>,
    keys: &[&'static str],
) -> Result<&'v Map<String, Value>, TrainConfigError> {
    let Value::Object(map) = value else { return Err(at.wrong_type("a section of keys and values", value)) };
    match map.keys().find(|key| !keys.contains(&key.as_str())) {
        None => Ok(map),
        Some(key) => {
            let suggestion = closest(key, keys).map(|known| at.key(known).to_string());
            Err(TrainConfigError::UnknownKey { path: at.key(key).to_string(), suggestion })
        }
    }
}

/// The name of a field as a key: `r#type` is `type`.
pub(crate) const fn key_name(field: &'static str) -> &'static str {
    match field.as_bytes() {
        [b'r', b'#', ..] => field.split_at(2).1,
        _ => field,
    }
}

/// Declares sections: `key: type = default`.
macro_rules! sections {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[doc = $doc:literal])* pub $field:ident : $type:ty = $default:expr,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name { $($(#[doc = $doc])* pub $field: $type,)* }

        impl $crate::config::field::Section for $name {
            const SECTION: &'static [$crate::config::field::Key] = &[$($crate::config::field::Key {
                name: $crate::config::field::key_name(stringify!($field)),
                doc: &[$($doc,)*],
                words: <$type as $crate::config::field::Field>::WORDS,
            },)*];
        }

        impl $name {
            /// The keys, in OLMo's order.
            pub(crate) const KEYS: &[&'static str] = &[$($crate::config::field::key_name(stringify!($field)),)*];
        }

        impl Default for $name {
            /// OLMo's defaults.
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $crate::config::field::Field for $name {
            fn read(value: &::serde_json::Value, at: &$crate::config::field::At<'_>) -> Result<Self, TrainConfigError> {
                let map = $crate::config::field::section(value, at, Self::KEYS)?;
                Ok(Self { $($field: {
                    let key = $crate::config::field::key_name(stringify!($field));
                    match map.get(key) {
                        Some(value) => <$type as $crate::config::field::Field>::read(value, &at.key(key))?,
                        None => $default,
                    }
                },)* })
            }

            fn tree(&self) -> $crate::config::field::Tree {
                $crate::config::field::Tree::Map(vec![$((
                    $crate::config::field::key_name(stringify!($field)).to_owned(),
                    $crate::config::field::Field::tree(&self.$field),
                ),)*])
            }
        }
    )*};
}
pub(crate) use sections;

/// Declares the names that a key can have: `Variant = "name"`.
macro_rules! names {
    ($($(#[$meta:meta])* pub enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal $(| $alias:literal)*,)* })*) => {$(
        $crate::names::names! {
            "name";
            $(#[$meta])*
            pub enum $name { $($(#[$variant_meta])* $variant = $text $(| $alias)*,)* }
        }
        $crate::config::field::named_field! { $name }
    )*};
}
pub(crate) use names;

/// Makes the names of an enum values of keys.
macro_rules! named_field {
    ($($name:ty)*) => {$(
        impl $crate::config::field::Field for $name {
            fn read(value: &::serde_json::Value, at: &$crate::config::field::At<'_>) -> Result<Self, TrainConfigError> {
                let text = value.as_str().ok_or_else(|| at.wrong_type("a name", value))?;
                text.parse::<Self>().map_err(|unknown: $crate::names::UnknownName| TrainConfigError::UnknownName {
                    path: at.to_string(),
                    found: unknown.found,
                    allowed: unknown.known,
                })
            }

            fn tree(&self) -> $crate::config::field::Tree {
                $crate::config::field::Tree::Value(self.name().into())
            }
        }
    )*};
}
pub(crate) use named_field;

impl<T: Field> Field for Option<T> {
    const WORDS: Words = T::WORDS;

    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        if value.is_null() { Ok(None) } else { T::read(value, at).map(Some) }
    }

    fn tree(&self) -> Tree {
        self.as_ref().map_or(Tree::Value(Value::Null), Field::tree)
    }
}

impl<T: Field> Field for Vec<T> {
    const WORDS: Words = Words::Many;

    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        let Value::Array(items) = value else { return Err(at.wrong_type("a list", value)) };
        items.iter().enumerate().map(|(i, item)| T::read(item, &at.place(i))).collect()
    }

    fn tree(&self) -> Tree {
        Tree::List(self.iter().map(Field::tree).collect())
    }
}

impl<T: Field> Field for BTreeMap<String, T> {
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        let Value::Object(map) = value else { return Err(at.wrong_type("a mapping", value)) };
        map.iter().map(|(key, value)| Ok((key.clone(), T::read(value, &at.key(key))?))).collect()
    }

    fn tree(&self) -> Tree {
        Tree::Map(self.iter().map(|(key, value)| (key.clone(), value.tree())).collect())
    }
}

impl Field for bool {
    const WORDS: Words = Words::Flag;

    /// As OmegaConf: also the words of YAML 1.1, 0 and 1.
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        let word = match value {
            Value::Bool(flag) => return Ok(*flag),
            Value::Number(number) => number.to_string(),
            Value::String(text) => text.to_ascii_lowercase(),
            _ => String::new(),
        };
        match word.as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(at.wrong_type("true or false", value)),
        }
    }

    fn tree(&self) -> Tree {
        Tree::Value((*self).into())
    }
}

impl Field for String {
    /// As OmegaConf: numbers and flags are texts, too.
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(flag) => Ok(flag.to_string()),
            _ => Err(at.wrong_type("a text", value)),
        }
    }

    fn tree(&self) -> Tree {
        Tree::Value(self.clone().into())
    }
}

/// A number, also one in quotes, which is what the environment gives.
fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number: &f64| number.is_finite())
}

/// A whole number, exactly.
fn whole(value: &Value) -> Option<i128> {
    let exact = match value {
        Value::Number(number) => number.as_u64().map(i128::from).or(number.as_i64().map(i128::from)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    // Doubles hold every whole number up to 2^53.
    let rounded = || number(value).filter(|x| x.fract() == 0.0 && x.abs() <= 9_007_199_254_740_992.0);
    exact.or_else(|| rounded().map(|x| x as i128))
}

impl Field for f64 {
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        number(value).ok_or_else(|| at.wrong_type("a number", value))
    }

    fn tree(&self) -> Tree {
        Tree::Value((*self).into())
    }
}

impl Field for u64 {
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        whole(value).and_then(|x| x.try_into().ok()).ok_or_else(|| at.wrong_type("a whole number of at least 0", value))
    }

    fn tree(&self) -> Tree {
        Tree::Value((*self).into())
    }
}

impl Field for i64 {
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        whole(value).and_then(|x| x.try_into().ok()).ok_or_else(|| at.wrong_type("a whole number", value))
    }

    fn tree(&self) -> Tree {
        Tree::Value((*self).into())
    }
}

impl Field for (f64, f64) {
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        match value.as_array().map(Vec::as_slice) {
            Some([a, b]) => Ok((f64::read(a, &at.place(0))?, f64::read(b, &at.place(1))?)),
            _ => Err(at.wrong_type("a list of two numbers", value)),
        }
    }

    fn tree(&self) -> Tree {
        Tree::List(vec![self.0.tree(), self.1.tree()])
    }
}

/// A number of a configuration as this machine counts; one beyond that is the largest.
pub(crate) fn count(x: u64) -> usize {
    usize::try_from(x).unwrap_or(usize::MAX)
}

/// A count of steps or tokens that may be written with a fraction, which is cut off, as OLMo does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count(pub u64);

impl Field for Count {
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        let exact = whole(value).and_then(|x| u64::try_from(x).ok());
        let cut = || number(value).filter(|x| (0.0..=9_007_199_254_740_992.0).contains(x)).map(|x| x as u64);
        exact.or_else(cut).map(Count).ok_or_else(|| at.wrong_type("a number of at least 0", value))
    }

    fn tree(&self) -> Tree {
        self.0.tree()
    }
}

/// A key of OLMo that can only be null here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported;

impl Field for Unsupported {
    fn read(value: &Value, at: &At<'_>) -> Result<Self, TrainConfigError> {
        match value {
            Value::Null => Ok(Unsupported),
            _ => Err(TrainConfigError::Value {
                path: at.to_string(),
                found: describe(value),
                problem: "it is not implemented; set null or leave it out",
            }),
        }
    }

    fn tree(&self) -> Tree {
        Tree::Value(Value::Null)
    }
}
