//! Asking what was not answered before.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::answer::Answer;
use crate::backend::{Backend, BackendError};
use crate::encoding::Encoding;
use crate::results::{Results, ResultsError};
use crate::task::{Request, Task};

/// Why a task has no results.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Whoever answers.
    #[error("{task}: {error}")]
    Backend {
        /// The task.
        task: String,
        /// Why.
        error: BackendError,
    },
    /// The folder.
    #[error(transparent)]
    Results(#[from] ResultsError),
}

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Answers that are there.
    pub answered: usize,
    /// Of these, the ones that were there before.
    pub before: usize,
    /// Requests of the task.
    pub requests: usize,
    /// Lines of the files of answers that are none; their requests are asked again.
    pub damaged: usize,
}

/// All answers of a task by question and request: those in `results`, and the others from `backend`. Nothing if
/// `interrupt` was set before all were there; what was answered by then is kept.
///
/// # Errors
/// [`RunError`]. What was answered before the error is kept.
pub fn answers(
    task: &Task,
    backend: &mut dyn Backend,
    results: &Results,
    interrupt: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<Vec<Vec<Answer>>>, RunError> {
    let mut file = results.answers(task)?;
    let (places, requests) = open(task, |question, request| file.get(question, request).is_some());
    let total = task.questions.iter().map(|question| question.requests.len()).sum::<usize>();
    let before = total - places.len();
    let mut at = Progress { answered: before, before, requests: total, damaged: file.damaged };
    progress(at);
    if !requests.is_empty() && !interrupt.load(Ordering::Relaxed) {
        let mut failed = None;
        let answered = backend.answer(&requests, interrupt, &mut |index, answer| {
            let (question, request) = places[index];
            if let Err(error) = file.put(task, question, request, answer) {
                let kept = std::io::Error::other(error.to_string());
                failed = Some(error);
                return Err(BackendError::Kept(kept));
            }
            at.answered += 1;
            progress(at);
            Ok(())
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        if let Err(error) = answered {
            file.sync()?;
            return Err(RunError::Backend { task: task.name.clone(), error });
        }
    }
    Ok(file.complete(task)?)
}

/// The same without a folder: everything is asked.
///
/// # Errors
/// [`RunError::Backend`].
pub fn ask(
    task: &Task,
    backend: &mut dyn Backend,
    interrupt: &AtomicBool,
) -> Result<Option<Vec<Vec<Answer>>>, RunError> {
    let (places, requests) = open(task, |_, _| false);
    let mut all: Vec<Vec<Option<Answer>>> =
        task.questions.iter().map(|question| vec![None; question.requests.len()]).collect();
    let answered = backend.answer(&requests, interrupt, &mut |index, answer| {
        let (question, request) = places[index];
        all[question][request] = Some(answer);
        Ok(())
    });
    answered.map_err(|error| RunError::Backend { task: task.name.clone(), error })?;
    Ok(all.into_iter().map(|answers| answers.into_iter().collect()).collect())
}

/// Requests, and the place of each in its task: question and request.
type Open<'a> = (Vec<(usize, usize)>, Vec<(&'a Request, Encoding)>);

/// The requests that are not answered.
fn open(task: &Task, answered: impl Fn(usize, usize) -> bool) -> Open<'_> {
    let all = task.questions.iter().enumerate().flat_map(|(at, question)| {
        question.requests.iter().enumerate().map(move |(index, request)| ((at, index), (request, task.encoding)))
    });
    all.filter(|((question, request), _)| !answered(*question, *request)).unzip()
}
