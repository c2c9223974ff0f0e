//! Typed access to the keys of one parsed mapping. JSON and YAML are both parsed into the same tree of values.

use serde_json::{Map, Value};

use super::error::ConfigError;

/// Longest key or value repeated in an error, in characters.
const MAX_QUOTED: usize = 60;

/// A mapping of keys to values. Every getter takes the default for an absent key; an explicit null is accepted only
/// by the `optional_` getters.
pub(super) struct Section<'a> {
    map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    /// Wraps `value`; if it is not a mapping, the error names it `what`.
    pub(super) fn new(value: &'a Value, what: &'static str) -> Result<Self, ConfigError> {
        match value {
            Value::Object(map) => Ok(Self { map }),
            other => Err(ConfigError::NotAMapping { what, found: describe(other) }),
        }
    }

    /// The keys, in the order of the map.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// The value of a key that is present and not null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is written down, null or not.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Returns an error for the first key that `is_known` does not accept, with the closest of `known`.
    pub(super) fn reject_unknown(
        &self,
        known: &[&'static str],
        is_known: impl Fn(&str) -> bool,
    ) -> Result<(), ConfigError> {
        match self.keys().find(|key| !is_known(key)) {
            None => Ok(()),
            Some(key) => Err(ConfigError::UnknownKey { key: shorten(key), suggestion: closest(key, known) }),
        }
    }

    /// A whole number of at least 0.
    pub(super) fn size(&self, key: &str, default: usize) -> Result<usize, ConfigError> {
        match self.map.get(key) {
            None => Ok(default),
            Some(value) => as_size(value).ok_or_else(|| wrong_type(key, "a whole number", value)),
        }
    }

    /// A whole number of at least 0, or null.
    pub(super) fn optional_size(&self, key: &str, default: Option<usize>) -> Result<Option<usize>, ConfigError> {
        match self.map.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => match as_size(value) {
                Some(size) => Ok(Some(size)),
                None => Err(wrong_type(key, "a whole number or null", value)),
            },
        }
    }

    /// A number.
    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64, ConfigError> {
        match self.map.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| wrong_type(key, "a number", value)),
        }
    }

    /// A number or null.
    pub(super) fn optional_number(&self, key: &str, default: Option<f64>) -> Result<Option<f64>, ConfigError> {
        match self.map.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(wrong_type(key, "a number or null", value)),
            },
        }
    }

    /// True or false.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.map.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| wrong_type(key, "true or false", value)),
        }
    }

    /// True, false or null.
    pub(super) fn optional_flag(&self, key: &str, default: Option<bool>) -> Result<Option<bool>, ConfigError> {
        match self.map.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => match value.as_bool() {
                Some(flag) => Ok(Some(flag)),
                None => Err(wrong_type(key, "true, false or null", value)),
            },
        }
    }

    /// One of several names, each with its meaning; `allowed` lists them for the error.
    pub(super) fn name<T: Copy>(
        &self,
        key: &'static str,
        default: T,
        names: &[(&str, T)],
        allowed: &'static str,
    ) -> Result<T, ConfigError> {
        let Some(value) = self.map.get(key) else { return Ok(default) };
        let Some(found) = value.as_str() else { return Err(wrong_type(key, "a name", value)) };
        match names.iter().find(|(name, _)| *name == found) {
            Some((_, meaning)) => Ok(*meaning),
            None => Err(ConfigError::UnknownName { key, found: shorten(found), allowed }),
        }
    }
}

/// The error for a value of another type.
pub(super) fn wrong_type(key: &str, expected: &'static str, found: &Value) -> ConfigError {
    ConfigError::WrongType { key: shorten(key), expected, found: describe(found) }
}

/// A whole number, also when written as `4e3` or `4096.0`.
fn as_size(value: &Value) -> Option<usize> {
    /// Above this number, not every integer is an f64.
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    let whole = match value.as_u64() {
        Some(whole) => whole,
        None => {
            let number = value.as_f64()?;
            // Range and fraction are checked, so the cast is exact.
            if number.fract() != 0.0 || !(0.0..=MAX_EXACT).contains(&number) {
                return None;
            }
            number as u64
        }
    };
    usize::try_from(whole).ok()
}

/// A value in words, short enough for an error.
pub fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text \"{}\"", shorten(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}

/// The beginning of a text, 60 characters at most, on one line.
pub fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_QUOTED).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_QUOTED).is_some() {
        short.push('…');
    }
    short
}

/// The known key with the least edit distance, if that is at most a third of the length of the key.
pub fn closest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let key: Vec<char> = key.chars().take(MAX_QUOTED + 1).collect();
    let limit = (key.len() / 3).max(1);
    known
        .iter()
        .map(|&candidate| (edit_distance(&key, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance: insertions, deletions and replacements, one row at a time.
fn edit_distance(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, &from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        let distance = |a: &str, b: &str| edit_distance(&a.chars().collect::<Vec<_>>(), b);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("d_modle", "d_model"), 2);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn suggestions_are_close_or_absent() {
        let known = ["d_model", "n_layers", "moe_top_k"];
        assert_eq!(closest("d_modle", &known), Some("d_model"));
        assert_eq!(closest("moe_topk", &known), Some("moe_top_k"));
        assert_eq!(closest("learning_rate", &known), None);
        assert_eq!(closest("", &known), None);
        assert_eq!(closest(&"é".repeat(100_000), &known), None);
    }

    #[test]
    fn whole_numbers() {
        let size = |text: &str| as_size(&serde_json::from_str(text).unwrap());
        assert_eq!(size("4096"), Some(4096));
        assert_eq!(size("4.096e3"), Some(4096));
        assert_eq!(size("0.5"), None);
        assert_eq!(size("-1"), None);
        assert_eq!(size("1e300"), None);
        assert_eq!(size("\"7\""), None);
    }

    #[test]
    fn quoted_text_is_short_and_on_one_line() {
        assert_eq!(shorten("a\nb"), "a\\nb");
        assert_eq!(shorten(&"é".repeat(100)).chars().count(), MAX_QUOTED + 1);
    }
}
