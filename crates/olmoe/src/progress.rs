//! Progress of long work on standard error: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::output::is_quiet;

/// Work below this many bytes gets no line for every tenth.
const LARGE: u64 = 100_000_000;

/// The progress of work on a number of bytes.
pub(crate) struct Progress {
    what: &'static str,
    total: u64,
    done: AtomicU64,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// With --quiet, nothing is printed.
    pub(crate) fn new(what: &'static str, total: u64) -> Progress {
        let bar = (!is_quiet() && stderr().is_terminal()).then(|| {
            let template = "{prefix:<10} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style).with_prefix(what)
        });
        Progress { what, total, done: AtomicU64::new(0), bar }
    }

    /// Adds bytes that are done.
    pub(crate) fn advance(&self, bytes: u64) {
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        } else if !is_quiet() && self.total >= LARGE {
            let tenth = |done: u64| done / (self.total / 10);
            if tenth(before) < tenth(before + bytes) {
                // If standard error is closed, the work continues.
                let (done, total) = (HumanBytes(before + bytes), HumanBytes(self.total));
                let _ = writeln!(stderr(), "{}: {done} of {total}", self.what);
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
