//! What can go wrong with a system call run inside the target. The texts, and nothing else.

use crate::freezer::Freezer;
use crate::syscall_names::SystemCall;
use pagetide_kernel::ptrace::ThreadId;
use rustix::io::Errno;
use std::borrow::Cow;
use std::io;

/// Why a call could not be run in the target, or what it answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteCallError {
    /// The process was killed meanwhile.
    #[error("process {pid} was killed while it was stopped")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// The call was made and failed.
    #[error("{call} failed inside the process")]
    Failed {
        /// The call.
        call: SystemCall,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// A seccomp filter of the target does not let the call pass. It was not made.
    #[error("a seccomp filter of the process forbids {call}")]
    ForbiddenBySeccomp {
        /// The call.
        call: SystemCall,
    },
    /// The target has seccomp filters that we cannot read, so a call might kill it. Reading them
    /// needs CAP_SYS_ADMIN, a kernel with CONFIG_CHECKPOINT_RESTORE, and no filter on ourselves.
    #[error("process {pid} has seccomp filters that cannot be read")]
    SeccompUnknown {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The target is in seccomp's strict mode, in which nearly every call kills.
    #[error("process {pid} is in the strict mode of seccomp")]
    SeccompStrict {
        /// The process.
        pid: i32,
    },
    /// Seccomp has to be asked of each call of the thread, or its state cannot be read.
    #[error("thread {thread} is under seccomp")]
    UnderSeccomp {
        /// The thread.
        thread: ThreadId,
    },
    /// The thread diverts its own system calls (`PR_SET_SYSCALL_USER_DISPATCH`), as Wine does.
    #[error("thread {thread} diverts its system calls to itself")]
    DivertsSyscalls {
        /// The thread.
        thread: ThreadId,
    },
    /// No executable mapping has a `syscall` instruction.
    #[error("process {pid} has no system call instruction that could be used")]
    NoLanding {
        /// The process.
        pid: i32,
    },
    /// No thread is in a state in which it could run a call.
    #[error("process {pid} has no thread that could run a system call")]
    NoThread {
        /// The process.
        pid: i32,
    },
    /// There is no room for the bytes below the stack pointer of the thread.
    #[error("no room for {length_bytes} bytes on the stack of thread {thread}")]
    NoRoom {
        /// The thread.
        thread: ThreadId,
        /// How many bytes were to be put there.
        length_bytes: usize,
    },
    /// The target's memory could not be read or written.
    #[error("cannot access {length_bytes:#x} bytes at {address:#x} of the process")]
    Memory {
        /// Where.
        address: u64,
        /// How many bytes.
        length_bytes: usize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The call did not return in time, and was interrupted.
    #[error("{call} did not return in time inside the process")]
    TimedOut {
        /// The call.
        call: SystemCall,
    },
    /// A control group keeps the process frozen, so that it runs no call until it is thawed.
    #[error("process {pid} is frozen by {freezer}")]
    Frozen {
        /// The process.
        pid: i32,
        /// By what.
        freezer: Freezer,
    },
    /// Something else than the call happened in the thread.
    #[error("thread {thread} did not run {call}: {what}")]
    Unexpected {
        /// The thread.
        thread: ThreadId,
        /// The call.
        call: SystemCall,
        /// What happened.
        what: String,
    },
    /// The session ended with an error before.
    #[error("the session of remote calls is over")]
    Over,
    /// The kernel refused a request.
    #[error("cannot {what} thread {thread}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The thread.
        thread: ThreadId,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl RemoteCallError {
    /// True if nothing went wrong: it cannot be done with this process, this store or these rights, and trying again does not help.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::ForbiddenBySeccomp { .. }
                | Self::SeccompUnknown { .. }
                | Self::SeccompStrict { .. }
                | Self::UnderSeccomp { .. }
                | Self::DivertsSyscalls { .. }
                | Self::NoLanding { .. }
                | Self::NoThread { .. }
                | Self::Frozen { .. }
        ) || self.has_no_free_descriptor()
    }

    /// What whoever runs the command line can do about it, if something.
    pub fn advice(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(match self {
            Self::ForbiddenBySeccomp { .. }
            | Self::SeccompStrict { .. }
            | Self::UnderSeccomp { .. }
            | Self::SeccompUnknown { .. } => {
                "use `--backend rehash`, which makes no system calls inside the process but reads all of its memory each time"
            }
            _ if self.has_no_free_descriptor() => {
                "raise its limit of open files (`prlimit --nofile`), or use `--backend rehash`, which opens nothing in the process \
                 but reads all of its memory each time"
            }
            _ => return None,
        }))
    }

    /// True if the process may open no more files.
    pub fn has_no_free_descriptor(&self) -> bool {
        matches!(
            self,
            Self::Failed {
                errno: Errno::MFILE,
                ..
            }
        )
    }
}
