//! Text from tokens that arrive one by one.

use std::ops::Deref;

use super::{Tokenizer, TokenizerKind, guarded};

/// Decodes tokens as they arrive, never a partial character. The text of all tokens together is what
/// [`Tokenizer::decode`] gives, without the text of the tokens before the stream began.
///
/// `T` holds the tokenizer: a reference, or an `Arc` for a stream that outlives the function that made it.
pub struct DecodeStream<T> {
    tokenizer: T,
    skip_special: bool,
    /// The bytes of an incomplete character: at most three.
    bytes: Vec<u8>,
    /// For other kinds of tokenizers: the tokens that the next text depends on.
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
    /// How many U+FFFD stand for an incomplete character at the end of the text before; it may still be completed.
    halves: usize,
}

impl<T: Deref<Target = Tokenizer>> DecodeStream<T> {
    /// A stream for tokens after those of `before`; see [`Tokenizer::stream_after`].
    pub fn new(tokenizer: T, before: &[u32], skip_special: bool) -> DecodeStream<T> {
        let (bytes, ids, prefix) = Default::default();
        let mut stream =
            DecodeStream { tokenizer, skip_special, bytes, ids, prefix, prefix_index: before.len(), halves: 0 };
        match &stream.tokenizer.kind {
            TokenizerKind::ByteLevel(_) => {
                before.iter().for_each(|id| _ = stream.push(*id));
                stream.halves = usize::from(!stream.bytes.is_empty());
            }
            TokenizerKind::Library(_) => {
                let text = stream.tokenizer.decode(before, skip_special).unwrap_or_default();
                let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
                stream.halves = text[whole.len()..].chars().count();
                stream.prefix = whole.to_owned();
                stream.ids = before.to_vec();
            }
        }
        stream
    }

    /// Adds a token; returns the text that is now complete, often empty. Bytes that can never form a character become
    /// U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        let text = match &self.tokenizer.kind {
            TokenizerKind::ByteLevel(_) => {
                if let Some(bytes) = self.tokenizer.table.decoded(id, self.skip_special) {
                    self.bytes.extend_from_slice(bytes);
                }
                self.take_complete()
            }
            TokenizerKind::Library(library) => {
                let (ids, prefix, index) = (&mut self.ids, &mut self.prefix, &mut self.prefix_index);
                let step = || {
                    tokenizers::tokenizer::step_decode_stream(library, vec![id], self.skip_special, ids, prefix, index)
                };
                guarded("decode", step).ok().flatten().unwrap_or_default()
            }
        };
        self.without_halves(text)
    }

    /// The remaining text: U+FFFD for a character that was never completed.
    pub fn finish(mut self) -> String {
        let text = match &self.tokenizer.kind {
            TokenizerKind::ByteLevel(_) => String::from_utf8_lossy(&self.bytes).into_owned(),
            TokenizerKind::Library(_) => {
                let rest = self.tokenizer.decode(&self.ids, self.skip_special).unwrap_or_default();
                rest.strip_prefix(&self.prefix).unwrap_or("").to_owned()
            }
        };
        self.without_halves(text)
    }

    /// Removes from the first text what stands for an incomplete character that came before and was not completed.
    fn without_halves(&mut self, text: String) -> String {
        if self.halves == 0 || text.is_empty() {
            return text;
        }
        let mut rest = text.as_str();
        for _ in 0..std::mem::take(&mut self.halves) {
            rest = rest.strip_prefix(char::REPLACEMENT_CHARACTER).unwrap_or(rest);
        }
        rest.to_owned()
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut incomplete = 0;
        let mut chunks = self.bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && may_continue(invalid) {
                incomplete = invalid.len();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.bytes.drain(..self.bytes.len() - incomplete);
        text
    }
}

/// Whether further bytes could complete these to a character.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
