//! How far a task is: a bar on a terminal, a line every tenth elsewhere.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use olmoe_eval::run::Progress;

use crate::output::{is_quiet, note};

/// Between two lines there are at least so many seconds.
const BETWEEN: Duration = Duration::from_secs(10);

/// The progress of a task.
pub(super) struct TaskProgress {
    title: String,
    bar: Option<ProgressBar>,
    begun: Instant,
    said: Instant,
}

impl TaskProgress {
    /// With --quiet, nothing is printed.
    pub(super) fn new(task: &str, index: usize, tasks: usize) -> TaskProgress {
        let title = format!("{task} ({}/{tasks})", index + 1);
        let bar = (!is_quiet() && stderr().is_terminal()).then(|| {
            let template = "{prefix} {wide_bar} {pos}/{len} {per_sec} {eta} left";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style).with_prefix(title.clone())
        });
        TaskProgress { title, bar, begun: Instant::now(), said: Instant::now() }
    }

    pub(super) fn show(&mut self, at: Progress) {
        if at.answered == at.before && at.damaged > 0 {
            note(format_args!(
                "{}: {} lines of its answers cannot be read and are asked again",
                self.title, at.damaged
            ));
        }
        if let Some(bar) = &self.bar {
            if bar.length() != Some(at.requests as u64) {
                bar.set_length(at.requests as u64);
                // The speed is that of the answers to come.
                bar.reset_eta();
            }
            bar.set_position(at.answered as u64);
            return;
        }
        if is_quiet() || self.said.elapsed() < BETWEEN {
            return;
        }
        self.said = Instant::now();
        let (new, left) = (at.answered - at.before, at.requests - at.answered);
        if new > 0 {
            let seconds = self.begun.elapsed().as_secs_f64();
            let left = Duration::from_secs_f64(seconds / new as f64 * left as f64);
            let left = indicatif::HumanDuration(left);
            // If standard error is closed, the work continues.
            let _ = writeln!(
                stderr(),
                "{}: {} of {} requests, {:.1}/s, {left} left",
                self.title,
                at.answered,
                at.requests,
                new as f64 / seconds
            );
        }
    }
}

impl Drop for TaskProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
