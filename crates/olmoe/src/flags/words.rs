//! Positional arguments: a model, a result or a text, each of which may also be given by a flag.

use std::path::{Path, PathBuf};

use clap::Args;
use olmoe_data::expanded;

use crate::usage::usage;

/// The model, from the flag or the first positional argument, and the other positional arguments.
pub(crate) fn model_first<'a>(flag: Option<&'a str>, words: &[&'a str]) -> anyhow::Result<(&'a str, Vec<&'a str>)> {
    match (flag, words) {
        (Some(model), words) => Ok((model, words.to_vec())),
        (None, [model, rest @ ..]) => Ok((model, rest.to_vec())),
        (None, []) => Err(usage("no model is given; name it first, or give it with --model")),
    }
}

/// The text that may follow a model, unless it is given in one of the other ways that `others` lists.
pub(crate) fn text_last<'a>(words: &[&'a str], given: bool, others: &str) -> anyhow::Result<Option<&'a str>> {
    match (words, given) {
        ([], _) => Ok(None),
        ([text], false) => Ok(Some(text)),
        ([text, ..], true) => Err(usage(format_args!(
            "{text:?} is a second text, and only one can be used; give it alone, or one of {others}"
        ))),
        ([_, more, ..], false) => Err(usage(format_args!("unexpected argument {more:?}; put quotes around a text"))),
    }
}

/// Fails if positional arguments are left.
pub(crate) fn no_more(words: &[&str]) -> anyhow::Result<()> {
    match words {
        [] => Ok(()),
        [word, ..] => Err(usage(format_args!("unexpected argument {word:?}; the model is given with --model already"))),
    }
}

/// The input and the output.
#[derive(Args)]
pub(crate) struct InOut {
    /// A checkpoint: a folder, a GGUF file, or a model of the hub (REPO or REPO@REVISION); and the folder (hf, olmo) or
    /// file (gguf) to write, which must not exist yet
    #[arg(value_names = ["IN", "OUT"], num_args = 1..=2, required = true)]
    words: Vec<String>,

    /// IN as a flag, as in other commands
    #[arg(short, long, value_name = "IN")]
    model: Option<String>,
}

impl InOut {
    /// The input and the output.
    pub(crate) fn get(&self) -> anyhow::Result<(&str, PathBuf)> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let (input, rest) = model_first(self.model.as_deref(), &words)?;
        match rest[..] {
            [output] => Ok((input, expanded(Path::new(output)))),
            [] => Err(usage(format_args!("no output is given; name <OUT> after {input}"))),
            [_, more, ..] => Err(usage(format_args!("unexpected argument {more:?}; IN is given with --model already"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_the_model_unless_a_flag_gives_it() {
        assert_eq!(model_first(None, &["m", "text"]).unwrap(), ("m", vec!["text"]));
        assert_eq!(model_first(Some("m"), &["text"]).unwrap(), ("m", vec!["text"]));
        assert!(model_first(None, &[]).unwrap_err().to_string().contains("--model"));
        assert_eq!(text_last(&["hi"], false, "").unwrap(), Some("hi"));
        assert_eq!(text_last(&[], true, "").unwrap(), None);
        assert!(text_last(&["hi"], true, "--file").unwrap_err().to_string().contains("--file"));
        assert!(text_last(&["hi", "ho"], false, "").unwrap_err().to_string().contains("quotes"));
    }
}
