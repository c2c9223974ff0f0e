//! Standard output and standard error that may be closed by their readers, as `olmoe verify | head` does.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stderr, stdout};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// In place of the standard macro, which panics when the reader has gone.
macro_rules! println {
    () => { $crate::output::line(format_args!("")) };
    ($($argument:tt)*) => { $crate::output::line(format_args!($($argument)*)) };
}

/// In place of the standard macro, which panics when the reader has gone. If nobody reads it, the work goes on.
macro_rules! eprintln {
    ($($argument:tt)*) => { $crate::output::error_line(format_args!($($argument)*)) };
}

/// Whether --quiet was given.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether progress, notes and summaries are kept from being shown: `--quiet`, for every command alike.
pub(crate) fn be_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether progress, notes and summaries are not to be shown.
pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Says on standard error what is remarkable and no error, unless --quiet was given.
pub(crate) fn note(text: impl std::fmt::Display) {
    if !is_quiet() {
        eprintln!("note: {text}");
    }
}

/// Says on standard error that something is lost, although the work goes on; --quiet does not hide it.
pub(crate) fn warn(text: impl std::fmt::Display) {
    eprintln!("warning: {text}");
}

/// Writes a line. Ends the program quietly when nobody reads any more, and with status 1 when it cannot be written.
pub(crate) fn line(line: Arguments<'_>) {
    if let Err(error) = writeln!(stdout(), "{line}") {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        eprintln!("error: standard output: {error}");
        std::process::exit(1);
    }
}

/// Writes a line to standard error, if somebody reads it.
pub(crate) fn error_line(line: Arguments<'_>) {
    let _ = writeln!(stderr(), "{line}");
}

/// Writes a piece of text at once. Ends the program quietly when nobody reads any more.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        done => done.context("standard output"),
    }
}
