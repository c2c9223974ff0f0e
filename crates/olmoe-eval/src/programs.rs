//! Programs whose end tells whether an answer is right.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::Answer;
use crate::lines::{self, Appended};
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
    let (ended, _) = lines::read::<Ended>(file).map_err(broken)?;
    let mut known: HashMap<String, Outcome> = ended.into_iter().map(|one| (one.program, one.outcome)).collect();
    let total = programs.iter().map(Vec::len).sum();
    let mut open: Vec<String> = Vec::new();
    let mut seen = HashSet::new();
    for program in programs.iter().flatten() {
        let key = key(program);
        if !known.contains_key(&key) && seen.insert(key) {
            open.push(program.clone());
        }
    }
    progress(total - open.len(), total);
    if !open.is_empty() {
        let mut appended = Appended::at(file);
        let mut left = open.len();
        sandbox.run_all(&open, interrupt, |at, outcome| {
            let ended = Ended { program: key(&open[at]), outcome };
            appended.push(&ended).map_err(broken)?;
            known.insert(ended.program, ended.outcome);
            left -= 1;
            progress(total - left, total);
            Ok::<(), ProgramError>(())
        })?;
        appended.sync().map_err(broken)?;
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
