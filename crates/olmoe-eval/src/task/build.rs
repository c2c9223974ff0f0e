//! From a description to a task.

use std::path::Path;

use minijinja::Environment;
use minijinja::value::{Value as Jinja, ValueKind};
use olmoe_data::Message;
use olmoe_data::random::Mersenne;
use olmoe_engine::Sampling;
use serde_json::{Value, json};

use super::description::{Choices, Description, FileSource, SetSource, Source, Templates, named_metrics};
use super::error::TaskError;
use super::shots::{Numbered, ShotPool};
use super::template::{Pattern, context, environment, texts};
use super::{Gold, Prompt, Question, Request, Task};
use crate::metric::Metric;
use crate::source::{DataFile, Roots, Rows};

/// What changes a task beside its description.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Only the first questions.
    pub limit: Option<usize>,
    /// The number of shots instead of the task's own.
    pub shots: Option<usize>,
}

/// Makes the task of a description. Files of the description are relative to `folder`.
///
/// # Errors
/// [`TaskError`] if a setting cannot be, data is missing, or a row does not give a question.
pub fn build(description: &Description, folder: &Path, roots: &Roots, options: &Options) -> Result<Task, TaskError> {
    let mut description = description.clone();
    if let (Some(shots), Some(count)) = (&mut description.shots, options.shots) {
        shots.count = count;
    }
    Builder { description: &description, environment: environment(), folder, roots }.task(options)
}

struct Builder<'a> {
    description: &'a Description,
    environment: Environment<'static>,
    folder: &'a Path,
    roots: &'a Roots,
}

impl Builder<'_> {
    fn task(&self, options: &Options) -> Result<Task, TaskError> {
        let description = self.description;
        let metrics = self.metrics()?;
        let read = self.read(&description.source)?;
        let mut files = read.files;
        let all: Vec<Numbered> = (0..).zip(read.rows).map(|(place, row)| Numbered { place, row }).collect();
        let mut rows = self.kept(all)?;
        let mut pool = match &description.shots {
            Some(shots) => {
                let (pool, read) = ShotPool::new(shots, &rows, &mut |source| self.read(source))?;
                files.extend(read);
                Some(pool)
            }
            None => None,
        };
        if let Some(sample) = &description.sample
            && rows.len() > sample.above.unwrap_or(sample.count)
        {
            let drawn = Mersenne::python(sample.seed).sample(rows.len(), sample.count);
            rows = drawn.into_iter().map(|i| rows[i].clone()).collect();
        }
        rows.truncate(options.limit.unwrap_or(usize::MAX));
        let mut questions = Vec::with_capacity(rows.len());
        for (id, row) in (0..).zip(&rows) {
            let shots = match &mut pool {
                Some(pool) => self.shots(pool, row)?,
                None => String::new(),
            };
            questions.push(self.question(id, row, &shots)?);
        }
        if questions.is_empty() {
            return Err(self.setting("source", "without rows", "at least one question; see `filter`"));
        }
        let settings = json!({
            "description": serde_json::to_value(description).unwrap_or(Value::Null),
            "files": serde_json::to_value(&files).unwrap_or(Value::Null),
            "limit": options.limit,
        });
        Ok(Task { name: description.name.clone(), settings, encoding: description.encoding.into(), questions, metrics })
    }

    fn setting(&self, key: &str, found: impl ToString, expected: impl ToString) -> TaskError {
        TaskError::Setting {
            task: self.description.name.clone(),
            key: key.to_owned(),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }

    fn pattern<'a>(&'a self, key: &str, source: &'a str) -> Pattern<'a> {
        Pattern::new(&self.description.name, key, source)
    }

    fn metrics(&self) -> Result<Vec<Metric>, TaskError> {
        let known = named_metrics();
        let description = self.description;
        let find = |name: &String| {
            let metric = known.iter().find(|metric| metric.name() == *name).copied().ok_or_else(|| {
                let names: Vec<String> = known.iter().map(|metric| metric.name()).collect();
                self.setting("metrics", format!("{name:?}"), format!("one of {}", names.join(", ")))
            })?;
            if metric.is_unconditional() && description.unconditional.is_none() {
                let expected = "the template `unconditional` beside it, such as \"Answer:\"";
                return Err(self.setting("metrics", format!("{name:?}"), expected));
            }
            Ok(metric)
        };
        let metrics: Vec<Metric> = description.metrics.iter().map(find).collect::<Result<_, _>>()?;
        match (&description.choices, &description.generation) {
            (None, None) => Err(self.setting("choices", "missing", "choices, or `generation` for generated text")),
            (Some(_), Some(_)) => Err(self.setting("generation", "there", "either choices or generated text")),
            (Some(_), None) if metrics.is_empty() => Err(self.setting("metrics", "empty", "at least one metric")),
            _ => Ok(metrics),
        }
    }

    fn read(&self, source: &Source) -> Result<Rows, TaskError> {
        let wrong = |source| TaskError::Source { task: self.description.name.clone(), source };
        match source {
            Source::File(FileSource { file }) => DataFile::at(&self.folder.join(file)).read().map_err(wrong),
            Source::Set(SetSource { data, config, split }) => {
                let configs: Vec<Option<&str>> = match config {
                    Some(configs) => configs.all().iter().map(|config| Some(config.as_str())).collect(),
                    None => vec![None],
                };
                let mut rows = Rows::default();
                for config in configs {
                    let read = self.roots.rows(data, config, split).map_err(wrong)?;
                    rows.rows.extend(read.rows);
                    rows.files.extend(read.files);
                }
                rows.files.dedup();
                Ok(rows)
            }
        }
    }

    fn kept(&self, rows: Vec<Numbered>) -> Result<Vec<Numbered>, TaskError> {
        let Some(filter) = &self.description.filter else { return Ok(rows) };
        let pattern = self.pattern("filter", filter);
        let mut kept = Vec::new();
        for row in rows {
            if pattern.holds(&self.environment, &shown(&row), &context(&row.row, row.place))? {
                kept.push(row);
            }
        }
        Ok(kept)
    }

    /// The answered questions before that of a row.
    fn shots(&self, pool: &mut ShotPool<'_>, row: &Numbered) -> Result<String, TaskError> {
        let mut text = String::new();
        let separator = pool.separator().to_owned();
        let delimiter = pool.delimiter().unwrap_or(&self.description.delimiter).to_owned();
        for shot in pool.draw(row).map_err(|(found, expected)| self.setting("shots", found, expected))? {
            let place = format!("shot of row {}", shot.place + 1);
            let context = context(&shot.row, shot.place);
            let asked = self.asked(&place, &context)?;
            let (prompt, answer) = match &asked.gold {
                Gold::Choice(gold) => (asked.prompt(*gold), asked.continuation(*gold)),
                Gold::Texts(texts) => (asked.prompt(0), texts.first().map_or("", String::as_str)),
                Gold::Row => (asked.prompt(0), ""),
            };
            text.push_str(prompt);
            text.push_str(&delimiter);
            text.push_str(answer);
            text.push_str(&separator);
        }
        Ok(text)
    }

    fn question(&self, id: u64, row: &Numbered, shots: &str) -> Result<Question, TaskError> {
        let description = self.description;
        let place = shown(row);
        let context = context(&row.row, row.place);
        let of = |key: &str, expression: &Option<String>| {
            let Some(expression) = expression else { return Ok(None) };
            self.pattern(key, expression)
                .evaluate(&self.environment, &place, &context)
                .map(|value| Some(value.to_string()))
        };
        let native_id = of("id", &description.id)?.unwrap_or_else(|| row.place.to_string());
        let group = of("group", &description.group)?;
        let head = self.pattern("description", &description.description).render(&self.environment, &place, &context)?;
        let head = head + shots;
        let mut asked = self.asked(&place, &context)?;
        if let Some(generation) = &description.generation {
            let text = head + asked.prompt(0);
            let prompt = match generation.chat {
                true => Prompt::Chat { messages: vec![Message::new("user", text)], begin: String::new() },
                false => Prompt::Text(text),
            };
            let sampling =
                Sampling { temperature: generation.temperature, top_p: generation.top_p, ..Sampling::default() };
            let request = Request::Generation {
                prompt,
                stop: generation.stop.clone(),
                max_tokens: generation.max_tokens,
                sampling,
                samples: generation.samples,
                seed: id,
            };
            let row = Value::Object(row.row.clone());
            return Ok(Question { id, native_id, group, row, gold: asked.gold, requests: vec![request] });
        }
        let unconditional = match &description.unconditional {
            Some(template) => {
                Some(self.pattern("unconditional", template).render(&self.environment, &place, &context)?)
            }
            None => None,
        };
        let mut choices = 0..asked.count();
        if let (true, Gold::Choice(gold)) = (description.only_gold, &asked.gold) {
            choices = *gold..gold + 1;
            asked.gold = Gold::Choice(0);
        }
        let request = |choice: usize| Request::Continuation {
            context: format!("{head}{}", asked.prompt(choice)),
            continuation: format!("{}{}", description.delimiter, asked.continuation(choice)),
            unconditional: unconditional.clone(),
        };
        let requests: Vec<Request> = choices.map(request).collect();
        let empty = requests.iter().position(
            |request| matches!(request, Request::Continuation { continuation, .. } if continuation.is_empty()),
        );
        if let Some(choice) = empty {
            let found = format!("no text for choice {choice}");
            return Err(self.pattern("choices", "").unfit(&place, found, "a continuation of at least one character"));
        }
        Ok(Question { id, native_id, group, row: Value::Object(row.row.clone()), gold: asked.gold, requests })
    }

    /// What a row asks, without shots.
    fn asked(&self, place: &str, context: &Jinja) -> Result<Asked, TaskError> {
        let description = self.description;
        let render = |key: &str, templates: &[String]| {
            let texts = templates.iter().map(|text| self.pattern(key, text).render(&self.environment, place, context));
            texts.collect::<Result<Vec<String>, TaskError>>()
        };
        let prompts = render("prompt", description.prompt.all())?;
        let choices = match &description.choices {
            None => None,
            Some(Choices::Templates(templates)) => Some(render("choices", templates)?),
            Some(Choices::Expression(expression)) => {
                let pattern = self.pattern("choices", expression);
                let value = pattern.evaluate(&self.environment, place, context)?;
                Some(texts(&value).ok_or_else(|| pattern.unfit(place, &value, "a list of texts"))?)
            }
        };
        let pattern = self.pattern("gold", &description.gold);
        let gold = match description.gold.contains("{{") || description.gold.contains("{%") {
            true => Jinja::from(pattern.render(&self.environment, place, context)?),
            false => pattern.evaluate(&self.environment, place, context)?,
        };
        let Some(choices) = choices else {
            let texts = match gold.kind() {
                ValueKind::Seq | ValueKind::Iterable => texts(&gold),
                ValueKind::String | ValueKind::Number => Some(vec![gold.to_string()]),
                _ => None,
            };
            let gold = texts.ok_or_else(|| pattern.unfit(place, &gold, "a text or a list of texts"))?;
            return Ok(Asked { prompts, choices: Vec::new(), gold: Gold::Texts(gold) });
        };
        let count = if matches!(description.prompt, Templates::Many(_)) { prompts.len() } else { choices.len() };
        if choices.len() != count && choices.len() != 1 || count == 0 {
            let found = format!("{} choices to {} prompts", choices.len(), prompts.len());
            let unfit = self.pattern("choices", "").unfit(place, found, "as many choices as prompts, or one of either");
            return Err(unfit);
        }
        let number = match gold.as_str() {
            Some(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            Some(text) => choices.iter().position(|choice| choice == text),
            None => gold.as_i64().and_then(|number| usize::try_from(number).ok()),
        };
        let number = number.filter(|number| *number < count).ok_or_else(|| {
            pattern.unfit(place, &gold, &format!("the number of one of {count} choices, from 0, or the text of one"))
        })?;
        Ok(Asked { prompts, choices, gold: Gold::Choice(number) })
    }
}

/// What messages call a row.
fn shown(row: &Numbered) -> String {
    format!("row {}", row.place + 1)
}

/// What a row asks: one prompt and several choices, or several prompts and one or as many choices.
struct Asked {
    prompts: Vec<String>,
    choices: Vec<String>,
    gold: Gold,
}

impl Asked {
    fn count(&self) -> usize {
        self.prompts.len().max(self.choices.len())
    }

    fn prompt(&self, choice: usize) -> &str {
        self.prompts.get(if self.prompts.len() == 1 { 0 } else { choice }).map_or("", String::as_str)
    }

    fn continuation(&self, choice: usize) -> &str {
        self.choices.get(if self.choices.len() == 1 { 0 } else { choice }).map_or("", String::as_str)
    }
}

/// Reads a description, and says which key is unknown and what may have been meant.
///
/// # Errors
/// [`TaskError::Syntax`].
pub fn parse(file: &str, text: &str) -> Result<Description, TaskError> {
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| TaskError::Syntax { file: file.to_owned(), reason: error.without_snippet().to_string() })
}
