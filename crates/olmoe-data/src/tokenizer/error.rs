//! What can be wrong with a tokenizer, one variant per cause.

use std::path::PathBuf;

use thiserror::Error;

/// Why a tokenizer could not be read, written or used.
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
    /// A folder without a tokenizer.
    #[error("{} holds no tokenizer.json; give a folder that holds one, or the file itself", path.display())]
    NoTokenizerJson {
        /// The folder.
        path: PathBuf,
    },
    /// A file that was read but has invalid content.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        source: Box<TokenizerError>,
    },
    /// A file that is larger than any tokenizer.
    #[error("the tokenizer has more than {limit} bytes; give a tokenizer.json, not a data file")]
    TooLong {
        /// The largest accepted size in bytes.
        limit: usize,
    },
    /// A file that is not a tokenizer in JSON.
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
    /// An added token whose id differs from that of the vocabulary, or of the order of added tokens.
    #[error(
        "the added token {token:?} has the id {said} in its entry, but its place in the vocabulary gives it {given}"
    )]
    AddedTokenId {
        /// The token.
        token: String,
        /// The id in its entry.
        said: u32,
        /// The id that it gets.
        given: u32,
    },
    /// A merge that does not consist of two tokens.
    #[error("merge {index} is {text:?}; expected two tokens with a space between them")]
    MergeSyntax {
        /// Which merge, from 0.
        index: usize,
        /// Its text.
        text: String,
    },
    /// A merge whose parts or result are not in the vocabulary.
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
    /// An error of the tokenizers library.
    #[error("the tokenizer cannot {action}: {message}")]
    Refused {
        /// The attempted action.
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
        /// The value of `tokenizer.ggml.model`.
        found: String,
    },
    /// An unknown way to cut words.
    #[error(
        "the pre-tokenizer {found:?} is not supported; supported are {supported}. Give the model's tokenizer.json instead"
    )]
    UnsupportedPre {
        /// The value of `tokenizer.ggml.pre`.
        found: String,
        /// The supported names.
        supported: String,
    },
    /// A list with another length than there are tokens.
    #[error("the vocabulary has {tokens} tokens but {found} {what}; expected one for each token")]
    Lengths {
        /// The name of the list.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The number of tokens.
        tokens: usize,
    },
    /// More tokens than the model has rows of embeddings.
    #[error(
        "the tokenizer has {size} ids, but the model only {rows} rows of embeddings; use the model's own tokenizer"
    )]
    TooFewRows {
        /// The number of ids of the tokenizer.
        size: usize,
        /// The number of rows of the model.
        rows: usize,
    },
    /// More rows than any model has.
    #[error("{rows} rows are more than the limit of {limit}")]
    TooManyRows {
        /// The number of rows asked for.
        rows: usize,
        /// The limit.
        limit: usize,
    },
    /// A tokenizer that a GGUF vocabulary cannot describe.
    #[error("this tokenizer cannot be written as a GGUF vocabulary: {reason}")]
    NotAVocabulary {
        /// What cannot be described.
        reason: String,
    },
}
