//! `olmoe tokens`

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use olmoe_checkpoint::companions::{self, TOKENIZER, TOKENIZER_FILES};
use olmoe_checkpoint::open::Contents;
use olmoe_data::Tokenizer;
use serde::Serialize;

use crate::flags::input;
use crate::output::note;
use crate::text::{text_of, text_of_input};

/// Show how a text is cut into tokens
///
/// A line a token, its id and its text, and last how many there are. Line breaks and the like in a text are shown as
/// \n, spaces as they are between quotation marks, and bytes that are no whole character as \x and two digits. Special
/// tokens in the text are taken as such; none are added.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe tokens --tokenizer tokenizer.json 'Bitcoin is'
  olmoe tokens -m OLMoE-1B-7B-0924 --file notes.txt --json
  echo 'Bitcoin is' | olmoe tokens -m OLMoE-1B-7B-0924 --stdin

Files: reads the tokenizer and the text; writes none but what is downloaded.

Exit status: 0 done, 1 if the tokenizer or the text could not be read, 2 for wrong usage.")]
pub(crate) struct TokensArgs {
    /// The text
    #[arg(value_name = "TEXT", required_unless_present_any = ["stdin", "file"], conflicts_with_all = ["stdin", "file"])]
    text: Option<String>,

    /// Use this tokenizer: a tokenizer.json or a folder that holds one
    #[arg(long, value_name = "PATH", required_unless_present = "model", conflicts_with = "model")]
    tokenizer: Option<PathBuf>,

    /// Use the tokenizer of this model: a file or folder, or a model of the hub, whose tokenizer is downloaded
    #[arg(short, long, value_name = "PATH|REPO[@REVISION]")]
    model: Option<String>,

    /// Use files of the hub downloaded before; an error if one is missing
    #[arg(long)]
    offline: bool,

    /// Read the text from standard input, all of it
    #[arg(long, conflicts_with = "file")]
    stdin: bool,

    /// Read the text from a file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Print one JSON object: `ids` and `pieces`, arrays of one length, and `count`
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    ids: Vec<u32>,
    pieces: Vec<String>,
    count: usize,
}

/// The tokenizer of a model.
fn tokenizer_of(model: &str, offline: bool) -> anyhow::Result<Tokenizer> {
    let path = input(model, TOKENIZER_FILES, offline)?;
    // A folder with nothing but a tokenizer is no checkpoint, but enough.
    if path.join(TOKENIZER).is_file() || path.ends_with(TOKENIZER) {
        return Ok(Tokenizer::from_file(&path)?);
    }
    let contents = Contents::read(&path)?;
    companions::tokenizer(&contents)?
        .with_context(|| format!("{}: this model comes without a tokenizer; give one with --tokenizer", path.display()))
}

pub(crate) fn run(args: &TokensArgs) -> anyhow::Result<()> {
    let tokenizer = match (&args.tokenizer, &args.model) {
        (Some(path), _) => Tokenizer::from_file(path)?,
        (None, Some(model)) => tokenizer_of(model, args.offline)?,
        (None, None) => anyhow::bail!("no tokenizer; give --tokenizer or --model"),
    };
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => text_of(path)?,
        (None, None) => text_of_input()?,
    };
    tokenizer.notices().iter().for_each(note);
    let ids = tokenizer.encode(&text)?;
    let pieces = ids.iter().map(|id| piece(&tokenizer.token_bytes(*id).unwrap_or_default())).collect();
    let report = Report { count: ids.len(), ids, pieces };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        for (id, piece) in report.ids.iter().zip(&report.pieces) {
            println!("{id:>6}  \"{piece}\"");
        }
        println!("{} tokens", report.count);
    }
    Ok(())
}

/// The bytes of a token as text, with escapes where they are none or cannot be seen.
fn piece(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\'' => text.push(letter),
                _ => text.extend(letter.escape_debug()),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_can_be_read() {
        for (bytes, expected) in [
            (&b" the"[..], " the"),
            (b"a\n\t\\", "a\\n\\t\\\\"),
            (b"'s", "'s"),
            (b"\"", "\\\""),
            (&[0xE7, 0x9C], "\\xe7\\x9c"),
            ("真\0".as_bytes(), "真\\0"),
            (&[b'a', 0xFF, b'b'], "a\\xffb"),
        ] {
            assert_eq!(piece(bytes), expected);
        }
    }
}
