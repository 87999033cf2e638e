//! Whether anybody has a file open for writing, asked by taking a read lease for a moment.
//!
//! fcntl(2) F_SETLEASE with F_RDLCK is granted only while no open file description, and so no
//! writable shared mapping either, refers to the file for writing. Since Linux 2.4; needs the owner
//! of the file or CAP_LEASE, and a file system that supports leases.

#![allow(unsafe_code)]

use linux_raw_sys::general::F_SETSIG;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// True if `file`, open for reading only, is provably open for writing nowhere. False if somebody
/// has it open, and also if the kernel will not tell.
pub fn nobody_writes(file: impl AsFd) -> bool {
    let file = file.as_fd();
    // Should a writer come in the moment between the two calls, the holder of the lease is signalled;
    // SIGURG is ignored unless asked for, while the default, SIGIO, would end the program.
    let granted = command(file, F_SETSIG.cast_signed(), libc::SIGURG)
        && command(file, libc::F_SETLEASE, libc::F_RDLCK);
    if granted {
        command(file, libc::F_SETLEASE, libc::F_UNLCK);
    }
    granted
}

fn command(file: BorrowedFd<'_>, command: i32, argument: i32) -> bool {
    // SAFETY: both commands take an int and touch no memory of the caller; the fd is borrowed, so
    // it is open for the length of the call.
    unsafe { libc::fcntl(file.as_raw_fd(), command, argument) == 0 }
}
