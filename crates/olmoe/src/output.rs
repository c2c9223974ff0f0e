//! Standard output that may be closed by its reader, as `olmoe verify | head` does.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stdout};

use anyhow::Context;

/// In place of the standard macro, which panics when the reader has gone.
macro_rules! println {
    () => { $crate::output::line(format_args!("")) };
    ($($argument:tt)*) => { $crate::output::line(format_args!($($argument)*)) };
}

/// Writes a line. Ends the program quietly when nobody reads any more, and with status 1 when it cannot be written.
pub(crate) fn line(line: Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        eprintln!("error: standard output: {error}");
        std::process::exit(1);
    }
}

/// Writes a piece of text at once. Ends the program quietly when nobody reads any more.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        done => done.context("standard output"),
    }
}
