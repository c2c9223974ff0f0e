//! Rows of every format to their contents.

use super::conversation::{Content, Conversation, LabelledCompletion, Place, PreferencePair, Sample, Turn};
use super::error::InstructError;
use super::fields::Fields;
use super::format::{AlpacaPrompt, Format, ReadOptions};
use super::json::Json;
use super::tokens;

/// Names of roles in ShareGPT, and the roles that they stand for.
const SIDES: [(&str, &str); 17] = [
    ("human", "user"),
    ("user", "user"),
    ("User", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("Assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("model", "assistant"),
    ("function_call", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("function", "tool"),
    ("function_response", "tool"),
    ("observation", "tool"),
    ("ipython", "tool"),
];
const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// The content of a row, by its format.
pub(super) fn content(
    place: &Place,
    row: &Json,
    format: Format,
    options: &ReadOptions,
) -> Result<Content, InstructError> {
    let fields = Fields { place, row, options };
    Ok(match format {
        Format::Tokens => Content::Tokens(tokens::example(&fields)?),
        Format::Preference => Content::Pair(fields.pair()?),
        Format::HumanAssistant => Content::Pair(PreferencePair {
            chosen: Sample::Conversation(fields.human_assistant("chosen")?),
            rejected: Sample::Conversation(fields.human_assistant("rejected")?),
        }),
        Format::Labelled => Content::Labelled(fields.labelled()?),
        _ => Content::Sample(fields.sample(format)?),
    })
}

impl Fields<'_> {
    fn sample(&self, format: Format) -> Result<Sample, InstructError> {
        let turns = match format {
            Format::Messages => self.turns("messages")?,
            Format::ShareGpt => self.turns("conversations")?,
            Format::Alpaca => {
                let mut turns = self.history()?;
                turns.push(Turn::new("user", self.instruction()?));
                turns.push(Turn::new("assistant", self.text("output")?));
                turns
            }
            Format::PromptCompletion => return self.prompt_completion(),
            Format::QuestionAnswer => {
                let question = if self.get("question").is_some() { "question" } else { "query" };
                let answer = if self.get("answer").is_some() { "answer" } else { "response" };
                vec![Turn::new("user", self.text(question)?), Turn::new("assistant", self.text(answer)?)]
            }
            Format::Text => {
                return Ok(Sample::Text { prompt: String::new(), completion: self.text("text")?.to_owned() });
            }
            Format::Raw => {
                let (prompt, completion) = (self.text("prompt")?.to_owned(), self.text("completion")?.to_owned());
                return Ok(Sample::Text { prompt, completion });
            }
            Format::Tokens | Format::Preference | Format::HumanAssistant | Format::Labelled => {
                return Err(self.wrong("the row", "a conversation or a text", Some(self.row)));
            }
        };
        Ok(Sample::Conversation(self.conversation(turns)?))
    }

    /// The turns, with the row's separate system message and tools.
    fn conversation(&self, mut turns: Vec<Turn>) -> Result<Conversation, InstructError> {
        let system = match self.optional_text("system")? {
            Some(system) => Some(system),
            None => self.optional_text("system_prompt")?,
        };
        if let Some(system) = system
            && turns.first().is_none_or(|first| first.role != "system")
        {
            turns.insert(0, Turn::new("system", system));
        }
        Ok(Conversation { turns, tools: self.tools()? })
    }

    fn tools(&self) -> Result<Vec<Json>, InstructError> {
        const EXPECTED: &str = "a list of objects, one object, or a JSON string of either";
        let Some(value) = self.get("tools") else { return Ok(Vec::new()) };
        let wrong = || self.wrong("tools", EXPECTED, Some(value));
        let tools = match value {
            Json::Text(text) if text.trim().is_empty() => return Ok(Vec::new()),
            Json::Text(text) => Json::within(text).ok_or_else(wrong)?,
            other => other.clone(),
        };
        let tools = match tools {
            Json::List(tools) => tools,
            tool => vec![tool],
        };
        if tools.iter().all(|tool| matches!(tool, Json::Object(_))) { Ok(tools) } else { Err(wrong()) }
    }

    fn turns(&self, field: &str) -> Result<Vec<Turn>, InstructError> {
        self.turns_of(field, self.needed(field, "a list of messages")?)
    }

    fn turns_of(&self, field: &str, value: &Json) -> Result<Vec<Turn>, InstructError> {
        const EXPECTED: &str = "a list of at least one message";
        let wrong = || self.wrong(field, EXPECTED, Some(value));
        let within = value.text().and_then(Json::within);
        let items = within.as_ref().unwrap_or(value).list().filter(|items| !items.is_empty()).ok_or_else(wrong)?;
        items.iter().enumerate().map(|(at, item)| self.turn(&format!("{field}[{at}]"), item)).collect()
    }

    /// A message with OpenAI's or ShareGPT's keys.
    fn turn(&self, field: &str, message: &Json) -> Result<Turn, InstructError> {
        let Json::Object(entries) = message else {
            return Err(self.wrong(field, "an object with role and content, or from and value", Some(message)));
        };
        let names = if message.get("role").is_none() && message.get("from").is_some() {
            ["from", "value"]
        } else {
            ["role", "content"]
        };
        let inside = |name: &str| format!("{field}.{name}");
        let role = message.get(names[0]);
        let role = match role.and_then(Json::text) {
            None => return Err(self.wrong(inside(names[0]), "a string", role)),
            Some(side) if names[0] == "from" => {
                let known = SIDES.iter().find(|(name, _)| *name == side);
                let expected = "human, gpt, system, tool, observation, function_call or another name of one of them";
                known.ok_or_else(|| self.wrong(inside("from"), expected, role))?.1
            }
            Some(role) => role,
        };
        let mut more = Vec::new();
        let mut weight = None;
        for (key, value) in entries {
            match key.as_str() {
                _ if *value == Json::Null || names.contains(&key.as_str()) => {}
                "weight" => {
                    let number = value.number().filter(|number| (0.0..=f64::from(f32::MAX)).contains(number));
                    let expected = "a number that is not negative";
                    weight = Some(number.ok_or_else(|| self.wrong(inside(key), expected, Some(value)))? as f32);
                }
                "training" | "train" => {
                    let truth = value.truth().ok_or_else(|| self.wrong(inside(key), "true or false", Some(value)))?;
                    weight = Some(f32::from(u8::from(truth)));
                }
                _ => more.push((key.clone(), value.clone())),
            }
        }
        let content = message.get(names[1]);
        let content = match content {
            Some(Json::Text(text)) => Some(text.clone()),
            Some(Json::List(parts)) => Some(self.parts(&inside(names[1]), parts)?),
            None if more.iter().any(|(key, _)| key == "tool_calls" || key == "function_call") => None,
            other => return Err(self.wrong(inside(names[1]), "a string, or a list of text parts", other)),
        };
        Ok(Turn { role: role.to_owned(), content, weight, more })
    }

    /// The text of a content that is a list of parts.
    fn parts(&self, field: &str, parts: &[Json]) -> Result<String, InstructError> {
        let mut all = String::new();
        for (at, part) in parts.iter().enumerate() {
            let text = match part {
                Json::Text(text) => Some(text.as_str()),
                part => part.get("text").and_then(Json::text),
            };
            let expected = "a text part; images and audio are not supported";
            all.push_str(text.ok_or_else(|| self.wrong(format!("{field}[{at}]"), expected, Some(part)))?);
        }
        Ok(all)
    }

    /// The turns before an instruction, from pairs of a question and an answer.
    fn history(&self) -> Result<Vec<Turn>, InstructError> {
        const EXPECTED: &str = "a list of pairs of strings";
        let Some(value) = self.get("history").filter(|value| value.text() != Some("")) else { return Ok(Vec::new()) };
        let wrong = || self.wrong("history", EXPECTED, Some(value));
        let within = value.text().and_then(Json::within);
        let mut turns = Vec::new();
        for pair in within.as_ref().unwrap_or(value).list().ok_or_else(wrong)? {
            match pair.list() {
                Some([Json::Text(asked), Json::Text(answered)]) => {
                    turns.extend([Turn::new("user", asked), Turn::new("assistant", answered)]);
                }
                _ => return Err(wrong()),
            }
        }
        Ok(turns)
    }

    /// An instruction with its input, in Alpaca's prompt.
    fn instruction(&self) -> Result<String, InstructError> {
        let instruction = self.text("instruction")?;
        let input = self.optional_text("input")?;
        Ok(match (self.options.alpaca, input) {
            (AlpacaPrompt::Plain, None) => instruction.to_owned(),
            (AlpacaPrompt::Plain, Some(input)) => format!("{instruction}\n{input}"),
            (AlpacaPrompt::Standard, None) => format!(
                "Below is an instruction that describes a task. Write a response that appropriately completes the \
                 request.\n\n### Instruction:\n{instruction}\n\n### Response:"
            ),
            (AlpacaPrompt::Standard, Some(input)) => format!(
                "Below is an instruction that describes a task, paired with an input that provides further context. \
                 Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n\
                 ### Input:\n{input}\n\n### Response:"
            ),
        })
    }

    /// A prompt and its completion, each a string or messages. Only the completion is trained on.
    fn prompt_completion(&self) -> Result<Sample, InstructError> {
        let prompt = self.needed("prompt", "a string or a list of messages")?;
        let completion = self.needed("completion", "a string or a list of messages")?;
        let mut turns = self.said("prompt", prompt, "user")?;
        for turn in &mut turns {
            turn.weight = Some(0.0);
        }
        turns.extend(self.said("completion", completion, "assistant")?);
        Ok(Sample::Conversation(self.conversation(turns)?))
    }

    /// The turns in a field: a string for a role, a message, or a list of messages.
    fn said(&self, field: &str, value: &Json, role: &str) -> Result<Vec<Turn>, InstructError> {
        match value {
            Json::Text(text) if Json::within(text).is_none_or(|json| !is_messages(&json)) => {
                Ok(vec![Turn::new(role, text)])
            }
            Json::Object(_) => Ok(vec![self.turn(field, value)?]),
            _ => self.turns_of(field, value),
        }
    }

    fn pair(&self) -> Result<PreferencePair, InstructError> {
        const EXPECTED: &str = "a string, a message or a list of messages";
        let sides = [self.needed("chosen", EXPECTED)?, self.needed("rejected", EXPECTED)?];
        let before = self.before_answers()?;
        if let (None, [Json::Text(chosen), Json::Text(rejected)]) = (&before, sides)
            && !sides.iter().any(|side| side.text().and_then(Json::within).is_some_and(|json| is_messages(&json)))
        {
            if chosen.starts_with(HUMAN) {
                let expected = "an answer to a prompt; name the format `hh` if Human and Assistant take turns in it";
                return Err(self.wrong("chosen", expected, Some(sides[0])));
            }
            let prompt = shared_prompt(chosen, rejected);
            let side =
                |text: &str| Sample::Text { prompt: text[..prompt].to_owned(), completion: text[prompt..].to_owned() };
            return Ok(PreferencePair { chosen: side(chosen), rejected: side(rejected) });
        }
        let side = |field: &str, value: &Json| {
            let said = self.said(field, value, "assistant")?;
            if !said.last().is_some_and(Turn::is_answer) {
                return Err(self.wrong(field, "an answer of the assistant at the end", Some(value)));
            }
            // Lists that begin before the answer hold the prompt as well.
            let whole = said.first().is_some_and(|first| !first.is_answer());
            let mut turns = if whole { Vec::new() } else { before.clone().unwrap_or_default() };
            turns.extend(said);
            Ok(Sample::Conversation(self.conversation(turns)?))
        };
        Ok(PreferencePair { chosen: side("chosen", sides[0])?, rejected: side("rejected", sides[1])? })
    }

    /// The turns before the answers that are compared.
    fn before_answers(&self) -> Result<Option<Vec<Turn>>, InstructError> {
        for field in ["prompt", "messages", "conversations"] {
            if let Some(value) = self.get(field) {
                return self.said(field, value, "user").map(Some);
            }
        }
        if self.get("instruction").is_some() {
            let mut turns = self.history()?;
            turns.push(Turn::new("user", self.instruction()?));
            return Ok(Some(turns));
        }
        for field in ["question", "query"] {
            if self.get(field).is_some() {
                return Ok(Some(vec![Turn::new("user", self.text(field)?)]));
            }
        }
        Ok(None)
    }

    /// A conversation from a string in which Human and Assistant take turns.
    fn human_assistant(&self, field: &str) -> Result<Conversation, InstructError> {
        const EXPECTED: &str = "a string of turns that begin with \"\\n\\nHuman:\" and \"\\n\\nAssistant:\", the last one the \
                                Assistant's";
        let text = self.text(field)?;
        let wrong = || self.wrong(field, EXPECTED, self.get(field));
        if !text.starts_with(HUMAN) {
            return Err(wrong());
        }
        let mut turns = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (role, mark) = if rest.starts_with(HUMAN) { ("user", HUMAN) } else { ("assistant", ASSISTANT) };
            let words = &rest[mark.len()..];
            let end = [HUMAN, ASSISTANT].iter().filter_map(|mark| words.find(mark)).min().unwrap_or(words.len());
            turns.push(Turn::new(role, words[..end].trim()));
            rest = &words[end..];
        }
        if !turns.last().is_some_and(Turn::is_answer) {
            return Err(wrong());
        }
        self.conversation(turns)
    }

    fn labelled(&self) -> Result<LabelledCompletion, InstructError> {
        let field = if self.get("label").is_some() { "label" } else { "kto_tag" };
        let label = self.needed(field, "true or false")?;
        let desirable = label.truth().ok_or_else(|| self.wrong(field, "true or false", Some(label)))?;
        let format = Format::of_sample(self.row).filter(|format| *format != Format::Tokens);
        let expected = "a row with messages, conversations, prompt and completion, or another conversation";
        let sample = self.sample(format.ok_or_else(|| self.wrong("the row", expected, Some(self.row)))?)?;
        if let Sample::Conversation(Conversation { turns, .. }) = &sample
            && !turns.last().is_some_and(Turn::is_answer)
        {
            return Err(self.wrong("the last message", "an answer of the assistant", None));
        }
        Ok(LabelledCompletion { sample, desirable })
    }
}

/// Whether a value is a list of messages.
fn is_messages(value: &Json) -> bool {
    value
        .list()
        .and_then(<[Json]>::first)
        .is_some_and(|first| ["role", "from"].iter().any(|key| first.get(key).is_some()))
}

/// The length in bytes of the common beginning of two strings; a space before their difference belongs to the answers.
fn shared_prompt(chosen: &str, rejected: &str) -> usize {
    let mut pairs = chosen.char_indices().zip(rejected.chars());
    let differing = pairs.find(|((_, a), b)| a != b).map(|((at, _), _)| at);
    let end = differing.unwrap_or_else(|| chosen.len().min(rejected.len()));
    if chosen[..end].ends_with(' ') { end - 1 } else { end }
}
