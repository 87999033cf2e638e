//! A file by the handle that its file system knows it by, and not by a path: open_by_handle_at(2).
//!
//! Since Linux 2.6.39; needs CAP_DAC_READ_SEARCH in the first user namespace. ESTALE if there is no such file any more,
//! or if the file system does not know files by handles (EOPNOTSUPP before Linux 6.7).

#![allow(unsafe_code)]

use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// MAX_HANDLE_SZ of `linux/exportfs.h`: no handle is longer, in bytes.
pub const HANDLE_BYTES_MAX: usize = 128;

/// `struct file_handle` with room for the longest.
#[repr(C)]
struct Handle {
    length_bytes: u32,
    kind: i32,
    bytes: [u8; HANDLE_BYTES_MAX],
}

const _: () = assert!(size_of::<Handle>() == 8 + HANDLE_BYTES_MAX);

/// Opens the file with O_PATH and O_CLOEXEC. `mount` is any file or directory of the file system (not opened with O_PATH). EINVAL if the handle is
/// longer than [`HANDLE_BYTES_MAX`].
pub fn open_path(mount: impl AsFd, kind: i32, handle: &[u8]) -> io::Result<OwnedFd> {
    let too_long = || io::Error::from_raw_os_error(libc::EINVAL);
    let mut bytes = [0; HANDLE_BYTES_MAX];
    bytes
        .get_mut(..handle.len())
        .ok_or_else(too_long)?
        .copy_from_slice(handle);
    let mut handle = Handle {
        length_bytes: u32::try_from(handle.len()).map_err(|_| too_long())?,
        kind,
        bytes,
    };
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    let mount = mount.as_fd().as_raw_fd();
    // SAFETY: the kernel reads 8 + length_bytes bytes from the address, at most what a Handle has.
    let number =
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount, &raw mut handle, flags) };
    match i32::try_from(number) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_that_cannot_be_are_refused() {
        let root = std::fs::File::open("/").expect("open /");
        assert!(open_path(&root, 1, &[0xff; 8]).is_err());
        let long = open_path(&root, 1, &[0; HANDLE_BYTES_MAX + 1]).expect_err("too long");
        assert_eq!(long.raw_os_error(), Some(libc::EINVAL));
    }
}
