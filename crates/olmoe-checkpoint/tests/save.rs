//! Saving, damage, and what is refused.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use olmoe_checkpoint::disk::{Disk, LocalDisk};
use olmoe_checkpoint::safetensors::{SafeType, Spec};
use olmoe_checkpoint::save::{Checkpoints, MANIFEST_FILE, SPACE_RESERVE, SaveError, SavedCheckpoint, verify};
use serde_json::{Value, json};

fn specs() -> Vec<Spec> {
    vec![
        Spec::new("embed", SafeType::F32, [5, 3]),
        Spec::new("experts", SafeType::BF16, [4, 2, 3]),
        Spec::new("none", SafeType::F32, [0]),
        Spec::new("step", SafeType::I64, []),
    ]
}

fn numbers(seed: u64, index: usize) -> Vec<u8> {
    let bytes = specs()[index].bytes().unwrap() as usize;
    (0..bytes).map(|i| (seed as usize * 13 + index * 5 + i) as u8).collect()
}

fn save_seed<D: Disk>(checkpoints: &Checkpoints<D>, step: u64, seed: u64) -> Result<SavedCheckpoint, SaveError> {
    let mut writer = checkpoints.begin(step)?;
    // In pieces.
    let fill =
        |index: usize, out: &mut dyn Write| numbers(seed, index).chunks(7).try_for_each(|piece| out.write_all(piece));
    writer.tensors("model", &specs(), 48, fill)?;
    writer.tensors("optimizer", &specs(), u64::MAX, |index, out| out.write_all(&numbers(seed + 1, index)))?;
    writer.json("config.json", &json!({ "model_type": "olmoe" }))?;
    writer.bytes("tokenizer.json", b"{}")?;
    writer.state(&json!({ "position": 17, "random": [u64::MAX, 3], "loss": 0.1 + 0.2 }))?;
    writer.commit()
}

fn save(checkpoints: &Checkpoints, step: u64) -> SavedCheckpoint {
    save_seed(checkpoints, step, step).unwrap()
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_saved_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path().join("a/run")).unwrap();
    assert!(checkpoints.load_latest().unwrap().is_none());
    save(&checkpoints, 9);
    let saved = save(&checkpoints, 10);
    assert_eq!(names(checkpoints.run_dir()), ["latest", "step-10", "step-9"]);
    assert_eq!(
        std::fs::canonicalize(checkpoints.run_dir().join("latest")).unwrap(),
        saved.path.canonicalize().unwrap()
    );

    let found = checkpoints.load_latest().unwrap().unwrap();
    assert_eq!((found.step, &found.path, found.notices.len()), (10, &saved.path, 0));
    assert_eq!(found.manifest.state, json!({ "position": 17, "random": [u64::MAX, 3], "loss": 0.1 + 0.2 }));
    assert_eq!(found.manifest.files.iter().map(|file| file.bytes).sum::<u64>(), saved.bytes);
    assert_eq!(found.manifest.groups["model"].len(), 3);
    assert_eq!(found.manifest.groups["optimizer"], ["optimizer-00001-of-00001.safetensors"]);
    assert_eq!(found.bytes("tokenizer.json").unwrap(), b"{}");
    assert_eq!(found.json::<Value>("config.json").unwrap(), json!({ "model_type": "olmoe" }));
    for (group, seed) in [("model", 10), ("optimizer", 11)] {
        let shards = found.tensors(group).unwrap();
        assert_eq!(shards.entries().count(), 4);
        for (index, spec) in specs().iter().enumerate() {
            let entry = shards.get(&spec.name).unwrap();
            assert_eq!((entry.dtype, &entry.shape), (spec.dtype, &spec.shape));
            let mut bytes = vec![0; entry.bytes as usize];
            shards.read_at(&spec.name, 0, &mut bytes).unwrap();
            assert_eq!(bytes, numbers(seed, index), "{group} {}", spec.name);
        }
    }
    assert!(matches!(found.tensors("none"), Err(SaveError::NotThere { .. })));
    assert!(matches!(found.bytes("../latest"), Err(SaveError::NotThere { .. })));
    assert_eq!(checkpoints.load(9).unwrap().step, 9);
    assert!(matches!(checkpoints.load(8), Err(SaveError::NoManifest { .. })));
}

#[test]
fn the_same_state_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|run| {
        let checkpoints = Checkpoints::open(folder.path().join(run)).unwrap();
        files(&save(&checkpoints, 3).path)
    });
    assert_eq!(a.len(), 7);
    assert_eq!(a, b);
}

/// The files are those that other programs of the format read.
#[test]
fn shards_are_of_the_format() {
    let folder = tempfile::tempdir().unwrap();
    let saved = save(&Checkpoints::open(folder.path()).unwrap(), 1);
    let bytes = std::fs::read(saved.path.join("optimizer-00001-of-00001.safetensors")).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.tensor("experts").unwrap().data(), numbers(2, 1));
}

#[test]
fn a_flipped_bit_in_any_file_is_found_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    save(&checkpoints, 1);
    let saved = save(&checkpoints, 2);
    for (name, bytes) in files(&saved.path) {
        let path = saved.path.join(&name);
        let stride = if name == MANIFEST_FILE { 5 } else { 97 };
        for at in (0..bytes.len()).filter(|at| at % stride == 0 || at + 80 >= bytes.len() && stride == 5) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(&path, &damaged).unwrap();
            let found = checkpoints.load_latest().unwrap().unwrap();
            assert_eq!((found.step, found.notices.len()), (1, 1), "{name} at {at}");
            let text = found.notices[0].to_string();
            assert!(text.contains("step-2") && text.contains(&name), "{text}");
        }
        for wrong in [&bytes[..bytes.len() - 1], &[&bytes[..], b" "].concat(), b""] {
            std::fs::write(&path, wrong).unwrap();
            let notice = checkpoints.load_latest().unwrap().unwrap().notices.remove(0).to_string();
            assert!(notice.contains(&name), "{notice}");
        }
        std::fs::remove_file(&path).unwrap();
        let notice = checkpoints.load_latest().unwrap().unwrap().notices.remove(0).to_string();
        assert!(notice.contains(&name), "{notice}");
        std::fs::create_dir(&path).unwrap();
        assert_eq!(checkpoints.load_latest().unwrap().unwrap().step, 1);
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(checkpoints.load_latest().unwrap().unwrap().step, 2);
    }
}

#[test]
fn sizes_and_hashes_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    let path = save(&checkpoints, 1).path.join("tokenizer.json");
    std::fs::write(&path, "{ }").unwrap();
    let error = checkpoints.load(1).unwrap_err();
    assert!(matches!(error, SaveError::FileSize { found: 3, expected: 2, .. }), "{error}");
    std::fs::write(&path, "[]").unwrap();
    let error = checkpoints.load(1).unwrap_err();
    let (found, expected) = (blake3::hash(b"[]").to_string(), blake3::hash(b"{}").to_string());
    assert!(error.to_string().contains(&found) && error.to_string().contains(&expected), "{error}");
    // Nothing is whole: training must not begin anew.
    let error = checkpoints.load_latest().unwrap_err();
    assert!(matches!(error, SaveError::NoneVerifies { .. }) && error.to_string().contains("tokenizer.json"), "{error}");
}

/// A manifest with a right seal, and something wrong inside.
#[test]
fn manifests_are_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path().join("run")).unwrap();
    let path = save(&checkpoints, 1).path;
    std::fs::write(folder.path().join("secret"), "{}").unwrap();
    let text = std::fs::read_to_string(path.join(MANIFEST_FILE)).unwrap();
    let body = &text[..text.rfind(",\n  \"blake3\"").unwrap()];
    let swap = |from: &str, to: &str| {
        assert!(body.contains(from));
        body.replace(from, to)
    };
    let nested = format!("\"state\": {}{},", "[".repeat(400), "]".repeat(400));
    let rows = [
        ("above", swap("\"tokenizer.json\"", "\"../../secret\""), "may not be the name"),
        ("absolute", swap("\"tokenizer.json\"", "\"/etc/hostname\""), "may not be the name"),
        ("itself", swap("\"tokenizer.json\"", "\"manifest.json\""), "may not be the name"),
        ("twice", swap("\"tokenizer.json\"", "\"config.json\""), "occurs twice"),
        ("version", swap("\"version\": 1", "\"version\": 2"), "version 2, but this program reads version 1"),
        ("format", swap("\"olmoe-checkpoint\"", "\"other\""), "expected \"olmoe-checkpoint\""),
        ("step", swap("\"step\": 1", "\"step\": 2"), "the manifest has step 2, the name of the folder 1"),
        ("negative step", swap("\"step\": 1", "\"step\": -1"), "invalid value"),
        ("unknown key", swap("\"step\": 1", "\"step\": 1, \"x\": 1"), "unknown field `x`"),
        ("group", swap("      \"optimizer-", "      \"../optimizer-"), "not in the list of files"),
        ("deep", swap("\"state\": {", &format!("{nested} \"more\": {{")), "recursion limit"),
        ("not an object", "[1".into(), "not a manifest"),
        ("size", swap("\"bytes\": 2,", "\"bytes\": 18446744073709551615,"), "but 18446744073709551615 in the manifest"),
    ];
    for (name, body, expected) in rows {
        let sealed = format!("{body},\n  \"blake3\": \"{}\"\n}}\n", blake3::hash(body.as_bytes()));
        std::fs::write(path.join(MANIFEST_FILE), sealed).unwrap();
        let error = checkpoints.load(1).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    std::fs::File::create(path.join(MANIFEST_FILE)).unwrap().set_len((64 << 20) + 1).unwrap();
    assert!(matches!(verify(&path), Err(SaveError::ManifestTooLong { .. })));
}

#[test]
fn a_step_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    let first = save(&checkpoints, 5);
    let before = files(&first.path);
    assert_eq!(save(&checkpoints, 5), first);
    let error = save_seed(&checkpoints, 5, 6).unwrap_err();
    assert!(matches!(&error, SaveError::Exists { path } if *path == first.path), "{error}");
    assert_eq!(files(&first.path), before);
    for aside in ["step-5.damaged", "step-5.damaged-2"] {
        std::fs::write(first.path.join("config.json"), "x").unwrap();
        assert_eq!(save(&checkpoints, 5).set_aside, Some(folder.path().join(aside)));
    }
    assert_eq!(files(&first.path), before);
    assert_eq!(std::fs::read(folder.path().join("step-5.damaged/config.json")).unwrap(), b"x");
    assert_eq!(names(folder.path()), ["latest", "step-5", "step-5.damaged", "step-5.damaged-2"]);
}

#[test]
fn pruning_leaves_something_whole() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    checkpoints.prune(&[1]).unwrap();
    [1, 2, 3].into_iter().for_each(|step| drop(save(&checkpoints, step)));
    std::fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    std::fs::remove_file(folder.path().join("step-1").join(MANIFEST_FILE)).unwrap();
    let error = checkpoints.prune(&[2, 3]).unwrap_err();
    assert!(matches!(&error, SaveError::LastOne { path } if path.ends_with("step-3")), "{error}");
    assert_eq!(checkpoints.steps().unwrap(), [1, 2, 3]);
    // Back to an older one: the pointer goes with it.
    checkpoints.prune(&[1, 3, 77]).unwrap();
    assert_eq!(names(folder.path()), ["latest", "notes.txt", "step-2"]);
    assert!(folder.path().join("latest").join(MANIFEST_FILE).exists());
    assert_eq!(checkpoints.load_latest().unwrap().unwrap().step, 2);
    // What somebody put beside the files of a save keeps it.
    save(&checkpoints, 4);
    std::fs::write(folder.path().join("step-2/evaluation.json"), "mine").unwrap();
    checkpoints.prune(&[2]).unwrap();
    assert_eq!(std::fs::read(folder.path().join("step-2/evaluation.json")).unwrap(), b"mine");
    assert_eq!(checkpoints.steps().unwrap(), [2, 4]);
}

#[test]
fn what_is_refused_while_writing() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    let tensor = [Spec::new("a", SafeType::U8, [4])];
    for (count, found) in [(3, 3), (5, 5), (0, 0)] {
        let mut writer = checkpoints.begin(1).unwrap();
        let error = writer.tensors("model", &tensor, 100, |_, out| out.write_all(&vec![0; count])).unwrap_err();
        let SaveError::TensorBytes { tensor, found: bytes, expected: 4, path } = &error else { panic!("{error}") };
        assert_eq!((tensor.as_str(), *bytes), ("a", found));
        assert!(path.ends_with("model-00001-of-00001.safetensors"));
        // What lacks a part is not committed.
        assert!(matches!(writer.commit(), Err(SaveError::Incomplete { .. })));
        assert_eq!(names(folder.path()), [""; 0]);
    }
    let mut writer = checkpoints.begin(1).unwrap();
    let error = writer.tensors("model", &tensor, 100, |_, _| Err(io::Error::other("no numbers"))).unwrap_err();
    assert!(error.to_string().contains("no numbers"), "{error}");
    drop(writer);

    let mut writer = checkpoints.begin(1).unwrap();
    writer.bytes("a", b"").unwrap();
    for (name, expected) in
        [("a", "twice"), ("", "plain"), ("..", "plain"), ("x/y", "plain"), (MANIFEST_FILE, "may not be")]
    {
        let error = writer.bytes(name, b"").unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    let fill = |_: usize, out: &mut dyn Write| out.write_all(&[0; 4]);
    writer.tensors("model", &tensor, 100, fill).unwrap();
    assert!(matches!(writer.tensors("model", &tensor, 100, fill), Err(SaveError::Twice { .. })));
    assert!(matches!(writer.tensors("../x", &tensor, 100, fill), Err(SaveError::FileName { .. })));
    // In two shards.
    let twice = [tensor[0].clone(), tensor[0].clone()];
    let error = writer.tensors("twice", &twice, 4, fill).unwrap_err();
    assert!(error.to_string().contains("tensor \"a\" occurs twice"), "{error}");
    assert!(matches!(writer.json("b", &BTreeMap::from([((1, 2), 3)])), Err(SaveError::Json { .. })));
    drop(writer);
    assert_eq!(names(folder.path()), [""; 0]);
}

/// A disk with little left.
struct FullDisk(u64);

impl Disk for FullDisk {
    type File = std::fs::File;

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        LocalDisk.create_dir(path)
    }
    fn create_file(&self, path: &Path) -> io::Result<Self::File> {
        LocalDisk.create_file(path)
    }
    fn write(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()> {
        LocalDisk.write(file, bytes)
    }
    fn open_append(&self, path: &Path) -> io::Result<Self::File> {
        LocalDisk.open_append(path)
    }
    fn truncate(&self, file: &mut Self::File, length: u64) -> io::Result<()> {
        LocalDisk.truncate(file, length)
    }
    fn sync_file(&self, file: &Self::File) -> io::Result<()> {
        LocalDisk.sync_file(file)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        LocalDisk.sync_dir(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        LocalDisk.rename(from, to)
    }
    fn point(&self, path: &Path, target: &str) -> io::Result<()> {
        LocalDisk.point(path, target)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        LocalDisk.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        LocalDisk.remove_dir(path)
    }
    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(self.0)
    }
}

#[test]
fn space_is_asked_for_first() {
    let folder = tempfile::tempdir().unwrap();
    let specs = [Spec::new("a", SafeType::U8, [1 << 40])];
    let checkpoints = Checkpoints::open_on(folder.path(), FullDisk(1 << 40)).unwrap();
    let mut writer = checkpoints.begin(1).unwrap();
    let error = writer.tensors("model", &specs, u64::MAX, |_, _| panic!("written")).unwrap_err();
    let SaveError::NoSpace { needed, free, .. } = &error else { panic!("{error}") };
    assert!(*needed > (1 << 40) + SPACE_RESERVE && *free == 1 << 40);
    assert!(error.to_string().contains(&format!("{needed} bytes needed, {free} free")), "{error}");
    drop(writer);
    assert!(matches!(checkpoints.begin(1).unwrap().require_space(u64::MAX), Err(SaveError::NoSpace { .. })));
    assert!(LocalDisk.free_bytes(folder.path()).unwrap() > 0);
}
