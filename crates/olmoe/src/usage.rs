//! Wrong usage: checks of several arguments together, and clap's errors with additional help.

use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};

/// An error of usage; the exit status is 2.
#[derive(Debug)]
pub(crate) struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Usage {}

/// Makes an error of usage.
pub(crate) fn usage(text: impl fmt::Display) -> anyhow::Error {
    Usage(text.to_string()).into()
}

/// An error of clap, with additional help.
pub(crate) fn explained(error: clap::Error, program: &Command, arguments: &[OsString]) -> clap::Error {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let (argument, value) = (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue));
    if error.kind() == ErrorKind::UnknownArgument && !argument.starts_with('-') {
        let Some(tip) = called(program, arguments).and_then(flags_tip) else { return error };
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let (first, rest) = text.split_once("\n\n").unwrap_or((text, ""));
        return clap::Error::raw(error.kind(), format!("{first}\n\n  tip: {tip}\n\n{rest}"));
    }
    let expected = error.source().and_then(expected);
    match (error.kind(), expected) {
        (ErrorKind::ValueValidation, Some(expected)) => {
            let text = format!(
                "invalid value {value:?} for '{argument}': expected {expected}\n\nFor more information, try '--help'.\n"
            );
            clap::Error::raw(error.kind(), text)
        }
        _ => error,
    }
}

/// The expected value behind the standard library's errors of numbers.
fn expected(error: &(dyn Error + 'static)) -> Option<&'static str> {
    if error.is::<ParseFloatError>() {
        return Some("a number such as 0.5");
    }
    Some(match error.downcast_ref::<ParseIntError>()?.kind() {
        IntErrorKind::PosOverflow => "a smaller whole number",
        _ => "a whole number of 0 or more",
    })
}

/// The command that is called.
fn called<'p>(program: &'p Command, arguments: &[OsString]) -> Option<&'p Command> {
    let mut command = program;
    for word in arguments.iter().skip(1).filter_map(|argument| argument.to_str()) {
        match command.find_subcommand(word) {
            Some(below) => command = below,
            None => break,
        }
    }
    (command.get_name() != program.get_name()).then_some(command)
}

/// A tip about the flag that a stray value may belong to.
fn flags_tip(command: &Command) -> Option<String> {
    /// How many flags are named.
    const SHOWN: usize = 6;
    let with_value = |arg: &&Arg| !arg.is_positional() && !arg.is_hide_set() && arg.get_action().takes_values();
    let mut flags: Vec<&Arg> = command.get_arguments().filter(with_value).collect();
    // Required flags come first.
    flags.sort_by_key(|arg| !arg.is_required_set());
    let names: Vec<String> = flags.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = if flags.len() > SHOWN { ", …" } else { "" };
    (!names.is_empty()).then(|| format!("a value follows its flag: {}{more}", names.join(", ")))
}
