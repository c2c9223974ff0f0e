//! One pool of threads for the process, designed to be woken hundreds of times for each token.
//!
//! [`parallel`] runs numbered tasks on the calling thread and the workers; a free thread takes the next task. No result
//! depends on which thread ran which task, because each task writes ranges of its own in a fixed order. A worker
//! without work spins for a moment, then sleeps. The caller waits only for workers that have joined, so a worker that
//! the system does not schedule delays no call. A call from inside a task, or while another thread uses the pool, runs
//! all of its tasks on the calling thread.

use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// The largest number of threads.
pub const MAX_THREADS: usize = 1024;
/// How long an idle worker spins before it sleeps: longer than the gaps between the operations of a step.
const SPIN: Duration = Duration::from_micros(200);

/// A job: the function and its number of tasks. Valid only while the job is open.
#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}
// SAFETY: the pointer is followed only by workers that joined while the job was open, and `parallel` keeps the function
// alive until all of those have left.
unsafe impl Send for Job {}

/// Bits of `Pool::state`: the workers inside the job, then whether it is open, then the number of the job.
const JOINED: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const EPOCH: u64 = 1 << 17;

struct Pool {
    state: AtomicU64,
    job: Mutex<Option<Job>>,
    next: AtomicUsize,
    panicked: AtomicBool,
    /// Held by the caller that uses the pool.
    turn: Mutex<()>,
    wanted: AtomicUsize,
    spawned: Mutex<usize>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

static POOL: OnceLock<Pool> = OnceLock::new();

fn pool() -> &'static Pool {
    POOL.get_or_init(|| Pool {
        state: AtomicU64::new(0),
        job: Mutex::new(None),
        next: AtomicUsize::new(0),
        panicked: AtomicBool::new(false),
        turn: Mutex::new(()),
        wanted: AtomicUsize::new(std::thread::available_parallelism().map_or(1, |n| n.get())),
        spawned: Mutex::new(0),
        sleepers: AtomicUsize::new(0),
        sleep: Mutex::new(()),
        wake: Condvar::new(),
    })
}

/// The number of threads that take part, the caller included: as set, else one for each processor.
pub fn num_threads() -> usize {
    pool().wanted.load(Ordering::Relaxed)
}

/// Sets the number of threads, the caller included, clamped to 1..=[`MAX_THREADS`].
pub fn set_num_threads(n: usize) {
    pool().wanted.store(n.clamp(1, MAX_THREADS), Ordering::Relaxed);
}

/// Runs `run(0)`, …, `run(tasks − 1)`, each once, on all threads; returns when all are done.
///
/// # Panics
/// When a task panics; the tasks that had begun before end first.
pub fn parallel(tasks: usize, run: impl Fn(usize) + Sync) {
    let pool = pool();
    let threads = num_threads();
    if tasks > 1
        && threads > 1
        && let Ok(_turn) = pool.turn.try_lock()
    {
        pool.run(tasks, threads, &run);
    } else {
        (0..tasks).for_each(run);
    }
}

/// Runs `run` over contiguous ranges that cover `0..len`, on all threads. The length of each range but the last is a
/// multiple of `grain`. For loops over many small equal elements of work.
pub fn parallel_ranges(len: usize, grain: usize, run: impl Fn(std::ops::Range<usize>) + Sync) {
    let grains = len.div_ceil(grain.max(1));
    // A few ranges for each thread, so that the others do not wait long for a slow one.
    let tasks = grains.min(num_threads() * 4);
    parallel(tasks, |task| {
        let at = |task: usize| (grains * task / tasks * grain.max(1)).min(len);
        run(at(task)..at(task + 1));
    });
}

/// A mutable slice that tasks share; each task takes ranges that no other task takes.
pub struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}
// SAFETY: the contract of `Shared::range` makes the caller responsible for disjoint ranges.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares a slice among tasks; the slice stays borrowed for as long as the result lives.
    pub fn new(x: &'a mut [T]) -> Shared<'a, T> {
        Shared { start: x.as_mut_ptr(), len: x.len(), borrowed: PhantomData }
    }

    /// The address of `len` numbers from `start` on, for tasks whose numbers are interleaved with those of other tasks.
    ///
    /// # Panics
    /// When the numbers are not inside the slice.
    pub fn pointer(&self, start: usize, len: usize) -> *mut T {
        assert!(start <= self.len && len <= self.len - start, "{len} numbers from {start} on of {}", self.len);
        // SAFETY: inside the slice.
        unsafe { self.start.add(start) }
    }

    /// The range of the slice that this task owns.
    ///
    /// # Safety
    /// No two tasks that run at the same time may take overlapping ranges.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn range(&self, range: std::ops::Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

impl Pool {
    fn run(&'static self, tasks: usize, threads: usize, run: &(dyn Fn(usize) + Sync)) {
        self.spawn(threads - 1);
        // SAFETY: only the lifetime is erased; this function does not return while a worker can follow the pointer.
        let run: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(run) };
        let job = Job { run, tasks };
        *self.job.lock().unwrap_or_else(|e| e.into_inner()) = Some(job);
        self.next.store(0, Ordering::Relaxed);
        self.panicked.store(false, Ordering::Relaxed);
        // A new job number, open, with no worker joined.
        let epoch = (self.state.load(Ordering::Relaxed) & !(JOINED | OPEN)).wrapping_add(EPOCH);
        self.state.store(epoch | OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = self.sleep.lock().unwrap_or_else(|e| e.into_inner());
            self.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| self.take_tasks(job)));
        if own.is_err() {
            self.next.store(tasks, Ordering::Relaxed);
        }
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while self.state.load(Ordering::Acquire) & JOINED != 0 {
            pause(&mut spins);
        }
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!self.panicked.load(Ordering::Relaxed), "a task of a parallel loop panicked; its message is above");
    }

    fn take_tasks(&self, job: Job) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= job.tasks {
                return;
            }
            // SAFETY: this thread has joined the job, or is its caller.
            unsafe { (*job.run)(task) }
        }
    }

    fn spawn(&'static self, workers: usize) {
        let mut spawned = self.spawned.lock().unwrap_or_else(|e| e.into_inner());
        while *spawned < workers {
            let index = *spawned;
            let thread = std::thread::Builder::new().name(format!("olmoe-{}", index + 1));
            if thread.spawn(move || self.work(index)).is_err() {
                // With fewer threads the results are the same and take longer.
                return;
            }
            *spawned += 1;
        }
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            let state = self.await_job(seen);
            seen = state & !(JOINED | OPEN);
            if index + 1 >= self.wanted.load(Ordering::Relaxed) {
                continue;
            }
            // Join, unless the job has been closed in the meantime.
            let mut now = state;
            let joined = loop {
                if now & OPEN == 0 || now & !(JOINED | OPEN) != seen {
                    break false;
                }
                match self.state.compare_exchange_weak(now, now + 1, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => break true,
                    Err(found) => now = found,
                }
            };
            if !joined {
                continue;
            }
            let job = *self.job.lock().unwrap_or_else(|e| e.into_inner());
            if let Some(job) = job
                && catch_unwind(AssertUnwindSafe(|| self.take_tasks(job))).is_err()
            {
                self.panicked.store(true, Ordering::Relaxed);
                self.next.store(job.tasks, Ordering::Relaxed);
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits for an open job with another number than `seen`.
    fn await_job(&self, seen: u64) -> u64 {
        let fresh = |state: u64| state & OPEN != 0 && state & !(JOINED | OPEN) != seen;
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                let state = self.state.load(Ordering::Acquire);
                if fresh(state) {
                    return state;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > SPIN {
                break;
            }
        }
        let mut guard = self.sleep.lock().unwrap_or_else(|e| e.into_inner());
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let state = loop {
            let state = self.state.load(Ordering::SeqCst);
            if fresh(state) {
                break state;
            }
            guard = self.wake.wait(guard).unwrap_or_else(|e| e.into_inner());
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        state
    }
}

/// Spins, and yields the processor now and then, in case the other thread needs it.
fn pause(spins: &mut u32) {
    *spins += 1;
    if spins.is_multiple_of(4096) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            set_num_threads(threads);
            for tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                parallel(tasks, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                    parallel(2, |_| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 3));
            }
        }
        let seen = Mutex::new(vec![0; 1003]);
        parallel_ranges(1003, 10, |range| range.for_each(|i| seen.lock().unwrap()[i] += 1));
        assert!(seen.into_inner().unwrap().iter().all(|n| *n == 1));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for _ in 0..20 {
            let result = catch_unwind(|| parallel(64, |i| assert!(i != 33, "task 33 is bad")));
            assert!(result.is_err());
            let sum = AtomicUsize::new(0);
            parallel(100, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }
}
