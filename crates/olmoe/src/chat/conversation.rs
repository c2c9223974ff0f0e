//! What was said, and the tokens it is for the model.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use olmoe_data::{ChatTemplate, ChatTokens, Message, Tokenizer, ends_answer};

use crate::files::write_whole;
use crate::text::MARK;

/// Most bytes of a file with messages.
const MAX_FILE: u64 = 64 << 20;
/// Who may speak.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// A conversation.
pub(super) struct Conversation<'a> {
    template: &'a ChatTemplate,
    tokens: ChatTokens<'a>,
    tokenizer: &'a Tokenizer,
    messages: Vec<Message>,
    /// Answers since it began.
    turns: u64,
    /// What the model has read and said, as a text and as the tokens that it was.
    past: Prompt,
}

/// A text and its tokens.
#[derive(Clone, Default)]
pub(super) struct Prompt {
    text: String,
    pub(super) ids: Vec<u32>,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(template: &'a ChatTemplate, tokens: ChatTokens<'a>, tokenizer: &'a Tokenizer) -> Self {
        Conversation { template, tokens, tokenizer, messages: Vec::new(), turns: 0, past: Prompt::default() }
    }

    /// Answers since it began.
    pub(super) fn turns(&self) -> u64 {
        self.turns
    }

    /// Whether the user has spoken last.
    pub(super) fn waits(&self) -> bool {
        self.messages.last().is_some_and(|message| message.role == "user")
    }

    /// The system message.
    pub(super) fn system(&self) -> Option<&str> {
        let first = self.messages.first().filter(|message| message.role == "system");
        first.map(|message| message.content.as_str())
    }

    /// Replaces the system message, or takes it out.
    ///
    /// # Errors
    /// One that the template does not take; the conversation is as before.
    pub(super) fn set_system(&mut self, text: Option<&str>) -> anyhow::Result<()> {
        let rest = &self.messages[usize::from(self.system().is_some())..];
        let system = text.map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.into_iter().chain(rest.iter().cloned()).collect();
        self.check(&messages)?;
        self.messages = messages;
        Ok(())
    }

    /// Forgets all but the system message.
    pub(super) fn reset(&mut self) {
        self.messages.truncate(usize::from(self.system().is_some()));
        self.turns = 0;
    }

    /// The user speaks.
    pub(super) fn ask(&mut self, text: String) {
        self.messages.push(Message::new("user", text));
    }

    /// Takes the last message back.
    pub(super) fn take_back(&mut self) {
        self.messages.pop();
    }

    /// What the model is to read.
    ///
    /// What it has read and said before keeps the tokens that it had; the rest begins with a special token, so that it is
    /// cut into the same tokens alone as behind the other text. Where that does not hold, all of the text is cut anew.
    pub(super) fn prompt(&self) -> anyhow::Result<Prompt> {
        let text = self.template.render(&self.messages, self.tokens, true)?.text;
        if let Some(rest) = text.strip_prefix(&self.past.text).filter(|_| !self.past.ids.is_empty()) {
            let more = self.tokenizer.encode(rest)?;
            if more.first().is_some_and(|id| self.tokenizer.is_special(*id)) {
                return Ok(Prompt { ids: [&self.past.ids[..], &more].concat(), text });
            }
        }
        let ids = self.tokenizer.encode(&text)?;
        Ok(Prompt { text, ids })
    }

    /// The assistant has spoken. `ids` are the tokens of the text, without one that ended it; none if they are not just
    /// those of the text.
    pub(super) fn answered(&mut self, prompt: Prompt, text: String, ids: Option<&[u32]>) {
        self.past = match ids {
            Some(ids) => Prompt { text: prompt.text + &text, ids: [&prompt.ids[..], ids].concat() },
            None => Prompt::default(),
        };
        self.messages.push(Message::new("assistant", text));
        self.turns += 1;
    }

    /// Drops the oldest turn behind the system message: the user's words and what follows up to the next ones. Says how
    /// many messages that were; none if there is only one turn.
    pub(super) fn drop_oldest(&mut self) -> usize {
        let first = usize::from(self.system().is_some());
        let next = self.messages.iter().skip(first + 1).position(|message| message.role == "user");
        self.messages.drain(first..next.map_or(first, |next| first + 1 + next)).count()
    }

    /// The special token that the template puts behind an answer, which ends it.
    pub(super) fn ends_answer(&self) -> Option<u32> {
        ends_answer(self.template, self.tokens, self.tokenizer)
    }

    /// Whether the template takes these messages, and what the user says next.
    pub(super) fn check(&self, messages: &[Message]) -> anyhow::Result<()> {
        let mut messages = messages.to_vec();
        if messages.last().is_none_or(|message| message.role != "user") {
            messages.push(Message::new("user", "the words of the user"));
        }
        self.template.render(&messages, self.tokens, true)?;
        Ok(())
    }

    /// Writes the messages into a file, which is replaced only by a whole one. Says how many they are.
    pub(super) fn save(&self, path: &Path) -> anyhow::Result<usize> {
        let mut json = serde_json::to_vec_pretty(&self.messages)?;
        json.push(b'\n');
        write_whole(path, &json).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(self.messages.len())
    }

    /// Goes on with the messages of a file. Says how many they are.
    ///
    /// # Errors
    /// A file that cannot be read or that holds no conversation; this one is as before.
    pub(super) fn load(&mut self, path: &Path) -> anyhow::Result<usize> {
        let name = path.display();
        let mut bytes = Vec::new();
        let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
        ensure!(bytes.len() as u64 <= MAX_FILE, "{name} has more than {MAX_FILE} bytes, which no conversation has");
        let expected = "expected a JSON list of messages, [{\"role\": \"user\", \"content\": \"…\"}, …]";
        let messages: Vec<Message> = serde_json::from_slice(bytes.strip_prefix(MARK.as_bytes()).unwrap_or(&bytes))
            .map_err(|error| anyhow::anyhow!("{name}: {error}; {expected}"))?;
        ensure!(!messages.is_empty(), "{name} holds no message; {expected}");
        for (at, message) in messages.iter().enumerate() {
            let number = at + 1;
            if !ROLES.contains(&message.role.as_str()) {
                bail!("{name}, message {number}: the role is {:?}, expected system, user or assistant", message.role);
            }
            ensure!(message.role != "system" || at == 0, "{name}, message {number}: only the first one may be system");
        }
        self.check(&messages).with_context(|| name.to_string())?;
        self.turns = messages.iter().filter(|message| message.role == "assistant").count() as u64;
        self.messages = messages;
        Ok(self.messages.len())
    }
}
