//! The format against its own library, and files that are not what they should be.

use std::collections::BTreeMap;
use std::path::Path;

use olmoe_checkpoint::safetensors::{
    IndexError, MAX_METADATA, MAX_RANK, MAX_TENSOR_NAME, MAX_TENSORS, SafeType, SafetensorsError, ShardIndex, Shards,
    ShardsError, Spec, Writer, file_bytes, read_header, shard_name, split,
};
use proptest::prelude::*;

/// Written by the safetensors 0.8.0 of Python: `safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})`.
const OFFICIAL: &[u8] = include_bytes!("data/official.safetensors");

/// The tensors of that file, in the order of their bytes.
fn official() -> Vec<(Spec, Vec<u8>)> {
    let f32s = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    use SafeType::*;
    vec![
        (Spec::new("ids", I64, [1, 2]), [1i64, -2].iter().flat_map(|id| id.to_le_bytes()).collect()),
        (Spec::new("a.weight", F32, [4]), f32s(&[-1.5, -0.5, 0.5, 1.5])),
        (Spec::new("b.weight", F32, [2, 3]), f32s(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])),
        (Spec::new("none", F32, [0, 4]), vec![]),
        (Spec::new("scalar", F32, []), f32s(&[3.0])),
        (
            Spec::new("half", BF16, [3]),
            [0x3f80u16, 0xc000, 0x3f00].iter().flat_map(|half| half.to_le_bytes()).collect(),
        ),
        (Spec::new("quote\"\\ä", U8, [1]), vec![7]),
        (Spec::new("flag", BOOL, [3]), vec![1, 0, 1]),
    ]
}

fn metadata() -> BTreeMap<String, String> {
    [("format".into(), "pt".into())].into()
}

fn write(tensors: &[(Spec, Vec<u8>)], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let specs: Vec<_> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = Writer::new(Vec::new(), &specs, metadata).unwrap();
    tensors.iter().for_each(|(_, bytes)| writer.write(bytes).unwrap());
    let bytes = writer.finish().unwrap();
    assert_eq!(bytes.len() as u64, file_bytes(&specs, metadata).unwrap());
    bytes
}

#[test]
fn files_of_the_official_library_are_read() {
    let header = read_header(OFFICIAL).unwrap();
    assert_eq!(header.metadata, metadata());
    assert_eq!(header.entries.len(), official().len());
    for (entry, (spec, bytes)) in header.entries.iter().zip(official()) {
        assert_eq!((&entry.name, entry.dtype, &entry.shape), (&spec.name, spec.dtype, &spec.shape));
        assert_eq!(OFFICIAL[entry.offset as usize..][..entry.bytes as usize], bytes);
    }
}

#[test]
fn files_are_written_as_the_official_library_writes_them() {
    assert_eq!(write(&official(), &metadata()), OFFICIAL);
    assert_eq!(write(&[], &BTreeMap::new()), b"\x08\0\0\0\0\0\0\0{}      ");
}

#[test]
fn real_model_files_are_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/models/glassllm-en/model.safetensors");
    if !Path::new(path).exists() {
        return eprintln!("skipped: no {path}");
    }
    let shards = Shards::open([path]).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(shards.entries().count(), theirs.len());
    for (name, view) in theirs.iter() {
        let entry = shards.get(name).unwrap();
        assert_eq!(entry.shape, view.shape());
        let mut buffer = vec![0; entry.bytes as usize];
        shards.read_at(name, 0, &mut buffer).unwrap();
        assert_eq!(buffer, view.data());
    }
}

#[test]
fn files_in_the_repository_are_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(path).unwrap();
        assert!(same_as_theirs(&bytes).unwrap());
        count += 1;
    }
    assert!(count > 10);
}

/// Reads with both; whether both took it. An error if ours took what theirs did not, or read something else.
fn same_as_theirs(bytes: &[u8]) -> Result<bool, String> {
    let Ok(ours) = read_header(bytes) else { return Ok(false) };
    let (length, theirs) = safetensors::SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let names: Vec<_> = theirs.tensors().into_keys().collect();
    if names.len() != ours.entries.len() {
        return Err(format!("{names:?}"));
    }
    for entry in &ours.entries {
        let info = theirs.info(&entry.name).ok_or(&entry.name)?;
        let begin = entry.offset as usize - 8 - length;
        let type_name = info.dtype.to_string();
        if (begin, begin + entry.bytes as usize) != info.data_offsets || entry.shape != info.shape {
            return Err(format!("{entry:?} {info:?}"));
        }
        if type_name != entry.dtype.name() {
            return Err(format!("{entry:?} {type_name}"));
        }
    }
    Ok(true)
}

/// A file with this header and this many bytes of data.
fn file(header: impl AsRef<[u8]>, data: usize) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes()[..], header, &vec![0; data]].concat()
}

#[test]
fn bad_files_are_errors_that_say_why() {
    let nested = format!(r#"{{"a":{{"shape":{}{}}}}}"#, "[".repeat(3000), "]".repeat(3000));
    let long_name =
        format!(r#"{{"{}":{{"dtype":"U8","shape":[],"data_offsets":[0,1]}}}}"#, "n".repeat(MAX_TENSOR_NAME + 1));
    let much = format!(r#"{{"__metadata__":{{{}"":""}}}}"#, r#""":"","#.repeat(MAX_METADATA));
    let long_shape = format!(r#"{{"a":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}}}"#, "1,".repeat(MAX_RANK));
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":{first}}},"b":{{"dtype":"U8","shape":[2],"data_offsets":{second}}}}}"#
        )
    };
    let u8s = r#""U8""#;
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "0 bytes long, too short"),
        ("seven bytes", vec![0; 7], "7 bytes long, too short"),
        ("no header", vec![0; 8], "does not begin with {"),
        ("header length of all ones", vec![0xff; 16], "a header of 18446744073709551615 bytes, more than"),
        (
            "header length above the limit",
            100_000_001u64.to_le_bytes().into(),
            "a header of 100000001 bytes, more than",
        ),
        ("header length at the limit", 100_000_000u64.to_le_bytes().into(), "truncated"),
        ("header longer than the file", file("{}", 0)[..9].into(), "a header of 2 bytes in a file with 1 left"),
        ("header not UTF-8", file(b"{\"\xff\":1}", 0), "not UTF-8 from its byte 2"),
        ("header an array", file("[]", 0), "does not begin with {"),
        ("header begins with space", file(" {}", 0), "does not begin with {"),
        ("header not JSON", file("{\"a\"", 0), "EOF while parsing"),
        ("garbage after the header", file("{} x", 0), "trailing characters"),
        ("deep nesting", file(nested, 1), "tensor \"a\": invalid type: sequence"),
        ("tensor not an object", file(r#"{"a":1}"#, 0), "tensor \"a\": invalid type: integer `1`"),
        ("no type", file(r#"{"a":{"shape":[],"data_offsets":[0,1]}}"#, 1), "tensor \"a\": missing field `dtype`"),
        ("no shape", file(r#"{"a":{"dtype":"U8","data_offsets":[0,1]}}"#, 1), "missing field `shape`"),
        ("no offsets", file(r#"{"a":{"dtype":"U8","shape":[]}}"#, 1), "missing field `data_offsets`"),
        ("type twice", file(r#"{"a":{"dtype":"U8","dtype":"I8"}}"#, 1), "duplicate field `dtype`"),
        ("unknown type", file(one(r#""F33""#, "[]", "[0,1]"), 1), "tensor \"a\": type \"F33\" is not known"),
        ("type of a number", file(one("7", "[]", "[0,1]"), 1), "tensor \"a\": invalid type"),
        ("negative extent", file(one(u8s, "[-1]", "[0,1]"), 1), "tensor \"a\": invalid value: integer `-1`"),
        ("extent with a fraction", file(one(u8s, "[1.5]", "[0,1]"), 1), "tensor \"a\": invalid type: floating point"),
        (
            "extent 2^64",
            file(one(u8s, "[18446744073709551616]", "[0,1]"), 1),
            "tensor \"a\": invalid type: floating point",
        ),
        (
            "extents that overflow",
            file(one(u8s, "[4294967296,4294967296]", "[0,1]"), 1),
            "more bytes than can be counted",
        ),
        (
            "bytes that overflow",
            file(one(r#""F32""#, "[9223372036854775808]", "[0,1]"), 1),
            "more bytes than can be counted",
        ),
        ("negative offset", file(one(u8s, "[1]", "[-1,0]"), 1), "tensor \"a\": invalid value: integer `-1`"),
        ("one offset", file(one(u8s, "[1]", "[0]"), 1), "tensor \"a\": invalid length 1"),
        ("three offsets", file(one(u8s, "[1]", "[0,1,1]"), 1), "tensor \"a\""),
        (
            "ends at 2^63",
            file(one(u8s, "[9223372036854775808]", "[0,9223372036854775808]"), 1),
            "ends at byte 9223372036854775808",
        ),
        (
            "ends at 2^64-1",
            file(one(u8s, "[1]", "[18446744073709551614,18446744073709551615]"), 1),
            "the data, which has 1",
        ),
        (
            "ends before it begins",
            file(one(u8s, "[1]", "[1,0]"), 1),
            "tensor \"a\": begins at byte 1 of the data and ends at 0",
        ),
        ("beyond the file", file(one(u8s, "[2]", "[0,2]"), 1), "tensor \"a\": ends at byte 2 of the data, which has 1"),
        ("too few bytes for the shape", file(one(r#""F32""#, "[1]", "[0,3]"), 3), "3 bytes; F32 of shape [1] has 4"),
        ("too many bytes for the shape", file(one(u8s, "[]", "[0,2]"), 2), "2 bytes; U8 of shape [] has 1"),
        ("hole at the beginning", file(one(u8s, "[1]", "[1,2]"), 2), "tensor \"a\": begins at byte 1"),
        (
            "hole",
            file(two("[0,2]", "[3,5]"), 5),
            "tensor \"b\": begins at byte 3 of the data, the one before ends at 2: a hole",
        ),
        (
            "overlap",
            file(two("[0,2]", "[1,3]"), 3),
            "tensor \"b\": begins at byte 1 of the data, the one before ends at 2: an overlap",
        ),
        ("the same bytes", file(two("[0,2]", "[0,2]"), 2), "an overlap"),
        ("data after the last", file(two("[0,2]", "[2,4]"), 5), "the tensors end at byte 4 of the data, which has 5"),
        ("data of no tensor", file("{}", 1), "the tensors end at byte 0 of the data, which has 1"),
        ("a name twice", file(two("[0,2]", "[2,4]").replace("\"b\"", "\"a\""), 4), "tensor \"a\" occurs twice"),
        (
            "a name twice, escaped",
            file(two("[0,2]", "[2,4]").replace("\"b\"", "\"\\u0061\""), 4),
            "tensor \"a\" occurs twice",
        ),
        ("metadata twice", file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "__metadata__ occurs twice"),
        ("a key twice", file(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0), "metadata \"k\" occurs twice"),
        ("metadata of numbers", file(r#"{"__metadata__":{"k":1}}"#, 0), "invalid type: integer `1`"),
        ("much metadata", file(much, 0), "more than 100000 entries"),
        ("a long name", file(long_name, 1), "name of 4097 bytes"),
        ("a long shape", file(long_shape, 1), "tensor \"a\": more than 64 axes"),
    ];
    for (name, bytes, expected) in rows {
        let error = read_header(&bytes[..]).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn what_is_unusual_and_right_is_read() {
    for (name, bytes) in [
        ("no tensors", file("{}", 0)),
        ("spaces at the end", file("{}   \n", 0)),
        ("null metadata", file(r#"{"__metadata__":null}"#, 0)),
        ("a member that is not known", file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{}}}"#, 1)),
        (
            "an empty tensor of huge extents",
            file(r#"{"a":{"dtype":"U8","shape":[0,9223372036854775807],"data_offsets":[0,0]}}"#, 0),
        ),
        ("an empty name", file(r#"{"":{"dtype":"C64","shape":[],"data_offsets":[0,8]}}"#, 8)),
        ("eight-bit floats", file(r#"{"a":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]}}"#, 3)),
    ] {
        assert_eq!(same_as_theirs(&bytes), Ok(true), "{name}: {:?}", read_header(&bytes[..]));
    }
}

/// Members that are not known are passed over, however deep, without a stack that grows.
#[test]
fn deep_members_are_passed_over() {
    let deep = "[".repeat(1 << 20) + &"]".repeat(1 << 20);
    let bytes = file(format!(r#"{{"a":{{"x":{deep},"dtype":"U8","shape":[],"data_offsets":[0,1]}}}}"#), 1);
    assert_eq!(read_header(&bytes[..]).unwrap().entries.len(), 1);
}

#[test]
fn cut_at_every_byte() {
    for length in 0..OFFICIAL.len() {
        read_header(&OFFICIAL[..length]).expect_err("cut");
    }
    assert!(matches!(read_header(&[OFFICIAL, b"\0"].concat()[..]), Err(SafetensorsError::Uncovered { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn flipped_bytes(flips in prop::collection::vec((0..OFFICIAL.len(), any::<u8>()), 1..4)) {
        let mut bytes = OFFICIAL.to_vec();
        flips.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        prop_assert!(same_as_theirs(&bytes).is_ok(), "{:?}", same_as_theirs(&bytes));
    }

    #[test]
    fn changed_digits(flips in prop::collection::vec((8..OFFICIAL.len() - 70, prop::sample::select(b"0123456789-.e[]{},:\"".to_vec())), 1..4)) {
        let mut bytes = OFFICIAL.to_vec();
        flips.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        prop_assert!(same_as_theirs(&bytes).is_ok(), "{:?}", same_as_theirs(&bytes));
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64), header in "\\PC{0,60}") {
        let _ = read_header(&bytes[..]);
        let _ = read_header(&file(header, 3)[..]);
        let _ = ShardIndex::parse(&bytes);
    }
}

#[test]
fn the_writer_counts() {
    let specs =
        [Spec::new("a", SafeType::U8, [2]), Spec::new("none", SafeType::U8, [0]), Spec::new("b", SafeType::U8, [2])];
    let new = || Writer::new(Vec::new(), &specs, &BTreeMap::new()).unwrap();
    let mut writer = new();
    writer.write(&[1, 2, 3]).unwrap();
    let error = writer.write(&[4, 5]).unwrap_err();
    assert!(matches!(error, SafetensorsError::TooMuch { found: 5, expected: 4 }), "{error}");
    for (written, missing) in [(0, "a"), (1, "a"), (2, "b"), (3, "b")] {
        let mut writer = new();
        writer.write(&vec![0; written]).unwrap();
        let error = writer.finish().unwrap_err();
        assert!(
            matches!(&error, SafetensorsError::TooLittle { tensor, .. } if tensor == missing),
            "{written}: {error}"
        );
    }
    let rows = [
        (vec![specs[0].clone(), specs[0].clone()], "tensor \"a\" occurs twice"),
        (vec![Spec::new("__metadata__", SafeType::U8, [])], "rename it"),
        (vec![Spec::new("a", SafeType::F64, [usize::MAX])], "more bytes than can be counted"),
        (vec![Spec::new("a", SafeType::U8, [usize::MAX]), Spec::new("b", SafeType::U8, [1])], "tensor \"b\""),
        (vec![Spec::new("a", SafeType::U8, vec![1; MAX_RANK + 1])], "axes"),
        (vec![Spec::new("n".repeat(MAX_TENSOR_NAME + 1), SafeType::U8, [])], "shorten"),
        (vec![Spec::new("", SafeType::U8, []); MAX_TENSORS + 1], "split the file"),
    ];
    for (specs, expected) in rows {
        let error = file_bytes(&specs, &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn shards_are_split_and_read_back() {
    let spec = |name: &str, bytes: usize| Spec::new(name, SafeType::U8, [bytes]);
    let specs = [spec("a", 3), spec("b", 3), spec("c", 9), spec("d", 1), spec("none", 0), spec("e", 5)];
    assert_eq!(split(&specs, 6).unwrap(), [0..2, 2..3, 3..6]);
    assert_eq!(split(&specs, u64::MAX).unwrap(), vec![0..6]);
    assert_eq!(split(&specs, 0).unwrap().len(), 6);
    assert_eq!(split(&[], 6).unwrap(), vec![0..0]);

    let folder = tempfile::tempdir().unwrap();
    let ranges = split(&specs, 6).unwrap();
    let mut index = ShardIndex { total_size: Some(21), ..Default::default() };
    for (i, range) in ranges.iter().enumerate() {
        let name = shard_name("model", i + 1, ranges.len());
        let tensors: Vec<_> = range.clone().map(|t| (specs[t].clone(), vec![t as u8 + 1; specs[t].shape[0]])).collect();
        std::fs::write(folder.path().join(&name), write(&tensors, &metadata())).unwrap();
        index.weight_map.extend(tensors.into_iter().map(|(spec, _)| (spec.name, name.clone())));
    }
    assert_eq!(ShardIndex::parse(index.to_json().unwrap().as_bytes()).unwrap(), index);
    let paths: Vec<_> = index.files().into_iter().map(|name| folder.path().join(name)).collect();
    let shards = Shards::open(&paths).unwrap();
    assert_eq!(shards.metadata(), &metadata());
    for (t, spec) in specs.iter().enumerate() {
        let mut bytes = vec![0; shards.get(&spec.name).unwrap().bytes as usize];
        shards.read_at(&spec.name, 0, &mut bytes).unwrap();
        assert_eq!(bytes, vec![t as u8 + 1; spec.shape[0]]);
    }
    assert!(matches!(shards.read_at("x", 0, &mut []), Err(ShardsError::NoTensor { .. })));
    for (offset, length) in [(0, 4), (2, 2), (4, 0), (u64::MAX, 1)] {
        let error = shards.read_at("a", offset, &mut vec![0; length]).unwrap_err();
        assert!(matches!(error, ShardsError::Range { bytes: 3, .. }), "{error}");
    }
    let error = Shards::open([&paths[0], &paths[0]]).unwrap_err();
    assert!(matches!(error, ShardsError::Twice { .. }), "{error}");
    let error = Shards::open([folder.path().join("none")]).unwrap_err();
    assert!(matches!(error, ShardsError::Open { .. }), "{error}");
}

#[test]
fn indexes() {
    let text = "{\n  \"metadata\": {\n    \"total_size\": 8\n  },\n  \"weight_map\": {\n    \"a\": \"m-00001-of-00001.safetensors\"\n  }\n}\n";
    assert_eq!(ShardIndex::parse(text.as_bytes()).unwrap().to_json().unwrap(), text);
    for other in [
        r#"{"weight_map":{}}"#,
        r#"{"metadata":{"total_size":1e9,"x":1},"weight_map":{}}"#,
        r#"{"metadata":null,"weight_map":{}}"#,
    ] {
        assert_eq!(ShardIndex::parse(other.as_bytes()).unwrap(), ShardIndex::default());
    }
    for (name, text, expected) in [
        ("empty", "", "EOF"),
        ("no map", "{}", "missing field `weight_map`"),
        ("numbers", r#"{"weight_map":{"a":1}}"#, "invalid type"),
        ("deep", &format!(r#"{{"weight_map":{{"a":{}"#, "[".repeat(3000)), "invalid type: sequence"),
        ("twice", r#"{"weight_map":{"a":"f","a":"g"}}"#, "tensor \"a\" occurs twice"),
        ("above", r#"{"weight_map":{"a":"../f"}}"#, "tensor \"a\" is in \"../f\""),
        ("dots", r#"{"weight_map":{"a":".."}}"#, "plain name"),
        ("absolute", r#"{"weight_map":{"a":"/etc/passwd"}}"#, "plain name"),
        ("below", r#"{"weight_map":{"a":"x/f"}}"#, "plain name"),
        ("drive", r#"{"weight_map":{"a":"C:f"}}"#, "plain name"),
        ("backslash", r#"{"weight_map":{"a":"x\\f"}}"#, "plain name"),
        ("NUL", r#"{"weight_map":{"a":"f\u0000"}}"#, "plain name"),
    ] {
        let error = ShardIndex::parse(text.as_bytes()).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    let index = ShardIndex { weight_map: [("a".into(), "../f".into())].into(), total_size: None };
    assert!(matches!(index.to_json(), Err(IndexError::FileName { .. })));
}
