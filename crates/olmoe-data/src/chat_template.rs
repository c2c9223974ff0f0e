//! Conversations as text: the Jinja template that a checkpoint brings, as transformers runs it.
//!
//! Blocks are trimmed (`trim_blocks`, `lstrip_blocks`), nothing is escaped, and a template sees `messages`, `bos_token`,
//! `eos_token`, `add_generation_prompt`, `tools` and `documents` (none), `raise_exception`, `strftime_now`, Python's
//! methods of strings, lists and mappings, and a `tojson` that writes what Python's `json.dumps` does.

use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

mod json;

/// The template that OLMoE was fine-tuned with.
///
/// For a tokenizer without a token that begins texts, the one that ends them stands for it:
/// [`SpecialTokens::begins_conversation`](crate::SpecialTokens::begins_conversation).
pub const TULU: &str = include_str!("chat_template/tulu.jinja");

/// Most bytes of a template.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Most steps of a rendering, so that a template ends.
const MAX_STEPS: u64 = 5_000_000;
/// The name of the template in its environment.
const NAME: &str = "chat template";

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// What somebody says.
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
}

/// Why a template or a conversation cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatTemplateError {
    /// Too long a template.
    #[error("the chat template has {bytes} bytes, expected at most {MAX_TEMPLATE_BYTES}")]
    TooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// No template.
    #[error("the chat template, line {line}: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// The template itself says no.
    #[error("the chat template refuses this conversation: {message}")]
    Refused {
        /// What it says.
        message: String,
    },
    /// The template does what cannot be done.
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
}

impl ChatTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// One that is too long or no Jinja.
    pub fn new(source: &str) -> Result<ChatTemplate, ChatTemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(ChatTemplateError::TooLong { bytes: source.len() });
        }
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let added = syntax.and_then(|syntax| {
            environment.set_syntax(syntax);
            environment.add_template_owned(NAME, plain_generation(source))
        });
        added.map_err(|error| {
            let (line, message) = place(&error);
            ChatTemplateError::Syntax { line, message }
        })?;
        Ok(ChatTemplate { environment })
    }

    /// The text of a conversation; with `add_generation_prompt` up to where the assistant's answer begins.
    ///
    /// Encode it as it is: it has the special tokens that the model wants, the first one included.
    ///
    /// # Errors
    /// A conversation that the template refuses or fails on.
    pub fn render(
        &self,
        messages: &[Message],
        tokens: ChatTokens,
        add_generation_prompt: bool,
    ) -> Result<String, ChatTemplateError> {
        let defined = |token: Option<&str>| token.map_or(Value::UNDEFINED, Value::from);
        let context = context! {
            messages => messages.iter().map(Message::value).collect::<Vec<Value>>(),
            bos_token => defined(tokens.bos),
            eos_token => defined(tokens.eos),
            tools => (),
            documents => (),
            add_generation_prompt,
        };
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(context));
        rendered.map_err(|error| match raised(&error) {
            Some(Raised(message)) => ChatTemplateError::Refused { message: message.clone() },
            None => {
                let (line, message) = place(&error);
                ChatTemplateError::Failed { line, message }
            }
        })
    }
}

/// What a template said with `raise_exception`.
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

/// The time of day here, as Python's `datetime.now().strftime` writes it.
fn strftime_now(format: &str, none: Kwargs) -> Result<String, Error> {
    none.assert_all_used()?;
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
}

/// The line of an error and what it says, with its causes.
fn place(error: &Error) -> (usize, String) {
    let mut message = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    if error.kind() == ErrorKind::OutOfFuel {
        message = format!("it takes more than {MAX_STEPS} steps");
    }
    if let Some(cause) = std::error::Error::source(error) {
        message = format!("{message}: {cause}");
    }
    (error.line().unwrap_or(0), message)
}

/// The template with plain blocks in place of `{% generation %}` … `{% endgeneration %}`, a tag of transformers' own that
/// marks the assistant's words and leaves them as they are.
fn plain_generation(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        text.push_str(before);
        let (inside, _) = tag.split_once("%}").unwrap_or((tag, ""));
        let plain = match inside.trim_matches(['-', '+']).trim() {
            "generation" => inside.replace("generation", "if true"),
            "endgeneration" => inside.replace("endgeneration", "endif"),
            _ => inside.to_owned(),
        };
        text.push_str(&plain);
        rest = &tag[inside.len()..];
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_blocks_keep_their_white_space_control() {
        let text = "a {%- generation -%} b {%+endgeneration%} {% if generation %}{% 'generation' %";
        let expected = "a {%- if true -%} b {%+endif%} {% if generation %}{% 'generation' %";
        assert_eq!(plain_generation(text), expected);
    }

    #[test]
    fn the_time_is_now() {
        let template = ChatTemplate::new("{{ strftime_now('%Y-%m-%d %b %%') }}").unwrap();
        let text = template.render(&[], ChatTokens::default(), false).unwrap();
        assert!(text.len() == 16 && text.starts_with("20") && text.ends_with('%'), "{text}");
        let bad = ChatTemplate::new("\n{{ strftime_now('%') }}").unwrap();
        let error = bad.render(&[], ChatTokens::default(), false).unwrap_err();
        assert!(matches!(error, ChatTemplateError::Failed { line: 2, .. }), "{error}");
    }
}
