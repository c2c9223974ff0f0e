//! OLMES v0.1 (Gu et al., arXiv 2406.08446): ten tasks of multiple choice, each as letters to choose from (`mc`) and as
//! completions (`cf`), 5 shots, the better formulation counting.
//!
//! Shots are the standard's own, in `shots.json`; those of MMLU are its `dev` split. Of more than 1,500 questions,
//! `Random(1234)` draws 1,000. Where the rows of a data set are missing but its written-out requests are there, these are
//! taken: they are the same.

use std::path::Path;

use serde_json::{Value, json};

use super::requests::{Requests, Wanted};
use super::{Listed, mmlu};
use crate::encoding::Encoding;
use crate::error::EvalError;
use crate::metric::{LeadingSpace, Metric, Normalization};
use crate::score::{Aggregate, Part, Rule};
use crate::source::{Roots, Row, SourceError};
use crate::task::{
    Choices, Description, Draw, EncodingName, Options, Sample, SetSource, ShotSource, Shots, Source, Task, TaskError,
    Templates, build,
};
use olmoe_data::random::Mersenne;

/// The suite's name.
pub const NAME: &str = "olmes";

const SHOTS: &str = include_str!("olmes/shots.json");
/// How many questions are asked of a set that has more than [`MAX_WHOLE`].
const SAMPLE: usize = 1000;
const MAX_WHOLE: usize = 1500;
const SEED: u64 = 1234;

/// How a question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Formulation {
    /// The choices are listed with letters, and a letter is the answer.
    MultipleChoice,
    /// The choices are completions of the prompt.
    Completion,
}

use Formulation::{Completion, MultipleChoice};

impl Formulation {
    /// The end of a task's name.
    pub fn name(self) -> &'static str {
        match self {
            MultipleChoice => "mc",
            Completion => "cf",
        }
    }
}

/// A task of the standard.
struct Base {
    name: &'static str,
    data: &'static str,
    config: Option<&'static str>,
    split: &'static str,
    /// A template: the question, without `Answer:`.
    question: &'static str,
    /// An expression: the choices.
    choices: &'static str,
    /// An expression: the number of the right choice.
    gold: &'static str,
    id: Option<&'static str>,
    /// By what completions are compared.
    normalization: Normalization,
    /// The sets of written-out requests with letters and as completions, and whether they have to be sampled.
    requests: Option<[&'static str; 2]>,
}

const PER_CHARACTER: Normalization = Normalization::Characters(LeadingSpace::Counted);
const LABELLED: &str = "row.choices.label | index(answerKey)";

const BASES: [Base; 9] = [
    Base {
        name: "arc_challenge",
        data: "ai2_arc",
        config: Some("ARC-Challenge"),
        split: "test",
        question: "Question: {{ question }}",
        choices: "row.choices.text",
        gold: LABELLED,
        id: Some("id"),
        normalization: Normalization::Unconditional,
        requests: Some(["arc_challenge/test_mc_5shot", "arc_challenge/test_rc_5shot"]),
    },
    Base {
        name: "arc_easy",
        data: "ai2_arc",
        config: Some("ARC-Easy"),
        split: "test",
        question: "Question: {{ question }}",
        choices: "row.choices.text",
        gold: LABELLED,
        id: Some("id"),
        normalization: PER_CHARACTER,
        requests: Some(["arc_easy/test_mc_5shot", "arc_easy/test_rc_5shot"]),
    },
    Base {
        name: "boolq",
        data: "super_glue",
        config: Some("boolq"),
        split: "validation",
        question: "{{ passage }}\nQuestion: {{ question }}?",
        choices: "['yes', 'no']",
        gold: "0 if label else 1",
        id: Some("idx"),
        normalization: Normalization::Raw,
        requests: Some(["boolq/mc_5shot", "boolq/rc_5shot"]),
    },
    Base {
        name: "csqa",
        data: "tau/commonsense_qa",
        config: None,
        split: "validation",
        question: "Question: {{ question }}",
        choices: "row.choices.text",
        gold: LABELLED,
        id: Some("id"),
        normalization: Normalization::Unconditional,
        requests: Some(["csqa/mc_5shot", "csqa/rc_5shot"]),
    },
    Base {
        name: "hellaswag",
        data: "hellaswag",
        config: None,
        split: "validation",
        question: "{{ activity_label }}: {{ ctx_a }} {{ ctx_b.capitalize() }}",
        choices: "endings",
        gold: "label | int",
        id: Some("ind"),
        normalization: PER_CHARACTER,
        requests: Some(["hellaswag/mc_5shot", "hellaswag/rc_5shot"]),
    },
    Base {
        name: "openbookqa",
        data: "openbookqa",
        config: Some("main"),
        split: "test",
        question: "Question: {{ question_stem }}",
        choices: "row.choices.text",
        gold: LABELLED,
        id: Some("id"),
        normalization: Normalization::Unconditional,
        requests: Some(["openbookqa/test_mc_5shot", "openbookqa/test_rc_5shot"]),
    },
    Base {
        name: "piqa",
        data: "piqa",
        config: Some("plain_text"),
        split: "validation",
        question: "Goal: {{ goal }}",
        choices: "[sol1, sol2]",
        gold: "label",
        id: None,
        normalization: PER_CHARACTER,
        requests: Some(["piqa/mc_5shot", "piqa/rc_5shot"]),
    },
    Base {
        name: "socialiqa",
        data: "social_i_qa",
        config: None,
        split: "validation",
        question: "Question: {{ row.context }} {{ question }}",
        choices: "[answerA, answerB, answerC]",
        gold: "label | int - 1",
        id: None,
        normalization: PER_CHARACTER,
        requests: Some(["socialiqa/mc_5shot", "socialiqa/rc_5shot"]),
    },
    Base {
        name: "winogrande",
        data: "winogrande",
        config: Some("winogrande_xl"),
        split: "validation",
        question: "Fill in the blank: {{ sentence.replace('_', '___') }}",
        choices: "[option1, option2]",
        gold: "answer | int - 1",
        id: None,
        normalization: Normalization::Raw,
        requests: Some(["winogrande/mc_5shot", "winogrande/rc_5shot"]),
    },
];

/// The prefix of the tasks that are subjects of MMLU.
const MMLU_PREFIX: &str = "mmlu_";

fn mmlu_base(subject: &'static str) -> Base {
    Base {
        name: subject,
        data: mmlu::DATA,
        config: Some(subject),
        split: "test",
        question: "Question: {{ question }}",
        choices: "row.choices",
        gold: "answer",
        id: None,
        normalization: PER_CHARACTER,
        requests: None,
    }
}

/// All names of the suite but the subjects of MMLU.
pub fn list() -> Vec<Listed> {
    let of = |name: String, about: String| Listed { name, about };
    let mut list =
        vec![of(NAME.to_owned(), "OLMES v0.1: ten tasks, 5 shots, the better of two formulations".to_owned())];
    for name in BASES.iter().map(|base| base.name).chain(["mmlu"]) {
        list.push(of(format!("{NAME}:{name}"), format!("{name} in both formulations")));
        list.push(of(format!("{NAME}:{name}:mc"), format!("{name} with letters to choose from")));
        list.push(of(format!("{NAME}:{name}:cf"), format!("{name} as completions")));
    }
    list
}

/// The parts of a name behind `olmes:`: the task, none for all, and the formulations.
fn selection(part: Option<&str>) -> Option<(Option<&str>, Vec<Formulation>)> {
    let both = vec![MultipleChoice, Completion];
    let Some(part) = part else { return Some((None, both)) };
    let (name, formulations) = match part.rsplit_once(':') {
        Some((name, "mc")) => (name, vec![MultipleChoice]),
        Some((name, "cf")) => (name, vec![Completion]),
        Some(_) => return None,
        None => (part, both),
    };
    let known = name == "mmlu"
        || BASES.iter().any(|base| base.name == name)
        || name.strip_prefix(MMLU_PREFIX).is_some_and(|subject| mmlu::SUBJECTS.iter().any(|(own, _)| *own == subject));
    known.then_some((Some(name), formulations))
}

/// Whether `olmes` has this part.
pub fn is_part(part: Option<&str>) -> bool {
    selection(part).is_some()
}

fn subjects(name: Option<&str>) -> impl Iterator<Item = &'static str> {
    let wanted = name.and_then(|name| name.strip_prefix(MMLU_PREFIX)).map(str::to_owned);
    let all = name.is_none_or(|name| name == "mmlu");
    let is_wanted = move |subject: &&str| all || wanted.as_deref() == Some(*subject);
    mmlu::SUBJECTS.iter().map(|(subject, _)| *subject).filter(is_wanted)
}

/// The tasks of a part of the suite, all without one.
///
/// # Errors
/// [`EvalError`] if data is missing.
pub fn tasks(part: Option<&str>, roots: &Roots, options: &Options) -> Result<Vec<Task>, EvalError> {
    let Some((name, formulations)) = selection(part) else { return Ok(Vec::new()) };
    let mut tasks = Vec::new();
    for base in BASES.iter().filter(|base| name.is_none_or(|name| name == base.name)) {
        for formulation in &formulations {
            tasks.push(task(base, *formulation, roots, options)?);
        }
    }
    for subject in subjects(name) {
        for formulation in &formulations {
            let description = describe_mmlu(subject, *formulation);
            tasks.push(build(&description, Path::new(""), roots, options)?);
        }
    }
    Ok(tasks)
}

/// The numbers of a part of the suite: of each task the better formulation, of MMLU the mean over the subjects first, and
/// the mean of all ten.
pub fn aggregates(part: Option<&str>) -> Vec<Aggregate> {
    let Some((name, formulations)) = selection(part) else { return Vec::new() };
    let full = |name: &str, formulation: &Formulation| Part::Task(format!("{NAME}:{name}:{}", formulation.name()));
    let better = |name: &str, parts: Vec<Part>| Aggregate { name: format!("{NAME}:{name}"), rule: Rule::Max, parts };
    let mut all = Vec::new();
    for base in BASES.iter().filter(|base| name.is_none_or(|name| name == base.name)) {
        all.push(better(base.name, formulations.iter().map(|formulation| full(base.name, formulation)).collect()));
    }
    if name.is_none_or(|name| name == "mmlu") {
        let mean = |formulation: &Formulation| {
            let parts = subjects(None).map(|subject| full(&format!("{MMLU_PREFIX}{subject}"), formulation)).collect();
            Part::Aggregate(Aggregate { name: format!("{NAME}:mmlu:{}", formulation.name()), rule: Rule::Mean, parts })
        };
        all.push(better("mmlu", formulations.iter().map(mean).collect()));
    } else if let Some(subject) = name.filter(|name| name.starts_with(MMLU_PREFIX)) {
        all.push(better(subject, formulations.iter().map(|formulation| full(subject, formulation)).collect()));
    }
    if name.is_none() {
        let parts = all.iter().cloned().map(Part::Aggregate).collect();
        all.push(Aggregate { name: NAME.to_owned(), rule: Rule::Mean, parts });
    }
    all
}

/// Which rows are asked, and with how many shots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The split.
    pub split: String,
    /// The number of shots, 0 or 5.
    pub shots: usize,
    /// Whether of many rows only a part is asked.
    pub sampled: bool,
}

/// The description of a task of the standard on other rows than the standard's.
pub fn describe(name: &str, formulation: Formulation, variant: &Variant) -> Option<Description> {
    let base = BASES.iter().find(|base| base.name == name)?;
    Some(description(base, formulation, variant))
}

fn shots(name: &str) -> Vec<Row> {
    let mut all: Value = serde_json::from_str(SHOTS).expect("the file of shots is JSON");
    serde_json::from_value(all[name].take()).expect("the shots of a task are rows")
}

fn description(base: &Base, formulation: Formulation, variant: &Variant) -> Description {
    let letters = format!(
        "{{% for choice in {} %}} {{{{ letters[loop.index0] }}}}. {{{{ choice }}}}\n{{% endfor %}}Answer:",
        base.choices
    );
    let one = Templates::One;
    let (prompt, choices) = match (formulation, base.name) {
        (MultipleChoice, "hellaswag") => {
            let text = format!("{}\nChoose the best continuation:\n{letters}", base.question);
            (one(format!("{{% filter unbracketed(true) %}}{text}{{% endfilter %}}")), None)
        }
        (MultipleChoice, _) => (one(format!("{}\n{letters}", base.question)), None),
        (Completion, "hellaswag") => (
            one(format!("{{% filter unbracketed(true) %}}{}{{% endfilter %}}", base.question)),
            Some(Choices::Expression("endings | map('unbracketed', true) | list".to_owned())),
        ),
        (Completion, "winogrande") => (
            Templates::Many(
                ["option1", "option2"]
                    .map(|option| format!("{{{{ sentence.split('_', 1)[0] }}}}{{{{ {option} }}}}"))
                    .to_vec(),
            ),
            Some(Choices::Templates(vec!["{{ sentence.split('_', 1)[1].strip() }}".to_owned()])),
        ),
        (Completion, _) => {
            (one(format!("{}\nAnswer:", base.question)), Some(Choices::Expression(base.choices.to_owned())))
        }
    };
    let choices = choices.unwrap_or_else(|| Choices::Expression(format!("letters[:({})|length]", base.choices)));
    let unconditional = formulation == Completion && base.normalization != Normalization::Raw;
    Description {
        name: format!("{NAME}:{}:{}", base.name, formulation.name()),
        source: Source::Set(SetSource {
            data: base.data.to_owned(),
            config: base.config.map(|config| one(config.to_owned())),
            split: variant.split.clone(),
        }),
        filter: None,
        sample: variant.sampled.then_some(Sample { count: SAMPLE, seed: SEED, above: Some(MAX_WHOLE) }),
        id: base.id.map(str::to_owned),
        group: None,
        description: String::new(),
        prompt,
        choices: Some(choices),
        gold: base.gold.to_owned(),
        delimiter: " ".to_owned(),
        unconditional: unconditional.then(|| "Answer:".to_owned()),
        only_gold: false,
        shots: (variant.shots > 0).then(|| Shots {
            count: variant.shots,
            from: Some(ShotSource::Rows(shots(base.name))),
            draw: Draw::First,
            seed: None,
            same: None,
            delimiter: None,
            separator: "\n\n".to_owned(),
            without_question: None,
        }),
        encoding: EncodingName::Joint,
        metrics: metrics(base, formulation).iter().map(|metric| metric.name()).collect(),
        generation: None,
    }
}

/// The metrics of a task, its own first.
fn metrics(base: &Base, formulation: Formulation) -> Vec<Metric> {
    let own = match formulation {
        MultipleChoice => Normalization::Raw,
        Completion => base.normalization,
    };
    let mut all = vec![Metric::Accuracy(own)];
    let mut more = vec![Metric::Accuracy(Normalization::Raw), Metric::Accuracy(PER_CHARACTER)];
    if formulation == Completion && base.normalization != Normalization::Raw {
        more.push(Metric::Accuracy(Normalization::Unconditional));
    }
    more.push(Metric::BitsPerByte(LeadingSpace::Counted));
    for metric in more {
        if !all.contains(&metric) {
            all.push(metric);
        }
    }
    all
}

fn describe_mmlu(subject: &'static str, formulation: Formulation) -> Description {
    let base = mmlu_base(subject);
    let variant = Variant { split: base.split.to_owned(), shots: 0, sampled: false };
    let mut description = description(&base, formulation, &variant);
    description.name = format!("{NAME}:{MMLU_PREFIX}{subject}:{}", formulation.name());
    let named = subject.replace('_', " ");
    description.description = format!("The following are multiple choice questions (with answers) about {named}.\n\n");
    description.shots = Some(Shots {
        count: 5,
        from: Some(ShotSource::Source(Source::Set(SetSource {
            data: mmlu::DATA.to_owned(),
            config: Some(Templates::One(subject.to_owned())),
            split: "dev".to_owned(),
        }))),
        draw: Draw::First,
        seed: None,
        same: None,
        delimiter: None,
        separator: "\n\n".to_owned(),
        without_question: None,
    });
    description
}

fn task(base: &Base, formulation: Formulation, roots: &Roots, options: &Options) -> Result<Task, EvalError> {
    let variant = Variant { split: base.split.to_owned(), shots: 5, sampled: true };
    let description = description(base, formulation, &variant);
    let missing = match build(&description, Path::new(""), roots, options) {
        Err(error @ TaskError::Source { source: SourceError::Missing { .. }, .. }) if options.shots.is_none() => error,
        other => return Ok(other?),
    };
    let Some([mc, cf]) = base.requests else { return Err(missing.into()) };
    let set = if formulation == MultipleChoice { mc } else { cf };
    let requests = match Requests::read(roots, set) {
        Err(EvalError::Source(SourceError::Missing { .. })) => return Err(missing.into()),
        other => other?,
    };
    let wanted = Wanted { only_gold: false, unconditional: true };
    let file = requests.file.file.clone();
    let mut documents: Vec<_> = requests.documents.into_iter().map(Some).collect();
    let drawn: Vec<usize> = match documents.len() > MAX_WHOLE {
        true => Mersenne::python(SEED).sample(documents.len(), SAMPLE),
        false => (0..documents.len()).collect(),
    };
    let drawn = drawn.into_iter().filter_map(|i| documents[i].take()).take(options.limit.unwrap_or(usize::MAX));
    let mut questions = drawn.map(|document| document.question(&file, wanted)).collect::<Result<Vec<_>, _>>()?;
    for (id, question) in (0..).zip(&mut questions) {
        question.id = id;
    }
    let settings = json!({
        "description": serde_json::to_value(&description).unwrap_or(Value::Null),
        "files": [serde_json::to_value(&requests.file).unwrap_or(Value::Null)],
        "limit": options.limit,
    });
    let metrics = metrics(base, formulation);
    Ok(Task { name: description.name, settings, encoding: Encoding::Joint, questions, metrics })
}
