//! Signals as something that can be read, by the kernel's own form of a set of signals: signalfd4(2), Linux 2.6.27.

#![allow(unsafe_code)]

use nix::libc;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Opens one for the signals of `mask` (bit N - 1 is signal N), close-on-exec. SIGKILL and SIGSTOP are left out by the kernel.
pub fn open(mask: u64, nonblocking: bool) -> io::Result<OwnedFd> {
    let flags = libc::SFD_CLOEXEC | if nonblocking { libc::SFD_NONBLOCK } else { 0 };
    // SAFETY: the kernel reads 8 bytes from the address, which is that of a u64, and keeps nothing.
    let number = unsafe {
        libc::syscall(
            libc::SYS_signalfd4,
            -1,
            &raw const mask,
            size_of::<u64>(),
            flags,
        )
    };
    match i32::try_from(number) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_mask_is_the_one_asked_for() {
        let file = open(1 << 9 | 1 << 63, true).expect("a signalfd");
        let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
        let text = std::fs::read_to_string(path).expect("fdinfo");
        assert!(text.contains("sigmask:\t8000000000000200"), "{text}");
    }
}
