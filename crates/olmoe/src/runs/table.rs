//! Runs as a table and as JSON.

use std::time::UNIX_EPOCH;

use olmoe_train::metrics::LOSS;
use serde_json::{Map, Value, json};

use super::run::Run;
use crate::live::{duration, short};

/// A row for each run, under a row of headings.
pub(super) fn lines(runs: &[Run], metrics: &[String], smooth: usize) -> Vec<String> {
    let heading = |name: &String| if name == LOSS { "loss".to_owned() } else { printable(name) };
    let mut rows = vec![["run", "state", "steps", "tokens"].map(str::to_owned).to_vec()];
    rows[0].extend(metrics.iter().map(heading));
    rows[0].extend(["best eval", "tok/s", "when"].map(str::to_owned));
    rows.extend(runs.iter().map(|run| row(run, smooth)));

    let columns = rows[0].len();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (column, (text, width)) in row.iter().zip(&widths).enumerate() {
            let room = " ".repeat(width - text.chars().count());
            // Text is aligned left, numbers right.
            let words = column < 2 || column + 1 == columns;
            let cell = if words { format!("{text}{room}") } else { format!("{room}{text}") };
            line = if column == 0 { cell } else { format!("{line}  {cell}") };
        }
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn row(run: &Run, smooth: usize) -> Vec<String> {
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut cells = vec![printable(&run.folder.display().to_string()), run.state.name().to_owned()];
    cells.push(match run.max_steps {
        Some(steps) => format!("{}/{steps}", run.step),
        None => run.step.to_string(),
    });
    cells.push(known(run.tokens.map(short)));
    cells.extend(run.series.iter().map(|series| known(series.last(smooth).map(number))));
    cells.push(known(run.best_eval.as_ref().map(|best| format!("{} @{}", number(best.value), best.step))));
    cells.push(known(run.tokens_per_second.map(short)));
    // If the clock was set back, no age is shown.
    let age = run.modified.and_then(|modified| modified.elapsed().ok());
    cells.push(known(age.map(|age| format!("{} ago", duration(age)))));
    cells
}

/// Escapes control characters: names may hold anything, and a terminal would execute some of it.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{FFFD}' } else { letter }).collect()
}

/// About four digits: `4.213`, `0.0821`, `3.90e-4`, `1.26M`.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 1e-2 => format!("{value:.2e}"),
        size if size < 1.0 => format!("{value:.4}"),
        size if size < 100.0 => format!("{value:.3}"),
        size if size < 1e4 => format!("{value:.1}"),
        _ => short(value),
    }
}

/// An object with the array `runs`; numbers that JSON cannot represent are null.
pub(super) fn json(runs: &[Run], metrics: &[String], smooth: usize) -> Value {
    let run = |run: &Run| {
        let metric = |name: &String| {
            let series = run.series.iter().find(|series| series.name == *name);
            let raw = series.and_then(|series| series.values.last());
            let smoothed = series.and_then(|series| series.last(smooth));
            let value = json!({
                "step": raw.map(|raw| raw.0), "last": raw.map(|raw| raw.2), "smoothed": smoothed,
                "count": series.map_or(0, |series| series.values.len()),
            });
            (name.clone(), value)
        };
        let modified = run.modified.and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());
        json!({
            "path": run.folder.display().to_string(),
            "state": run.state.name(),
            "records": run.records,
            "step": run.step,
            "max_steps": run.max_steps,
            "tokens": run.tokens,
            "tokens_per_second": run.tokens_per_second,
            "best_eval": run.best_eval.as_ref().map(|best| json!({"step": best.step, "value": best.value})),
            "modified": modified.map(|modified| modified.as_secs()),
            "metrics": metrics.iter().map(metric).collect::<Map<String, Value>>(),
        })
    };
    json!({ "smooth": smooth, "runs": runs.iter().map(run).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_matter() {
        for (value, expected) in [
            (0.0, "0"),
            (4.2131, "4.213"),
            (0.08214, "0.0821"),
            (3.9e-4, "3.90e-4"),
            (67.5, "67.500"),
            (1234.56, "1234.6"),
            (1.26e6, "1.26M"),
            (-2.5, "-2.500"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(number(value), expected);
        }
        assert_eq!(printable("a\x1b[2Jb\n"), "a\u{FFFD}[2Jb\u{FFFD}");
    }
}
