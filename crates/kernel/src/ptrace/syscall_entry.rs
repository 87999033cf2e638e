//! Which system call a stopped thread is about to make: PTRACE_GET_SYSCALL_INFO, Linux 5.3.

use super::thread::{ThreadId, check};
use nix::libc;
use std::io;

/// PTRACE_SYSCALL_INFO_ENTRY
const ENTRY: u8 = 1;

/// A system call that has not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyscallEntry {
    /// AUDIT_ARCH_X86_64 (0xC000003E), or AUDIT_ARCH_I386 (0x40000003): whose numbers are meant.
    pub architecture: u32,
    /// Its number.
    pub number: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// The system call that a thread in a [`super::WaitReport::Syscall`] stop is about to make; `None` if it leaves one.
///
/// # Errors
/// ESRCH if the thread is not in a ptrace-stop.
pub fn syscall_entry(thread: ThreadId) -> io::Result<Option<SyscallEntry>> {
    // SAFETY: all bytes zero are a valid `ptrace_syscall_info`.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes no more bytes than the size that is told, to a structure that lives until after the call.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_GET_SYSCALL_INFO,
            thread.0,
            size_of::<libc::ptrace_syscall_info>(),
            &raw mut info,
        )
    };
    check(result)?;
    if info.op != ENTRY {
        return Ok(None);
    }
    // SAFETY: for an entry the kernel fills this part of the union; all bytes are valid numbers.
    let entry = unsafe { info.u.entry };
    Ok(Some(SyscallEntry {
        architecture: info.arch,
        number: entry.nr,
        arguments: entry.args,
    }))
}
