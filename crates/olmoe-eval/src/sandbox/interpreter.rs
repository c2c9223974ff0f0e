//! The interpreter, and which files it needs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::SandboxError;

/// The name of a program in its folder.
pub(super) const PROGRAM: &str = "program.py";

/// Runs a program as `__main__`, then hands on what is in its standard input. Both descriptors are put away before the
/// program starts, whose own input and output are empty.
pub(super) const DRIVER: &str = r#"
import os, sys, types

def run(token, out, read=os.read, write=os.write, leave=os._exit):
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    with open("program.py", encoding="utf-8") as file:
        source = file.read()
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(source, "program.py", "exec"), main.__dict__)
    write(out, read(token, 64))
    leave(0)

run(os.dup(0), os.dup(1))
"#;

/// Asks an interpreter what it is and what it reads. The libraries are those that it has mapped.
const QUESTIONS: &str = r#"
import json, os, sys, sysconfig
for name in ("ctypes", "hashlib", "ssl", "lzma", "bz2", "sqlite3", "decimal", "readline"):
    try:
        __import__(name)
    except Exception:
        pass
with open("/proc/self/maps") as maps:
    fields = [line.rstrip("\n").split(None, 5) for line in maps]
mapped = {field[5] for field in fields if len(field) == 6 and field[5].startswith("/") and os.path.isfile(field[5])}
libraries = {path for path in mapped if ".so" in os.path.basename(path)}
executable = getattr(sys, "_base_executable", None) or sys.executable
variables = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
folders = [sysconfig.get_path(name, vars=variables) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
print(json.dumps({
    "path": os.path.realpath(executable),
    "version": ".".join(map(str, sys.version_info[:3])),
    "loaders": sorted(path for path in libraries if os.path.basename(path).startswith("ld")),
    "folders": sorted({os.path.realpath(path) for path in folders} | {os.path.dirname(path) for path in libraries}),
}))
"#;

/// A Python interpreter.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Interpreter {
    /// The program itself, no link and no script that starts it.
    pub path: PathBuf,
    /// Such as `3.11.7`.
    pub version: String,
    /// The programs that the kernel starts with it, which load its libraries.
    pub(super) loaders: Vec<PathBuf>,
    /// The folders that it reads.
    pub(super) folders: Vec<PathBuf>,
}

impl Interpreter {
    /// Starts an interpreter to ask it. `python` is a path, or a name that the search path has.
    pub(super) fn find(python: &Path) -> Result<Interpreter, SandboxError> {
        let wrong = |reason| SandboxError::Python { path: python.to_owned(), reason };
        let output = Command::new(python)
            .args(["-I", "-c", QUESTIONS])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| wrong(error.to_string()))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(wrong(text.lines().last().unwrap_or("it failed without an error message").to_owned()));
        }
        let interpreter: Interpreter = serde_json::from_slice(&output.stdout)
            .map_err(|error| wrong(format!("it did not answer as Python does ({error})")))?;
        // A folder that holds the home folder would open it to programs.
        let home = std::env::home_dir().and_then(|home| home.canonicalize().ok());
        if let Some(folder) = interpreter
            .folders
            .iter()
            .find(|folder| folder.parent().is_none() || home.as_ref().is_some_and(|home| home.starts_with(folder)))
        {
            return Err(wrong(format!("it reads all of {}, which programs must not", folder.display())));
        }
        Ok(interpreter)
    }
}
