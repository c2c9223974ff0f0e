//! How sure a result is: standard errors, intervals, and tests of a difference.
//!
//! Questions are taken as drawn from a larger set that the suite stands for. What belongs together, such as the questions
//! about one passage, is drawn together: [`Question::group`](crate::Question::group).

use std::collections::BTreeMap;

use olmoe_data::random::Mersenne;
use serde::{Deserialize, Serialize};

/// The 97.5 % quantile of the normal distribution: intervals are of 95 %.
const QUANTILE: f64 = 1.959_963_984_540_054;

/// The value of a metric for a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuestionValue {
    /// The number of the question, unique in its task.
    pub id: u64,
    /// The group of questions that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The value: 0 or 1 for metrics that are a share of questions.
    pub value: f64,
}

/// What a number of a task is the mean of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Average {
    /// Of questions. Groups are clusters: drawn as a whole.
    Questions,
    /// Of the means of groups, each with the same weight, whatever its size: a macro average. Groups are strata: all of
    /// them are there, and questions are drawn within each. Questions without a group are one more.
    Groups,
}

/// A mean and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error; none where it cannot be known, as of one question.
    pub standard_error: Option<f64>,
    /// The interval of 95 %: Wilson's where values are 0 and 1 and independent, else the normal one.
    pub interval: Option<[f64; 2]>,
    /// The number of questions.
    pub questions: usize,
    /// The number of groups, where questions have them.
    pub groups: Option<usize>,
}

impl Estimate {
    /// The mean of values; none of no values.
    ///
    /// The standard error of a mean over `n` independent questions is `√(Σ(v − v̄)² / (n(n − 1)))`, for shares
    /// `√(p(1 − p) / (n − 1))`. With `G` groups as clusters it is `√(G/(G − 1) · Σ_g (Σ_{i∈g} (v_i − v̄))²) / n`, the cluster-robust
    /// CR1 of a regression on a constant, which is the same where every group has one question; of a macro average it is
    /// `√(Σ_g s_g²) / G` with the standard error `s_g` of each group.
    pub fn of(values: &[QuestionValue], average: Average) -> Option<Estimate> {
        let plain: Vec<f64> = values.iter().map(|value| value.value).collect();
        if values.is_empty() {
            return None;
        }
        let mean_of_all = mean(&plain);
        let parts = parts(values);
        let (mean, standard_error) = match average {
            Average::Questions if parts.grouped => (mean_of_all, clustered_error(&parts.values, mean_of_all)),
            Average::Questions => (mean_of_all, standard_error(&plain)),
            Average::Groups => {
                let means: Vec<f64> = parts.values.iter().map(|part| mean(part)).collect();
                let errors: Option<Vec<f64>> = parts.values.iter().map(|part| standard_error(part)).collect();
                let count = parts.values.len() as f64;
                let error = errors.map(|errors| errors.iter().map(|error| error * error).sum::<f64>().sqrt() / count);
                (means.iter().sum::<f64>() / count, error)
            }
        };
        let groups = parts.grouped.then_some(parts.values.len());
        let mut estimate = Estimate { mean, standard_error, interval: None, questions: values.len(), groups };
        let binary = plain.iter().all(|value| *value == 0.0 || *value == 1.0);
        estimate.interval = match binary && !parts.grouped {
            true => Some(wilson(plain.iter().sum(), plain.len() as f64)),
            false => estimate.normal_interval(),
        };
        Some(estimate)
    }

    /// The interval of 95 % if the mean is normally distributed.
    pub fn normal_interval(&self) -> Option<[f64; 2]> {
        self.standard_error.map(|error| [self.mean - QUANTILE * error, self.mean + QUANTILE * error])
    }
}

/// The values by group, in the order of the names; where no question has a group, each value is on its own.
struct Parts {
    grouped: bool,
    values: Vec<Vec<f64>>,
}

fn parts(values: &[QuestionValue]) -> Parts {
    if values.iter().all(|value| value.group.is_none()) {
        return Parts { grouped: false, values: values.iter().map(|value| vec![value.value]).collect() };
    }
    let mut groups: BTreeMap<Option<&str>, Vec<f64>> = BTreeMap::new();
    for value in values {
        groups.entry(value.group.as_deref()).or_default().push(value.value);
    }
    Parts { grouped: true, values: groups.into_values().collect() }
}

/// The mean, NaN of no values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard error of the mean of independent values, the sample's standard deviation over `√n`; none of fewer than two.
pub fn standard_error(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let (count, mean) = (values.len() as f64, mean(values));
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (count - 1.0)).sqrt() / count.sqrt())
}

/// The standard error of a mean whose values come in clusters; none of fewer than two of them.
fn clustered_error(clusters: &[Vec<f64>], mean: f64) -> Option<f64> {
    let count = clusters.len() as f64;
    let all: usize = clusters.iter().map(Vec::len).sum();
    let squares: f64 =
        clusters.iter().map(|cluster| cluster.iter().map(|value| value - mean).sum::<f64>().powi(2)).sum();
    (clusters.len() > 1).then(|| (count / (count - 1.0) * squares).sqrt() / all as f64)
}

/// Wilson's interval of 95 % for a share (Wilson 1927).
fn wilson(ones: f64, count: f64) -> [f64; 2] {
    let share = ones / count;
    let square = QUANTILE * QUANTILE / count;
    let centre = (share + square / 2.0) / (1.0 + square);
    let half = QUANTILE * (share * (1.0 - share) / count + square / (4.0 * count)).sqrt() / (1.0 + square);
    [(centre - half).max(0.0), (centre + half).min(1.0)]
}

/// What resampling says of a mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// The interval of 95 % between quantiles of the resampled means.
    pub interval: [f64; 2],
    /// The two-sided probability of a mean on the other side of 0, or on it: `2 (min(#≤0, #≥0) + 1) / (R + 1)` of `R` means.
    pub p: f64,
}

impl Bootstrap {
    /// Draws `resamples` times as many questions as there are, with replacement, with Python's generator and seed; whole
    /// clusters, or within strata, as [`Average`] has it. The same arguments give the same result. None of no values and
    /// of no resamples.
    pub fn of(values: &[QuestionValue], average: Average, resamples: usize, seed: u64) -> Option<Bootstrap> {
        let parts = parts(values);
        if parts.values.is_empty() || resamples == 0 {
            return None;
        }
        let mut random = Mersenne::python(seed);
        let mut below = |bound: usize| (random.uniform() * bound as f64) as usize;
        let sums: Vec<(f64, usize)> = parts.values.iter().map(|part| (part.iter().sum(), part.len())).collect();
        let mut means: Vec<f64> = (0..resamples)
            .map(|_| match average {
                Average::Questions => {
                    let drawn = (0..sums.len()).map(|_| sums[below(sums.len())]);
                    let (sum, count) = drawn.fold((0.0, 0), |(sum, count), one| (sum + one.0, count + one.1));
                    sum / count as f64
                }
                Average::Groups => {
                    let of_part = |part: &Vec<f64>| {
                        (0..part.len()).map(|_| part[below(part.len())]).sum::<f64>() / part.len() as f64
                    };
                    parts.values.iter().map(of_part).sum::<f64>() / parts.values.len() as f64
                }
            })
            .collect();
        means.sort_unstable_by(f64::total_cmp);
        let at_most = means.partition_point(|mean| *mean <= 0.0);
        let at_least = resamples - means.partition_point(|mean| *mean < 0.0);
        let p = 2.0 * (at_most.min(at_least) as f64 + 1.0) / (resamples as f64 + 1.0);
        Some(Bootstrap { interval: [quantile(&means, 0.025), quantile(&means, 0.975)], p: p.min(1.0) })
    }
}

/// The quantile of sorted values, by linear interpolation, as NumPy's `percentile`.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// McNemar's test of two models on the same questions: only those count that one of them answered rightly.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct McNemar {
    /// Questions that only the second model answered rightly.
    pub gained: u64,
    /// Questions that only the first model answered rightly.
    pub lost: u64,
    /// The two-sided probability of such a difference or a greater one, if each of those questions were a fair coin's.
    pub exact: f64,
    /// The same with half the probability of what was seen, the mid-p variant: less conservative, and the one to quote
    /// (Fagerland, Lydersen and Laake 2013).
    pub mid_p: f64,
}

impl McNemar {
    /// The test of these counts.
    pub fn of(gained: u64, lost: u64) -> McNemar {
        let (smaller, both) = (gained.min(lost), gained + lost);
        // ln of the binomial probability of `smaller` of `both`, then the terms below it as ratios to it.
        let ln_choices: f64 = (1..=smaller).map(|i| ((both - smaller + i) as f64 / i as f64).ln()).sum();
        let seen = (ln_choices - both as f64 * std::f64::consts::LN_2).exp();
        let (mut ratio, mut below) = (1.0, 0.0);
        for i in (1..=smaller).rev() {
            ratio *= i as f64 / (both - i + 1) as f64;
            below += ratio;
            if ratio < 1e-18 * below {
                break;
            }
        }
        let exact = (2.0 * seen * (1.0 + below)).min(1.0);
        let mid_p = (2.0 * seen * (0.5 + below)).min(1.0);
        McNemar { gained, lost, exact, mid_p }
    }

    /// The test of pairs of values; none if one is neither 0 nor 1.
    pub fn of_pairs(pairs: impl Iterator<Item = (f64, f64)>) -> Option<McNemar> {
        let (mut gained, mut lost) = (0, 0);
        for pair in pairs {
            match pair {
                (0.0, 1.0) => gained += 1,
                (1.0, 0.0) => lost += 1,
                (0.0, 0.0) | (1.0, 1.0) => {}
                _ => return None,
            }
        }
        Some(McNemar::of(gained, lost))
    }
}
