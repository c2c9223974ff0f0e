//! Text from tokens, up to a stop string.

use std::sync::Arc;

use olmoe_data::{DecodeStream, Tokenizer};

/// The text of one sample while it is generated. Text that may begin a stop string is held back until that is decided.
///
/// The text is searched character by character, so the result does not depend on the boundaries of tokens.
pub(crate) struct SampleText {
    stream: Option<DecodeStream<Arc<Tokenizer>>>,
    stops: Vec<String>,
    held: String,
    /// Bytes of `held` that were searched.
    searched: usize,
}

/// The text that a token completes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TextPiece {
    /// Text that is not held back any more.
    pub(crate) text: String,
    /// The stop string that ends the text, if it has ended.
    pub(crate) stop: Option<String>,
}

impl SampleText {
    /// The text after the tokens `before`.
    pub(crate) fn new(
        tokenizer: Option<Arc<Tokenizer>>,
        before: &[u32],
        special: bool,
        stops: Vec<String>,
    ) -> SampleText {
        let stream = tokenizer.map(|tokenizer| DecodeStream::new(tokenizer, before, !special));
        SampleText { stream, stops, held: String::new(), searched: 0 }
    }

    /// Adds a token. A stop string ends the text only if `may_stop` is set; an earlier one is part of the text.
    pub(crate) fn push(&mut self, id: u32, may_stop: bool) -> TextPiece {
        let text = self.stream.as_mut().map_or(String::new(), |stream| stream.push(id));
        self.add(&text, may_stop)
    }

    /// The rest of the text, after the last token.
    pub(crate) fn finish(&mut self, may_stop: bool) -> TextPiece {
        let text = self.stream.take().map_or(String::new(), DecodeStream::finish);
        let mut piece = self.add(&text, may_stop);
        if piece.stop.is_none() {
            piece.text.push_str(&std::mem::take(&mut self.held));
        }
        piece
    }

    fn add(&mut self, text: &str, may_stop: bool) -> TextPiece {
        if self.stops.is_empty() || !may_stop {
            let mut text_before = std::mem::take(&mut self.held);
            text_before.push_str(text);
            self.searched = 0;
            return TextPiece { text: text_before, stop: None };
        }
        self.held.push_str(text);
        for end in (self.searched + 1..=self.held.len()).filter(|end| self.held.is_char_boundary(*end)) {
            let ended = self.stops.iter().filter(|stop| self.held[..end].ends_with(stop.as_str()));
            if let Some(stop) = ended.max_by_key(|stop| stop.len()).cloned() {
                let mut text = std::mem::take(&mut self.held);
                text.truncate(end - stop.len());
                return TextPiece { text, stop: Some(stop) };
            }
        }
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest);
        let mut candidates = (first..self.held.len()).filter(|start| self.held.is_char_boundary(*start));
        let begins = |start: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*start..]));
        let start = candidates.find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(start);
        let text = std::mem::replace(&mut self.held, rest);
        self.searched = self.held.len();
        TextPiece { text, stop: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds pieces of text, as tokens would.
    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let mut text = SampleText::new(None, &[], false, stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut out = Vec::new();
        for piece in pieces {
            let piece = text.add(piece, true);
            out.push(piece.text);
            if piece.stop.is_some() {
                return (out, piece.stop);
            }
        }
        let last = text.finish(true);
        out.push(last.text);
        (out, last.stop)
    }

    #[test]
    fn stop_strings_over_the_borders_of_tokens() {
        for (stops, pieces, expected, stop) in [
            (&["END"][..], &["a", "E", "N", "D", "b"][..], &["a", "", "", ""][..], Some("END")),
            (&["END"], &["aE", "Nx", "END"], &["a", "ENx", ""], Some("END")),
            (&["END"], &["xEN"], &["x", "EN"], None),
            (&["END"], &["one END two"], &["one "], Some("END")),
            // The beginning of a stop string inside another beginning of it.
            (&["aab"], &["a", "a", "a", "b"], &["", "", "a", ""], Some("aab")),
            (&["\n\n"], &["a\n", "b\n", "\nc"], &["a", "\nb", ""], Some("\n\n")),
            // Characters of several bytes, cut where a character is.
            (&["真谛"], &["生活的真", "谛是"], &["生活的", ""], Some("真谛")),
            (&["真谛"], &["真", "真", "诚"], &["", "真", "真诚", ""], None),
            (&["é!"], &["caf", "é", "?"], &["caf", "", "é?", ""], None),
            // Several: the one that ends first; of those that end together the longer.
            (&["b", "abc"], &["xab", "c"], &["xa"], Some("b")),
            (&["c", "abc"], &["xab", "c"], &["x", ""], Some("abc")),
            (&["never"], &[], &[""], None),
        ] {
            let (got, by) = run(stops, pieces);
            assert_eq!(
                (got.as_slice(), by.as_deref()),
                (&expected.iter().map(|x| (*x).to_owned()).collect::<Vec<_>>()[..], stop),
                "{stops:?} {pieces:?}"
            );
        }
    }

    #[test]
    fn the_borders_of_tokens_change_nothing() {
        let text = "aéab真abé真真aéb真谛ab";
        let letters: Vec<char> = text.chars().collect();
        for stops in [&["é真真a"][..], &["b真谛", "真a"], &["abé真", "é真"], &["nothing", "真谛ac"]] {
            let whole = run(stops, &[text]);
            for cuts in 0u32..1 << (letters.len() - 1) {
                let mut pieces = vec![String::new()];
                for (i, letter) in letters.iter().enumerate() {
                    if i > 0 && cuts >> (i - 1) & 1 == 1 {
                        pieces.push(String::new());
                    }
                    pieces.last_mut().unwrap().push(*letter);
                }
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                let got = run(stops, &pieces);
                assert_eq!((got.0.concat(), got.1), (whole.0.concat(), whole.1.clone()), "{stops:?} {pieces:?}");
            }
        }
    }

    #[test]
    fn a_stop_string_that_comes_too_early_is_text() {
        let mut text = SampleText::new(None, &[], false, vec!["END".into()]);
        assert_eq!(text.add("END", false), TextPiece { text: "END".into(), stop: None });
        assert_eq!(text.add("E", true), TextPiece { text: "".into(), stop: None });
        assert_eq!(text.add("ND", true).stop.as_deref(), Some("END"));
    }
}
