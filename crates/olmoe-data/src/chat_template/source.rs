//! A template's source, rewritten with what the engine supports.
//!
//! - Line breaks become `\n`, as in Jinja2.
//! - `{% generation %}` … `{% endgeneration %}`, a tag that transformers adds, becomes the call of a function with a block.
//! - `a % b`, which formats where `a` is a string, becomes a filter.
//! - A plus sign before an operand is left out.
//! - `{% set a.b = c %}` also names `a` in the assigned value, since otherwise a macro does not see the namespace.
//!
//! Lines stay where they are, so the line of an error is that of the source.

use std::fmt::Write;

/// The function that a block of generation calls, and what it is given.
pub(super) const GENERATION: &str = "__generation";
/// The variable that holds the ranges of these blocks.
pub(super) const ANSWERS: &str = "__answers";
/// The filter that stands for the operator `%`.
pub(super) const REMAINDER: &str = "__remainder";

/// Words that are not operands. A plus or minus after one of them is a sign, not an operator.
const KEYWORDS: [&str; 9] = ["and", "or", "not", "in", "is", "if", "elif", "else", "for"];

/// The source for the engine, and whether it has generation blocks.
pub(super) fn prepared(source: &str) -> (String, bool) {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    let mut generates = false;
    while let Some((before, tag)) = next_tag(rest) {
        out.push_str(before);
        let length = match tag.as_bytes()[1] {
            b'#' => tag.find("#}").map(|at| at + 2),
            b'%' => raw(tag),
            _ => None,
        };
        rest = match length {
            // A comment or a raw block, which is copied unchanged.
            Some(length) => {
                out.push_str(&tag[..length]);
                &tag[length..]
            }
            None => {
                let tokens = tokens(tag);
                let end = tokens.iter().map(|token| token.before.len() + token.text.len()).sum::<usize>() + 2;
                generates |= rewrite(&tag[..2], &tokens, &mut out);
                &tag[end.min(tag.len())..]
            }
        };
    }
    out.push_str(rest);
    (out, generates)
}

/// The text before the next tag, and the text from there.
fn next_tag(text: &str) -> Option<(&str, &str)> {
    let bytes = text.as_bytes();
    let at = bytes.windows(2).position(|two| matches!(two, b"{{" | b"{%" | b"{#"))?;
    Some(text.split_at(at))
}

/// The length of a raw block, if the tag begins one.
fn raw(tag: &str) -> Option<usize> {
    let of = |tag: &str, name: &str| {
        let inside = tag.strip_prefix("{%")?.trim_start_matches(['-', '+']).trim_start();
        let rest = inside.strip_prefix(name)?.trim_start().trim_start_matches(['-', '+']);
        Some(tag.len() - rest.strip_prefix("%}")?.len())
    };
    let mut at = of(tag, "raw")?;
    loop {
        at += tag[at..].find("{%")?;
        match of(&tag[at..], "endraw") {
            Some(length) => return Some(at + length),
            None => at += 2,
        }
    }
}

/// A token of a tag.
struct Token<'a> {
    /// The white space before the token.
    before: &'a str,
    text: &'a str,
    kind: Kind,
    /// The number of brackets open around the token; a bracket itself counts as outside.
    depth: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Name,
    /// A number or a string.
    Literal,
    /// Any other sign, and the end of the tag.
    Sign,
}

/// The tokens of a tag, up to and including its end; those of the whole rest if the tag has no end.
fn tokens(tag: &str) -> Vec<Token<'_>> {
    let end = if tag.starts_with("{%") { "%}" } else { "}}" };
    let mut tokens = Vec::new();
    let (mut at, mut depth) = (2, 0usize);
    if tag[at..].starts_with(['-', '+']) {
        tokens.push(Token { before: "", text: &tag[at..at + 1], kind: Kind::Sign, depth });
        at += 1;
    }
    while at < tag.len() {
        let rest = tag[at..].trim_start();
        let before = &tag[at..tag.len() - rest.len()];
        at += before.len();
        let Some(first) = rest.chars().next() else {
            tokens.push(Token { before, text: "", kind: Kind::Sign, depth });
            break;
        };
        let ends =
            [end, &format!("-{end}"), &format!("+{end}")].into_iter().find(|end| rest.starts_with(*end)).map(str::len);
        let (length, kind) = match (first, ends.filter(|_| depth == 0)) {
            (_, Some(length)) => {
                tokens.push(Token { before, text: &rest[..length], kind: Kind::Sign, depth });
                return tokens;
            }
            ('"' | '\'', _) => (quoted(rest, first), Kind::Literal),
            ('0'..='9', _) => (number(rest), Kind::Literal),
            (letter, _) if letter.is_alphabetic() || letter == '_' => {
                let length = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
                (length.unwrap_or(rest.len()), Kind::Name)
            }
            _ => {
                let two = ["**", "//", "==", "!=", "<=", ">="].iter().any(|sign| rest.starts_with(sign));
                (if two { 2 } else { first.len_utf8() }, Kind::Sign)
            }
        };
        if matches!(first, ')' | ']' | '}') {
            depth = depth.saturating_sub(1);
        }
        tokens.push(Token { before, text: &rest[..length], kind, depth });
        if matches!(first, '(' | '[' | '{') {
            depth += 1;
        }
        at += length;
    }
    tokens
}

/// The length of a string in quotation marks.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if letter == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a number.
fn number(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        let count = bytes[from..].iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
        from + count
    };
    let mut end = digits(0);
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
        end = digits(end + 1);
    }
    let hexadecimal = bytes.get(1).is_some_and(|byte| byte.eq_ignore_ascii_case(&b'x'));
    let signed = matches!(bytes.get(end), Some(b'+' | b'-')) && bytes.get(end + 1).is_some_and(u8::is_ascii_digit);
    if !hexadecimal && bytes[end - 1].eq_ignore_ascii_case(&b'e') && signed {
        end = digits(end + 1);
    }
    end
}

/// Writes a tag; returns whether it begins a generation block.
fn rewrite(start: &str, tokens: &[Token], out: &mut String) -> bool {
    out.push_str(start);
    let is_block = start == "{%";
    let first =
        usize::from(tokens.first().is_some_and(|token| matches!(token.text, "-" | "+") && token.before.is_empty()));
    let lone = (is_block && tokens.len() == first + 2).then(|| tokens[first].text);
    let tag = Tag { tokens, first, is_block };
    let mut opened = vec![0usize; tokens.len()];
    let mut closed = vec![0usize; tokens.len()];
    for at in (0..tokens.len()).filter(|at| tag.is_remainder(*at)) {
        if let Some((from, to)) = tag.operands(at) {
            opened[from] += 1;
            closed[to] += 1;
        }
    }
    let assigned = tag.assigned();
    for (at, token) in tokens.iter().enumerate() {
        if let Some((.., name)) = assigned.filter(|(_, end, _)| *end == at) {
            // Writing to a string does not fail.
            let _ = write!(out, "), {name})[0]");
        }
        out.push_str(token.before);
        if assigned.is_some_and(|(first, ..)| first == at) {
            out.push_str("((");
        }
        out.push_str(&"(".repeat(opened[at]));
        let _ = match (lone.filter(|_| at == first), token.text) {
            (Some("generation"), _) => write!(out, "call {GENERATION}({ANSWERS})"),
            (Some("endgeneration"), _) => write!(out, "endcall"),
            (_, "%") if tag.is_remainder(at) && tag.operands(at).is_some() => write!(out, ")|{REMAINDER}("),
            (_, "+") if tag.is_prefix(at) => Ok(()),
            (_, text) => write!(out, "{text}"),
        };
        out.push_str(&")".repeat(closed[at]));
    }
    lone == Some("generation")
}

/// The tokens of a tag, and the index of the first one after its start.
struct Tag<'a> {
    tokens: &'a [Token<'a>],
    first: usize,
    is_block: bool,
}

impl Tag<'_> {
    /// The first token of what is assigned to an attribute, the end of the tag, and the namespace.
    fn assigned(&self) -> Option<(usize, usize, &str)> {
        let texts: Vec<&str> = self.tokens[self.first..].iter().map(|token| token.text).collect();
        let ["set", name, ".", _, "=", _, .., end] = texts[..] else { return None };
        let ends = self.is_block && end.ends_with("%}");
        ends.then_some((self.first + 5, self.tokens.len() - 1, name))
    }

    fn is_remainder(&self, at: usize) -> bool {
        self.tokens[at].text == "%" && self.tokens[at].kind == Kind::Sign
    }

    /// Whether a token is a plus or minus in front of an operand, not between two operands.
    fn is_prefix(&self, at: usize) -> bool {
        let token = &self.tokens[at];
        if at < self.first || token.kind != Kind::Sign || !matches!(token.text, "+" | "-") {
            return false;
        }
        let Some(before) = at.checked_sub(1).filter(|before| *before >= self.first) else { return true };
        let previous = &self.tokens[before];
        match previous.kind {
            Kind::Literal => false,
            Kind::Name => self.is_keyword(before),
            Kind::Sign => !matches!(previous.text, ")" | "]" | "}"),
        }
    }

    /// Whether a name is a keyword and so no operand. After a dot it is an attribute, after `|` and `is` a filter or a
    /// test.
    fn is_keyword(&self, at: usize) -> bool {
        let behind_dot = at > 0 && matches!(self.tokens[at - 1].text, "." | "|");
        let is_name_of_tag = self.is_block && at == self.first;
        is_name_of_tag || !behind_dot && KEYWORDS.contains(&self.tokens[at].text)
    }

    /// Whether an operand of a remainder ends before this token.
    fn ends_operand(&self, at: usize) -> bool {
        let token = &self.tokens[at];
        match token.kind {
            Kind::Literal => false,
            Kind::Name => {
                let of_test = token.text == "is" || at > 0 && self.tokens[at - 1].text == "is";
                self.is_keyword(at) && !of_test
            }
            Kind::Sign => match token.text {
                "+" | "-" => !self.is_prefix(at),
                "," | ":" | "=" | "==" | "!=" | "<" | ">" | "<=" | ">=" | "~" => true,
                text => text.len() > 1 && (text.ends_with("%}") || text.ends_with("}}")),
            },
        }
    }

    /// The first token of the operand before a `%`, and the last token of the one after it.
    fn operands(&self, at: usize) -> Option<(usize, usize)> {
        let depth = self.tokens[at].depth;
        let mut from = at;
        while from > self.first {
            let token = &self.tokens[from - 1];
            if token.depth < depth || token.depth == depth && self.ends_operand(from - 1) {
                break;
            }
            from -= 1;
        }
        let mut to = at;
        while let Some(token) = self.tokens.get(to + 1) {
            let product = matches!(token.text, "*" | "/" | "//" | "%") && token.kind == Kind::Sign;
            if token.depth < depth || token.depth == depth && (product || self.ends_operand(to + 1)) {
                break;
            }
            to += 1;
        }
        (from < at && to > at).then_some((from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_for_the_engine() {
        for (source, expected) in [
            ("a\r\nb\rc\n", "a\nb\nc\n"),
            ("a {%- generation -%} b {%+endgeneration%}", "a {%- call __generation(__answers) -%} b {%+endcall%}"),
            ("{% if generation %}{% 'generation' %", "{% if generation %}{% 'generation' %"),
            (
                "{# {% generation %} #}{% raw -%}{{ + 'a' % }}{%- endraw %}",
                "{# {% generation %} #}{% raw -%}{{ + 'a' % }}{%- endraw %}",
            ),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            ("{{ +1 + +x - -y }}{{+ 1}}", "{{ 1 + x - -y }}{{+ 1}}"),
            ("{% if +x %}{% set a = +1e+3 %}", "{% if x %}{% set a = 1e+3 %}"),
            ("{{ a % 2 }}", "{{ (a )|__remainder( 2) }}"),
            ("{% if loop.index0 % 2 == 0 %}", "{% if (loop.index0 )|__remainder( 2) == 0 %}"),
            ("{{ x + a * b % c % d - e }}", "{{ x + ((a * b )|__remainder( c) )|__remainder( d) - e }}"),
            ("{{ '%s-%s' % (a % 2, '%') ~ x }}", "{{ ('%s-%s' )|__remainder( ((a )|__remainder( 2), '%')) ~ x }}"),
            ("{{ f(-a[1 % 2] % -b.c(d)|g, y) }}", "{{ f((-a[(1 )|__remainder( 2)] )|__remainder( -b.c(d)|g), y) }}"),
            (
                "{{ not a % 2 if b % 3 else c % 4 }}",
                "{{ not (a )|__remainder( 2) if (b )|__remainder( 3) else (c )|__remainder( 4) }}",
            ),
            ("{{ {'a': 1 % 2} }}}", "{{ {'a': (1 )|__remainder( 2)} }}}"),
            ("{%- set ns.a = ns.b + 1 -%}", "{%- set ns.a = ((ns.b + 1), ns)[0] -%}"),
            ("{% set ns.a = 1, 2 %}", "{% set ns.a = ((1, 2), ns)[0] %}"),
            ("{% set ns.a %}", "{% set ns.a %}"),
            ("{{ % }}{{ a %", "{{ % }}{{ a %"),
        ] {
            assert_eq!(prepared(source).0, expected, "{source}");
        }
        assert!(prepared("{% generation %}").1 && !prepared("{{ generation }}").1);
    }
}
