//! The log of a run: appending, resuming, and files that something happened to.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use olmoe_train::metrics::{
    EventFile, FILE_NAME, LOSS, MAX_LINE_BYTES, MetricsError, MetricsLog, Reader, Record, is_being_written,
};

fn record(step: u64) -> Record {
    Record::new(step).with(LOSS, 11.0 / step as f64)
}

fn read(path: &Path) -> Result<Vec<Record>, MetricsError> {
    Reader::open(path)?.collect()
}

fn steps(path: &Path) -> Vec<u64> {
    read(path).unwrap().iter().map(|record| record.step).collect()
}

#[test]
fn what_is_appended_is_read_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::open(folder.path(), 0).unwrap();
    for step in 1..=3 {
        log.append(&record(step)).unwrap();
        assert_eq!(read(log.path()).unwrap().last(), Some(&record(step)));
    }
    log.sync().unwrap();
    let text = fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
    assert_eq!(text.lines().next(), Some("{\"step\":1,\"train/CrossEntropyLoss\":11.0}"));
    assert_eq!(text.lines().count(), 3);
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::open(folder.path(), 0).unwrap();
    (1..=10).for_each(|step| log.append(&record(step)).unwrap());
    let whole = fs::read(log.path()).unwrap();
    for after in [10, 7, 7, 3, 0] {
        drop(log);
        log = MetricsLog::open(folder.path(), after).unwrap();
        assert_eq!(steps(log.path()), (1..=after).collect::<Vec<_>>());
        (after + 1..=10).for_each(|step| log.append(&record(step)).unwrap());
        assert!(fs::read(log.path()).unwrap() == whole, "after {after}");
    }
}

#[test]
fn a_line_cut_anywhere_is_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let mut log = MetricsLog::open(folder.path(), 0).unwrap();
    (1..=3).for_each(|step| log.append(&record(step)).unwrap());
    drop(log);
    let whole = fs::read(&path).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for cut in last..=whole.len() {
        // The whole object without its line break is a record, too.
        let kept = if cut + 1 >= whole.len() { 3 } else { 2 };
        fs::write(&path, &whole[..cut]).unwrap();
        assert_eq!(steps(&path).len(), kept, "cut at {cut}");
        let mut log = MetricsLog::open(folder.path(), 3).unwrap();
        (kept as u64 + 1..=3).for_each(|step| log.append(&record(step)).unwrap());
        assert!(fs::read(&path).unwrap() == whole, "cut at {cut}");
    }
    // As a loss of power may leave it.
    let zeros = [&whole[..last], &[0; 5000]].concat();
    fs::write(&path, zeros).unwrap();
    drop(MetricsLog::open(folder.path(), 3).unwrap());
    assert_eq!(fs::read(&path).unwrap(), whole[..last]);
}

#[test]
fn lines_that_are_no_records_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let deep = format!("{{\"step\":2,\"a\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let long_text = format!("{{\"step\":2,\"a\":\"{}\"}}", "x".repeat(100_000));
    for (name, line, expected) in [
        ("empty", "", "EOF"),
        ("no object", "[1,2]", "expected an object of numbers"),
        ("a number", "5", "expected an object of numbers"),
        ("no step", "{\"a\":1}", "no `step`"),
        ("two steps", "{\"step\":2,\"step\":3}", "`step` occurs twice"),
        ("step below 0", "{\"step\":-1}", "expected u64"),
        ("step of a half", "{\"step\":1.5}", "expected u64"),
        ("step too large", "{\"step\":99999999999999999999}", "expected u64"),
        ("text", "{\"step\":2,\"a\":\"high\"}", "another text, expected a number"),
        ("null", "{\"step\":2,\"a\":null}", "expected a number"),
        ("bare NaN", "{\"step\":2,\"a\":NaN}", "expected value"),
        ("beyond f64", "{\"step\":2,\"a\":1e999}", "number out of range"),
        ("nested", deep.as_str(), "expected a number"),
        ("long text", long_text.as_str(), "another text"),
        ("two on a line", "{\"step\":2}{\"step\":3}", "trailing characters"),
        ("cut, not at the end", "{\"step\":2,\"a\":", "EOF"),
        ("not UTF-8", "{\"step\":2,\"\u{0}\":1}", "control character"),
    ] {
        fs::write(&path, format!("{{\"step\":1}}\n{line}\n{{\"step\":4}}\n")).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(&format!("{FILE_NAME}, line 2")), "{name}: {error}");
        assert!(error.len() < 1000, "{name}: {} bytes of error", error.len());
        let error = MetricsLog::open(folder.path(), 9).unwrap_err();
        assert!(matches!(error, MetricsError::Malformed { line: 2, .. }), "{name}: {error}");
        assert!(fs::read_to_string(&path).unwrap().contains(line), "{name}: nothing is dropped unasked");
    }
    // What a resume drops may be anything.
    fs::write(&path, "{\"step\":1}\n{\"step\":2}\n?\n{\"step\":4}\n").unwrap();
    drop(MetricsLog::open(folder.path(), 1).unwrap());
    assert_eq!(steps(&path), [1]);
}

#[test]
fn a_line_without_end_is_not_held_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let file = fs::File::create(&path).unwrap();
    file.set_len(MAX_LINE_BYTES as u64 * 64).unwrap();
    assert!(matches!(read(&path), Err(MetricsError::TooLong { line: 1, .. })));
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(FILE_NAME)).unwrap();
    assert!(matches!(MetricsLog::open(folder.path(), 0), Err(MetricsError::NotAFile { .. })));
    assert!(matches!(read(&folder.path().join(FILE_NAME)), Err(MetricsError::NotAFile { .. })));
}

#[test]
fn two_runs_do_not_share_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let log = MetricsLog::open(folder.path(), 0).unwrap();
    assert!(is_being_written(log.path()));
    assert!(matches!(MetricsLog::open(folder.path(), 0), Err(MetricsError::InUse { .. })));
    let path = log.path().to_owned();
    drop(log);
    assert!(!is_being_written(&path));
    MetricsLog::open(folder.path(), 0).unwrap();
}

#[test]
fn an_event_file_has_a_frame_a_record() {
    let folder = tempfile::tempdir().unwrap();
    let mut events = EventFile::create(folder.path(), 0, SystemTime::now()).unwrap();
    (1..=5).for_each(|step| events.append(&record(step), SystemTime::now()).unwrap());
    let bytes = fs::read(events.path()).unwrap();
    let (mut at, mut frames) = (0, 0);
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        at += 16 + length as usize;
        frames += 1;
    }
    // Version and start of the session come first.
    assert_eq!((at, frames), (bytes.len(), 7));
}
