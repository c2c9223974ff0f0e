//! The child in which a program runs.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libc::{c_int, pid_t};
use seccompiler::BpfProgram;

use super::folder::Folder;
use super::interpreter::{DRIVER, Interpreter};
use super::{Exit, Limit, Limits, Outcome};

/// How often threads, files, the time and interruptions are looked at.
const TICK: Duration = Duration::from_millis(10);
/// Bytes kept of the standard error.
const TAIL: usize = 4096;
/// Bytes of the token, and of what the driver hands on.
const TOKEN: usize = 64;

/// Runs the program of `folder` to its end or to one of its limits.
pub(super) fn run(
    interpreter: &Interpreter,
    limits: &Limits,
    folder: &Folder,
    files: &OwnedFd,
    filter: &BpfProgram,
    interrupt: &AtomicBool,
) -> io::Result<Outcome> {
    let token = token()?;
    // The token waits in the pipe before the child is there, so that no write to a dead one can fail.
    let (input, mut sender) = io::pipe()?;
    sender.write_all(&token)?;
    drop(sender);
    let mut command = Command::new(&interpreter.path);
    command
        .args(["-I", "-c", DRIVER])
        .env_clear()
        .current_dir(folder.path())
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let confinement = Confinement::new(limits, files, filter);
    // SAFETY: between fork and exec the closure only makes system calls with data that was made before.
    unsafe { command.pre_exec(move || confinement.enter()) };
    let deadline = Instant::now() + Duration::from_secs(limits.wall_seconds);
    let mut started = command.spawn()?;
    let mut child = Child { pid: started.id().cast_signed(), ended: None };
    let mut output = Pipe::new(started.stdout.take().map(OwnedFd::from));
    let mut errors = Pipe::new(started.stderr.take().map(OwnedFd::from));

    let passed = |output: &Pipe| output.kept == token;
    loop {
        wait([&mut output, &mut errors], deadline)?;
        if passed(&output) {
            child.kill()?;
            return Ok(Outcome::Passed);
        }
        if child.has_ended()? {
            break;
        }
        let stop = if interrupt.load(Ordering::Relaxed) {
            Outcome::Interrupted
        } else if Instant::now() >= deadline {
            Outcome::TimedOut
        } else if child.threads() > limits.threads {
            Outcome::Killed(Limit::Threads)
        } else if folder.exceeds(limits) {
            Outcome::Killed(Limit::Files)
        } else {
            continue;
        };
        child.kill()?;
        return Ok(stop);
    }
    // It has ended, and nothing else holds the other ends.
    output.read_to_end()?;
    errors.read_to_end()?;
    let (status, cpu) = child.kill()?;
    Ok(if passed(&output) {
        Outcome::Passed
    } else {
        match status.signal() {
            Some(libc::SIGXCPU) => Outcome::Killed(Limit::Cpu),
            // Of those that the kernel sends: a second after the first signal, which the program did not heed.
            Some(libc::SIGKILL) if cpu >= Duration::from_secs(limits.cpu_seconds) => Outcome::Killed(Limit::Cpu),
            Some(signal) => Outcome::Failed { exit: Exit::Signal(signal), stderr: errors.text() },
            None => Outcome::Failed { exit: Exit::Code(status.code().unwrap_or(-1)), stderr: errors.text() },
        }
    })
}

/// Random bytes, written as hexadecimal digits.
fn token() -> io::Result<Vec<u8>> {
    let mut bytes = [0; TOKEN / 2];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect())
}

/// What the child does to itself between fork and exec.
struct Confinement {
    parent: pid_t,
    limits: [(c_int, u64, u64); 5],
    files: RawFd,
    filter: *const BpfProgram,
}

// SAFETY: the pointer is only read, in the child's copy of memory, while the caller of `run` holds what it points to.
unsafe impl Send for Confinement {}
// SAFETY: as above.
unsafe impl Sync for Confinement {}

impl Confinement {
    fn new(limits: &Limits, files: &OwnedFd, filter: &BpfProgram) -> Confinement {
        let same = |which: c_int, limit| (which, limit, limit);
        Confinement {
            parent: std::process::id().cast_signed(),
            limits: [
                // The first ends the program with a signal of its own, the second whatever it does about that.
                (libc::RLIMIT_CPU as c_int, limits.cpu_seconds, limits.cpu_seconds.saturating_add(1)),
                same(libc::RLIMIT_AS as c_int, limits.memory_bytes),
                same(libc::RLIMIT_FSIZE as c_int, limits.file_bytes),
                same(libc::RLIMIT_NOFILE as c_int, limits.open_files),
                same(libc::RLIMIT_CORE as c_int, 0),
            ],
            files: files.as_raw_fd(),
            filter,
        }
    }

    /// Only system calls: after a fork of a process with threads nothing may be allocated.
    fn enter(&self) -> io::Result<()> {
        let check = |result: i64| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        // SAFETY: these calls take numbers, and pointers to values on this stack or made before the fork.
        unsafe {
            check(libc::setsid().into())?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
            // A parent that died before that call sends no signal.
            if libc::getppid() != self.parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            check(libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC))?;
            for (which, soft, hard) in self.limits {
                let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
                check(libc::setrlimit(which as _, &limit).into())?;
            }
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
            check(libc::syscall(libc::SYS_landlock_restrict_self, self.files, 0))?;
            seccompiler::apply_filter(&*self.filter).map_err(|_| io::Error::last_os_error())
        }
    }
}

/// A child that is killed with its group, and waited for, at the latest when this goes.
struct Child {
    pid: pid_t,
    /// Its status and its processor time.
    ended: Option<(ExitStatus, Duration)>,
}

impl Child {
    fn wait(&mut self, options: c_int) -> io::Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        let mut status = 0;
        // SAFETY: all zeros are a value of this structure of numbers.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        loop {
            // SAFETY: both pointers are to values on this stack; the child was not waited for yet.
            match unsafe { libc::wait4(self.pid, &mut status, options, &mut usage) } {
                0 => return Ok(()),
                pid if pid == self.pid => break,
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        let time = |time: libc::timeval| {
            Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
        };
        self.ended = Some((ExitStatus::from_raw(status), time(usage.ru_utime) + time(usage.ru_stime)));
        Ok(())
    }

    fn has_ended(&mut self) -> io::Result<bool> {
        self.wait(libc::WNOHANG)?;
        Ok(self.ended.is_some())
    }

    /// Ends it, if it has not ended, and waits for it.
    fn kill(&mut self) -> io::Result<(ExitStatus, Duration)> {
        if self.ended.is_none() {
            // SAFETY: the group is the child's own, which leads a session, and its number is not free before the wait.
            unsafe { libc::kill(-self.pid, libc::SIGKILL) };
            self.wait(0)?;
        }
        self.ended.ok_or_else(|| io::Error::other("the child was not there to wait for"))
    }

    /// The number of its threads; 0 when it is about to end.
    fn threads(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Threads:"));
        line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// What a child writes, of which the end is kept.
struct Pipe {
    file: Option<File>,
    kept: Vec<u8>,
}

impl Pipe {
    fn new(end: Option<OwnedFd>) -> Pipe {
        Pipe { file: end.map(File::from), kept: Vec::new() }
    }

    /// Reads once; returns whether there may be more.
    fn read(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(false) };
        let mut buffer = [0; 16 * 1024];
        match file.read(&mut buffer) {
            Ok(0) => self.file = None,
            Ok(length) => {
                self.kept.extend_from_slice(&buffer[..length]);
                let excess = self.kept.len().saturating_sub(TAIL);
                self.kept.drain(..excess);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(self.file.is_some())
    }

    fn read_to_end(&mut self) -> io::Result<()> {
        while self.read()? {}
        Ok(())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

/// Reads what is there, after waiting for it for a tick at most.
fn wait(pipes: [&mut Pipe; 2], deadline: Instant) -> io::Result<()> {
    let descriptor = |pipe: &Pipe| pipe.file.as_ref().map_or(-1, |file| file.as_raw_fd());
    let mut asked =
        pipes.each_ref().map(|pipe| libc::pollfd { fd: descriptor(pipe), events: libc::POLLIN, revents: 0 });
    let time = deadline.saturating_duration_since(Instant::now()).min(TICK);
    // SAFETY: the array has two elements; negative descriptors are skipped.
    let ready = unsafe { libc::poll(asked.as_mut_ptr(), 2, time.as_millis() as c_int) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    }
    for (pipe, asked) in pipes.into_iter().zip(asked) {
        if asked.revents != 0 {
            pipe.read()?;
        }
    }
    Ok(())
}
