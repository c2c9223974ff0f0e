//! Tasks of lm-evaluation-harness, as its YAML files describe them: multiple choice and log-likelihoods with the metrics
//! `acc`, `acc_norm`, `acc_bytes` and `exact_match`. What no such task here can have is refused by its name.
//!
//! A template that is one expression in braces is that expression's value; other templates give text. `!function` needs
//! Python and is refused, and so is a template of `doc_to_choice` that is more than an expression.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::EvalError;
use crate::metric::{LeadingSpace, Metric, Normalization};
use crate::source::{DataFile, Roots, Row};
use crate::task::{
    Choices, Description, Draw, EncodingName, FileSource, Options, SetSource, ShotSource, Shots, Source, Task,
    TaskError, Templates, build,
};

use LeadingSpace::{Counted, Dropped};

/// The seed that lm-evaluation-harness draws shots with.
const SHOT_SEED: u64 = 1234;
/// Keys that change nothing here.
const NOTED: [&str; 8] = [
    "task",
    "task_alias",
    "tag",
    "group",
    "metadata",
    "should_decontaminate",
    "doc_to_decontamination_query",
    "repeats",
];

/// Whether a text describes a task of lm-evaluation-harness.
pub fn is_harness(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("doc_to_text:") || line.starts_with("dataset_path:"))
}

/// The task of a description; files are relative to `folder`.
///
/// # Errors
/// [`EvalError::Task`] if the description needs Python or what there is not here, or a row does not give a question.
pub fn task(file: &str, text: &str, folder: &Path, roots: &Roots, options: &Options) -> Result<Task, EvalError> {
    if let Some(line) = text.lines().find(|line| line.contains("!function")) {
        let reason =
            format!("`{}` needs Python; write the task without it, or as a description of this program", line.trim());
        return Err(TaskError::Syntax { file: file.to_owned(), reason }.into());
    }
    let options_of_yaml = serde_saphyr::options! { strict_booleans: true };
    let keys: Map<String, Value> = serde_saphyr::from_str_with_options(text, options_of_yaml)
        .map_err(|error| TaskError::Syntax { file: file.to_owned(), reason: error.without_snippet().to_string() })?;
    let mut harness = Harness { file, keys, folder };
    let description = harness.description(roots)?;
    Ok(build(&description, folder, roots, options)?)
}

/// A description of lm-evaluation-harness that is translated; keys are taken out when they are read.
struct Harness<'a> {
    file: &'a str,
    keys: Map<String, Value>,
    folder: &'a Path,
}

impl Harness<'_> {
    fn refused(&self, key: &str, found: impl ToString, expected: &str) -> EvalError {
        let (task, found) = (self.file.to_owned(), found.to_string());
        TaskError::Setting { task, key: key.to_owned(), found, expected: expected.to_owned() }.into()
    }

    /// A key's value; null is like a key that is missing.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.keys.remove(key).filter(|value| !value.is_null())
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, EvalError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.refused(key, other, "a text")),
        }
    }

    fn description(&mut self, roots: &Roots) -> Result<Description, EvalError> {
        let name = match self.keys.get("task") {
            Some(Value::String(name)) => name.clone(),
            _ => return Err(self.refused("task", "missing", "the name of the task")),
        };
        let output = self.text("output_type")?.unwrap_or_else(|| "generate_until".to_owned());
        if !["multiple_choice", "loglikelihood"].contains(&output.as_str()) {
            return Err(self.refused("output_type", output, "multiple_choice or loglikelihood"));
        }
        let splits = ["test_split", "validation_split", "training_split", "fewshot_split"];
        let [test, validation, training, fewshot] = splits.map(|key| self.text(key));
        let (test, validation, training, mut fewshot) = (test?, validation?, training?, fewshot?);
        let Some(split) = test.clone().or_else(|| validation.clone()) else {
            return Err(self.refused("test_split", "missing", "the split of the questions"));
        };
        let data = self.data()?;
        let source = data(&split)?;
        let first = self.first_row(&source, roots)?;
        let prompt = match self.take("doc_to_text") {
            Some(Value::String(text)) => Templates::One(of_column(&text, &first).unwrap_or(text)),
            other => return Err(self.refused("doc_to_text", shown(&other), "a column or a template")),
        };
        let mut delimiter = self.text("target_delimiter")?.unwrap_or_else(|| " ".to_owned());
        let mut shot_delimiter = None;
        let target = self.take("doc_to_target");
        let listed = self.take("doc_to_choice");
        let (choices, gold) = match (output.as_str(), target) {
            ("multiple_choice", Some(target)) => (self.choices(listed, &first)?, self.gold(target, &first)?),
            ("loglikelihood", Some(Value::String(target))) => {
                // The target is scored as it is; only shots have the delimiter before it.
                shot_delimiter = Some(std::mem::take(&mut delimiter));
                (Choices::Templates(vec![of_column(&target, &first).unwrap_or(target)]), "0".to_owned())
            }
            (_, target) => {
                return Err(self.refused(
                    "doc_to_target",
                    shown(&target),
                    "a column, a template or the number of a choice",
                ));
            }
        };
        let metrics = self.metrics(&output, &delimiter)?;
        let description = match self.text("description")? {
            Some(text) => of_column(&text, &first).unwrap_or(text),
            None => String::new(),
        };
        let count = match self.take("num_fewshot") {
            None => 0,
            Some(number) => match number.as_u64() {
                Some(number) => number as usize,
                None => return Err(self.refused("num_fewshot", number, "a number of shots")),
            },
        };
        let separator = self.text("fewshot_delimiter")?.unwrap_or_else(|| "\n\n".to_owned());
        let (draw, samples, own) = self.fewshot_config()?;
        if own.is_some() {
            fewshot = own;
        }
        let from = match (&fewshot, samples) {
            (Some(split), _) => Some(ShotSource::Source(data(split)?)),
            (None, Some(rows)) => Some(ShotSource::Rows(rows)),
            (None, None) => match training.or(validation).or(test.clone()) {
                Some(split) => Some(ShotSource::Source(data(&split)?)),
                None => None,
            },
        };
        let shots = Shots {
            count,
            from,
            draw,
            seed: Some(SHOT_SEED),
            same: None,
            delimiter: shot_delimiter,
            separator,
            // As there: also where neither split is given.
            without_question: Some(fewshot == test),
        };
        for key in NOTED {
            self.keys.remove(key);
        }
        if let Some((key, value)) = self.keys.iter().find(|(_, value)| !value.is_null()) {
            return Err(self.refused(key, value, "no such key: it is not supported here"));
        }
        Ok(Description {
            name,
            source,
            filter: None,
            sample: None,
            id: None,
            group: None,
            description,
            prompt,
            choices: Some(choices),
            gold,
            delimiter,
            unconditional: None,
            only_gold: false,
            shots: (count > 0).then_some(shots),
            encoding: EncodingName::Joint,
            metrics,
            generation: None,
        })
    }

    /// Where the rows of a split come from.
    fn data(&mut self) -> Result<impl Fn(&str) -> Result<Source, EvalError> + use<>, EvalError> {
        let Some(path) = self.text("dataset_path")? else {
            return Err(self.refused("dataset_path", "missing", "a data set, or json, csv or parquet with data_files"));
        };
        let config = self.text("dataset_name")?;
        let mut arguments = match self.take("dataset_kwargs") {
            None => Map::new(),
            Some(Value::Object(arguments)) => arguments,
            Some(other) => return Err(self.refused("dataset_kwargs", other, "keys and values")),
        };
        let files = arguments.remove("data_files");
        // Whether code of a repository is run; none is.
        arguments.remove("trust_remote_code");
        if let Some((key, value)) = arguments.iter().next() {
            return Err(self.refused(&format!("dataset_kwargs.{key}"), value, "no such key: it is not supported here"));
        }
        let files: Vec<(String, String)> = match files {
            Some(Value::String(file)) => vec![("train".to_owned(), file)],
            Some(Value::Object(files)) => files
                .into_iter()
                .map(|(split, file)| match file {
                    Value::String(file) => Ok((split, file)),
                    other => Err(self.refused("dataset_kwargs.data_files", other, "a file a split")),
                })
                .collect::<Result<_, _>>()?,
            Some(other) => return Err(self.refused("dataset_kwargs.data_files", other, "a file, or a file a split")),
            None => Vec::new(),
        };
        let task = self.file.to_owned();
        Ok(move |split: &str| {
            if !["json", "csv", "parquet"].contains(&path.as_str()) {
                let config = config.clone().map(Templates::One);
                return Ok(Source::Set(SetSource { data: path.clone(), config, split: split.to_owned() }));
            }
            match files.iter().find(|(own, _)| own == split) {
                Some((_, file)) => Ok(Source::File(FileSource { file: file.clone() })),
                None => {
                    let found = files.iter().map(|(own, _)| own.as_str()).collect::<Vec<_>>().join(", ");
                    let (key, expected) =
                        ("dataset_kwargs.data_files".to_owned(), format!("a file of the split {split}"));
                    Err(TaskError::Setting { task: task.clone(), key, found, expected }.into())
                }
            }
        })
    }

    /// The first row, whose columns tell names from templates.
    fn first_row(&self, source: &Source, roots: &Roots) -> Result<Row, EvalError> {
        let row = match source {
            Source::File(FileSource { file }) => DataFile::at(&self.folder.join(file)).rows()?.next().transpose()?,
            Source::Set(SetSource { data, config, split }) => {
                let config = config.as_ref().and_then(|config| config.all().first()).map(String::as_str);
                roots.rows(data, config, split)?.rows.into_iter().next()
            }
        };
        row.ok_or_else(|| self.refused("test_split", "without rows", "at least one row"))
    }

    fn choices(&self, listed: Option<Value>, first: &Row) -> Result<Choices, EvalError> {
        let literal = |texts: Vec<Value>| Choices::Expression(Value::Array(texts).to_string());
        match listed {
            Some(Value::Array(texts)) => Ok(literal(texts)),
            Some(Value::Object(texts)) => Ok(literal(texts.into_iter().map(|(_, text)| text).collect())),
            Some(Value::String(text)) if first.contains_key(&text) => Ok(Choices::Expression(column(&text))),
            Some(Value::String(text)) => match expression(&text) {
                Some(expression) => Ok(Choices::Expression(expression.to_owned())),
                None => Err(self.refused("doc_to_choice", text, "a list, a column, or one expression in braces")),
            },
            other => Err(self.refused("doc_to_choice", shown(&other), "a list, a column, or one expression in braces")),
        }
    }

    fn gold(&self, target: Value, first: &Row) -> Result<String, EvalError> {
        match target {
            Value::Number(number) => Ok(number.to_string()),
            Value::String(text) if first.contains_key(&text) => Ok(column(&text)),
            Value::String(text) => match expression(&text) {
                Some(expression) => Ok(expression.to_owned()),
                // A text without braces is the choice itself.
                None if !text.contains('{') => Ok(Value::String(text).to_string()),
                None => Ok(text),
            },
            other => Err(self.refused("doc_to_target", other, "a column, a template or the number of a choice")),
        }
    }

    /// The names of the metrics.
    fn metrics(&mut self, output: &str, delimiter: &str) -> Result<Vec<String>, EvalError> {
        let listed = match self.take("metric_list") {
            Some(Value::Array(listed)) => listed,
            Some(other) => return Err(self.refused("metric_list", other, "a list of metrics")),
            None => match output {
                "multiple_choice" => {
                    vec![serde_json::json!({"metric": "acc"}), serde_json::json!({"metric": "acc_norm"})]
                }
                _ => vec![serde_json::json!({"metric": "acc"})],
            },
        };
        // Lengths are those of the choices alone, without the delimiter.
        let space = match delimiter.chars().count() {
            0 => Some(Counted),
            1 if delimiter.len() == 1 => Some(Dropped),
            _ => None,
        };
        let mut metrics = Vec::new();
        for entry in listed {
            let name = entry["metric"].as_str().unwrap_or_default();
            let metric = match (output, name, space) {
                ("multiple_choice", "acc", _) => Metric::Accuracy(Normalization::Raw),
                ("multiple_choice", "acc_norm", Some(space)) => Metric::Accuracy(Normalization::Characters(space)),
                ("multiple_choice", "acc_bytes", Some(space)) => Metric::Accuracy(Normalization::Bytes(space)),
                ("multiple_choice", "exact_match", _) | ("loglikelihood", "acc", _) => Metric::Greedy,
                ("multiple_choice", "acc_norm" | "acc_bytes", None) => {
                    let expected = "nothing or one character, where lengths of choices are compared";
                    return Err(self.refused("target_delimiter", format!("{delimiter:?}"), expected));
                }
                _ => {
                    let expected = "acc, acc_norm, acc_bytes or exact_match of choices, or acc of log-likelihoods";
                    return Err(self.refused("metric_list", entry, expected));
                }
            };
            let is_mean = entry["aggregation"].as_str().is_none_or(|name| name == "mean");
            if !is_mean {
                return Err(self.refused("metric_list.aggregation", &entry["aggregation"], "mean"));
            }
            metrics.push(metric.name());
        }
        Ok(metrics)
    }

    /// How shots are drawn, the rows that are given for them, and their split.
    #[allow(clippy::type_complexity)]
    fn fewshot_config(&mut self) -> Result<(Draw, Option<Vec<Row>>, Option<String>), EvalError> {
        let mut config = match self.take("fewshot_config") {
            None => return Ok((Draw::Sample, None, None)),
            Some(Value::Object(config)) => config,
            Some(other) => return Err(self.refused("fewshot_config", other, "keys and values")),
        };
        let draw = match config.remove("sampler") {
            None | Some(Value::Null) => Draw::Sample,
            Some(Value::String(name)) if name == "default" => Draw::Sample,
            Some(Value::String(name)) if name == "first_n" => Draw::First,
            Some(other) => return Err(self.refused("fewshot_config.sampler", other, "default or first_n")),
        };
        let samples = match config.remove("samples") {
            None | Some(Value::Null) => None,
            Some(rows) => match serde_json::from_value(rows.clone()) {
                Ok(rows) => Some(rows),
                Err(_) => return Err(self.refused("fewshot_config.samples", rows, "a list of rows")),
            },
        };
        let split = match config.remove("split") {
            None | Some(Value::Null) => None,
            Some(Value::String(split)) => Some(split),
            Some(other) => return Err(self.refused("fewshot_config.split", other, "a split")),
        };
        match config.iter().find(|(_, value)| !value.is_null()) {
            Some((key, value)) => {
                Err(self.refused(&format!("fewshot_config.{key}"), value, "no such key: it is not supported here"))
            }
            None => Ok((draw, samples, split)),
        }
    }
}

fn shown(value: &Option<Value>) -> String {
    value.as_ref().map_or_else(|| "missing".to_owned(), Value::to_string)
}

/// The expression of a column.
fn column(name: &str) -> String {
    format!("row[{}]", Value::from(name))
}

/// The template of a column, if the text is the name of one.
fn of_column(text: &str, first: &Row) -> Option<String> {
    first.contains_key(text).then(|| format!("{{{{ {} }}}}", column(text)))
}

/// The expression of a template that is nothing else.
fn expression(template: &str) -> Option<&str> {
    let inside = template.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    (!inside.contains("}}") && !inside.contains("{{")).then(|| inside.trim().trim_matches('-').trim())
}
