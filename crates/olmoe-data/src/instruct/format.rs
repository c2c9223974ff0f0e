//! The formats of rows, and how they are told apart.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::conversation::Place;
use super::error::InstructError;
use super::json::Json;

/// What the columns of a row mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `messages` of OpenAI: `role`, `content` and perhaps a `weight`.
    Messages,
    /// `conversations` of ShareGPT: `from` and `value`.
    ShareGpt,
    /// `instruction`, `input` and `output` of Alpaca.
    Alpaca,
    /// `prompt` and `completion`, as a question and an answer, or as lists of messages.
    PromptCompletion,
    /// `question` and `response`, `query` and `answer`, or `query` and `response`.
    QuestionAnswer,
    /// `text`, trained as it is.
    Text,
    /// `prompt` and `completion` as strings that no template renders. Never recognised: it has to be named.
    Raw,
    /// `input_ids`, with `labels`, `completion_mask` or `attention_mask`.
    Tokens,
    /// `chosen` and `rejected`, with or without what comes before them.
    Preference,
    /// `chosen` and `rejected` as strings with `Human:` and `Assistant:` in them, as in Anthropic's HH. Never
    /// recognised.
    HumanAssistant,
    /// Any of the first five, and `label` or `kto_tag`.
    Labelled,
}

/// Every format: its name, and the columns that identify it.
const FORMATS: [(Format, &str, &str); 11] = [
    (Format::Messages, "messages", "messages"),
    (Format::ShareGpt, "sharegpt", "conversations"),
    (Format::Alpaca, "alpaca", "instruction, output"),
    (Format::PromptCompletion, "prompt-completion", "prompt, completion"),
    (Format::QuestionAnswer, "question-answer", "question or query, response or answer"),
    (Format::Text, "text", "text"),
    (Format::Raw, "raw", "prompt, completion; has to be named"),
    (Format::Tokens, "tokens", "input_ids"),
    (Format::Preference, "preference", "chosen, rejected"),
    (Format::HumanAssistant, "hh", "chosen, rejected; has to be named"),
    (Format::Labelled, "labelled", "label or kto_tag beside another format's"),
];

/// The columns that rows are read from.
const COLUMNS: [&str; 24] = [
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "question",
    "query",
    "response",
    "answer",
    "text",
    "input_ids",
    "labels",
    "completion_mask",
    "attention_mask",
    "chosen",
    "rejected",
    "label",
    "kto_tag",
    "system",
    "system_prompt",
    "tools",
    "history",
];

impl Format {
    /// All formats and the columns that identify them, for messages.
    pub fn list() -> String {
        let described = FORMATS.iter().map(|(_, name, columns)| format!("{name} ({columns})"));
        described.collect::<Vec<_>>().join(", ")
    }

    /// The format of a row, by its columns and what is in them.
    pub(super) fn of(row: &Json) -> Option<Format> {
        let has = |column: &str| row.get(column).is_some();
        if has("chosen") && has("rejected") {
            return Some(Format::Preference);
        }
        let answers = Format::of_sample(row);
        let labelled =
            ["label", "kto_tag"].iter().any(|column| row.get(column).is_some_and(|tag| tag.truth().is_some()));
        if labelled && answers.is_some_and(|format| !matches!(format, Format::Text | Format::Tokens)) {
            return Some(Format::Labelled);
        }
        answers
    }

    /// As [`of`](Self::of), but of the sample alone, without preferences and labels.
    pub(super) fn of_sample(row: &Json) -> Option<Format> {
        let has = |column: &str| row.get(column).is_some();
        let formats = [
            (has("messages"), Format::Messages),
            (has("conversations"), Format::ShareGpt),
            (has("input_ids"), Format::Tokens),
            (has("instruction") && has("output"), Format::Alpaca),
            (has("prompt") && has("completion"), Format::PromptCompletion),
            (has("question") && has("response"), Format::QuestionAnswer),
            (has("query") && (has("answer") || has("response")), Format::QuestionAnswer),
            (has("text"), Format::Text),
        ];
        formats.into_iter().find_map(|(found, format)| found.then_some(format))
    }

    /// The format of a row, or an error if it has none.
    pub(super) fn required(place: &Place, row: &Json) -> Result<Format, InstructError> {
        Format::of(row).ok_or_else(|| InstructError::Unrecognised {
            place: place.clone(),
            columns: columns(row),
            formats: Format::list(),
        })
    }

    /// Whether a column is one that rows are read from.
    pub(super) fn knows(column: &str) -> bool {
        COLUMNS.contains(&column)
    }
}

/// The columns of a row, for messages.
pub(super) fn columns(row: &Json) -> String {
    row.keys().take(32).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = FORMATS.iter().find(|(format, ..)| format == self);
        f.write_str(found.map_or("", |(_, name, _)| name))
    }
}

impl FromStr for Format {
    type Err = InstructError;

    fn from_str(name: &str) -> Result<Format, InstructError> {
        let found = FORMATS.iter().find(|(_, known, _)| *known == name);
        found.map(|(format, ..)| *format).ok_or_else(|| InstructError::Setting {
            key: "format",
            value: name.to_owned(),
            expected: format!("one of {}", Format::list()),
        })
    }
}

/// How rows are read.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ReadOptions {
    /// The format; None: that of the first row of each file.
    pub format: Option<Format>,
    /// Fields whose columns have other names in the file, such as `messages` to `chat`.
    pub columns: BTreeMap<String, String>,
    /// The prompt around an Alpaca instruction.
    pub alpaca: AlpacaPrompt,
}

/// The prompt around an Alpaca instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlpacaPrompt {
    /// Alpaca's own prompts, one with an input and one without.
    #[default]
    Standard,
    /// No prompt: the instruction, and the input on a line of its own.
    Plain,
}

impl ReadOptions {
    /// The row with its columns under the names of the fields.
    pub(super) fn renamed(&self, place: &Place, row: Json) -> Result<Json, InstructError> {
        if self.columns.is_empty() {
            return Ok(row);
        }
        let Json::Object(entries) = row else { return Ok(row) };
        let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
        for (field, column) in &self.columns {
            if !names.contains(&column.as_str()) {
                return Err(InstructError::NoColumn {
                    place: place.clone(),
                    field: field.clone(),
                    column: column.clone(),
                    columns: names.iter().take(32).copied().collect::<Vec<_>>().join(", "),
                });
            }
        }
        let mut fields = Vec::with_capacity(entries.len());
        for (name, value) in entries {
            let renamed = self.columns.iter().filter(|(_, column)| **column == name);
            let before = fields.len();
            fields.extend(renamed.map(|(field, _)| (field.clone(), value.clone())));
            // A column with a field's name is ignored where another column stands for that field.
            if fields.len() == before && !self.columns.contains_key(&name) {
                fields.push((name, value));
            }
        }
        Ok(Json::Object(fields))
    }

    /// Fails if a field belongs to no format.
    pub(super) fn check(&self) -> Result<(), InstructError> {
        match self.columns.keys().find(|field| !Format::knows(field)) {
            None => Ok(()),
            Some(field) => Err(InstructError::Setting {
                key: "columns",
                value: field.clone(),
                expected: format!("names of fields: {}", COLUMNS.join(", ")),
            }),
        }
    }
}
