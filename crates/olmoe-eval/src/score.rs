//! From answers to numbers.
//!
//! [`score`] computes the metrics of a task per question, and of them the task's own numbers: means with their standard
//! errors, and macro averages where questions have groups. An [`Aggregate`] makes one number of several tasks.

mod checked;

use serde::{Deserialize, Serialize};

use crate::aliases;
use crate::answer::{Answer, Scored};
use crate::metric::{ChainOfThought, Metric, Normalization};
use crate::statistics::{Average, Estimate, QuestionValue, mean};
use crate::task::{Gold, Question, Request, Task};

use checked::Unfit;
pub use checked::Verdicts;
pub(crate) use checked::instructions;

/// The logarithm to base 2 of e, as the program that bits per byte come from rounds it.
#[expect(clippy::approx_constant)]
const LOG_2_OF_E: f64 = 1.442_695_040_89;

/// The numbers of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// One a metric, in the order of the task.
    pub metrics: Vec<MetricScore>,
    /// One a question, in the order of the task.
    pub questions: Vec<QuestionScore>,
}

impl TaskScore {
    /// A metric by its name.
    pub fn metric(&self, name: &str) -> Option<&MetricScore> {
        self.metrics.iter().find(|metric| metric.name == name)
    }

    /// The values of a metric by its name, for [`compare`](crate::compare::compare) and [`Estimate`].
    pub fn values(&self, name: &str) -> Option<Vec<QuestionValue>> {
        self.metrics.iter().position(|metric| metric.name == name).map(|at| question_values(&self.questions, at))
    }
}

fn question_values(questions: &[QuestionScore], metric: usize) -> Vec<QuestionValue> {
    let value = |question: &QuestionScore| QuestionValue {
        id: question.id,
        group: question.group.clone(),
        value: question.values.get(metric).copied().unwrap_or(f64::NAN),
    };
    questions.iter().map(value).collect()
}

/// A metric of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricScore {
    /// The metric's [name](Metric::name).
    pub name: String,
    /// The mean over the questions; of F1, its value; where each question has several instructions, the mean over these.
    pub value: f64,
    /// The standard error of the mean, [clustered](Estimate::of) where questions have groups; none of one question or
    /// group, and of F1 and other numbers that are no means of questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error: Option<f64>,
    /// The number of questions.
    pub count: usize,
    /// The mean over the groups of their means, where questions have groups; those without are one more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macro_average: Option<f64>,
}

/// The values of a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuestionScore {
    /// The question's number.
    pub id: u64,
    /// Its group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// One a metric.
    pub values: Vec<f64>,
}

/// Why answers cannot be scored.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MetricError {
    /// Questions without answers, or answers without questions.
    #[error("task {task}: answers to {found} of {expected} questions; finish the run before its results are computed")]
    Questions {
        /// The task.
        task: String,
        /// Questions.
        expected: usize,
        /// Answers.
        found: usize,
    },
    /// A question whose answers are not what its metric needs.
    #[error("task {task}, question {id}: the metric {metric} needs {expected}, and found {found}")]
    Answers {
        /// The task.
        task: String,
        /// The question's number.
        id: u64,
        /// The metric.
        metric: String,
        /// What is needed.
        expected: String,
        /// What is there.
        found: String,
    },
}

/// Scores the answers of a task, `answers[i][j]` being that to request `j` of question `i`.
///
/// # Errors
/// [`MetricError`] if answers are missing or of another kind than the metrics need, or a log-probability is NaN.
pub fn score(task: &Task, answers: &[Vec<Answer>]) -> Result<TaskScore, MetricError> {
    score_with(task, answers, None)
}

/// The same with what was found out about generated texts elsewhere. Questions that a judge gave no verdict on are left
/// out: [`MetricScore::count`] is that of the others.
///
/// # Errors
/// As [`score`], and if a metric [needs verdicts](crate::metric::Checker::needs_verdicts) that are not there.
pub fn score_with(task: &Task, answers: &[Vec<Answer>], verdicts: Option<&Verdicts>) -> Result<TaskScore, MetricError> {
    let expected = task.questions.len();
    for found in [Some(answers.len()), verdicts.map(Vec::len)].into_iter().flatten() {
        if expected != found {
            return Err(MetricError::Questions { task: task.name.clone(), expected, found });
        }
    }
    let (mut asked, mut questions) = (Vec::with_capacity(expected), Vec::with_capacity(expected));
    let mut predictions = Vec::new();
    let unfit = |id: u64, metric: Metric, (expected, found): Unfit| MetricError::Answers {
        task: task.name.clone(),
        id,
        metric: metric.name(),
        expected,
        found,
    };
    for (at, (question, answers)) in task.questions.iter().zip(answers).enumerate() {
        let of = |metric: &Metric| {
            let found = match metric {
                Metric::Checked(checker) => {
                    checker.value(question, answers, verdicts.map(|verdicts| verdicts[at].as_slice()))
                }
                metric => value(*metric, question, answers).map(Some),
            };
            found.map_err(|error| unfit(question.id, *metric, error))
        };
        let values = task.metrics.iter().map(of).collect::<Result<Option<Vec<f64>>, MetricError>>()?;
        let Some(values) = values else { continue };
        if task.metrics.contains(&Metric::F1)
            && let Ok((choices, gold)) = choices(question, answers)
        {
            predictions.push((gold, most_likely(Normalization::Raw, &choices)));
        }
        asked.push(question);
        questions.push(QuestionScore { id: question.id, group: question.group.clone(), values });
    }
    let metric = |(i, metric): (usize, &Metric)| {
        let values = question_values(&questions, i);
        let total = match metric {
            Metric::F1 => Some(f1(&predictions)),
            Metric::Checked(checker) => {
                let id = asked.first().map_or(0, |question| question.id);
                let values: Vec<f64> = values.iter().map(|value| value.value).collect();
                checker.total(&asked, &values).map_err(|error| unfit(id, *metric, error))?
            }
            _ => None,
        };
        let over = |average| Estimate::of(&values, average).filter(|_| total.is_none());
        let (value, standard_error) = match (total, over(Average::Questions)) {
            (Some(total), _) => (total, None),
            (None, Some(estimate)) => (estimate.mean, estimate.standard_error),
            (None, None) => (f64::NAN, None),
        };
        let macro_average = over(Average::Groups).filter(|estimate| estimate.groups.is_some());
        let macro_average = macro_average.map(|estimate| estimate.mean);
        Ok(MetricScore { name: metric.name(), value, standard_error, count: values.len(), macro_average })
    };
    let metrics = task.metrics.iter().enumerate().map(metric).collect::<Result<Vec<MetricScore>, MetricError>>()?;
    Ok(TaskScore { metrics, questions })
}

/// A choice of a question with its answer.
struct Choice<'a> {
    continuation: &'a str,
    scored: &'a Scored,
}

/// The choices of a question, and which is the right one.
fn choices<'a>(question: &'a Question, answers: &'a [Answer]) -> Result<(Vec<Choice<'a>>, usize), Unfit> {
    let needed = || format!("log-probabilities of {} choices, none of them NaN", question.requests.len());
    if question.requests.len() != answers.len() {
        return Err((needed(), format!("{} answers", answers.len())));
    }
    let mut choices = Vec::with_capacity(answers.len());
    for (request, answer) in question.requests.iter().zip(answers) {
        let (
            Request::Continuation { continuation, .. } | Request::Reply { continuation, .. },
            Answer::Continuation(scored),
        ) = (request, answer)
        else {
            return Err((needed(), "generated text".to_owned()));
        };
        if scored.log_prob.is_nan() || scored.unconditional.is_some_and(f64::is_nan) {
            return Err((needed(), "NaN".to_owned()));
        }
        choices.push(Choice { continuation, scored });
    }
    match question.gold {
        Gold::Choice(gold) if gold < choices.len() => Ok((choices, gold)),
        ref other => Err((format!("a right one of {} choices", choices.len()), format!("{other:?}"))),
    }
}

/// The value of a metric for a question.
fn value(metric: Metric, question: &Question, answers: &[Answer]) -> Result<f64, Unfit> {
    if let Metric::AnswerPrefix(chain) = metric {
        return answer_prefix(chain, question, answers);
    }
    let (choices, gold) = choices(question, answers)?;
    let right = &choices[gold];
    if metric.is_unconditional() && choices.iter().any(|choice| choice.scored.unconditional.is_none()) {
        let needed = "log-probabilities after an unconditional context".to_owned();
        return Err((needed, "choices without them".to_owned()));
    }
    Ok(match metric {
        Metric::Accuracy(normalization) => f64::from(u8::from(most_likely(normalization, &choices) == gold)),
        Metric::F1 => f64::from(u8::from(most_likely(Normalization::Raw, &choices) == gold)),
        Metric::CrossEntropy(space) => -normalized(Normalization::Characters(space), right),
        Metric::BitsPerByte(space) => -normalized(Normalization::Bytes(space), right) * LOG_2_OF_E,
        Metric::Soft(normalization) => soft_log(normalization, &choices, gold).exp(),
        Metric::SoftLog(normalization) => soft_log(normalization, &choices, gold),
        Metric::Greedy => f64::from(u8::from(right.scored.greedy)),
        Metric::Checked(_) => return Err(("generated text".to_owned(), "log-probabilities".to_owned())),
        Metric::AnswerPrefix(_) => unreachable!("computed above: it needs no choices"),
    })
}

/// The share of the texts of a question that begin with a right one.
fn answer_prefix(chain: ChainOfThought, question: &Question, answers: &[Answer]) -> Result<f64, Unfit> {
    let (Gold::Texts(right), [Answer::Generation { texts }]) = (&question.gold, answers) else {
        let found = format!("{} answers, with {:.60?} as right", answers.len(), question.gold);
        return Err(("the texts of one generation, and texts that are right".to_owned(), found));
    };
    let is_right = |text: &String| f64::from(u8::from(aliases::begins_with_one(text, chain.end(), right)));
    Ok(mean(&texts.iter().map(is_right).collect::<Vec<_>>()))
}

/// The log-probability of a choice after normalisation; where unconditional ones are needed, they are there.
fn normalized(normalization: Normalization, choice: &Choice<'_>) -> f64 {
    let Choice { continuation, scored } = choice;
    let unconditional = scored.unconditional.unwrap_or(f64::NAN);
    match normalization {
        Normalization::Raw => scored.log_prob,
        Normalization::Characters(space) => scored.log_prob / space.counted(continuation).chars().count() as f64,
        Normalization::Bytes(space) => scored.log_prob / space.counted(continuation).len() as f64,
        Normalization::Tokens => scored.log_prob / scored.tokens as f64,
        Normalization::Unconditional => scored.log_prob - unconditional,
        Normalization::UnconditionalRatio => scored.log_prob / unconditional,
    }
}

/// The most likely choice, the first of equal ones.
fn most_likely(normalization: Normalization, choices: &[Choice<'_>]) -> usize {
    let mut best = 0;
    let mut highest = f64::NEG_INFINITY;
    for (i, choice) in choices.iter().enumerate() {
        let value = normalized(normalization, choice);
        if value > highest {
            (best, highest) = (i, value);
        }
    }
    best
}

/// The logarithm of the softmax at a choice.
fn soft_log(normalization: Normalization, choices: &[Choice<'_>], gold: usize) -> f64 {
    let values: Vec<f64> = choices.iter().map(|choice| normalized(normalization, choice)).collect();
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if highest == f64::NEG_INFINITY {
        return -(values.len() as f64).ln();
    }
    values[gold] - highest - values.iter().map(|value| (value - highest).exp()).sum::<f64>().ln()
}

/// F1 of pairs of right and predicted choices, choice 0 being the positive one; 0 where it is undefined.
fn f1(predictions: &[(usize, usize)]) -> f64 {
    let count = |right: bool, predicted: bool| {
        predictions.iter().filter(|(gold, guess)| (*gold == 0) == right && (*guess == 0) == predicted).count() as f64
    };
    let (hits, false_alarms, misses) = (count(true, true), count(false, true), count(true, false));
    if hits == 0.0 { 0.0 } else { 2.0 * hits / (2.0 * hits + false_alarms + misses) }
}

/// A number made of the values of tasks, or of other such numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aggregate {
    /// Its name in results.
    pub name: String,
    /// How it is made.
    pub rule: Rule,
    /// What it is made of.
    pub parts: Vec<Part>,
}

/// How one number is made of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The mean: of the subjects of MMLU, say.
    Mean,
    /// The greatest: of the two formulations of a task of OLMES.
    Max,
}

/// What an [`Aggregate`] is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The first metric of a task, by the task's name.
    Task(String),
    /// Another such number.
    Aggregate(Aggregate),
    /// The value `v` of a task as `(v − b) / (1 − b)`, with 0 for guessing.
    Centred {
        /// The task's name.
        task: String,
        /// What guessing gets, `b`, in thousandths.
        baseline: u16,
    },
}

impl Aggregate {
    /// The number, where all its parts have one; `value` is that of a task by its name.
    pub fn compute(&self, value: &dyn Fn(&str) -> Option<f64>) -> Option<f64> {
        let part = |part: &Part| match part {
            Part::Task(name) => value(name),
            Part::Aggregate(aggregate) => aggregate.compute(value),
            Part::Centred { task, baseline } => {
                let baseline = f64::from(*baseline) / 1000.0;
                value(task).map(|value| (value - baseline) / (1.0 - baseline))
            }
        };
        let values: Vec<f64> = self.parts.iter().map(part).collect::<Option<_>>()?;
        match self.rule {
            Rule::Mean => (!values.is_empty()).then(|| mean(&values)),
            Rule::Max => values.into_iter().reduce(f64::max),
        }
    }
}
