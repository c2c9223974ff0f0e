//! Which system calls a program may make, by seccomp.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::SandboxError;

/// Allowed whatever their arguments. Left out on purpose, as Landlock does not or not always confine them: `truncate`,
/// `chmod`, `chown`, `utimensat`, extended attributes, links, `kill` and all that signals, `setrlimit`, `setsid`.
#[rustfmt::skip]
const ALLOWED: &[c_long] = &[
    // Files; which ones, Landlock decides.
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_close, libc::SYS_close_range, libc::SYS_read, libc::SYS_readv,
    libc::SYS_pread64, libc::SYS_preadv, libc::SYS_preadv2, libc::SYS_write, libc::SYS_writev, libc::SYS_pwrite64,
    libc::SYS_pwritev, libc::SYS_pwritev2, libc::SYS_lseek, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx,
    libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat,
    libc::SYS_getdents64, libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_mkdirat, libc::SYS_unlinkat,
    libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_ftruncate, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_flock,
    libc::SYS_fadvise64, libc::SYS_copy_file_range, libc::SYS_sendfile, libc::SYS_umask, libc::SYS_dup, libc::SYS_dup3,
    libc::SYS_pipe2,
    // Waiting.
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
    libc::SYS_eventfd2, libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_wait4, libc::SYS_waitid,
    // Memory.
    libc::SYS_brk, libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise,
    libc::SYS_membarrier,
    // Threads, and signals of the process to itself by timers.
    libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_set_robust_list, libc::SYS_set_tid_address, libc::SYS_rseq,
    libc::SYS_gettid, libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_getcpu, libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigpending, libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack, libc::SYS_setitimer, libc::SYS_getitimer, libc::SYS_restart_syscall,
    // The time, the machine, the process itself.
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_times, libc::SYS_getrusage,
    libc::SYS_sysinfo, libc::SYS_uname, libc::SYS_getrandom, libc::SYS_getpid, libc::SYS_getppid, libc::SYS_getpgid,
    libc::SYS_getsid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getresuid,
    libc::SYS_getresgid, libc::SYS_getgroups,
    // The interpreter is started with it; Landlock allows no other program.
    libc::SYS_execve,
    libc::SYS_exit, libc::SYS_exit_group,
];

/// The older calls of this processor, which newer ones do not have.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[c_long] = &[
    libc::SYS_open, libc::SYS_creat, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink,
    libc::SYS_getdents, libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename, libc::SYS_dup2,
    libc::SYS_pipe, libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_create, libc::SYS_epoll_wait, libc::SYS_eventfd,
    libc::SYS_pause, libc::SYS_alarm, libc::SYS_time, libc::SYS_getpgrp, libc::SYS_getrlimit, libc::SYS_arch_prctl,
];
/// The older calls of this processor.
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Allowed if an argument, the number of which comes second, is one of these values.
const ALLOWED_IF: &[(c_long, u8, &[u64])] = &[
    // Not those that send signals to an owner, which may be any process.
    (
        libc::SYS_fcntl,
        1,
        &[
            libc::F_DUPFD as u64,
            libc::F_DUPFD_CLOEXEC as u64,
            libc::F_GETFD as u64,
            libc::F_SETFD as u64,
            libc::F_GETFL as u64,
            libc::F_SETFL as u64,
            libc::F_GETLK as u64,
            libc::F_SETLK as u64,
            libc::F_SETLKW as u64,
        ],
    ),
    (libc::SYS_ioctl, 1, &[libc::TCGETS, libc::TIOCGWINSZ, libc::FIOCLEX, libc::FIONCLEX, libc::FIONREAD]),
    (libc::SYS_prctl, 0, &[libc::PR_SET_NAME as u64, libc::PR_GET_NAME as u64]),
];

/// The program for the kernel. A call that is not allowed fails as one that the kernel does not have, so that libraries use
/// the older one that does the same: `clone` instead of `clone3`, whose flags a filter cannot read.
pub(super) fn filter() -> Result<BpfProgram, SandboxError> {
    let unknown = || SandboxError::System { system: std::env::consts::OS, processor: std::env::consts::ARCH };
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return Err(unknown());
    }
    let target = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| unknown())?;
    program(target).map_err(|error| SandboxError::Kernel(format!("seccomp: {error}")))
}

fn program(target: TargetArch) -> Result<BpfProgram, BackendError> {
    let argument = |number, operator, value| SeccompCondition::new(number, SeccompCmpArgLen::Dword, operator, value);
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    for call in ALLOWED.iter().chain(OLDER) {
        rules.insert(*call, Vec::new());
    }
    for (call, number, values) in ALLOWED_IF {
        let rule = |value: &u64| SeccompRule::new(vec![argument(*number, SeccompCmpOp::Eq, *value)?]);
        rules.insert(*call, values.iter().map(rule).collect::<Result<_, _>>()?);
    }
    let thread = libc::CLONE_THREAD as u64;
    let threads = SeccompRule::new(vec![argument(0, SeccompCmpOp::MaskedEq(thread), thread)?])?;
    rules.insert(libc::SYS_clone, vec![threads]);
    // Reading the process's own limits, not setting them: root may raise them.
    let own = argument(0, SeccompCmpOp::Eq, 0)?;
    let no_new = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![own, no_new])?]);
    let refused = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, refused, SeccompAction::Allow, target)?.try_into()
}
