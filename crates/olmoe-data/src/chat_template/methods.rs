//! The methods of Python's strings, mappings and lists.

use std::sync::LazyLock;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use regex_syntax::hir::{Class, HirKind};

use super::arguments::Arguments;
use crate::white_space::{is_space, lines};

/// Calls a method that the engine's values do not have themselves.
pub(super) fn call(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::new(name, args)?;
    match value.as_str() {
        Some(text) => of_text(state, text, name, args, arguments),
        None => match (value.kind(), name) {
            (ValueKind::Seq | ValueKind::Iterable, "index") => index_in_list(value, arguments),
            (ValueKind::Seq | ValueKind::Iterable | ValueKind::Map, "copy") => {
                arguments.end()?;
                Ok(value.clone())
            }
            (
                ValueKind::Seq | ValueKind::Iterable,
                "append" | "extend" | "insert" | "remove" | "pop" | "clear" | "reverse" | "sort",
            )
            | (ValueKind::Map, "clear" | "pop" | "popitem" | "setdefault" | "update") => {
                let message = format!("{name} would change a value, which a chat template may not");
                Err(Error::new(ErrorKind::InvalidOperation, message))
            }
            _ => unknown_method_callback(state, value, name, args),
        },
    }
}

fn index_in_list(value: &Value, mut arguments: Arguments) -> Result<Value, Error> {
    let sought = arguments.needed("value")?;
    let found = value.try_iter()?.position(|item| item == sought);
    let missing = arguments.wrong(format!("{sought:?} is not in the list"));
    arguments.end()?;
    found.map(Value::from).ok_or(missing)
}

fn of_text(
    state: &mut State,
    text: &str,
    name: &str,
    args: &[Value],
    mut arguments: Arguments,
) -> Result<Value, Error> {
    let a = &mut arguments;
    let result = match name {
        "upper" => Value::from(text.to_uppercase()),
        "lower" => Value::from(text.to_lowercase()),
        "casefold" => Value::from(folded(text)),
        "swapcase" => Value::from(text.chars().flat_map(swapped).collect::<String>()),
        "capitalize" => Value::from(capitalized(text)),
        "title" => Value::from(title(text)),
        "strip" => Value::from(stripped(text, a.text("chars")?, true, true)),
        "lstrip" => Value::from(stripped(text, a.text("chars")?, true, false)),
        "rstrip" => Value::from(stripped(text, a.text("chars")?, false, true)),
        "removeprefix" => {
            let prefix = a.needed_text("prefix")?;
            Value::from(text.strip_prefix(prefix.as_str()).unwrap_or(text))
        }
        "removesuffix" => {
            let suffix = a.needed_text("suffix")?;
            Value::from(text.strip_suffix(suffix.as_str()).unwrap_or(text))
        }
        "split" | "rsplit" => {
            let (separator, most) = (a.text("sep")?, a.integer("maxsplit")?.unwrap_or(-1));
            if separator.as_deref() == Some("") {
                return Err(a.wrong("the separator is empty".to_owned()));
            }
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let parts = match (separator, name) {
                (None, "split") => words(text, most),
                (None, _) => words_from_end(text, most),
                (Some(by), "split") => text.splitn(most.saturating_add(1), by.as_str()).collect(),
                (Some(by), _) => {
                    let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), by.as_str()).collect();
                    parts.reverse();
                    parts
                }
            };
            parts.into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let by = a.needed_text("sep")?;
            if by.is_empty() {
                return Err(a.wrong("the separator is empty".to_owned()));
            }
            let parts = match name {
                "partition" => {
                    text.split_once(by.as_str()).map_or([text, "", ""], |(before, after)| [before, &by, after])
                }
                _ => text.rsplit_once(by.as_str()).map_or(["", "", text], |(before, after)| [before, &by, after]),
            };
            Value::from(Tuple::from(parts.map(Value::from).to_vec()))
        }
        "splitlines" => lines(text, a.flag("keepends", false)?).into_iter().map(Value::from).collect(),
        "find" | "rfind" | "index" | "rindex" => {
            let sought = a.needed_text("sub")?;
            let (start, part) = section(text, a)?;
            let found = part.and_then(|part| {
                let at = if name.starts_with('r') { part.rfind(&sought) } else { part.find(&sought) }?;
                Some(start + part[..at].chars().count())
            });
            match found {
                Some(at) => Value::from(at),
                None if name.ends_with("find") => Value::from(-1),
                None => return Err(a.wrong(format!("{sought:?} is not in the string"))),
            }
        }
        "count" => {
            let sought = a.needed_text("sub")?;
            let (_, part) = section(text, a)?;
            Value::from(part.map_or(0, |part| part.matches(sought.as_str()).count()))
        }
        "startswith" | "endswith" => {
            let sought = a.needed(if name == "startswith" { "prefix" } else { "suffix" })?;
            let several = if sought.is_tuple() { sought.try_iter()?.collect() } else { vec![sought] };
            let (_, part) = section(text, a)?;
            let mut found = false;
            for one in several {
                let one = one
                    .as_str()
                    .ok_or_else(|| a.wrong(format!("{one:?} is neither a string nor a tuple of strings")))?;
                found |= part
                    .is_some_and(|part| if name == "startswith" { part.starts_with(one) } else { part.ends_with(one) });
            }
            Value::from(found)
        }
        "replace" => {
            let (old, new) = (a.needed_text("old")?, a.needed_text("new")?);
            let most = a.integer("count")?.unwrap_or(-1);
            Value::from(replaced(text, &old, &new, most))
        }
        "join" => {
            let mut joined = String::new();
            for (at, item) in a.needed("iterable")?.try_iter()?.enumerate() {
                if at > 0 {
                    joined.push_str(text);
                }
                let item = item.as_str().ok_or_else(|| a.wrong(format!("item {at} is {item:?}, expected a string")))?;
                joined.push_str(item);
            }
            Value::from(joined)
        }
        "ljust" | "rjust" | "center" => {
            let width = a.needed_integer("width")?;
            let fill = a.text("fillchar")?.unwrap_or_else(|| " ".to_owned());
            if fill.chars().count() != 1 {
                return Err(a.wrong(format!("the fill is {fill:?}, expected one character")));
            }
            let missing = missing(text, width, a)?;
            let left = match name {
                "ljust" => 0,
                "rjust" => missing,
                // Where the width is odd, the odd fill character goes to the left.
                _ => missing / 2 + (missing & width.max(0) as usize & 1),
            };
            Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)))
        }
        "zfill" => {
            let width = a.needed_integer("width")?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            Value::from(format!("{sign}{}{digits}", "0".repeat(missing(text, width, a)?)))
        }
        "expandtabs" => {
            let size = a.integer("tabsize")?.unwrap_or(8);
            Value::from(expanded(text, missing("", size, a)?))
        }
        "isspace" => all(text, is_space),
        "isalpha" => all(text, char::is_alphabetic),
        "isalnum" => all(text, char::is_alphanumeric),
        "isascii" => Value::from(text.is_ascii()),
        "isdigit" => all(text, is_digit),
        "isdecimal" => all(text, is_decimal),
        "isnumeric" => all(text, char::is_numeric),
        "islower" => Value::from(text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)),
        "isupper" => Value::from(text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)),
        "istitle" => Value::from(text.chars().any(is_cased) && title(text) == text),
        _ => return unknown_method_callback(state, &Value::from(text), name, args),
    };
    arguments.end()?;
    Ok(result)
}

/// The part of a string between two positions, and the number of characters before it; None if `start` lies after
/// `end`.
fn section<'t>(text: &'t str, arguments: &mut Arguments) -> Result<(usize, Option<&'t str>), Error> {
    let length = text.chars().count() as i64;
    let place = |at: i64| if at < 0 { (at + length).max(0) } else { at };
    let start = place(arguments.integer("start")?.unwrap_or(0));
    let end = place(arguments.integer("end")?.unwrap_or(length)).min(length);
    if start > end {
        return Ok((0, None));
    }
    let byte = |at: i64| text.char_indices().nth(at as usize).map_or(text.len(), |(byte, _)| byte);
    Ok((start as usize, Some(&text[byte(start)..byte(end)])))
}

/// The greatest width that a string is padded to.
const MAX_WIDTH: i64 = 1 << 20;

/// How many characters a string lacks to reach a width.
fn missing(text: &str, width: i64, arguments: &Arguments) -> Result<usize, Error> {
    if width > MAX_WIDTH {
        return Err(arguments.wrong(format!("the width is {width}, expected {MAX_WIDTH} at most")));
    }
    Ok((width.max(0) as usize).saturating_sub(text.chars().count()))
}

pub(super) fn replaced(text: &str, old: &str, new: &str, most: i64) -> String {
    match usize::try_from(most) {
        Ok(most) => text.replacen(old, new, most),
        Err(_) => text.replace(old, new),
    }
}

fn stripped(text: &str, letters: Option<String>, left: bool, right: bool) -> &str {
    let outside = |letter: char| letters.as_ref().map_or_else(|| is_space(letter), |letters| letters.contains(letter));
    let text = if left { text.trim_start_matches(outside) } else { text };
    if right { text.trim_end_matches(outside) } else { text }
}

/// `split()`: the words, and the unsplit rest after `most` splits.
fn words(text: &str, most: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = rest.find(is_space).filter(|_| words.len() < most).unwrap_or(rest.len());
        words.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    words
}

/// `rsplit()`: the words from the end, and the unsplit rest before `most` splits.
fn words_from_end(text: &str, most: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        let before = rest.char_indices().rfind(|(_, letter)| is_space(*letter)).filter(|_| words.len() < most);
        let start = before.map_or(0, |(at, letter)| at + letter.len_utf8());
        words.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_space);
    }
    words.reverse();
    words
}

fn all(text: &str, is: impl Fn(char) -> bool) -> Value {
    Value::from(!text.is_empty() && text.chars().all(is))
}

fn is_cased(letter: char) -> bool {
    letter.is_lowercase() || letter.is_uppercase()
}

fn is_decimal(letter: char) -> bool {
    static DIGITS: LazyLock<Vec<(char, char)>> = LazyLock::new(|| {
        let parsed = regex_syntax::parse(r"\p{Nd}");
        let Ok(HirKind::Class(Class::Unicode(ranges))) = parsed.as_ref().map(|hir| hir.kind()) else {
            unreachable!("this is a class of characters");
        };
        ranges.ranges().iter().map(|range| (range.start(), range.end())).collect()
    });
    DIGITS.iter().any(|(first, last)| (*first..=*last).contains(&letter))
}

/// A decimal digit, or a digit that is raised, lowered or in a circle.
fn is_digit(letter: char) -> bool {
    let special = matches!(letter, '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{2070}' | '\u{2074}'..='\u{2079}' | '\u{2080}'..='\u{2089}' | '\u{2460}'..='\u{2468}');
    special || is_decimal(letter)
}

/// The form for comparing without regard to case.
fn folded(text: &str) -> String {
    let one = |letter: char| match letter {
        'ß' | 'ẞ' => vec!['s', 's'],
        'ς' => vec!['σ'],
        'ſ' => vec!['s'],
        letter => letter.to_lowercase().collect(),
    };
    text.chars().flat_map(one).collect()
}

fn swapped(letter: char) -> Vec<char> {
    if letter.is_uppercase() { letter.to_lowercase().collect() } else { letter.to_uppercase().collect() }
}

/// The upper-case form of a character at the beginning of a word.
fn raised(letter: char) -> impl Iterator<Item = char> {
    letter.to_uppercase().enumerate().flat_map(|(at, letter)| match at {
        0 => vec![letter],
        _ => letter.to_lowercase().collect(),
    })
}

pub(super) fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().into_iter().flat_map(raised);
    first.chain(letters.as_str().to_lowercase().chars()).collect()
}

/// `str.title()`: a word is a run of cased characters.
fn title(text: &str) -> String {
    let (mut title, mut inside) = (String::new(), false);
    for letter in text.chars() {
        if inside {
            title.extend(letter.to_lowercase());
        } else {
            title.extend(raised(letter));
        }
        inside = is_cased(letter);
    }
    title
}

fn expanded(text: &str, size: usize) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for letter in text.chars() {
        match letter {
            '\t' => {
                let spaces = if size == 0 { 0 } else { size - column % size };
                out.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            '\n' | '\r' => {
                out.push(letter);
                column = 0;
            }
            _ => {
                out.push(letter);
                column += 1;
            }
        }
    }
    out
}
