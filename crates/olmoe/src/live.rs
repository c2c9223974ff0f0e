//! The state of a training run on standard error: one changing line on a terminal, plain lines elsewhere.

use std::fmt;
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::is_quiet;

/// The state of a run after a step. Unknown values are left out of the line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Now {
    /// The number of steps done.
    pub(crate) step: u64,
    /// The number of steps of the run.
    pub(crate) steps: Option<u64>,
    /// Cross-entropy of the batch.
    pub(crate) loss: f64,
    pub(crate) learning_rate: f64,
    /// The norm of all gradients, before clipping.
    pub(crate) gradient_norm: Option<f64>,
    pub(crate) tokens_per_second: f64,
    /// The operations of a second as a share of the machine's peak, from 0 to 1.
    pub(crate) share_of_peak: Option<f64>,
    /// The load of the busiest expert over the mean load.
    pub(crate) load: Option<f64>,
    /// The estimated time to the end.
    pub(crate) left: Option<Duration>,
}

impl fmt::Display for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A narrow terminal cuts off the end, so the most important values come first.
        write!(f, "step {}", self.step)?;
        if let Some(steps) = self.steps {
            write!(f, "/{steps}")?;
        }
        if let Some(left) = self.left {
            write!(f, " · {} left", duration(left))?;
        }
        write!(f, " · loss {:.3} · {} tok/s", self.loss, short(self.tokens_per_second))?;
        if let Some(share) = self.share_of_peak {
            write!(f, " · {:.0} % of peak", share * 100.0)?;
        }
        if let Some(load) = self.load {
            write!(f, " · load {load:.2}")?;
        }
        if let Some(norm) = self.gradient_norm {
            write!(f, " · grad {norm:.2}")?;
        }
        write!(f, " · lr {:.1e}", self.learning_rate)?;
        Ok(())
    }
}

/// Prints the line.
pub(crate) struct LiveLine {
    bar: Option<ProgressBar>,
    /// The number of steps between plain lines.
    interval: u64,
    quiet: bool,
}

impl LiveLine {
    /// `interval` is `console_log_interval`. With --quiet, nothing is printed.
    pub(crate) fn new(interval: u64) -> LiveLine {
        let quiet = is_quiet();
        let bar = (!quiet && stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
        });
        LiveLine { bar, interval: interval.max(1), quiet }
    }

    /// Shows the state after a step; the last step always has a plain line.
    pub(crate) fn show(&self, now: &Now) {
        if let Some(bar) = &self.bar {
            bar.set_message(now.to_string());
            bar.tick();
        } else if !self.quiet && self.is_due(now) {
            // If standard error is closed, the run continues.
            let _ = writeln!(stderr(), "{now}");
        }
    }

    /// Prints a line of its own above the state, such as that of an evaluation or a checkpoint.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| {
                let _ = writeln!(stderr(), "{text}");
            }),
            None => {
                let _ = writeln!(stderr(), "{text}");
            }
        }
    }

    fn is_due(&self, now: &Now) -> bool {
        now.step.is_multiple_of(self.interval) || now.steps == Some(now.step)
    }
}

impl Drop for LiveLine {
    /// Leaves the last line on the terminal.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// Three or four digits: `980`, `12.4k`, `1.26M`, `5.13T`.
pub(crate) fn short(value: f64) -> String {
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")];
    // 999.96 thousand would round to 1000k, so it is a million.
    let unit = units.into_iter().find(|(unit, _)| value.abs() >= unit * 0.999_5);
    match unit {
        _ if !value.is_finite() => value.to_string(),
        Some((unit, name)) => {
            let value = value / unit;
            let places = if value.abs() < 9.995 { 2 } else { usize::from(value.abs() < 99.95) };
            format!("{value:.places$}{name}")
        }
        None if value.abs() >= 99.95 || value.fract() == 0.0 => format!("{value:.0}"),
        None => format!("{value:.1}"),
    }
}

/// At most two units: `45s`, `2m 50s`, `12m`, `3h 20m`, `2d 4h`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if minutes == 0 => format!("{seconds}s"),
        () if minutes < 10 => format!("{minutes}m {}s", seconds % 60),
        () if hours == 0 => format!("{minutes}m"),
        () if days == 0 => format!("{hours}h {}m", minutes % 60),
        () => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_known() {
        let mut now = Now {
            step: 120,
            steps: Some(3000),
            loss: 4.2131,
            learning_rate: 3.9e-4,
            gradient_norm: Some(0.8151),
            tokens_per_second: 12_412.0,
            share_of_peak: Some(0.461),
            load: Some(1.3149),
            left: Some(Duration::from_secs(12 * 60 + 40)),
        };
        let whole =
            "step 120/3000 · 12m left · loss 4.213 · 12.4k tok/s · 46 % of peak · load 1.31 · grad 0.82 · lr 3.9e-4";
        assert_eq!(now.to_string(), whole);
        let line = LiveLine { bar: None, interval: 50, quiet: false };
        assert!(!line.is_due(&now));
        now = Now { step: 3000, loss: f64::NAN, ..Now::default() };
        assert_eq!(now.to_string(), "step 3000 · loss NaN · 0 tok/s · lr 0.0e0");
        assert!(line.is_due(&now));
        let last = Now { step: 77, steps: Some(77), ..now };
        assert!(line.is_due(&last) && !line.is_due(&Now { steps: Some(78), ..last.clone() }));
        // Nothing to see here, and nothing to fail.
        let quiet = LiveLine { bar: None, interval: 1, quiet: true };
        quiet.show(&last);
        quiet.note("a note");
    }

    #[test]
    fn numbers_are_short() {
        for (value, expected) in [
            (0.0, "0"),
            (7.25, "7.2"),
            (980.4, "980"),
            (999.7, "1.00k"),
            (1260.0, "1.26k"),
            (12_412.0, "12.4k"),
            (999_960.0, "1.00M"),
            (250e6, "250M"),
            (5.13e12, "5.13T"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(short(value), expected);
        }
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m 0s"),
            (170, "2m 50s"),
            (3599, "59m"),
            (12_000, "3h 20m"),
            (187_200, "2d 4h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), expected);
        }
    }
}
