//! The messages of a conversation, and their tokens.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use olmoe_data::{ChatTemplate, ChatTokens, Message, Tokenizer, ends_answer};

use crate::files::write_whole;
use crate::text::MARK;

/// The largest file with messages.
const MAX_FILE: u64 = 64 << 20;
/// The roles.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// A conversation.
pub(super) struct Conversation<'a> {
    template: &'a ChatTemplate,
    tokens: ChatTokens<'a>,
    tokenizer: &'a Tokenizer,
    messages: Vec<Message>,
    /// The number of answers since the beginning.
    turns: u64,
    /// What the model has read and generated, as text and as its tokens.
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

    /// The number of answers since the beginning.
    pub(super) fn turns(&self) -> u64 {
        self.turns
    }

    /// Whether the last message is the user's.
    pub(super) fn waits(&self) -> bool {
        self.messages.last().is_some_and(|message| message.role == "user")
    }

    /// The system message.
    pub(super) fn system(&self) -> Option<&str> {
        let first = self.messages.first().filter(|message| message.role == "system");
        first.map(|message| message.content.as_str())
    }

    /// Replaces the system message, or removes it.
    ///
    /// # Errors
    /// A system message that the template refuses; the conversation is then unchanged.
    pub(super) fn set_system(&mut self, text: Option<&str>) -> anyhow::Result<()> {
        let rest = &self.messages[usize::from(self.system().is_some())..];
        let system = text.map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.into_iter().chain(rest.iter().cloned()).collect();
        self.check(&messages)?;
        self.messages = messages;
        Ok(())
    }

    /// Removes all messages but the system message.
    pub(super) fn reset(&mut self) {
        self.messages.truncate(usize::from(self.system().is_some()));
        self.turns = 0;
    }

    /// Adds a message of the user.
    pub(super) fn ask(&mut self, text: String) {
        self.messages.push(Message::new("user", text));
    }

    /// Removes the last message.
    pub(super) fn take_back(&mut self) {
        self.messages.pop();
    }

    /// The prompt for the model.
    ///
    /// What the model has read and generated keeps its tokens. The rest begins with a special token, so it is tokenized
    /// alone as it would be after the other text. Where that does not hold, the whole text is tokenized again.
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

    /// Adds an answer of the assistant. `ids` are the tokens of its text, without a token that ended it; None if they
    /// are not exactly the tokens of the text.
    pub(super) fn answered(&mut self, prompt: Prompt, text: String, ids: Option<&[u32]>) {
        self.past = match ids {
            Some(ids) => Prompt { text: prompt.text + &text, ids: [&prompt.ids[..], ids].concat() },
            None => Prompt::default(),
        };
        self.messages.push(Message::new("assistant", text));
        self.turns += 1;
    }

    /// Drops the oldest turn after the system message: the user's message and what follows up to the user's next one.
    /// Returns how many messages were dropped; 0 if there is only one turn.
    pub(super) fn drop_oldest(&mut self) -> usize {
        let first = usize::from(self.system().is_some());
        let next = self.messages.iter().skip(first + 1).position(|message| message.role == "user");
        self.messages.drain(first..next.map_or(first, |next| first + 1 + next)).count()
    }

    /// The special token that the template puts behind an answer, which ends it.
    pub(super) fn ends_answer(&self) -> Option<u32> {
        ends_answer(self.template, self.tokens, self.tokenizer)
    }

    /// Checks that the template accepts these messages followed by one of the user.
    pub(super) fn check(&self, messages: &[Message]) -> anyhow::Result<()> {
        let mut messages = messages.to_vec();
        if messages.last().is_none_or(|message| message.role != "user") {
            messages.push(Message::new("user", "the words of the user"));
        }
        self.template.render(&messages, self.tokens, true)?;
        Ok(())
    }

    /// Writes the messages to a file, which is replaced only once the new one is complete. Returns the number of
    /// messages.
    pub(super) fn save(&self, path: &Path) -> anyhow::Result<usize> {
        let mut json = serde_json::to_vec_pretty(&self.messages)?;
        json.push(b'\n');
        write_whole(path, &json).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(self.messages.len())
    }

    /// Continues with the messages of a file. Returns their number.
    ///
    /// # Errors
    /// A file that cannot be read or holds no conversation; the present conversation is then unchanged.
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
