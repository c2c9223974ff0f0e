//! Export of a tokenizer as a GGUF vocabulary.

use super::Tokenizer;
use super::definition::{Definition, MAX_TOKENS, Merge};
use super::error::TokenizerError;
use super::vocabulary::{Pre, TokenKind, Vocabulary, padding};
use crate::special_tokens::SpecialTokens;

impl Tokenizer {
    /// The GGUF vocabulary of this tokenizer, for a model with `rows` rows of embeddings. Rows beyond the tokens become
    /// unused tokens, `[PAD…]`; tokens beyond the rows, which were only added to the tokenizer, are left out. Further
    /// end tokens and the chat template are left empty, for the caller to fill in.
    pub fn to_vocabulary(&self, rows: usize, special: &SpecialTokens) -> Result<Vocabulary, TokenizerError> {
        if rows > MAX_TOKENS {
            return Err(TokenizerError::TooManyRows { rows, limit: MAX_TOKENS });
        }
        let unknown = |reason: &str| TokenizerError::NotAVocabulary { reason: reason.to_owned() };
        let definition = Definition::read(&self.json)?;
        // Tokens that were only added to the tokenizer (`[PAD]`) may have no row: the model never generates them.
        let of_model = definition.bpe.iter().flat_map(|bpe| bpe.vocab.values());
        if of_model.max().is_some_and(|last| *last as usize >= rows) {
            return Err(TokenizerError::TooFewRows { size: self.size(), rows });
        }
        if definition.byte_level().is_none() && definition.pre_tokenizer != Pre::Default.json() {
            return Err(unknown("it is not byte-level BPE with words cut in a way that GGUF files can name"));
        }
        let pre = Pre::of(&definition)
            .ok_or_else(|| unknown("no `tokenizer.ggml.pre` stands for its normaliser and its way to cut words"))?;
        let (bos, add_bos) = match (self.before_text(), special.bos) {
            ([], bos) => (bos, false),
            ([id], None) => (Some(*id), true),
            ([id], Some(bos)) if *id == bos => (special.bos, true),
            (before, bos) => {
                let found = bos.map_or("missing".to_owned(), |bos| bos.to_string());
                let reason = format!(
                    "it puts the tokens {before:?} before a text, and GGUF can put there `bos` only, which is {found}"
                );
                return Err(TokenizerError::NotAVocabulary { reason });
            }
        };
        let mut kinds = vec![TokenKind::Unused; rows];
        let mut tokens: Vec<String> = (0..rows).map(padding).collect();
        for (id, (token, kind)) in tokens.iter_mut().zip(&mut kinds).enumerate() {
            if let Some(text) = self.token(id as u32) {
                (*token, *kind) = (text.to_owned(), TokenKind::Normal);
            }
        }
        for added in &definition.added {
            // As in llama.cpp's converter, a token that looks like a control token is one.
            let looks = added.content.starts_with("<|") && added.content.ends_with("|>");
            if let Some(kind) = kinds.get_mut(added.id as usize) {
                *kind = if added.special || looks { TokenKind::Control } else { TokenKind::UserDefined };
            }
        }
        let merges = definition.bpe.map(|bpe| bpe.merges).unwrap_or_default();
        let merges = merges.into_iter().map(|Merge(a, b)| format!("{a} {b}")).collect();
        Ok(Vocabulary {
            model: "gpt2".to_owned(),
            pre,
            tokens,
            kinds,
            merges,
            bos,
            eos: special.eos,
            pad: special.pad,
            unk: special.unk,
            ends: Vec::new(),
            add_bos,
            chat_template: None,
        })
    }
}
