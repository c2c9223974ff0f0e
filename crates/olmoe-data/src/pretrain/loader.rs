//! The batches of an epoch, read ahead by a thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::{Batch, DataError, DataSet, Order};

/// Which batches to read, and how far ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderSettings {
    /// Instances of a batch over all ranks; a multiple of the number of ranks.
    pub batch_size: usize,
    /// The rank, from 0, whose part of each batch is read.
    pub rank: usize,
    /// The number of ranks, as in the order.
    pub world_size: usize,
    /// The first example to read. Those before it, over all ranks, have been seen; a resumed run passes
    /// [`Batch::next`].
    pub start: u64,
    /// The example to stop before; None: the end of the epoch.
    pub max_examples: Option<u64>,
    /// Whether the last batch is left out when it is not full.
    pub drop_last: bool,
    /// How many batches to read ahead, at least 1.
    pub prefetch: usize,
}

impl Default for LoaderSettings {
    fn default() -> LoaderSettings {
        LoaderSettings {
            batch_size: 1,
            rank: 0,
            world_size: 1,
            start: 0,
            max_examples: None,
            drop_last: false,
            prefetch: 4,
        }
    }
}

/// The batches of an epoch, in order. After an error there are no more.
pub struct Loader {
    batches: Option<Receiver<Result<Batch, DataError>>>,
    thread: Option<JoinHandle<()>>,
    remaining: usize,
}

impl Loader {
    /// Starts reading.
    ///
    /// # Errors
    /// A batch size that is not a multiple of the number of ranks, a rank that does not exist, or a thread that cannot
    /// be started.
    pub fn new(data: Arc<DataSet>, order: Arc<Order>, settings: LoaderSettings) -> Result<Loader, DataError> {
        let LoaderSettings { batch_size, rank, world_size, start, max_examples, drop_last, prefetch } = settings;
        let wrong = |key, value: usize, expected| DataError::Setting { key, value: value.to_string(), expected };
        if world_size == 0 || rank >= world_size {
            return Err(wrong("rank", rank, "below the number of ranks"));
        }
        if batch_size == 0 || !batch_size.is_multiple_of(world_size) {
            return Err(wrong("global_train_batch_size", batch_size, "a multiple of the number of ranks, and not 0"));
        }
        let limit = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let end = order.len().min(limit(max_examples.unwrap_or(u64::MAX)));
        let first = limit(start).saturating_add(rank);
        let examples = end.saturating_sub(first).div_ceil(world_size);
        let own = batch_size / world_size;
        let batches = if drop_last { examples / own } else { examples.div_ceil(own) };
        let (sender, receiver) = sync_channel(prefetch.max(1));
        let read = move || {
            let own_examples = (0..examples).map(|i| order.indices()[first + i * world_size]);
            read_all(&data, own_examples, own, batches, end, start, batch_size, &sender);
        };
        let thread = std::thread::Builder::new().name("batches".into()).spawn(read);
        let thread = thread.map_err(|error| DataError::Thread { what: format!("could not be started: {error}") })?;
        Ok(Loader { batches: Some(receiver), thread: Some(thread), remaining: batches })
    }

    /// Batches that are still to come.
    pub fn remaining(&self) -> usize {
        self.remaining
    }
}

/// Sends the batches until the loader is dropped or a batch cannot be read.
fn read_all(
    data: &DataSet,
    mut examples: impl Iterator<Item = u32>,
    own: usize,
    batches: usize,
    end: usize,
    start: u64,
    batch_size: usize,
    sender: &SyncSender<Result<Batch, DataError>>,
) {
    let mut next = start;
    for _ in 0..batches {
        let indices: Vec<u32> = examples.by_ref().take(own).collect();
        next = next.saturating_add(batch_size as u64).min(end as u64);
        let batch = Batch::read(data, &indices, next);
        let failed = batch.is_err();
        if sender.send(batch).is_err() || failed {
            return;
        }
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Result<Batch, DataError>> {
        if self.remaining == 0 {
            return None;
        }
        let gone = || DataError::Thread { what: "ended without an error message".into() };
        let batch = match &self.batches {
            Some(batches) => batches.recv().unwrap_or_else(|_| Err(gone())),
            None => Err(gone()),
        };
        self.remaining = if batch.is_ok() { self.remaining - 1 } else { 0 };
        Some(batch)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Once the receiver is gone, the thread ends after its present batch.
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // If the thread panicked, the caller has already had the error.
            let _ = thread.join();
        }
    }
}
