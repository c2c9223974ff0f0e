//! What OLMo watches during pretraining: the labels of ai2-olmo-eval 0.9.0 and of OLMo's own `olmo/eval/downstream.py`.
//!
//! `labels.tsv` lists a label a line: how its prompts are made (`rows` of a data set with `tasks.yaml`, `mmlu`, or
//! `requests` that were written out), from what, and OLMo's kind of metric. Contexts and continuations are encoded
//! separately. A label with `fast` asks for all letters in one request there; prefixes are shared here anyway, so that it
//! is the task without.

use std::path::Path;

use olmoe_model::config::closest;
use serde_json::{Value, json};

use super::requests::{Requests, Wanted};
use super::{Listed, mmlu};
use crate::encoding::Encoding;
use crate::error::EvalError;
use crate::metric::{LeadingSpace, Metric, Normalization};
use crate::score::TaskScore;
use crate::source::Roots;
use crate::task::{
    Choices, Description, Draw, EncodingName, Options, SetSource, ShotSource, Shots, Source, Task, Templates, build,
};

use LeadingSpace::{Counted, Dropped};
use Normalization::{Characters, Raw};

/// The suite's name.
pub const NAME: &str = "in-loop";

/// The labels of the release's configuration.
pub const RELEASE: [&str; 23] = [
    "piqa",
    "hellaswag",
    "winogrande",
    "openbook_qa",
    "boolq",
    "sciq",
    "arc_easy",
    "arc_challenge",
    "copa",
    "commonsense_qa",
    "social_iqa",
    "mmlu_stem_var",
    "mmlu_humanities_var",
    "mmlu_social_sciences_var",
    "mmlu_other_var",
    "mmlu_stem_mc_5shot",
    "mmlu_humanities_mc_5shot",
    "mmlu_social_sciences_mc_5shot",
    "mmlu_other_mc_5shot",
    "mmlu_stem_mc_5shot_test",
    "mmlu_humanities_mc_5shot_test",
    "mmlu_social_sciences_mc_5shot_test",
    "mmlu_other_mc_5shot_test",
];

const LABELS: &str = include_str!("in_loop/labels.tsv");
const TASKS: &str = include_str!("in_loop/tasks.yaml");

/// The prompts of a label of MMLU whose name ends in `var`: how many shots, and whether the instruction is there.
const VARIATIONS: [(bool, usize); 7] = [(false, 0), (true, 0), (true, 1), (true, 2), (true, 3), (true, 4), (true, 5)];

/// A line of the table of labels.
struct Label {
    label: &'static str,
    kind: &'static str,
    of: &'static str,
    metric: &'static str,
}

fn table() -> impl Iterator<Item = Label> {
    LABELS.lines().filter_map(|line| {
        let mut columns = line.split('\t');
        Some(Label { label: columns.next()?, kind: columns.next()?, of: columns.next()?, metric: columns.next()? })
    })
}

/// All labels.
pub fn labels() -> impl Iterator<Item = &'static str> {
    table().map(|line| line.label)
}

/// All names of the suite.
pub fn list() -> Vec<Listed> {
    let suite = |name: &str, about: &str| Listed { name: name.to_owned(), about: about.to_owned() };
    let mut list = vec![
        suite(NAME, "the 23 tasks that OLMoE's pretraining was watched with"),
        suite("in-loop:all", "every label of OLMo's evaluation in the training loop"),
    ];
    list.extend(table().map(|line| {
        let from = match line.kind {
            "requests" => format!("requests of {}", line.of),
            "mmlu" => format!("MMLU {}", line.of),
            _ => "rows of its data set".to_owned(),
        };
        Listed { name: line.label.to_owned(), about: format!("in the training loop: {from}, {}", line.metric) }
    }));
    list
}

/// The tasks of labels.
///
/// # Errors
/// [`EvalError`] if a label is unknown or its data is missing.
pub fn tasks(labels: &[&str], roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    labels.iter().map(|label| task(label, roots, options)).collect()
}

fn task(label: &str, roots: &Roots, options: &Options) -> Result<Task, EvalError> {
    let Some(line) = table().find(|line| line.label == label) else {
        let known: Vec<&str> = labels().collect();
        return Err(EvalError::Name { name: label.to_owned(), suggestion: closest(label, &known).map(str::to_owned) });
    };
    let mut task = match line.kind {
        "requests" => of_requests(&line, roots, options)?,
        "mmlu" => of_mmlu(&line, roots, options)?,
        _ => of_rows(&line, roots, options)?,
    };
    task.metrics = metrics(line.metric);
    Ok(task)
}

/// Whether OLMo's kind of metric is one of the right answer alone.
fn is_of_gold(metric: &str) -> bool {
    matches!(metric, "bpb" | "ce_loss")
}

fn of_requests(line: &Label, roots: &Roots, options: &Options) -> Result<Task, EvalError> {
    let requests = Requests::read(roots, line.of)?;
    let wanted = Wanted { only_gold: is_of_gold(line.metric), unconditional: false };
    let limit = options.limit.unwrap_or(usize::MAX);
    let file = requests.file.file.clone();
    let questions = requests.documents.into_iter().take(limit).map(|document| document.question(&file, wanted));
    let questions = questions.collect::<Result<_, _>>()?;
    let settings = json!({
        "label": line.label,
        "metric": line.metric,
        "files": [serde_json::to_value(&requests.file).unwrap_or(Value::Null)],
        "limit": options.limit,
    });
    Ok(Task { name: line.label.to_owned(), settings, encoding: Encoding::Separate, questions, metrics: Vec::new() })
}

fn of_rows(line: &Label, roots: &Roots, options: &Options) -> Result<Task, EvalError> {
    let all: Vec<Value> = serde_saphyr::from_str(TASKS).expect("the table is valid YAML");
    let mut own = all.into_iter().find(|task| task["name"] == line.of).expect("every label of rows is in the table");
    // The metrics are set after the task was made; this one only stands in for them.
    own["metrics"] = json!(["acc"]);
    own["encoding"] = json!("separate");
    own["only_gold"] = json!(is_of_gold(line.metric));
    let description: Description = serde_json::from_value(own).expect("the table has valid descriptions");
    Ok(build(&description, Path::new(""), roots, options)?)
}

fn of_mmlu(line: &Label, roots: &Roots, options: &Options) -> Result<Task, EvalError> {
    let mut parts = line.of.split('/');
    let (Some(category), Some(split), Some(form), Some(prompts)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        unreachable!("a line of MMLU has a category, a split, a form and prompts")
    };
    let subjects = Templates::Many(mmlu::subjects(category).map(str::to_owned).collect());
    let set = |split: &str| {
        Source::Set(SetSource { data: mmlu::DATA.to_owned(), config: Some(subjects.clone()), split: split.to_owned() })
    };
    let describe = |(instruction, shots): (bool, usize)| Description {
        name: line.label.to_owned(),
        source: set(split),
        filter: None,
        sample: None,
        id: None,
        group: Some("subject".to_owned()),
        description: match instruction {
            true => "The following are multiple choice questions (with answers) about \
                     {{ subject.replace('_', ' ') }}:\n\n"
                .to_owned(),
            false => String::new(),
        },
        prompt: Templates::One(match form {
            "mc" => "{{ question.strip() }}\n{% for choice in row.choices %}{{ letters[loop.index0] }}. {{ choice }}\n\
                     {% endfor %}Answer:"
                .to_owned(),
            _ => "Question: {{ question.strip() }}\nAnswer:".to_owned(),
        }),
        choices: Some(Choices::Expression(if form == "mc" { "letters[:4]" } else { "row.choices" }.to_owned())),
        gold: "answer".to_owned(),
        delimiter: " ".to_owned(),
        unconditional: None,
        only_gold: is_of_gold(line.metric),
        shots: (shots > 0).then(|| Shots {
            count: shots,
            from: Some(ShotSource::Source(set("dev"))),
            draw: Draw::First,
            seed: None,
            same: Some("subject".to_owned()),
            delimiter: None,
            separator: "\n\n".to_owned(),
            without_question: None,
        }),
        encoding: EncodingName::Separate,
        metrics: vec!["acc".to_owned()],
        generation: None,
    };
    let variations = match prompts {
        "var" => &VARIATIONS[..],
        "5shot" => &VARIATIONS[6..],
        _ => &VARIATIONS[..1],
    };
    // Each question is asked with each prompt before the next question.
    let mut tasks = Vec::new();
    for variation in variations {
        let rows = options.limit.map(|limit| limit.div_ceil(variations.len()));
        tasks.push(build(&describe(*variation), Path::new(""), roots, &Options { limit: rows, ..options.clone() })?);
    }
    let mut questions = Vec::new();
    let settings: Vec<Value> = tasks.iter().map(|task| task.settings.clone()).collect();
    let mut of: Vec<_> = tasks.into_iter().map(|task| task.questions.into_iter()).collect();
    while let Some(row) = of.iter_mut().map(Iterator::next).collect::<Option<Vec<_>>>() {
        questions.extend(row);
    }
    questions.truncate(options.limit.unwrap_or(usize::MAX));
    for (id, question) in (0..).zip(&mut questions) {
        question.id = id;
    }
    Ok(Task {
        name: line.label.to_owned(),
        settings: json!({ "label": line.label, "metric": line.metric, "prompts": settings, "limit": options.limit }),
        encoding: Encoding::Separate,
        questions,
        metrics: Vec::new(),
    })
}

/// The names under which OLMo's evaluation reports a kind of metric, with what each is: without ending as OLMo reports it
/// itself, which leaves out the leading space of continuations; `_v1` without it and `_v2` with it, as ai2-olmo-eval does.
///
/// Version 0.9.0 computes `len_norm_v1` with the space, too; here it is what its name says.
pub fn reported(metric: &str) -> Vec<(String, Metric)> {
    let versions = |name: &str, of: &dyn Fn(LeadingSpace) -> Metric| {
        [("_v1", Dropped), ("_v2", Counted)].map(|(ending, space)| (format!("{name}{ending}"), of(space)))
    };
    let compared: fn(LeadingSpace) -> Normalization = match metric {
        "len_norm" => |space| Characters(space),
        _ => |_| Raw,
    };
    let own: &dyn Fn(LeadingSpace) -> Metric = match metric {
        "f1" => &|_| Metric::F1,
        "ce_loss" => &Metric::CrossEntropy,
        "bpb" => &Metric::BitsPerByte,
        _ => &|space| Metric::Accuracy(compared(space)),
    };
    let mut reported = vec![(metric.to_owned(), own(Dropped))];
    reported.extend(versions(metric, own));
    if matches!(metric, "acc" | "len_norm") {
        reported.extend(versions("ce_loss", &Metric::CrossEntropy));
        reported.extend(versions("bpb", &Metric::BitsPerByte));
        reported.extend(versions("soft", &|space| Metric::Soft(compared(space))));
        reported.extend(versions("soft_log", &|space| Metric::SoftLog(compared(space))));
    }
    reported
}

/// The metrics of a kind, each once.
fn metrics(metric: &str) -> Vec<Metric> {
    let mut metrics = Vec::new();
    for (_, metric) in reported(metric) {
        if !metrics.contains(&metric) {
            metrics.push(metric);
        }
    }
    metrics
}

/// The results of a label as OLMo logs them, such as `eval/downstream/piqa_len_norm`.
pub fn logged(label: &str, score: &TaskScore) -> Vec<(String, f64)> {
    let Some(line) = table().find(|line| line.label == label) else { return Vec::new() };
    let value = |(name, metric): (String, Metric)| {
        Some((format!("eval/downstream/{label}_{name}"), score.metric(&metric.name())?.value))
    };
    reported(line.metric).into_iter().filter_map(value).collect()
}
