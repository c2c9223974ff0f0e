//! The folder of a run's results.
//!
//! | file | what it holds |
//! |---|---|
//! | `run.json` | who answers: [`Backend::identity`](crate::Backend::identity) |
//! | `answers/TASK.jsonl` | the answers of a task, complete and in order |
//! | `answers/TASK.partial.jsonl` | answers as they came, of a task that is not complete |
//! | `questions/TASK.jsonl` | the metrics of each question |
//! | `results.json` | the metrics of each task |
//!
//! Answers of one model are in a folder; those of another one are refused, so that no result is lost or mixed.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use olmoe_checkpoint::disk::{LocalDisk, make_folders, write_whole};
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::lines::{self, Appended};
use crate::record::{Record, key};
use crate::task::Task;

/// The lock of a folder.
const LOCK: &str = "run.lock";
/// Who answers.
const RUN: &str = "run.json";
/// The format of the folder.
const FORMAT: u64 = 1;

/// Why results cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// A file.
    #[error("cannot {what} {}: {error}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another process uses the folder.
    #[error("{}: another run of `olmoe eval` writes there; wait for it, or choose another folder", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Results of another model.
    #[error(
        "{}: the results there are of another model: {different}; choose another folder for this one",
        path.display()
    )]
    OtherModel {
        /// The folder.
        path: PathBuf,
        /// What differs.
        different: String,
    },
    /// No results.
    #[error("{}: there are no results of `olmoe eval`: run.json {reason}", path.display())]
    NoResults {
        /// The folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl ResultsError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ResultsError {
        let path = path.to_owned();
        move |error| ResultsError::Io { what, path, error }
    }
}

/// A folder of results, locked as long as it is open.
pub struct Results {
    path: PathBuf,
    identity: Value,
    /// The identity as it goes into keys.
    identity_text: String,
    _lock: File,
}

impl Results {
    /// Creates the folder, or opens the one of the same model.
    ///
    /// # Errors
    /// [`ResultsError`]: the file system's, a folder in use, results of another model.
    pub fn open(path: &Path, identity: &Value) -> Result<Results, ResultsError> {
        let results = Results::locked(path, identity.clone())?;
        match read_identity(path) {
            Ok(found) if found == *identity => {}
            Ok(found) => {
                return Err(ResultsError::OtherModel { path: path.into(), different: difference(&found, identity) });
            }
            Err(ResultsError::NoResults { .. }) if !path.join(RUN).exists() => {
                let text = json!({"format": FORMAT, "identity": identity});
                results.write(RUN, |out| writeln!(out, "{text:#}"))?;
            }
            Err(error) => return Err(error),
        }
        Ok(results)
    }

    /// Opens the folder of a run without a model, to compute its metrics again.
    ///
    /// # Errors
    /// [`ResultsError`]: the file system's, a folder in use, no results.
    pub fn existing(path: &Path) -> Result<Results, ResultsError> {
        let identity = read_identity(path)?;
        Results::locked(path, identity)
    }

    fn locked(path: &Path, identity: Value) -> Result<Results, ResultsError> {
        make_folders(&LocalDisk, path).map_err(ResultsError::io("create", path))?;
        let lock = path.join(LOCK);
        let file = File::options().create(true).append(true).open(&lock).map_err(ResultsError::io("open", &lock))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(ResultsError::InUse { path: path.into() }),
            // Some file systems have no locks; the run should not fail because of that.
            Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => {
                return Err(ResultsError::io("lock", &lock)(error));
            }
            _ => {}
        }
        let identity_text = identity.to_string();
        Ok(Results { path: path.into(), identity, identity_text, _lock: file })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who answers.
    pub fn identity(&self) -> &Value {
        &self.identity
    }

    /// Writes a file of the folder whole.
    ///
    /// # Errors
    /// [`ResultsError::Io`].
    pub fn write(&self, name: &str, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), ResultsError> {
        let path = self.path.join(name);
        let made = path.parent().map_or(Ok(()), |folder| make_folders(&LocalDisk, folder));
        made.and_then(|()| write_whole(&LocalDisk, &path, fill)).map(drop).map_err(ResultsError::io("write", &path))
    }

    /// The answers of a task so far.
    ///
    /// # Errors
    /// [`ResultsError::Io`].
    pub fn answers(&self, task: &Task) -> Result<AnswerFile<'_>, ResultsError> {
        let name = file_name(&task.name);
        let whole = self.path.join("answers").join(format!("{name}.jsonl"));
        let partial = self.path.join("answers").join(format!("{name}.partial.jsonl"));
        let (mut records, mut damaged) = (HashMap::new(), 0);
        for path in [&whole, &partial] {
            let (found, lost) = lines::read::<Record>(path).map_err(ResultsError::io("read", path))?;
            records.extend(found.into_iter().map(|record| (record.key.clone(), record)));
            damaged += lost;
        }
        let key = |request| key(&self.identity_text, task.encoding, request);
        let keys = task.questions.iter().map(|question| question.requests.iter().map(key).collect()).collect();
        let appended = Appended::at(&partial);
        Ok(AnswerFile { results: self, whole, partial, appended, keys, records, damaged })
    }
}

/// The answers of a task in the folder.
pub struct AnswerFile<'a> {
    results: &'a Results,
    whole: PathBuf,
    partial: PathBuf,
    /// The partial file.
    appended: Appended,
    /// By question and request.
    keys: Vec<Vec<String>>,
    records: HashMap<String, Record>,
    /// Lines that are no records.
    pub damaged: usize,
}

impl AnswerFile<'_> {
    /// The answer to a request, if it is there.
    pub fn get(&self, question: usize, request: usize) -> Option<&Answer> {
        self.records.get(self.keys.get(question)?.get(request)?).map(|record| &record.answer)
    }

    /// Appends an answer.
    ///
    /// # Errors
    /// [`ResultsError::Io`].
    pub fn put(&mut self, task: &Task, question: usize, request: usize, answer: Answer) -> Result<(), ResultsError> {
        let asked = &task.questions[question];
        let key = self.keys[question][request].clone();
        let record = Record::new(asked.id, request, &asked.requests[request], key.clone(), answer);
        self.appended.push(&record).map_err(ResultsError::io("write", &self.partial))?;
        self.records.insert(key, record);
        Ok(())
    }

    /// Makes what was appended durable.
    ///
    /// # Errors
    /// [`ResultsError::Io`].
    pub fn sync(&self) -> Result<(), ResultsError> {
        self.appended.sync().map_err(ResultsError::io("write", &self.partial))
    }

    /// All answers by question and request, if all are there. The file is then written in the order of the questions;
    /// answers that this task does not ask for, such as those beyond a limit, follow.
    ///
    /// # Errors
    /// [`ResultsError::Io`].
    pub fn complete(self, task: &Task) -> Result<Option<Vec<Vec<Answer>>>, ResultsError> {
        let mut answers = Vec::with_capacity(self.keys.len());
        for keys in &self.keys {
            let all: Option<Vec<Answer>> =
                keys.iter().map(|key| self.records.get(key).map(|record| record.answer.clone())).collect();
            match all {
                Some(all) => answers.push(all),
                None => {
                    self.sync()?;
                    return Ok(None);
                }
            }
        }
        let broken = |error| ResultsError::io("write", &self.whole)(error);
        let mut text = String::new();
        let mut written = std::collections::HashSet::new();
        for (question, keys) in task.questions.iter().zip(&self.keys) {
            for (index, key) in keys.iter().enumerate() {
                // Two questions may ask the same; each has its line.
                let answer = self.records[key].answer.clone();
                let record = Record::new(question.id, index, &question.requests[index], key.clone(), answer);
                text.push_str(&lines::line(&record).map_err(broken)?);
                written.insert(key.as_str());
            }
        }
        let mut others: Vec<&Record> =
            self.records.values().filter(|record| !written.contains(record.key.as_str())).collect();
        others.sort_by(|a, b| (a.question, a.request, &a.key).cmp(&(b.question, b.request, &b.key)));
        for record in others {
            text.push_str(&lines::line(record).map_err(broken)?);
        }
        let name = self.whole.strip_prefix(&self.results.path).unwrap_or(&self.whole).to_string_lossy().into_owned();
        if std::fs::read(&self.whole).ok().as_deref() != Some(text.as_bytes()) {
            self.results.write(&name, |out| out.write_all(text.as_bytes()))?;
        }
        drop(self.appended);
        match std::fs::remove_file(&self.partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ResultsError::io("remove", &self.partial)(error))
            }
            _ => Ok(Some(answers)),
        }
    }
}

fn read_identity(folder: &Path) -> Result<Value, ResultsError> {
    let no_results = |reason: String| ResultsError::NoResults { path: folder.into(), reason };
    let text = match std::fs::read_to_string(folder.join(RUN)) {
        Ok(text) => text,
        Err(error) => return Err(no_results(format!("cannot be read: {error}"))),
    };
    let mut run: Value = serde_json::from_str(&text).map_err(|error| no_results(format!("is not JSON: {error}")))?;
    match run.get("format").and_then(Value::as_u64) {
        Some(FORMAT) => Ok(run["identity"].take()),
        other => Err(no_results(format!("has the format {other:?}, expected {FORMAT}"))),
    }
}

/// The first field in which two identities differ.
fn difference(found: &Value, expected: &Value) -> String {
    let (Value::Object(found), Value::Object(expected)) = (found, expected) else {
        return format!("found {found}, expected {expected}");
    };
    let keys = found.keys().chain(expected.keys());
    let different = keys.filter(|key| found.get(*key) != expected.get(*key)).map(|key| {
        let text = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
        format!("{key} is {} there and {} here", text(found.get(key)), text(expected.get(key)))
    });
    different.into_iter().next().unwrap_or_else(|| "they differ".to_owned())
}

/// A task's name as that of a file: every character that is not allowed everywhere becomes `=` and its code.
pub fn file_name(task: &str) -> String {
    let mut name = String::new();
    for character in task.chars() {
        match character {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' => name.push(character),
            // Not at the beginning, where it hides a file.
            '.' if !name.is_empty() => name.push('.'),
            ':' => name.push('+'),
            other => name.push_str(&format!("={:x}=", u32::from(other))),
        }
    }
    name
}
