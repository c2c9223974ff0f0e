//! The metadata of a tokenizer (`tokenizer.ggml.*`), to and from a vocabulary.

use olmoe_data::{Pre, TokenKind, TokenizerError, Vocabulary};

use super::value::{Metadata, MetadataValue, ValueType};

/// Why the metadata cannot be read as a vocabulary.
#[derive(Debug, thiserror::Error)]
pub enum GgufVocabularyError {
    /// A value of another type.
    #[error("{key} is {found}, expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Byte-level BPE without its merges, which would encode every text as single bytes.
    #[error(
        "{MERGES} is missing, so words cannot be put together; the file was made by an old converter. Get a newer one, or \
         give the tokenizer.json of the model with --tokenizer where a command takes one"
    )]
    NoMerges,
    /// A way to cut words that is not known.
    #[error("tokenizer.ggml.pre: {0}")]
    Pre(TokenizerError),
}

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const BOS: &str = "tokenizer.ggml.bos_token_id";
pub(super) const EOS: &str = "tokenizer.ggml.eos_token_id";
pub(super) const PAD: &str = "tokenizer.ggml.padding_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const TEMPLATE: &str = "tokenizer.chat_template";
/// Byte-level BPE.
const BPE: &str = "gpt2";
/// The model of a file without a tokenizer.
const NONE: &str = "no_vocab";

/// The vocabulary of a file; `None` if it has no tokenizer.
pub(crate) fn read(metadata: &Metadata) -> Result<Option<Vocabulary>, GgufVocabularyError> {
    let wrong = |key, expected| {
        let found = metadata.get(key).map_or("missing".to_owned(), MetadataValue::to_string);
        GgufVocabularyError::Value { key, found, expected }
    };
    let text = |key| match metadata.get(key) {
        None => Ok(None),
        Some(value) => value.as_text().map(Some).ok_or_else(|| wrong(key, "a text")),
    };
    let texts = |key| match metadata.get(key) {
        None => Ok(None),
        Some(value) => value.as_texts().map(Some).ok_or_else(|| wrong(key, "a list of texts")),
    };
    let id = |key| match metadata.get(key) {
        None => Ok(None),
        Some(value) => match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok(Some(id)),
            None => Err(wrong(key, "a token id")),
        },
    };
    let model = match text(MODEL)? {
        None | Some(NONE) => return Ok(None),
        Some(model) => model.to_owned(),
    };
    let kinds = match metadata.get(KINDS) {
        None => Vec::new(),
        Some(MetadataValue::Array(_, values)) => {
            let kind = |value: &MetadataValue| match value {
                MetadataValue::I32(code) => TokenKind::from_code(*code),
                MetadataValue::U32(code) => i32::try_from(*code).ok().and_then(TokenKind::from_code),
                _ => None,
            };
            let kinds: Option<Vec<TokenKind>> = values.iter().map(kind).collect();
            kinds.ok_or_else(|| wrong(KINDS, "a list of token types from 1 to 6"))?
        }
        Some(_) => return Err(wrong(KINDS, "a list of token types from 1 to 6")),
    };
    let mut ends = Vec::new();
    for key in Vocabulary::END_KEYS {
        if !Vocabulary::is_list(key) {
            ends.extend(id(key)?.map(|id| (key, id)));
            continue;
        }
        let Some(value) = metadata.get(key) else { continue };
        let ids = value.as_ids().ok_or_else(|| wrong(key, "a list of token ids"))?;
        ends.extend(ids.into_iter().map(|id| (key, id)));
    }
    let pre = Pre::from_name(text(PRE)?).map_err(GgufVocabularyError::Pre)?;
    let add_bos = match metadata.get(ADD_BOS) {
        None => pre.adds_bos(),
        Some(MetadataValue::Bool(add)) => *add,
        Some(_) => return Err(wrong(ADD_BOS, "true or false")),
    };
    Ok(Some(Vocabulary {
        model,
        pre,
        tokens: texts(TOKENS)?.ok_or_else(|| wrong(TOKENS, "a list of texts"))?,
        kinds,
        merges: texts(MERGES)?.unwrap_or_default(),
        bos: id(BOS)?,
        eos: id(EOS)?,
        pad: id(PAD)?,
        unk: id(UNKNOWN)?,
        ends,
        add_bos,
        chat_template: text(TEMPLATE)?.map(str::to_owned),
    }))
}

/// Checks that text can be encoded with a vocabulary: a vocabulary that has no merges says so with an empty list.
pub(crate) fn check_merges(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<(), GgufVocabularyError> {
    match metadata.get(MERGES) {
        None if vocabulary.model == BPE => Err(GgufVocabularyError::NoMerges),
        _ => Ok(()),
    }
}

/// Appends a vocabulary, or the entry for none, and the special tokens.
pub(crate) fn write(vocabulary: Option<&Vocabulary>, metadata: &mut Metadata) {
    let mut put = |key: &str, value: MetadataValue| {
        metadata.insert(key, value);
    };
    let Some(vocabulary) = vocabulary else {
        put(MODEL, MetadataValue::Text(NONE.to_owned()));
        return;
    };
    put(MODEL, MetadataValue::Text(vocabulary.model.clone()));
    put(PRE, MetadataValue::Text(vocabulary.pre.name().to_owned()));
    put(TOKENS, MetadataValue::texts(&vocabulary.tokens));
    if !vocabulary.kinds.is_empty() {
        let kinds = vocabulary.kinds.iter().map(|kind| MetadataValue::I32(kind.code())).collect();
        put(KINDS, MetadataValue::Array(ValueType::I32, kinds));
    }
    put(MERGES, MetadataValue::texts(&vocabulary.merges));
    if let Some(id) = vocabulary.unk {
        put(UNKNOWN, MetadataValue::U32(id));
    }
    for key in Vocabulary::END_KEYS {
        let ids: Vec<MetadataValue> =
            vocabulary.ends.iter().filter(|end| end.0 == key).map(|end| MetadataValue::U32(end.1)).collect();
        match ids.first() {
            None => {}
            Some(_) if Vocabulary::is_list(key) => put(key, MetadataValue::Array(ValueType::U32, ids)),
            Some(first) => put(key, first.clone()),
        }
    }
    put(ADD_BOS, MetadataValue::Bool(vocabulary.add_bos));
    if let Some(template) = &vocabulary.chat_template {
        put(TEMPLATE, MetadataValue::Text(template.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_a_text_begins_with_bos_follows_the_way_to_cut_words() {
        let adds = |pre: Option<&str>, said: Option<bool>| {
            let mut metadata = Metadata::default();
            metadata.insert(MODEL, MetadataValue::Text("gpt2".to_owned()));
            metadata.insert(TOKENS, MetadataValue::texts(&["a".to_owned()]));
            if let Some(pre) = pre {
                metadata.insert(PRE, MetadataValue::Text(pre.to_owned()));
            }
            if let Some(said) = said {
                metadata.insert(ADD_BOS, MetadataValue::Bool(said));
            }
            read(&metadata).unwrap().unwrap().add_bos
        };
        // Of the names accepted here, llama.cpp puts bos before texts for those of Llama 3 unless the file says
        // otherwise.
        for pre in ["llama-bpe", "llama3", "llama-v3"] {
            assert!(adds(Some(pre), None) && !adds(Some(pre), Some(false)), "{pre}");
        }
        let others = [
            "default",
            "gpt-2",
            "gpt2",
            "olmo",
            "mpt",
            "smollm",
            "starcoder",
            "dbrx",
            "smaug-bpe",
            "qwen2",
            "stablelm2",
        ];
        for pre in others {
            assert!(!adds(Some(pre), None) && adds(Some(pre), Some(true)), "{pre}");
        }
        assert!(!adds(None, None));
    }
}
