//! pidfd: a process as a file descriptor, and copies of the descriptors it has open.
//!
//! A pid can be given to another process at any time; a pidfd cannot. It does not stop, inspect or
//! trace anything, and it does not say *which* process it refers to: compare the start time after
//! the pidfd is open, and the two belong together from then on.

use crate::progress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal,
};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A process (a thread-group leader) held by descriptor. Close-on-exec. Linux 5.3.
#[derive(Debug)]
pub struct PidFd {
    descriptor: OwnedFd,
}

/// Why a pidfd operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PidFdError {
    /// What was given cannot be a pid.
    #[error("{pid} is not a pid")]
    NotAPid {
        /// What was given.
        pid: i32,
    },
    /// `pidfd_open(2)` failed: ESRCH no such process, EINVAL not a thread-group leader.
    #[error("cannot open a descriptor for process {pid}")]
    Open {
        /// The process asked for.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// `pidfd_getfd(2)` failed: EBADF not open there, EPERM no ptrace access, ESRCH process gone.
    #[error("cannot copy file descriptor {number} out of the process")]
    GetFd {
        /// The number in the other process.
        number: i32,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// `pidfd_send_signal(2)` failed: EPERM, or ESRCH process gone.
    #[error("cannot send {signal} to the process")]
    SendSignal {
        /// The signal.
        signal: SignalName,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// `poll(2)` on the pidfd failed.
    #[error("cannot wait for the end of the process")]
    Wait(#[source] Errno),
}

/// A signal, shown by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalName(i32);

impl fmt::Display for SignalName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "signal {}", self.0)
    }
}

impl PidFd {
    /// Opens the process with this pid: `pidfd_open(2)`, no privilege needed.
    pub fn open(pid: i32) -> Result<Self, PidFdError> {
        let number = Pid::from_raw(pid)
            .filter(|_| pid > 0)
            .ok_or(PidFdError::NotAPid { pid })?;
        let descriptor = pidfd_open(number, PidfdFlags::empty())
            .map_err(|source| PidFdError::Open { pid, source })?;
        Ok(Self { descriptor })
    }

    /// A copy of descriptor `number` of that process, close-on-exec on this side:
    /// `pidfd_getfd(2)`, Linux 5.6, needs ptrace access to the process (see `ptrace(2)`).
    pub fn get_fd(&self, number: i32) -> Result<OwnedFd, PidFdError> {
        progress::step();
        pidfd_getfd(&self.descriptor, number, PidfdGetfdFlags::empty())
            .map_err(|source| PidFdError::GetFd { number, source })
    }

    /// Sends a signal to the process: `pidfd_send_signal(2)`, Linux 5.1, permission as `kill(2)`.
    pub fn send_signal(&self, signal: Signal) -> Result<(), PidFdError> {
        pidfd_send_signal(&self.descriptor, signal).map_err(|source| PidFdError::SendSignal {
            signal: SignalName(signal.as_raw()),
            source,
        })
    }

    /// Waits until the process has ended (all its threads; reaped or not), at most `timeout`.
    /// True if it has ended.
    pub fn wait_for_end(&self, timeout: Duration) -> Result<bool, PidFdError> {
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut descriptors = [PollFd::new(&self.descriptor, PollFlags::IN)];
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(source) => Err(PidFdError::Wait(source)),
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
