//! Tasks from descriptions, own ones and those of lm-evaluation-harness, and what descriptions cannot be.

mod shared;

use std::fs;
use std::path::Path;

use olmoe_eval::source::Roots;
use olmoe_eval::suites::tasks;
use olmoe_eval::task::{build, parse};
use olmoe_eval::{Encoding, Gold, Metric, Options, Prompt, Request, Task};
use serde_json::Value;

fn pair(request: &Request) -> (&str, &str) {
    match request {
        Request::Continuation { context, continuation, .. } => (context, continuation),
        Request::Generation { prompt: Prompt::Text(text), .. } => (text, ""),
        other => panic!("{other:?}"),
    }
}

/// The task of a description beside these files.
fn described(yaml: &str, files: &[(&str, &str)], options: &Options) -> Result<Task, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let description = parse("own.yaml", yaml).map_err(|error| error.to_string())?;
    build(&description, folder.path(), &Roots::default(), options).map_err(|error| error.to_string())
}

const CAPITALS: &str = r#"
name: capitals
source: {file: capitals.jsonl}
filter: continent != "south"
id: code
group: continent
description: "Capitals of {{ continent }}.\n"
prompt: "Question: What is the capital of {{ country }}?\nAnswer:"
choices: cities
gold: cities | index(capital)
unconditional: "Answer:"
shots: {count: 1, draw: first, separator: "\n--\n"}
encoding: separate
metrics: [acc_uncond, acc, bits_per_byte]
"#;
const ROWS: &str = r#"{"code":"F","country":"France","cities":["Lyon","Paris"],"capital":"Paris","continent":"north"}
{"code":"P","country":"Peru","cities":["Lima","Cusco"],"capital":"Lima","continent":"south"}
{"code":"J","country":"Japan","cities":["Tokyo","Kyoto","Osaka"],"capital":"Tokyo","continent":"north"}
"#;

#[test]
fn a_task_of_ones_own() {
    let task = described(CAPITALS, &[("capitals.jsonl", ROWS)], &Options::default()).unwrap();
    assert_eq!((task.name.as_str(), task.encoding, task.questions.len()), ("capitals", Encoding::Separate, 2));
    assert_eq!(
        task.metrics.iter().map(|metric| metric.name()).collect::<Vec<_>>(),
        ["acc_uncond", "acc", "bits_per_byte"]
    );
    let [france, japan] = &task.questions[..] else { panic!() };
    assert_eq!((france.native_id.as_str(), france.group.as_deref()), ("F", Some("north")));
    assert_eq!((&france.gold, &japan.gold), (&Gold::Choice(1), &Gold::Choice(0)));
    assert_eq!(
        pair(&japan.requests[2]),
        (
            "Capitals of north.\nQuestion: What is the capital of France?\nAnswer: Paris\n--\nQuestion: What is the capital of \
         Japan?\nAnswer:",
            " Osaka"
        )
    );
    // A question is not its own shot.
    assert!(pair(&france.requests[0]).0.contains("Japan?\nAnswer: Tokyo\n--\nQuestion: What is the capital of France"));
    let Request::Continuation { unconditional, .. } = &france.requests[0] else { panic!() };
    assert_eq!(unconditional.as_deref(), Some("Answer:"));
    // What determined the task is in its settings.
    assert_eq!(task.settings["files"][0]["file"], "capitals.jsonl");
    assert_eq!(task.settings["description"]["shots"]["count"], 1);
    let limited =
        described(CAPITALS, &[("capitals.jsonl", ROWS)], &Options { limit: Some(1), shots: Some(0) }).unwrap();
    assert_eq!(limited.questions.len(), 1);
    assert!(
        pair(&limited.questions[0].requests[0]).0.starts_with("Capitals of north.\nQuestion: What is the capital of F")
    );
    assert_ne!(limited.settings, task.settings);
    let changed = ROWS.replace("Osaka", "Kobe");
    let changed = described(CAPITALS, &[("capitals.jsonl", &changed)], &Options::default()).unwrap();
    assert_ne!(changed.settings, task.settings);
}

#[test]
fn samples_and_generated_text() {
    let rows: String = (0..40).map(|i| format!("{{\"n\":{i}}}\n")).collect();
    let yaml = r#"
name: numbers
source: {file: rows.jsonl}
sample: {count: 5, seed: 1234}
prompt: "{{ n }} ="
gold: "{{ n }}"
generation: {max_tokens: 4, stop: ["\n"], samples: 2, temperature: 0.5}
metrics: []
"#;
    let task = described(yaml, &[("rows.jsonl", &rows)], &Options::default()).unwrap();
    // Python: random.Random(1234).sample(range(40), 5)
    let drawn: Vec<&str> = task.questions.iter().map(|question| question.native_id.as_str()).collect();
    assert_eq!(drawn, PYTHON);
    assert_eq!(task.questions[1].id, 1);
    let question = &task.questions[0];
    assert_eq!(question.gold, Gold::Texts(vec![PYTHON[0].to_owned()]));
    let Request::Generation { stop, max_tokens, sampling, samples, .. } = &question.requests[0] else { panic!() };
    assert_eq!((stop.as_slice(), *max_tokens, sampling.temperature, *samples), (&["\n".to_owned()][..], 4, 0.5, 2));
    // All of few enough rows.
    let all =
        described(&yaml.replace("seed: 1234", "seed: 1234, above: 40"), &[("rows.jsonl", &rows)], &Options::default());
    assert_eq!(all.unwrap().questions.len(), 40);
}

const PYTHON: [&str; 5] = ["28", "7", "0", "5", "37"];

#[test]
fn what_descriptions_cannot_be() {
    let wrong = |from: &str, to: &str| {
        assert!(CAPITALS.contains(from), "{from}");
        described(&CAPITALS.replace(from, to), &[("capitals.jsonl", ROWS)], &Options::default()).unwrap_err()
    };
    for (from, to, expected) in [
        ("prompt:", "promt:", "unknown field `promt`"),
        ("metrics: [acc_uncond, acc", "metrics: [acc_uncod, acc", "`metrics` is \"acc_uncod\", expected one of f1"),
        ("unconditional: \"Answer:\"", "", "expected the template `unconditional`"),
        ("index(capital)", "index(country)", "task capitals, shot of row 3: `gold` cannot be rendered"),
        ("{{ country }}", "{{ land }}", "`prompt` cannot be rendered: undefined value"),
        ("{{ country }}", "{{ country }", "`prompt` cannot be rendered: syntax error"),
        ("choices: cities", "choices: country", "`choices` gives Japan, expected a list of texts"),
        ("cities | index(capital)", "'7'", "expected the number of one of"),
        ("count: 1", "count: 2", "expected no more shots than there are rows for them"),
        ("capitals.jsonl", "none.jsonl", "cannot read"),
        ("continent != \"south\"", "continent == \"west\"", "expected at least one question"),
        ("choices: cities\n", "", "`choices` is missing"),
    ] {
        let error = wrong(from, to);
        assert!(error.contains(expected), "{error}");
    }
    let error = described(CAPITALS, &[("capitals.jsonl", "{\"code\":")], &Options::default()).unwrap_err();
    assert!(error.contains("capitals.jsonl row 1"), "{error}");
}

#[test]
fn those_of_lm_evaluation_harness() {
    let folder = shared::golden().join("harness");
    let golden: Value = serde_json::from_str(&fs::read_to_string(folder.join("requests.json")).unwrap()).unwrap();
    for name in ["capitals", "claims", "lines"] {
        let path = folder.join(format!("{name}.yaml"));
        let task = tasks(path.to_str().unwrap(), &Roots::default(), &Options::default()).unwrap().remove(0);
        assert_eq!((task.name.as_str(), task.encoding), (name, Encoding::Joint));
        let mut own = Vec::new();
        for question in &task.questions {
            for (choice, request) in question.requests.iter().enumerate() {
                let (context, continuation) = pair(request);
                own.push((question.id, choice as u64, context, continuation));
            }
        }
        let golden = golden[name].as_array().unwrap();
        assert_eq!(own.len(), golden.len(), "{name}");
        for (own, expected) in own.iter().zip(golden) {
            let arguments = &expected["arguments"];
            let [document, choice] = ["document", "choice"].map(|key| expected[key].as_u64().unwrap());
            assert_eq!(
                *own,
                (document, choice, arguments[0].as_str().unwrap(), arguments[1].as_str().unwrap()),
                "{name}"
            );
        }
        let metrics: Vec<String> = task.metrics.iter().map(|metric: &Metric| metric.name()).collect();
        let expected: &[&str] = match name {
            "capitals" => &["acc", "acc_per_char_no_space"],
            // Without a delimiter, choices have no leading space.
            "claims" => &["acc", "acc_per_char"],
            _ => &["greedy"],
        };
        assert_eq!(metrics, expected, "{name}");
        assert!(task.questions.iter().all(|question| matches!(question.gold, Gold::Choice(_))));
    }
    // "true" is the second choice.
    let claims = tasks(folder.join("claims.yaml").to_str().unwrap(), &Roots::default(), &Options::default()).unwrap();
    for question in &claims[0].questions {
        let expected = usize::from(question.row["answer"] == "true");
        assert_eq!(question.gold, Gold::Choice(expected));
    }
}

#[test]
fn what_is_refused_of_lm_evaluation_harness() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rows.jsonl"), "{\"q\":\"a\",\"c\":[\"x\",\"y\"],\"a\":1}\n").unwrap();
    let base = "task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n\
                output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: a\n";
    let read = |yaml: &str| {
        let path = folder.path().join("t.yaml");
        fs::write(&path, yaml).unwrap();
        let path: &Path = &path;
        tasks(path.to_str().unwrap(), &Roots::default(), &Options::default()).map_err(|error| error.to_string())
    };
    let task = read(base).unwrap().remove(0);
    assert_eq!(pair(&task.questions[0].requests[1]), ("a", " y"));
    assert_eq!(task.questions[0].gold, Gold::Choice(1));
    for (from, to, expected) in [
        ("doc_to_text: q", "doc_to_text: !function utils.text", "needs Python"),
        (
            "output_type: multiple_choice",
            "output_type: loglikelihood_rolling",
            "`output_type` is loglikelihood_rolling",
        ),
        ("doc_to_choice: c", "doc_to_choice: \"[{{a}}, {{a}}]\"", "one expression in braces"),
        ("task: t", "task: t\nprocess_docs: strip", "`process_docs` is"),
        ("task: t", "task: t\nmetric_list: [{metric: perplexity}]", "`metric_list` is"),
        ("task: t", "task: t\nmetric_list: [{metric: acc, aggregation: median}]", "expected mean"),
        ("task: t", "task: t\nfewshot_config: {sampler: balanced}", "expected default or first_n"),
        ("test: rows.jsonl", "dev: rows.jsonl", "expected a file of the split test"),
        ("task: t", "task: t\ntarget_delimiter: \"::\"", "lengths of choices are compared"),
        ("task: t", "task: t\ndataset_kwargs: 1", "duplicate"),
    ] {
        let error = read(&base.replace(from, to)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
