//! The results of a run.

use clap::ValueEnum;
use olmoe_analysis::ExpertCounts;
use olmoe_data::Message;
use olmoe_eval::score::{Aggregate, TaskScore};
use olmoe_eval::tables::{self, write};
use olmoe_eval::task::Prompt;
use olmoe_eval::{Answer, Gold, Request, Task};
use serde_json::{Value, json};

/// What is printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// A table for a terminal
    Table,
    /// One JSON object
    Json,
    /// A table in Markdown
    Markdown,
    /// A table in LaTeX
    Latex,
}

/// The numbers of a run.
pub(super) struct Report {
    model: Value,
    tasks: Vec<TaskReport>,
    aggregates: Vec<Aggregate>,
}

/// The numbers of a task.
pub(super) struct TaskReport {
    name: String,
    settings: Value,
    score: TaskScore,
    experts: Option<Value>,
}

impl TaskReport {
    pub(super) fn new(task: &Task, score: TaskScore, experts: Option<&ExpertCounts>) -> TaskReport {
        TaskReport { name: task.name.clone(), settings: task.settings.clone(), score, experts: experts.map(routing) }
    }

    /// The first metric; where questions have groups, such as the subjects of MMLU, the mean of the groups.
    fn value(&self) -> Option<f64> {
        self.score.metrics.first().map(|metric| metric.macro_average.unwrap_or(metric.value))
    }
}

/// Which experts were used, by layer.
fn routing(counts: &ExpertCounts) -> Value {
    let layers: Vec<Value> = counts
        .layers()
        .iter()
        .enumerate()
        .map(|(mixture, layer)| {
            json!({
                "layer": layer,
                "evenness": counts.evenness(mixture),
                "used": counts.used(mixture),
                "choices": counts.choices(mixture),
            })
        })
        .collect();
    json!({"tokens": counts.tokens(), "layers": layers})
}

impl Report {
    pub(super) fn new(model: Value, aggregates: Vec<Aggregate>) -> Report {
        Report { model, tasks: Vec::new(), aggregates }
    }

    pub(super) fn add(&mut self, task: TaskReport) {
        self.tasks.push(task);
    }

    /// The number of a task.
    fn value(&self, name: &str) -> Option<f64> {
        self.tasks.iter().find(|task| task.name == name)?.value()
    }

    pub(super) fn json(&self) -> Value {
        let tasks: serde_json::Map<String, Value> = self
            .tasks
            .iter()
            .map(|task| {
                let metrics: serde_json::Map<String, Value> =
                    task.score.metrics.iter().map(|metric| (metric.name.clone(), json!(metric))).collect();
                let mut value = json!({"value": task.value(), "metrics": metrics, "settings": task.settings});
                if let Some(experts) = &task.experts {
                    value["experts"] = experts.clone();
                }
                (task.name.clone(), value)
            })
            .collect();
        let aggregates: serde_json::Map<String, Value> = self
            .aggregates
            .iter()
            .map(|one| (one.name.clone(), json!(one.compute(&|name| self.value(name)))))
            .collect();
        json!({"model": self.model, "tasks": tasks, "aggregates": aggregates})
    }

    pub(super) fn print(&self, form: Form) {
        let scores: Vec<(&str, &TaskScore)> = self.tasks.iter().map(|task| (task.name.as_str(), &task.score)).collect();
        let table = tables::results::results(&scores, &self.aggregates, &|name| self.value(name));
        match form {
            Form::Table => print_lines(&write::terminal(&table)),
            Form::Markdown => print_lines(&write::markdown(&table)),
            Form::Latex => print_lines(&write::latex(&table)),
            Form::Json => println!("{}", self.json()),
        }
    }
}

pub(super) fn print_lines(text: &str) {
    text.lines().for_each(|line| println!("{line}"));
}

/// A request with its answer, for people.
pub(super) fn sample(request: &Request, answer: &Answer) -> Value {
    let mut value = match request {
        Request::Continuation { context, continuation, .. } => {
            json!({"context": context, "continuation": continuation})
        }
        Request::Reply { messages, begin, continuation } => {
            json!({"messages": spoken(messages), "begin": begin, "continuation": continuation})
        }
        Request::Generation { prompt: Prompt::Text(text), .. } => json!({"prompt": text}),
        Request::Generation { prompt: Prompt::Chat { messages, begin }, .. } => {
            json!({"messages": spoken(messages), "begin": begin})
        }
    };
    value["answer"] = json!(answer);
    value
}

fn spoken(messages: &[Message]) -> Vec<Value> {
    messages.iter().map(|message| json!({"role": message.role, "content": message.content})).collect()
}

/// The right answer, for people.
pub(super) fn gold(gold: &Gold) -> Value {
    match gold {
        Gold::Choice(index) => json!(index),
        Gold::Texts(texts) => json!(texts),
        Gold::Row => Value::Null,
    }
}
