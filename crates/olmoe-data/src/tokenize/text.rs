//! The ids of a document's text, with its beginning and end tokens, and the encoding by paragraphs.

use super::TokenizeSettings;
use crate::white_space::without_mark;
use crate::{Tokenizer, TokenizerError};

/// Adds the beginning and end tokens to the ids of a text.
pub(super) fn bounded(mut ids: Vec<u32>, settings: &TokenizeSettings) -> Vec<u32> {
    if let (Some(bos), Some(first)) = (settings.bos, ids.first())
        && *first != bos
    {
        ids.insert(0, bos);
    }
    if let (Some(eos), Some(last)) = (settings.eos, ids.last())
        && *last != eos
    {
        ids.push(eos);
    }
    ids
}

/// Encodes the paragraphs of a text one by one: a paragraph is the newlines before it and everything up to the next
/// newline. Where the tokenizer puts a space before every text, only the first paragraph gets one.
pub(super) fn encode_paragraphs(tokenizer: &Tokenizer, spaced: bool, text: &str) -> Result<Vec<u32>, TokenizerError> {
    let bytes = text.as_bytes();
    let mut ids = Vec::new();
    let mut start = 0;
    for at in 1..=bytes.len() {
        let ends = bytes.get(at).is_none_or(|byte| *byte == b'\n' && bytes[at - 1] != b'\n');
        if ends {
            let paragraph = &text[start..at];
            if spaced && start > 0 {
                ids.extend(tokenizer.encode(&format!(" {paragraph}"))?.into_iter().skip(1));
            } else {
                ids.extend(tokenizer.encode(paragraph)?);
            }
            start = at;
        }
    }
    Ok(ids)
}

/// Whether a tokenizer puts a space before a text.
pub(super) fn puts_space_before(tokenizer: &Tokenizer) -> bool {
    let json: serde_json::Value = serde_json::from_slice(without_mark(tokenizer.json())).unwrap_or_default();
    let parts = |key: &str, list: &str| match json.get(key) {
        Some(part) if part["type"] == "Sequence" => part[list].as_array().cloned().unwrap_or_default(),
        Some(part) => vec![part.clone()],
        None => Vec::new(),
    };
    parts("pre_tokenizer", "pretokenizers").iter().any(|part| part["add_prefix_space"] == true)
        || parts("normalizer", "normalizers").iter().any(|part| part["type"] == "Prepend")
}
