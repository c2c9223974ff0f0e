//! `olmoe runs` on folders that runs left.

use std::fs;
use std::path::Path;

use olmoe_train::metrics::{EXPERT_LOAD, FILE_NAME, LEARNING_RATE, LOSS, MAX_STEPS, MetricsLog, Record};

mod program;

use program::olmoe;

/// A run of so many steps, whose loss falls from 8 to 3.
fn write(folder: &Path, steps: u64, max_steps: u64) -> MetricsLog {
    fs::create_dir_all(folder).unwrap();
    let mut log = MetricsLog::open(folder, 0).unwrap();
    log.append(&Record::new(0).with(MAX_STEPS, max_steps as f64).with("eval/c4_en/CrossEntropyLoss", 9.0)).unwrap();
    for step in 1..=steps {
        let at = step as f64;
        let mut record = Record::new(step)
            .with(LOSS, 3.0 + 5.0 * (-at / 20.0).exp() + if step % 2 == 0 { 0.25 } else { -0.25 })
            .with(LEARNING_RATE, 4e-4 * (at / 10.0).min(1.0))
            .with("throughput/total_tokens", at * 4096.0)
            .with("throughput/device/tokens_per_second", 12_000.0 + at);
        for expert in 0..4 {
            let share = [40.0, 20.0, 20.0, 20.0][expert];
            record.push(format!("train/TokensPercentage/layer0/expert{expert}"), share);
        }
        if step % 20 == 0 {
            record.push("eval/c4_en/CrossEntropyLoss", 9.0 - at / 20.0).push("eval/pile/CrossEntropyLoss", 3.0);
        }
        log.append(&record).unwrap();
    }
    log
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_table_has_a_row_a_run() {
    let folder = tempfile::tempdir().unwrap();
    drop(write(&folder.path().join("b/first"), 60, 60));
    let going = write(&folder.path().join("a"), 40, 3000);
    drop(write(&folder.path().join("b/second"), 3, 60));
    fs::create_dir_all(folder.path().join("no-run")).unwrap();
    // A run that has just begun, and one that writes a line at this moment.
    fs::create_dir(folder.path().join("c")).unwrap();
    let diverged = format!("{{\"step\":7,\"{LOSS}\":\"NaN\"}}\n{{\"step\":8,\"tra");
    fs::write(folder.path().join("c").join(FILE_NAME), diverged).unwrap();
    fs::create_dir(folder.path().join("d")).unwrap();
    fs::write(folder.path().join("d").join(FILE_NAME), "").unwrap();

    let done = olmoe(&["runs", text(folder.path())], &[]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    let rows: Vec<Vec<&str>> = done.out.lines().map(|line| line.split_whitespace().collect()).collect();
    let prefix = text(folder.path());
    let table = done.out.replace(prefix, "");
    assert_eq!(rows[0], ["run", "state", "steps", "tokens", "loss", "best", "eval", "tok/s", "when"], "{table}");
    assert_eq!(rows[1][1..7], ["running", "40/3000", "164k", "4.134", "5.000", "@40"], "{table}");
    assert_eq!(rows[2][1..8], ["finished", "60/60", "246k", "3.417", "4.500", "@60", "12.0k"], "{table}");
    assert_eq!(rows[3][1..4], ["stopped", "3/60", "12.3k"], "{table}");
    assert_eq!(rows[4][1..7], ["diverged", "7", "-", "NaN", "-", "-"], "{table}");
    assert_eq!(rows[5][1..6], ["stopped", "0", "-", "-", "-"], "{table}");
    assert_eq!(rows.len(), 6, "{table}");
    let ends: Vec<usize> = done.out.lines().filter_map(|line| line.find("12.0k")).collect();
    assert_eq!(ends.len(), 3);
    assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "numbers stand under each other: {table}");
    drop(going);

    let first = folder.path().join("b/first");
    let done = olmoe(&["runs", text(&first.join(FILE_NAME)), text(&first), "--metric", EXPERT_LOAD], &[]);
    assert_eq!((done.code, done.out.lines().count()), (0, 2), "each run once: {}{}", done.out, done.err);
    assert!(done.out.contains(EXPERT_LOAD) && done.out.contains(" 1.600 "), "{}", done.out);
}

#[test]
fn json_has_every_number() {
    let folder = tempfile::tempdir().unwrap();
    drop(write(folder.path(), 40, 40));
    let done = olmoe(
        &[
            "runs",
            text(folder.path()),
            "--json",
            "--smooth",
            "2",
            "--metric",
            LOSS,
            "--metric",
            "eval/pile/CrossEntropyLoss",
        ],
        &[],
    );
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    let json: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    let run = &json["runs"][0];
    assert_eq!(run["path"], text(folder.path()));
    assert_eq!(
        (run["state"].as_str(), run["records"].as_u64(), run["step"].as_u64()),
        (Some("finished"), Some(41), Some(40))
    );
    assert_eq!((run["max_steps"].as_u64(), run["tokens"].as_f64()), (Some(40), Some(163_840.0)));
    assert_eq!(run["tokens_per_second"], 12_020.5);
    assert_eq!(run["best_eval"], serde_json::json!({"step": 40, "value": 5.0}));
    assert!(run["modified"].as_u64().is_some_and(|time| time > 1_700_000_000));
    assert_eq!(
        run["metrics"]["eval/pile/CrossEntropyLoss"],
        serde_json::json!({"step": 40, "last": 3.0, "smoothed": 3.0, "count": 2})
    );
    let loss = &run["metrics"][LOSS];
    let (last, smoothed) = (loss["last"].as_f64().unwrap(), loss["smoothed"].as_f64().unwrap());
    assert!((last - 3.926_676).abs() < 1e-5 && (smoothed - 3.694_025).abs() < 1e-5, "{loss}");
}

#[test]
fn pictures_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    drop(write(&folder.path().join("a<b>&"), 40, 40));
    drop(write(&folder.path().join("plain"), 60, 60));
    let runs = text(folder.path()).to_owned();
    for (name, more) in [
        ("a.svg", &[][..]),
        ("b.png", &["--x", "tokens", "--log", "x,y", "--smooth", "1"]),
        ("c.SVG", &["--metric", LOSS, "--metric", "eval/pile/CrossEntropyLoss", "--title", "Two"]),
    ] {
        let path = folder.path().join(name);
        let done = olmoe(&[&["runs", &runs, "--plot", text(&path)], more].concat(), &[]);
        assert_eq!((done.code, done.err.as_str(), done.out.trim()), (0, "", text(&path)));
        let bytes = fs::read(&path).unwrap();
        if name.ends_with("png") {
            assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n") && bytes.len() > 20_000, "{}", bytes.len());
            continue;
        }
        let svg = String::from_utf8(bytes).unwrap();
        assert!(
            svg.contains(">a&lt;b&gt;&amp;</text>") && svg.contains(">plain</text>"),
            "the legend tells them apart"
        );
        let panels = if name == "a.svg" { ["learning rate", "busiest expert"] } else { ["eval/pile", ">Two<"] };
        assert!(panels.iter().all(|panel| svg.contains(panel)), "{name}");
        assert_eq!(olmoe(&[&["runs", &runs, "--plot", text(&path)], more].concat(), &[]).code, 0);
        assert_eq!(fs::read_to_string(&path).unwrap(), svg, "the same bytes");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad, empty) = (folder.path().join("good"), folder.path().join("bad"), folder.path().join("empty"));
    drop(write(&good, 5, 5));
    fs::create_dir_all(&bad).unwrap();
    fs::create_dir_all(&empty).unwrap();
    fs::write(bad.join(FILE_NAME), "{\"step\":1}\n{\"step\":2,\"a\":[]}\n{\"step\":3}\n").unwrap();
    let none = folder.path().join("none");
    for (arguments, expected) in [
        (&["runs", text(&empty)][..], "no run in"),
        (&["runs", text(&none)], "cannot read the folder"),
        (&["runs", text(&bad)], "metrics.jsonl, line 2: invalid type: sequence"),
        (&["runs", text(&good), "--metric", "train/CrosEntropyLoss"], "similar ones are train/CrossEntropyLoss"),
        (&["runs", text(&good), "--metric", "total_tokens"], "similar ones are throughput/total_tokens"),
        (&["runs", text(&good), "--metric", "LEARNING"], LEARNING_RATE),
        (&["runs", text(&good), "--metric", "??"], "no run has the metric `??`; there are"),
        (&["runs", text(&good), "--plot", "a.pdf"], "a.pdf: a picture is written as .svg or .png"),
        (&["runs", text(&good), "--plot", "/no/where/a.svg"], "cannot write /no/where/a.svg"),
    ] {
        let done = olmoe(arguments, &[]);
        assert_eq!((done.code, done.out.as_str()), (1, ""), "{arguments:?}");
        assert!(done.err.starts_with("error: ") && done.err.contains(expected), "{arguments:?}: {}", done.err);
    }
    // One that cannot be read does not hide the others.
    let done = olmoe(&["runs", text(folder.path()), "--metric", LOSS], &[]);
    assert!(done.code == 1 && done.out.contains("good") && done.err.contains("line 2"), "{}{}", done.out, done.err);
}
