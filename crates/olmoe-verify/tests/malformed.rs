//! Golden files that are not what they should be: a typed error each, and never a panic.

use std::path::Path;

use olmoe_verify::{Golden, GoldenError, MAX_GOLDEN_BYTES, MAX_POSITIONS, read_directory};
use serde_json::{Value, json};

fn file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)).unwrap()
}

/// The header and the data.
fn split(bytes: &[u8]) -> (Value, Vec<u8>) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

fn join(header: &Value, data: &[u8]) -> Vec<u8> {
    let text = serde_json::to_vec(header).unwrap();
    [&(text.len() as u64).to_le_bytes()[..], &text, data].concat()
}

/// The error of a golden file after a change of its header and data.
fn after(name: &str, change: impl FnOnce(&mut Value, &mut Vec<u8>)) -> GoldenError {
    let (mut header, mut data) = split(&file(name));
    change(&mut header, &mut data);
    let error = Golden::parse("some.safetensors", &join(&header, &data)).unwrap_err();
    assert!(error.to_string().contains("some.safetensors"), "{error}");
    error
}

fn toy(change: impl FnOnce(&mut Value, &mut Vec<u8>)) -> GoldenError {
    after("toy.safetensors", change)
}

fn rename(header: &mut Value, from: &str, to: &str) {
    let entries = header.as_object_mut().unwrap();
    let entry = entries.remove(from).unwrap();
    entries.insert(to.into(), entry);
}

/// Where a tensor begins in the data.
fn start(header: &Value, tensor: &str) -> usize {
    header[tensor]["data_offsets"][0].as_u64().unwrap() as usize
}

#[test]
fn unchanged_files_are_read() {
    let (header, data) = split(&file("toy.safetensors"));
    let golden = Golden::parse("a/b/some.safetensors", &join(&header, &data)).unwrap();
    assert_eq!(golden.name, "some");
    assert_eq!((golden.ids.len(), golden.length, golden.logits.len()), (39, 13, 39 * 99));
}

#[test]
fn truncated() {
    let bytes = file("dense.safetensors");
    for length in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        let error = Golden::parse("some.safetensors", &bytes[..length]).unwrap_err();
        assert!(matches!(error, GoldenError::Format { .. }), "{length}: {error}");
    }
}

#[test]
fn too_large() {
    let bytes = vec![0; MAX_GOLDEN_BYTES as usize + 1];
    assert!(matches!(Golden::parse("some", &bytes), Err(GoldenError::TooLarge { limit: MAX_GOLDEN_BYTES, .. })));
}

#[test]
fn missing_or_unexpected_tensors() {
    for tensor in ["input_ids", "logits", "loss.ce", "loss.aux", "loss.total", "router.margin", "grad.norm.weight"] {
        let error = toy(|header, _| rename(header, tensor, "other"));
        assert!(matches!(&error, GoldenError::MissingTensor { tensor: missing, .. } if missing == tensor), "{error}");
    }
    let error = toy(|header, data| {
        header["param.layers.9.norm.weight"] =
            json!({ "dtype": "F32", "shape": [0], "data_offsets": [data.len(), data.len()] });
    });
    let expected = "param.layers.9.norm.weight";
    assert!(matches!(&error, GoldenError::UnexpectedTensor { tensor, .. } if tensor == expected), "{error}");
}

#[test]
fn wrong_types_and_shapes() {
    let error = toy(|header, _| header["logits"]["dtype"] = json!("I32"));
    assert!(matches!(&error, GoldenError::Dtype { tensor, .. } if tensor == "logits"), "{error}");
    let error = toy(|header, _| header["router.ids"]["dtype"] = json!("F32"));
    assert!(matches!(&error, GoldenError::Dtype { tensor, .. } if tensor == "router.ids"), "{error}");

    let error = toy(|header, _| header["logits"]["shape"] = json!([3, 99, 13]));
    assert!(matches!(&error, GoldenError::Shape { found, .. } if *found == [3, 99, 13]), "{error}");
    let error = toy(|header, _| header["input_ids"]["shape"] = json!([39]));
    assert!(matches!(&error, GoldenError::Shape { tensor, .. } if tensor == "input_ids"), "{error}");
    let error = toy(|header, _| header["input_ids"]["shape"] = json!([39, 1]));
    assert!(matches!(&error, GoldenError::Shape { tensor, .. } if tensor == "input_ids"), "{error}");
    let error = toy(|header, _| {
        let shape = &mut header["param.layers.0.moe.experts.down_proj.weight"]["shape"];
        *shape = json!([shape[0], shape[2], shape[1]]);
    });
    assert!(matches!(error, GoldenError::Shape { .. }), "{error}");
}

#[test]
fn numbers_that_cannot_be() {
    let put = |tensor: &'static str, bytes: [u8; 4]| {
        toy(move |header, data| {
            let at = start(header, tensor) + 4;
            data[at..at + 4].copy_from_slice(&bytes);
        })
    };
    for (tensor, bytes) in [
        ("input_ids", 99i32.to_le_bytes()),
        ("input_ids", (-1i32).to_le_bytes()),
        ("router.ids", 8i32.to_le_bytes()),
        ("logits", f32::NAN.to_le_bytes()),
        ("grad.norm.weight", f32::INFINITY.to_le_bytes()),
    ] {
        let error = put(tensor, bytes);
        assert!(matches!(&error, GoldenError::Value { tensor: t, at: 1, .. } if t == tensor), "{error}");
    }
    let error = after("documents.safetensors", |header, data| {
        let at = start(header, "document_lengths");
        data[at..at + 4].copy_from_slice(&6i32.to_le_bytes());
    });
    assert!(error.to_string().contains("sums to 17") && error.to_string().contains("sums to 16"), "{error}");
}

#[test]
fn metadata() {
    for key in ["losses", "description"] {
        let error = toy(|header, _| drop(header["__metadata__"].as_object_mut().unwrap().remove(key)));
        assert!(matches!(error, GoldenError::MissingMetadata { key: k, .. } if k == key), "{error}");
    }
    let error = toy(|header, _| drop(header["__metadata__"].as_object_mut().unwrap().remove("config_hf")));
    assert!(matches!(error, GoldenError::MissingMetadata { key: "config_olmo", .. }), "{error}");
    let error = toy(|header, _| header["__metadata__"]["config_hf"] = json!("{}"));
    assert!(matches!(error, GoldenError::Config { key: "config_hf", .. }), "{error}");
    let none = r#"{"auxiliary":"none","load_balancing_weight":0.1,"z_weight":0.0}"#;
    for losses in ["", "{}", r#"{"auxiliary":"mine","load_balancing_weight":0.1,"z_weight":0.0}"#, none] {
        let error = toy(|header, _| header["__metadata__"]["losses"] = json!(losses));
        assert!(matches!(error, GoldenError::BadMetadata { key: "losses", .. }), "{error}");
    }
    let error = toy(|header, _| {
        let text = header["__metadata__"]["config_hf"].as_str().unwrap().to_owned();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["max_position_embeddings"] = json!(MAX_POSITIONS + 1);
        header["__metadata__"]["config_hf"] = json!(config.to_string());
    });
    assert!(matches!(error, GoldenError::TooManyPositions { .. }), "{error}");
}

#[test]
fn folders() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(read_directory(folder.path()), Err(GoldenError::NoFiles { .. })));
    assert!(matches!(read_directory(&folder.path().join("none")), Err(GoldenError::Unreadable { .. })));
    std::fs::write(folder.path().join("good.safetensors"), file("dense.safetensors")).unwrap();
    std::fs::write(folder.path().join("notes.txt"), "not looked at").unwrap();
    assert_eq!(read_directory(folder.path()).unwrap()[0].name, "good");
    std::fs::write(folder.path().join("bad.safetensors"), "bad").unwrap();
    let error = read_directory(folder.path()).unwrap_err();
    assert!(error.to_string().contains("bad.safetensors"), "{error}");
}

/// Bytes changed at random, mostly in the header: read or rejected, but never a panic.
#[test]
fn damaged_bytes() {
    let good = file("relu_multi_query.safetensors");
    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize + 8;
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..3000 {
        let mut bytes = good.clone();
        for _ in 0..=random(3) {
            let at = if round % 4 == 0 { random(bytes.len()) } else { random(header) };
            bytes[at] = random(256) as u8;
        }
        let _ = Golden::parse("some.safetensors", &bytes);
    }
}
