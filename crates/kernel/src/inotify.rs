//! Which number the next watch of an inotify gets: ioctl INOTIFY_IOC_SETNEXTWD.
//!
//! Since Linux 4.16, with CONFIG_CHECKPOINT_RESTORE (ENOTTY without); needs no privilege. The number that is given is the
//! next free one from there on.

#![allow(unsafe_code)]

use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOW('I', 0, __s32)`. The number itself is the argument, not its address.
const SET_NEXT_WATCH: libc::Ioctl = 0x4004_4900;

/// Sets it. EINVAL if `watch` is less than 1.
pub fn set_next_watch(inotify: impl AsFd, watch: i32) -> io::Result<()> {
    let inotify = inotify.as_fd().as_raw_fd();
    // SAFETY: this ioctl takes a number and touches no memory of the caller; the fd is borrowed, so it is open.
    let result = unsafe { libc::ioctl(inotify, SET_NEXT_WATCH, watch) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};

    #[test]
    fn the_next_watch_has_the_number() {
        let inotify = init(CreateFlags::CLOEXEC).expect("an inotify");
        match set_next_watch(&inotify, 41) {
            // A kernel without CONFIG_CHECKPOINT_RESTORE.
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => return,
            done => done.expect("set"),
        }
        assert_eq!(
            add_watch(&inotify, "/", WatchFlags::DELETE).expect("watch"),
            41
        );
        assert!(set_next_watch(&inotify, 0).is_err());
    }
}
