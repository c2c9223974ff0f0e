//! Conversations as text, by the Jinja template of a checkpoint, rendered as transformers renders it.
//!
//! Blocks are trimmed (`trim_blocks`, `lstrip_blocks`) and nothing is escaped. A template sees `messages`, the special
//! tokens, `add_generation_prompt`, `tools`, `documents` (None), `raise_exception` and `strftime_now`. It can use
//! Python's methods of strings, lists and mappings, and Jinja2's filters, tests and functions; `tojson` writes what
//! Python's `json.dumps` writes. The engine is minijinja; the modules here add what Jinja2 does differently. Missing
//! are `lipsum` and the filters `random`, `pprint`, `xmlattr`, `striptags`, `urlize`, `wordwrap` and `filesizeformat`:
//! a template that uses one of them fails with an error that names it.

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Object, Serde};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value, context};
use serde::{Deserialize, Serialize};

mod arguments;
mod filters;
mod json;
mod methods;
mod objects;
mod source;

/// The template that OLMoE was fine-tuned with.
///
/// For a tokenizer without a beginning-of-text token, its end-of-text token takes that place:
/// [`SpecialTokens::begins_conversation`](crate::SpecialTokens::begins_conversation).
pub const TULU: &str = include_str!("chat_template/tulu.jinja");

/// Most bytes of a template's source.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Most steps of a rendering, so that every rendering ends.
const MAX_STEPS: u64 = 5_000_000;
/// The name of the template in its environment.
const NAME: &str = "chat template";

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text of the message.
    pub content: String,
}

impl Message {
    /// A message of a role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    fn value(&self) -> Value {
        Value::from_pairs([("role", self.role.as_str()), ("content", self.content.as_str())])
    }
}

/// The texts of the special tokens that templates name; one that is missing is undefined in the template.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChatTokens<'a> {
    /// `bos_token`.
    pub bos: Option<&'a str>,
    /// `eos_token`.
    pub eos: Option<&'a str>,
    /// `pad_token`.
    pub pad: Option<&'a str>,
    /// `unk_token`.
    pub unk: Option<&'a str>,
    /// `sep_token`.
    pub sep: Option<&'a str>,
    /// `cls_token`.
    pub cls: Option<&'a str>,
    /// `mask_token`.
    pub mask: Option<&'a str>,
}

/// A conversation as a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The ranges of bytes of `text` that `{% generation %}` blocks mark as the assistant's, in order.
    pub answers: Vec<Range<usize>>,
}

/// Why a template or a conversation cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatTemplateError {
    /// The source is too long.
    #[error("the chat template has {bytes} bytes, expected at most {MAX_TEMPLATE_BYTES}")]
    TooLong {
        /// The length of the source in bytes.
        bytes: usize,
    },
    /// The source is not a valid Jinja template.
    #[error("the chat template, line {line}: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What is wrong in that line.
        message: String,
    },
    /// The template called `raise_exception`.
    #[error("the chat template refuses this conversation: {message}")]
    Refused {
        /// The message of the exception.
        message: String,
    },
    /// The rendering failed, as by an operation on values of the wrong types.
    #[error("the chat template fails on this conversation in line {line}: {message}")]
    Failed {
        /// Line, from 1.
        line: usize,
        /// What went wrong.
        message: String,
    },
}

/// A template, ready to be used.
pub struct ChatTemplate {
    environment: Environment<'static>,
    marks_answers: bool,
}

impl ChatTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// A source that is too long or is not valid Jinja.
    pub fn new(source: &str) -> Result<ChatTemplate, ChatTemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(ChatTemplateError::TooLong { bytes: source.len() });
        }
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_formatter(write_text);
        environment.set_unknown_method_callback(methods::call);
        filters::add(&mut environment);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_function(source::GENERATION, generation);
        let (source, marks_answers) = source::prepared(source);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let added = syntax.and_then(|syntax| {
            environment.set_syntax(syntax);
            environment.add_template_owned(NAME, source)
        });
        added.map_err(|error| {
            let (line, message) = place(&error);
            ChatTemplateError::Syntax { line, message }
        })?;
        Ok(ChatTemplate { environment, marks_answers })
    }

    /// Whether the template marks the assistant's answers ([`Rendered::answers`]).
    pub fn marks_answers(&self) -> bool {
        self.marks_answers
    }

    /// The text of a conversation; with `add_generation_prompt` up to where the assistant's answer begins.
    ///
    /// Encode the text without adding special tokens: the template has put in all of them, the first one included.
    ///
    /// # Errors
    /// A conversation that the template refuses or fails on.
    pub fn render(
        &self,
        messages: &[Message],
        tokens: ChatTokens,
        add_generation_prompt: bool,
    ) -> Result<Rendered, ChatTemplateError> {
        let messages = messages.iter().map(Message::value).collect();
        self.render_values(messages, Value::from(()), tokens, add_generation_prompt)
    }

    /// As [`render`](Self::render), of messages with any fields that the template reads, and with the tools that the
    /// model may call. The template's `tools` is None if there are no tools.
    ///
    /// # Errors
    /// A conversation that the template refuses or fails on.
    pub fn render_with_tools(
        &self,
        messages: &[impl Serialize],
        tools: &[impl Serialize],
        tokens: ChatTokens,
        add_generation_prompt: bool,
    ) -> Result<Rendered, ChatTemplateError> {
        let tools = if tools.is_empty() { Value::from(()) } else { Value::from(Serde(tools)) };
        let messages = messages.iter().map(|message| Value::from(Serde(message))).collect();
        self.render_values(messages, tools, tokens, add_generation_prompt)
    }

    fn render_values(
        &self,
        messages: Vec<Value>,
        tools: Value,
        tokens: ChatTokens,
        add_generation_prompt: bool,
    ) -> Result<Rendered, ChatTemplateError> {
        let defined = |token: Option<&str>| token.map_or(Value::UNDEFINED, Value::from);
        let answers = Arc::new(Answers::default());
        let context = context! {
            messages,
            bos_token => defined(tokens.bos),
            eos_token => defined(tokens.eos),
            pad_token => defined(tokens.pad),
            unk_token => defined(tokens.unk),
            sep_token => defined(tokens.sep),
            cls_token => defined(tokens.cls),
            mask_token => defined(tokens.mask),
            tools,
            documents => (),
            add_generation_prompt,
            ..Value::from_pairs([(source::ANSWERS, Value::from_dyn_object(answers.clone()))])
        };
        let mut text = Vec::new();
        let counted = Counted { text: &mut text, answers: &answers };
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context, counted).map(drop));
        rendered.map_err(|error| match raised(&error) {
            Some(Raised(message)) => ChatTemplateError::Refused { message: message.clone() },
            None => {
                let (line, message) = place(&error);
                ChatTemplateError::Failed { line, message }
            }
        })?;
        let answers = std::mem::take(&mut *answers.ranges.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        // The engine writes strings only.
        Ok(Rendered { text: String::from_utf8_lossy(&text).into_owned(), answers })
    }
}

/// The ranges of generation blocks, collected while a conversation is rendered.
#[derive(Debug, Default)]
struct Answers {
    /// Bytes written so far.
    written: AtomicUsize,
    ranges: Mutex<Vec<Range<usize>>>,
}

impl Object for Answers {}

/// A writer that counts the bytes of the text written so far.
struct Counted<'a> {
    text: &'a mut Vec<u8>,
    answers: &'a Answers,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        self.answers.written.store(self.text.len(), Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Renders a generation block and records the range of bytes that its text will take in the output.
fn generation(state: &mut State, answers: &Value, block: Kwargs) -> Result<Value, Error> {
    let text = block.get::<Value>("caller")?.call(state, &[])?;
    if let Some(answers) = answers.downcast_object_ref::<Answers>() {
        let start = answers.written.load(Ordering::Relaxed);
        let range = start..start + text.as_str().map_or(0, str::len);
        answers.ranges.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(range);
    }
    Ok(text)
}

/// Writes a value as Python's `str` does.
fn write_text(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    out.write_str(&filters::text_of(value)?).map_err(Error::from)
}

/// The message of a template's `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

fn raised(error: &Error) -> Option<&Raised> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(raised) = cause.downcast_ref() {
            return Some(raised);
        }
        source = cause.source();
    }
    None
}

/// The local time, as Python's `datetime.now().strftime` writes it.
fn strftime_now(format: &str, none: Kwargs) -> Result<String, Error> {
    none.assert_all_used()?;
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
}

/// The line of an error, and its message with those of its causes.
fn place(error: &Error) -> (usize, String) {
    let mut message = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    if error.kind() == ErrorKind::OutOfFuel {
        message = format!("rendering takes more than {MAX_STEPS} steps");
    }
    if let Some(cause) = std::error::Error::source(error) {
        message = format!("{message}: {cause}");
    }
    (error.line().unwrap_or(0), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_now() {
        let template = ChatTemplate::new("{{ strftime_now('%Y-%m-%d %b %%') }}").unwrap();
        let text = template.render(&[], ChatTokens::default(), false).unwrap().text;
        assert!(text.len() == 16 && text.starts_with("20") && text.ends_with('%'), "{text}");
        let bad = ChatTemplate::new("\n{{ strftime_now('%') }}").unwrap();
        let error = bad.render(&[], ChatTokens::default(), false).unwrap_err();
        assert!(matches!(error, ChatTemplateError::Failed { line: 2, .. }), "{error}");
    }
}
