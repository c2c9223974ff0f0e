//! What the user types: lines, continued lines and blocks, from a terminal or any other source.

use std::io::{BufRead, BufReader, Read, stdin};

use anyhow::Context;
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};

use crate::text::MARK;

/// The largest message in bytes.
const MAX_MESSAGE: usize = 16 << 20;
/// Begins and ends a block of lines.
const BLOCK: &str = "\"\"\"";

/// An input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Nothing to do.
    Nothing,
    /// A message for the model.
    Message(String),
    /// A command for the program, which begins with a slash.
    Command(String),
    /// An invalid input, and what is wrong with it.
    Bad(String),
    /// The end of the input.
    End,
}

/// A line.
enum Line {
    Text(String),
    /// Ctrl-C.
    Cleared,
    /// A line that is not UTF-8 or too long, and what is wrong with it.
    Bad(String),
    End,
}

/// The source of the lines.
pub(super) enum Source {
    /// A terminal, with editing and a history.
    Terminal(Box<Editor<(), MemHistory>>),
    /// A file or a pipe.
    Plain {
        /// The reader.
        input: Box<dyn BufRead>,
        /// The number of lines read.
        lines: usize,
    },
}

impl Source {
    /// Reads lines from a terminal.
    pub(super) fn terminal() -> anyhow::Result<Source> {
        let editor = Editor::with_history(Config::default(), MemHistory::new());
        Ok(Source::Terminal(Box::new(editor.context("cannot use this terminal")?)))
    }

    /// Reads lines from standard input, whatever it is.
    pub(super) fn plain() -> Source {
        Source::Plain { input: Box::new(BufReader::new(stdin())), lines: 0 }
    }

    /// The next message or command.
    ///
    /// # Errors
    /// Errors of the system.
    pub(super) fn next(&mut self) -> anyhow::Result<Input> {
        let mut text = match self.line("> ")? {
            Line::Text(text) => text,
            Line::Cleared => return Ok(Input::Nothing),
            Line::Bad(problem) => return Ok(Input::Bad(problem)),
            Line::End => return Ok(Input::End),
        };
        let (block, more) = match text.trim_start().strip_prefix(BLOCK) {
            Some(rest) => (true, rest.to_owned()),
            None => (false, text.clone()),
        };
        text = more;
        while if block { !text.trim_end().ends_with(BLOCK) } else { text.ends_with('\\') } {
            if !block {
                text.pop();
            }
            match self.line(". ")? {
                Line::Text(line) if text.len() + line.len() >= MAX_MESSAGE => {
                    return Ok(Input::Bad(format!("a message has {MAX_MESSAGE} bytes or more; make it shorter")));
                }
                Line::Text(line) => {
                    text.push('\n');
                    text.push_str(&line);
                }
                Line::Cleared => return Ok(Input::Nothing),
                Line::Bad(problem) => return Ok(Input::Bad(problem)),
                Line::End if block => {
                    let problem = format!("the input ends in a block; end it with a line that ends in {BLOCK}");
                    return Ok(Input::Bad(problem));
                }
                Line::End => break,
            }
        }
        if block {
            let inside = text.trim_end();
            let inside = inside.strip_suffix(BLOCK).unwrap_or(inside);
            let inside = inside.strip_prefix('\n').unwrap_or(inside);
            text = inside.strip_suffix('\n').unwrap_or(inside).to_owned();
        }
        Ok(match text.trim() {
            "" => Input::Nothing,
            command if !block && command.starts_with('/') => Input::Command(command.to_owned()),
            _ => Input::Message(text),
        })
    }

    fn line(&mut self, prompt: &str) -> anyhow::Result<Line> {
        match self {
            Source::Terminal(editor) => match editor.readline(prompt) {
                Ok(line) => {
                    // If the history does not take the line, nothing else changes.
                    let _ = editor.add_history_entry(&line);
                    Ok(Line::Text(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Line::Cleared),
                Err(ReadlineError::Eof) => Ok(Line::End),
                // Invalid UTF-8 loses the line, not the conversation.
                Err(ReadlineError::Io(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                    Ok(Line::Bad("what was typed is not UTF-8 text; type the line again".to_owned()))
                }
                Err(error) => Err(error).context("cannot read the terminal"),
            },
            Source::Plain { input, lines } => {
                let mut bytes = Vec::new();
                let read = input.by_ref().take(MAX_MESSAGE as u64).read_until(b'\n', &mut bytes);
                if read.context("cannot read standard input")? == 0 {
                    return Ok(Line::End);
                }
                *lines += 1;
                let ended = bytes.pop_if(|byte| *byte == b'\n').is_some();
                bytes.pop_if(|byte| ended && *byte == b'\r');
                if *lines == 1 && bytes.starts_with(MARK.as_bytes()) {
                    bytes.drain(..MARK.len());
                }
                if !ended && bytes.len() == MAX_MESSAGE {
                    input.skip_until(b'\n').context("cannot read standard input")?;
                    let problem = format!("line {lines} of the input has {MAX_MESSAGE} bytes or more; make it shorter");
                    return Ok(Line::Bad(problem));
                }
                let bad = |_| Line::Bad(format!("line {lines} of the input is not UTF-8 text"));
                Ok(String::from_utf8(bytes).map_or_else(bad, Line::Text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(text: &'static [u8]) -> Vec<String> {
        let mut source = Source::Plain { input: Box::new(text), lines: 0 };
        let mut all = Vec::new();
        loop {
            all.push(match source.next() {
                Ok(Input::End) => return all,
                Ok(Input::Nothing) => "-".to_owned(),
                Ok(Input::Message(text)) => text,
                Ok(Input::Command(text)) => format!("command {text}"),
                Ok(Input::Bad(problem)) => format!("error: {problem}"),
                Err(error) => panic!("{error}"),
            });
        }
    }

    #[test]
    fn lines_and_what_belongs_together() {
        for (text, expected) in [
            ("", &[][..]),
            ("one\ntwo\r\n\n  \nthree", &["one", "two", "-", "-", "three"]),
            ("a\\\nb\\\n\nc", &["a\nb\n", "c"]),
            ("a\\", &["a"]),
            ("\"\"\"a\nb\"\"\"\nc", &["a\nb", "c"]),
            ("\"\"\"\n a\\\n\n/b\n\"\"\"\n", &[" a\\\n\n/b"]),
            ("\"\"\"/a\"\"\"\n\"\"\"\"\"\"\nb", &["/a", "-", "b"]),
            ("a \"\"\" b\n", &["a \"\"\" b"]),
            (" /help me \n/set a\\\nb", &["command /help me", "command /set a\nb"]),
            ("\"\"\"a\nb", &["error: the input ends in a block; end it with a line that ends in \"\"\""]),
        ] {
            assert_eq!(inputs(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(
            inputs("\u{feff}/help\na\u{feff}\n\u{feff}b".as_bytes()),
            ["command /help", "a\u{feff}", "\u{feff}b"]
        );
        assert_eq!(inputs(b"a\n\xFF\nb"), ["a", "error: line 2 of the input is not UTF-8 text", "b"]);
    }

    #[test]
    fn long_lines_are_refused_and_left_behind() {
        let text: &'static [u8] = [vec![b'x'; MAX_MESSAGE + 5], b"\nnext\n".to_vec()].concat().leak();
        let all = inputs(text);
        assert!(all.len() == 2 && all[0].contains("line 1") && all[1] == "next", "{} {}", all.len(), all[0]);
    }
}
