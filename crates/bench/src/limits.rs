//! The bare operations that pagetide is measured against, with nothing of ours around them.

#![allow(unsafe_code)]

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use std::time::{Duration, Instant};

/// One fork(2) of this process, whose child ends at once: the time the caller waits.
pub fn fork_once() -> anyhow::Result<Duration> {
    let started = Instant::now();
    // SAFETY: the child calls nothing but _exit, which is async-signal-safe.
    match unsafe { fork() }? {
        // SAFETY: _exit ends the child at once and runs nothing of this program.
        ForkResult::Child => unsafe { nix::libc::_exit(0) },
        ForkResult::Parent { child } => {
            let time = started.elapsed();
            waitpid(child, None)?;
            Ok(time)
        }
    }
}
