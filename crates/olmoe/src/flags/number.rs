//! Values of flags.

/// A whole number above 0.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a whole number above 0".to_owned()),
    }
}

/// Several values for one flag.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct List<T>(pub(crate) Vec<T>);

/// Parses values separated by commas or spaces, with or without brackets.
fn list<T>(text: &str, expected: &str, value: impl Fn(&str) -> Option<T>) -> Result<List<T>, String> {
    let inside = text.trim();
    let inside = inside.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(inside);
    let words = inside.split([',', ' ', '\t', '\n', '\r']).filter(|word| !word.is_empty());
    let values = words.map(|word| value(word).ok_or_else(|| format!("expected {expected}, found {word:?}")));
    match values.collect::<Result<Vec<T>, String>>()? {
        none if none.is_empty() => Err(format!("expected {expected}, found none")),
        some => Ok(List(some)),
    }
}

/// Token ids.
pub(crate) fn ids(text: &str) -> Result<List<u32>, String> {
    list(text, "token ids such as 5,17,42 or '5 17 42'", |word| word.parse().ok())
}

/// Numbers of layers.
pub(crate) fn layers(text: &str) -> Result<List<usize>, String> {
    list(text, "numbers of layers such as 0,7,15", |word| word.parse().ok())
}

/// Counts.
pub(crate) fn counts(text: &str) -> Result<List<usize>, String> {
    list(text, "whole numbers above 0 such as 1,4,8", |word| word.parse().ok().filter(|count| *count > 0))
}

/// Weights of a sum.
pub(crate) fn weights(text: &str) -> Result<List<f64>, String> {
    list(text, "numbers above 0 such as 1,3", |word| word.parse().ok())
}

/// A number of bytes: 5GB, 500MB, 4GiB, 2G as llama.cpp has it, or the number itself.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1e0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => 0.0,
    };
    let bytes = number.parse::<f64>().unwrap_or(0.0) * factor;
    // An f64 represents all such numbers of bytes exactly.
    if (1.0..1e15).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err("expected a size such as 5GB, 500MB or 4GiB".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_commas_or_spaces() {
        for text in ["1,2,3", "1 2 3", " 1, 2,\t3 ", "[1, 2, 3]"] {
            assert_eq!(ids(text), Ok(List(vec![1, 2, 3])), "{text:?}");
        }
        for (bad, found) in [("1,x", "found \"x\""), ("", "found none"), ("-1", "found \"-1\""), ("1.5", "\"1.5\"")] {
            assert!(ids(bad).unwrap_err().contains(found), "{bad}");
        }
        assert!(counts("4,0").unwrap_err().contains("above 0"));
    }
}
