//! The system calls that reading a store and telling about it needs; any other fails with EPERM from then on. What they are made
//! with (which files, which descriptors) is not looked at here.

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Reading files and directories, which landlock confines to the store, and writing to what is open.
const FILES: [libc::c_long; 27] = [
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_getdents64,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_fadvise64,
    libc::SYS_ioctl,
    libc::SYS_poll,
    libc::SYS_access,
    libc::SYS_faccessat,
];

/// Memory, threads, time, and the end.
const OWN: [libc::c_long; 34] = [
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_membarrier,
    libc::SYS_getrusage,
];

/// From now on the calling thread and those that it makes can make no other calls than these.
pub fn allow_only_reading() -> anyhow::Result<()> {
    let mut rules: Vec<(libc::c_long, Vec<SeccompRule>)> = FILES
        .into_iter()
        .chain(OWN)
        .map(|call| (call, Vec::new()))
        .collect();
    // Threads have names.
    let name = u64::from(libc::PR_SET_NAME.cast_unsigned());
    rules.push((libc::SYS_prctl, vec![first_argument(name)?]));
    let filter: BpfProgram = SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()?;
    seccompiler::apply_filter(&filter)?;
    Ok(())
}

/// Allows a call only with this number for its first argument.
fn first_argument(number: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    let same = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, number)?;
    SeccompRule::new(vec![same])
}
