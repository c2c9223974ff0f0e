//! A process that saves without end, killed twenty times at any moment: what it said was saved is there, whole.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use olmoe_checkpoint::safetensors::{SafeType, Spec};
use olmoe_checkpoint::save::Checkpoints;
use serde_json::json;

const RUN: &str = "OLMOE_TEST_RUN_TO_KILL";
const NUMBERS: usize = 20_000;

fn numbers(step: u64) -> Vec<u8> {
    (0..NUMBERS).flat_map(|i| (step * 7 + i as u64).to_le_bytes()).collect()
}

/// Runs in the process that is killed; nothing to do in the one that kills.
#[test]
fn child_that_saves() {
    let Ok(run) = std::env::var(RUN) else { return };
    let checkpoints = Checkpoints::open(run).unwrap();
    let mut step = checkpoints.load_latest().unwrap().map_or(0, |found| found.step);
    loop {
        step += 1;
        let mut writer = checkpoints.begin(step).unwrap();
        let specs = ["a", "b"].map(|name| Spec::new(name, SafeType::U64, [NUMBERS]));
        writer.tensors("model", &specs, 1, |_, out| out.write_all(&numbers(step))).unwrap();
        writer.state(&json!({ "step": step })).unwrap();
        writer.commit().unwrap();
        println!("\nsaved {step}");
        checkpoints.prune(&[step.saturating_sub(2)]).unwrap();
    }
}

#[test]
fn killed_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let (mut last, mut cut) = (0, 0);
    for kill in 0..20u64 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_that_saves", "--nocapture"]).env(RUN, &run);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        // From its first save on, at a moment that differs from run to run.
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let steps = |line: String| line.strip_prefix("saved ").and_then(|step| step.parse::<u64>().ok());
        let mut said = lines.by_ref().find_map(steps).expect("the process saves");
        std::thread::sleep(Duration::from_micros((kill * 7919) % 30_000));
        child.kill().unwrap();
        child.wait().unwrap();
        said = lines.filter_map(steps).last().unwrap_or(said);

        let names = std::fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        cut += usize::from(names.into_iter().any(|name| name.ends_with(".tmp")));
        let found = Checkpoints::open(&run).unwrap().load_latest().unwrap().expect("a checkpoint");
        assert!(found.notices.is_empty(), "{:?}", found.notices);
        assert!(found.step >= said && found.step > last, "found {}, said {said}, before {last}", found.step);
        assert_eq!(found.manifest.state, json!({ "step": found.step }));
        let shards = found.tensors("model").unwrap();
        let mut bytes = vec![0; NUMBERS * 8];
        for name in ["a", "b"] {
            shards.read_at(name, 0, &mut bytes).unwrap();
            assert!(bytes == numbers(found.step), "{name} of {}", found.step);
        }
        last = found.step;
    }
    writeln!(std::io::stderr(), "{last} saves; {cut} of 20 kills fell into one").unwrap();
}
