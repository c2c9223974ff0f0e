//! Two runs over the same questions.
//!
//! The questions are the same, so what counts is each question's own difference. Two runs that are right about the same
//! questions differ surely by little; the error of a difference of different questions, `√(s₁² + s₂²)`, would call that noise.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::statistics::{Average, Bootstrap, Estimate, McNemar, QuestionValue};

/// The values of a task in a run.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskValues<'a> {
    /// The name of the task.
    pub task: &'a str,
    /// The name of the metric.
    pub metric: &'a str,
    /// What the task's number is the mean of.
    pub average: Average,
    /// The values, a question each.
    pub values: &'a [QuestionValue],
}

/// How the bootstrap is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resampling {
    /// How many times.
    pub resamples: usize,
    /// The seed of the draws.
    pub seed: u64,
}

impl Default for Resampling {
    /// 10,000 times from seed 1234.
    fn default() -> Resampling {
        Resampling { resamples: 10_000, seed: 1234 }
    }
}

/// What two runs say of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The name of the task.
    pub task: String,
    /// The name of the metric.
    pub metric: String,
    /// The first run, over the questions of both.
    pub first: Estimate,
    /// The second run, over the questions of both.
    pub second: Estimate,
    /// The mean of second − first with the standard error and interval of the pairs.
    pub difference: Estimate,
    /// The same by resampling the differences.
    pub bootstrap: Bootstrap,
    /// McNemar's test, where values are 0 and 1.
    pub mcnemar: Option<McNemar>,
    /// The questions whose values differ, in the order of the first run.
    pub changed: Vec<Change>,
    /// The number of questions that only one of the runs answered; they are left out.
    pub only_in: [usize; 2],
}

/// A question whose value differs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The number of the question.
    pub id: u64,
    /// Its value in the first run.
    pub first: f64,
    /// Its value in the second run.
    pub second: f64,
}

/// Why runs cannot be compared.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum CompareError {
    /// The numbers are of different things.
    #[error("task {task}: {second} in the second run, {first} in the first; compare the same metric of the same task")]
    Different {
        /// The task in the first run.
        task: String,
        /// What the first run has.
        first: String,
        /// What the second run has.
        second: String,
    },
    /// No question is in both.
    #[error(
        "task {task}: none of the {first} and {second} questions is in both runs; were they made with the same data and \
         --limit?"
    )]
    Disjoint {
        /// The task.
        task: String,
        /// The number of questions in the first run.
        first: usize,
        /// The number of questions in the second run.
        second: usize,
    },
    /// A number stands for two questions.
    #[error("task {task}: question {id} is there twice in the {run} run; the records are damaged, run the task again")]
    Twice {
        /// The task.
        task: String,
        /// The number of the question.
        id: u64,
        /// The run.
        run: &'static str,
    },
    /// A question belongs to one group in one run and to another in the other.
    #[error("task {task}: question {id} is in another group in the second run; were they made with the same data?")]
    Regrouped {
        /// The task.
        task: String,
        /// The number of the question.
        id: u64,
    },
}

/// Compares a task in two runs over the questions that both answered.
///
/// # Errors
/// [`CompareError`].
pub fn compare(
    first: &TaskValues<'_>,
    second: &TaskValues<'_>,
    resampling: Resampling,
) -> Result<Comparison, CompareError> {
    let task = first.task.to_owned();
    let names = |run: &TaskValues<'_>| format!("{} of {} as the mean of {:?}", run.metric, run.task, run.average);
    if (first.task, first.metric, first.average) != (second.task, second.metric, second.average) {
        return Err(CompareError::Different { task, first: names(first), second: names(second) });
    }
    let by_id = |values: &TaskValues<'_>, run| {
        let mut by_id = HashMap::with_capacity(values.values.len());
        for (at, value) in values.values.iter().enumerate() {
            if by_id.insert(value.id, at).is_some() {
                return Err(CompareError::Twice { task: task.clone(), id: value.id, run });
            }
        }
        Ok(by_id)
    };
    by_id(first, "first")?;
    let in_second = by_id(second, "second")?;
    let mut pairs = Vec::new();
    for one in first.values {
        let Some(other) = in_second.get(&one.id).map(|at| &second.values[*at]) else { continue };
        if one.group != other.group {
            return Err(CompareError::Regrouped { task, id: one.id });
        }
        pairs.push((one, other));
    }
    let values = |value: &dyn Fn(f64, f64) -> f64| -> Vec<QuestionValue> {
        let of_pair = |(one, other): &(&QuestionValue, &QuestionValue)| QuestionValue {
            value: value(one.value, other.value),
            ..(*one).clone()
        };
        pairs.iter().map(of_pair).collect()
    };
    let differences = values(&|one, other| other - one);
    let estimate = |values: &[QuestionValue]| Estimate::of(values, first.average);
    let (Some(of_first), Some(of_second), Some(mut difference), Some(bootstrap)) = (
        estimate(&values(&|one, _| one)),
        estimate(&values(&|_, other| other)),
        estimate(&differences),
        Bootstrap::of(&differences, first.average, resampling.resamples.max(1), resampling.seed),
    ) else {
        return Err(CompareError::Disjoint { task, first: first.values.len(), second: second.values.len() });
    };
    // Differences that happen to be 0 and 1 are no share of anything.
    difference.interval = difference.normal_interval();
    let changed = pairs.iter().filter(|(one, other)| one.value != other.value);
    Ok(Comparison {
        metric: first.metric.to_owned(),
        first: of_first,
        second: of_second,
        difference,
        bootstrap,
        mcnemar: McNemar::of_pairs(pairs.iter().map(|(one, other)| (one.value, other.value))),
        changed: changed.map(|(one, other)| Change { id: one.id, first: one.value, second: other.value }).collect(),
        only_in: [first.values.len() - pairs.len(), second.values.len() - pairs.len()],
        task,
    })
}
