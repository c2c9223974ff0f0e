//! The progress of downloads from the hub.

use std::cell::{Cell, RefCell};
use std::io::{IsTerminal, Write, stderr};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use olmoe_checkpoint::hub::DownloadProgress;

use crate::output::is_quiet;

/// Shows a download on standard error: a bar on a terminal, plain lines elsewhere.
pub(crate) struct Terminal {
    bar: RefCell<Option<ProgressBar>>,
    bars: bool,
    quiet: bool,
    size: Cell<Option<u64>>,
    /// How many tenths of the file were reported.
    tenths: Cell<u64>,
}

/// Files below this size get no line for every tenth.
const LARGE: u64 = 100_000_000;

impl Terminal {
    pub(crate) fn new() -> Terminal {
        let (quiet, bars) = (is_quiet(), stderr().is_terminal());
        Terminal { bar: RefCell::new(None), bars, quiet, size: Cell::new(None), tenths: Cell::new(0) }
    }

    /// Prints a line. If standard error is closed, the download continues.
    fn line(&self, text: &str) {
        let write = || {
            let _ = writeln!(stderr(), "{text}");
        };
        match &*self.bar.borrow() {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl DownloadProgress for Terminal {
    fn note(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    fn begin(&self, number: usize, count: usize, file: &str, size: Option<u64>) {
        let prefix = format!("[{number}/{count}] {file}");
        self.size.set(size);
        self.tenths.set(0);
        if self.quiet {
            return;
        }
        if !self.bars {
            let size = size.map(|size| format!(" ({})", HumanBytes(size))).unwrap_or_default();
            self.line(&format!("{prefix}{size}"));
            return;
        }
        let (bar, template) = match size {
            Some(size) => (
                ProgressBar::new(size),
                "{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
            ),
            None => (ProgressBar::no_length(), "{prefix} {binary_bytes} {binary_bytes_per_sec}"),
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        *self.bar.borrow_mut() = Some(bar.with_style(style).with_prefix(prefix));
    }

    fn position(&self, bytes: u64) {
        if let Some(bar) = &*self.bar.borrow() {
            // Bytes of an earlier call do not count towards the speed.
            if bar.position() == 0 && bytes > 0 {
                bar.set_position(bytes);
                bar.reset_eta();
            } else {
                bar.set_position(bytes);
            }
        } else if let Some(size) = self.size.get().filter(|&size| size >= LARGE && !self.quiet) {
            let tenths = bytes / (size / 10);
            if tenths > self.tenths.get() && bytes < size {
                self.line(&format!("  {} of {}", HumanBytes(bytes), HumanBytes(size)));
            }
            self.tenths.set(tenths);
        }
    }

    fn end(&self) {
        if let Some(bar) = self.bar.borrow_mut().take() {
            bar.finish();
        }
    }
}
