//! Whether a thread may use I/O ports by itself (`ioperm(2)`): PTRACE_GETREGSET with NT_386_IOPERM.

use super::thread::{ThreadId, check};
use nix::libc;
use std::io;

const NT_386_IOPERM: usize = 0x201;
/// The bitmap: a bit for each of 65,536 ports.
const BITMAP_BYTES: usize = 8192;

/// True if the stopped thread has a bitmap of allowed ports.
///
/// # Errors
/// EINVAL on a kernel without CONFIG_X86_IOPL_IOPERM, where no thread has one.
pub fn may_use_io_ports(thread: ThreadId) -> io::Result<bool> {
    let mut bitmap = [0u8; BITMAP_BYTES];
    let mut vector = libc::iovec {
        iov_base: bitmap.as_mut_ptr().cast(),
        iov_len: bitmap.len(),
    };
    // SAFETY: `vector` describes exactly `bitmap`, which lives until after the call; the kernel writes no more than
    // `iov_len` bytes.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGSET,
            thread.0,
            NT_386_IOPERM,
            &raw mut vector,
        )
    };
    match check(result) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(false),
        Err(error) => Err(error),
    }
}
