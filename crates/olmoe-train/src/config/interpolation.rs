//! `${…}` in the texts of a configuration, as OmegaConf and OLMo have it.
//!
//! | text | stands for |
//! |---|---|
//! | `${a.b}`, `${a.b[0]}` | the value at that key, or OLMo's default of it |
//! | `${.b}`, `${..b}` | the same, from the section that the key is in, or from the one above |
//! | `${oc.env:NAME}`, `${oc.env:NAME,default}` | a variable of the environment |
//! | `${path.choose:a,b}` | the first path that exists, else the first |
//! | `${path.glob:a*,b*}` | the list of all paths that fit, sorted, a pattern that none fits as it is |
//! | `${path.last_checkpoint:folder}` | the checkpoint with the highest step in a folder |
//! | `\${` | the two characters themselves |
//!
//! A text that is nothing but one interpolation takes the value as it is, a number as a number. Arguments may hold further
//! interpolations. What does not exist yet is not an error here: data is looked for when training begins.

use std::path::Path;

use olmoe_model::config::{MAX_CONFIG_BYTES, describe, shorten};
use serde_json::Value;

use super::error::TrainConfigError;
use super::field::{At, MAX_DEPTH};
use super::notices::Notice;

/// Most values that interpolations may copy.
const MAX_VALUES: usize = 1 << 20;

/// A cluster's number of the job, which most public files name their run after, and what stands for it elsewhere.
const JOB: (&str, &str) = ("SLURM_JOB_ID", "local");

/// Looks up a variable of the environment.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Resolves all interpolations of a file. `defaults` is what keys that are not in the file stand for.
pub(crate) fn resolve(
    file: &Value,
    defaults: &Value,
    environment: Environment<'_>,
    notices: &mut Vec<Notice>,
) -> Result<Value, TrainConfigError> {
    let mut resolver =
        Resolver { file, defaults, environment, notices, values: 0, bytes: 0, open: Vec::new(), depth: 0 };
    resolver.value(file, &At::Top, &mut Vec::new())
}

struct Resolver<'a> {
    file: &'a Value,
    defaults: &'a Value,
    environment: Environment<'a>,
    notices: &'a mut Vec<Notice>,
    values: usize,
    bytes: usize,
    /// The keys whose interpolations are being resolved.
    open: Vec<Keys>,
    depth: usize,
}

/// The keys that lead to a value, outermost first.
type Keys = Vec<String>;

impl Resolver<'_> {
    fn value(&mut self, value: &Value, at: &At<'_>, path: &mut Keys) -> Result<Value, TrainConfigError> {
        self.values += 1;
        if let Value::String(text) = value {
            self.bytes = self.bytes.saturating_add(text.len());
        }
        if self.values > MAX_VALUES || self.bytes > MAX_CONFIG_BYTES {
            return Err(problem(at, "${…}", "interpolations make the file too long".into()));
        }
        self.deeper(at)?;
        let value = self.inner_value(value, at, path);
        self.depth -= 1;
        value
    }

    fn deeper(&mut self, at: &At<'_>) -> Result<(), TrainConfigError> {
        self.depth += 1;
        if self.depth > 2 * MAX_DEPTH {
            return Err(problem(at, "${…}", "nested too deeply".into()));
        }
        Ok(())
    }

    fn inner_value(&mut self, value: &Value, at: &At<'_>, path: &mut Keys) -> Result<Value, TrainConfigError> {
        match value {
            Value::String(text) => self.text(text, at, path),
            Value::Array(items) => {
                let items = items.iter().enumerate().map(|(i, item)| {
                    path.push(i.to_string());
                    let item = self.value(item, &at.place(i), path);
                    path.pop();
                    item
                });
                items.collect::<Result<_, _>>().map(Value::Array)
            }
            Value::Object(map) => {
                let entries = map.iter().map(|(key, value)| {
                    path.push(key.clone());
                    let value = self.value(value, &at.key(key), path);
                    path.pop();
                    Ok((key.clone(), value?))
                });
                entries.collect::<Result<_, _>>().map(Value::Object)
            }
            _ => Ok(value.clone()),
        }
    }

    /// A text with the interpolations in it.
    fn text(&mut self, text: &str, at: &At<'_>, path: &mut Keys) -> Result<Value, TrainConfigError> {
        let mut result = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            let before = rest.get(..start).unwrap_or_default();
            let inside = rest.get(start + 2..).unwrap_or_default();
            if let Some(before) = before.strip_suffix('\\') {
                result.push_str(before);
                result.push_str("${");
                rest = inside;
                continue;
            }
            let Some(end) = closing(inside) else {
                return Err(problem(at, text, "the `}` at the end is missing".into()));
            };
            let (inside, after) = (inside.get(..end).unwrap_or_default(), inside.get(end + 1..).unwrap_or_default());
            self.deeper(at)?;
            let value = self.interpolation(inside, at, path)?;
            self.depth -= 1;
            if before.is_empty() && result.is_empty() && after.is_empty() {
                return Ok(value);
            }
            result.push_str(before);
            match &value {
                Value::String(text) => result.push_str(text),
                Value::Number(number) => result.push_str(&number.to_string()),
                Value::Bool(flag) => result.push_str(if *flag { "True" } else { "False" }),
                other => {
                    let message = format!("it is {}, which cannot stand in a text", describe(other));
                    return Err(problem(at, inside, message));
                }
            }
            self.bytes = self.bytes.saturating_add(result.len());
            if self.bytes > MAX_CONFIG_BYTES {
                return Err(problem(at, inside, "interpolations make the file too long".into()));
            }
            rest = after;
        }
        result.push_str(rest);
        Ok(Value::String(result))
    }

    /// What stands between the braces.
    fn interpolation(&mut self, inside: &str, at: &At<'_>, path: &mut Keys) -> Result<Value, TrainConfigError> {
        let name = inside.split_once(':').filter(|(name, _)| {
            name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.') && !name.is_empty()
        });
        let Some((name, arguments)) = name else {
            let key = match self.text(inside, at, path)? {
                Value::String(key) => key,
                other => other.to_string(),
            };
            return self.key(key.trim(), at, path);
        };
        let arguments = split(arguments).into_iter().map(|argument| self.argument(argument, at, path));
        let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
        match (name.trim(), arguments.as_slice()) {
            ("oc.env", [Value::String(name), default @ ..]) if default.len() < 2 => {
                match ((self.environment)(name), default.first()) {
                    (Some(value), _) => Ok(Value::String(value)),
                    (None, Some(default)) => Ok(default.clone()),
                    (None, None) if name == JOB.0 => {
                        self.note_job(at);
                        Ok(JOB.1.into())
                    }
                    (None, None) => {
                        let message = format!("the environment has no such variable; set {name}, or --{at}=VALUE");
                        Err(problem(at, inside, message))
                    }
                }
            }
            ("path.choose", paths @ [_, ..]) => {
                let paths = texts(paths, at, inside)?;
                let exists = |path: &&&str| is_remote(path) || Path::new(path).exists();
                Ok(paths.iter().find(exists).or(paths.first()).copied().unwrap_or_default().into())
            }
            ("path.glob", patterns @ [_, ..]) => {
                let mut found = Vec::new();
                for pattern in texts(patterns, at, inside)? {
                    found.extend(fitting(pattern).map_err(|message| problem(at, inside, message))?);
                }
                Ok(found.into_iter().map(Value::String).collect())
            }
            ("path.last_checkpoint", [Value::String(folder)]) => {
                last_checkpoint(folder).map(Value::String).map_err(|message| problem(at, inside, message))
            }
            (known @ ("oc.env" | "path.choose" | "path.glob" | "path.last_checkpoint"), _) => {
                Err(problem(at, inside, format!("these are no arguments for {known}")))
            }
            (name, _) => {
                let name = shorten(name);
                let known = "oc.env, path.choose, path.glob, path.last_checkpoint, or the key of a value";
                Err(problem(at, inside, format!("there is no `{name}`; expected {known}")))
            }
        }
    }

    /// Once, of the key that asks for the job: others may stand for that key.
    fn note_job(&mut self, at: &At<'_>) {
        let key = self.open.last().map_or_else(|| at.to_string(), |path| path.join("."));
        let text = format!(
            "the environment has no {}, the number of a cluster's job; `{}` stands for it, or set --{key}=NAME",
            JOB.0, JOB.1
        );
        if !self.notices.iter().any(|notice| notice.key == key) {
            self.notices.push(Notice { key, text });
        }
    }

    fn argument(&mut self, text: &str, at: &At<'_>, path: &mut Keys) -> Result<Value, TrainConfigError> {
        let text = text.trim();
        for quote in ['\'', '"'] {
            if let Some(inside) = text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote)) {
                return self.text(inside, at, path);
            }
        }
        if text == "null" { Ok(Value::Null) } else { self.text(text, at, path) }
    }

    /// The value of another key.
    fn key(&mut self, key: &str, at: &At<'_>, path: &mut Keys) -> Result<Value, TrainConfigError> {
        let dots = key.len() - key.trim_start_matches('.').len();
        let mut target: Keys = match dots {
            0 => Vec::new(),
            // One dot is the section that the key is in.
            _ => match path.len().checked_sub(dots) {
                Some(above) => path.iter().take(above).cloned().collect(),
                None => return Err(problem(at, key, "it goes above the top level".into())),
            },
        };
        let names = key.split(['.', '[']).map(|name| name.trim_end_matches(']')).filter(|name| !name.is_empty());
        target.extend(names.map(str::to_owned));
        if self.open.contains(&target) || target == *path {
            return Err(problem(at, key, "it leads back to itself".into()));
        }
        let found = lookup(self.file, &target).or_else(|| lookup(self.defaults, &target));
        let Some(found) = found.cloned() else {
            return Err(problem(at, key, "there is no such key".into()));
        };
        self.open.push(target.clone());
        let value = self.value(&found, at, &mut target);
        self.open.pop();
        value
    }
}

fn problem(at: &At<'_>, text: &str, problem: String) -> TrainConfigError {
    TrainConfigError::Interpolation { path: at.to_string(), text: shorten(text), problem }
}

/// The place of the `}` that ends an interpolation.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' if open == 0 => return Some(at),
            b'}' => open -= 1,
            _ => {}
        }
    }
    None
}

/// Arguments between commas that are not in braces or quotes.
fn split(text: &str) -> Vec<&str> {
    let (mut arguments, mut begin, mut open, mut quote) = (Vec::new(), 0, 0usize, None);
    for (at, byte) in text.bytes().enumerate() {
        match (byte, quote) {
            (b'\'' | b'"', None) => quote = Some(byte),
            (byte, Some(begun)) if byte == begun => quote = None,
            (b'{', None) => open += 1,
            (b'}', None) => open = open.saturating_sub(1),
            (b',', None) if open == 0 => {
                arguments.push(text.get(begin..at).unwrap_or_default());
                begin = at + 1;
            }
            _ => {}
        }
    }
    arguments.push(text.get(begin..).unwrap_or_default());
    arguments
}

fn lookup<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, name| match value {
        Value::Object(map) => map.get(name),
        Value::Array(items) => items.get(name.parse::<usize>().ok()?),
        _ => None,
    })
}

fn texts<'v>(values: &'v [Value], at: &At<'_>, inside: &str) -> Result<Vec<&'v str>, TrainConfigError> {
    let text = |value: &'v Value| {
        value.as_str().ok_or_else(|| problem(at, inside, format!("an argument is {}, not a path", describe(value))))
    };
    values.iter().map(text).collect()
}

/// Whether a path is an address.
pub(super) fn is_remote(path: &str) -> bool {
    path.contains("://")
}

fn fitting(pattern: &str) -> Result<Vec<String>, String> {
    if is_remote(pattern) {
        return Ok(vec![pattern.to_owned()]);
    }
    // As Python: a star does not take what begins with a point.
    let options =
        glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let paths = glob::glob_with(pattern, options).map_err(|error| format!("not a pattern: {error}"))?;
    let mut found = Vec::new();
    for path in paths.filter_map(Result::ok) {
        found.extend(path.into_os_string().into_string().ok());
        if found.len() > MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} paths fit"));
        }
    }
    found.sort_unstable();
    Ok(if found.is_empty() { vec![pattern.to_owned()] } else { found })
}

/// The folder of a checkpoint with the highest step: `step-N` of this program, `stepN` and `stepN-unsharded` of OLMo.
fn last_checkpoint(folder: &str) -> Result<String, String> {
    if is_remote(folder) {
        return Err("checkpoints elsewhere cannot be listed; copy the folder to this machine".into());
    }
    let entries = std::fs::read_dir(folder).map_err(|error| format!("cannot list the folder: {error}"))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let step = |name: &str| {
        let rest = name.strip_prefix("step")?;
        // Of one step the sharded checkpoint, as in OLMo.
        let (rest, sharded) = rest.strip_suffix("-unsharded").map_or((rest, true), |rest| (rest, false));
        let step: u64 = rest.strip_prefix('-').unwrap_or(rest).parse().ok()?;
        Some((step, sharded))
    };
    let newest = names.filter_map(|name| Some((step(&name)?, name))).max();
    let (_, name) = newest.ok_or("the folder has no checkpoint")?;
    Ok(Path::new(folder).join(name).to_string_lossy().into_owned())
}
