//! The log of a run: what is read can be gone on with, and is read again.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use olmoe_train::metrics::{FILE_NAME, MetricsLog, Reader, Record};

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("olmoe-fuzz-run-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    folder
});

fuzz_target!(|bytes: &[u8]| {
    let path = FOLDER.join(FILE_NAME);
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    let read = || Reader::open(&path).expect("a file").collect::<Result<Vec<_>, _>>();
    let Ok(records) = read() else { return };
    for record in &records {
        let _ = record.expert_load();
    }
    let last = records.last().map_or(0, |record| record.step);
    let Ok(mut log) = MetricsLog::open(&FOLDER, last) else { return };
    log.append(&Record::new(last).with("a", 1.0)).expect("it can be gone on with");
    drop(log);
    assert!(!read().expect("it can be read again").is_empty());
});
