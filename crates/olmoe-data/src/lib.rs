//! Text to tokens and back.
//!
//! [`Tokenizer`] reads a Hugging Face `tokenizer.json`, or what a GGUF file holds ([`Vocabulary`]).
//! [`SpecialTokens`] is the one place that decides which token ends a document, ends generation and begins a
//! conversation. [`ChatTemplate`] makes a text of a conversation.

mod chat_template;
mod special_tokens;
mod tokenizer;

pub use chat_template::{ChatTemplate, ChatTemplateError, ChatTokens, MAX_TEMPLATE_BYTES, Message, TULU};
pub use special_tokens::{Notice, SpecialTokenError, SpecialTokenSources, SpecialTokens};
pub use tokenizer::{
    DecodeStream, MAX_JSON_BYTES, MAX_TOKENS, Piece, Pre, TokenKind, Tokenizer, TokenizerError, Vocabulary,
};
