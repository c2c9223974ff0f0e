//! The first failure of tasks that run on several threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The failure of the task with the lowest number so far. Tasks are begun in the order of their numbers, so all tasks
/// before a failed one have begun and will end. Which failure remains therefore does not depend on the threads.
pub(super) struct FirstFailure<E> {
    first: AtomicUsize,
    error: Mutex<Option<E>>,
}

impl<E> FirstFailure<E> {
    pub(super) fn new() -> FirstFailure<E> {
        FirstFailure { first: AtomicUsize::new(usize::MAX), error: Mutex::new(None) }
    }

    /// Runs the task with a number, unless a task with a lower number has failed.
    pub(super) fn note(&self, number: usize, run: impl FnOnce() -> Result<(), E>) {
        if number > self.first.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = run() {
            let mut kept = self.error.lock().unwrap_or_else(|e| e.into_inner());
            if self.first.fetch_min(number, Ordering::Relaxed) > number {
                *kept = Some(error);
            }
        }
    }

    pub(super) fn result(self) -> Result<(), E> {
        self.error.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }
}
