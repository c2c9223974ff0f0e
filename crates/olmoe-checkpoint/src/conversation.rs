//! The chat template of a model, with the special tokens that it names.

use olmoe_data::{ChatTemplate, ChatTemplateError, ChatTokens, Message, Rendered, TULU};

use crate::companions::Companions;

/// How a model writes conversations.
pub struct ConversationTemplate {
    /// The template.
    pub template: ChatTemplate,
    source: String,
    /// The texts of the special tokens, in the order of [`ChatTokens`].
    texts: [Option<String>; 7],
}

impl ConversationTemplate {
    /// The template with this source; without one the model's own, and if it has none tulu, that of OLMoE's fine-tuning,
    /// in which the end-of-text token also begins conversations.
    ///
    /// # Errors
    /// A template that cannot be used.
    pub fn of(companions: &Companions, source: Option<&str>) -> Result<ConversationTemplate, ChatTemplateError> {
        let found = source.or(companions.chat_template());
        let text = |key: &str| companions.token_text(key).map(str::to_owned);
        let bos = match found {
            Some(_) => text("bos_token"),
            None => {
                let begins = companions.special_tokens().and_then(|special| special.begins_conversation());
                let tokenizer = companions.tokenizer();
                begins.and_then(|id| tokenizer?.token(id)).map(str::to_owned)
            }
        };
        let keys = ["eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"];
        let [eos, pad, unk, sep, cls, mask] = keys.map(text);
        let source = found.unwrap_or(TULU);
        Ok(ConversationTemplate {
            template: ChatTemplate::new(source)?,
            source: source.to_owned(),
            texts: [bos, eos, pad, unk, sep, cls, mask],
        })
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The special tokens.
    pub fn tokens(&self) -> ChatTokens<'_> {
        let [bos, eos, pad, unk, sep, cls, mask] = self.texts.each_ref().map(Option::as_deref);
        ChatTokens { bos, eos, pad, unk, sep, cls, mask }
    }

    /// The text of a conversation up to where the assistant's answer begins. It is encoded without adding tokens.
    ///
    /// # Errors
    /// A conversation that the template refuses or fails on.
    pub fn prompt(&self, messages: &[Message]) -> Result<Rendered, ChatTemplateError> {
        self.template.render(messages, self.tokens(), true)
    }
}
