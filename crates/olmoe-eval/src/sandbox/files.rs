//! Which files a program may use, by Landlock (Linux 5.13).

use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};

use super::SandboxError;
use super::interpreter::Interpreter;

/// The newest version of Landlock whose rights are known here. Of an older kernel those are missing that it does not have;
/// what they would forbid, the filter of system calls forbids too: cutting off files by path, signals, devices.
const NEWEST: ABI = ABI::V6;

/// Files outside the interpreter's folders that it reads: the index of libraries, and the time zone.
const READ: [&str; 4] = ["/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/dev/urandom"];

/// Refuses a kernel without Landlock.
pub(super) fn check() -> Result<(), SandboxError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(Ruleset::create)
        .map_err(|error| SandboxError::Kernel(format!("Landlock: {error}")))?;
    Ok(())
}

/// What a program in `folder` may use.
pub(super) fn ruleset(interpreter: &Interpreter, folder: &Path) -> Result<OwnedFd, SandboxError> {
    let wrong = |error: RulesetError| SandboxError::Kernel(format!("Landlock: {error}"));
    let path = |path: &Path| PathFd::new(path).map_err(|error| SandboxError::Kernel(format!("Landlock: {error}")));
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let run: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::Execute;
    let write: BitFlags<AccessFs> = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.add_rules(path_beneath_rules(&interpreter.folders, read)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(READ, read)))
        .map_err(wrong)?;
    for program in std::iter::once(&interpreter.path).chain(&interpreter.loaders) {
        rules = rules.add_rule(PathBeneath::new(path(program)?, run)).map_err(wrong)?;
    }
    rules = rules
        .add_rule(PathBeneath::new(path(Path::new("/dev/null"))?, AccessFs::ReadFile | AccessFs::WriteFile))
        .map_err(wrong)?;
    rules = rules.add_rule(PathBeneath::new(path(folder)?, write)).map_err(wrong)?;
    Option::<OwnedFd>::from(rules).ok_or_else(|| SandboxError::Kernel("Landlock is not enabled".to_owned()))
}
