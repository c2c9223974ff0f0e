//! A fault at every operation of a run of fine-tuning on its disk: the run that goes on afterwards ends with the same bytes.
#![cfg(unix)]

#[path = "../../olmoe-checkpoint/tests/faults/disk.rs"]
mod disk;
mod tuning;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use disk::{Fault, FaultyDisk, Luck, Tree};
use olmoe_data::instruct::Packing;
use olmoe_model::model::{Model, Precision};
use olmoe_train::finetune::{
    BaseModel, DpoSettings, Examples, FinetuneData, FinetuneSettings, Method, MicroBatch, PackingSettings, RunLength,
    SftSettings, begin_on,
};
use olmoe_train::trainer::{Event, Outcome};

fn settings(root: &Path, method: Method) -> FinetuneSettings {
    let mut settings = FinetuneSettings::new(method, root.join("run"));
    settings.precision = Precision::Fp32;
    (settings.batch_size, settings.micro_batch) = (2, MicroBatch::Examples(1));
    settings.length = RunLength::Steps(3);
    (settings.saving.interval, settings.saving.keep) = (Some(1), 2);
    settings.train = vec!["router".to_owned(), "layers.1.experts.0".to_owned()];
    settings.configuration = "a: b\n".to_owned();
    settings
}

fn train(disk: &FaultyDisk, root: &Path, case: &Case, after: u64) -> Result<Outcome, String> {
    let interrupt = AtomicBool::new(false);
    let (settings, data) = ((case.settings)(root), (case.data)());
    let trainer = begin_on(settings, BaseModel::of(&case.model), data, disk, &interrupt, &mut |_| {});
    let outcome = trainer.map_err(|error| error.to_string())?.run(&interrupt, &mut |event| {
        if let Event::Step(report, _) = event {
            interrupt.fetch_or(report.step >= after, Ordering::Relaxed);
        }
    });
    outcome.map_err(|error| error.to_string())
}

struct Case {
    model: Model,
    settings: fn(&Path) -> FinetuneSettings,
    data: fn() -> FinetuneData,
}

fn go_on(root: &Path, case: &Case, what: &str) -> (Tree, Vec<u8>) {
    let disk = FaultyDisk::new(root, Fault::None);
    assert_eq!(train(&disk, root, case, u64::MAX), Ok(Outcome::Finished), "{what}");
    let found = Tree::read(root);
    disk.settle(Luck::SystemLives);
    assert!(Tree::read(root) == found, "{what}: a file was changed past the disk");
    (Tree::read(&root.join("run/step-3")), std::fs::read(root.join("run/config.yaml")).unwrap())
}

fn every_fault(case: &Case, least: usize) {
    let memory = Path::new("/dev/shm");
    let folder = tempfile::tempdir_in(if memory.is_dir() { memory.into() } else { std::env::temp_dir() }).unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let before = Tree::read(&root);
    let expected = go_on(&root, case, "nothing");
    for at in 1.. {
        let deaths = [Luck::Worst, Luck::Random(at as u64)].map(|luck| (Fault::Death(at), Some(luck)));
        for (fault, luck) in [(Fault::Error(at), None), (Fault::Errors(at), None)].into_iter().chain(deaths) {
            before.write(&root);
            let disk = FaultyDisk::new(&root, fault);
            let result = train(&disk, &root, case, u64::MAX);
            if !disk.fired() {
                assert_eq!(result, Ok(Outcome::Finished));
                assert!(at > least, "{at} operations");
                return;
            }
            if let Some(luck) = luck {
                disk.settle(luck);
            }
            let what = format!("{fault:?}, {luck:?}: {result:?}");
            assert!(go_on(&root, case, &what) == expected, "{what}");
        }
    }
}

#[test]
fn no_fault_of_the_disk_changes_what_packed_sft_comes_to() {
    let case = Case {
        model: tuning::model(),
        settings: |root| FinetuneSettings {
            packing: Some(PackingSettings { length: 20, rule: Packing::BestFit }),
            ..settings(root, Method::Sft(SftSettings::default()))
        },
        data: || tuning::conversation_data(7),
    };
    every_fault(&case, 80);
}

#[test]
fn no_fault_of_the_disk_changes_what_dpo_comes_to() {
    let case = Case {
        model: tuning::model(),
        settings: |root| settings(root, Method::Dpo(DpoSettings::default())),
        data: || FinetuneData {
            train: Examples::Pairs(tuning::pairs(3)),
            evaluation: Some(Examples::Pairs(tuning::pairs(2))),
        },
    };
    every_fault(&case, 80);
}
