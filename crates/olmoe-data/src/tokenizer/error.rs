//! What can be wrong with a tokenizer, one variant per cause.

use std::path::PathBuf;

use thiserror::Error;

/// Why a tokenizer could not be read or written, or could not do its work.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file could not be read.
    #[error("cannot read the tokenizer {}: {source}; check that the path is right and readable", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory without a tokenizer.
    #[error("{} holds no tokenizer.json; give a directory that holds one, or the file itself", path.display())]
    NoTokenizerJson {
        /// The directory.
        path: PathBuf,
    },
    /// The file was read but its content is wrong.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        source: Box<TokenizerError>,
    },
    /// More bytes than any tokenizer has.
    #[error("the tokenizer has more than {limit} bytes; give a tokenizer.json, not a data file")]
    TooLong {
        /// Most bytes accepted.
        limit: usize,
    },
    /// Not the JSON of a tokenizer.
    #[error("the tokenizer is not valid JSON of the tokenizers format: {message}")]
    Syntax {
        /// What the parser said, with line and column.
        message: String,
    },
    /// An id beyond any real vocabulary.
    #[error("token {token:?} has the id {id}; ids must be below {limit}")]
    IdTooLarge {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Ids must be below this.
        limit: usize,
    },
    /// Two tokens with one id.
    #[error("the tokens {first:?} and {second:?} have the same id {id}; every token needs its own")]
    SameId {
        /// One of the tokens.
        first: String,
        /// The other one.
        second: String,
        /// Their id.
        id: u32,
    },
    /// Two ids with one text.
    #[error("the tokens {first} and {second} have the same text {text:?}; every token needs its own")]
    SameText {
        /// One of the tokens.
        first: u32,
        /// The other one.
        second: u32,
        /// Their text.
        text: String,
    },
    /// An added token that the vocabulary, or the order of added tokens, numbers otherwise.
    #[error("the added token {token:?} says it has the id {said}, but its place in the vocabulary gives it {given}")]
    AddedTokenId {
        /// The token.
        token: String,
        /// The id in its entry.
        said: u32,
        /// The id that it gets.
        given: u32,
    },
    /// A merge that is not two parts.
    #[error("merge {index} is {text:?}; expected two tokens with a space between them")]
    MergeSyntax {
        /// Which merge, from 0.
        index: usize,
        /// Its text.
        text: String,
    },
    /// A merge of, or into, what is not in the vocabulary.
    #[error(
        "merge {index} ({first:?} with {second:?}) needs the token {missing:?}, which the vocabulary does not have"
    )]
    MergeToken {
        /// Which merge, from 0.
        index: usize,
        /// Its first part.
        first: String,
        /// Its second part.
        second: String,
        /// The part, or the result, that is missing.
        missing: String,
    },
    /// The tokenizers library refused.
    #[error("the tokenizer cannot {action}: {message}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// What the library said.
        message: String,
    },
    /// A vocabulary that is not byte-level BPE.
    #[error(
        "the vocabulary is of the model {found:?}; supported is \"gpt2\" (byte-level BPE). SentencePiece vocabularies \
         (\"llama\") and others need the model's tokenizer.json"
    )]
    UnsupportedModel {
        /// What `tokenizer.ggml.model` says.
        found: String,
    },
    /// Words are cut in an unknown way.
    #[error(
        "the pre-tokenizer {found:?} is not supported; supported are {supported}. Give the model's tokenizer.json instead"
    )]
    UnsupportedPre {
        /// What `tokenizer.ggml.pre` says.
        found: String,
        /// The names that are known.
        supported: String,
    },
    /// A list of the vocabulary with another length than the tokens.
    #[error("the vocabulary has {tokens} tokens but {found} {what}; expected one for each token")]
    Lengths {
        /// Which list.
        what: &'static str,
        /// How long it is.
        found: usize,
        /// How many tokens there are.
        tokens: usize,
    },
    /// More tokens than the model has rows.
    #[error(
        "the tokenizer has {size} ids, but the model only {rows} rows of embeddings; use the model's own tokenizer"
    )]
    TooFewRows {
        /// Ids of the tokenizer.
        size: usize,
        /// Rows of the model.
        rows: usize,
    },
    /// More rows than any model has.
    #[error("{rows} rows are more than the limit of {limit}")]
    TooManyRows {
        /// Rows asked for.
        rows: usize,
        /// Most rows accepted.
        limit: usize,
    },
    /// A tokenizer that the vocabulary of a GGUF file cannot describe.
    #[error("this tokenizer cannot be written as a GGUF vocabulary: {reason}")]
    NotAVocabulary {
        /// What cannot be described.
        reason: String,
    },
}
