//! Which thread is traced, and what the kernel answers about it.

use nix::libc;
use std::fmt;
use std::io;

/// Number of a thread, as the kernel counts them. The first thread's is that of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadId(pub(super) i32);

impl ThreadId {
    /// The thread with this id; nothing is checked.
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// The id.
    pub const fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Display for ThreadId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

pub(super) fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
