//! Running the program.

#![allow(dead_code)]

pub(crate) mod desk;

use assert_cmd::Command;

/// Its path.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_olmoe");

/// What a run left.
pub(crate) struct Done {
    /// Exit status.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

/// Runs it to its end.
pub(crate) fn olmoe(arguments: &[&str], environment: &[(&str, &str)]) -> Done {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).env_remove("OLMOE_ISA").envs(environment.iter().copied());
    let done = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: done.status.code().unwrap(), out: text(done.stdout), err: text(done.stderr) }
}
