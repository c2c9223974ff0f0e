//! Files that torch wrote, compared with what torch says is in them.

mod archive;

use std::path::{Path, PathBuf};

use olmoe_checkpoint::read_at::ReadAt;
use olmoe_checkpoint::safetensors::SafeType;
use olmoe_checkpoint::torch::{StateDict, TorchError, read, read_from};
use proptest::prelude::*;
use serde::Deserialize;

use archive::{dict, entries, pickle, sparse_zip, tensor, text};

#[derive(Deserialize)]
struct Expected {
    tensors: Vec<ExpectedTensor>,
    skipped: Vec<String>,
}

#[derive(Deserialize)]
struct ExpectedTensor {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    hex: String,
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap()
}

fn protocols() -> [Vec<u8>; 4] {
    [2, 3, 4, 5].map(|protocol| bytes(&format!("torch_protocol_{protocol}.pt")))
}

/// Every tensor lies in the file and has the bytes that its type and shape make.
fn check_ranges(dict: &StateDict, length: u64) {
    for tensor in &dict.tensors {
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(tensor.bytes, (elements * tensor.dtype.size()) as u64, "{tensor:?}");
        assert!(tensor.offset.checked_add(tensor.bytes).is_some_and(|end| end <= length), "{tensor:?}");
    }
}

#[test]
fn all_types_views_and_protocols() {
    let expected: Expected = serde_json::from_slice(&bytes("torch.json")).unwrap();
    for protocol in 2..=5 {
        let name = format!("torch_protocol_{protocol}.pt");
        let (dict, content) = (read(&path(&name)).unwrap(), bytes(&name));
        assert_eq!(read_from(&content[..]).unwrap(), dict);
        check_ranges(&dict, content.len() as u64);
        assert_eq!(dict.tensors.len(), expected.tensors.len());
        for (found, expected) in dict.tensors.iter().zip(&expected.tensors) {
            assert_eq!((&found.name, &found.shape), (&expected.name, &expected.shape));
            assert_eq!(format!("{:?}", found.dtype), expected.dtype, "{name} {}", found.name);
            let data = &content[found.offset as usize..][..found.bytes as usize];
            let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, expected.hex, "{name} {}", found.name);
        }
        let skipped: Vec<_> = dict.skipped.iter().map(|skipped| &skipped.name).collect();
        assert_eq!(skipped, expected.skipped.iter().collect::<Vec<_>>());
        let kinds: Vec<_> = dict.skipped.iter().map(|skipped| skipped.kind).collect();
        let numbers = ["an int", "an int", "an int", "an int", "a float", "a bool"];
        assert_eq!(kinds[..6], numbers);
        assert_eq!(kinds[6..], ["None", "a string", "a list", "a tuple", "a torch.Size"]);

        let find = |name: &str| dict.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        assert_eq!(find("tied.a").offset, find("tied.b").offset);
        assert_eq!(find("slice.rows").offset, find("tied.a").offset + 24);
        assert_eq!(find("nested.3").dtype, SafeType::I64);
    }
}

#[test]
fn files_that_torch_wrote_but_are_no_readable_state_dict() {
    assert_eq!(read(&path("torch_plain_dict.pt")).unwrap().tensors.len(), 1);
    let cases = [
        ("torch_transposed.pt", "tensor `mixed` is a view of shape [3, 2] with strides [1, 3]"),
        ("torch_bare_tensor.pt", "holds a tensor, not a dict of tensors"),
        ("torch_legacy_2.pt", "save it again with a current torch"),
        ("torch_legacy_4.pt", "save it again with a current torch"),
        ("torch.json", "not a zip archive"),
        ("missing.pt", "cannot read"),
    ];
    for (name, expected) in cases {
        let error = read(&path(name)).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(name), "{name}: {error}");
    }
    let mut tar = vec![0; 600];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(matches!(read_from(&tar[..]), Err(TorchError::Legacy)));
}

#[test]
fn cut_short_anywhere() {
    for content in protocols() {
        for length in 0..content.len() {
            read_from(&content[..length]).unwrap_err();
        }
    }
}

/// Zip64 records, and a tensor beyond 4 GiB in a file that no memory holds.
#[test]
fn beyond_four_gibibytes() {
    let weights = dict(&[text("w"), tensor("0", 6, 2, &[2, 2], &[2, 1])]);
    for (gap, wide) in [(0, false), (0, true), (5 << 30, false), (5 << 30, true)] {
        let mut entries = entries(&pickle(&weights));
        entries[2].gap = gap;
        let file = sparse_zip(&entries, wide);
        let dict = read_from(&file).unwrap();
        check_ranges(&dict, file.len);
        let [tensor] = &dict.tensors[..] else { panic!("{dict:?}") };
        assert!(tensor.offset > gap && tensor.bytes == 16);
        let mut found = [0; 17];
        file.read_at(tensor.offset, &mut found).unwrap();
        assert_eq!(found[..16], [7; 16]);
        assert_ne!(found[16], 7);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_bytes_never_panic(
        protocol in 0..4usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut content = protocols()[protocol].clone();
        for (place, value) in edits {
            let place = place.index(content.len());
            content[place] = value;
        }
        if let Ok(dict) = read_from(&content[..]) {
            check_ranges(&dict, content.len() as u64);
        }
    }

    /// Edits of the pickle alone reach deeper than those anywhere.
    #[test]
    fn damaged_pickles_never_panic(
        protocol in 0..4usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut content = protocols()[protocol].clone();
        let start = content.windows(3).position(|bytes| bytes[0] == 0x80 && bytes[2] != 0 && bytes[1] < 6).unwrap();
        let end = start + content[start..].windows(4).position(|bytes| bytes == b"PK\x07\x08").unwrap();
        for (place, value) in edits {
            let place = start + place.index(end - start);
            content[place] = value;
        }
        if let Ok(dict) = read_from(&content[..]) {
            check_ranges(&dict, content.len() as u64);
        }
    }
}
