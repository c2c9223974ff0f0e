//! The encoder for byte-level vocabularies, OLMoE's among them. It gives the same ids as the tokenizers library in a
//! fraction of the time, because it does not track every character.

use std::sync::Mutex;

use ahash::AHashMap;

use super::Piece;
use super::added::{AddedTokens, InputPart};
use super::merges::{Merges, Work};
use super::normal_form;
use super::words::Words;

pub(super) struct ByteLevel {
    /// Whether the text is normalised to form C.
    pub(super) compose: bool,
    pub(super) words: Words,
    /// Tokens that are looked for in the text before normalisation.
    pub(super) raw: AddedTokens,
    /// Tokens that are looked for after normalisation.
    pub(super) composed: AddedTokens,
    /// The lengths of all these tokens.
    pub(super) lengths: AHashMap<u32, usize>,
    pub(super) merges: Merges,
    /// Scratch memory of encoding, kept from one call to the next.
    pub(super) idle: Mutex<Vec<Work>>,
}

impl ByteLevel {
    /// Lends scratch memory for encoding.
    pub(super) fn with_work<R>(&self, run: impl FnOnce(&mut Work) -> R) -> R {
        let idle = || self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let kept = idle().pop();
        let mut work = kept.unwrap_or_else(Work::new);
        let result = run(&mut work);
        idle().push(work);
        result
    }

    /// Appends the ids of a text.
    pub(super) fn encode(&self, text: &str, work: &mut Work, ids: &mut Vec<u32>) {
        self.raw.cut(text, |part| match part {
            InputPart::Token(id) => ids.push(id),
            InputPart::Text(text) => self.encode_part(text, work, ids),
        });
    }

    fn encode_part(&self, text: &str, work: &mut Work, ids: &mut Vec<u32>) {
        let text = if self.compose { normal_form::composed(text) } else { text.into() };
        self.composed.cut(&text, |part| match part {
            InputPart::Token(id) => ids.push(id),
            InputPart::Text(text) => self.words.cut(text, |word| self.merges.encode(word, work, ids)),
        });
    }

    /// Encodes a text with the range of each token. Tokens tile the normalised text, so lengths are enough.
    pub(super) fn encode_with_offsets(&self, text: &str, length_of: impl Fn(u32) -> usize) -> Vec<Piece> {
        let length_of = |id| self.lengths.get(&id).copied().unwrap_or_else(|| length_of(id));
        let mut pieces = Vec::new();
        let mut ids = Vec::new();
        self.with_work(|work| {
            let mut start = 0;
            self.raw.cut(text, |part| match part {
                InputPart::Token(id) => {
                    let end = start + length_of(id);
                    pieces.push(Piece { id, start, end });
                    start = end;
                }
                InputPart::Text(text) => {
                    ids.clear();
                    self.encode_part(text, work, &mut ids);
                    let origins = if self.compose { normal_form::origins(text) } else { None };
                    let mut at = 0;
                    for id in &ids {
                        let range = at..at + length_of(*id);
                        at = range.end;
                        let (first, last) = match origins.as_ref().and_then(|origins| origins.get(range.clone())) {
                            Some([(first, _), .., (_, last)] | [(first, last)]) => (*first, *last),
                            _ => (range.start, range.end),
                        };
                        pieces.push(Piece { id: *id, start: start + first, end: start + last });
                    }
                    start += text.len();
                }
            });
        });
        pieces
    }
}
