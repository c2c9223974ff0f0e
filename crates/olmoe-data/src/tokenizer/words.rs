//! Cutting text into the words that merges never cross; known regular expressions are implemented by hand.
//!
//! `\p{L}` and `\p{N}` are those of the regex crate (its Unicode version); `\s` is White_Space.

use std::sync::LazyLock;

use regex_syntax::hir::{Class as HirClass, HirKind};

/// The character classes of the regular expressions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Other,
    Letter,
    Number,
    Space,
}

/// Classes of the characters below the end of the table; all characters above are [`Class::Other`].
static CLASSES: LazyLock<Vec<Class>> = LazyLock::new(|| {
    let mut table = Vec::new();
    for (class, expression) in [(Class::Letter, r"\p{L}"), (Class::Number, r"\p{N}"), (Class::Space, r"\s")] {
        let parsed = regex_syntax::parse(expression);
        let Ok(HirKind::Class(HirClass::Unicode(ranges))) = parsed.as_ref().map(|hir| hir.kind()) else {
            unreachable!("{expression} is a class of characters");
        };
        for range in ranges.ranges() {
            let (first, last) = (range.start() as usize, range.end() as usize);
            if table.len() <= last {
                table.resize(last + 1, Class::Other);
            }
            table[first..=last].fill(class);
        }
    }
    table
});

/// A way to cut text into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// As GPT-2.
    Gpt2,
    /// As GPT-2, after every numeric character has become a word of its own.
    SingleDigits,
    /// As cl100k, with limited runs of numeric characters.
    Cl100k {
        /// Most characters of a run.
        digits: usize,
    },
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
pub(super) const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As [`CL100K`], with every numeric character alone.
pub(super) const CL100K_SINGLE_DIGITS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Words {
    /// Calls `word` for each word in order. Concatenated, the words are the text.
    pub(super) fn cut<'t>(self, text: &'t str, mut word: impl FnMut(&'t [u8])) {
        match self {
            Words::Gpt2 => cut_at_ends(text, &mut word, Scan::gpt2),
            Words::Cl100k { digits } => cut_at_ends(text, &mut word, |scan, at| scan.cl100k(at, digits)),
            Words::SingleDigits => {
                let scan = Scan::new(text);
                let mut at = 0;
                while at < text.len() {
                    let number = scan.first_number(at);
                    cut_at_ends(&text[at..number], &mut word, Scan::gpt2);
                    at = number + scan.class(number).1;
                    if at > number {
                        word(&scan.bytes[number..at]);
                    }
                }
            }
        }
    }
}

/// Calls `word` for each word, whose end `end` finds.
#[inline(always)]
fn cut_at_ends<'t>(text: &'t str, word: &mut impl FnMut(&'t [u8]), end: impl Fn(&Scan<'t>, usize) -> usize) {
    let scan = Scan::new(text);
    let mut at = 0;
    while at < text.len() {
        let next = end(&scan, at);
        word(&scan.bytes[at..next]);
        at = next;
    }
}

struct Scan<'t> {
    text: &'t str,
    bytes: &'t [u8],
    classes: &'t [Class],
}

impl<'t> Scan<'t> {
    fn new(text: &'t str) -> Scan<'t> {
        Scan { text, bytes: text.as_bytes(), classes: &CLASSES }
    }

    /// The class and length of the character at a byte offset; at the end of the text, length 0.
    #[inline(always)]
    fn class(&self, at: usize) -> (Class, usize) {
        match self.bytes.get(at) {
            Some(byte) if byte.is_ascii() => (self.classes[usize::from(*byte)], 1),
            _ => self.wide_class(at),
        }
    }

    #[inline(never)]
    fn wide_class(&self, at: usize) -> (Class, usize) {
        let letter = self.text.get(at..).and_then(|rest| rest.chars().next());
        letter.map_or((Class::Other, 0), |letter| {
            (self.classes.get(letter as usize).copied().unwrap_or(Class::Other), letter.len_utf8())
        })
    }

    /// The end of the run of a class that may begin at a byte offset.
    #[inline(always)]
    fn run(&self, mut at: usize, class: Class) -> usize {
        loop {
            let (found, length) = self.class(at);
            if length == 0 || found != class {
                return at;
            }
            at += length;
        }
    }

    /// The end of the GPT-2 word that begins at a byte:
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
    #[inline(always)]
    fn gpt2(&self, at: usize) -> usize {
        if self.bytes[at] == b'\'' {
            match self.bytes.get(at + 1..) {
                Some([b's' | b't' | b'm' | b'd', ..]) => return at + 2,
                Some([b'r' | b'v', b'e', ..] | [b'l', b'l', ..]) => return at + 3,
                _ => {}
            }
        }
        let space = usize::from(self.bytes[at] == b' ');
        let (class, length) = self.class(at + space);
        if length == 0 || class == Class::Space { self.spaces(at) } else { self.run(at + space + length, class) }
    }

    /// The end of the cl100k word that begins at a byte.
    #[inline(always)]
    fn cl100k(&self, at: usize, digits: usize) -> usize {
        if self.bytes[at] == b'\''
            && let Some(end) = self.contraction(at)
        {
            return end;
        }
        let (class, length) = self.class(at);
        match class {
            Class::Letter => return self.run(at + length, Class::Letter),
            Class::Number => {
                let mut end = at + length;
                for _ in 1..digits {
                    match self.class(end) {
                        (Class::Number, length) => end += length,
                        _ => break,
                    }
                }
                return end;
            }
            Class::Other | Class::Space => {}
        }
        if !matches!(self.bytes[at], b'\r' | b'\n') {
            let letters = self.run(at + length, Class::Letter);
            if letters > at + length {
                return letters;
            }
        }
        let space = usize::from(self.bytes[at] == b' ');
        let others = self.run(at + space, Class::Other);
        if others > at + space {
            return others + self.line_ends(others);
        }
        let spaces = self.run(at, Class::Space);
        match self.bytes[at..spaces].iter().rposition(|byte| matches!(byte, b'\r' | b'\n')) {
            Some(last) => at + last + 1,
            None => self.spaces(at),
        }
    }

    fn line_ends(&self, at: usize) -> usize {
        self.bytes[at..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
    }

    /// The end of `(?i:'s|'t|'re|'ve|'m|'ll|'d)`; without regard to case, ſ is an s.
    fn contraction(&self, at: usize) -> Option<usize> {
        let rest = self.bytes.get(at + 1..)?;
        let two = [rest.first()?.to_ascii_lowercase(), rest.get(1).map_or(0, u8::to_ascii_lowercase)];
        match two {
            [b's' | b't' | b'm' | b'd', _] => Some(at + 2),
            [b'r' | b'v', b'e'] | [b'l', b'l'] => Some(at + 3),
            _ if rest.starts_with("ſ".as_bytes()) => Some(at + 3),
            _ => None,
        }
    }

    /// The end of `\s+(?!\S)|\s+`: a run of spaces leaves its last one to the word that follows.
    fn spaces(&self, at: usize) -> usize {
        let (mut last, mut end) = (at, at);
        loop {
            let (class, length) = self.class(end);
            if length == 0 {
                return end;
            }
            if class != Class::Space {
                return if last > at { last } else { end };
            }
            (last, end) = (end, end + length);
        }
    }

    fn first_number(&self, mut at: usize) -> usize {
        loop {
            let (class, length) = self.class(at);
            if length == 0 || class == Class::Number {
                return at;
            }
            at += length;
        }
    }
}
