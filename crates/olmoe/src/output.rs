//! Standard output and standard error that their readers may close, as in `olmoe verify | head`.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stderr, stdout};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// Replaces the standard macro, which panics when the reader has closed standard output.
macro_rules! println {
    () => { $crate::output::line(format_args!("")) };
    ($($argument:tt)*) => { $crate::output::line(format_args!($($argument)*)) };
}

/// Replaces the standard macro, which panics when the reader has closed standard error. Without a reader, the work
/// continues.
macro_rules! eprintln {
    ($($argument:tt)*) => { $crate::output::error_line(format_args!($($argument)*)) };
}

/// Whether --quiet was given.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Sets whether progress, notes and summaries are suppressed: `--quiet`, alike for every command.
pub(crate) fn be_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether progress, notes and summaries are suppressed.
pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Prints a note to standard error, unless --quiet was given.
pub(crate) fn note(text: impl std::fmt::Display) {
    if !is_quiet() {
        eprintln!("note: {text}");
    }
}

/// Prints a warning to standard error that something is lost although the work continues; --quiet does not suppress it.
pub(crate) fn warn(text: impl std::fmt::Display) {
    eprintln!("warning: {text}");
}

/// Writes a line to standard output. Ends the program silently if the reader has closed it, and with status 1 on other
/// errors.
pub(crate) fn line(line: Arguments<'_>) {
    if let Err(error) = writeln!(stdout(), "{line}") {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        eprintln!("error: standard output: {error}");
        std::process::exit(1);
    }
}

/// Writes a line to standard error, and ignores errors.
pub(crate) fn error_line(line: Arguments<'_>) {
    let _ = writeln!(stderr(), "{line}");
}

/// Writes a piece of text and flushes it. Ends the program silently if the reader has closed standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        done => done.context("standard output"),
    }
}
