//! Tokens that are found in the text before it is cut into words: special tokens, runs of spaces and others.

/// Tokens to look for; at the first position where one occurs, the longest matches.
#[derive(Debug, Default)]
pub(super) struct AddedTokens {
    /// Sorted by their first two bytes, longer ones first.
    tokens: Vec<(Vec<u8>, u32)>,
    /// Whether a token begins with these two bytes.
    begins: Vec<u64>,
}

/// A part of a text.
pub(super) enum InputPart<'t> {
    /// Text between tokens; never empty.
    Text(&'t str),
    /// A token.
    Token(u32),
}

impl AddedTokens {
    /// Empty tokens are left out.
    pub(super) fn new(tokens: impl IntoIterator<Item = (String, u32)>) -> AddedTokens {
        let mut tokens: Vec<_> =
            tokens.into_iter().filter(|(text, _)| !text.is_empty()).map(|(text, id)| (text.into_bytes(), id)).collect();
        tokens.sort_by_key(|(text, _)| (text[0], std::cmp::Reverse(text.len())));
        let mut begins = Vec::new();
        if !tokens.is_empty() {
            begins.resize(1 << 10, 0u64);
        }
        for (text, _) in &tokens {
            let seconds = text.get(1).map_or(0..=255, |second| *second..=*second);
            for second in seconds {
                let pair = usize::from(text[0]) << 8 | usize::from(second);
                begins[pair >> 6] |= 1 << (pair & 63);
            }
        }
        AddedTokens { tokens, begins }
    }

    /// Drops the tokens for which `keep` returns false.
    pub(super) fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.tokens.retain(|(_, id)| keep(*id));
    }

    /// Cuts a text at the tokens in it.
    pub(super) fn cut<'t>(&self, text: &'t str, mut part: impl FnMut(InputPart<'t>)) {
        let mut done = 0;
        if !self.tokens.is_empty() {
            let bytes = text.as_bytes();
            let mut at = 0;
            while at < bytes.len() {
                let second = bytes.get(at + 1).copied().unwrap_or(0);
                let pair = usize::from(bytes[at]) << 8 | usize::from(second);
                if self.begins[pair >> 6] >> (pair & 63) & 1 == 1
                    && let Some((length, id)) = self.longest(&bytes[at..])
                {
                    if at > done {
                        part(InputPart::Text(&text[done..at]));
                    }
                    part(InputPart::Token(id));
                    at += length;
                    done = at;
                } else {
                    at += 1;
                }
            }
        }
        if done < text.len() {
            part(InputPart::Text(&text[done..]));
        }
    }

    fn longest(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        let from = self.tokens.partition_point(|(text, _)| text[0] < bytes[0]);
        let same = self.tokens[from..].iter().take_while(|(text, _)| text[0] == bytes[0]);
        let mut fitting = same.filter(|(text, _)| bytes.starts_with(text));
        fitting.next().map(|(text, id)| (text.len(), *id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(tokens: &[(&str, u32)], text: &str) -> Vec<String> {
        let added = AddedTokens::new(tokens.iter().map(|(text, id)| (text.to_string(), *id)));
        let mut parts = Vec::new();
        added.cut(text, |part| {
            parts.push(match part {
                InputPart::Text(text) => text.to_owned(),
                InputPart::Token(id) => format!("#{id}"),
            });
        });
        parts
    }

    #[test]
    fn the_first_and_there_the_longest() {
        let tokens = [("  ", 2), ("   ", 3), ("<|end|>", 7), ("<", 8), ("", 9), ("é", 5)];
        for (text, expected) in [
            ("", &[][..]),
            ("a b", &["a b"]),
            ("     ", &["#3", "#2"]),
            ("a    b", &["a", "#3", " b"]),
            ("<|end|>", &["#7"]),
            ("<|end|", &["#8", "|end|"]),
            ("x<", &["x", "#8"]),
            ("<<|end|>é", &["#8", "#7", "#5"]),
        ] {
            assert_eq!(parts(&tokens, text), expected, "{text:?}");
        }
        assert_eq!(parts(&[], "  "), ["  "]);
    }
}
