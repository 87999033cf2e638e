//! What the tracing thread and the one that waits for it both see.

use pagetide_kernel::ptrace::{self, ThreadId};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the tracing thread and the one that waits for it both see.
///
/// Seizing a thread waits for an `execve` of its process to end. The `execve` waits for all other
/// threads of the process to be gone. Those that we have seized are gone only when we have reaped
/// them, which the tracing thread cannot do while it seizes. The kernel does not resolve this, so
/// the waiting side reaps for it.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Odd while a thread is being seized; counts up.
    pub(crate) seizing: AtomicU64,
    pub(crate) seized: Mutex<Vec<ThreadId>>,
    pub(crate) reaped: Mutex<Vec<ThreadId>>,
}

impl Shared {
    pub(crate) fn is_seizing(&self) -> Option<u64> {
        let count = self.seizing.load(Ordering::Acquire);
        (count % 2 == 1).then_some(count)
    }

    /// Reaps threads that have ended. Never the first: its status belongs to its parent.
    pub(crate) fn reap(&self, pid: i32) {
        let mut seized = lock(&self.seized);
        seized.retain(|thread| {
            let ended =
                thread.get() != pid && matches!(ptrace::reap_for_tracer(*thread), Ok(Some(_)));
            if ended {
                lock(&self.reaped).push(*thread);
            }
            !ended
        });
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}
