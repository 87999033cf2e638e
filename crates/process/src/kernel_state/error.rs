//! Why a kernel state cannot be read or applied. The texts, and nothing else.

use crate::remote_error::RemoteCallError;
use pagetide_kernel::ptrace::ThreadId;
use std::io;
use std::path::PathBuf;

/// Why the kernel state of a process could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelStateError {
    /// It was killed while it was stopped.
    #[error("process {pid} was killed while it was stopped")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// A file of `/proc` could not be read, or does not read as expected.
    #[error("cannot read {path}")]
    Proc {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot read the {what} of thread {thread}")]
    Kernel {
        /// What was asked for.
        what: &'static str,
        /// The thread.
        thread: ThreadId,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Why a kernel state could not be put into a process. What was set before stays set: the process is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelStateApplyError {
    /// A call inside the process failed.
    #[error("cannot set the {what} of thread {thread}")]
    Call {
        /// What was to be set.
        what: &'static str,
        /// The thread that made the call.
        thread: i32,
        /// What went wrong.
        #[source]
        source: RemoteCallError,
    },
    /// The kernel refused it from outside.
    #[error("cannot set the {what} of thread {thread}")]
    Kernel {
        /// What was to be set.
        what: &'static str,
        /// The thread.
        thread: i32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The state has no such thread.
    #[error("the snapshot knows nothing of thread {thread}")]
    NoSuchThread {
        /// The thread.
        thread: ThreadId,
    },
    /// The kernel gives out numbers of timers in ascending order only, and is past the one that is needed.
    #[error("timer {id} of thread {thread} cannot get its id back on this kernel")]
    TimerNumber {
        /// The number of the timer.
        id: i32,
        /// The thread that was to make it.
        thread: i32,
    },
}
