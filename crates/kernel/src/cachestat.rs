//! How many pages of a file are in memory: cachestat(2), Linux 6.5. Not which ones; whoever wants to know that asks for
//! parts. Unlike SEEK_DATA it also tells of memory that has no other call for it, such as that of a guest of KVM.
//!
//! The file must be open for writing, or belong to the caller, or the caller must have CAP_FOWNER; otherwise EPERM.
//! hugetlbfs gives EOPNOTSUPP.

#![allow(unsafe_code)]

use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Its number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

#[repr(C)]
#[derive(Default)]
struct Statistics {
    in_memory: u64,
    dirty: u64,
    under_writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

const _: () = assert!(size_of::<Range>() == 16 && size_of::<Statistics>() == 40);

/// How many pages of 4 KiB of `file` are in memory between `offset` and `offset + length`, in bytes.
pub fn pages_in_memory(file: impl AsFd, offset: u64, length: u64) -> io::Result<u64> {
    let range = Range { offset, length };
    let mut statistics = Statistics::default();
    // A length of 0 means all up to the end.
    if length == 0 {
        return Ok(0);
    }
    // SAFETY: both structures have the size and layout of the kernel's (asserted above) and outlive the call, which
    // reads the first and writes the second; the descriptor is borrowed for as long.
    let done = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_fd().as_raw_fd(),
            &raw const range,
            &raw mut statistics,
            0,
        )
    };
    match done {
        0 => Ok(statistics.in_memory),
        _ => Err(io::Error::last_os_error()),
    }
}
