//! A process that keeps the descriptors of this program open, all of them, until the thread that made it has ended and
//! the kernel has done what follows from that.
//!
//! When a program is killed its descriptors are closed and its threads end in any order. Where a descriptor must
//! not be closed before the kernel has dealt with the end of a thread (PTRACE_O_EXITKILL), somebody else has to have it, too. The
//! keeper shares the whole table (CLONE_FILES), so it has what is opened later as well; and it is killed by the end of
//! that thread (PR_SET_PDEATHSIG), which the kernel sees to after it has killed what the thread traces.

#![allow(unsafe_code)]

use crate::pidfd::{PidFd, PidFdError};
use nix::libc;
use std::io;
use std::sync::Arc;

/// See the head of this file. A child of the calling thread that gives no SIGCHLD; dropping this ends it.
#[derive(Debug)]
pub struct Keeper {
    pid: i32,
    handle: Arc<PidFd>,
    is_reaped: bool,
}

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeeperError {
    /// The kernel made no process.
    #[error("make a process that keeps descriptors open")]
    Clone(#[source] io::Error),
    /// It cannot be ended by others.
    #[error(transparent)]
    PidFd(#[from] PidFdError),
}

impl Keeper {
    /// Makes one, which belongs to the calling thread.
    pub fn new() -> Result<Self, KeeperError> {
        // It must not run the handlers of this program.
        let all = u64::MAX;
        let mut before = 0;
        set_mask(&all, Some(&mut before));
        let maker = std::process::id().cast_signed();
        let none = 0_usize;
        // SAFETY: without CLONE_VM the child has a copy of all memory and goes on from here on a copy of the stack; it
        // makes system calls only. Nothing else is asked for, so no other argument is looked at.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone,
                libc::c_long::from(libc::CLONE_FILES),
                none,
                none,
                none,
                none,
            )
        };
        if pid == 0 {
            keep(maker);
        }
        let failed = io::Error::last_os_error();
        set_mask(&before, None);
        if pid < 0 {
            return Err(KeeperError::Clone(failed));
        }
        let pid = i32::try_from(pid).unwrap_or(0);
        match PidFd::open(pid) {
            Ok(handle) => Ok(Self {
                pid,
                handle: Arc::new(handle),
                is_reaped: false,
            }),
            Err(error) => {
                crate::spawn::kill_and_reap(pid);
                Err(error.into())
            }
        }
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// With which any thread can end it.
    pub fn handle(&self) -> Arc<PidFd> {
        Arc::clone(&self.handle)
    }

    /// It has ended, and its status was taken by a wait(2) for any child.
    pub fn was_reaped(mut self) {
        self.is_reaped = true;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if !self.is_reaped {
            crate::spawn::kill_and_reap(self.pid);
        }
    }
}

/// What the keeper does, to its end.
fn keep(maker: i32) -> ! {
    // SAFETY: the call takes numbers only.
    let bound = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // Whoever kills the group of this program must not kill it at the same time.
    // SAFETY: the call takes nothing.
    unsafe { libc::setsid() };
    // Its maker may have ended before. If another thread of that program lives on, the end of that one counts.
    // SAFETY: the call takes nothing.
    let is_orphan = unsafe { libc::getppid() } != maker;
    if bound != 0 || is_orphan {
        // SAFETY: the call takes a number and does not return; nothing of this copy has to be cleaned up.
        unsafe { libc::_exit(1) };
    }
    loop {
        // SAFETY: the call takes nothing.
        unsafe { libc::pause() };
    }
}

/// Sets the signal mask of the calling thread; not by the libc, which leaves out signals that it uses itself.
pub(crate) fn set_mask(mask: &u64, before: Option<&mut u64>) {
    let before = before.map_or(std::ptr::null_mut(), |before| before as *mut u64);
    // SAFETY: both point to masks of the 8 bytes that are told, or the second is null, which says that it is not wanted.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            mask as *const u64,
            before,
            size_of::<u64>(),
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    fn lives(pid: i32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z"))
    }

    #[test]
    fn it_has_what_is_opened_later_and_ends_with_its_maker() {
        let (tell_pid, pid) = std::sync::mpsc::channel();
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let maker = std::thread::spawn(move || {
            let keeper = Keeper::new().expect("a keeper");
            tell_pid.send(keeper.pid()).expect("tell");
            wait.recv().ok();
            // Its thread ends, and it is not ended by this.
            std::mem::forget(keeper);
        });
        let pid = pid.recv().expect("its number");
        let (read, write) = nix::unistd::pipe().expect("a pipe");
        let number = std::os::fd::AsRawFd::as_raw_fd(&write);
        let link = |process: &str| fs::read_link(format!("/proc/{process}/fd/{number}"));
        assert_eq!(
            link(&pid.to_string()).expect("it has it"),
            link("self").expect("we, too")
        );
        assert!(lives(pid));
        drop(end);
        maker.join().expect("no panic");
        while lives(pid) {
            std::thread::yield_now();
        }
        // Both have the one table, so closing closes for both.
        drop::<OwnedFd>(write);
        let mut rest = Vec::new();
        fs::File::from(read)
            .read_to_end(&mut rest)
            .expect("its end");
        assert!(rest.is_empty());
    }
}
