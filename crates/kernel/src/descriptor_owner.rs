//! Whom the kernel signals when an open file description is ready, and by which signal: fcntl(2) F_GETOWN_EX,
//! F_SETOWN_EX (Linux 2.6.32), F_GETSIG, F_SETSIG.
//!
//! What is not here: O_ASYNC itself, which is a status flag as others. No privilege is needed; setting an owner fails
//! with ESRCH if there is no such process.

#![allow(unsafe_code)]

use linux_raw_sys::general::{F_GETOWN_EX, F_GETSIG, F_SETOWN_EX, F_SETSIG, f_owner_ex};
use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// What the number of an owner is a number of: the `F_OWNER_*` of `fcntl.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerKind {
    /// A thread.
    Thread,
    /// A process.
    Process,
    /// A process group.
    Group,
}

/// The owner of an open file description; none if nobody is signalled. EBADF for a descriptor with O_PATH.
pub fn owner(file: impl AsFd) -> io::Result<Option<(OwnerKind, i32)>> {
    let mut owner = f_owner_ex { type_: 0, pid: 0 };
    let number = file.as_fd().as_raw_fd();
    // SAFETY: the kernel writes a struct f_owner_ex to the address, which is that of one.
    let result = unsafe { libc::fcntl(number, F_GETOWN_EX.cast_signed(), &raw mut owner) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let kind = match owner.type_ {
        0 => OwnerKind::Thread,
        2 => OwnerKind::Group,
        _ => OwnerKind::Process,
    };
    Ok((owner.pid != 0).then_some((kind, owner.pid)))
}

/// Sets the owner.
pub fn set_owner(file: impl AsFd, kind: OwnerKind, number: i32) -> io::Result<()> {
    let owner = f_owner_ex {
        type_: match kind {
            OwnerKind::Thread => 0,
            OwnerKind::Process => 1,
            OwnerKind::Group => 2,
        },
        pid: number,
    };
    let file = file.as_fd().as_raw_fd();
    // SAFETY: the kernel reads a struct f_owner_ex from the address, which is that of one, and keeps nothing of it.
    let result = unsafe { libc::fcntl(file, F_SETOWN_EX.cast_signed(), &raw const owner) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The signal; 0 for SIGIO without details. EBADF for a descriptor with O_PATH.
pub fn signal(file: impl AsFd) -> io::Result<i32> {
    // SAFETY: the command takes nothing and touches no memory of the caller; the fd is borrowed, so it is open.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_GETSIG.cast_signed(), 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Sets the signal; EINVAL if it is none.
pub fn set_signal(file: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: the command takes an int and touches no memory of the caller; the fd is borrowed, so it is open.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), F_SETSIG.cast_signed(), signal) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_told() {
        let (read, _write) = rustix::pipe::pipe().expect("a pipe");
        assert_eq!(owner(&read).expect("ask"), None);
        assert_eq!(signal(&read).expect("ask"), 0);
        let own = i32::try_from(std::process::id()).expect("a pid");
        let group = rustix::process::getpgrp().as_raw_nonzero().get();
        for wanted in [
            (OwnerKind::Process, own),
            (OwnerKind::Thread, own),
            (OwnerKind::Group, group),
        ] {
            set_owner(&read, wanted.0, wanted.1).expect("set");
            assert_eq!(owner(&read).expect("ask"), Some(wanted));
        }
        set_signal(&read, 35).expect("set");
        assert_eq!(signal(&read).expect("ask"), 35);
        assert!(set_signal(&read, 1000).is_err());
    }
}
