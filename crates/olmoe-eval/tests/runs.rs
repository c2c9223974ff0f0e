//! Runs: what is kept, what is asked again, and what is left after a stop at any moment.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use olmoe_eval::answer::Scored;
use olmoe_eval::metric::{LeadingSpace, Normalization};
use olmoe_eval::results::{Results, ResultsError, file_name};
use olmoe_eval::run::{Progress, answers};
use olmoe_eval::task::Prompt;
use olmoe_eval::{Answer, Backend, BackendError, Encoding, Gold, Metric, Question, Request, Task};
use serde_json::{Value, json};

/// Answers by the texts alone, in an order that changes from call to call, and stops after a number of answers.
struct Fake {
    stop_after: usize,
    asked: usize,
    turn: usize,
}

impl Fake {
    fn new() -> Fake {
        Fake { stop_after: usize::MAX, asked: 0, turn: 0 }
    }
}

fn answer_of(request: &Request) -> Answer {
    match request {
        Request::Continuation { context, continuation, .. } => {
            let hash = blake3::hash(format!("{context}|{continuation}").as_bytes());
            let log_prob = -f64::from(u32::from_le_bytes(hash.as_bytes()[..4].try_into().unwrap())) / 3e7;
            Answer::Continuation(Scored { log_prob, tokens: continuation.len(), greedy: false, unconditional: None })
        }
        Request::Reply { .. } => unreachable!("the task has no replies"),
        Request::Generation { prompt, samples, .. } => {
            Answer::Generation { texts: (0..*samples).map(|i| format!("{prompt:?} {i}\n")).collect() }
        }
    }
}

impl Backend for Fake {
    fn identity(&self) -> Value {
        json!({"model": "fake"})
    }

    fn answer(
        &mut self,
        requests: &[(&Request, Encoding)],
        interrupt: &AtomicBool,
        answered: &mut dyn FnMut(usize, Answer) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.turn += 1;
        let n = requests.len();
        for i in 0..n {
            if interrupt.load(Ordering::Relaxed) || self.asked >= self.stop_after {
                return Ok(());
            }
            // A step that has no factor in common with the number.
            let index = (i * 7919 + self.turn) % n;
            answered(index, answer_of(requests[index].0))?;
            self.asked += 1;
        }
        Ok(())
    }
}

fn task(questions: usize) -> Task {
    let question = |id: u64| {
        let continuation = |choice: usize| Request::Continuation {
            context: format!("Question: {id}\nAnswer:"),
            continuation: format!(" {choice}"),
            unconditional: None,
        };
        let generation = Request::Generation {
            prompt: Prompt::Text(format!("{id}")),
            stop: vec!["\n".into()],
            max_tokens: 4,
            sampling: Default::default(),
            samples: 2,
            seed: id,
        };
        Question {
            id,
            native_id: format!("q{id}"),
            group: None,
            row: Value::Null,
            gold: Gold::Choice(0),
            requests: if id % 5 == 4 { vec![generation] } else { (0..3).map(continuation).collect() },
        }
    };
    Task {
        name: "a:task".into(),
        settings: Value::Null,
        encoding: Encoding::Separate,
        questions: (0..questions as u64).map(question).collect(),
        metrics: vec![Metric::Accuracy(Normalization::Characters(LeadingSpace::Dropped))],
    }
}

fn run(folder: &Path, task: &Task, backend: &mut Fake) -> Option<Vec<Vec<Answer>>> {
    let results = Results::open(folder, &backend.identity()).unwrap();
    let mut last = Progress { answered: 0, before: 0, requests: 0, damaged: 0 };
    let found = answers(task, backend, &results, &AtomicBool::new(false), &mut |at| last = at).unwrap();
    assert_eq!(found.is_some(), last.answered == last.requests);
    found
}

/// Every file of a folder and its bytes; the lock is empty.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(path) = folders.pop() {
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                all.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    all.sort();
    all
}

#[test]
fn a_run_that_was_stopped_anywhere_ends_as_one_that_was_not() {
    let task = task(23);
    let requests: usize = task.questions.iter().map(|question| question.requests.len()).sum();
    let whole = tempfile::tempdir().unwrap();
    let expected = run(whole.path(), &task, &mut Fake::new()).unwrap();
    for stop_after in (0..requests).step_by(3) {
        let stopped = tempfile::tempdir().unwrap();
        assert!(run(stopped.path(), &task, &mut Fake { stop_after, ..Fake::new() }).is_none());
        // The last line is cut where a crash may cut it.
        let partial = stopped.path().join("answers/a+task.partial.jsonl");
        let bytes = std::fs::read(&partial).unwrap_or_default();
        if !bytes.is_empty() {
            std::fs::write(&partial, &bytes[..bytes.len() - 2 - stop_after % 20]).unwrap();
        }
        let mut second = Fake { turn: stop_after, ..Fake::new() };
        assert_eq!(run(stopped.path(), &task, &mut second).unwrap(), expected);
        assert_eq!(second.asked, requests - stop_after.saturating_sub(1), "only what is missing is asked");
        assert_eq!(files(stopped.path()), files(whole.path()));
    }
}

/// All answers are there: nothing is asked, nothing fails, nothing changes.
#[test]
fn a_second_run_asks_nothing() {
    let (task, folder) = (task(9), tempfile::tempdir().unwrap());
    let first = run(folder.path(), &task, &mut Fake::new());
    let before = files(folder.path());
    let mut second = Fake::new();
    assert_eq!(run(folder.path(), &task, &mut second), first);
    assert_eq!(second.asked, 0);
    assert_eq!(files(folder.path()), before);
}

/// A changed shot is asked again; what other settings asked stays in the file.
#[test]
fn a_changed_prompt_is_asked_again_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (all, some) = (task(9), task(3));
    run(folder.path(), &all, &mut Fake::new());
    let before = files(folder.path());
    run(folder.path(), &some, &mut Fake::new());
    let mut again = Fake::new();
    run(folder.path(), &all, &mut again);
    assert_eq!(again.asked, 0, "the answers beyond the limit are kept");
    assert_eq!(files(folder.path()), before);

    let mut changed = task(3);
    if let Request::Continuation { context, .. } = &mut changed.questions[1].requests[2] {
        context.insert_str(0, "A shot.\n\n");
    }
    let mut fake = Fake::new();
    run(folder.path(), &changed, &mut fake);
    assert_eq!(fake.asked, 1);
    changed.encoding = Encoding::Joint;
    let mut fake = Fake::new();
    run(folder.path(), &changed, &mut fake);
    assert_eq!(fake.asked, 9, "tokens depend on the encoding");
}

#[test]
fn a_folder_is_of_one_model_and_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let results = Results::open(folder.path(), &json!({"model": "a", "precision": "fp32"})).unwrap();
    assert!(matches!(Results::existing(folder.path()), Err(ResultsError::InUse { .. })));
    drop(results);
    assert_eq!(Results::existing(folder.path()).unwrap().identity()["model"], "a");
    let error = Results::open(folder.path(), &json!({"model": "b", "precision": "fp32"})).err().unwrap().to_string();
    assert!(error.contains("model is \"a\" there and \"b\" here"), "{error}");
    std::fs::write(folder.path().join("run.json"), "{").unwrap();
    assert!(matches!(Results::open(folder.path(), &json!({})), Err(ResultsError::NoResults { .. })));
    let empty = tempfile::tempdir().unwrap();
    let error = Results::existing(empty.path()).err().unwrap().to_string();
    assert!(error.contains("run.json cannot be read"), "{error}");
}

#[test]
fn damaged_lines_are_asked_again() {
    let (task, folder) = (task(9), tempfile::tempdir().unwrap());
    let expected = run(folder.path(), &task, &mut Fake::new());
    let path = folder.path().join("answers/a+task.jsonl");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[40] = 0xff;
    std::fs::write(&path, bytes).unwrap();
    let mut again = Fake::new();
    assert_eq!(run(folder.path(), &task, &mut again), expected);
    assert_eq!(again.asked, 1);
}

#[test]
fn names_of_tasks_are_names_of_files() {
    assert_eq!(file_name("arc_easy_mc_5shot"), "arc_easy_mc_5shot");
    assert_eq!(file_name("olmes:arc_easy:mc"), "olmes+arc_easy+mc");
    assert_eq!(file_name("../x y"), "=2e=.=2f=x=20=y");
    assert_ne!(file_name("a/b"), file_name("a:b"));
}
