//! Names of OLMo's safetensors files, compared with those that Python makes.

mod archive;

use olmoe_checkpoint::olmo_keys::{OlmoKey, decode, encode};
use serde::Deserialize;

use archive::{dict, int, pickle, text, tuple};

#[derive(Deserialize)]
struct Case {
    parts: Vec<(String, usize)>,
    is_pickled: bool,
    length: usize,
    start: String,
    end: String,
}

#[test]
fn names_are_those_of_python() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/olmo_keys.json");
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert!(cases.len() > 50);
    for Case { parts, is_pickled, length, start, end } in cases {
        let path: Vec<String> = parts.iter().map(|(text, times)| text.repeat(*times)).collect();
        let key = encode(&path.iter().map(String::as_str).collect::<Vec<_>>(), is_pickled);
        assert_eq!(key.len(), length, "{parts:?}");
        assert!(key.starts_with(&start) && key.ends_with(&end), "{parts:?}");
        assert_eq!(decode(&key).unwrap(), OlmoKey { path, is_pickled }, "{parts:?}");
    }
    let embedding = "gASVHwAAAAAAAACMFnRyYW5zZm9ybWVyLnd0ZS53ZWlnaHSUhZSJhpQu";
    assert_eq!(encode(&["transformer.wte.weight"], false), embedding);
}

#[test]
fn names_that_are_none() {
    use base64::Engine;
    let key = |value: &[u8]| base64::engine::general_purpose::URL_SAFE.encode(pickle(value));
    let path = || tuple(&[text("a")]);
    let cases = [
        ("model.embed_tokens.weight".into(), "is not URL-safe base64"),
        ("lm_head".into(), "is not URL-safe base64"),
        ("gASV".into(), "8 bytes expected, 0 are left"),
        ("".into(), "not a pickle"),
        ("aaaa".into(), "not a pickle"),
        (key(b"cos\nsystem\n"), "`os.system`"),
        (key(b"N"), "a tuple of a path and a bool, found None"),
        (key(&tuple(&[path()])), "a tuple of a path and a bool, found a tuple"),
        (key(&tuple(&[path(), b"\x89".to_vec(), b"\x89".to_vec()])), "a tuple of a path and a bool, found a tuple"),
        (key(&tuple(&[text("a"), b"\x89".to_vec()])), "a tuple of strings as the path, found a string"),
        (key(&tuple(&[dict(&[]), b"\x89".to_vec()])), "a tuple of strings as the path, found a dict"),
        (key(&tuple(&[tuple(&[int(3)]), b"\x89".to_vec()])), "a string in the path, found an int"),
        (key(&tuple(&[path(), int(0)])), "a bool after the path, found an int"),
    ];
    for (key, expected) in cases {
        let error = decode(&key).unwrap_err().to_string();
        assert!(error.contains(expected), "{key}: {error}");
    }
}
