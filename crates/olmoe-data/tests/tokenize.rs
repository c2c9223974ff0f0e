//! Token files: the same bytes as dolma's, for any number of threads, and nothing half-written.

mod shared;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use olmoe_data::Tokenizer;
use olmoe_data::documents::{Documents, Fields, IdType};
use olmoe_data::token_file::TokenType;
use olmoe_data::tokenize::{TokenizeError, TokenizePlan, TokenizeSettings, TokenizeSummary, find};
use serde_json::Value;
use sha2::{Digest, Sha256};
use shared::{REAL, data, real};

const GOLDEN: &str = "tests/golden";

fn golden(name: &str) -> Vec<Value> {
    let text = std::fs::read(Path::new(GOLDEN).join(name)).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(Path::new(GOLDEN).join("tokenizer.json")).unwrap()
}

/// dolma's names of the settings.
fn settings(json: &Value) -> TokenizeSettings {
    let number = |key: &str| json.get(key).and_then(Value::as_u64);
    let flag = |key: &str| json.get(key).is_some_and(|value| value == true);
    let default = TokenizeSettings::default();
    let text = |key: &str, default: &str| json.get(key).and_then(Value::as_str).unwrap_or(default).to_owned();
    TokenizeSettings {
        bos: number("bos_token_id").map(|id| id as u32),
        eos: number("eos_token_id").map(|id| id as u32),
        segment: flag("segment_before_tokenization"),
        processes: number("num_writers").unwrap_or(1) as usize,
        files_per_process: number("num_readers").map(|n| n as usize),
        batch_size: number("local_shuffle").map_or(default.batch_size, |n| n as usize),
        ring_size: number("ring_size").map_or(default.ring_size, |n| n as usize),
        sample_ring_prop: flag("sample_ring_prop"),
        max_size: number("max_size").unwrap_or(1 << 26),
        seed: number("seed").unwrap_or(default.seed),
        fields: Fields {
            text: text("text_field_name", "text"),
            id: json.get("id_field_name").is_none_or(|id| !id.is_null()).then(|| text("id_field_name", "id")),
            id_type: if json.get("id_field_type").is_some() { IdType::Integer } else { IdType::Text },
        },
        ..default
    }
}

/// The files of a folder as name and content, the lists unpacked.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut bytes = std::fs::read(&path).unwrap();
        if name.ends_with(".gz") {
            let packed = std::mem::take(&mut bytes);
            flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
        }
        (name, bytes)
    };
    std::fs::read_dir(folder).unwrap().map(read).collect()
}

fn digest(bytes: &[u8]) -> Value {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    serde_json::json!([bytes.len(), hash])
}

fn run(
    tokenizer: &Tokenizer,
    settings: TokenizeSettings,
    inputs: &[PathBuf],
    to: &Path,
) -> Result<TokenizeSummary, TokenizeError> {
    TokenizePlan::new(tokenizer, settings, inputs)?.run(to, false, &|_| {})
}

fn inputs(case: &Value) -> Vec<PathBuf> {
    case["inputs"].as_array().unwrap().iter().map(|path| path.as_str().unwrap().into()).collect()
}

#[test]
fn the_files_that_dolma_writes() {
    let plain = tokenizer();
    let mut as_text = tokenizer();
    as_text.encode_special_as_text();
    let cases = golden("tokens.json");
    assert_eq!(cases.len(), 15);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let tokenizer = if case["settings"].get("encode_special_tokens").is_some() { &as_text } else { &plain };
        let mut seen = Vec::new();
        // A single group is encoded by all threads of the process, several groups by `processes` threads.
        for threads in [1, 3] {
            olmoe_tensor::threads::set_num_threads(threads);
            let folder = tempfile::tempdir().unwrap();
            let to = folder.path().join("out");
            let summary = run(tokenizer, settings(&case["settings"]), &inputs(&case), &to).unwrap();
            let files = files(&to);
            let digests: serde_json::Map<_, _> =
                files.iter().map(|(name, bytes)| (name.clone(), digest(bytes))).collect();
            assert_eq!(Value::Object(digests), case["files"], "{name}");
            let tokens: usize = files.iter().filter(|(name, _)| name.ends_with(".npy")).map(|(_, b)| b.len() / 2).sum();
            let rows: usize = files.values().map(|bytes| bytes.windows(2).filter(|end| end == b"\r\n").count()).sum();
            assert_eq!((summary.tokens, summary.documents), (tokens as u64, rows as u64), "{name}");
            assert_eq!(summary.parts.len() * 2, files.len(), "{name}");
            assert!(summary.parts.iter().all(|part| part.is_file()), "{name}");
            seen.push((summary.documents, summary.tokens, summary.named));
        }
        assert_eq!(seen[0], seen[1], "{name}");
    }
}

#[test]
fn the_real_corpora() {
    let Some(folder) = data("pretrain") else { return };
    let Some((tokenizer, _)) = real(REAL[0].1) else { return };
    let slow = std::env::var("OLMOE_SLOW_TESTS").is_ok_and(|value| value == "1");
    for case in golden("corpora.json") {
        if case["name"] == "all" && !slow {
            continue;
        }
        let root = folder.parent().unwrap();
        let paths: Vec<PathBuf> = inputs(&case).iter().map(|path| root.join(path)).collect();
        let out = tempfile::tempdir().unwrap();
        let read = AtomicU64::new(0);
        let plan = TokenizePlan::new(tokenizer, settings(&case["settings"]), &paths).unwrap();
        let count = |bytes| _ = read.fetch_add(bytes, Ordering::Relaxed);
        plan.run(&out.path().join("out"), false, &count).unwrap();
        let bytes: u64 = paths.iter().map(|path| path.metadata().unwrap().len()).sum();
        assert_eq!(read.load(Ordering::Relaxed), bytes);
        // The lists name the files by the paths that were given.
        let prefix = format!("{}/", root.display());
        for (name, bytes) in files(&out.path().join("out")) {
            let bytes = if name.ends_with(".gz") {
                String::from_utf8(bytes).unwrap().replace(&prefix, "").into_bytes()
            } else {
                bytes
            };
            assert_eq!(digest(&bytes), case["files"][&name], "{}: {name}", case["name"]);
        }
    }
}

#[test]
fn malformed_lines_are_counted_and_named() {
    let out = tempfile::tempdir().unwrap();
    let settings = TokenizeSettings { eos: Some(263), ..TokenizeSettings::default() };
    let path = PathBuf::from(GOLDEN).join("corpus/a.jsonl");
    let summary = run(&tokenizer(), settings, std::slice::from_ref(&path), &out.path().join("out")).unwrap();
    assert_eq!((summary.documents, summary.empty, summary.malformed), (44, 2, 9));
    let named: Vec<(u64, &str)> = summary.named.iter().map(|one| (one.line, one.reason.as_str())).collect();
    for ((line, reason), (expected, fragment)) in named.iter().zip([
        (4, "EOF"),
        (6, "expected an object"),
        (8, "the field `text` is missing"),
        (10, "the field `id` is missing"),
        (12, "expected a string"),
        (14, "expected a string"),
        (20, "trailing characters"),
        (22, "control character"),
        (24, "hex escape"),
    ]) {
        assert!(*line == expected && reason.contains(fragment), "line {line}, not {expected}: {reason}");
    }
    assert!(summary.named[0].to_string().starts_with("tests/golden/corpus/a.jsonl line 4: "));
}

#[test]
fn bad_settings_and_inputs_are_errors() {
    let tokenizer = tokenizer();
    let folder = tempfile::tempdir().unwrap();
    let good = PathBuf::from(GOLDEN).join("corpus/c.json.gz");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let gz = std::fs::read(&good).unwrap();
    let zst = std::fs::read(Path::new(GOLDEN).join("corpus/d.jsonl.zst")).unwrap();
    let mut flipped = zst.clone();
    *flipped.last_mut().unwrap() ^= 1;
    type Edit = fn(&mut TokenizeSettings);
    let same: Edit = |_| {};
    let cases: Vec<(&str, Edit, Vec<PathBuf>, &str)> = vec![
        ("no inputs", same, vec![], "no documents to read"),
        ("no boundary", |s| s.eos = None, vec![good.clone()], "neither `eos_token_id` nor `bos_token_id`"),
        ("eos of no token", |s| s.eos = Some(264), vec![good.clone()], "`eos_token_id` is 264, but the ids of the"),
        ("bos of no token", |s| s.bos = Some(9999), vec![good.clone()], "`bos_token_id` is 9999"),
        ("narrow", |s| s.dtype = TokenType::U8, vec![good.clone()], "264 ids, and uint8 holds them up to 255"),
        ("no processes", |s| s.processes = 0, vec![good.clone()], "`processes` is 0"),
        ("no files", |s| s.files_per_process = Some(0), vec![good.clone()], "`files_per_process` is 0"),
        ("no ring", |s| s.ring_size = 0, vec![good.clone()], "`ring_size` is 0"),
        ("no batch", |s| s.batch_size = 0, vec![good.clone()], "`batch_size` is 0"),
        ("no size", |s| s.max_size = 0, vec![good.clone()], "`max_size` is 0"),
        ("long document", |s| s.max_size = 10, vec![good.clone()], "tokens, and a token file holds fewer than 10"),
        ("missing", same, vec!["no/such.jsonl".into()], "cannot read no/such.jsonl beyond line 0"),
        ("nothing", same, vec![file("nothing.jsonl", b"\n\n")], "hold no documents; check"),
        ("no document", same, vec![file("none.jsonl", b"{}\n[]\n")], "2 malformed lines, one is"),
        ("other archive", same, vec![file("x.jsonl.bz2", b"BZh9")], "unpack them or use gzip or zstd"),
        ("no gzip", same, vec![file("text.jsonl.gz", b"{}")], "cannot read"),
        ("cut gzip", same, vec![file("cut.jsonl.gz", &gz[..gz.len() / 2])], "cannot read"),
        ("no zstd", same, vec![file("text.jsonl.zst", b"{\"text\": \"\"}")], "cannot read"),
        ("cut zstd", same, vec![file("cut.jsonl.zst", &zst[..zst.len() / 2])], "cannot read"),
        ("wrong sum", same, vec![file("sum.jsonl.zst", &flipped)], "checksum"),
        ("good and cut", same, vec![good.clone(), file("cut2.jsonl.gz", &gz[..60])], "cut2.jsonl.gz"),
    ];
    for (name, edit, inputs, expected) in cases {
        let mut settings = TokenizeSettings { eos: Some(263), processes: 2, ..TokenizeSettings::default() };
        edit(&mut settings);
        let to = folder.path().join("out");
        let error = run(&tokenizer, settings, &inputs, &to).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
        // Nothing is left behind.
        assert!(!to.exists() && !folder.path().join("out.tmp").exists(), "{name}");
    }
}

#[test]
fn a_destination_is_whole_or_not_there() {
    let tokenizer = tokenizer();
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("deep/out");
    let temporary = folder.path().join("deep/out.tmp");
    let inputs = [PathBuf::from(GOLDEN).join("corpus/c.json.gz")];
    let settings = TokenizeSettings { eos: Some(263), ..TokenizeSettings::default() };
    let plan = TokenizePlan::new(&tokenizer, settings.clone(), &inputs).unwrap();
    // The leftover of a killed run is replaced, and so is an empty destination.
    std::fs::create_dir_all(&temporary).unwrap();
    std::fs::create_dir_all(&to).unwrap();
    std::fs::write(temporary.join("part-0-00000.npy"), "half").unwrap();
    let seen_while_running = AtomicU64::new(0);
    let look = |_| _ = seen_while_running.fetch_add(std::fs::read_dir(&to).unwrap().count() as u64, Ordering::Relaxed);
    plan.run(&to, false, &look).unwrap();
    assert_eq!(seen_while_running.into_inner(), 0);
    assert!(!temporary.exists());
    let first = files(&to);
    // An existing destination is not touched without `force`.
    let refused = plan.run(&to, false, &|_| {}).unwrap_err().to_string();
    assert!(refused.contains("exists and is not empty"), "{refused}");
    let bad = TokenizeSettings { max_size: 10, ..settings.clone() };
    assert!(TokenizePlan::new(&tokenizer, bad, &inputs).unwrap().run(&to, true, &|_| {}).is_err());
    assert_eq!(files(&to), first);
    let small = TokenizeSettings { max_size: 200, ..settings };
    TokenizePlan::new(&tokenizer, small, &inputs).unwrap().run(&to, true, &|_| {}).unwrap();
    assert!(files(&to).len() > 2);
    plan.run(&to, true, &|_| {}).unwrap();
    assert_eq!(files(&to), first);
    assert_eq!(std::fs::read_dir(folder.path().join("deep")).unwrap().count(), 1);
    // Files that are not token files are never removed.
    std::fs::write(to.join("notes.txt"), "mine").unwrap();
    let refused = plan.run(&to, true, &|_| {}).unwrap_err().to_string();
    assert!(refused.contains("holds notes.txt, which is not a token file"), "{refused}");
    std::fs::create_dir(&temporary).unwrap();
    std::fs::write(temporary.join("notes.txt"), "mine").unwrap();
    std::fs::remove_file(to.join("notes.txt")).unwrap();
    let refused = plan.run(&to, true, &|_| {}).unwrap_err().to_string();
    assert!(refused.contains("out.tmp holds notes.txt"), "{refused}");
    let remote = plan.run(Path::new("s3://bucket/out"), false, &|_| {}).unwrap_err().to_string();
    assert!(remote.contains("not a local path"), "{remote}");
}

#[test]
fn patterns_of_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::create_dir_all(root.join("b/c")).unwrap();
    for name in ["2.jsonl", "10.jsonl", "1.txt", ".hidden.jsonl", "b/3.jsonl", "b/c/4.jsonl"] {
        std::fs::write(root.join(name), "12345").unwrap();
    }
    let found = |pattern: &str| {
        let inputs = find(&[format!("{}/{pattern}", root.display())]).unwrap();
        assert_eq!(inputs.bytes, 5 * inputs.files.len() as u64);
        assert_eq!(inputs.unmatched.len(), usize::from(inputs.files.is_empty()));
        let name = |path: &PathBuf| path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        inputs.files.iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(found("*.jsonl"), ["10.jsonl", "2.jsonl"]);
    assert_eq!(found("**/*.jsonl"), ["10.jsonl", "2.jsonl", "b/3.jsonl", "b/c/4.jsonl"]);
    assert_eq!(found("[12]*"), ["1.txt", "10.jsonl", "2.jsonl"]);
    assert_eq!(found("./b"), ["b/3.jsonl"]);
    assert_eq!(found("2.jsonl"), ["2.jsonl"]);
    assert_eq!(found("none*"), [""; 0]);
    for (pattern, expected) in
        [("s3://bucket/*.gz", "not a local path"), ("a***", "pattern a*** of documents is invalid")]
    {
        let error = find(&[pattern.to_owned()]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn archives_of_several_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let one = std::fs::read(Path::new(GOLDEN).join("corpus/d.jsonl.zst")).unwrap();
    // A frame to be skipped, then the same frame twice with a skipped one between, of which the last line joins the first.
    let skipped = [&0x184D_2A53u32.to_le_bytes()[..], &3u32.to_le_bytes(), b"abc"].concat();
    let mut file = std::fs::File::create(folder.path().join("x.zst")).unwrap();
    for piece in [&skipped, &one, &skipped, &one] {
        file.write_all(piece).unwrap();
    }
    let settings = TokenizeSettings { eos: Some(263), ..TokenizeSettings::default() };
    let summary = run(&tokenizer(), settings, &[folder.path().join("x.zst")], &folder.path().join("out")).unwrap();
    assert_eq!((summary.documents, summary.malformed), (138, 1));
    assert!(summary.named[0].line == 70 && summary.named[0].reason.contains("trailing characters"));
}

/// The texts of a file's documents.
fn texts(path: &Path) -> Result<Vec<String>, std::io::Error> {
    let fields = Fields { id: None, ..Fields::default() };
    let mut documents = Documents::open(path, &fields, &|_| {})?;
    let mut texts = Vec::new();
    while let Some(document) = documents.next(&mut |malformed| panic!("{malformed}"))? {
        texts.push(document.text);
    }
    Ok(texts)
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn text_as_it_lies_on_disks() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = ("{\"text\":\"one\"}\n", "{\"text\":\"two\"}\n");
    let both = [one, two].concat();
    let windows = both.replace('\n', "\r\n");
    let zeros = vec![0u8; 70_000];
    for (name, bytes) in [
        ("mark.jsonl", ["\u{feff}", &both].concat().into_bytes()),
        ("mark-windows.jsonl", ["\u{feff}", &windows].concat().into_bytes()),
        ("mark-and-empty-line.jsonl", ["\u{feff}\r\n", &windows].concat().into_bytes()),
        ("mark.jsonl.gz", packed(["\u{feff}", &both].concat().as_bytes())),
        ("upper.jsonl.GZ", packed(both.as_bytes())),
        ("members.jsonl.gz", [packed(one.as_bytes()), packed(b""), packed(two.as_bytes())].concat()),
        ("filled-up.jsonl.gz", [packed(both.as_bytes()), zeros.clone()].concat()),
        ("filled-between.jsonl.gz", [packed(one.as_bytes()), zeros.clone(), packed(two.as_bytes()), zeros].concat()),
        // A pipe has no file name, so its first bytes tell the format.
        ("nameless", packed(both.as_bytes())),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(texts(&path).unwrap(), ["one", "two"], "{name}");
    }
    for name in ["empty.jsonl", "empty.jsonl.gz"] {
        let path = folder.path().join(name);
        std::fs::write(&path, b"").unwrap();
        assert_eq!(texts(&path).unwrap(), [""; 0], "{name}");
    }
    let utf16: Vec<u8> = format!("\u{feff}{both}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let cut = packed(both.as_bytes());
    for (name, bytes, expected) in [
        ("utf16.jsonl", utf16, "the text is UTF-16; convert it to UTF-8 first"),
        ("cut.jsonl.gz", cut[..cut.len() - 5].to_vec(), ""),
        ("garbage.jsonl.gz", [&cut[..], b"garbage that is no gzip"].concat(), "gzip header"),
        ("plain.jsonl.gz", both.clone().into_bytes(), "gzip header"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = texts(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}
