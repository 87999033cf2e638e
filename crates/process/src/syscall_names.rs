//! Names of the system calls that are likely to be run in a target, for messages.

use std::fmt;

/// A system call of x86-64, shown by name if it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemCall(pub i64);

impl fmt::Display for SystemCall {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name(self.0) {
            Some(name) => formatter.write_str(name),
            None => write!(formatter, "system call {}", self.0),
        }
    }
}

fn name(number: i64) -> Option<&'static str> {
    Some(match number {
        0 => "read",
        1 => "write",
        2 => "open",
        3 => "close",
        8 => "lseek",
        9 => "mmap",
        10 => "mprotect",
        11 => "munmap",
        12 => "brk",
        13 => "rt_sigaction",
        14 => "rt_sigprocmask",
        16 => "ioctl",
        25 => "mremap",
        26 => "msync",
        28 => "madvise",
        32 => "dup",
        33 => "dup2",
        36 => "getitimer",
        38 => "setitimer",
        39 => "getpid",
        41 => "socket",
        56 => "clone",
        57 => "fork",
        72 => "fcntl",
        77 => "ftruncate",
        80 => "chdir",
        95 => "umask",
        116 => "setgroups",
        117 => "setresuid",
        119 => "setresgid",
        122 => "setfsuid",
        123 => "setfsgid",
        126 => "capset",
        129 => "rt_sigqueueinfo",
        131 => "sigaltstack",
        135 => "personality",
        154 => "modify_ldt",
        157 => "prctl",
        158 => "arch_prctl",
        186 => "gettid",
        218 => "set_tid_address",
        222 => "timer_create",
        223 => "timer_settime",
        224 => "timer_gettime",
        225 => "timer_getoverrun",
        226 => "timer_delete",
        238 => "set_mempolicy",
        239 => "get_mempolicy",
        257 => "openat",
        273 => "set_robust_list",
        274 => "get_robust_list",
        292 => "dup3",
        297 => "rt_tgsigqueueinfo",
        298 => "perf_event_open",
        302 => "prlimit64",
        319 => "memfd_create",
        321 => "bpf",
        323 => "userfaultfd",
        325 => "mlock2",
        334 => "rseq",
        434 => "pidfd_open",
        435 => "clone3",
        436 => "close_range",
        438 => "pidfd_getfd",
        440 => "process_madvise",
        _ => return None,
    })
}
