//! Whether a text is JSON for Python's `json.loads`, which also takes NaN, infinities and lone surrogates.

/// The deepest nesting that is followed; what is deeper is not JSON here. Python gives up at about this depth, too.
const MAX_DEPTH: usize = 990;

/// Whether the whole text is one value.
pub(super) fn is_json(text: &str) -> bool {
    let mut reader = Reader { bytes: text.as_bytes(), at: 0 };
    reader.space();
    reader.value().is_some() && {
        reader.space();
        reader.at == reader.bytes.len()
    }
}

struct Reader<'t> {
    bytes: &'t [u8],
    at: usize,
}

impl Reader<'_> {
    fn space(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn taken(&mut self, text: &str) -> Option<()> {
        self.bytes[self.at..].starts_with(text.as_bytes()).then(|| self.at += text.len())
    }

    fn one_of(&mut self, bytes: &[u8]) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        bytes.contains(&byte).then(|| {
            self.at += 1;
            byte
        })
    }

    /// A value, and what it holds, without a call a level.
    fn value(&mut self) -> Option<()> {
        let mut open = Vec::new();
        'values: loop {
            if open.len() > MAX_DEPTH {
                return None;
            }
            match self.bytes.get(self.at)? {
                b'{' => {
                    self.at += 1;
                    self.space();
                    if self.one_of(b"}").is_none() {
                        self.key()?;
                        open.push(b'}');
                        continue 'values;
                    }
                }
                b'[' => {
                    self.at += 1;
                    self.space();
                    if self.one_of(b"]").is_none() {
                        open.push(b']');
                        continue 'values;
                    }
                }
                b'"' => self.string()?,
                _ => ["null", "true", "false", "NaN", "Infinity", "-Infinity"]
                    .iter()
                    .find_map(|word| self.taken(word))
                    .or_else(|| self.number())?,
            }
            loop {
                let Some(close) = open.last().copied() else { return Some(()) };
                self.space();
                match self.one_of(&[b',', close])? {
                    b',' => {
                        self.space();
                        if close == b'}' {
                            self.key()?;
                        }
                        continue 'values;
                    }
                    _ => open.pop(),
                };
            }
        }
    }

    /// A key and its colon.
    fn key(&mut self) -> Option<()> {
        self.string()?;
        self.space();
        self.one_of(b":")?;
        self.space();
        Some(())
    }

    fn string(&mut self) -> Option<()> {
        self.one_of(b"\"")?;
        loop {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            match byte {
                b'"' => return Some(()),
                b'\\' => self.escape()?,
                0..0x20 => return None,
                _ => {}
            }
        }
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Option<()> {
        if self.one_of(b"\"\\/bfnrtu")? == b'u' {
            for _ in 0..4 {
                self.one_of(b"0123456789abcdefABCDEF")?;
            }
        }
        Some(())
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.one_of(b"0123456789").is_some() {}
        self.at - start
    }

    fn number(&mut self) -> Option<()> {
        let _ = self.one_of(b"-");
        if self.one_of(b"0").is_none() && self.digits() == 0 {
            return None;
        }
        let whole = self.at;
        if self.one_of(b".").is_some() && self.digits() == 0 {
            self.at = whole;
            return Some(());
        }
        let fraction = self.at;
        if self.one_of(b"eE").is_some() {
            let _ = self.one_of(b"+-");
            if self.digits() == 0 {
                self.at = fraction;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_as_python_reads_it() {
        // Python: json.loads(text)
        for text in [
            "{}",
            "[]",
            "1",
            "-0.5e+3",
            "\"\\ud800\"",
            "NaN",
            "-Infinity",
            "[NaN, {\"a\": [1, \"b\"]}, null]",
            " {\"a\" : 1 , \"a\":2} ",
            "1E400",
            "\"\u{7f}é\"",
        ] {
            assert!(is_json(text), "{text}");
        }
        for text in [
            "",
            " ",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "{a:1}",
            "'a'",
            "01",
            "1.",
            ".5",
            "+1",
            "-",
            "1e",
            "\"\n\"",
            "\"\\x\"",
            "\"\\u12\"",
            "1 2",
            "nul",
            "\u{feff}1",
            "[1 2]",
            "{\"a\" 1}",
            "\u{a0}1",
            "[",
            "[{",
            "\"",
        ] {
            assert!(!is_json(text), "{text}");
        }
        assert!(is_json(&format!("{}{}", "[".repeat(900), "]".repeat(900))));
        assert!(!is_json(&"[".repeat(1_000_000)));
    }
}
