//! Filters, tests and functions of Jinja2 that the engine lacks, or has with another meaning.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::arguments::Arguments;
use super::methods::replaced;
use super::source::REMAINDER;
use super::{json, objects};
use crate::white_space::lines;

/// Filters and tests that the engine has and Jinja2 does not: a template that uses one fails in Jinja2, and so it does
/// here.
const NOT_IN_JINJA: ([&str; 6], [&str; 4]) =
    (["split", "lines", "chain", "zip", "bool", "pprint"], ["safe", "int", "startingwith", "endingwith"]);

type Filter = fn(&mut State, &Value, &mut Arguments) -> Result<Value, Error>;

/// Filters by name.
const FILTERS: [(&str, Filter); 26] = [
    ("length", length),
    ("count", length),
    ("default", default),
    ("d", default),
    ("first", first),
    ("last", last),
    ("int", int),
    ("float", float),
    ("replace", replace),
    ("indent", indent),
    ("trim", trim),
    ("truncate", truncate),
    ("center", center),
    ("wordcount", word_count),
    ("urlencode", url_encode),
    ("escape", escape),
    ("e", escape),
    ("forceescape", escape_always),
    ("string", string),
    ("items", items),
    ("dictsort", sort_mapping),
    ("sort", sort),
    ("min", smallest),
    ("max", largest),
    ("join", join),
    (REMAINDER, remainder),
];

/// Adds the filters, tests and functions to an environment.
pub(super) fn add(environment: &mut Environment) {
    NOT_IN_JINJA.0.iter().for_each(|name| environment.remove_filter(name));
    NOT_IN_JINJA.1.iter().for_each(|name| environment.remove_test(name));
    environment.remove_global("debug");
    for (name, filter) in FILTERS {
        environment.add_filter(name, move |state: &mut State, value: &Value, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            let shown = if name == REMAINDER { "%" } else { name };
            let mut arguments = Arguments::new(shown, &args)?;
            let result = filter(state, value, &mut arguments)?;
            arguments.end()?;
            Ok::<Value, Error>(result)
        });
    }
    environment.add_filter("tojson", json::tojson);
    environment.add_test("sequence", is_sequence);
    environment.add_test("callable", is_callable);
    environment.add_function("cycler", objects::cycler);
    environment.add_function("joiner", objects::joiner);
}

/// `str(value)` of Python.
pub(super) fn text_of(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Number if !value.is_integer() => format(FormatStyle::Printf, "%s", std::slice::from_ref(value)),
        _ => Ok(value.to_string()),
    }
}

fn length(_: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    match value.len() {
        Some(length) => Ok(Value::from(length)),
        None if value.is_undefined() => Ok(Value::from(0)),
        None if value.kind() == ValueKind::Iterable => Ok(Value::from(value.try_iter()?.count())),
        None => Err(arguments.wrong(format!("{value:?} has none"))),
    }
}

fn default(_: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let other = arguments.value("default_value")?.unwrap_or_else(|| Value::from(""));
    let of_false = arguments.flag("boolean", false)?;
    Ok(if value.is_undefined() || of_false && !value.is_true() { other } else { value.clone() })
}

fn first(_: &mut State, value: &Value, _: &mut Arguments) -> Result<Value, Error> {
    Ok(value.try_iter()?.next().unwrap_or_default())
}

fn last(_: &mut State, value: &Value, _: &mut Arguments) -> Result<Value, Error> {
    Ok(value.try_iter()?.last().unwrap_or_default())
}

fn int(_: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let default = arguments.value("default")?.unwrap_or_else(|| Value::from(0));
    let base = arguments.integer("base")?.unwrap_or(10);
    let number = match value.kind() {
        ValueKind::Undefined => return Err(arguments.wrong("the value is undefined".to_owned())),
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => return Ok(value.clone()),
        ValueKind::Number => truncated(f64::try_from(value.clone())?),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            integer(text, base).or_else(|| truncated(real(text)?))
        }
        _ => None,
    };
    Ok(number.map_or(default, |number| i64::try_from(number).map_or_else(|_| Value::from(number), Value::from)))
}

fn truncated(number: f64) -> Option<i128> {
    number.is_finite().then_some(number as i128)
}

/// `int(text, base)`.
fn integer(text: &str, base: i64) -> Option<i128> {
    let text = text.trim_matches(crate::white_space::is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let lower = digits.to_lowercase();
    let digits = lower.strip_prefix(prefix).unwrap_or(&lower);
    if digits.starts_with(['+', '-', '_']) || digits.ends_with('_') || digits.contains("__") {
        return None;
    }
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base))?;
    let number = i128::from_str_radix(&digits.replace('_', ""), base).ok()?;
    Some(if negative { -number } else { number })
}

/// `float(text)`.
fn real(text: &str) -> Option<f64> {
    let text = text.trim_matches(crate::white_space::is_space);
    if text.starts_with('_') || text.ends_with('_') || text.contains("__") {
        return None;
    }
    text.replace('_', "").parse().ok()
}

fn float(_: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let default = arguments.value("default")?.unwrap_or_else(|| Value::from(0.0));
    let number = match value.kind() {
        ValueKind::Undefined => return Err(arguments.wrong("the value is undefined".to_owned())),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => Some(number(value).unwrap_or(f64::NAN)),
        ValueKind::String => real(value.as_str().unwrap_or_default()),
        _ => None,
    };
    Ok(number.map_or(default, Value::from))
}

fn number(value: &Value) -> Option<f64> {
    match i128::try_from(value.clone()) {
        Ok(whole) if value.is_integer() || value.kind() == ValueKind::Bool => Some(whole as f64),
        _ => f64::try_from(value.clone()).ok(),
    }
}

fn replace(_: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let (old, new) = (text_of(&arguments.needed("old")?)?, text_of(&arguments.needed("new")?)?);
    let most = arguments.integer("count")?.unwrap_or(-1);
    Ok(Value::from(replaced(&text_of(value)?, &old, &new, most)))
}

fn indent(_: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let indention = match arguments.value("width")? {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(
                width
                    .as_usize()
                    .filter(|width| *width <= 1 << 16)
                    .ok_or_else(|| arguments.wrong(format!("the width is {width:?}")))?,
            ),
        },
    };
    let (first, blank) = (arguments.flag("first", false)?, arguments.flag("blank", false)?);
    let text = text_of(value)? + "\n";
    let mut out = String::new();
    for (at, line) in lines(&text, false).into_iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if if at == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn trim(state: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let letters = arguments.value("chars")?.unwrap_or_else(|| Value::from(()));
    super::methods::call(state, &Value::from(text_of(value)?), "strip", &[letters])
}

fn truncate(_: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let length = arguments.integer("length")?.unwrap_or(255);
    let cuts_words = arguments.flag("killwords", false)?;
    let end = arguments.text("end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = arguments.integer("leeway")?.unwrap_or(5);
    let ends = end.chars().count() as i64;
    if length < ends || leeway < 0 {
        return Err(
            arguments.wrong(format!("the length is {length} and the leeway {leeway}; expected at least {ends} and 0"))
        );
    }
    let text = text_of(value)?;
    if text.chars().count() as i64 <= length.saturating_add(leeway) {
        return Ok(Value::from(text));
    }
    let kept: String = text.chars().take((length - ends) as usize).collect();
    let kept = if cuts_words { &kept } else { kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words) };
    Ok(Value::from(format!("{kept}{end}")))
}

fn center(state: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let width = arguments.integer("width")?.unwrap_or(80);
    super::methods::call(state, &Value::from(text_of(value)?), "center", &[Value::from(width)])
}

fn word_count(_: &mut State, value: &Value, _: &mut Arguments) -> Result<Value, Error> {
    let text = text_of(value)?;
    let words = text.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
    Ok(Value::from(words.filter(|word| !word.is_empty()).count()))
}

/// A string as a part of a URL; a mapping or a list of pairs as a query.
fn url_encode(_: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let quoted = |value: &Value, kept: &[u8], space: &str| -> Result<String, Error> {
        let mut out = String::new();
        for byte in text_of(value)?.into_bytes() {
            match byte {
                b' ' => out.push_str(space),
                _ if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) || kept.contains(&byte) => {
                    out.push(byte.into())
                }
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
        Ok(out)
    };
    if !matches!(value.kind(), ValueKind::Map | ValueKind::Seq | ValueKind::Iterable) {
        return quoted(value, b"/", "%20").map(Value::from);
    }
    let mut parts = Vec::new();
    for item in value.try_iter()? {
        let (key, of_key) = match value.kind() {
            ValueKind::Map => (item.clone(), value.get_item(&item)?),
            _ if item.len() == Some(2) => (item.get_item_by_index(0)?, item.get_item_by_index(1)?),
            _ => return Err(arguments.wrong(format!("{item:?} is not a pair"))),
        };
        parts.push(format!("{}={}", quoted(&key, b"", "+")?, quoted(&of_key, b"", "+")?));
    }
    Ok(Value::from(parts.join("&")))
}

fn escape(state: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    if value.is_safe() { Ok(value.clone()) } else { escape_always(state, value, arguments) }
}

/// A string with the characters escaped that have a meaning in HTML.
fn escape_always(_: &mut State, value: &Value, _: &mut Arguments) -> Result<Value, Error> {
    let mut out = String::new();
    for letter in text_of(value)?.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            letter => out.push(letter),
        }
    }
    Ok(Value::from_safe_string(out))
}

fn string(_: &mut State, value: &Value, _: &mut Arguments) -> Result<Value, Error> {
    if value.as_str().is_some() { Ok(value.clone()) } else { text_of(value).map(Value::from) }
}

fn items(_: &mut State, value: &Value, _: &mut Arguments) -> Result<Value, Error> {
    if value.is_undefined() { Ok(Value::from(Vec::<Value>::new())) } else { minijinja::filters::items(value) }
}

fn sort_mapping(_: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let case_sensitive = arguments.flag("case_sensitive", false)?;
    let by = arguments.text("by")?.unwrap_or_else(|| "key".to_owned());
    if !matches!(by.as_str(), "key" | "value") {
        return Err(arguments.wrong(format!("by is {by:?}, expected key or value")));
    }
    let reverse = arguments.flag("reverse", false)?;
    let names = [("case_sensitive", case_sensitive.into()), ("by", by.into()), ("reverse", reverse.into())];
    minijinja::filters::dictsort(value, names.into_iter().collect())
}

fn sort(state: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let names = [
        ("reverse", Some(arguments.flag("reverse", false)?.into())),
        ("case_sensitive", Some(arguments.flag("case_sensitive", false)?.into())),
        ("attribute", arguments.some("attribute")?),
    ];
    comparable(value, names[2].1.as_ref(), arguments)?;
    minijinja::filters::sort(state, value.clone(), given(names))
}

fn smallest(state: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let names = of_extreme(value, arguments)?;
    minijinja::filters::min(state, value.clone(), names)
}

/// The first of the greatest values, as `min` gives the first of the smallest.
fn largest(state: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let names = of_extreme(value, arguments)?;
    let reversed = value.reverse()?;
    minijinja::filters::max(state, reversed, names)
}

fn of_extreme(value: &Value, arguments: &mut Arguments) -> Result<Kwargs, Error> {
    let case_sensitive = arguments.flag("case_sensitive", false)?;
    let attribute = arguments.some("attribute")?;
    comparable(value, attribute.as_ref(), arguments)?;
    Ok(given([("case_sensitive", Some(case_sensitive.into())), ("attribute", attribute)]))
}

/// Fails where Python defines no order, as between a string and a number or between two mappings. A boolean and a
/// number are refused too, although Python takes the boolean for 0 or 1.
fn comparable(values: &Value, attribute: Option<&Value>, arguments: &Arguments) -> Result<(), Error> {
    let mut first = None;
    for item in values.try_iter()? {
        let key = attribute.map_or(Ok(item.clone()), |path| attribute_of(&item, path))?;
        let kind = key.kind();
        let ordered = matches!(
            kind,
            ValueKind::Bool | ValueKind::Number | ValueKind::String | ValueKind::Seq | ValueKind::Iterable
        );
        if first.is_some_and(|first| first != kind || !ordered) {
            return Err(arguments.wrong(format!("{key:?} cannot be compared with the values before it")));
        }
        first = Some(kind);
    }
    Ok(())
}

fn given<const N: usize>(names: [(&str, Option<Value>); N]) -> Kwargs {
    names.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn join(_: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let between = arguments.value("d")?.map_or(Ok(String::new()), |between| text_of(&between))?;
    let attribute = arguments.some("attribute")?;
    let mut parts = Vec::new();
    for item in value.try_iter()? {
        let item = match &attribute {
            None => item,
            Some(path) => attribute_of(&item, path)?,
        };
        parts.push(text_of(&item)?);
    }
    Ok(Value::from(parts.join(&between)))
}

/// The value at the end of a path: attribute names with dots between, or an index.
fn attribute_of(item: &Value, path: &Value) -> Result<Value, Error> {
    let Some(path) = path.as_str() else { return item.get_item(path) };
    path.split('.').try_fold(item.clone(), |value, name| match name.parse::<i64>() {
        Ok(place) => value.get_item(&Value::from(place)),
        Err(_) => value.get_item(&Value::from(name)),
    })
}

/// `a % b`: the formatted string if `a` is a string, else the remainder of the division, with the sign of `b`.
fn remainder(_: &mut State, value: &Value, arguments: &mut Arguments) -> Result<Value, Error> {
    let by = arguments.needed("the right operand")?;
    if let Some(text) = value.as_str() {
        let values = if by.is_tuple() { by.try_iter()?.collect() } else { vec![by.clone()] };
        let (places, names) = conversions(text);
        let is_mapping = by.kind() == ValueKind::Map;
        if names == 0 && places != values.len() && !(is_mapping && places == 0) {
            return Err(arguments.wrong(format!("{text:?} takes {places} values, found {}", values.len())));
        }
        return format(FormatStyle::Printf, text, &values).map(Value::from);
    }
    let is_whole = |value: &Value| value.is_integer() || value.kind() == ValueKind::Bool;
    let wrong = || {
        let message = format!("tried to use % operator on unsupported types {} and {}", value.kind(), by.kind());
        Error::new(ErrorKind::InvalidOperation, message)
    };
    if is_whole(value) && is_whole(&by) {
        let (a, b) = (i128::try_from(value.clone())?, i128::try_from(by)?);
        let rest = a.checked_rem(b).ok_or_else(|| arguments.wrong("the right operand is 0".to_owned()))?;
        let rest = if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest };
        return Ok(i64::try_from(rest).map_or_else(|_| Value::from(rest), Value::from));
    }
    match (number(value), number(&by)) {
        (Some(_), Some(0.0)) => Err(arguments.wrong("the right operand is 0".to_owned())),
        (Some(a), Some(b)) => {
            let rest = a % b;
            Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (b < 0.0) {
                rest + b
            } else {
                rest.abs().copysign(if rest == 0.0 { b } else { rest })
            }))
        }
        _ => Err(wrong()),
    }
}

/// How many values a printf-style format string takes by position, and how many by name.
fn conversions(text: &str) -> (usize, usize) {
    let (mut places, mut names) = (0, 0);
    let mut letters = text.chars();
    while letters.by_ref().any(|letter| letter == '%') {
        match letters.clone().next() {
            Some('%') => _ = letters.next(),
            Some('(') => names += 1,
            _ => places += 1,
        }
    }
    (places, names)
}

fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::String | ValueKind::Undefined
    )
}

/// Macros and functions are callable; so is an undefined value, whose call fails with its name.
fn is_callable(value: &Value) -> bool {
    // The engine's macros are mappings of their properties.
    let is_macro = value.as_object().is_some_and(|object| object.type_name().ends_with("::Macro"));
    value.is_undefined() || is_macro || value.kind() == ValueKind::Plain && !objects::is_cycler(value)
}
