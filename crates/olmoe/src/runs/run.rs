//! A run as its folder describes it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use olmoe_train::metrics::{
    EXPERT_LOAD, FILE_NAME, LOSS, MAX_STEPS, MetricsError, Reader, Record, TOKENS_PER_SECOND, TOTAL_TOKENS,
    is_being_written,
};

/// A run.
pub(super) struct Run {
    pub(super) folder: PathBuf,
    pub(super) records: u64,
    /// The last step.
    pub(super) step: u64,
    pub(super) max_steps: Option<u64>,
    /// The number of tokens seen.
    pub(super) tokens: Option<f64>,
    pub(super) tokens_per_second: Option<f64>,
    pub(super) best_eval: Option<Best>,
    pub(super) state: State,
    /// When the last record was written.
    pub(super) modified: Option<SystemTime>,
    /// The requested metrics, in order.
    pub(super) series: Vec<Series>,
    /// The names of all metrics.
    pub(super) names: BTreeSet<String>,
}

/// The values of one metric.
pub(super) struct Series {
    pub(super) name: String,
    /// Step, number of tokens if known, and value.
    pub(super) values: Vec<(u64, Option<f64>, f64)>,
}

/// The evaluation with the lowest cross-entropy.
pub(super) struct Best {
    pub(super) step: u64,
    pub(super) value: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// A process is appending records.
    Running,
    /// All steps are done.
    Finished,
    /// The last loss is NaN or infinite.
    Diverged,
    /// Neither of these: interrupted, or its last step is not known.
    Stopped,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Finished => "finished",
            State::Diverged => "diverged",
            State::Stopped => "stopped",
        }
    }
}

impl Run {
    /// Reads the records of a folder and keeps these metrics only.
    pub(super) fn read(folder: &Path, metrics: &[String]) -> Result<Run, MetricsError> {
        let path = folder.join(FILE_NAME);
        // This is asked first, so that a run that ends meanwhile has all its records read.
        let running = is_being_written(&path);
        let series = |name: &String| Series { name: name.clone(), values: Vec::new() };
        let mut run = Run {
            folder: folder.to_owned(),
            records: 0,
            step: 0,
            max_steps: None,
            tokens: None,
            tokens_per_second: None,
            best_eval: None,
            state: State::Stopped,
            modified: std::fs::metadata(&path).and_then(|metadata| metadata.modified()).ok(),
            series: metrics.iter().map(series).collect(),
            names: BTreeSet::new(),
        };
        let (mut speeds, mut loss) = (Vec::new(), 0.0);
        for record in Reader::open(&path)? {
            let record = record?;
            run.add(&record);
            speeds.extend(record.get(TOKENS_PER_SECOND).filter(|speed| speed.is_finite()));
            loss = record.get(LOSS).unwrap_or(loss);
        }
        run.tokens_per_second = median(&mut speeds);
        run.state = match run.max_steps {
            _ if !loss.is_finite() => State::Diverged,
            _ if running => State::Running,
            Some(steps) if run.step >= steps => State::Finished,
            _ => State::Stopped,
        };
        Ok(run)
    }

    fn add(&mut self, record: &Record) {
        self.records += 1;
        self.step = record.step;
        self.tokens = record.get(TOTAL_TOKENS).filter(|tokens| tokens.is_finite()).or(self.tokens);
        if let Some(steps) = record.get(MAX_STEPS).filter(|steps| *steps >= 1.0) {
            self.max_steps = Some(steps as u64);
        }
        for (name, _) in record.values() {
            if !self.names.contains(name) {
                self.names.insert(name.to_owned());
            }
        }
        for series in &mut self.series {
            let value = if series.name == EXPERT_LOAD { record.expert_load() } else { record.get(&series.name) };
            series.values.extend(value.map(|value| (record.step, self.tokens, value)));
        }
        let is_eval = |name: &str| name.starts_with("eval/") && name.ends_with("/CrossEntropyLoss");
        let evals: Vec<f64> = record.values().filter(|(name, _)| is_eval(name)).map(|(_, value)| value).collect();
        let value = evals.iter().sum::<f64>() / evals.len() as f64;
        // Without an evaluation the mean is 0 / 0, which is NaN.
        if value.is_finite() && self.best_eval.as_ref().is_none_or(|best| value < best.value) {
            self.best_eval = Some(Best { step: record.step, value });
        }
    }
}

impl Series {
    /// The mean of the last `window` values, without NaN and infinities; if the last value is one of these, that value.
    pub(super) fn last(&self, window: usize) -> Option<f64> {
        let last = self.values.last()?.2;
        let window = &self.values[self.values.len().saturating_sub(window)..];
        let finite = window.iter().map(|(_, _, value)| *value).filter(|value| value.is_finite());
        let (sum, count) = finite.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
        Some(if last.is_finite() { sum / f64::from(count) } else { last })
    }
}

/// At every position the mean of the last `window` values, without NaN and infinities, which keep their positions.
pub(super) fn smoothed(values: &[f64], window: usize) -> Vec<f64> {
    let finite = |value: f64| if value.is_finite() { (value, 1) } else { (0.0, 0) };
    let (mut sum, mut count) = (0.0, 0);
    let mut means = Vec::with_capacity(values.len());
    for (at, &value) in values.iter().enumerate() {
        if at % window == 0 {
            // Adding and subtracting accumulates rounding errors; this clears them.
            let (first, last) = ((at + 1).saturating_sub(window), at);
            (sum, count) = (0.0, 0);
            for &value in &values[first..last] {
                let (number, one) = finite(value);
                (sum, count) = (sum + number, count + one);
            }
        } else if at >= window {
            let (number, one) = finite(values[at - window]);
            (sum, count) = (sum - number, count - one);
        }
        let (number, one) = finite(value);
        (sum, count) = (sum + number, count + one);
        means.push(if one == 1 { sum / f64::from(count) } else { value });
    }
    means
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_of_what_came_before() {
        assert_eq!(smoothed(&[4.0, 2.0, 0.0, 1.0], 2), [4.0, 3.0, 1.0, 0.5]);
        assert_eq!(smoothed(&[4.0, 2.0], 1), [4.0, 2.0]);
        assert_eq!(smoothed(&[4.0, 2.0], usize::MAX), [4.0, 3.0]);
        let with_gap = smoothed(&[4.0, f64::NAN, 2.0], 3);
        assert!(with_gap[0] == 4.0 && with_gap[1].is_nan() && with_gap[2] == 3.0);
        assert!(smoothed(&[], 3).is_empty());
        let values: Vec<f64> = (0..100).map(|at| f64::from(at * at % 17)).collect();
        for window in [1, 2, 3, 7, 99, 100, 101] {
            for (at, mean) in smoothed(&values, window).into_iter().enumerate() {
                let last = &values[(at + 1).saturating_sub(window)..=at];
                assert_eq!(mean, last.iter().sum::<f64>() / last.len() as f64, "{window} {at}");
            }
        }
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&mut []), None);
    }
}
