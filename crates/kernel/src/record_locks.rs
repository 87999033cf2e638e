//! Locks on parts of a file that belong to the open file description: fcntl(2) F_OFD_SETLK, Linux 3.15.
//!
//! Locks that belong to a process (F_SETLK) can be set by that process only; for them there is [`Lock::to_bytes`].

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::io;
use std::os::fd::AsFd;

/// A lock on a part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// Keeps all others out, not writers alone.
    pub exclusive: bool,
    /// The first byte.
    pub start_bytes: u64,
    /// How many; 0 for all to the end, wherever that is.
    pub length_bytes: u64,
}

impl Lock {
    fn to_flock(self) -> io::Result<libc::flock> {
        let offset = |value| {
            libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
        };
        let kind = if self.exclusive {
            libc::F_WRLCK
        } else {
            libc::F_RDLCK
        };
        Ok(libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: offset(self.start_bytes)?,
            l_len: offset(self.length_bytes)?,
            l_pid: 0,
        })
    }

    /// A `struct flock`, as F_SETLK takes it. EINVAL if a number is larger than a file can be.
    pub fn to_bytes(self) -> io::Result<[u8; 32]> {
        let lock = self.to_flock()?;
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&lock.l_type.to_ne_bytes());
        bytes[2..4].copy_from_slice(&lock.l_whence.to_ne_bytes());
        bytes[8..16].copy_from_slice(&lock.l_start.to_ne_bytes());
        bytes[16..24].copy_from_slice(&lock.l_len.to_ne_bytes());
        Ok(bytes)
    }
}

const _: () = assert!(size_of::<libc::flock>() == 32);
const _: () = assert!(std::mem::offset_of!(libc::flock, l_start) == 8);
const _: () = assert!(std::mem::offset_of!(libc::flock, l_len) == 16);

/// Sets it, without waiting. EAGAIN if somebody else's lock is in the way, EBADF if the descriptor is not open for what the lock
/// is for.
pub fn lock_description(file: impl AsFd, lock: Lock) -> io::Result<()> {
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock.to_flock()?))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_keeps_another_description_out_where_it_lies() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let other = file.reopen().expect("open it again");
        let lock = |start_bytes, length_bytes| Lock {
            exclusive: true,
            start_bytes,
            length_bytes,
        };
        lock_description(&file, lock(100, 10)).expect("lock");
        assert!(lock_description(&other, lock(105, 1)).is_err());
        lock_description(&other, lock(110, 0)).expect("lock behind it");
        assert!(lock_description(&other, lock(u64::MAX, 0)).is_err());
        let bytes = lock(100, 10).to_bytes().expect("bytes");
        assert_eq!((bytes[0], bytes[8], bytes[16]), (1, 100, 10));
    }
}
