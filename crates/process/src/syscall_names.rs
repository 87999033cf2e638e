//! Names of the system calls that are likely to be run in a target, for messages. Their numbers are those of the `libc` crate,
//! here and everywhere, but for one that it lacks.

use nix::libc;
use std::fmt;

/// The number of io_pgetevents(2), which `libc` 0.2.191 lacks for x86-64.
pub(crate) const SYS_IO_PGETEVENTS: i64 = 333;

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

macro_rules! names {
    ($($number:ident)*) => {
        /// The name of a call, if it is one of these.
        fn name(number: i64) -> Option<&'static str> {
            let name = match number {
                $(libc::$number => stringify!($number),)*
                _ => return None,
            };
            name.strip_prefix("SYS_")
        }
    };
}

names! {
    SYS_read SYS_write SYS_open SYS_close SYS_lseek SYS_mmap SYS_mprotect SYS_munmap SYS_brk
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_ioctl SYS_mremap SYS_msync SYS_madvise SYS_dup
    SYS_dup2 SYS_getitimer SYS_setitimer SYS_getpid SYS_socket SYS_clone SYS_fork SYS_fcntl
    SYS_ftruncate SYS_chdir SYS_umask SYS_setgroups SYS_setresuid SYS_setresgid SYS_setfsuid
    SYS_setfsgid SYS_capset SYS_rt_sigqueueinfo SYS_sigaltstack SYS_personality SYS_modify_ldt
    SYS_prctl SYS_arch_prctl SYS_gettid SYS_set_tid_address SYS_timer_create SYS_timer_settime
    SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete SYS_set_mempolicy SYS_get_mempolicy
    SYS_openat SYS_set_robust_list SYS_get_robust_list SYS_dup3 SYS_rt_tgsigqueueinfo
    SYS_perf_event_open SYS_prlimit64 SYS_memfd_create SYS_bpf SYS_userfaultfd SYS_mlock2 SYS_rseq
    SYS_pidfd_open SYS_clone3 SYS_close_range SYS_pidfd_getfd SYS_process_madvise SYS_fchdir
    SYS_chroot SYS_epoll_ctl SYS_openat2 SYS_keyctl SYS_munlock SYS_mlock SYS_io_uring_enter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_shown_by_its_name() {
        assert_eq!(SystemCall(9).to_string(), "mmap");
        assert_eq!(SystemCall(437).to_string(), "openat2");
        assert_eq!(SystemCall(9999).to_string(), "system call 9999");
    }
}
