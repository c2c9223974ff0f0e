//! A fault at every operation of a save: afterwards the new checkpoint or the one before it loads, whole, and the next
//! save works.
#![cfg(unix)]

mod disk;

use std::io::Write;
use std::path::Path;

use disk::{Fault, FaultyDisk, Luck, Tree};
use olmoe_checkpoint::safetensors::{SafeType, Spec};
use olmoe_checkpoint::save::{Checkpoints, Found, verify};
use serde_json::{Value, json};

/// What a step's tensor holds.
fn numbers(step: u64, tensor: usize) -> Vec<u8> {
    (0..24).map(|i| (step as usize * 31 + tensor * 7 + i) as u8).collect()
}

fn specs() -> Vec<Spec> {
    ["a", "b", "c"].map(|name| Spec::new(name, SafeType::F32, [2, 3])).into()
}

/// Saves a step and prunes; says by `committed` how far it came.
fn save(disk: &FaultyDisk, run: &Path, step: u64, pruned: &[u64], committed: &mut bool) -> Result<(), String> {
    let text = |error: olmoe_checkpoint::save::SaveError| error.to_string();
    let checkpoints = Checkpoints::open_on(run, disk).map_err(text)?;
    let mut writer = checkpoints.begin(step).map_err(text)?;
    let fill = |index: usize, out: &mut dyn Write| out.write_all(&numbers(step, index));
    writer.tensors("model", &specs(), 48, fill).map_err(text)?;
    writer.json("trainer.json", &json!({ "step": step })).map_err(text)?;
    writer.state(&json!({ "position": step * 1000 })).map_err(text)?;
    let saved = writer.commit().map_err(text)?;
    assert_eq!(saved.path, run.join(format!("step-{step}")));
    *committed = true;
    checkpoints.prune(pruned).map_err(text)
}

fn saved(disk: &FaultyDisk, run: &Path, step: u64) {
    save(disk, run, step, &[], &mut false).unwrap();
}

/// The step that loads, after a look at all that it holds.
fn load(run: &Path) -> Option<u64> {
    let root = run.parent().unwrap();
    if !run.exists() {
        return None;
    }
    let disk = FaultyDisk::new(root, Fault::None);
    let found: Found = Checkpoints::open_on(run, &disk).unwrap().load_latest().unwrap()?;
    let step = found.step;
    let shards = found.tensors("model").unwrap();
    assert_eq!(shards.entries().count(), 3);
    for (i, spec) in specs().iter().enumerate() {
        let mut bytes = [0; 24];
        shards.read_at(&spec.name, 0, &mut bytes).unwrap();
        assert_eq!(bytes, *numbers(step, i));
    }
    assert_eq!(found.json::<Value>("trainer.json").unwrap(), json!({ "step": step }));
    assert_eq!(found.manifest.state, json!({ "position": step * 1000 }));
    Some(step)
}

struct Scenario<'a> {
    /// What is there before.
    before: &'a dyn Fn(&FaultyDisk, &Path),
    /// What is saved under fire.
    step: u64,
    pruned: &'a [u64],
    /// What may load afterwards, the new step aside.
    previous: Option<u64>,
    /// Whether everything named as a checkpoint is whole at any time, and `latest` points at one.
    whole: bool,
}

impl Scenario<'_> {
    /// Runs it with the fault at each of its operations; how many those are.
    fn run(&self) -> usize {
        // Thousands of small files: in memory where the system has such a folder.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.into() } else { std::env::temp_dir() };
        let folder = tempfile::tempdir_in(place).unwrap();
        let (root, run) = (folder.path().join("root"), folder.path().join("root/run"));
        std::fs::create_dir(&root).unwrap();
        (self.before)(&FaultyDisk::new(&root, Fault::None), &run);
        let before = Tree::read(&root);
        for at in 1.. {
            let seeds = [1, 2, 3].map(|seed| Luck::Random(seed + 10 * at as u64));
            // The error comes back, and the process goes on: as it is; and with another go at the same save.
            for fault in [Fault::Error(at), Fault::Errors(at)] {
                before.write(&root);
                let disk = FaultyDisk::new(&root, fault);
                let mut committed = false;
                let result = save(&disk, &run, self.step, self.pruned, &mut committed);
                if !disk.fired() {
                    result.unwrap();
                    return at - 1;
                }
                let left = Tree::read(&root);
                self.check(&run, committed, &format!("{fault:?}: {result:?}"));
                left.write(&root);
                let again = FaultyDisk::new(&root, Fault::None);
                save(&again, &run, self.step, self.pruned, &mut false).unwrap();
                assert_eq!(load(&run), Some(self.step), "{fault:?}, again");
            }
            for luck in [Luck::SystemLives, Luck::Worst].into_iter().chain(seeds) {
                before.write(&root);
                let disk = FaultyDisk::new(&root, Fault::Death(at));
                let mut committed = false;
                save(&disk, &run, self.step, self.pruned, &mut committed).unwrap_err();
                disk.settle(luck);
                self.check(&run, committed, &format!("death at {at}, {luck:?}"));
            }
        }
        unreachable!()
    }

    fn check(&self, run: &Path, committed: bool, context: &str) {
        let found = load(run);
        let new = found == Some(self.step);
        assert!(new || found == self.previous && !committed, "{context}: found {found:?}, committed: {committed}");
        if self.whole && run.exists() {
            let names = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            for name in names.filter(|name| !name.ends_with(".tmp")) {
                verify(&run.join(&name)).unwrap_or_else(|error| panic!("{context}: {name}: {error}"));
            }
        }
        let next = self.step + 1;
        saved(&FaultyDisk::new(run.parent().unwrap(), Fault::None), run, next);
        assert_eq!(load(run), Some(next), "{context}");
        let names: Vec<_> = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!names.iter().any(|name| name.to_str().unwrap().ends_with(".tmp")), "{context}: {names:?}");
    }
}

/// Flips a bit of a file of a step.
fn damage(run: &Path, step: u64, name: &str) {
    let path = run.join(format!("step-{step}")).join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn first_save() {
    let scenario = Scenario { before: &|_, _| {}, step: 1, pruned: &[], previous: None, whole: true };
    assert!(scenario.run() >= 20);
}

#[test]
fn later_save() {
    let before = |disk: &FaultyDisk, run: &Path| saved(disk, run, 1);
    let scenario = Scenario { before: &before, step: 2, pruned: &[], previous: Some(1), whole: true };
    assert!(scenario.run() >= 20);
}

#[test]
fn save_after_a_crash() {
    let before = |disk: &FaultyDisk, run: &Path| {
        saved(disk, run, 1);
        std::fs::create_dir(run.join("step-2.tmp")).unwrap();
        std::fs::write(run.join("step-2.tmp/manifest.json"), "{").unwrap();
        std::os::unix::fs::symlink("step-1", run.join("latest.tmp")).unwrap();
    };
    let scenario = Scenario { before: &before, step: 2, pruned: &[], previous: Some(1), whole: true };
    assert!(scenario.run() >= 23);
}

#[test]
fn save_with_pruning() {
    let before = |disk: &FaultyDisk, run: &Path| [1, 2].into_iter().for_each(|step| saved(disk, run, step));
    let scenario = Scenario { before: &before, step: 3, pruned: &[1, 2], previous: Some(2), whole: true };
    assert!(scenario.run() >= 30);
}

#[test]
fn save_over_the_same() {
    let before = |disk: &FaultyDisk, run: &Path| [1, 2].into_iter().for_each(|step| saved(disk, run, step));
    let scenario = Scenario { before: &before, step: 2, pruned: &[], previous: Some(2), whole: true };
    assert!(scenario.run() >= 20);
}

#[test]
fn save_over_a_damaged_one() {
    let before = |disk: &FaultyDisk, run: &Path| {
        [1, 2].into_iter().for_each(|step| saved(disk, run, step));
        damage(run, 2, "model-00001-of-00002.safetensors");
    };
    // Between setting aside and the new name, `latest` points at nothing.
    let scenario = Scenario { before: &before, step: 2, pruned: &[], previous: Some(1), whole: false };
    assert!(scenario.run() >= 20);
}
