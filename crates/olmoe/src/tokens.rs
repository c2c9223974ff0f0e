//! `olmoe tokens`

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use olmoe_checkpoint::companions::{self, TOKENIZER, TOKENIZER_FILES};
use olmoe_checkpoint::open::Contents;
use olmoe_data::{Tokenizer, counted};
use serde::Serialize;

use crate::flags::{input, text_last};
use crate::output::note;
use crate::text::{text_of, text_of_input};
use crate::usage::usage;

/// Show the tokens of a text
///
/// Prints a line for each token with its id and its text, and the number of tokens at the end. Texts are in quotation
/// marks; line breaks and the like are printed as \n, and bytes that are not a whole character as \x and two digits.
/// Special tokens in the text are recognised; none are added.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  olmoe tokens OLMoE-1B-7B-0924 'Bitcoin is'
  olmoe tokens --tokenizer tokenizer.json 'Bitcoin is'
  olmoe tokens -m OLMoE-1B-7B-0924 --file notes.txt --json
  echo 'Bitcoin is' | olmoe tokens -m OLMoE-1B-7B-0924 --stdin

Files: reads the tokenizer and the text; writes none but what is downloaded.

Exit status: 0 done, 1 if the tokenizer or the text could not be read, 2 for wrong usage.")]
#[command(group(clap::ArgGroup::new("source").args(["text", "stdin", "file"])))]
pub(crate) struct TokensArgs {
    /// The model or the tokenizer, unless --model or --tokenizer gives it
    #[arg(value_name = "MODEL")]
    first: Option<String>,

    /// The text; the first argument if a flag gives the model
    #[arg(value_name = "TEXT")]
    second: Option<String>,

    /// The text
    #[arg(short = 'p', long, visible_alias = "prompt", value_name = "TEXT", allow_hyphen_values = true)]
    text: Option<String>,

    /// Use this tokenizer: a tokenizer.json or a folder that holds one
    #[arg(long, value_name = "PATH", conflicts_with = "model")]
    tokenizer: Option<PathBuf>,

    /// Use the tokenizer of this model: a file or folder, or a model of the hub, whose tokenizer is downloaded
    #[arg(short, long, value_name = "PATH|REPO[@REVISION]")]
    model: Option<String>,

    /// Use only files of the hub downloaded before; an error if one is missing
    #[arg(long)]
    offline: bool,

    /// Read the whole of standard input as the text
    #[arg(long)]
    stdin: bool,

    /// Read the text from a file
    #[arg(short, long, value_name = "FILE")]
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
    // A folder with nothing but a tokenizer is not a checkpoint, but it is enough here.
    if path.join(TOKENIZER).is_file() || path.ends_with(TOKENIZER) {
        return Ok(Tokenizer::from_file(&path)?);
    }
    let contents = Contents::read(&path)?;
    contents.notices.iter().for_each(note);
    companions::tokenizer(&contents)?
        .with_context(|| format!("{}: it has no tokenizer; give one with --tokenizer", path.display()))
}

pub(crate) fn run(args: &TokensArgs) -> anyhow::Result<()> {
    let words: Vec<&str> = [&args.first, &args.second].into_iter().flatten().map(String::as_str).collect();
    let by_flag = args.tokenizer.is_some() || args.model.is_some();
    let given = args.text.is_some() || args.file.is_some() || args.stdin;
    let (model, rest) = match &words[..] {
        words if by_flag => (args.model.as_deref(), words),
        [model, rest @ ..] => (Some(*model), rest),
        [] => return Err(usage("no model is given; name it first, or give --model or --tokenizer")),
    };
    let text = text_last(rest, given, "--text, --file and --stdin")?;
    if text.is_none() && !given {
        let found = model.filter(|_| !by_flag).map(|word| format!("after {word}, which is taken for the model"));
        let place = found.unwrap_or_else(|| "as an argument".to_owned());
        return Err(usage(format_args!(
            "no text is given; name it {place}, or give --text, --file or --stdin (and the model with --model or --tokenizer)"
        )));
    }
    let tokenizer = match (&args.tokenizer, model) {
        (Some(path), _) => Tokenizer::from_file(path)?,
        (None, Some(model)) => tokenizer_of(model, args.offline)?,
        (None, None) => return Err(usage("no tokenizer is given; give --tokenizer or --model")),
    };
    let text = match (text.or(args.text.as_deref()), &args.file) {
        (Some(text), _) => text.to_owned(),
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
        println!("{}", counted(report.count, "token"));
    }
    Ok(())
}

/// The bytes of a token as text, with escapes for bytes that are not a whole character or are invisible.
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
