//! Programs that want out. Each fails alone, and whoever runs them goes on.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use olmoe_eval::sandbox::{Exit, Limit, Limits, Outcome, Sandbox, SandboxError};

/// A sandbox, unless this machine has none.
fn sandbox(limits: Limits) -> Option<Sandbox> {
    match Sandbox::new(limits) {
        Ok(sandbox) => Some(sandbox),
        Err(error @ (SandboxError::System { .. } | SandboxError::Kernel(_) | SandboxError::Python { .. })) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn run(sandbox: &Sandbox, program: &str) -> Outcome {
    sandbox.run(program, &AtomicBool::new(false)).unwrap()
}

/// Asserts that a program failed by an exception whose text has `expected` in it.
#[track_caller]
fn fails(sandbox: &Sandbox, program: &str, expected: &str) {
    match run(sandbox, program) {
        Outcome::Failed { exit: Exit::Code(1), stderr } if stderr.contains(expected) => {}
        outcome => panic!("{program}\n{outcome:?}\nexpected: {expected}"),
    }
    // Whoever runs it goes on.
    assert_eq!(run(sandbox, "pass"), Outcome::Passed);
}

const REFUSED: &str = "[Errno 38]";

#[test]
fn right_answers_pass_and_wrong_ones_fail() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    assert_eq!(run(&sandbox, "def f(x):\n    return x + 1\nassert f(1) == 2\n"), Outcome::Passed);
    fails(&sandbox, "def f(x):\n    return x\nassert f(1) == 2\n", "AssertionError");
    fails(&sandbox, "def f(x)", "SyntaxError");
    fails(&sandbox, "raise ValueError('é ü')", "ValueError: é ü");
    fails(&sandbox, "a = 1\0", "null bytes");
    // What ordinary programs use works.
    let ordinary = r#"
import collections, dataclasses, hashlib, heapq, itertools, json, math, pickle, random, re, threading, time, typing
import tempfile, os

@dataclasses.dataclass
class Point:
    x: "int"

assert typing.get_type_hints(Point) == {"x": int}
assert pickle.loads(pickle.dumps(Point(3))) == Point(3)
assert __name__ == "__main__"
assert hashlib.sha256(b"").hexdigest().startswith("e3b0c442")
results = []
threads = [threading.Thread(target=lambda: results.append(1)) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(results) == 4
os.makedirs("a/b")
with open("a/b/c", "w") as file:
    file.write("text")
os.rename("a/b/c", "a/d")
os.replace("a/d", "d")
assert open("d").read() == "text"
assert sorted(os.listdir(".")) == ["a", "d", "program.py"]
time.sleep(0.01)
print("output is dropped")
try:
    input()
except EOFError:
    pass
else:
    raise AssertionError
"#;
    assert_eq!(run(&sandbox, ordinary), Outcome::Passed);
}

#[test]
fn a_program_that_leaves_early_has_not_passed() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    for program in [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "exit()",
        "quit(0)",
        "raise SystemExit",
        "import os, sys; os.execv(sys.executable, ['python3', '-c', 'pass'])",
        "import os, threading; threading.Timer(0.05, lambda: os._exit(0)).start(); import time; time.sleep(5)",
        "import atexit, os; atexit.register(os._exit, 0); raise ValueError",
        // Guessing what the driver writes, and where.
        "import os\nfor fd in range(1, 64):\n    try: os.write(fd, b'0' * 64)\n    except OSError: pass\nos._exit(0)",
        "import os; os.close(1); os.close(2); os._exit(0)",
    ] {
        let outcome = run(&sandbox, &format!("{program}\nassert False\n"));
        assert!(matches!(outcome, Outcome::Failed { .. }), "{program}: {outcome:?}");
    }
    let outcome = run(&sandbox, "import sys; sys.exit(0)");
    assert_eq!(outcome, Outcome::Failed { exit: Exit::Code(0), stderr: String::new() });
    assert_eq!(outcome.to_string(), "left before its tests were done");
}

#[test]
fn processes() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    // A fork bomb, one with each way to fork.
    fails(&sandbox, "import os\nwhile True: os.fork()", REFUSED);
    fails(&sandbox, "import subprocess\nsubprocess.run(['/bin/sh', '-c', ':(){ :|:& };:'])", REFUSED);
    fails(&sandbox, "import os\nos.posix_spawn('/bin/true', ['true'], {})", REFUSED);
    fails(&sandbox, "import multiprocessing as m\nm.get_context('fork').Process(target=print).start()", REFUSED);
    fails(&sandbox, "import os\nif os.system('true') != 0: raise OSError(os.strerror(38) + ' [Errno 38]')", REFUSED);
    // A daemon.
    let daemon =
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(100)\n";
    fails(&sandbox, daemon, REFUSED);
    fails(&sandbox, "import os\nos.setsid()", REFUSED);
    fails(&sandbox, "import os\nos.execv('/bin/ls', ['ls'])", "PermissionError");
    // The calls themselves, past Python's functions: vfork, clone without a thread, unshare, mount, ptrace.
    if cfg!(target_arch = "x86_64") {
        for call in ["58", "56, 17, 0", "272, 0x10000000", "165, 0, 0, 0, 0, 0", "101, 0, 0, 0, 0"] {
            fails(&sandbox, &call_directly(call), REFUSED);
        }
    }
}

/// A program that makes a system call and raises what it returns.
fn call_directly(arguments: &str) -> String {
    format!(
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.syscall({arguments}) < 0:\n    \
         raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))\n"
    )
}

#[test]
fn threads() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    let bomb = "import threading, time\nthreading.stack_size(32768)\nwhile True:\n    \
                threading.Thread(target=time.sleep, args=(100,)).start()\n";
    assert_eq!(run(&sandbox, bomb), Outcome::Killed(Limit::Threads));
    // A thread that does not end does not keep a program from passing.
    let left = "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()\n";
    assert_eq!(run(&sandbox, left), Outcome::Passed);
}

#[test]
fn network() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    fails(&sandbox, "import socket\nsocket.create_connection(('127.0.0.1', 80), 1)", "Errno");
    for family in ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"] {
        fails(&sandbox, &format!("import socket\nsocket.socket(socket.{family}, socket.SOCK_DGRAM)"), REFUSED);
    }
    fails(&sandbox, "import socket\nsocket.socketpair()", REFUSED);
    fails(&sandbox, "import urllib.request\nurllib.request.urlopen('http://127.0.0.1/')", "URLError");
}

#[test]
fn time() {
    let Some(sandbox) = sandbox(Limits { cpu_seconds: 1, wall_seconds: 60, ..Limits::default() }) else { return };
    assert_eq!(run(&sandbox, "while True: pass"), Outcome::Killed(Limit::Cpu));
    let stubborn = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass";
    assert_eq!(run(&sandbox, stubborn), Outcome::Killed(Limit::Cpu));
    let Some(sandbox) = self::sandbox(Limits { wall_seconds: 1, ..Limits::default() }) else { return };
    assert_eq!(run(&sandbox, "import time\ntime.sleep(100)"), Outcome::TimedOut);
    let deaf = "import os, signal, time\nfor number in range(1, 65):\n    try: signal.signal(number, signal.SIG_IGN)\n    \
                except (OSError, ValueError): pass\nos.close(1)\nos.close(2)\ntime.sleep(100)";
    assert_eq!(run(&sandbox, deaf), Outcome::TimedOut);
}

#[test]
fn memory() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    fails(&sandbox, "a = bytearray(10 ** 10)", "MemoryError");
    fails(&sandbox, "a = [0]\nwhile True: a = a * 2", "MemoryError");
    fails(&sandbox, "import mmap\na = [mmap.mmap(-1, 1 << 28) for _ in range(100)]", "Errno 12");
    fails(&sandbox, "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))", REFUSED);
    assert_eq!(
        run(&sandbox, "import resource\nassert resource.getrlimit(resource.RLIMIT_AS) == (1 << 30, 1 << 30)"),
        Outcome::Passed
    );
    // Without and with the interpreter's own limit.
    fails(&sandbox, "def f(n): return f(n + 1)\nf(0)", "RecursionError");
    let deep = "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n    def __getattr__(self, name):\n        \
                return getattr(self, name + 'a')\nA().a";
    let outcome = run(&sandbox, deep);
    assert!(matches!(outcome, Outcome::Failed { .. } | Outcome::Killed(_) | Outcome::TimedOut), "{outcome:?}");
    assert_eq!(run(&sandbox, "pass"), Outcome::Passed);
}

#[test]
fn file_sizes() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    let large =
        "with open('large', 'wb') as file:\n    for _ in range(10 * 1024):\n        file.write(bytes(1 << 20))\n";
    fails(&sandbox, large, "File too large");
    fails(&sandbox, "with open('large', 'wb') as file: file.truncate(10 ** 10)", "File too large");
    let many = "import itertools\nfor i in itertools.count(): open(str(i), 'w').close()";
    assert_eq!(run(&sandbox, many), Outcome::Killed(Limit::Files));
    let several = "import itertools\nfor i in itertools.count(): open(str(i % 100), 'wb').write(bytes(1 << 20))";
    assert_eq!(run(&sandbox, several), Outcome::Killed(Limit::Files));
    let deep = "import os\nwhile True:\n    os.mkdir('a')\n    os.chdir('a')";
    assert_eq!(run(&sandbox, deep), Outcome::Killed(Limit::Files));
    let hidden =
        "import os\nos.mkdir('a', 0o300)\nimport itertools\nfor i in itertools.count(): open(f'a/{i}', 'w').close()";
    assert_eq!(run(&sandbox, hidden), Outcome::Killed(Limit::Files));
    fails(&sandbox, "files = [open('program.py') for _ in range(1000)]", "Too many open files");
}

#[test]
fn reading_outside() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    let home = tempfile::tempdir().unwrap();
    let secret = home.path().join("key");
    fs::write(&secret, "secret").unwrap();
    let secret = secret.display();
    let denied = "PermissionError: [Errno 13]";
    fails(&sandbox, &format!("open('{secret}').read()"), denied);
    fails(&sandbox, &format!("import os\nos.listdir('{}')", home.path().display()), denied);
    for path in ["/etc/passwd", "/etc/hostname", "/proc/self/environ", "/dev/mem", "/dev/tty"] {
        if Path::new(path).exists() {
            fails(&sandbox, &format!("open('{path}').read()"), denied);
        }
    }
    fails(&sandbox, "import os\nopen(f'/proc/{os.getppid()}/environ').read()", denied);
    fails(&sandbox, "import os\nos.listdir('/')", denied);
    fails(&sandbox, "import os\nos.listdir('..')", denied);
    if let Some(home) = std::env::home_dir().filter(|home| home.is_dir()) {
        fails(&sandbox, &format!("import os\nos.listdir('{}')", home.display()), denied);
    }
    // By a link.
    fails(&sandbox, &format!("import os\nos.symlink('{secret}', 'link')\nopen('link').read()"), "Errno");
    fails(&sandbox, &format!("import os\nos.link('{secret}', 'link')\nopen('link').read()"), "Errno");
    // The environment of whoever runs it is not the program's.
    let environment = "import os\nassert 'PATH' not in os.environ and 'HOME' not in os.environ, os.environ";
    assert_eq!(run(&sandbox, environment), Outcome::Passed);
}

#[test]
fn writing_outside() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().display();
    let path = home.path().join("text");
    fs::write(&path, "text").unwrap();
    let before = fs::metadata(&path).unwrap();
    let file = path.display();
    for attempt in [
        format!("open('{folder}/new', 'w')"),
        format!("open('{file}', 'a')"),
        format!("open('{file}', 'w')"),
        format!("os.open('{file}', os.O_RDONLY | os.O_TRUNC)"),
        format!("os.truncate('{file}', 0)"),
        format!("os.chmod('{file}', 0o777)"),
        format!("os.chown('{file}', 1, 1)"),
        format!("os.utime('{file}', (0, 0))"),
        format!("os.setxattr('{file}', 'user.a', b'b')"),
        format!("os.unlink('{file}')"),
        format!("os.rename('{file}', '{folder}/other')"),
        format!("os.rename('{file}', 'stolen')"),
        format!("os.rename('program.py', '{folder}/given')"),
        format!("os.mkdir('{folder}/new')"),
        format!("os.rmdir('{folder}')"),
        format!("os.symlink('a', '{folder}/link')"),
        format!("os.mkfifo('{folder}/pipe')"),
        "open('/tmp/olmoe-sandbox-escape', 'w')".to_owned(),
        "open('/dev/shm/olmoe-sandbox-escape', 'w')".to_owned(),
        "os.mknod('device', 0o600 | 0o020000, os.makedev(1, 1))".to_owned(),
        "os.mkfifo('pipe')".to_owned(),
        "os.memfd_create('memory')".to_owned(),
        "os.chroot('.')".to_owned(),
    ] {
        fails(&sandbox, &format!("import os\n{attempt}"), "Errno");
    }
    let after = fs::metadata(&path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    assert_eq!((before.permissions(), before.modified().unwrap()), (after.permissions(), after.modified().unwrap()));
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
}

#[test]
fn the_parent() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    fails(&sandbox, "import os\nos.kill(os.getppid(), 9)", REFUSED);
    fails(&sandbox, "import os\nos.kill(-1, 9)", REFUSED);
    fails(&sandbox, "import os\nos.killpg(0, 9)", REFUSED);
    fails(&sandbox, "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))", REFUSED);
    fails(&sandbox, "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU)", REFUSED);
    fails(&sandbox, "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)", REFUSED);
    fails(&sandbox, "import os\nos.sched_setaffinity(os.getppid(), {0})", REFUSED);
    fails(&sandbox, "import os\nos.pidfd_open(os.getppid())", REFUSED);
    // Signals by way of the owner of a descriptor.
    let owner = "import fcntl, os\na, b = os.pipe()\nfcntl.fcntl(a, fcntl.F_SETOWN, os.getppid())";
    fails(&sandbox, owner, REFUSED);
    let owner = "import fcntl, os, struct\na, b = os.pipe()\nfcntl.ioctl(a, 0x8901, struct.pack('i', os.getppid()))";
    fails(&sandbox, owner, REFUSED);
}

#[test]
fn output_is_bounded() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    let loud = "import sys\nfor _ in range(1000):\n    print('x' * 100_000)\n    sys.stderr.write('y' * 100_000)\n";
    assert_eq!(run(&sandbox, loud), Outcome::Passed);
    match run(&sandbox, &format!("{loud}raise ValueError('the end')")) {
        Outcome::Failed { stderr, .. } => {
            assert!(stderr.len() <= 4096, "{}", stderr.len());
            assert!(stderr.ends_with("ValueError: the end\n"), "{stderr}");
        }
        outcome => panic!("{outcome:?}"),
    }
}

#[test]
fn nothing_is_left() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    let told = "import os\nos.makedirs('a/b', 0o000)\nopen('c', 'w').close()\nraise ValueError(f'{os.getpid()} {os.getcwd()}')";
    let Outcome::Failed { stderr, .. } = run(&sandbox, told) else { panic!("it passed") };
    let (pid, folder) = stderr.trim_end().rsplit_once("ValueError: ").unwrap().1.split_once(' ').unwrap();
    assert!(folder.contains("olmoe-program-"), "{folder}");
    assert!(!Path::new(folder).exists(), "{folder} is left");
    assert!(!Path::new("/proc").join(pid).exists(), "process {pid} is left");
}

#[test]
fn several_at_once() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    let programs: Vec<String> = (0..24)
        .map(|i| match i % 3 {
            0 => format!("open('a', 'w').write('{i}')\nassert open('a').read() == '{i}'"),
            1 => format!("raise ValueError({i})"),
            _ => "import os; os.fork()".to_owned(),
        })
        .collect();
    let mut ended = vec![None; programs.len()];
    sandbox
        .run_all(&programs, &AtomicBool::new(false), |i, outcome| -> Result<(), SandboxError> {
            ended[i] = Some(outcome);
            Ok(())
        })
        .unwrap();
    for (i, outcome) in ended.into_iter().enumerate() {
        let outcome = outcome.unwrap();
        assert_eq!(outcome, run(&sandbox, &programs[i]), "{i}");
        assert_eq!(outcome == Outcome::Passed, i % 3 == 0, "{i}");
    }
    // An error of whoever takes the outcomes ends the run.
    let stopped =
        sandbox.run_all(&programs, &AtomicBool::new(false), |_, _| Err(SandboxError::Open("stop".to_owned())));
    assert!(matches!(stopped, Err(SandboxError::Open(reason)) if reason == "stop"));
}

#[test]
fn an_interruption_ends_a_program() {
    let Some(sandbox) = sandbox(Limits::default()) else { return };
    let interrupt = AtomicBool::new(false);
    let begin = Instant::now();
    let outcome = thread::scope(|scope| {
        let run = scope.spawn(|| sandbox.run("import time\ntime.sleep(100)", &interrupt));
        thread::sleep(Duration::from_millis(200));
        interrupt.store(true, Ordering::Relaxed);
        run.join().unwrap().unwrap()
    });
    assert_eq!(outcome, Outcome::Interrupted);
    assert!(begin.elapsed() < Duration::from_secs(10));
}

/// Runs in a process of its own, which is killed by [`a_program_dies_with_its_parent`].
#[test]
#[ignore = "it does not end by itself"]
fn parent_of_an_endless_program() {
    let Some(sandbox) = sandbox(Limits { wall_seconds: 60, ..Limits::default() }) else { return };
    let announced = "import os, sys, time\nopen('here', 'w').close()\ntime.sleep(60)";
    println!("ready");
    run(&sandbox, announced);
}

#[test]
fn a_program_dies_with_its_parent() {
    if sandbox(Limits::default()).is_none() {
        return;
    }
    for signal in [libc::SIGKILL, libc::SIGINT, libc::SIGTERM] {
        let temporary = tempfile::tempdir().unwrap();
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "parent_of_an_endless_program", "--ignored", "--nocapture"])
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut text = String::new();
        let mut output = parent.stdout.take().unwrap();
        while !text.contains("ready") {
            let mut byte = [0];
            assert_eq!(output.read(&mut byte).unwrap(), 1, "{text}");
            text.push(byte[0].into());
        }
        let here = || {
            let mut folders = fs::read_dir(temporary.path()).unwrap().flatten();
            folders.any(|folder| folder.path().join("here").exists())
        };
        until(here, "the program has started");
        // Of the threads of the test, the second has the child.
        let children = || -> Vec<String> {
            let threads = fs::read_dir(format!("/proc/{}/task", parent.id())).unwrap().flatten();
            let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
            lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
        };
        let children = children();
        assert_eq!(children.len(), 1, "{children:?}");
        // SAFETY: a signal to a child that was not waited for.
        unsafe { libc::kill(parent.id().cast_signed(), signal) };
        parent.wait().unwrap();
        // Whoever adopts it may take its time to wait for it: it is dead once it has no memory.
        let dead = || {
            let status = fs::read_to_string(format!("/proc/{}/status", children[0])).unwrap_or_default();
            !status.contains("VmRSS")
        };
        until(dead, "the program is dead");
    }
}

fn until(condition: impl Fn() -> bool, what: &str) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(20), "not after 20 s: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn without_an_interpreter_there_is_no_sandbox() {
    let error = Sandbox::with_python(Path::new("/nowhere/python3"), Limits::default()).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, SandboxError::Python { .. } | SandboxError::Kernel(_) | SandboxError::System { .. }),
        "{text}"
    );
    let error = Sandbox::with_python(Path::new("/bin/true"), Limits::default()).unwrap_err();
    assert!(error.to_string().contains("did not answer") || !matches!(error, SandboxError::Python { .. }), "{error}");
}
