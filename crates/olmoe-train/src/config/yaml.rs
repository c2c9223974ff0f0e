//! Writes a tree as YAML that OLMo's reader, and ours, read as the same again.

use serde_json::Value;

use super::field::Tree;

/// The text of a mapping.
pub(crate) fn write(tree: &Tree) -> String {
    let mut text = String::new();
    block(tree, 0, &mut text);
    text
}

/// Lines of a list or mapping that is not empty.
fn block(tree: &Tree, indent: usize, text: &mut String) {
    match tree {
        Tree::Map(entries) => {
            for (key, tree) in entries {
                let key = quoted(key);
                match inline(tree) {
                    Some(value) => line(text, indent, &format!("{key}: {value}")),
                    None => {
                        line(text, indent, &format!("{key}:"));
                        // As PyYAML: the dashes of a list stand under the key.
                        block(tree, if matches!(tree, Tree::List(_)) { indent } else { indent + 2 }, text);
                    }
                }
            }
        }
        Tree::List(items) => {
            for tree in items {
                match inline(tree) {
                    Some(value) => line(text, indent, &format!("- {value}")),
                    None => {
                        let start = text.len();
                        block(tree, indent + 2, text);
                        text.replace_range(start + indent..start + indent + 1, "-");
                    }
                }
            }
        }
        Tree::Value(value) => line(text, indent, &scalar(value)),
    }
}

fn line(text: &mut String, indent: usize, content: &str) {
    text.extend(std::iter::repeat_n(' ', indent));
    text.push_str(content);
    text.push('\n');
}

/// What fits on the line of its key.
fn inline(tree: &Tree) -> Option<String> {
    match tree {
        Tree::Value(value) => Some(scalar(value)),
        Tree::List(items) if items.is_empty() => Some("[]".into()),
        Tree::Map(entries) if entries.is_empty() => Some("{}".into()),
        _ => None,
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(&text.replace("${", "\\${")),
        Value::Number(number) => match number.as_f64() {
            Some(x) if number.is_f64() => float(x),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// With a point and a signed exponent: without, some YAML readers take a number for text.
fn float(x: f64) -> String {
    let text = format!("{x:?}");
    match text.split_once('e') {
        None => text,
        Some((mantissa, exponent)) => {
            let mantissa = if mantissa.contains('.') { mantissa.to_owned() } else { format!("{mantissa}.0") };
            let sign = if exponent.starts_with('-') { "" } else { "+" };
            format!("{mantissa}e{sign}{exponent}")
        }
    }
}

/// A text, in quotes unless no reader can take it for anything else.
fn quoted(text: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}
