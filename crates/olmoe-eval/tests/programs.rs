//! HumanEval's own solutions pass, and functions that return nothing fail.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use flate2::read::GzDecoder;
use olmoe_eval::programs::human_eval;
use olmoe_eval::sandbox::{Limits, Outcome, Sandbox, SandboxError};
use serde_json::Value;

#[test]
fn a_program_is_put_together() {
    let program = human_eval("def f(x):\n", "    return x\n", "\n\ndef check(f):\n    assert f(1) == 1\n", "f");
    assert_eq!(program, "def f(x):\n    return x\n\n\n\ndef check(f):\n    assert f(1) == 1\n\ncheck(f)");
}

#[test]
fn canonical_solutions_pass() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/eval/raw/HumanEval.jsonl.gz");
    let Ok(file) = File::open(&path) else {
        eprintln!("skipped: {} is not there", path.display());
        return;
    };
    let sandbox = match Sandbox::new(Limits::default()) {
        Ok(sandbox) => sandbox,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 164);
    let with = |completion: &dyn Fn(&Value) -> String| -> Vec<String> {
        let field = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
        let program =
            |row| human_eval(&field(row, "prompt"), &completion(row), &field(row, "test"), &field(row, "entry_point"));
        rows.iter().map(program).collect()
    };
    let run = |programs: &[String]| {
        let mut outcomes = vec![Outcome::Interrupted; programs.len()];
        sandbox
            .run_all(programs, &AtomicBool::new(false), |i, outcome| -> Result<(), SandboxError> {
                outcomes[i] = outcome;
                Ok(())
            })
            .unwrap();
        outcomes
    };
    let begin = Instant::now();
    let solutions = with(&|row| row["canonical_solution"].as_str().unwrap().to_owned());
    for (row, outcome) in rows.iter().zip(run(&solutions)) {
        assert_eq!(outcome, Outcome::Passed, "{}", row["task_id"]);
    }
    println!("164 programs in {:?}, Python {}", begin.elapsed(), sandbox.interpreter().version);
    for (row, outcome) in rows.iter().zip(run(&with(&|_| "    return None\n".to_owned()))) {
        assert!(matches!(outcome, Outcome::Failed { .. }), "{}: {outcome:?}", row["task_id"]);
    }
}
