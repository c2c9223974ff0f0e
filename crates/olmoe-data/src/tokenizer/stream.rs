//! Text from tokens that come one by one.

use std::ops::Deref;

use super::{Tokenizer, TokenizerKind, guarded};

/// Makes text of tokens as they come: never half a character, and all together what [`Tokenizer::decode`] gives for all
/// of the tokens, without what it gives for those that came before the stream began.
///
/// `T` holds the tokenizer: a reference, or an `Arc` for a stream that outlives the function that made it.
pub struct DecodeStream<T> {
    tokenizer: T,
    skip_special: bool,
    /// Bytes of a character that is not complete: three at most.
    bytes: Vec<u8>,
    /// For tokenizers of other kinds: the tokens that the next text depends on.
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
    /// U+FFFD that stand for the half character at the end of what came before; it may become whole.
    halves: usize,
}

impl<T: Deref<Target = Tokenizer>> DecodeStream<T> {
    /// A stream for tokens that come after those of `before`, as [`Tokenizer::stream_after`] gives it.
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

    /// Takes a token; returns the text that is complete now, often empty. What can never become a character is U+FFFD.
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

    /// The text of what is left: U+FFFD for a character that was never completed.
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

    /// The first text, without what stands for a half character that came before and has not become whole.
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

/// Whether more bytes could make a character of these.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
