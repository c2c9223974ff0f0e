//! Text to tokens and back, and tokens to training batches.
//!
//! | item | what it holds |
//! |---|---|
//! | [`Tokenizer`] | text to ids and back; reads a Hugging Face `tokenizer.json`, or what a GGUF file holds ([`Vocabulary`]) |
//! | [`SpecialTokens`] | which token ends a document, ends generation and begins a conversation, decided in one place |
//! | [`ChatTemplate`] | a conversation to text |
//! | [`documents`] | files of documents: JSON lines, plain, gzip or zstd |
//! | [`tokenize`] | documents to token files, as `dolma tokens` makes them |
//! | [`token_file`] | token files: headerless ones, and Megatron's |
//! | [`instruct`] | conversations, preferences and their targets: the data of fine-tuning |
//! | [`pretrain`] | token files to training batches, in the order of OLMo's trainer |
//! | [`NGrams`] | what counting alone predicts, to compare a model's loss with |
//! | [`expanded`] | paths with `~` and variables |
//! | [`white_space`] | white space and lines as in Python's strings |
//! | [`random`] | the generators of Python and NumPy, which these orders come from |

mod chat_template;
mod counted;
pub mod documents;
mod home;
pub mod instruct;
mod lines;
mod n_grams;
pub mod pretrain;
pub mod random;
mod special_tokens;
pub mod token_file;
pub mod tokenize;
mod tokenizer;
pub mod white_space;

pub use chat_template::{ChatTemplate, ChatTemplateError, ChatTokens, MAX_TEMPLATE_BYTES, Message, Rendered, TULU};
pub use counted::counted;
pub use home::expanded;
pub use n_grams::NGrams;
pub use special_tokens::{
    EndToken, SpecialTokenError, SpecialTokenNotice, SpecialTokenSources, SpecialTokens, ends_answer,
};
pub use tokenizer::{
    DecodeStream, MAX_JSON_BYTES, MAX_TOKENS, Piece, Pre, TokenKind, Tokenizer, TokenizerError, Vocabulary,
};
