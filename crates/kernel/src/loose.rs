//! Bytes that another process may change at any moment: they can be copied, and handed on to the kernel.

#![allow(unsafe_code)]

use nix::libc;
use std::io;
use std::sync::atomic::AtomicU8;

/// Copies what is there. Both are as long.
pub fn copy(from: &[AtomicU8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len());
    // SAFETY: both are as long and do not overlap, since `to` is borrowed alone. Whatever another process writes meanwhile, each
    // byte has some value, and nothing is concluded from it here.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr().cast::<u8>(), to.as_mut_ptr(), to.len()) };
}

/// process_vm_writev(2) of them to `address` of process `pid`: how many were written.
pub(crate) fn write_to(pid: i32, address: u64, bytes: &[AtomicU8]) -> io::Result<usize> {
    let here = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let there = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(address as usize),
        iov_len: bytes.len(),
    };
    // SAFETY: the kernel reads as many bytes as there are, and writes only into the other process, if at all.
    let written =
        unsafe { libc::process_vm_writev(pid, &raw const here, 1, &raw const there, 1, 0) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}
