//! Running programs that a model wrote.
//!
//! A program is Python source whose end is its last test, such as those of [`programs`](crate::programs). It runs in a child
//! of this process:
//!
//! - **Files** (Landlock): it reads what the interpreter needs and nothing else, so neither the home folder nor the
//!   environment of other processes; it writes in an empty folder of its own, which is removed afterwards.
//! - **System calls** (seccomp): those are allowed that an interpreter needs; whatever else a program tries, the kernel
//!   answers that it has no such call. There are no sockets, no signals to other processes, no changes of owners, modes or
//!   limits, and no new processes, only threads. A fork bomb, a process that leaves its group, and one that outlives its
//!   parent are therefore impossible, whoever runs them; `RLIMIT_NPROC`, which counts all processes of a user and does not
//!   bind root, is not needed.
//! - **Limits**: those of [`Limits`], some by the kernel (`setrlimit`), threads and the sizes of files by looking every
//!   10 ms.
//! - **Ends**: the child leads a session and is killed with its group when it ends, when its time is over, when the run is
//!   interrupted, and by the kernel when this process dies.
//!
//! A program has passed if it ran to its end. The driver that runs it then writes a token, which is random and which it only
//! reads at that time; a program that leaves early, by `sys.exit(0)` or `os._exit(0)`, has not passed. A program shares the
//! interpreter with its own tests: one that is made to deceive them, by reading the driver's descriptors, say, can. The
//! sandbox protects the machine; it does not make tests of programs that are made to look right.

#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
mod folder;
mod interpreter;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod system_calls;

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::{fmt, io, thread};

use serde::{Deserialize, Serialize};

#[cfg(target_os = "linux")]
use folder::Folder;
pub use interpreter::Interpreter;

/// What a program may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Seconds of processor time, all threads together; 10.
    pub cpu_seconds: u64,
    /// Seconds from the start; 30, more than the processor's, so that a busy machine changes no result.
    pub wall_seconds: u64,
    /// Bytes of address space; 1 GiB. The interpreter takes some 30 MiB of it.
    pub memory_bytes: u64,
    /// Bytes of one file; 1 MiB.
    pub file_bytes: u64,
    /// Bytes of all files; 16 MiB.
    pub folder_bytes: u64,
    /// Files and folders; 256.
    pub files: usize,
    /// Open files; 64.
    pub open_files: u64,
    /// Threads; 32.
    pub threads: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            cpu_seconds: 10,
            wall_seconds: 30,
            memory_bytes: 1 << 30,
            file_bytes: 1 << 20,
            folder_bytes: 16 << 20,
            files: 256,
            open_files: 64,
            threads: 32,
        }
    }
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ran to its end.
    Passed,
    /// It ended earlier by itself: by an error, or by leaving.
    Failed {
        /// Its status.
        exit: Exit,
        /// The end of what it wrote to its standard error, at most 4,096 bytes.
        stderr: String,
    },
    /// It was killed after [`Limits::wall_seconds`].
    TimedOut,
    /// It was killed at another limit.
    Killed(Limit),
    /// It was killed because the run was interrupted; nothing is known about it.
    Interrupted,
}

/// The status of a process that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It left with this code; 1 is that of an exception.
    Code(i32),
    /// A signal ended it, such as 11 after a recursion that was too deep.
    Signal(i32),
}

/// A limit that ends a program. At the others a call fails, and the program sees the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// [`Limits::cpu_seconds`].
    Cpu,
    /// [`Limits::threads`].
    Threads,
    /// [`Limits::files`] or [`Limits::folder_bytes`].
    Files,
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Passed => out.write_str("passed"),
            Outcome::Failed { exit: Exit::Code(0), .. } => out.write_str("left before its tests were done"),
            Outcome::Failed { exit: Exit::Code(code), stderr } => {
                let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it wrote no error");
                write!(out, "failed with code {code}: {last}")
            }
            Outcome::Failed { exit: Exit::Signal(signal), .. } => write!(out, "ended by signal {signal}"),
            Outcome::TimedOut => out.write_str("timed out"),
            Outcome::Killed(Limit::Cpu) => out.write_str("used up its processor time"),
            Outcome::Killed(Limit::Threads) => out.write_str("started too many threads"),
            Outcome::Killed(Limit::Files) => out.write_str("wrote too many files"),
            Outcome::Interrupted => out.write_str("interrupted"),
        }
    }
}

/// Why no program can be run.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Not Linux, or not a processor whose system calls are known here.
    #[error(
        "programs of a model are only run in a sandbox, which needs Linux on x86-64 or AArch64; this is {system} on \
         {processor}. Evaluate there, or leave the tasks out that run programs"
    )]
    System {
        /// The system.
        system: &'static str,
        /// The processor.
        processor: &'static str,
    },
    /// The kernel lacks what confines a program.
    #[error(
        "programs of a model are only run in a sandbox, and this kernel does not give one: {0}. It needs Landlock (Linux \
         5.13, enabled at boot) and seccomp"
    )]
    Kernel(String),
    /// No interpreter.
    #[error("programs of a model need Python 3 at {path}: {reason}. Install it, or name another interpreter")]
    Python {
        /// What was started.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The folder of a program could not be made.
    #[error("no folder for a program could be made in {path}: {source}")]
    Folder {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The child could not be started or watched.
    #[error("a program could not be run: {0}")]
    Run(io::Error),
    /// The sandbox was tried, and it does not hold.
    #[error(
        "the sandbox does not hold on this machine: {0}. No program of a model is run here; leave the tasks out that do"
    )]
    Open(String),
}

/// Runs programs in a child process that can do no harm.
#[derive(Debug)]
pub struct Sandbox {
    limits: Limits,
    interpreter: Interpreter,
    #[cfg(target_os = "linux")]
    filter: seccompiler::BpfProgram,
}

impl Sandbox {
    /// With the `python3` of the search path.
    ///
    /// # Errors
    /// If this machine cannot give the sandbox; that is tried, with a program that attempts what it must not do.
    pub fn new(limits: Limits) -> Result<Sandbox, SandboxError> {
        Sandbox::with_python(Path::new("python3"), limits)
    }

    /// With another interpreter. Programs run with the one that a virtual environment was made of, without the packages of
    /// the environment.
    ///
    /// # Errors
    /// As [`Sandbox::new`].
    #[cfg(target_os = "linux")]
    pub fn with_python(python: &Path, limits: Limits) -> Result<Sandbox, SandboxError> {
        files::check()?;
        let filter = system_calls::filter()?;
        let sandbox = Sandbox { limits, interpreter: Interpreter::find(python)?, filter };
        sandbox.check()?;
        Ok(sandbox)
    }

    /// With another interpreter.
    ///
    /// # Errors
    /// Always: this system has no sandbox.
    #[cfg(not(target_os = "linux"))]
    pub fn with_python(_: &Path, _: Limits) -> Result<Sandbox, SandboxError> {
        Err(SandboxError::System { system: std::env::consts::OS, processor: std::env::consts::ARCH })
    }

    /// What a program may use.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What runs the programs; results depend on its version.
    pub fn interpreter(&self) -> &Interpreter {
        &self.interpreter
    }

    /// Runs a program. It takes at most [`Limits::wall_seconds`], and ends at once when `interrupt` is set.
    ///
    /// # Errors
    /// If it could not be run; then nothing is known about it.
    pub fn run(&self, program: &str, interrupt: &AtomicBool) -> Result<Outcome, SandboxError> {
        self.run_within(&self.limits, program, interrupt)
    }

    #[cfg(target_os = "linux")]
    fn run_within(&self, limits: &Limits, program: &str, interrupt: &AtomicBool) -> Result<Outcome, SandboxError> {
        let folder = Folder::new()?;
        folder.write(interpreter::PROGRAM, program)?;
        let files = files::ruleset(&self.interpreter, folder.path())?;
        process::run(&self.interpreter, limits, &folder, &files, &self.filter, interrupt).map_err(SandboxError::Run)
    }

    #[cfg(not(target_os = "linux"))]
    fn run_within(&self, _: &Limits, _: &str, _: &AtomicBool) -> Result<Outcome, SandboxError> {
        Err(SandboxError::System { system: std::env::consts::OS, processor: std::env::consts::ARCH })
    }

    /// Runs programs, as many at once as the machine has cores, and gives `ended` the number of each and how it ended, in
    /// the order in which they end. After an interruption the rest is left out.
    ///
    /// # Errors
    /// The first of a program that could not be run, or of `ended`, after which no other is started.
    pub fn run_all<E: From<SandboxError> + Send>(
        &self,
        programs: &[String],
        interrupt: &AtomicBool,
        ended: impl FnMut(usize, Outcome) -> Result<(), E> + Send,
    ) -> Result<(), E> {
        let next = AtomicUsize::new(0);
        let ended = Mutex::new((ended, Ok(())));
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(program) = programs.get(number) else { return };
                let outcome = self.run(program, interrupt);
                if matches!(outcome, Ok(Outcome::Interrupted)) {
                    return;
                }
                let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
                let (tell, result) = &mut *ended;
                if result.is_ok() {
                    *result = outcome.map_err(E::from).and_then(|outcome| tell(number, outcome));
                }
                if result.is_err() || interrupt.load(Ordering::Relaxed) {
                    next.store(programs.len(), Ordering::Relaxed);
                    return;
                }
            }
        };
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(programs.len().max(1));
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        ended.into_inner().unwrap_or_else(PoisonError::into_inner).1
    }

    /// Tries what the sandbox promises.
    #[cfg(target_os = "linux")]
    fn check(&self) -> Result<(), SandboxError> {
        let outside = Folder::new()?;
        outside.write("outside", "text")?;
        let path = outside.path().join("outside");
        let quoted = serde_json::to_string(&path.to_string_lossy()).unwrap_or_default();
        let attempts = [
            ("a program that does nothing", "pass".to_owned(), true),
            ("a program that leaves early", "import sys; sys.exit(0)".to_owned(), false),
            ("reading a file outside", format!("open({quoted}).read()"), false),
            ("writing a file outside", format!("open({quoted}, 'a')"), false),
            ("a socket", "import socket; socket.socket()".to_owned(), false),
            ("a new process", "import os; os.fork()".to_owned(), false),
        ];
        // Whether it holds is not a matter of time, whatever the programs get.
        let time = Limits::default();
        let limits = Limits {
            cpu_seconds: self.limits.cpu_seconds.max(time.cpu_seconds),
            wall_seconds: self.limits.wall_seconds.max(time.wall_seconds),
            ..self.limits
        };
        for (attempt, program, passes) in attempts {
            let outcome = self.run_within(&limits, &program, &AtomicBool::new(false))?;
            if (outcome == Outcome::Passed) != passes {
                return Err(SandboxError::Open(format!("{attempt}: {outcome}")));
            }
        }
        Ok(())
    }
}
